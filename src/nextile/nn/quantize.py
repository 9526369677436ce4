"""Weight-only quantization: the matrices of the blocks in 8 or 4 bits, read back to numbers where they are used.

Shapes: O outputs, I inputs, G groups of N inputs each, X experts.
Embeddings, heads, norms and what chooses experts stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nextile.base.config import Settings
from nextile.base.errors import NextileError
from nextile.nn.attention import capped
from nextile.nn.feedforward import Stacked
from nextile.nn.linear import held, one_row, reads_one_row

Unpack = Callable[..., Tensor]

CHUNK = 1 << 18  # numbers that are searched at once: few enough to stay in the cache
STARTS = (1.0, 0.92, 0.84)  # shares of a group's range from which the search for its grid begins
REFITS = 4


class Int8(Settings):
    """One scale a row, symmetric, rounded to nearest: of a row's largest number no other is off by over 1/254."""

    type: Literal["int8"] = "int8"


class Int4(Settings):
    """Sixteen evenly spaced values for each group of a row, of the least square error that a short search finds.

    A group costs two bfloat16 beside its codes: 5 bits a weight in groups of 32, 4.5 in groups of 64.
    """

    type: Literal["int4"] = "int4"
    group: Literal[32, 64, 128] = 32


Quantization = Annotated[Int8 | Int4, Field(discriminator="type")]


# --- numbers to codes and back --------------------------------------------------------------------------------------


def pack8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(O, I) -> codes (O, I), int8, and scale (O, 1), float32."""
    wide = weight.float()
    scale = wide.abs().amax(1, keepdim=True) / 127
    return (wide / _nonzero(scale)).round().to(torch.int8), scale


def unpack8(codes: Tensor, scale: Tensor, offset: None, inputs: int, dtype: torch.dtype) -> Tensor:
    """What `pack8` took, (O, I)."""
    return (codes * scale).to(dtype)


def row8(x: Tensor, codes: Tensor, scale: Tensor, offset: None, inputs: int) -> Tensor:
    """The products of a single row x (1, ..., I) with what `pack8` took, float32 (O,): codes alone are read."""
    return one_row(x, codes) * scale[:, 0]


def pack4(weight: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """(O, I) -> codes (O, G, N / 2), two a byte, scale and offset (O, G, 1), bfloat16; a last group may be filled up.

    No group's mean square error is above that of the grid from its least number to its largest.
    """
    outputs, inputs = weight.shape
    filling = weight[:, -1:].expand(-1, -inputs % group)  # of a number that is there, so that no range grows
    groups = torch.cat((weight, filling), 1).float().reshape(-1, group)  # (O * G, N)
    found = [_best_grid(some) for some in groups.split(max(1, CHUNK // group))]
    codes, scale, offset = (
        torch.cat(parts).reshape(outputs, -1, parts[0].shape[1]) for parts in zip(*found, strict=True)
    )
    return codes, scale, offset


def unpack4(codes: Tensor, scale: Tensor, offset: Tensor, inputs: int, dtype: torch.dtype) -> Tensor:
    """What `pack4` took, (O, I)."""
    apart = torch.cat((codes & 15, codes >> 4), -1)  # (O, G, N): the first half of a group lies in the low bits
    wide = torch.promote_types(scale.dtype, torch.float32)
    return (apart.to(wide) * scale.to(wide) + offset.to(wide)).flatten(1)[:, :inputs].to(dtype)


def row4(x: Tensor, codes: Tensor, scale: Tensor, offset: Tensor, inputs: int) -> Tensor:
    """As `row8`, of what `pack4` took."""
    _, groups, half = codes.shape
    row = held(F.pad(x.reshape(-1).float(), (0, groups * 2 * half - inputs))).view(groups, 2, half)
    wide, start = scale.float(), offset.float()
    low, high = (codes & 15).float() * wide + start, (codes >> 4).float() * wide + start  # (O, G, N / 2)
    return (low * row[:, 0] + high * row[:, 1]).sum((1, 2))


def _best_grid(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(M, N) -> codes (M, N / 2), scale and offset (M, 1): of several grids the one that is nearest to each group."""
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    middle, half = (low + high) / 2, (high - low) / 2
    best = _rounded(groups, half / 7.5, low)
    for start in STARTS:
        scale, offset = half * start / 7.5, middle - half * start
        for _ in range(REFITS):
            tried = _rounded(groups, scale, offset)
            better = tried[0] < best[0]  # (M, 1)
            best = tuple(torch.where(better, new, old) for new, old in zip(tried, best, strict=True))
            scale, offset = _line(groups, *tried[1:])
    _, codes, scale, offset = best
    first, second = codes.to(torch.uint8).chunk(2, dim=1)
    return first | (second << 4), scale, offset


