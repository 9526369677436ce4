"""Conversations, and pairs of answers of which one is preferred: from lines of JSON, checked in one pass.

A conversation is {"messages": [{"role": ..., "content": ...}, ...]}, or {"prompt": ..., "completion": ...}; a
preference is {"chosen": ..., "rejected": ...}, with a "prompt" or without. Each part is a list of messages or a string:
a prompt that is a string is the user's, an answer that is one is the assistant's. A source is opened by one streaming
pass that checks every line, then read again, as often as wanted, one record at a time.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from nextile.base.errors import NextileError
from nextile.data.corpora import LINE_SUFFIXES, missing, parsed, string
from nextile.data.pairs import hash_of, held_out, lines
from nextile.text.chat import ASSISTANT, Message
from nextile.text.chat import conversation as checked

USER = "user"
ONE_A_LINE = "give one conversation a line, and cut those that are so long"
CONVERSATION = '{"messages": [...]} or {"prompt": ..., "completion": ...}'
PREFERENCE = '{"prompt": ..., "chosen": ..., "rejected": ...}'
INDEX = np.dtype([("hash", "<u8"), ("bytes", "<i8")])  # of each record: its question, and all that is said

Conversation = tuple[Message, ...]


class Preference(NamedTuple):
    """Two ways for a conversation to go."""

    chosen: Conversation
    rejected: Conversation


Record = TypeVar("Record", Conversation, Preference)


@dataclass(frozen=True, eq=False)
class Records(Generic[Record]):
    """Checked records of a source, which can be iterated as often as wanted; each time they are read anew.

    index: what is known of each (INDEX).
    Errors: NextileError at the end of an iteration that did not read what was there when the source was opened.
    """

    name: str
    read: Callable[[], Iterator[Record]]
    index: np.ndarray
    builtin: bool = False

    def __iter__(self) -> Iterator[Record]:
        count = size = 0
        for record in self.read():
            count, size = count + 1, size + _bytes(record)
            yield record
        if (count, size) != (len(self), self.bytes):
            raise NextileError(f"'{self.name}' changed while it was being read: run again when nobody writes to it")

    def __len__(self) -> int:
        return len(self.index)

    @property
    def bytes(self) -> int:
        """All that is said, in UTF-8."""
        return int(self.index["bytes"].sum())


def messages_of(record: Conversation | Preference) -> Iterator[Message]:
    """All messages of a record; of a preference those of both ways."""
    return itertools.chain(*record) if isinstance(record, Preference) else iter(record)


def question_of(conversation: Conversation) -> Conversation:
    """What comes before the first answer."""
    return tuple(itertools.takewhile(lambda message: message.role != ASSISTANT, conversation))


def _bytes(record: Conversation | Preference) -> int:
    return sum(len(message.content.encode()) for message in messages_of(record))


# --- what a line says ----------------------------------------------------------------------------------------------


def conversation(value: Any, place: str) -> Conversation:
    """A conversation from JSON. Errors: NextileError, beginning with the place, for what is none, or has no answer."""
    match value:
        case {"messages": messages}:
            found = tuple(checked(messages, place))
        case {"prompt": prompt, "completion": completion}:
            found = _part(prompt, USER, '"prompt"', place) + _part(completion, ASSISTANT, '"completion"', place)
        case _:
            raise NextileError(f"{place} is no conversation: each line must be like {CONVERSATION}")
    return _answered(found, "", place)


def preference(value: Any, place: str) -> Preference:
    """A preference from JSON. Errors: NextileError, beginning with the place, for what is none."""
    match value:
        case {"chosen": chosen, "rejected": rejected}:
            prompt = value.get("prompt")
            before = () if prompt is None else _part(prompt, USER, '"prompt"', place)
            sides = {'"chosen"': chosen, '"rejected"': rejected}
            found = Preference(*(_way(before, answer, name, place) for name, answer in sides.items()))
        case _:
            raise NextileError(f"{place} is no preference: each line must be like {PREFERENCE}")
    if found.chosen == found.rejected:
        raise NextileError(f"{place}: chosen and rejected say the same, so nothing is preferred: remove the line")
    return found


def _way(before: Conversation, answer: Any, name: str, place: str) -> Conversation:
    """The prompt and an answer to it; an answer that is a list of messages may begin with the prompt."""
    said = _part(answer, ASSISTANT, name, place)
    return _answered(said if before and said[: len(before)] == before else before + said, f" in {name}", place)


def _part(value: Any, role: str, name: str, place: str) -> Conversation:
    """A list of messages, or a string that is one message of this role."""
    if isinstance(value, list):
        return tuple(checked(value, f"{name} in {place}"))
    return (Message(role, string(value, name, place)),)


def _answered(found: Conversation, where: str, place: str) -> Conversation:
    """The conversation, if there is something to learn from it."""
    if not any(message.role == ASSISTANT and message.content.strip() for message in found):
        raise NextileError(f"{place} has no answer{where}: no message of the assistant says anything: remove the line")
    return found


# --- built in ------------------------------------------------------------------------------------------------------

SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
LARGEST = 50  # two numbers below it are added


def spelled(number: int) -> str:
    """A number from 0 to 99 in English words."""
    if number < len(SMALL):
        return SMALL[number]
    tens, ones = divmod(number, 10)
    return TENS[tens - 2] + (f"-{SMALL[ones]}" if ones else "")


def _sums() -> Iterator[tuple[int, int]]:
    """All pairs of numbers below LARGEST, in an order that is mixed and always the same."""
    every = itertools.product(range(LARGEST), range(LARGEST))
    return iter(sorted(every, key=lambda pair: hash_of(f"sum of {pair}")))


def _asks(content: str) -> Message:
    return Message(USER, content)


def _answers(content: str) -> Message:
    return Message(ASSISTANT, content)


def _sums_chat() -> Iterator[Conversation]:
    """2,500 questions about a sum; each third conversation goes on and asks for the result in words."""
    for number, (a, b) in enumerate(_sums()):
        first = (_asks(f"What is {a} plus {b}?"), _answers(f"{a} plus {b} is {a + b}."))
        yield first if number % 3 else (*first, _asks("In words?"), _answers(spelled(a + b)))


def _sums_preferences() -> Iterator[Preference]:
    """The same questions, each with the right answer and one that is up to 9 off."""
    for a, b in _sums():
        off = 1 + hash_of(f"off by {a} {b}") % 9
        wrong = a + b + (off if hash_of(f"up {a} {b}") % 2 or off > a + b else -off)
        answers = (_answers(f"{a} plus {b} is {result}.") for result in (a + b, wrong))
        yield Preference(*((_asks(f"What is {a} plus {b}?"), answer) for answer in answers))


CONVERSATION_BUILTINS: Mapping[str, Callable[[], Iterator[Conversation]]] = {"sums-chat": _sums_chat}
PREFERENCE_BUILTINS: Mapping[str, Callable[[], Iterator[Preference]]] = {"sums-preferences": _sums_preferences}


# --- opening -------------------------------------------------------------------------------------------------------


def are_conversations(sources: Sequence[str]) -> bool:
    """Whether this is one built-in name of conversations, or one file of JSON lines that begins with a conversation."""
    names = {"messages"}, {"prompt", "completion"}
    return _is_builtin(sources, CONVERSATION_BUILTINS) or any(found <= _first_names(sources) for found in names)


def are_preferences(sources: Sequence[str]) -> bool:
    """Whether this is one built-in name of preferences, or one file of JSON lines that begins with a preference."""
    return _is_builtin(sources, PREFERENCE_BUILTINS) or {"chosen", "rejected"} <= _first_names(sources)


def _is_builtin(sources: Sequence[str], builtins: Mapping[str, Any]) -> bool:
    return len(sources) == 1 and sources[0] in builtins and not os.path.exists(sources[0])


def _first_names(sources: Sequence[str]) -> set[str]:
    """The names in the first line that says something; none where it cannot be read, which its task will say."""
    if len(sources) != 1 or not sources[0].lower().endswith(LINE_SUFFIXES) or not os.path.isfile(sources[0]):
        return set()
    try:
        with closing(lines(Path(sources[0]))) as read:
            first = next((line for line in read if line.strip()), "{}")
        value = parsed(first, "")
    except NextileError:
        return set()
    return set(value) if isinstance(value, dict) else set()


def open_conversations(source: str) -> Records[Conversation]:
    """The conversations of a .jsonl (.jsonl.gz), or a built-in name; a file wins over a built-in.

    Errors: NextileError for what is missing, unreadable, empty or no conversation, with the line.
    """
    return _open(source, conversation, CONVERSATION_BUILTINS)


def open_preferences(source: str) -> Records[Preference]:
    """The preferences of a .jsonl (.jsonl.gz), or a built-in name. Errors: as above."""
    return _open(source, preference, PREFERENCE_BUILTINS)


def _open(
    source: str, read: Callable[[Any, str], Record], builtins: Mapping[str, Callable[[], Iterator[Record]]]
) -> Records[Record]:
    if _is_builtin([source], builtins):
        return _survey(source, builtins[source], builtin=True)
    path, remedy = Path(source), f"give a .jsonl file or {', '.join(builtins)}"
    if not os.path.exists(path):  # unlike Path.exists, False for a name too long to be one
        raise NextileError(missing(path, builtins, remedy))
    if not path.is_file():
        raise NextileError(f"'{path}' is not a regular file: {remedy}")
    if not path.name.lower().endswith(LINE_SUFFIXES):
        raise NextileError(f"'{path}' is no file of JSON lines by its name: {remedy}")
    return _survey(str(path), partial(_records, path, read))


def _records(path: Path, read: Callable[[Any, str], Record]) -> Iterator[Record]:
    """What the lines say; empty ones are skipped."""
    with closing(lines(path, ONE_A_LINE)) as found:
        for number, line in enumerate(found, start=1):
            if line.strip():
                place = f"line {number} of '{path}'"
                yield read(parsed(line, place), place)


def _survey(name: str, read: Callable[[], Iterator[Record]], builtin: bool = False) -> Records[Record]:
    """Read everything once: check, count and hash it, holding one record at a time."""
    rows = [(_question_hash(record), _bytes(record)) for record in read()]
    if not rows:
        raise NextileError(f"'{name}' is empty: give some conversations to learn from")
    return Records(name, read, np.array(rows, dtype=INDEX), builtin)


def _question_hash(record: Conversation | Preference) -> int:
    """64 bits of the question; of a conversation that begins with an answer, of all of it."""
    first = record.chosen if isinstance(record, Preference) else record
    return hash_of(json.dumps([(message.role, message.content) for message in question_of(first) or first]))


# --- holding out for validation ------------------------------------------------------------------------------------


def split_records(
    records: Records[Record], fraction: float = 0.1, seed: int = 0
) -> tuple[Records[Record], Records[Record]]:
    """The records to train on and those to validate on, `fraction` of all questions; a pure function of its input.

    Questions are chosen by their hash and the seed, so that one that comes twice never stands on both sides.
    Errors: NextileError when one side would be empty, UsageError for a fraction that is none.
    """
    salt = np.uint64(hash_of(f"held out by {seed}"))
    held = held_out(records.index["hash"] ^ salt, fraction)
    if held is None:
        raise NextileError(
            f"'{records.name}' has one question alone, so none can be held out for validation: "
            "give more, or validation.data"
        )
    return _chosen(records, ~held), _chosen(records, held)


def _chosen(records: Records[Record], which: np.ndarray) -> Records[Record]:
    """Those records, (records,) bool, in their order."""
    return replace(records, read=lambda: itertools.compress(records, which), index=records.index[which])
