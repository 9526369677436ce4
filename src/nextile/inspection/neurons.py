"""The feed-forward nets' strongest neurons, and the tokens that a neuron speaks for (Geva et al. 2021).

Shapes: L layers, T time, F hidden width, D width, V vocabulary or classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nextile.base.errors import UsageError
from nextile.inspection.named import NamedArray, named
from nextile.inspection.stack import Stack, within
from nextile.nn.feedforward import MLP, GatedMLP

Said = list[tuple[int, str, float]]


@dataclass(frozen=True)
class Neurons:
    """Which neurons were strongest, by the size of their activation, whatever its sign."""

    indices: NamedArray  # (layer, position, rank)
    activations: NamedArray  # (layer, position, rank)
    promote: Callable[[int, int, int], Said] = field(repr=False)  # of a layer and a neuron the likeliest so many

    def promotes(self, layer: int, neuron: int, top: int = 5) -> Said:
        """The tokens (id, text, score) whose logits a neuron raises most when it is active, by the head alone.

        The score is what an activation of 1 would add to the logit, if nothing else were in the stream.
        Errors: UsageError for a layer or a neuron that there is not, and in an encoder, which says nothing.
        """
        return self.promote(layer, neuron, top)


def refuse_experts(stack: Stack) -> None:
    """Errors: UsageError for nets that are chosen for each token, which have no neurons in common."""
    if not isinstance(net_of(stack, 0), MLP | GatedMLP):
        raise UsageError(
            "the feed-forward nets here are experts, chosen anew for each token: their neurons are not shown"
        )


def net_of(stack: Stack, layer: int) -> Any:
    """The feed-forward net of a layer."""
    return stack.module.blocks[layer].feed_forward.inner  # type: ignore[union-attr]


def strongest(stack: Stack, top: int, promote: Callable[[int, int, int], Said]) -> Neurons:
    """The `top` neurons of each layer and position. Errors: UsageError for experts."""
    refuse_experts(stack)
    hidden = torch.stack(stack.of_layers("feed_forward.inner.hidden"))  # (L, T, F)
    best = hidden.abs().topk(min(top, hidden.shape[-1])).indices  # (L, T, top)
    axes = ("layer", "position", "rank")
    return Neurons(named(best, *axes), named(hidden.gather(-1, best), *axes), promote)


@torch.no_grad()
def direction(stack: Stack, layer: int, neuron: int) -> Tensor:
    """What a neuron adds to the stream when its activation is 1: (D,), its column of `down`, however that is kept."""
    refuse_experts(stack)
    down = net_of(stack, stack.layer(layer)).down
    like = next(stack.model.parameters())
    units = torch.zeros(2, down.in_features, device=like.device, dtype=like.dtype)  # (2, F)
    units[0, within(neuron, down.in_features, "neuron")] = 1.0
    with_it, without = down(units)
    return with_it - without
