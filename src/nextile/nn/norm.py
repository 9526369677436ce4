"""Layer norm and RMS norm: keep the scale of a stream in hand."""

from torch import nn

from nextile.nn import specs

MODULES = {specs.LayerNorm: nn.LayerNorm, specs.RMSNorm: nn.RMSNorm}


def make_norm(spec: specs.LayerNorm | specs.RMSNorm, width: int) -> nn.Module:
    """The module over the last axis, of this width."""
    return MODULES[type(spec)](width, eps=spec.eps)
