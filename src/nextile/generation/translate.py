"""Sentences in, sentences out: sources are encoded, translated by beams in batches of like lengths, and decoded."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nextile.base.errors import UsageError
from nextile.generation.beam import Beams, Hypothesis, beam_rounds, last
from nextile.generation.complete import Pretrained
from nextile.generation.decode import Reason, SourceReader, evaluating
from nextile.nn import specs
from nextile.text.tokenizer import Tokenizer


class Translator(Pretrained, Protocol):
    """A model, the tokens that it speaks, what it is and where it lies; `nextile.load` returns one."""

    @property
    def spec(self) -> Any: ...
    @property
    def folder(self) -> Path | None: ...


@dataclass(frozen=True)
class Translation:
    """What a model made of a source."""

    source: str
    text: str
    tokens: list[int]  # without the end token
    score: float  # what the beams were ranked by: logprob / length ** length_penalty
    logprob: float  # nats
    finish_reason: Reason  # "end": the end token; "length": the limit
    note: str | None = None  # what the user should be told: that the source was cut


# --- sources ------------------------------------------------------------------------------------------------------


def source_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """What an encoder reads of a text: its tokens and the end token."""
    return [*tokenizer.encode(text), tokenizer.end_id]


def _cut(ids: list[int], context: int) -> list[int]:
    """As many of a source's tokens as the model reads; the end token stays the last."""
    return ids if len(ids) <= context else [*ids[: context - 1], ids[-1]]


def _cut_note(tokens: int, context: int) -> str | None:
    if tokens <= context:
        return None
    return f"the source has {tokens} tokens and the model reads {context}: its last {tokens - context} were left out"


def translation_limit(source_tokens: int, context: int, max_tokens: int | None = None) -> int:
    """The most tokens of a translation: max_tokens, or a length that translations do not have unless they run wild."""
    wanted = 2 * source_tokens + 16 if max_tokens is None else max_tokens
    return max(1, min(wanted, context - 1))


def not_written(tokenizer: Tokenizer, spec: specs.EncoderDecoder) -> set[int]:
    """Padding and the token that every target begins with, which in some models is the end token."""
    return {spec.start, tokenizer.end_id if tokenizer.pad_id is None else tokenizer.pad_id} - {tokenizer.end_id}


# --- translating --------------------------------------------------------------------------------------------------


def translate(
    pretrained: Translator,
    sources: Sequence[str],
    beams: Beams | None = None,
    *,
    n: int = 1,
    max_tokens: int | None = None,
    batch: int = 32,
) -> list[list[Translation]]:
    """The n best translations of each source, best first, in the order of the sources.

    max_tokens: None allows twice the source's tokens and 16. batch: sources at a time, a matter of memory and speed
    only. A blank source has one translation, a blank one; of a source longer than the model's context the beginning
    is translated. Errors: UsageError for a model that is no translator and for counts out of bounds; NextileError for
    a tokenizer of another model and when the model predicts NaN.
    """
    return last(translating(pretrained, sources, beams, n=n, max_tokens=max_tokens, batch=batch))


def translating(
    pretrained: Translator,
    sources: Sequence[str],
    beams: Beams | None = None,
    *,
    n: int = 1,
    max_tokens: int | None = None,
    batch: int = 32,
) -> Generator[object, None, list[list[Translation]]]:
    """`translate` round by round of its beams, so that others may have their turn between them."""
    _check(pretrained, max_tokens)
    ids = [source_ids(pretrained.tokenizer, source) for source in sources]
    written = [number for number, source in enumerate(sources) if source.strip()]
    by_length = sorted(written, key=lambda number: len(ids[number]), reverse=True)
    found = {number: [Translation(source, "", [], 0.0, 0.0, "end")] for number, source in enumerate(sources)}
    for start in range(0, len(by_length), batch):
        numbers = by_length[start : start + batch]
        some = [ids[number] for number in numbers]
        texts = yield from _together(pretrained, some, beams or Beams(), n, max_tokens)
        for number, best in zip(numbers, texts, strict=True):
            found[number] = [_translation(pretrained, sources[number], len(ids[number]), text) for text in best]
    return [found[number] for number in range(len(sources))]


def _check(pretrained: Translator, max_tokens: int | None) -> None:
    if not isinstance(pretrained.spec, specs.EncoderDecoder):
        name = "this" if pretrained.folder is None else f"'{pretrained.folder}'"
        raise UsageError(f"{name} is a language model, not a translator: use nextile generate")
    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}: ask for at least 1")


def _together(
    pretrained: Translator, ids: list[list[int]], beams: Beams, n: int, max_tokens: int | None
) -> Generator[object, None, list[list[Hypothesis]]]:
    """The n best targets of each source, all in one batch."""
    model, spec, tokenizer = pretrained.model, pretrained.spec, pretrained.tokenizer
    read = [_cut(source, spec.context) for source in ids]
    limits = [translation_limit(len(source), spec.context, max_tokens) for source in read]
    with evaluating(model):
        return (yield from beam_rounds(
            SourceReader(model, read, capacity=max(limits)), [[spec.start]] * len(read), beams,
            limits=limits, end_ids={tokenizer.end_id}, never=not_written(tokenizer, spec), n=n,
        ))  # fmt: skip


def _translation(pretrained: Translator, source: str, source_tokens: int, found: Hypothesis) -> Translation:
    return Translation(
        source=source,
        text=pretrained.tokenizer.decode(found.tokens),
        tokens=found.tokens,
        score=found.score,
        logprob=found.logprob,
        finish_reason=found.finished,
        note=_cut_note(source_tokens, pretrained.spec.context),
    )
