"""Products in float8 while a model learns: each tensor is rounded by a scale of its own, forward and backward.

What is multiplied forward has 4 bits of exponent and 3 of mantissa, the incoming gradient 5 and 2, which reach further
(Micikevicius et al. 2022, "FP8 Formats for Deep Learning"). Nothing is kept from step to step: a scale is that of the
numbers at hand.

Shapes: M rows, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextile.base.errors import UsageError
from nextile.nn.linear import Linear
from nextile.nn.lora import adaptable

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16  # of the sizes that the hardware's products take
LEAST = 1e-30  # the largest magnitude of a tensor counts at least as much, so that a scale is never 0 nor subnormal


class Rounded(NamedTuple):
    """A matrix as float8 numbers, row by row, and what they are multiplied by."""

    numbers: Tensor
    scale: Tensor  # (), float32

    @property
    def turned(self) -> Rounded:
        """(R, C) -> (C, R), row by row as well."""
        return Rounded(self.numbers.t().contiguous(), self.scale)


def rounded(x: Tensor, dtype: torch.dtype) -> Rounded:
    """A matrix in a float8 type, whose largest number stands for its largest magnitude; the device is not waited for.

    A NaN or an infinity in x is one in its scale, and so in all that is multiplied with it.
    """
    wide = x.detach().float()
    scale = wide.abs().amax().clamp(min=LEAST) / torch.finfo(dtype).max
    return Rounded((wide / scale).to(dtype).contiguous(), scale)


def product(a: Rounded, b: Rounded, dtype: torch.dtype, *, fast: bool = False) -> Tensor:
    """a (R, K) times b (C, K) transposed, as the hardware reads them -> (R, C).

    fast: sums on Hopper may keep fewer bits than float32's, as NVIDIA's Transformer Engine lets them forward.
    """
    return torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
        a.numbers, b.numbers.t(), scale_a=a.scale, scale_b=b.scale, out_dtype=dtype, use_fast_accum=fast
    )


class Product(torch.autograd.Function):
    """x (M, I) times weight (O, I) transposed, of what both are rounded to -> (M, O); they themselves get gradients."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, rows: Tensor, rows_scale: Tensor, matrix: Tensor, matrix_scale: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        return product(Rounded(rows, rows_scale), Rounded(matrix, matrix_scale), dtype, fast=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, *kept, _ = inputs
        ctx.dtypes = x.dtype, weight.dtype
        ctx.save_for_backward(*kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, rows_scale, matrix, matrix_scale = ctx.saved_tensors
        incoming = rounded(grads[0], BACKWARD)
        of_x = product(incoming, Rounded(matrix, matrix_scale).turned, ctx.dtypes[0])
        of_weight = product(incoming.turned, Rounded(rows, rows_scale).turned, ctx.dtypes[1])
        return of_x, of_weight, None, None, None, None, None


def float8_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., I), weight (O, I), bias (O) -> (..., O), in autocast's type where it is on, else in that of x.

    I and O are multiples of 16. Rows of zeros are added up to the next multiple, since the gradient of the weight sums
    over rows: they change no number, and whatever the batch, what was asked for in float8 is in float8.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    rows = x.reshape(-1, x.shape[-1])
    missing = MULTIPLE * max(1, -(-len(rows) // MULTIPLE)) - len(rows)
    padded = F.pad(rows, (0, 0, 0, missing)) if missing else rows
    y = cast(Tensor, Product.apply(padded, weight, *rounded(padded, FORWARD), *rounded(weight, FORWARD), dtype))
    y = y[: len(rows)].reshape(*x.shape[:-1], len(weight))
    return y if bias is None else y + bias.to(dtype)


def use_float8(model: nn.Module) -> int:
    """Let the linear layers of a model's blocks multiply in float8 while it is in training mode, in place.

    Those whose sizes are multiples of 16; what chooses experts, their stacked matrices, and layers that are packed or
    adapted stay as they are. No parameter or name changes, and outside of training mode every result is as before.
    Returns how many layers there are. Errors: UsageError where there are none.
    """
    inside = {path: layer for path, layer in adaptable(model).items() if "blocks" in path.split(".")}
    found = [layer for path, layer in inside.items() if type(layer) is Linear and not path.endswith(".router")]
    fitting = [layer for layer in found if layer.in_features % MULTIPLE == layer.out_features % MULTIPLE == 0]
    if not fitting:
        raise UsageError(
            f"precision 'fp8': no layer of this model's blocks has sizes that are multiples of {MULTIPLE}: "
            "choose such a width, such as model.stack.width=256, or another precision"
        )
    for layer in fitting:
        layer.learning = float8_linear
    return len(fitting)