def _rounded(groups: Tensor, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The square error (M, 1) and the codes (M, N) on a grid as it is stored, and that grid."""
    scale, offset = scale.bfloat16(), offset.bfloat16()
    wide, start = scale.float(), offset.float()
    codes = ((groups - start) / _nonzero(wide)).round().clamp(0, 15)
    error = (codes * wide + start - groups).square().sum(1, keepdim=True)
    return error, codes, scale, offset


def _line(groups: Tensor, codes: Tensor, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """The grid of the least square error for these codes, (M, 1) each: a line through N points, if they are on one."""
    mean, centre = groups.mean(1, keepdim=True), codes.mean(1, keepdim=True)
    spread = codes - centre
    variance = spread.square().sum(1, keepdim=True)
    slope = (spread * groups).sum(1, keepdim=True) / _nonzero(variance)
    start = mean - slope * centre
    return torch.where(variance == 0, scale.float(), slope), torch.where(variance == 0, offset.float(), start)


def _nonzero(divisor: Tensor) -> Tensor:
    return torch.where(divisor == 0, 1.0, divisor)


# --- layers ---------------------------------------------------------------------------------------------------------


def _unpacked_again(product: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """A product whose backward unpacks again: kept from here the numbers would cost what packing saves."""
    if not torch.is_grad_enabled():
        return product(*inputs)
    return cast(Tensor, checkpoint(product, *inputs, use_reentrant=False, preserve_rng_state=False))


class QuantizedLinear(nn.Module):
    """y = x Wᵀ + b of a packed W, which lies in buffers; how it is packed differs by subclass."""

    unpack: ClassVar[Unpack]
    row: ClassVar[Unpack]

    def __init__(self, linear: nn.Linear, codes: Tensor, scale: Tensor, offset: Tensor | None = None):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.codes, self.scale = nn.Buffer(codes), nn.Buffer(scale)
        self.register_buffer("offset", offset)
        self.bias = linear.bias

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix in numbers, (O, I)."""
        return type(self).unpack(self.codes, self.scale, self.offset, self.in_features, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return self._single(x) if reads_one_row(x) else _unpacked_again(self._product, x)

    def _single(self, x: Tensor) -> Tensor:
        """The product of a compiled step, which never holds the numbers."""
        y = type(self).row(x, self.codes, self.scale, self.offset, self.in_features)
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], -1)

    def _product(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.dequantized(x.dtype), bias)


class Int8Linear(QuantizedLinear):
    """`Int8`."""

    unpack, row = staticmethod(unpack8), staticmethod(row8)

    def __init__(self, linear: nn.Linear, kind: Int8):
        super().__init__(linear, *pack8(linear.weight.detach()))


class Int4Linear(QuantizedLinear):
    """`Int4`."""

    unpack, row = staticmethod(unpack4), staticmethod(row4)

    def __init__(self, linear: nn.Linear, kind: Int4):
        super().__init__(linear, *pack4(linear.weight.detach(), kind.group))


MODULES = {Int8: Int8Linear, Int4: Int4Linear}


