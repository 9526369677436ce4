"""Conversations as token sequences: what a chat template makes of them, and which of the tokens are an answer.

A template writes special tokens, as "<|im_end|>", and it writes what people said, who may have said "<|im_end|>" too.
Only the first kind may become the token's id, so we must know of every special token's text who wrote it.
A conversation is rendered twice: as it is, and with an unguessable word in the place of every text that somebody wrote
(the white space around it stays, for templates that trim; whether its case was changed can be seen). When the words,
replaced by the texts, give the plain rendering, it is known to the character what the template wrote. When they do not,
since the template looks into the texts or cuts them, the same is tried with the contents alone, and then with words for
the special tokens' texts alone, in whatever case; that rendering is believed when the template wrote no more special
tokens in it than before, since texts that are cut and joined might spell one. Else the conversation is refused.

The rendering is then encoded as a whole, the template's special tokens standing in it under names that no text has: its
ids are those of transformers wherever nobody wrote a special token's text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from typing import Any

import numpy as np
import tokenizers

from nextile.base.errors import NextileError
from nextile.text.bytelevel import utf8
from nextile.text.templates import Job, Rendering, render_all
from nextile.text.tokenizer import Tokenizer

ASSISTANT = "assistant"  # the role whose messages are answers
MOST_MESSAGES = 1000  # of a conversation
MOST_BYTES = 4 * 2**20  # of a conversation in JSON
DEEPEST = 32  # levels of lists and objects in a message's other keys

# For tokenizers that have none. It needs no new tokens, so a model's vocabulary need not grow: the tokenizer's own end
# token ends an answer. Roles are plain words, so whoever speaks can write one; ChatML's tokens would prevent that, and
# would have to be learned first.
PLAIN = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


# --- messages ------------------------------------------------------------------------------------------------------

_ROLE = re.compile(r"[\w.-]{1,64}")


@dataclass(frozen=True)
class Message:
    """What somebody said; the template may know what the extra keys ("name", "tool_calls") are.

    Errors: NextileError for a role that is not one word: templates make special tokens from it.
    """

    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _ROLE.fullmatch(self.role):
            raise NextileError(f"{self.role[:80]!r} is no role: use one word, as user or assistant")


Conversation = Sequence[Message]


def conversation(value: Any, place: str = "the conversation") -> list[Message]:
    """The messages of a decoded JSON list of {"role", "content", ...}; keys that are null count as absent.

    Errors: NextileError, beginning with `place`, for anything else, for text that is not Unicode, for an empty one or
    one of more than 1,000 messages or 4 MiB.
    """
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_MESSAGES:
        raise NextileError(f"{place} is no list of 1 to {MOST_MESSAGES:,} messages: write them as {_FORM}")
    messages = [_message(each, f"message {number} of {place}") for number, each in enumerate(value, start=1)]
    if sum(_size(message, place) for message in messages) > MOST_BYTES:
        raise NextileError(f"{place} is longer than {MOST_BYTES:,} bytes: cut it into several")
    return messages


_FORM = '[{"role": "user", "content": "Hello"}, ...]'


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in ("role", "content")):
        raise NextileError(f'{place} has no text as its "role" or "content": write it as in {_FORM}')
    extra = {key: item for key, item in value.items() if key not in ("role", "content") and item is not None}
    if _depth(extra, DEEPEST + 1) > DEEPEST:
        raise NextileError(f"{place} is nested deeper than {DEEPEST} levels: leave its other keys out")
    try:
        return Message(value["role"], value["content"], extra)
    except NextileError as error:
        raise NextileError(f"{place}: {error}") from None


def _depth(value: Any, most: int) -> int:
    """The levels of lists and objects, counted up to `most`."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None or not most else 1 + max((_depth(each, most - 1) for each in inner), default=0)


def _size(message: Message, place: str) -> int:
    try:
        return len(json.dumps([message.role, message.content, message.extra], ensure_ascii=False).encode())
    except UnicodeEncodeError:
        raise NextileError(f"{place} is not Unicode: it has a lone surrogate; replace it") from None
    except (TypeError, ValueError):
        raise NextileError(f"{place} has values that are no JSON: leave its other keys out") from None


