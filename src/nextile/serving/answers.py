"""Texts as they grow: the engine's tokens become pieces of text with log-probabilities, in OpenAI's two shapes."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from nextile.generation.complete import Text
from nextile.generation.decode import Emitted, Reason
from nextile.serving.protocol import ChatChosen, ChatLogprobs, ChatToken, Logprobs
from nextile.text.tokenizer import Tokenizer

Finish = Literal["stop", "length"]
REASONS: dict[Reason, Finish] = {"end": "stop", "stop": "stop", "length": "length"}
NEVER = -9999.0  # what stands for the logarithm of 0, which JSON has no number for; OpenAI's own
_BYTE = re.compile("<0x([0-9A-F]{2})>")


# --- tokens ---------------------------------------------------------------------------------------------------------


class Words:
    """The texts of tokens; of each id it is found once."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.text = lru_cache(1 << 16)(self._text)
        self.bytes = lru_cache(1 << 16)(self._bytes)

    def _bytes(self, index: int) -> bytes | None:
        """The bytes that an id adds; None where they depend on its neighbours, or it adds none."""
        return self._tokenizer.bytes_of(index) if index < self._tokenizer.vocab_size else None

    def _text(self, index: int) -> str:
        """The text of an id alone; part of a character as "bytes:\\xe2\\x82", which is OpenAI's way."""
        if index >= self._tokenizer.vocab_size:
            return ""  # a model may have room for more tokens than its tokenizer has
        data = self._bytes(index)
        if data is None:
            return self._written(index)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _written(self, index: int) -> str:
        token = self._tokenizer.core.id_to_token(index) or ""
        found = _BYTE.fullmatch(token)
        return f"bytes:\\x{found[1].lower()}" if found else token.replace("\u2581", " ")  # SentencePiece's space


@dataclass(frozen=True)
class Shown:
    """A token of a text, as log-probabilities are shown of it."""

    token: int
    logprob: float | None  # None: of the first of a prompt, which nothing predicts
    alternatives: tuple[tuple[int, float], ...]
    offset: int  # characters before it


# --- a text ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """What is new of a text, and the tokens that it is from."""

    text: str
    tokens: Sequence[Shown]
    finished: Finish | None


class Choice:
    """One text: `stop` is told tokens in the engine's thread, `take` gets the engine's events in the event loop.

    shown: whether its tokens are, each in the piece in which its text begins to be out, so that what a stop string
    cuts is shown nowhere. start: characters of a prompt that stands before it.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], *, shown: bool, start: int = 0):
        self._text = Text(tokenizer.decode_stream(), stops)
        self._pieces: deque[str] = deque()  # of the tokens that `stop` was told
        self._plain = tokenizer.decode_stream() if shown else None  # where tokens begin, stop strings or not
        self._pending: list[Shown] = []
        self._out = self._come = start  # characters
        self.tokens = 0
        self.logprob = 0.0  # nats, of all of it
        self.finished: Finish | None = None
        self.stop: Callable[[int], bool] | None = self._stop if stops else None

    def _stop(self, token: int) -> bool:
        """In the engine's thread, which alone reads tokens where there are stop strings."""
        self._pieces.append(self._text.push(token))
        return self._text.stopped

    def take(self, event: Emitted) -> Piece:
        """What is new with a token; often a word, sometimes nothing."""
        self.tokens += 1
        self.logprob += event.logprob
        text = "" if event.finished == "end" else self._read(event)
        if event.finished is not None:
            self.finished = REASONS[event.finished]
            text += self._text.flush()
        self._out += len(text)
        return Piece(text, self._now_shown(event.finished), self.finished)

    def _read(self, event: Emitted) -> str:
        if self._plain is not None:
            self._pending.append(Shown(event.token, event.logprob, event.alternatives, self._come))
            self._come += len(self._plain.push(event.token))
        return self._text.push(event.token) if self.stop is None else self._pieces.popleft()

    def _now_shown(self, finished: Reason | None) -> list[Shown]:
        if finished in ("end", "length"):
            shown, self._pending = self._pending, []
            return shown
        shown = [each for each in self._pending if each.offset < self._out]
        self._pending = self._pending[len(shown) :]
        return shown


def prompt_tokens(
    tokenizer: Tokenizer, ids: Sequence[int], scores: Iterable[tuple[float, tuple[tuple[int, float], ...]]]
) -> list[Shown]:
    """The tokens of a prompt, T of them, with the scores of all but the first: T - 1."""
    stream, offset, shown = tokenizer.decode_stream(), 0, []
    for token, (logprob, alternatives) in zip(ids, [(None, ()), *scores], strict=True):
        shown.append(Shown(token, logprob, alternatives, offset))
        offset += len(stream.push(token))
    return shown


# --- log-probabilities ------------------------------------------------------------------------------------------------


def text_logprobs(words: Words, shown: Sequence[Shown], alternatives: int) -> Logprobs:
    """Those of a completion; beside each token so many others, the token itself one more where it is none of them."""
    return Logprobs(
        tokens=[words.text(each.token) for each in shown],
        token_logprobs=[None if each.logprob is None else max(each.logprob, NEVER) for each in shown],
        top_logprobs=[_top(words, each) for each in shown] if alternatives else None,
        text_offset=[each.offset for each in shown],
    )


def _top(words: Words, shown: Shown) -> dict[str, float] | None:
    if shown.logprob is None:
        return None
    top: dict[str, float] = {}
    for token, logprob in (*shown.alternatives, (shown.token, shown.logprob)):
        top.setdefault(words.text(token), max(logprob, NEVER))  # of tokens that read the same the likeliest
    return top


def chat_logprobs(words: Words, shown: Sequence[Shown]) -> ChatLogprobs:
    """Those of an answer."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        data = words.bytes(token)
        return {"token": words.text(token), "logprob": max(logprob, NEVER), "bytes": None if data is None else [*data]}

    return ChatLogprobs(
        content=[
            ChatChosen(
                **one(each.token, each.logprob or 0.0),
                top_logprobs=[ChatToken(**one(*pair)) for pair in each.alternatives],
            )
            for each in shown
        ]
    )
