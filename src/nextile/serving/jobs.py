"""Work beside the engine's batch, as generators: each `next` is a short piece, the return value what it was for.

Shapes: T tokens of a prompt, D width, V vocabulary, N pictures or texts, K classes.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch

from nextile.checkpoint.pretrained import Pretrained
from nextile.generation.beam import Beams, Looked, beam_rounds
from nextile.generation.complete import encode_prompt
from nextile.generation.decode import EagerReader, Reader, SourceReader, evaluating, log_probabilities
from nextile.generation.pool import embed_rows
from nextile.generation.translate import Translation, not_written, source_ids, translating
from nextile.nn import specs
from nextile.serving.answers import Words
from nextile.serving.protocol import BeamAnswer, BeamNode, BeamText, Classes, ClassShare
from nextile.tasks import classification, labelling

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


# --- the tree of beams ------------------------------------------------------------------------------------------------


class Tree:
    """What beams looked at, round by round."""

    def __init__(self, words: Words):
        self._words = words
        self.rounds: list[list[BeamNode]] = []
        self._going: list[int | None] = [None]  # the numbers of those that go on, in their order
        self._count = 0

    def grow(self, looked: Sequence[Looked]) -> None:
        """Take a round."""
        nodes = [self._node(each) for each in looked]
        self._going = [node.id for node, each in zip(nodes, looked, strict=True) if each.fate == "on"]
        self.rounds.append(nodes)

    def _node(self, looked: Looked) -> BeamNode:
        self._count += 1
        return BeamNode(
            id=self._count - 1, parent=self._going[looked.row], token=looked.token,
            text=self._words.text(looked.token), logprob=looked.logprob, kept=looked.fate != "left",
        )  # fmt: skip


def beam_tree(
    model: Pretrained, words: Words, text: str, beams: Beams, n: int, max_tokens: int
) -> Generator[None, None, BeamAnswer]:  # fmt: skip
    """The tree of beams after a text, or of its translations, and the n best texts.

    The text leaves room in the model's context; that is for the caller to see to.
    """
    tree, tokenizer = Tree(words), model.tokenizer
    reader, prompt, never = _reader(model, text, max_tokens)
    with evaluating(model.model):  # type: ignore[arg-type]
        work = beam_rounds(
            reader, [prompt], beams, limits=[max_tokens], end_ids={tokenizer.end_id}, never=never, n=n
        )  # fmt: skip
        (texts,) = yield from _told(work, tree)
    found = [BeamText(text=tokenizer.decode(each.tokens), score=each.score, ids=each.tokens) for each in texts]
    return BeamAnswer(rounds=tree.rounds, texts=found)


def _told(work: Generator[list[list[Looked]], None, Any], tree: Tree) -> Generator[None, None, Any]:
    """The rounds of one source, told to its tree; returns what they end in."""
    while True:
        try:
            (looked,) = next(work)
        except StopIteration as end:
            return end.value
        tree.grow(looked)
        yield


def _reader(model: Pretrained, text: str, max_tokens: int) -> tuple[Reader, list[int], set[int]]:
    """What reads a text, what its beams begin after, and the tokens that they never write."""
    if isinstance(model.spec, specs.EncoderDecoder):
        found: Any = model.model
        reader = SourceReader(found, [source_ids(model.tokenizer, text)], capacity=max_tokens)
        return reader, [model.spec.start], not_written(model.tokenizer, model.spec)
    prompt = encode_prompt(model.tokenizer, text)
    return EagerReader(model.model, len(prompt) + max_tokens), prompt, set()  # type: ignore[arg-type]
