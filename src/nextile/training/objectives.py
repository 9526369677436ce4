"""What a model is asked to do: functions of a model and a batch that return the total loss in nats.

Shapes: B batch, T time, V vocabulary or classes, N pairs of answers.
An objective sums over the targets asked and never averages: only the loop knows how many the whole step asks, and
dividing there makes accumulated micro-batches equal to the large batch, token for token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextile.data.batches import IGNORE, Batch, asked
from nextile.nn.head import LinearHead, TiedHead
from nextile.nn.head_loss import each, summed

Objective = Callable[[nn.Module, Batch], Tensor]


def cross_entropy(logits: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
    """That of batch.targets (B, T) under logits (B, T, V), or of classes (B, V) under (B, V), fp32: () nats.

    Label smoothing mixes the targets with the uniform distribution (Szegedy et al. 2016).
    """
    rule = {"reduction": "sum", "label_smoothing": label_smoothing}
    if batch.targets.is_floating_point():
        return F.cross_entropy(logits, batch.targets, **rule)
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, **rule)


def scores_words(model: nn.Module) -> bool:
    """Whether the model can be asked, by `read`, for something else than its logits over a vocabulary."""
    return isinstance(getattr(model, "head", None), TiedHead | LinearHead)


def next_token(model: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """The cross-entropy of batch.targets (B, T) under model(*batch.given) (B, T, V), summed in float32: () nats.

    Of a translator's batch the next token is that of the target, beside the source and the true beginning (teacher
    forcing: Williams and Zipser 1989). What follows a picture is its class. Logits over a vocabulary that are large
    are never held whole.
    """

    def read(head: TiedHead | LinearHead, x: Tensor) -> Tensor:
        product = head.product(x)
        if product.large:
            return summed(product, batch.targets, label_smoothing)
        return cross_entropy(product.whole().float(), batch, label_smoothing)

    if scores_words(model):
        return model(*batch.given, read=read)
    return cross_entropy(model(*batch.given).float(), batch, label_smoothing)


def r_drop(model: nn.Module, batch: Batch, weight: float, label_smoothing: float = 0.0) -> Tensor:
    """R-Drop (Liang et al. 2021): two passes with different dropout must each be right, and agree.

    The mean of their cross-entropies plus weight / 4 times the divergences KL(p, q) + KL(q, p): () nats.
    """
    twice = [torch.cat((given, given)) for given in batch.given]
    first, second = model(*twice).float().chunk(2)  # (B, T, V) each
    right = cross_entropy(first, batch, label_smoothing) + cross_entropy(second, batch, label_smoothing)
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    apart = ((p.exp() - q.exp()) * (p - q)).sum(-1)  # (B, T) or (B,): the two divergences together
    return right / 2 + weight / 4 * apart.masked_fill(~asked(batch.targets), 0.0).sum()


@dataclass  # not frozen: made in a compiled graph, which torch 2.11 cannot do with one that can be called
class Called:
    """A model that is called in another way than by itself; to an objective it is a model."""

    model: nn.Module
    call: Callable[..., Tensor]

    @property
    def head(self) -> object:
        """The model's, if it has one."""
        return getattr(self.model, "head", None)

    def __call__(self, *given: Tensor, **how: object) -> Tensor:
        return self.call(*given, **how)


def apart(objective: Objective) -> Objective:
    """The objective of a decoder whose rows hold several texts: beside the inputs a batch has whose each token is."""

    def of_segments(model: nn.Module, batch: Batch) -> Tensor:
        def given(ids: Tensor, segments: Tensor, **how: object) -> Tensor:
            return model(ids, segments=segments, **how)

        return objective(cast("nn.Module", Called(model, given)), batch)

    return of_segments


# --- preferences ----------------------------------------------------------------------------------------------------


def _of_each(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of every target (B, T), 0 where it is not asked, under logits (B, T, V): (B, T)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none")
    return losses.view_as(targets)


def answers_log_probability(model: nn.Module, batch: Batch) -> Tensor:
    """That of the tokens asked of each row, after those before them: (B,) nats, in float32 at least.

    Beside the inputs the batch has where there are tokens, (B, T).
    """

    def read(head: TiedHead | LinearHead, x: Tensor) -> Tensor:
        product = head.product(x)
        return each(product, batch.targets) if product.large else _of_each(product.whole(), batch.targets)

    segments = batch.beside[0]
    if scores_words(model):
        losses = model(batch.inputs, segments=segments, read=read)
    else:
        losses = _of_each(model(batch.inputs, segments=segments), batch.targets)
    return -losses.sum(-1)


def gained(model: nn.Module, batch: Batch) -> Tensor:
    """How much more a model has learned to like the first answer of each pair than the second: (N,) nats.

    Rows 2i and 2i + 1 are pair i; beside the segments the batch has the reference's log-probability of each, (2N,).
    What both answers begin with counts for both alike.
    """
    chosen, rejected = (answers_log_probability(model, batch) - batch.beside[1]).view(-1, 2).unbind(1)
    return chosen - rejected


def preference(model: nn.Module, batch: Batch, beta: float) -> Tensor:
    """Direct preference optimization (Rafailov et al. 2023, equation 7), summed over the pairs: () nats."""
    return -F.logsigmoid(beta * gained(model, batch)).sum()


def smooth_and_consistent(label_smoothing: float, agreement: float) -> Objective:
    """The next token, with labels this smooth, and with R-Drop where its weight is not 0."""
    if agreement:
        return partial(r_drop, weight=agreement, label_smoothing=label_smoothing)
    return partial(next_token, label_smoothing=label_smoothing)
