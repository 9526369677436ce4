"""Tokens become vectors, and learn where they stand, only before the lowest block.

Shapes: B batch, T time, D width, V vocabulary.
"""

import torch
from torch import Tensor, nn

from nextile.base.errors import NextileError
from nextile.nn import specs
from nextile.nn.dropout import Dropout
from nextile.nn.norm import make_norm
from nextile.nn.position import sinusoid
from nextile.nn.tap import tap


class LearnedPosition(nn.Module):
    """A trained vector per position."""

    def __init__(self, spec: specs.Learned, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(spec.length, width))

    def forward(self, positions: Tensor) -> Tensor:
        """(T,) or (B, T) -> (..., D)."""
        return self.weight[positions]


class SinusoidalPosition(nn.Module):
    """Fixed sines and cosines."""

    def __init__(self, spec: specs.Sinusoidal, width: int):
        super().__init__()
        self.width = width

    def forward(self, positions: Tensor) -> Tensor:
        """(T,) or (B, T) -> (..., D)."""
        return sinusoid(positions, self.width)


POSITIONS = {specs.Learned: LearnedPosition, specs.Sinusoidal: SinusoidalPosition}


class TokenEmbedding(nn.Module):
    """dropout(norm(token * scale + position))."""

    def __init__(self, spec: specs.TokenEmbedding, width: int):
        super().__init__()
        self.scale = spec.scale
        self.token = nn.Embedding(spec.vocab, width)
        self.position = POSITIONS[type(spec.position)](spec.position, width) if spec.position else None
        self.length = spec.position.length if spec.position else None
        self.norm = make_norm(spec.norm, width) if spec.norm else nn.Identity()
        self.dropout = Dropout(spec.dropout)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """ids (B, T), positions (T,) or (B, T) -> (B, T, D)."""
        if self.length is not None and ids.shape[1] > self.length:
            raise NextileError(
                f"{ids.shape[1]} tokens were given and the model has {self.length} positions: shorten the input"
            )
        x = self.token(ids)
        tap(self, "tokens", x)
        x = x * self.scale if self.scale != 1.0 else x
        if self.position is not None:
            x = x + self.position(positions).to(x.dtype)
        return self.dropout(self.norm(x))
