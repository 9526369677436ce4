"""Texts with gaps in, whole texts out: a masked model fills its masks, a denoiser writes what was cut out."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nextile.base.errors import NextileError, UsageError
from nextile.generation.beam import Beams, beam_search
from nextile.generation.complete import Completion
from nextile.generation.decode import Reason, SourceReader, check_ids, evaluating
from nextile.generation.sample import Sampling, next_token, random_stream
from nextile.generation.translate import Translator
from nextile.text.masks import MASK, mask_of, sentinels_of
from nextile.text.tokenizer import Tokenizer

NEVER = float("-inf")


def pieces_of(text: str, tokenizer: Tokenizer) -> list[list[int]]:
    """The tokens before, between and behind the gaps.

    Where words carry the space before them, a gap is one with its space.
    """
    spaced = tokenizer.kind == "bpe"
    parts = [part.removesuffix(" ") if spaced else part for part in text.split(MASK)[:-1]] + [text.split(MASK)[-1]]
    return [tokenizer.encode(part) for part in parts]


# --- masks ----------------------------------------------------------------------------------------------------------


def fill(pretrained: Translator, texts: Sequence[str], sampling: Sampling, *, n: int = 1) -> list[list[Completion]]:
    """Each text with every [MASK] of it as the model would have it, n times; a mask is one token.

    Masks are filled one after the other, where the model is surest first, and each is seen by those that follow.
    Errors: UsageError for a text without a mask; NextileError for one longer than the model reads.
    """
    if n < 1:
        raise UsageError(f"n is {n}: ask for at least 1 text")
    seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
    with evaluating(pretrained.model), torch.no_grad():
        return [
            [_filled(pretrained, text, sampling, random_stream(seed, number * n + i)) for i in range(n)]
            for number, text in enumerate(texts)
        ]


def _filled(pretrained: Translator, text: str, sampling: Sampling, stream: torch.Generator) -> Completion:
    tokenizer, model = pretrained.tokenizer, pretrained.model
    mask, device = mask_of(tokenizer), next(model.parameters()).device
    ids = _masked_ids(pretrained, text)
    left = [place for place, token in enumerate(ids) if token == mask]
    chosen: dict[int, int] = {}
    never = torch.tensor(sorted(tokenizer.special_ids), device=device)
    while left:
        logits = model(torch.tensor([ids], device=device))[0, left].float()  # (masks, V)
        logits[:, never] = NEVER
        surest = int(logits.softmax(-1).amax(-1).argmax())
        if not bool(logits[surest].isfinite().any()):
            raise NextileError("the model predicts nothing that is a number: train it anew")
        token = int(next_token(logits[surest : surest + 1], sampling, [stream])[0])
        place = left.pop(surest)
        ids[place] = chosen[place] = token
    return Completion(text, tokenizer.decode(ids), [chosen[place] for place in sorted(chosen)], "end")


def _masked_ids(pretrained: Translator, text: str) -> list[int]:
    """The tokens of a text with masks, between the tokens that begin and end one where the model knows such."""
    tokenizer, context = pretrained.tokenizer, pretrained.spec.context
    if MASK not in text:
        raise UsageError(f"{text!r} has nothing to fill: write {MASK} where a token is missing")
    first, *others = pieces_of(text, tokenizer)
    ids = first + [token for piece in others for token in (mask_of(tokenizer), *piece)]
    if tokenizer.begin_id is not None:
        ids = [tokenizer.begin_id, *ids, tokenizer.end_id]
    if len(ids) > context:
        raise NextileError(f"the text has {len(ids)} tokens and the model reads {context}: shorten it")
    check_ids([ids], pretrained.spec.embed.vocab)
    return ids


# --- spans ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Gaps:
    """A text as a denoiser reads it."""

    source: list[int]
    pieces: list[list[int]]  # before, between and behind its gaps


def fill_spans(
    pretrained: Translator, texts: Sequence[str], beams: Beams, *, n: int = 1, max_tokens: int = 64
) -> list[list[Completion]]:
    """Each text with what the n best targets put into its gaps; a text without a gap goes on at its end.

    A gap, written [MASK], is any number of tokens; max_tokens: of all gaps of a text. Errors: UsageError for more gaps
    than there are sentinels; NextileError for a text longer than the model reads.
    """
    tokenizer, spec = pretrained.tokenizer, pretrained.spec
    sentinels = sentinels_of(tokenizer)
    gaps = [_gaps(pretrained, text, sentinels) for text in texts]
    limit = max(1, min(max_tokens, spec.context - 1))
    silent = (tokenizer.special_ids | {spec.start}) - {tokenizer.end_id, *sentinels}
    with evaluating(pretrained.model):
        found = beam_search(
            SourceReader(pretrained.model, [gap.source for gap in gaps], capacity=limit),
            [[spec.start]] * len(gaps), beams, limits=[limit] * len(gaps), end_ids={tokenizer.end_id}, never=silent,
            n=n,
        )  # fmt: skip
    return [
        [_whole(tokenizer, text, gap, best.tokens, best.finished, best.score) for best in bests]
        for text, gap, bests in zip(texts, gaps, found, strict=True)
    ]


def _gaps(pretrained: Translator, text: str, sentinels: Sequence[int]) -> _Gaps:
    tokenizer, context = pretrained.tokenizer, pretrained.spec.context
    pieces = pieces_of(text if MASK in text else text + MASK, tokenizer)
    if len(pieces) - 1 > len(sentinels):
        raise UsageError(f"a text has {len(pieces) - 1} gaps and the model knows {len(sentinels)}: leave fewer")
    source = [token for i, piece in enumerate(pieces[:-1]) for token in (*piece, sentinels[i])]
    source += [*pieces[-1], tokenizer.end_id]
    if len(source) > context:
        raise NextileError(f"the text has {len(source)} tokens and the model reads {context}: shorten it")
    return _Gaps(source, pieces)


def _whole(
    tokenizer: Tokenizer, text: str, gaps: _Gaps, target: list[int], finished: Reason, score: float
) -> Completion:
    """The text with its gaps filled by what follows each sentinel in the target."""
    sentinels = sentinels_of(tokenizer)
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in target:
        if token in sentinels:
            current = spans.setdefault(sentinels.index(token), [])
        else:
            current.append(token)
    ids = list(gaps.pieces[0])
    for number, piece in enumerate(gaps.pieces[1:]):
        ids += [*spans.get(number, ()), *piece]
    return Completion(text, tokenizer.decode(ids), target, finished, score=score)
