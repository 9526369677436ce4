"""Layer norm and RMS norm: keep the scale of a stream in hand."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextile.nn import specs


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * gain, over the last axis; in at least float32, since squares drown in bfloat16's eight bits."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        weight = None if self.weight is None else self.weight.to(wide.dtype)
        return F.rms_norm(wide, self.normalized_shape, weight, self.eps).to(x.dtype)


class GainlessRMSNorm(RMSNorm):
    """x / rms(x)."""

    def __init__(self, width: int, eps: float):
        super().__init__(width, eps=eps, elementwise_affine=False)


class OffsetRMSNorm(nn.Module):
    """x / rms(x) * (1 + offset), in at least float32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.offset = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.rms_norm(wide, self.offset.shape, 1.0 + self.offset.to(wide.dtype), self.eps).to(x.dtype)


MODULES = {
    specs.LayerNorm: nn.LayerNorm,
    specs.RMSNorm: RMSNorm,
    specs.OffsetRMSNorm: OffsetRMSNorm,
    specs.GainlessRMSNorm: GainlessRMSNorm,
}


def make_norm(spec: specs.Norm, width: int) -> nn.Module:
    """The module over the last axis, of this width."""
    return MODULES[type(spec)](width, eps=spec.eps)
