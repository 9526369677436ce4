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


MODULES = {specs.LayerNorm: nn.LayerNorm, specs.RMSNorm: RMSNorm}


def make_norm(spec: specs.LayerNorm | specs.RMSNorm, width: int) -> nn.Module:
    """The module over the last axis, of this width."""
    return MODULES[type(spec)](width, eps=spec.eps)
