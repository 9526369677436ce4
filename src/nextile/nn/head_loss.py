"""The cross-entropy of what a head reads, in pieces of rows, so that the scores of all of them are never held at once.

Shapes: N rows, D width, V vocabulary, P rows of a piece, R rows that are worked on while they lie in the cache.

The loss is a plain sum, so the gradients of a piece are known as soon as its scores are: one pass computes both, and
the backward multiplies them by what comes in. Wijmans et al. 2024 ("Cut your losses in large-vocabulary language
models") and Liger Kernel (Hsu et al. 2024) do it in kernels of their own; here it is torch's matrix products alone. The
pass is one operation to torch.compile, as a graph with every piece in it would take long to compile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nextile.data.batches import IGNORE
from nextile.nn.attention import capped
from nextile.nn.linear import linear

WHOLE = 1 << 26  # bytes of float32 scores up to which they are held: a graph then fuses the loss with what is around it
PIECE = {"cpu": 1 << 26}  # bytes of a piece's scores: as many rows as pay for a pass over the weight's gradient
LARGE_PIECE = 1 << 28  # where a product needs more rows to keep the device busy
IN_CACHE = 1 << 22  # bytes of float32 that are worked on at a time
BAND = 4096  # words whose part of the weight's gradient is added at a time


class Product(NamedTuple):
    """The scores capped(x weightᵀ + bias) of a head, not computed yet.

    x (..., D), weight (V, D), bias (V,), cap: that of `capped`.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    cap: float | None = None

    @property
    def large(self) -> bool:
        """Whether the scores in float32 are too many to be held."""
        return 4 * len(self.weight) * (self.x.numel() // self.x.shape[-1]) > WHOLE

    def whole(self) -> Tensor:
        """The scores, (..., V)."""
        return capped(linear(self.x, self.weight, self.bias), self.cap)


def summed(product: Product, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The cross-entropy of targets (...), int64, summed over those that are not IGNORE: (), at least float32.

    There is no gradient of its gradient.
    """
    wanted = [_may_learn(tensor) for tensor in (product.x, product.weight, product.bias)]
    return _Summed.apply(*_flat(product, targets), label_smoothing, product.cap, _dtype(product.x), wanted)[0]


def each(product: Product, targets: Tensor) -> Tensor:
    """The cross-entropy of every target, 0 where it is IGNORE: as targets (...), at least float32.

    What each is worth is known in the backward alone, which computes the scores again.
    """
    wanted = [_may_learn(tensor) for tensor in (product.x, product.weight, product.bias)]
    return _Each.apply(*_flat(product, targets), product.cap, _dtype(product.x), wanted).view_as(targets)


def _may_learn(tensor: Tensor | None) -> bool:
    """Whether a gradient by this may be asked for; a transform's tensors do not say so while they are traced."""
    if tensor is None or not torch.is_grad_enabled():
        return False
    return tensor.requires_grad or (torch.compiler.is_compiling() and not isinstance(tensor, nn.Parameter))


def _flat(product: Product, targets: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    return product.x.flatten(0, -2), product.weight, product.bias, targets.flatten()


def _dtype(x: Tensor) -> torch.dtype:
    """That of the products."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) and x.dtype != torch.double else x.dtype


# --- one pass -------------------------------------------------------------------------------------------------------


def _no_grads(x: Tensor, weight: Tensor, wide: torch.dtype, wanted: list[bool]) -> list[Tensor]:
    """Memory for the gradients of x, in its dtype, of weight and of bias, wide; without elements where not wanted."""
    shapes = zip((x.shape, weight.shape, weight.shape[:1]), (x.dtype, wide, wide), wanted, strict=True)
    return [x.new_zeros(shape if wants else (0,), dtype=dtype) for shape, dtype, wants in shapes]


class _Pass:
    """One pass over the rows asked: their losses and, where wanted, the gradients of the sum of worth * loss."""

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float, cap: float | None,
        dtype: torch.dtype,
    ):  # fmt: skip
        self.x, self.targets, self.smoothing, self.cap, self.dtype = x, targets, smoothing, cap, dtype
        self.weight, self.bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        self.wide = torch.promote_types(dtype, torch.float32)
        self.kind = x.device.type
        self.held: Tensor | None = None

    def losses(self) -> Tensor:
        """(N,), 0 where nothing is asked."""
        found = self.x.new_zeros(len(self.x), dtype=self.wide)
        for rows in self._pieces():
            found[rows] = self._piece(rows, None, learns=False)[0]
        return found

    def total(self, worth: Tensor | None, wanted: list[bool]) -> tuple[Tensor, list[Tensor]]:
        """() and the gradients of x (N, D), weight (V, D) and bias (V,); those not wanted are empty."""
        of_x, of_weight, of_bias = grads = _no_grads(self.x, self.weight, self.wide, wanted)
        found = self.x.new_zeros((), dtype=self.wide)
        for rows in self._pieces():
            losses, slopes, read = self._piece(rows, worth, learns=any(wanted))
            found += losses.sum() if worth is None else losses @ worth[rows].to(self.wide)
            if wanted[0]:
                of_x[rows] = torch.mm(slopes, self.weight).to(of_x.dtype)
            if wanted[1]:
                _add_product(of_weight, slopes, read)
            if wanted[2]:
                of_bias += slopes.sum(0, dtype=self.wide)
        return found, grads

    def _pieces(self) -> list[Tensor] | list[slice]:
        """Which rows belong together. The CPU knows without waiting which are asked, and leaves the others out."""
        size = max(1, PIECE.get(self.kind, LARGE_PIECE) // (len(self.weight) * self.weight.itemsize))
        if self.kind == "cpu" and not bool((asked := self.targets != IGNORE).all()):
            return list(asked.nonzero()[:, 0].split(size))
        return [slice(start, start + size) for start in range(0, len(self.x), size)]

    def _piece(self, rows: Tensor | slice, worth: Tensor | None, *, learns: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The losses of some rows (P,), the gradient of their scores before the cap (P, V), what was read (P, D)."""
        read = self.x[rows].to(self.dtype)
        targets = self.targets[rows]
        worth = None if worth is None else worth[rows].to(self.wide)
        scores = self._scores(read)
        losses = torch.empty(len(read), dtype=self.wide, device=read.device)
        size = max(1, IN_CACHE // (4 * len(self.weight))) if self.kind == "cpu" else len(read)
        for start in range(0, len(read), size):
            part = slice(start, start + size)
            losses[part] = self._rows(scores[part], targets[part], None if worth is None else worth[part], learns)
        return losses, scores, read

    def _scores(self, read: Tensor) -> Tensor:
        """Before the cap: (P, V), in the same memory for every piece."""
        if self.held is None:  # the first piece is the longest
            self.held = read.new_empty(len(read), len(self.weight))
        scores = self.held[: len(read)]
        if self.bias is None:
            return torch.mm(read, self.weight.T, out=scores)
        return torch.addmm(self.bias, read, self.weight.T, out=scores)

    def _rows(self, scores: Tensor, targets: Tensor, worth: Tensor | None, learns: bool) -> Tensor:
        """The losses of rows (R,); their scores (R, V) become the gradient of what they are worth."""
        words, asked = targets.clamp_min(0)[:, None], targets != IGNORE  # (R, 1), (R,)
        wide, tanh = scores.to(self.wide), None
        if self.cap is not None:
            tanh = (wide / self.cap).tanh_()
            wide = tanh * self.cap
        logs = wide.log_softmax(-1)  # (R, V)
        right = 1 - self.smoothing
        losses = logs.gather(1, words)[:, 0] * -right
        if self.smoothing:
            losses -= self.smoothing * logs.mean(-1)
        if learns:
            slopes = logs.exp_()
            if self.smoothing:
                slopes -= self.smoothing / len(self.weight)
            slopes.scatter_add_(1, words, slopes.new_full((len(words), 1), -right))
            slopes *= (asked if worth is None else asked * worth)[:, None]
            if tanh is not None:
                slopes *= 1 - tanh.square_()
            scores.copy_(slopes)
        return losses.masked_fill_(~asked, 0.0)


def _add_product(total: Tensor, slopes: Tensor, read: Tensor) -> None:
    """total (V, D) += slopes (P, V)ᵀ read (P, D), the sum in the dtype of total."""
    if total.dtype == slopes.dtype:
        total.addmm_(slopes.T, read)
        return
    band = BAND if total.device.type == "cpu" else len(total)
    for start in range(0, len(total), band):
        total[start : start + band] += torch.mm(slopes[:, start : start + band].T, read)


# --- as operations of torch -----------------------------------------------------------------------------------------


@torch.library.custom_op("nextile::summed_cross_entropy", mutates_args=())
def _summed(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, worth: Tensor | None, smoothing: float,
    cap: float | None, dtype: torch.dtype, wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The sum of worth (N,) * loss, and its gradients by x (N, D), weight (V, D), bias (V,); empty if not wanted."""
    with torch.autocast(x.device.type, enabled=False):
        found, grads = _Pass(x, weight, bias, targets, smoothing, cap, dtype).total(worth, wanted)
    of_x, of_weight, of_bias = grads
    return found, of_x, of_weight, of_bias


@_summed.register_fake
def _(x, weight, bias, targets, worth, smoothing, cap, dtype, wanted):
    wide = torch.promote_types(dtype, torch.float32)
    return x.new_empty((), dtype=wide), *_no_grads(x, weight, wide, wanted)


@torch.library.custom_op("nextile::each_cross_entropy", mutates_args=())
def _each(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, cap: float | None, dtype: torch.dtype
) -> Tensor:
    """The losses, (N,)."""
    with torch.autocast(x.device.type, enabled=False):
        return _Pass(x, weight, bias, targets, 0.0, cap, dtype).losses()


@_each.register_fake
def _(x, weight, bias, targets, cap, dtype):
    return x.new_empty(len(x), dtype=torch.promote_types(dtype, torch.float32))


class _Summed(torch.autograd.Function):
    """The sum, whose backward has nothing left to do but to scale."""

    @staticmethod
    def forward(x, weight, bias, targets, smoothing, cap, dtype, wanted):
        return _summed(x, weight, bias, targets, None, smoothing, cap, dtype, wanted)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, targets, *ctx.rest, ctx.wanted = inputs
        _, *grads = output
        ctx.mark_non_differentiable(*grads)
        if torch.compiler.is_compiling():
            ctx.save_for_backward(x, weight, bias, targets, *grads)
        else:
            ctx.save_for_backward(x, weight, bias, targets)
            ctx.set_materialize_grads(False)  # those of the gradients would be as large as they
            ctx.found = [grad.detach() for grad in grads]  # an output kept as it is would keep itself

    @staticmethod
    def backward(ctx, incoming, *_):
        """In the same memory the first time; a second time the pass is done again."""
        x, weight, bias, targets, *grads = ctx.saved_tensors
        if incoming is None:
            return (None,) * 8
        if grads:
            grads = [grad * incoming for grad in grads]
        elif ctx.found is not None:
            grads, ctx.found = [grad.mul_(incoming) for grad in ctx.found], None
        else:
            grads = _summed(x, weight, bias, targets, incoming.expand(len(x)), *ctx.rest, ctx.wanted)[1:]
        return *_as(grads, (x, weight, bias), ctx.wanted), None, None, None, None, None


class _Each(torch.autograd.Function):
    """The losses, whose backward passes once more, since only there it is known what each is worth."""

    @staticmethod
    def forward(x, weight, bias, targets, cap, dtype, wanted):
        return _each(x, weight, bias, targets, cap, dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, targets, *ctx.rest, ctx.wanted = inputs
        ctx.save_for_backward(x, weight, bias, targets)

    @staticmethod
    def backward(ctx, incoming):
        x, weight, bias, targets = ctx.saved_tensors
        _, *grads = _summed(x, weight, bias, targets, incoming, 0.0, *ctx.rest, ctx.wanted)
        return *_as(grads, (x, weight, bias), ctx.wanted), None, None, None, None


def _as(grads: Sequence[Tensor], inputs: Sequence[Tensor | None], wanted: list[bool]) -> list[Tensor | None]:
    """In the dtypes of the inputs; None where none is wanted."""
    both = zip(grads, inputs, wanted, strict=True)
    return [grad.to(tensor.dtype) if wants and tensor is not None else None for grad, tensor, wants in both]
