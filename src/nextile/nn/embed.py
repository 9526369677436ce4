"""Tokens and pictures become vectors, and learn where they stand, only before the lowest block.

Shapes: B batch, T time, D width, V vocabulary, C channels, H x W pixels, P side of a patch.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextile.base.errors import NextileError
from nextile.nn import specs
from nextile.nn.dropout import Dropout
from nextile.nn.linear import Linear
from nextile.nn.norm import make_norm
from nextile.nn.position import sinusoid
from nextile.nn.table import Embedding, look_up
from nextile.nn.tap import tap


class LearnedPosition(nn.Module):
    """A trained vector per position."""

    def __init__(self, spec: specs.Learned, width: int):
        super().__init__()
        self.unused = spec.unused
        self.weight = nn.Parameter(torch.zeros(spec.unused + spec.length, width))

    def forward(self, positions: Tensor) -> Tensor:
        """(T,) or (B, T) -> (..., D)."""
        return look_up(positions + self.unused if self.unused else positions, self.weight)


class SinusoidalPosition(nn.Module):
    """Fixed sines and cosines."""

    def __init__(self, spec: specs.Sinusoidal, width: int):
        super().__init__()
        self.width = width

    def forward(self, positions: Tensor) -> Tensor:
        """(T,) or (B, T) -> (..., D)."""
        return sinusoid(positions, self.width)


POSITIONS = {specs.Learned: LearnedPosition, specs.Sinusoidal: SinusoidalPosition}


class FirstType(nn.Module):
    """A trained vector per text of a row, of which tokens here are all from the first (Devlin et al. 2019, BERT)."""

    def __init__(self, types: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(types, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return x + self.weight[0].to(x.dtype)


class TokenEmbedding(nn.Module):
    """dropout(norm(token * scale + type + position)); the matrix of tokens may be another embedding's."""

    def __init__(
        self, spec: specs.TokenEmbedding | specs.SharedTokens, width: int, shared: TokenEmbedding | None = None
    ):
        super().__init__()
        if isinstance(spec, specs.TokenEmbedding):
            self.scale, self.token = spec.scale, Embedding(spec.vocab, width)
            self.types = FirstType(spec.types, width) if spec.types else nn.Identity()
        else:
            assert shared is not None
            self.scale, self.token, self.types = shared.scale, shared.token, nn.Identity()
        self.position = POSITIONS[type(spec.position)](spec.position, width) if spec.position else None
        self.length = spec.position.length if spec.position else None
        self.norm = make_norm(spec.norm, width) if spec.norm else nn.Identity()
        self.dropout = Dropout(spec.dropout)

    def forward(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """ids (B, T), positions (T,) or (B, T), None: 0, 1, ... -> (B, T, D)."""
        positions = torch.arange(ids.shape[1], device=ids.device) if positions is None else positions
        if self.length is not None and ids.shape[1] > self.length:
            raise NextileError(
                f"{ids.shape[1]} tokens were given and the model has {self.length} positions: shorten the input"
            )
        x = self.token(ids)
        tap(self, "tokens", x)
        x = self.types(x * self.scale if self.scale != 1.0 else x)
        tap(self, "scaled", x)
        if self.position is not None:
            place = self.position(positions).to(x.dtype)
            tap(self, "places", place)
            x = x + place
        return self.dropout(self.norm(x))


# --- pictures -------------------------------------------------------------------------------------------------------


def patches(images: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, H/P * W/P, C*P*P): squares of P = side pixels, row by row from the top left."""
    batch, channels, height, width = images.shape
    squares = images.reshape(batch, channels, height // side, side, width // side, side)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * side * side)


def unpatched(squares: Tensor, side: int, channels: int) -> Tensor:
    """The picture that `patches` took apart, which is square: (B, T, C*P*P) -> (B, C, H, W)."""
    batch, number, _ = squares.shape
    rows = round(number**0.5)
    apart = squares.reshape(batch, rows, rows, channels, side, side)
    return apart.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, rows * side, rows * side)


def resized_places(places: Tensor, tokens: int, summaries: int) -> Tensor:
    """Learned places (N, D) of a square picture for one of `tokens` vectors: bicubic between neighbours (ViT, 3.2).

    The first `summaries` stand for no place in the picture, and stay.
    """
    before, there = places[:summaries], places[summaries:]
    old, new = round(len(there) ** 0.5), round(tokens**0.5)
    square = there.unflatten(0, (old, old)).movedim(-1, 0)[None]  # (1, D, old, old)
    moved = F.interpolate(square.float(), size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat((before, moved[0].flatten(1).mT.to(places.dtype)))


class ImageEmbedding(nn.Module):
    """dropout([summary, vectors of the picture] + place); how a picture becomes vectors differs by subclass."""

    def __init__(self, spec: specs.PatchEmbedding | specs.ConvEmbedding, width: int, summaries: int):
        super().__init__()
        self.size = (spec.channels, spec.image, spec.image)
        self.summary = nn.Parameter(torch.zeros(summaries, width)) if summaries else None
        self.position = LearnedPosition(specs.Learned(length=spec.tokens + summaries), width)
        self.dropout = Dropout(spec.dropout)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, T, D). Errors: NextileError for pictures of another size."""
        if tuple(images.shape[1:]) != self.size:
            raise NextileError(
                f"pictures are {tuple(images.shape[1:])} and the model reads {self.size} (channels, height, width): "
                "resize them"
            )
        x = self.vectors(images.to(self.position.weight.dtype))
        tap(self, "vectors", x)
        if self.summary is not None:
            x = torch.cat((self.summary.to(x.dtype).expand(len(x), -1, -1), x), dim=1)
        place = self.position.weight.to(x.dtype)
        tap(self, "scaled", x)
        tap(self, "places", place)
        return self.dropout(x + place)

    def vectors(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, T, D), row by row from the top left."""
        raise NotImplementedError


class PatchEmbedding(ImageEmbedding):
    """One matrix over the pixels of each square."""

    def __init__(self, spec: specs.PatchEmbedding, width: int, summaries: int):
        super().__init__(spec, width, summaries)
        self.side = spec.patch
        self.project = Linear(spec.channels * spec.patch**2, width)

    def vectors(self, images: Tensor) -> Tensor:
        return self.project(patches(images, self.side))


def halved(x: Tensor) -> Tensor:
    """The largest of each square of 2 x 2: (B, C, H, W), none below 0 -> (B, C, ceil(H/2), ceil(W/2)).

    Written as maxima, which a compiled graph on CPU fuses with what stands before; pooling there takes thrice as long.
    """
    x = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
    left = torch.maximum(x[..., ::2, ::2], x[..., 1::2, ::2])
    right = torch.maximum(x[..., ::2, 1::2], x[..., 1::2, 1::2])
    return torch.maximum(left, right)


class ConvEmbedding(ImageEmbedding):
    """Convolutions, each followed by ReLU and a pooling that halves the picture."""

    def __init__(self, spec: specs.ConvEmbedding, width: int, summaries: int):
        super().__init__(spec, width, summaries)
        channels = (spec.channels, *spec.hidden, width)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, spec.kernel, padding=spec.kernel // 2, bias=False)
            for before, after in pairwise(channels)
        )

    def vectors(self, images: Tensor) -> Tensor:
        x = images
        for convolution in self.convolutions:
            x = halved(F.relu(convolution(x)))  # (B, channels, H/2, W/2)
        return x.flatten(2).mT


IMAGES = {specs.PatchEmbedding: PatchEmbedding, specs.ConvEmbedding: ConvEmbedding}


def make_image_embedding(
    spec: specs.PatchEmbedding | specs.ConvEmbedding | specs.TokenEmbedding, width: int, summaries: int
) -> nn.Module:
    """The module that the spec's type names; a picture may also be given as tokens."""
    if isinstance(spec, specs.TokenEmbedding):
        return TokenEmbedding(spec, width)
    return IMAGES[type(spec)](spec, width, summaries)