# --- words in the place of texts -----------------------------------------------------------------------------------

Change = Callable[[str], str]
_CASES: dict[str, Change] = {"XX": str.upper, "xx": str.lower}  # what became of "Xx", with which a word begins


class _Words:
    """Words that stand for texts; nobody can guess them."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self.texts: dict[int, str] = {}

    def whole(self, text: str, number: int | None = None) -> str:
        """A word for the text without the white space around it, which stays."""
        core = text.strip()
        return text.replace(core, self._word(core, number), 1) if core else text

    def some(self, text: str, pattern: re.Pattern[str]) -> str:
        """A word for each match of the pattern."""
        return pattern.sub(lambda match: self._word(match[0], None), text)

    def _word(self, text: str, number: int | None) -> str:
        number = MOST_MESSAGES + len(self.texts) if number is None else number
        self.texts[number] = text
        return f"Xx{self._secret}{number}z"

    def split(self, text: str) -> Iterator[tuple[str, int | None]]:
        """What stands between the words, each with None, and the texts that they stand for, with their numbers."""
        place = 0
        for match in re.finditer(f"(xx){self._secret}(\\d{{1,9}})z", text, re.IGNORECASE):
            number = int(match[2])
            yield text[place : match.start()], None
            yield _CASES.get(match[1], str)(self.texts.get(number, "")), number
            place = match.end()
        yield text[place:], None


def _mapped(value: Any, text: Change, key: Change) -> Any:
    """A JSON value with its texts and keys changed."""
    if isinstance(value, dict):
        return {key(name): _mapped(each, text, key) for name, each in value.items()}
    if isinstance(value, list):
        return [_mapped(each, text, key) for each in value]
    return text(value) if isinstance(value, str) else value


def _plain(messages: Conversation) -> list[dict[str, Any]]:
    """What a template gets."""
    return [{"role": each.role, "content": each.content, **each.extra} for each in messages]


@dataclass(frozen=True)
class _Hidden:
    """A conversation with words in the place of texts."""

    messages: list[dict[str, Any]]
    words: _Words


# --- renderings of which it is known who wrote what ----------------------------------------------------------------


@dataclass(frozen=True)
class _Text:
    """A rendering. specials: the special tokens that the template wrote, (start, stop) in characters, in order.

    contents: where the content of a message stands, by its index, where that is known.
    """

    text: str
    blocks: list[tuple[int, int]]
    specials: list[tuple[int, int]]
    contents: dict[int, tuple[int, int]]

    def whole(self, place: int) -> int:
        """The place, or the beginning of the special token in which it is."""
        return next((start for start, stop in self.specials if start < place < stop), place)


class _Reader:
    """Finds the template's special tokens in renderings."""

    def __init__(self, tokens: Sequence[str]) -> None:
        longest_first = sorted(tokens, key=len, reverse=True)
        source = "|".join(map(re.escape, longest_first)) or r"(?!)"
        self.specials, self._any_case = re.compile(source), re.compile(source, re.IGNORECASE)
        self._secret = f"{secrets.token_hex(16)}n"

    def ways(self, messages: Conversation) -> Iterator[_Hidden]:
        """The conversation with words for all its texts, for its contents, for special tokens' texts."""
        for content, extra in ((True, True), (True, False), (False, False)):
            yield self._hide(messages, content, extra)

    def _hide(self, messages: Conversation, content: bool, extra: bool) -> _Hidden:
        words = _Words(self._secret)

        def some(text: str) -> str:
            return words.some(text, self._any_case)

        hidden = [
            {"role": each.role, "content": words.whole(each.content, index) if content else some(each.content)}
            | _mapped(each.extra, words.whole if extra else some, some)
            for index, each in enumerate(messages)
        ]
        return _Hidden(hidden, words)

    def read(self, plain: Rendering, hidden: Rendering, words: _Words) -> tuple[bool, Counter[str], _Text]:
        """Whether the words' texts give the plain rendering; what the template wrote then, and where."""
        place, pieces, found, specials, contents = 0, [], Counter(), [], {}
        for piece, number in words.split(hidden.text):
            if number is None:
                matches = list(self.specials.finditer(piece))
                specials += [(place + match.start(), place + match.end()) for match in matches]
                found.update(match[0] for match in matches)
            elif number < MOST_MESSAGES:
                contents.setdefault(number, (place, place + len(piece)))
            pieces.append(piece)
            place += len(piece)
        text = _Text(plain.text, plain.blocks, specials, contents)
        return "".join(pieces) == plain.text, found, text


