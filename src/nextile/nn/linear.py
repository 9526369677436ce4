"""y = x Wᵀ + b, with forms of their own for the single row of a decoding step, and for some rows of several texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

from nextile.base.device import memory_available

FEW = 32  # rows: of more, a product takes so long that laying its matrix out anew hardly counts
TOGETHER = 4  # rows of codes that are read side by side: each number of x is then fetched once for all of them


def reads_one_row(x: Tensor) -> bool:
    """Whether x (..., in) is the single row of a compiled step on CPU, whose weights are best read by `one_row`."""
    if x.numel() != x.shape[-1] or x.device.type != "cpu" or torch.is_grad_enabled():
        return False
    return torch.compiler.is_compiling()


def held(x: Tensor) -> Tensor:
    """x as it is. A compiled graph puts it into memory, instead of computing it anew for each row that meets it."""
    return torch.as_strided(x, x.shape, x.stride())


def in_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in that type, itself where it has it.

    A Function's result must not be cast to the type that it has: in a graph of torch 2.11 its gradient would be 0.
    """
    return x if x.dtype == dtype else x.to(dtype)


def one_row(x: Tensor, weight: Tensor) -> Tensor:
    """x (1, ..., in) and weight (out, in), numbers or codes of 8 bits -> their products (out), at least float32.

    A compiled product-and-sum reads the weights of a single row at memory speed, where the library's matrix product
    on CPU reaches a third of it.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    row = x.reshape(1, -1).to(wide)
    if torch.__version__ < "2.13":  # torch 2.11 holds a part of a tensor where the whole begins
        row = torch.cat(row.chunk(2, dim=-1), dim=-1)
    row = held(row)
    together = TOGETHER if weight.dtype == torch.int8 and len(weight) % TOGETHER == 0 else 1
    return torch.cat([(rows.to(wide) * row).sum(-1) for rows in weight.chunk(together)])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in), weight (out, in), bias (out) -> (..., out).

    With more rows than one, on other devices or without a compiler the library's product is used.
    A frozen weight may be held narrower than what it meets (`lora.narrow`): it is widened where autocast is off.
    """
    if weight.itemsize < x.itemsize and not torch.is_autocast_enabled(x.device.type):
        weight = weight.to(x.dtype)
    if reads_one_row(x):
        y = one_row(x, weight).to(x.dtype)
        y = y if bias is None else y + bias
        return y.reshape(*x.shape[:-1], -1)
    if _is_plain(x, weight) and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return torch.ops.mkldnn._linear_pointwise(x, _as_packed(weight), bias, "none", [], "")
    return F.linear(x, weight, bias)


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    """Whether several rows meet a matrix in float32 on CPU and nobody asks for gradients or a graph.

    oneDNN then takes 50 to 75 % of the time of the library that `F.linear` calls, where the rows are few, and a row's
    numbers do not depend on the rows beside it, however many they are.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.numel() <= x.shape[-1]:
        return False
    if not (type(x) is Tensor and type(weight) in (Tensor, nn.Parameter)):
        return False
    return x.dtype == weight.dtype == torch.float32 and x.is_cpu and not torch.is_autocast_enabled("cpu")


# --- weights that are held a second time ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Pack:
    """A matrix as oneDNN's products read it, and of which state of the weight it is."""

    data: Tensor
    version: int
    address: int

    @classmethod
    def of(cls, weight: Tensor) -> _Pack:
        return cls(torch.ops.mkldnn._reorder_linear_weight(weight.detach()), weight._version, weight.data_ptr())

    def is_of(self, weight: Tensor) -> bool:
        """Whether the weight is still as it was."""
        return self.version == weight._version and self.address == weight.data_ptr()


_packs = WeakIdKeyDictionary()  # weight -> a weak reference to its pack, which somebody's `Packed` holds


class Packed:
    """While it lives, a model's float32 matrices on CPU are held a second time, laid out as products of rows read them.

    Without it each product lays its matrix out anew, which with 4 to 16 rows takes as long as the product; the results
    are the same bit for bit. A weight that changes meanwhile is read as before, and so is what would take more than a
    quarter of the memory that is free.
    """

    def __init__(self, model: nn.Module):
        room = memory_available() // 4
        weights = _matrices(model)
        sizes = accumulate(weight.nbytes for weight in weights)
        within = [weight for weight, used in zip(weights, sizes, strict=True) if used <= room]
        self._held = [self._pack(weight) for weight in within]

    def _pack(self, weight: Tensor) -> _Pack:
        """Its own, or somebody else's."""
        known = _pack_of(weight)
        if known is None:
            known = _Pack.of(weight)
            _packs[weight] = ref(known)
        return known


def _matrices(model: nn.Module) -> list[Tensor]:
    """The weights that `linear` multiplies as they are: those of linear layers, and an embedding's that is a head."""
    found: list[Tensor] = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    heads = [getattr(head, "weight", None) for head in model.children()]
    found += [weight for weight in heads if isinstance(weight, nn.Parameter)]
    plain = {id(each): each for each in found if each.dtype == torch.float32 and each.is_cpu and each.ndim == 2}
    has_product = all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))
    return list(plain.values()) if has_product else []


def _pack_of(weight: Tensor) -> _Pack | None:
    known = _packs.get(weight)
    pack = None if known is None else known()
    return pack if pack is not None and pack.is_of(weight) else None


def _as_packed(weight: Tensor) -> Tensor:
    """The weight, or its pack where somebody holds one."""
    pack = _pack_of(weight) if _packs else None
    return weight if pack is None else pack.data


# --- layers ---------------------------------------------------------------------------------------------------------


def lay_in_rows(weights: Iterable[nn.Parameter]) -> None:
    """Lay the numbers of each weight out row by row, in place, as `linear` reads a single row's fastest.

    A checkpoint's transposed matrices are loaded without moving them; the values are the same either way.
    """
    for weight in weights:
        weight.data = weight.data.contiguous()


class Linear(nn.Linear):
    """`nn.Linear` through `linear`, or in training mode through another product that it was given (nn/float8.py)."""

    learning: Callable[[Tensor, Tensor, Tensor | None], Tensor] = staticmethod(linear)

    def forward(self, input: Tensor) -> Tensor:
        product = self.learning if self.training else linear
        return product(input, self.weight, self.bias)
