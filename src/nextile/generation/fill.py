"""Texts with gaps in, whole texts out: a masked model fills its masks, a denoiser writes what was cut out.

Shapes: M masks that are left, T tokens of a text, V vocabulary.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nextile.base.errors import UsageError
from nextile.data.spans import rebuild
from nextile.generation.beam import Beams, Hypothesis, beam_search
from nextile.generation.complete import Completion
from nextile.generation.decode import SourceReader, check_ids, evaluating, log_probabilities
from nextile.generation.pool import bounded, refuse_longer
from nextile.generation.sample import Sampling, next_token, random_stream
from nextile.generation.translate import Translator
from nextile.text.masks import MASK, mask_of, ordinary_of, sentinels_of
from nextile.text.tokenizer import Tokenizer

# --- parts and what is between them -----------------------------------------------------------------------------------

TOGETHER = 32  # texts at a time, a matter of memory alone


def parts_of(text: str, tokenizer: Tokenizer) -> list[str]:
    """What is before, between and behind the gaps.

    Where words carry the space before them, a gap is one with its space.
    """
    *parts, last = text.split(MASK)
    return [part.removesuffix(" ") if tokenizer.kind == "bpe" else part for part in parts] + [last]


def _ids(tokenizer: Tokenizer, parts: Sequence[str], between: Sequence[Sequence[int]]) -> list[int]:
    """The tokens of the parts, and these between them."""
    woven = zip(map(tokenizer.encode, parts), [*between, ()], strict=True)
    return [token for part, span in woven for token in (*part, *span)]


def masked_ids(tokenizer: Tokenizer, text: str, context: int) -> list[int]:
    """What a masked model reads of a text, its masks in place. Errors: NextileError for a text longer than it reads."""
    parts = parts_of(text, tokenizer)
    marks = [[mask_of(tokenizer)]] * (len(parts) - 1)
    return bounded(_ids(tokenizer, parts, marks), tokenizer, context)


def _text(tokenizer: Tokenizer, parts: Sequence[str], between: Sequence[Sequence[int]]) -> str:
    """The parts as they were given, also what the model does not know of them, and the text of these tokens between.

    Where a token's text depends on its neighbours (WordPiece, a lexicon) all of it is as the tokenizer writes it.
    """
    if tokenizer.kind in ("other", "lexicon"):
        return tokenizer.decode(_ids(tokenizer, parts, between))
    spans = [b"".join(tokenizer.bytes_of(token) or b"" for token in span) for span in between]
    return b"".join(part.encode() + span for part, span in zip(parts, [*spans, b""], strict=True)).decode(
        "utf-8", "replace"
    )


# --- masks ----------------------------------------------------------------------------------------------------------


def fill(pretrained: Translator, texts: Sequence[str], sampling: Sampling, *, n: int = 1) -> list[list[Completion]]:
    """Each text with every [MASK] of it as the model would have it, n times; a mask is one token.

    Masks are filled one after the other, where the model is surest first, and each is seen by those that follow.
    Errors: UsageError for a text without a mask; NextileError for one longer than the model reads.
    """
    if n < 1:
        raise UsageError(f"n is {n}: ask for at least 1 text")
    seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
    filler = _Filler(pretrained, sampling)
    with evaluating(pretrained.model), torch.no_grad():
        return [
            [filler.filled(text, random_stream(seed, number * n + i)) for i in range(n)]
            for number, text in enumerate(texts)
        ]


class _Filler:
    """A model, and the tokens that it may put in place of a mask: those that text is made of."""

    def __init__(self, pretrained: Translator, sampling: Sampling):
        self.model, self.tokenizer, self.sampling = pretrained.model, pretrained.tokenizer, sampling
        self.context, self.vocab = pretrained.spec.context, pretrained.spec.embed.vocab
        self.mask, self.device = mask_of(self.tokenizer), next(self.model.parameters()).device
        ordinary = torch.from_numpy(ordinary_of(self.tokenizer))
        self.ordinary = ordinary[ordinary < self.vocab].to(self.device)

    def filled(self, text: str, stream: torch.Generator) -> Completion:
        """The text with its masks filled."""
        if MASK not in text:
            raise UsageError(f"{text!r} has nothing to fill: write {MASK} where a token is missing")
        parts = parts_of(text, self.tokenizer)
        ids = masked_ids(self.tokenizer, text, self.context)
        check_ids([ids], self.vocab)
        places = [place for place, token in enumerate(ids) if token == self.mask]
        left = list(places)
        while left:
            surest, token = self._choose(ids, left, stream)
            ids[left.pop(surest)] = token
        tokens = [ids[place] for place in places]
        return Completion(text, _text(self.tokenizer, parts, [[token] for token in tokens]), tokens, "end")

    def _choose(self, ids: list[int], left: list[int], stream: torch.Generator) -> tuple[int, int]:
        """Which of the masks that are left is filled next, and by which token."""
        logits: Tensor = self.model(torch.tensor([ids], device=self.device))[0, left]  # (M, V)
        logprobs = log_probabilities(logits[:, self.ordinary].float())
        surest = int(logprobs.amax(-1).argmax())
        chosen = next_token(logprobs[surest : surest + 1], self.sampling, [stream])
        return surest, int(self.ordinary[chosen])


# --- spans ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Gaps:
    """A text as a denoiser reads it."""

    text: str
    parts: list[str]  # before, between and behind its gaps
    source: list[int]

    @property
    def count(self) -> int:
        """How many gaps it has."""
        return len(self.parts) - 1


def fill_spans(
    pretrained: Translator, texts: Sequence[str], beams: Beams, *, n: int = 1, max_tokens: int = 64
) -> list[list[Completion]]:
    """Each text with what the n best targets put into its gaps; a text without a gap goes on at its end.

    A gap, written [MASK], is any number of tokens; max_tokens: of all gaps of a text. Errors: UsageError for more gaps
    than there are sentinels, and for counts out of bounds; NextileError for a text longer than the model reads.
    """
    if max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}: ask for at least 1")
    gaps = [_gaps(pretrained, text) for text in texts]
    found: dict[int, list[Hypothesis]] = {}
    for count in {gap.count for gap in gaps}:
        alike = [number for number, gap in enumerate(gaps) if gap.count == count]
        for start in range(0, len(alike), TOGETHER):
            some = alike[start : start + TOGETHER]
            targets = _targets(pretrained, [gaps[number].source for number in some], count, beams, n, max_tokens)
            found |= zip(some, targets, strict=True)
    return [[_whole(pretrained.tokenizer, gap, best) for best in found[number]] for number, gap in enumerate(gaps)]


def _gaps(pretrained: Translator, text: str) -> _Gaps:
    tokenizer, sentinels = pretrained.tokenizer, sentinels_of(pretrained.tokenizer)
    parts = parts_of(text if MASK in text else text + MASK, tokenizer)
    if len(parts) - 1 > len(sentinels):
        raise UsageError(f"a text has {len(parts) - 1} gaps and the model knows {len(sentinels)}: leave fewer")
    marks = [[sentinel] for sentinel in sentinels[: len(parts) - 1]]
    source = [*_ids(tokenizer, parts, marks), tokenizer.end_id]
    refuse_longer(source, pretrained.spec.context)
    return _Gaps(text, parts, source)


def span_source(pretrained: Translator, text: str) -> tuple[list[int], int]:
    """What an encoder reads of a text with gaps, and how many they are. Errors: as of `fill_spans`."""
    gaps = _gaps(pretrained, text)
    return gaps.source, gaps.count


def span_rules(pretrained: Translator, gaps: int) -> tuple[set[int], set[int]]:
    """The tokens that end the target of so many gaps, and those that it never has."""
    tokenizer, sentinels = pretrained.tokenizer, sentinels_of(pretrained.tokenizer)
    ends = {tokenizer.end_id, *sentinels[gaps : gaps + 1]}
    return ends, {*tokenizer.special_ids, pretrained.spec.start} - ends - set(sentinels[:gaps])


def with_spans(pretrained: Translator, text: str, target: Sequence[int]) -> tuple[str, list[str]]:
    """The text with its gaps filled by a target, and what stands in each of them. Errors: as of `fill_spans`."""
    tokenizer, gaps = pretrained.tokenizer, _gaps(pretrained, text)
    spans = _spans(tokenizer, gaps, target)
    return _text(tokenizer, gaps.parts, spans), [tokenizer.decode(span) for span in spans]


def _spans(tokenizer: Tokenizer, gaps: _Gaps, target: Sequence[int]) -> list[list[int]]:
    """What follows each sentinel in a target."""
    sentinels = sentinels_of(tokenizer)
    return [rebuild([sentinel], target, sentinels) for sentinel in sentinels[: gaps.count]]


def _targets(
    pretrained: Translator, sources: list[list[int]], gaps: int, beams: Beams, n: int, max_tokens: int
) -> list[list[Hypothesis]]:
    """The n best targets of each source with so many gaps.

    A model that was taught by windows with more of them would go on with gaps that are not there: the sentinel of the
    next one ends a target as well.
    """
    spec, (ends, silent) = pretrained.spec, span_rules(pretrained, gaps)
    limit = max(1, min(max_tokens, spec.context - 1))
    with evaluating(pretrained.model):
        return beam_search(
            SourceReader(pretrained.model, sources, capacity=limit), [[spec.start]] * len(sources), beams,
            limits=[limit] * len(sources), end_ids=ends, never=silent, n=n,
        )  # fmt: skip


def _whole(tokenizer: Tokenizer, gaps: _Gaps, target: Hypothesis) -> Completion:
    """The text with its gaps filled by a target."""
    text = _text(tokenizer, gaps.parts, _spans(tokenizer, gaps, target.tokens))
    return Completion(gaps.text, text, target.tokens, target.finished, score=target.score)
