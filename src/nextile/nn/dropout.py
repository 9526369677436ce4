"""Dropout: in training a share of the numbers, or of whole parts, is left out and the rest scaled up."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def dropout(x: Tensor, share: float) -> Tensor:
    """x with about this share of its numbers 0 and the others / (1 - share) (Srivastava et al. 2014).

    In a compiled graph on CPU who stays follows from a hash of the place and one drawn number: it fuses with what
    stands beside it, where the generator's own numbers, drawn one by one, take a third of a training step.
    """
    if torch.compiler.is_compiling() and x.device.type == "cpu" and share > 0.0:
        return x * _stays(x, share).to(x.dtype) / (1.0 - share)
    return F.dropout(x, share)


def _stays(x: Tensor, share: float) -> Tensor:
    """Which numbers stay, bool: 31 bits of a hash (the finalizer of MurmurHash3, Appleby 2011) against the share."""
    seed = torch.randint(0, 2**31 - 1, (1,), dtype=torch.int32, device=x.device)
    h = torch.arange(x.numel(), dtype=torch.int32, device=x.device) ^ seed
    h = (h ^ (h >> 16)) * -0x7A143595  # 0x85EBCA6B, as the products wrap
    h = (h ^ (h >> 13)) * -0x3D4D51CB  # 0xC2B2AE35
    h = h ^ (h >> 16)
    return ((h & 0x7FFFFFFF) >= int(share * 2**31)).view(x.shape)


class Dropout(nn.Module):
    """`dropout` in training, nothing otherwise."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.share) if self.training else x


class StochasticDepth(nn.Module):
    """In training leaves out all of x for a share of the rows of a batch (Huang et al. 2016)."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training or self.share == 0.0:
            return x
        drawn = torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device)
        return x * (drawn >= self.share).to(x.dtype) / (1.0 - self.share)

    def extra_repr(self) -> str:
        """What is printed of it."""
        return f"share={self.share:g}"