class QuantizedStacked(nn.Module):
    """The packed matrices of experts, row by row as those of linear layers; how differs by subclass."""

    unpack: ClassVar[Unpack]
    offset: Tensor | None

    def __init__(self, stacked: Stacked, *packed: Tensor):
        super().__init__()
        self.inputs = stacked.weight.shape[-1]
        apart = [part.unflatten(0, stacked.weight.shape[:2]) for part in packed]
        self.codes, self.scale = nn.Buffer(apart[0]), nn.Buffer(apart[1])
        self.register_buffer("offset", apart[2] if len(apart) > 2 else None)

    def of(self, expert: int, x: Tensor) -> Tensor:
        """One expert's: (..., I) -> (..., O)."""
        return _unpacked_again(self._product, x, slice(expert, expert + 1))[0]

    def forward(self, x: Tensor) -> Tensor:
        """Every expert's: (M, I) or (X, M, I) -> (X, M, O)."""
        return _unpacked_again(self._product, x, slice(None))

    def _product(self, x: Tensor, experts: slice) -> Tensor:
        parts = (self.codes[experts], self.scale[experts], None if self.offset is None else self.offset[experts])
        rows = [None if part is None else part.flatten(0, 1) for part in parts]  # (X * O, ...)
        weight = type(self).unpack(*rows, self.inputs, x.dtype)
        return x @ weight.unflatten(0, parts[0].shape[:2]).mT


class Int8Stacked(QuantizedStacked):
    """`Int8`."""

    unpack = staticmethod(unpack8)

    def __init__(self, stacked: Stacked, kind: Int8):
        super().__init__(stacked, *pack8(stacked.weight.detach().flatten(0, 1)))


class Int4Stacked(QuantizedStacked):
    """`Int4`."""

    unpack = staticmethod(unpack4)

    def __init__(self, stacked: Stacked, kind: Int4):
        super().__init__(stacked, *pack4(stacked.weight.detach().flatten(0, 1), kind.group))


STACKED_MODULES = {Int8: Int8Stacked, Int4: Int4Stacked}
LEFT_OUT = {"adapters", "router"}  # parts of a path


# --- models ---------------------------------------------------------------------------------------------------------


def _layers(model: nn.Module) -> dict[str, nn.Linear | Stacked]:
    """Those to pack, by path."""
    found = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear | Stacked)}
    places = {path: set(path.split(".")) for path in found}
    return {path: found[path] for path, parts in places.items() if "blocks" in parts and not parts & LEFT_OUT}


def quantize(model: nn.Module, kind: Int8 | Int4) -> list[str]:
    """Pack the linear layers and experts of the blocks in place, adapters and what chooses experts left out; paths.

    A model without memory for its numbers (the meta device) becomes one that a quantized model's state fits.
    Errors: NextileError for a model without such layers, and for weights that are not finite.
    """
    found = _layers(model)
    if not found:
        raise NextileError("no linear layer of a block is left to quantize: quantize a model once, one that has blocks")
    for path, layer in found.items():
        if not layer.weight.is_meta and not layer.weight.isfinite().all():
            raise NextileError(f"{path} holds numbers that are not finite: quantize a sound model")
    for path, layer in found.items():
        packed = STACKED_MODULES[type(kind)] if isinstance(layer, Stacked) else MODULES[type(kind)]
        replace(model, path, packed(layer, kind))  # type: ignore[arg-type]
    return list(found)


class PackedHead(nn.Module):
    """A head whose matrix is read in 8 bits, scaled row by row; a tied embedding stays as it is."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head
        codes, scale = pack8(cast(Any, head).weight.detach())
        self.codes, self.scale = nn.Buffer(codes, persistent=False), nn.Buffer(scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V)."""
        x, weight, bias, cap = cast(Any, self.head).product(x)
        if reads_one_row(x):
            scores = row8(x, self.codes, self.scale, None, weight.shape[1]).to(x.dtype).reshape(*x.shape[:-1], -1)
        else:
            scores = F.linear(x, unpack8(self.codes, self.scale, None, weight.shape[1], x.dtype))
        return capped(scores if bias is None else scores + bias.to(x.dtype), cap)


def pack_head(model: nn.Module) -> None:
    """Have a model write by a head in 8 bits as well, in place: a quarter of GPT-2's bytes at each token.

    For writing alone: scores are off by what `Int8` is off, and no folder keeps it.
    """
    replace(model, "head", PackedHead(model.get_submodule("head")))


def replace(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module where another was, in its mode."""
    parent, _, leaf = path.rpartition(".")
    module.train(model.get_submodule(path).training)
    setattr(model.get_submodule(parent), leaf, module)
