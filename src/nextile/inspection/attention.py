"""Who looks at whom: weights of all heads, all of one head, and what flowed through the layers.

Shapes: L layers, H heads, T time asked, S time seen, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nextile.base.errors import UsageError
from nextile.inspection.named import NamedArray, named
from nextile.inspection.stack import Stack, found_in, within
from nextile.nn.attention import MultiHeadAttention


@dataclass(frozen=True)
class Attention:
    """The attentions of one kind in a stack: of its tokens among each other, or to a memory."""

    stack: Stack
    part: Literal["self_attention", "cross_attention"] = "self_attention"

    def module(self, layer: int) -> MultiHeadAttention:
        """That of a layer."""
        return getattr(self.stack.module.blocks[layer], self.part).inner

    @property
    def heads(self) -> int:
        """H."""
        return self.module(0).heads

    def captured(self, what: str, layer: int | None = None, heads: Sequence[int] | None = None) -> list[Tensor]:
        """Of each layer, or of one, what its attention calls so, (H, T, ...) each; heads: of these alone."""
        return self.stack.of_layers(f"{self.part}.inner.{what}", layer, heads)


def weights(of: Attention, layer: int | None = None, head: int | None = None) -> NamedArray:
    """How much each query takes of each key: (layer, head, query, key), without the axes that are asked for.

    Of one head that head alone is captured, while all others stay on the fast path.
    """
    layer = None if layer is None else of.stack.layer(layer)
    head = None if head is None else within(head, of.heads, "head")
    found = torch.stack(of.captured("weights", layer, None if head is None else [head]))  # (L or 1, H or 1, T, S)
    whole = named(found, "layer", "head", "query", "key")
    taken = {name: 0 for name, asked in (("layer", layer), ("head", head)) if asked is not None}
    return whole.isel(**taken)


@dataclass(frozen=True)
class Head:
    """All of one head: weights = softmax(scores where not hidden), result = weights @ values.

    scores = cap(queries @ keys * scale) + bias. Queries and keys are as they are multiplied: after their norms, and
    turned where positions are rotary. Where heads share keys and values, these are their group's.
    """

    queries: NamedArray  # (query, width)
    keys: NamedArray  # (key, width)
    values: NamedArray  # (key, width)
    scores: NamedArray  # (query, key), scaled and biased, before anything is hidden
    hidden: NamedArray  # (query, key), True where the mask hides the key
    weights: NamedArray  # (query, key)
    result: NamedArray  # (query, width)
    scale: float
    rotated: bool
    bias: NamedArray | None = None  # (query, key), of relative positions: part of the scores
    cap: float | None = None  # scores c are cap * tanh(c / cap), before the bias


WHATS = ("queries", "keys", "values", "compared", "hidden", "weights", "heads")


def one_head(of: Attention, layer: int, head: int) -> Head:
    """What one head did; no other head is captured."""
    layer, head = of.stack.layer(layer), within(head, of.heads, "head")
    stack, module = of.stack, of.module(layer)
    names = {what: f"{stack.path}.blocks.{layer}.{of.part}.inner.{what}" for what in WHATS}
    biases = f"{stack.path}.position_biases"
    seen = stack.captured(*names.values(), biases, heads=[head])
    found = {what: found_in(seen, name)[0, 0] for what, name in names.items()}  # (T or S, E or S)
    bias = seen[biases][0, head] if biases in seen and of.part == "self_attention" else None
    scores = found["compared"] if bias is None else found["compared"] + bias
    time, among = ("query", "width"), ("query", "key")
    return Head(
        queries=named(found["queries"], *time), keys=named(found["keys"], "key", "width"),
        values=named(found["values"], "key", "width"), scores=named(scores, *among),
        hidden=named(found["hidden"], *among), weights=named(found["weights"], *among),
        result=named(found["heads"], *time), scale=float(module.scale), rotated=_rotated(of, layer),
        bias=None if bias is None else named(bias, *among), cap=module.soft_cap,
    )  # fmt: skip


def _rotated(of: Attention, layer: int) -> bool:
    stack = of.stack.module
    turns = stack.local_rotary if stack.is_local[layer] else stack.rotary
    return turns is not None and of.part == "self_attention"


def rollout(of: Attention) -> NamedArray:
    """How much of each input's vector is in each output's, if half of each block is what passes it (query, key).

    The product over layers of (mean over heads + identity) / 2 (Abnar and Zuidema 2020).
    Errors: UsageError for attention to a memory, whose queries and keys are not the same tokens.
    """
    if of.part == "cross_attention":
        raise UsageError("rollout multiplies layers in which tokens look at each other: ask for 'self' or 'encoder'")
    flow: Any = None
    for layer in of.captured("weights"):
        wide = layer.to(torch.promote_types(layer.dtype, torch.float32)).mean(0)  # (T, T)
        step = (wide + torch.eye(len(wide), dtype=wide.dtype, device=wide.device)) / 2
        flow = step if flow is None else step @ flow
    return named(flow, "query", "key")


def over_picture(shares: NamedArray, grid: tuple[int, int], summaries: int) -> np.ndarray:
    """Weights of one query, (key,), as (rows, columns) of the picture; places that were never read have 0."""
    places = np.asarray(shares)[summaries:]
    found = np.zeros(grid[0] * grid[1], places.dtype)
    found[: len(places)] = places[: len(found)]
    return found.reshape(grid)
