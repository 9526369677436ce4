"""y = x Wᵀ + b, with a form of its own for the single row of a decoding step."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in), weight (out, in), bias (out) -> (..., out).

    A compiled product-and-sum reads the weights of a single row at memory speed, where the library's matrix product
    on CPU reaches a third of it; with more rows, on other devices or without a compiler the library wins.
    A frozen weight may be held narrower than what it meets (`lora.narrow`): it is widened where autocast is off.
    """
    if weight.itemsize < x.itemsize and not torch.is_autocast_enabled(x.device.type):
        weight = weight.to(x.dtype)
    one_row = x.numel() == x.shape[-1]
    if one_row and torch.compiler.is_compiling() and x.device.type == "cpu" and not torch.is_grad_enabled():
        y = (weight.float() * x.reshape(1, -1).float()).sum(-1).to(x.dtype)
        y = y if bias is None else y + bias
        return y.reshape(*x.shape[:-1], -1)
    return F.linear(x, weight, bias)


def lay_in_rows(weights: Iterable[nn.Parameter]) -> None:
    """Lay the numbers of each weight out row by row, in place, as `linear` reads a single row's fastest.

    A checkpoint's transposed matrices are loaded without moving them; the values are the same either way.
    """
    for weight in weights:
        weight.data = weight.data.contiguous()


class Linear(nn.Linear):
    """`nn.Linear` through `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
