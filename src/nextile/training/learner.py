"""What learns from the micro-batches of a step: by gradients through an optimizer, or by a rule of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from nextile.base.errors import NextileError
from nextile.data.batches import Batch
from nextile.training.graph import one_graph
from nextile.training.objectives import Objective
from nextile.training.optim import Optimizer


class Learned(NamedTuple):
    """What one step did; the device may still be computing the tensors."""

    loss: Tensor  # nats per target, before the update: ()
    norm: Tensor  # of the gradient, before clipping; 0 where nothing is gathered: ()
    targets: int  # asked


class Learner(Protocol):
    """Changes a model, step by step; a pure function of the model, its own state and the step's number."""

    lr: float  # the peak rate
    patient: bool  # whether looking at the loss of each step would stall the device

    @property
    def kind(self) -> str:
        """Whose state it is."""
        ...

    def learn(self, micros: Sequence[Batch], index: int, factor: float) -> Learned:
        """Learn from the micro-batches of step `index` as from one batch, at `factor` times the peak rate."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything but the weights that resuming needs, by name; the tensors themselves, not copies."""
        ...


class Measure:
    """The objective of one model at one precision, on the model's device."""

    def __init__(self, model: nn.Module, objective: Objective, precision: torch.dtype):
        self.model, self.objective = model, objective
        self.device = next(model.parameters()).device
        self.half = precision == torch.bfloat16

    def nats(self, batch: Batch) -> Tensor:
        """The batch's total loss: ()."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            return self.objective(self.model, batch.to(self.device))


def targets_of(micros: Sequence[Batch], index: int) -> int:
    """How many targets step `index` asks. Errors: NextileError when there is none."""
    asked = sum(batch.weight for batch in micros)
    if not asked:
        raise NextileError(f"step {index} asks for no target at all: give the data longer texts or a shorter context")
    return asked


class GradientLearner:
    """Gradients of the mean over all micro-batches' targets, and an optimizer that follows them.

    precision: float32, or bfloat16 for the matrix products while weights and sums stay float32.
    compiled: one graph per shape, for runs long enough to pay for it; an objective compiled before is used as it is.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, optimizer: Optimizer, *, clip: float = 1.0,
        precision: torch.dtype = torch.float32, compiled: bool = False,
    ):  # fmt: skip
        self.model, self.optimizer, self.clip = model, optimizer, clip
        self.lr, self.kind = optimizer.settings.lr, optimizer.kind
        self.measure = Measure(model, one_graph(objective) if compiled else objective, precision)
        self.patient = self.measure.device.type != "cpu"

    def learn(self, micros: Sequence[Batch], index: int, factor: float) -> Learned:
        """One step of the optimizer."""
        if not self.model.training:  # to say so again to each of its parts takes longer than to move a small one
            self.model.train()
        self.optimizer.zero_grad()
        loss, targets = self._backward(micros, index)
        return Learned(loss, self.optimizer.step(factor, clip=self.clip, loss=loss), targets)

    def state(self) -> dict[str, Tensor]:
        """The optimizer's."""
        return self.optimizer.state()

    def _backward(self, micros: Sequence[Batch], index: int) -> tuple[Tensor, int]:
        """The mean loss, (), whose gradients are there now, and how many targets."""
        asked = targets_of(micros, index)
        losses = []
        for batch in micros:
            loss = self.measure.nats(batch) / asked
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum(), asked
