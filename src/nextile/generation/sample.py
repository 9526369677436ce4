"""Logits -> next token: bias, penalties, temperature, top-k, top-p, min-p as pure functions, and the draw.

Shapes: B batch, V vocabulary. What may not be drawn has the logit -inf. A cut keeps at least one token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from nextile.base.config import Settings

CANDIDATES = 1024  # a nucleus is sought among so many first: sorting a whole vocabulary takes as long as the model


TokenId = Annotated[int, Field(ge=0, lt=1 << 32)]
Bias = Annotated[float, Field(ge=-100.0, le=100.0)]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]


class Sampling(Settings):
    """How the next token is chosen; the parts apply in the order in which they stand here, as in transformers."""

    logit_bias: Mapping[TokenId, Bias] = Field(default={}, max_length=1 << 16)  # added to the logits of these tokens
    repetition_penalty: Annotated[float, Field(gt=0.0, le=1e6)] = 1.0  # of tokens that were there; 1 is none
    frequency_penalty: Penalty = 0.0  # taken off a token's logit for each time that the text after the prompt has it
    presence_penalty: Penalty = 0.0  # taken off once for all of its times; both are OpenAI's
    temperature: Annotated[float, Field(ge=0.0, le=1e6)] = 0.8  # 0 takes the most probable token
    top_k: Annotated[int, Field(ge=1)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] | None = None  # None: another text each time


# --- the parts ----------------------------------------------------------------------------------------------------


def repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits (B, V) over the penalty, negative ones times it, where `seen` (B, V) (Keskar et al. 2019, CTRL)."""
    raised = torch.where(logits < 0, logits * penalty, logits / penalty).clamp(max=torch.finfo(logits.dtype).max)
    return torch.where(seen, raised, logits)


def logit_bias(logits: Tensor, bias: Mapping[int, float]) -> Tensor:
    """Logits (B, V) plus the bias of some tokens; ids outside the vocabulary are of no token."""
    known = {token: value for token, value in bias.items() if token < logits.shape[-1]}
    ids = torch.tensor(list(known), dtype=torch.long, device=logits.device)
    return logits.index_add(-1, ids, logits.new_tensor(list(known.values())).expand(*logits.shape[:-1], -1))


def count_penalties(logits: Tensor, counts: Tensor, frequency: float, presence: float) -> Tensor:
    """Logits (B, V) less `frequency` for each of `counts` (B, V), and less `presence` where there is any (OpenAI)."""
    return logits - frequency * counts - presence * (counts > 0)


def temperature(logits: Tensor, degree: float) -> Tensor:
    """Logits (B, V) over the degree (Ackley et al. 1985), moved so that the highest is 0 and none overflows."""
    return (logits - logits.amax(-1, keepdim=True)) / max(degree, torch.finfo(logits.dtype).tiny)


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k highest of logits (B, V), and what equals the k-th (Fan et al. 2018)."""
    least = logits.topk(min(k, logits.shape[-1])).values[..., -1:]  # (B, 1)
    return logits.masked_fill(logits < least, -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep of logits (B, V) the fewest most probable tokens that have the mass p together (Holtzman et al. 2020).

    Of equally probable ones at the border those with the higher ids stay.
    """
    if p >= 1.0:
        return logits
    probabilities = logits.softmax(-1)
    if logits.shape[-1] > CANDIDATES:
        best = logits.topk(CANDIDATES).indices.sort(-1).values  # by id, so that ties fall as in the whole vocabulary
        few, shares = logits.gather(-1, best), probabilities.gather(-1, best)
        certain = shares.masked_fill(few <= few.amin(-1, keepdim=True), 0.0)  # nothing outside is as probable as these
        if bool((certain.sum(-1) >= p).all()):
            kept = _nucleus(few, shares, p, less_probable=1 - shares.sum(-1, keepdim=True))
            return torch.full_like(logits, -torch.inf).scatter(-1, best, kept)
    return _nucleus(logits, probabilities, p)


def _nucleus(logits: Tensor, probabilities: Tensor, p: float, less_probable: Tensor | float = 0.0) -> Tensor:
    """`top_p` among some tokens of a vocabulary, (B, any), whose others have the mass `less_probable` (B, 1)."""
    rising, ids = logits.sort(dim=-1, stable=True)
    mass = probabilities.gather(-1, ids).cumsum(-1) + less_probable  # of each token and all that are no more probable
    gone = mass <= 1 - p
    gone[..., -1] = False
    return torch.full_like(logits, -torch.inf).scatter(-1, ids, rising.masked_fill(gone, -torch.inf))


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep of logits (B, V) what is at least p times as probable as the most probable (Nguyen et al. 2024)."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -torch.inf)


def penalized(logits: Tensor, sampling: Sampling, seen: Tensor | None = None, counts: Tensor | None = None) -> Tensor:
    """Logits (B, V) after bias and penalties; seen, counts: those of `next_token`."""
    if sampling.logit_bias:
        logits = logit_bias(logits, sampling.logit_bias)
    if seen is not None and sampling.repetition_penalty != 1.0:
        logits = repetition_penalty(logits, seen, sampling.repetition_penalty)
    if counts is not None and (sampling.frequency_penalty or sampling.presence_penalty):
        logits = count_penalties(logits, counts, sampling.frequency_penalty, sampling.presence_penalty)
    return logits


def warp(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits (B, V) after temperature (above 0), top-k, top-p and min-p."""
    logits = temperature(logits, sampling.temperature)
    logits = logits if sampling.top_k is None else top_k(logits, sampling.top_k)
    logits = logits if sampling.top_p is None else top_p(logits, sampling.top_p)
    return logits if sampling.min_p is None else min_p(logits, sampling.min_p)


# --- the draw -----------------------------------------------------------------------------------------------------


def random_stream(seed: int, number: int) -> torch.Generator:
    """A source of randomness of its own for each number: what a row draws does not depend on the rows beside it."""
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def point(stream: torch.Generator, exact: torch.dtype = torch.float64) -> float:
    """The next number of a stream, at least 0 and below 1: where a draw takes its token from the distribution."""
    return torch.rand(1, generator=stream, dtype=exact).item()


def draw(logits: Tensor, streams: list[torch.Generator]) -> Tensor:
    """A token (B,) from each row of logits (B, V): a number of its own stream through the distribution's inverse.

    The number is below 1, and its product with the whole mass rounds to less than the mass: nothing cut is drawn.
    """
    exact = torch.float32 if logits.device.type == "mps" else torch.float64  # which has no float64
    mass = logits.to(exact).softmax(-1).cumsum(-1)  # (B, V)
    points = torch.tensor([[point(stream, exact)] for stream in streams], dtype=exact)  # (B, 1)
    return torch.searchsorted(mass, points.to(mass.device) * mass[:, -1:], right=True)[:, 0]


def next_token(
    logits: Tensor, sampling: Sampling, streams: list[torch.Generator], seen: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The next token (B,) of each row of logits (B, V) fp32; `seen` (B, V): what its text has, for the penalty.

    counts (B, V): how often the text after its prompt has each token, for the other two.
    """
    logits = penalized(logits, sampling, seen, counts)
    if sampling.temperature == 0.0:
        return logits.argmax(-1)
    return draw(warp(logits, sampling), streams)
