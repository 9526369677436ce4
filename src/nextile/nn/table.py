"""Rows of a trained table by their numbers, with a gradient that is fast and the same each time where it is compiled.

Shapes: N rows of width D; ids (...).
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@torch.library.custom_op("nextile::table_gradient", mutates_args=())
def table_gradient(gradient: Tensor, ids: Tensor, rows: int) -> Tensor:
    """The gradient of a table (N, D) from that of the rows that were read (..., D), in the order of their reading."""
    return torch.ops.aten.embedding_dense_backward(gradient.contiguous(), ids, rows, -1, False)


@table_gradient.register_fake
def _(gradient: Tensor, ids: Tensor, rows: int) -> Tensor:
    return gradient.new_empty(rows, gradient.shape[-1])


class LookUp(torch.autograd.Function):
    """Rows (..., D) of a table (N, D); the gradient goes through `table_gradient`."""

    @staticmethod
    def forward(table: Tensor, ids: Tensor) -> Tensor:
        return F.embedding(ids, table)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        table, ids = inputs
        ctx.rows = len(table)
        ctx.save_for_backward(ids)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        return table_gradient(grads[0], ids, ctx.rows), None


def look_up(ids: Tensor, table: Tensor) -> Tensor:
    """Rows (..., D) of a table (N, D).

    A compiled graph on CPU would add up its gradient by atomic operations, number by number: slowly, and in another
    order each time, so that a run could not be repeated bit for bit.
    """
    if torch.compiler.is_compiling() and table.device.type == "cpu" and torch.is_grad_enabled():
        return cast("Tensor", LookUp.apply(table, ids))
    return F.embedding(ids, table)


class Embedding(nn.Embedding):
    """`nn.Embedding` through `look_up`."""

    def forward(self, input: Tensor) -> Tensor:
        """Ids (...) -> (..., D)."""
        return look_up(input, self.weight)
