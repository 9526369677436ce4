"""Work beside the engine's batch, as generators: each `next` is a short piece, the return value what it was for.

Shapes: T tokens of a prompt, D width, V vocabulary, N pictures or texts, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from nextile.checkpoint.pretrained import Pretrained
from nextile.generation.beam import Beams, Hypothesis, beam_rounds
from nextile.generation.complete import encode_prompt
from nextile.generation.decode import EagerReader, Reader, SourceReader, evaluating, log_probabilities
from nextile.generation.fill import fill, masked_ids, span_rules, span_source, with_spans
from nextile.generation.pool import embed_rows
from nextile.generation.sample import Sampling
from nextile.generation.translate import Translation, not_written, source_ids, translating
from nextile.inspection.beams import Tree, growing
from nextile.inspection.look import Inspection
from nextile.inspection.payload import head_part
from nextile.nn import specs
from nextile.serving.answers import Words
from nextile.serving.protocol import BeamAnswer, Classes, ClassShare, Filled, FilledText, GapShare
from nextile.tasks import classification, labelling
from nextile.text.masks import mask_of, ordinary_of

TOGETHER = 8  # texts or pictures of one piece
SENTENCES = 4  # whose beams are sought at a time
HEAD_TOKENS = 512  # whose logits are held at a time

Score = tuple[float, tuple[tuple[int, float], ...]]  # a token's log-probability, and the likeliest in its place
Work = Generator[None, None, Any]


# --- how likely a prompt is -------------------------------------------------------------------------------------------


def scores(model: Any, ids: Sequence[int], alternatives: int) -> Generator[None, None, list[Score]]:
    """Of every token of a prompt but the first its log-probability in nats, and so many of the likeliest: T - 1.

    The prompt is no longer than the model's context. Errors: NextileError where the model predicts NaN.
    """
    if len(ids) < 2:
        return []
    given = torch.tensor([ids], device=next(model.parameters()).device)  # (1, T)
    with evaluating(model), torch.no_grad():
        features = model.features(given[:, :-1])  # (1, T - 1, D)
    found: list[Score] = []
    for start in range(0, len(ids) - 1, HEAD_TOKENS):
        yield
        found += _scored(model, features[:, start : start + HEAD_TOKENS], given[0, start + 1 :], alternatives)
    return found


@torch.no_grad()
def _scored(model: Any, features: torch.Tensor, targets: torch.Tensor, alternatives: int) -> list[Score]:
    """features (1, some, D), targets (some or more,)."""
    logprobs = log_probabilities(model.head(features)[0].float())  # (some, V)
    own = logprobs.gather(-1, targets[: len(logprobs), None])[:, 0].tolist()
    best = logprobs.topk(min(alternatives, logprobs.shape[-1]))
    tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(each, tuple(zip(*top, strict=True))) for each, top in zip(own, tops, strict=True)]


# --- vectors, classes, translations -----------------------------------------------------------------------------------


def embeddings(model: Pretrained, rows: Sequence[Sequence[int]]) -> Generator[None, None, np.ndarray]:
    """A vector of each text of tokens: float32 (N, D). Errors: as in `generation.pool.embed`."""
    found = []
    for start in range(0, len(rows), TOGETHER):
        found.append(embed_rows(model, rows[start : start + TOGETHER]))
        yield
    return np.concatenate(found)


def text_classes(model: Pretrained, texts: Sequence[str], top: int) -> Generator[None, None, list[Classes]]:
    """The most probable classes of each text."""
    found: list[Classes] = []
    for start in range(0, len(texts), TOGETHER):
        found += [_classes(each.classes) for each in labelling.label(model, texts[start : start + TOGETHER], top)]
        yield
    return _numbered(found)


def picture_classes(model: Pretrained, pixels: np.ndarray, top: int) -> Generator[None, None, list[Classes]]:
    """The most probable classes of each picture, uint8 (N, H, W, C)."""
    names, found = _names(model), list[Classes]()
    for start in range(0, len(pixels), TOGETHER):
        best = classification.probabilities(model, pixels[start : start + TOGETHER]).topk(min(top, len(names)))
        for shares, numbers in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            found.append(_classes([(names[number], share) for number, share in zip(numbers, shares, strict=True)]))
        yield
    return _numbered(found)


def _names(model: Pretrained) -> tuple[str, ...]:
    assert isinstance(model.spec, specs.VisionTransformer)
    return model.spec.head.classes


def _classes(shares: Sequence[tuple[str, float]]) -> Classes:
    return Classes(index=0, classes=[ClassShare(label=label, probability=share) for label, share in shares])


def _numbered(found: list[Classes]) -> list[Classes]:
    return [each.model_copy(update={"index": number}) for number, each in enumerate(found)]


def translations(
    model: Pretrained, sources: Sequence[str], beams: Beams, n: int, max_tokens: int | None
) -> Generator[object, None, list[list[Translation]]]:
    """The n best translations of each source."""
    return (yield from translating(model, sources, beams, n=n, max_tokens=max_tokens, batch=SENTENCES))


# --- gaps -------------------------------------------------------------------------------------------------------------


def masks(
    model: Pretrained, words: Words, texts: Sequence[str], sampling: Sampling, n: int, top: int
) -> Generator[None, None, list[Filled]]:  # fmt: skip
    """Texts with their masks filled n times, and what else each mask of the first may be, as the others then stand."""
    found: list[Filled] = []
    for number, text in enumerate(texts):
        whole = fill(model, [text], sampling, n=n)[0]
        yield
        shares = yield from _shares(model, words, text, whole[0].tokens, top)
        filled = [FilledText(text=e.text, fills=[words.text(t) for t in e.tokens], score=None) for e in whole]
        found.append(Filled(index=number, texts=filled, gaps=shares))
    return found


def _shares(
    model: Pretrained, words: Words, text: str, tokens: Sequence[int], top: int
) -> Generator[None, None, list[list[GapShare]]]:  # fmt: skip
    """The likeliest tokens of each mask, the others filled by these tokens."""
    ids, rows = masked_ids(model.tokenizer, text, model.spec.context), list[list[GapShare]]()
    places = [place for place, token in enumerate(ids) if token == model.tokenizer.mask_id]
    for place, token in zip(places, tokens, strict=True):
        ids[place] = token
    ordinary = torch.from_numpy(ordinary_of(model.tokenizer))
    ordinary = ordinary[ordinary < model.spec.embed.vocab]  # type: ignore[union-attr]
    for place, token in zip(places, tokens, strict=True):
        ids[place] = mask_of(model.tokenizer)
        logprobs = _logprobs(model.model, ids, place, ordinary)
        best = logprobs.topk(min(top, len(ordinary)))
        rows.append([
            GapShare(id=(index := int(ordinary[at])), text=words.text(index), probability=math.exp(logprob))
            for at, logprob in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ])  # fmt: skip
        ids[place] = token
        yield
    return rows


@torch.no_grad()
def _logprobs(model: Any, ids: Sequence[int], place: int, ordinary: torch.Tensor) -> torch.Tensor:
    """Of these tokens at a place, in nats: (V,)."""
    with evaluating(model):
        logits = model(torch.tensor([ids], device=next(model.parameters()).device))[0, place]
    return log_probabilities(logits.float().cpu()[ordinary])


def spans(
    model: Pretrained, texts: Sequence[str], beams: Beams, n: int, max_tokens: int
) -> Generator[None, None, list[Filled]]:  # fmt: skip
    """Texts with what the n best targets put into their gaps; a text without a gap goes on at its end."""
    found: list[Filled] = []
    for number, text in enumerate(texts):
        best: list[Hypothesis] = yield from _targets(model, text, beams, n, max_tokens)
        whole = [(*with_spans(model, text, each.tokens), each.score) for each in best]
        filled = [FilledText(text=text, fills=fills, score=score) for text, fills, score in whole]
        found.append(Filled(index=number, texts=filled, gaps=[]))
    return found


def _targets(
    model: Pretrained, text: str, beams: Beams, n: int, max_tokens: int
) -> Generator[None, None, list[Hypothesis]]:  # fmt: skip
    spec = model.spec
    assert isinstance(spec, specs.EncoderDecoder)
    source, gaps = span_source(model, text)
    (ends, never), limit = span_rules(model, gaps), max(1, min(max_tokens, spec.context - 1))
    with evaluating(model.model):  # type: ignore[arg-type]
        reader = SourceReader(model.model, [source], capacity=limit)  # type: ignore[arg-type]
        rounds = beam_rounds(reader, [[spec.start]], beams, limits=[limit], end_ids=ends, never=never, n=n)
        while True:
            try:
                next(rounds)
            except StopIteration as done:
                return done.value[0]
            yield


# --- looking inside ---------------------------------------------------------------------------------------------------


def head(look: Inspection, which: str, layer: int, number: int) -> Generator[None, None, dict[str, Any]]:
    """One head of what is looked into. Errors: UsageError for an attention, a layer or a head that there is not."""
    yield
    return head_part(look, which, layer, number)


# --- the tree of beams ------------------------------------------------------------------------------------------------


def beam_tree(
    model: Pretrained, words: Words, text: str, beams: Beams, n: int, max_tokens: int
) -> Generator[None, None, BeamAnswer]:  # fmt: skip
    """The tree of beams after a text, or of its translations, and the n best texts.

    The text leaves room in the model's context; that is for the caller to see to.
    """
    tokenizer = model.tokenizer
    reader, prompt, never = _reader(model, text, max_tokens)
    with evaluating(model.model):  # type: ignore[arg-type]
        rounds = beam_rounds(
            reader, [prompt], beams, limits=[max_tokens], end_ids={tokenizer.end_id}, never=never, n=n
        )  # fmt: skip
        found = yield from growing(Tree(words.text), rounds, tokenizer.decode)
    return BeamAnswer.model_validate(asdict(found))


def _reader(model: Pretrained, text: str, max_tokens: int) -> tuple[Reader, list[int], set[int]]:
    """What reads a text, what its beams begin after, and the tokens that they never write."""
    if isinstance(model.spec, specs.EncoderDecoder):
        found: Any = model.model
        reader = SourceReader(found, [source_ids(model.tokenizer, text)], capacity=max_tokens)
        return reader, [model.spec.start], not_written(model.tokenizer, model.spec)
    prompt = encode_prompt(model.tokenizer, text)
    return EagerReader(model.model, len(prompt) + max_tokens), prompt, set()  # type: ignore[arg-type]
