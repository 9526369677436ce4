"""What each layer would have said: the last norm and the head on the stream between the blocks.

The logit lens (nostalgebraist 2020). Shapes: L layers, T time, D width, V vocabulary or classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nextile.inspection.named import NamedArray, named

Say = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Lens:
    """The likeliest predictions of each layer; layer 0 is what comes into the stack, the last is the model itself."""

    ids: NamedArray  # (layer, position, rank), tokens or classes
    probabilities: NamedArray  # (layer, position, rank)
    rank: NamedArray  # (layer, position), of what was really there: 0 is the likeliest, -1 where nothing is known


@torch.no_grad()
def look(stream: Tensor, say: Say, truth: Sequence[int], top: int) -> Lens:
    """stream (L, T, D), what the head says of one layer's, (1, T, D) -> (T or 1, V), and what came, -1 unknown."""
    kept = [_layer(say(layer[None]), truth, top) for layer in stream]
    ids, shares, ranks = (torch.stack(each) for each in zip(*kept, strict=True))
    return Lens(
        named(ids, "layer", "position", "rank"), named(shares, "layer", "position", "rank"),
        named(ranks, "layer", "position"),
    )  # fmt: skip


def _layer(logits: Tensor, truth: Sequence[int], top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of logits (T, V) the likeliest, their probabilities, (T, top) each, and the rank of what came, (T,)."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    best = logits.softmax(-1).topk(min(top, logits.shape[-1]))
    came = torch.tensor(truth, device=logits.device)  # (T,)
    own = logits.gather(-1, came.clamp(min=0)[:, None])
    rank = (logits > own).sum(-1).masked_fill(came < 0, -1)
    return best.indices, best.values, rank