# --- ids -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Example:
    """A conversation of T tokens: ids (T,) uint32, and answers (T,) bool, which of them an assistant said."""

    ids: np.ndarray
    answers: np.ndarray


class _Encoder:
    """Encodes renderings with a copy of the tokenizer in which special tokens have other names: their text is text."""

    def __init__(self, core: tokenizers.Tokenizer) -> None:
        self._core = tokenizers.Tokenizer.from_str(core.to_str())
        self._core.post_processor = None  # type: ignore[assignment]
        self._core.encode_special_tokens = True
        added = {index: token for index, token in core.get_added_tokens_decoder().items() if token.special}
        prefix = f"x{secrets.token_hex(16)}"
        self._names = {token.content: f"{prefix}{place:06d}z" for place, token in enumerate(added.values())}
        self._ids = dict(zip(self._names.values(), added, strict=True))
        self._core.add_tokens([self._renamed(token) for token in added.values()])

    def _renamed(self, token: tokenizers.AddedToken) -> tokenizers.AddedToken:
        """Not special, so that it is seen in a text; it takes the white space beside it as the other does."""
        name, sides = self._names[token.content], {"lstrip": token.lstrip, "rstrip": token.rstrip}
        return tokenizers.AddedToken(name, special=False, normalized=False, single_word=token.single_word, **sides)

    def ids(self, texts: Sequence[_Text]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The ids of each rendering, (T,), and the characters that each token covers, (T, 2), as `place` counts."""
        for text in texts:
            utf8(text.text)
        try:
            encodings = self._core.encode_batch([self._named(text) for text in texts], add_special_tokens=False)
        except Exception as error:  # the library raises bare Exceptions
            raise NextileError(f"this tokenizer cannot encode the conversation ({str(error)[:200]!r})") from None
        return [(self._known(each), np.array(each.offsets, np.int64).reshape(-1, 2)) for each in encodings]

    def _known(self, encoding: tokenizers.Encoding) -> np.ndarray:
        pairs = zip(encoding.tokens, encoding.ids, strict=True)
        return np.array([self._ids.get(token, index) for token, index in pairs], np.uint32)

    def _named(self, text: _Text) -> str:
        pieces, place = [], 0
        for start, stop in text.specials:
            pieces += [text.text[place:start], self._names[text.text[start:stop]]]
            place = stop
        return "".join([*pieces, text.text[place:]])

    def place(self, text: _Text, places: np.ndarray) -> np.ndarray:
        """Where characters of a rendering are when its special tokens have their other names; of one, its start."""
        if not text.specials:
            return places
        starts, stops = np.array(text.specials).T
        sizes = np.array([len(self._names[text.text[start:stop]]) for start, stop in text.specials])
        moved = np.concatenate([[0], np.cumsum(sizes - (stops - starts))])
        before = np.searchsorted(stops, places, side="right")
        inside = np.minimum(places, np.append(starts, len(text.text) + 1)[before])
        return inside + moved[before]


def _covered(tokens: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Which tokens (T, 2) have a character within one of the spans (S, 2), which are in order and apart."""
    if not len(spans):
        return np.zeros(len(tokens), dtype=bool)
    last = np.searchsorted(spans[:, 0], tokens[:, 1], side="left") - 1  # the last span that begins before its end
    return (last >= 0) & (spans[last, 1] > tokens[:, 0])


# --- the chat ------------------------------------------------------------------------------------------------------

_BLOCK = re.compile(r"\{%[-+]?\s*generation\b")
_GROUP = 64  # conversations encoded at a time


class Chat:
    """How a tokenizer writes conversations.

    template: what is given, else the tokenizer's own, else PLAIN, which any tokenizer can write.
    Errors of its methods: NextileError where the template refuses the conversation, fails, loops or fills the memory,
    or changes a special token's text that somebody wrote so that it can not be told from its own.
    """

    def __init__(self, tokenizer: Tokenizer, template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.template = next(each for each in (template, tokenizer.chat_template, PLAIN) if each is not None)
        self._specials = specials(tokenizer)
        self._reader = _Reader([tokenizer.token(index) for index in sorted(tokenizer.special_ids)])
        self._encoder = _Encoder(tokenizer.core)

    # --- for an answer ---

    def prompt(self, messages: Conversation) -> list[int]:
        """The ids of a conversation and of what an answer begins with."""
        hidden = next(self._reader.ways(messages))
        plain, result = self._render([(_plain(messages), True), (hidden.messages, True)])
        text = self._known(messages, True, _sound(plain), result)
        return self._encoder.ids([text])[0][0].tolist()

    @cached_property
    def ends(self) -> frozenset[int]:
        """The ids that end an answer: the end token, and what the template ends one with."""
        probe = [Message("user", "a"), Message(ASSISTANT, "b")]
        try:
            example = next(self.examples([probe]))
        except NextileError:  # it wants another conversation
            return frozenset([self.tokenizer.end_id])
        last = example.ids[example.answers][-1:].tolist()
        return frozenset([self.tokenizer.end_id, *(self.tokenizer.special_ids & set(last))])

    # --- for training ---

    def examples(self, conversations: Iterable[Conversation]) -> Iterator[Example]:
        """The ids of conversations and which of them are an answer: what an assistant said and what ends its turn.

        Where the template has {% generation %} blocks, they are the answers, as in transformers. Where it has none, an
        answer is what follows the rendering of all that came before it with add_generation_prompt, up to the last
        special token of its turn.
        Errors: NextileError with the number of the conversation, from 1.
        """
        conversations, done = iter(conversations), 0
        while group := list(islice(conversations, _GROUP)):
            results = self._render(chain.from_iterable(map(self._jobs, group)))
            texts = []
            for number, messages in enumerate(group, start=done + 1):
                try:
                    texts.append(self._read(messages, results))
                except NextileError as error:
                    raise NextileError(f"conversation {number}: {error}") from error
            yield from self._encoded(texts)
            done += len(group)

    def _jobs(self, messages: Conversation) -> Iterator[Job]:
        """All renderings that `_read` takes, in its order."""
        plain = _plain(messages)
        yield plain, False
        yield next(self._reader.ways(messages)).messages, False
        for index in self._answers(messages):
            yield plain[:index], True
            yield plain[: index + 1], False

    def _answers(self, messages: Conversation) -> list[int]:
        """Which messages are answers that must be found by rendering."""
        if _BLOCK.search(self.template):
            return []
        return [index for index, message in enumerate(messages) if message.role == ASSISTANT]

    def _read(
        self, messages: Conversation, results: Iterator[Rendering | NextileError]
    ) -> tuple[_Text, list[tuple[int, int]]]:
        """A rendering and where the answers are in it."""
        plain = _sound(next(results))
        text = self._known(messages, False, plain, next(results))
        if _BLOCK.search(self.template):
            return text, sorted(text.blocks)
        return text, [self._answer(text, index, next(results), next(results)) for index in self._answers(messages)]

    def _encoded(self, texts: list[tuple[_Text, list[tuple[int, int]]]]) -> Iterator[Example]:
        encoded = self._encoder.ids([text for text, _ in texts])
        for (text, answers), (ids, tokens) in zip(texts, encoded, strict=True):
            spans = self._encoder.place(text, np.array(answers, np.int64).reshape(-1)).reshape(-1, 2)
            yield Example(ids, _covered(tokens, spans))

    # --- who wrote what ---

    def _render(self, jobs: Iterable[Job]) -> Iterator[Rendering | NextileError]:
        return render_all(self.template, self._specials, jobs)

    def _known(self, messages: Conversation, prompt: bool, plain: Rendering, result: Rendering | NextileError) -> _Text:
        """The rendering with the special tokens that the template wrote; `result` is that of the first way."""
        most: Counter[str] | None = None
        for way, hidden in enumerate(self._reader.ways(messages)):
            if way:
                result = next(self._render([(hidden.messages, prompt)]))
            if isinstance(result, NextileError):
                continue
            same, found, text = self._reader.read(plain, result, hidden.words)
            if same and (way < 2 if most is None else found <= most):
                return text
            most = found if most is None else most
        raise NextileError(
            "the chat template changes what was said, so that its own special tokens cannot be told from it: take "
            "texts of special tokens out of the conversation, or use another template"
        )

    # --- where an answer is ---

    def _answer(
        self, text: _Text, index: int, before: Rendering | NextileError, upto: Rendering | NextileError
    ) -> tuple[int, int]:
        """(start, stop) of an answer. before, upto: renderings of what came before it, and of that and itself."""
        content = text.contents.get(index)
        start = self._start(text, index, before)
        stop = _common(upto.text, text.text) if isinstance(upto, Rendering) else start
        rest = upto.text[stop:] if isinstance(upto, Rendering) else text.text
        if self._reader.specials.sub("", rest).strip():  # written otherwise, now that it is not the last
            stop = self._next_end(text, max(start, content[1]) if content else start)
        ends = [end for begin, end in text.specials if start <= begin and end <= stop]
        return start, ends[-1] if ends and not text.text[ends[-1] : stop].strip() else stop

    def _start(self, text: _Text, index: int, before: Rendering | NextileError) -> int:
        """Where what came before ends; where the template goes on otherwise than it promised, where that begins."""
        if isinstance(before, Rendering) and text.text.startswith(before.text):
            return len(before.text)
        content = text.contents.get(index)
        least = max((stop for each, (_, stop) in text.contents.items() if each < index), default=0)
        common = text.whole(_common(before.text, text.text)) if isinstance(before, Rendering) else -1
        if text.contents and common >= least:
            return min(content[0], common) if content else common
        if content is None:
            raise before if isinstance(before, NextileError) else NextileError(_UNFOUND)
        return content[0]

    def _next_end(self, text: _Text, place: int) -> int:
        """The end of the first special token at or after a place."""
        found = next((stop for start, stop in text.specials if start >= place), None)
        if found is None:
            raise NextileError(_UNFOUND)
        return found


_UNFOUND = (
    "the chat template writes an answer so that its place cannot be found: use a template that marks it with "
    "{% generation %} and {% endgeneration %}"
)


def _sound(result: Rendering | NextileError) -> Rendering:
    if isinstance(result, NextileError):
        raise result
    return result


def _common(a: str, b: str) -> int:
    """The characters that two texts have in common at their beginning."""
    if b.startswith(a):
        return len(a)
    least, most = 0, min(len(a), len(b))
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if a[:middle] == b[:middle] else (least, middle - 1)
    return least


def specials(tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens that a template may name, as "eos_token", with their text."""
    named = {name: value for name, value in tokenizer.config.items() if name.endswith("_token")}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    known = {name: text for name, text in texts.items() if isinstance(text, str)}
    return {"eos_token": tokenizer.token(tokenizer.end_id)} | known


def render(template: str, messages: Conversation, *, specials: Mapping[str, str], add_generation_prompt: bool) -> str:
    """The text that a template makes of a conversation, as transformers does; for people to look at.

    Errors: NextileError as those of Chat.
    """
    return _sound(next(render_all(template, specials, [(_plain(messages), add_generation_prompt)]))).text
