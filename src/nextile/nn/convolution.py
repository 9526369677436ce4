"""Causal depthwise taps: each number also hears itself a few tokens before (Allen-Zhu 2025, Canon layers).

Shapes: B batch, T time, S tokens that are kept, D width, J taps.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextile.nn import specs
from nextile.nn.cache import KeyValues, Slot


def shifted(x: Tensor, back: int, segments: Tensor | None) -> Tensor:
    """What stood `back` tokens before each of x (B, T, D) in its own segment, each of which is in one piece; else 0."""
    before = F.pad(x, (0, 0, back, 0))[:, : x.shape[1]]
    if segments is None:
        return before
    same = F.pad(segments.long(), (back, 0), value=-1)[:, : x.shape[1]] == segments  # (B, T)
    return before.masked_fill(~same[..., None], 0.0)


def recalled(kept: Tensor, positions: Tensor, back: int) -> Tensor:
    """As `shifted`, where some were read before: kept (B, S, D), positions (T,) or (B, T) of the new -> (B, T, D)."""
    place = (positions - back).expand(len(kept), positions.shape[-1])  # (B, T)
    rows = torch.arange(len(kept), device=kept.device)[:, None]
    return kept[rows, place.clamp(min=0)].masked_fill(place[..., None] < 0, 0.0)


class ShortConvolution(nn.Module):
    """x_t + taps_1 x_(t-1) + ... + taps_J x_(t-J), number by number; before a text there is 0."""

    def __init__(self, spec: specs.ShortConvolution, width: int):
        super().__init__()
        self.taps = nn.Parameter(torch.zeros(spec.taps, width))

    def forward(self, x: Tensor, slot: Slot | None, kept: KeyValues | None, segments: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); `kept` holds what was read before and takes what is new."""
        result = x
        read = None if slot is None or kept is None else (kept.write_inputs(x, slot), slot.positions)  # (B, S, D)
        for back, tap in enumerate(self.taps.to(x.dtype), 1):
            before = shifted(x, back, segments) if read is None else recalled(*read, back).to(x.dtype)
            result = result + tap * before
        return result
