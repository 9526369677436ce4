"""What a model is asked to do: functions of a model and a batch that return the total loss in nats.

Shapes: B batch, T time, V vocabulary.
An objective sums over the targets asked and never averages: only the loop knows how many the whole step asks, and
dividing there makes accumulated micro-batches equal to the large batch, token for token.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from nextile.data.batches import IGNORE, Batch

Objective = Callable[[nn.Module, Batch], Tensor]


def next_token(model: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """The cross-entropy of batch.targets (B, T) under model(batch.inputs) (B, T, V), summed in float32: () nats.

    Label smoothing mixes the targets with the uniform distribution (Szegedy et al. 2016).
    """
    logits = model(batch.inputs).float()
    return F.cross_entropy(
        logits.flatten(0, 1),
        batch.targets.flatten(),
        ignore_index=IGNORE,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
