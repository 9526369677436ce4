"""Decoding step by step: what was written, what else was likely, and how sure the model was."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nextile.base.config import resolve
from nextile.generation.decode import Emitted
from nextile.generation.sample import Sampling, warp
from nextile.inspection.named import NamedArray, named
from nextile.inspection.stack import positive

Say = Callable[[int], str]
Choice = tuple[int, str, float]


@dataclass(frozen=True)
class Step:
    """One token that was written."""

    id: int
    text: str
    logprob: float  # nats, of the model's own distribution: temperature 1, nothing cut
    alternatives: list[Choice]  # (id, text, logprob) of the likeliest, in the same sense
    entropy: float  # nats, of the whole distribution


def steps(events: Iterable[Emitted], text: Say, top: int) -> Iterator[Step]:
    """Of each event, which knows the log-probabilities of all tokens, the likeliest `top` and the entropy."""
    for event in events:
        best = [(token, text(token), logprob) for token, logprob in event.alternatives[:top]]
        entropy = -math.fsum(math.exp(logprob) * logprob for _, logprob in event.alternatives if logprob > -700.0)
        yield Step(event.token, text(event.token), event.logprob, best, entropy)


def next_choices(logits: Tensor, sampling: Sampling, text: Say, top: int | None) -> list[Choice]:
    """What is drawn from after the filters: (id, text, probability) of what they leave, likeliest first.

    logits (V,). Temperature 0 leaves the likeliest alone.
    """
    logits = logits[None] if logits.dtype == torch.float64 else logits[None].float()
    if sampling.temperature == 0.0:
        token = int(logits.argmax())
        return [(token, text(token), 1.0)]
    shares = warp(logits, sampling).softmax(-1)[0]
    left = int((shares > 0).sum())
    best: Any = shares.topk(left if top is None else min(positive(top, "top"), left))
    return [
        (token, text(token), share) for token, share in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def sampled(
    temperature: float, top_k: int | None = None, top_p: float | None = None, min_p: float | None = None,
    seed: int | None = None,
) -> Sampling:  # fmt: skip
    """Errors: UsageError for settings out of bounds."""
    asked = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    return resolve(Sampling, asked)


def surprises(logits: Tensor, came: Sequence[int]) -> NamedArray:
    """Nats of what came, (T,), by the logits (T - 1, V) before each; NaN for the first, before which nothing was."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    ids = torch.tensor(came, dtype=torch.long, device=logits.device)
    nats = -wide.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    return named(torch.cat((nats.new_full((1,), torch.nan), nats)), "position")
