"""What learns on several processes at once: each reads its rows, and all take the step of the whole batch.

The loss is the sum over all targets of the batch, divided by how many there are; gradients are summed over the
processes by DistributedDataParallel, or by FSDP2 where the model is divided.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nextile.data.batches import Batch
from nextile.nn.block import Block
from nextile.training.graph import each_one_graph, one_graph
from nextile.training.learner import Learned, Measure, targets_of
from nextile.training.objectives import Objective
from nextile.training.optim import AdamW, Muon
from nextile.training.parallel import World
from nextile.training.spread_optim import SharedOptimizer


class Asked(nn.Module):
    """A measure as a module, so that DistributedDataParallel can stand around all of it."""

    def __init__(self, measure: Measure):
        super().__init__()
        self.model, self.measure = measure.model, measure

    def forward(self, batch: Batch) -> Tensor:
        """The batch's total loss: ()."""
        return self.measure.nats(batch)


class SpreadLearner:
    """`GradientLearner` over the mesh: its batches are this process's rows, whose `weight` is that of all.

    The model is divided already (`spread`). mode: what puts it into its state for learning. compiled: a whole model as
    one graph, of a divided one each block, between which its pieces are gathered.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, settings: AdamW | Muon, world: World, *, clip: float = 1.0,
        precision: torch.dtype = torch.float32, compiled: bool = False,
        mode: Callable[[nn.Module], object] = nn.Module.train,
    ):  # fmt: skip
        self.model, self.world, self.clip, self.mode = model, world, clip, mode
        self.optimizer = SharedOptimizer(model, settings, world, compiled=compiled)
        self.lr, self.kind = settings.lr, settings.type
        if compiled and world.whole:
            objective = one_graph(objective)
        elif compiled:
            each_one_graph(part for part in model.modules() if isinstance(part, Block))
        measure = Measure(model, objective, precision)
        self.patient = measure.device.type != "cpu"
        self.asked = summing(Asked(measure), world)

    def learn(self, micros: Sequence[Batch], index: int, factor: float) -> Learned:
        """One step of the optimizer."""
        self.mode(self.model)
        torch.manual_seed((torch.initial_seed() + self.world.reader) % 2**63)  # other rows, other dropout
        self.optimizer.zero_grad()
        loss, targets = self._backward(micros, index)
        return Learned(loss, self.optimizer.step(factor, clip=self.clip, loss=loss), targets)

    def state(self) -> dict[str, Tensor]:
        """The optimizer's."""
        return self.optimizer.state()

    def _backward(self, micros: Sequence[Batch], index: int) -> tuple[Tensor, int]:
        """The mean loss of all processes, (), whose gradients are there now, and how many targets."""
        targets = targets_of(micros, index)
        losses = []
        for number, batch in enumerate(micros, start=1):
            with exchanging(self.asked, number == len(micros)):
                loss = self.asked(batch) / targets
                (loss * self.world.readers).backward()  # torch takes the mean over the processes: this is their sum
            losses.append(loss.detach())
        return self.world.sum(torch.stack(losses).sum() / self.world.shape[2]), targets


def summing(asked: Asked, world: World) -> nn.Module:
    """The measure with gradients that are the mean over the processes; a divided model sees to that itself."""
    if not world.whole:
        return asked
    names = inspect.signature(DistributedDataParallel).parameters
    synced = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # before torch 2.13
    options: dict[str, Any] = {"gradient_as_bucket_view": True, synced: False}
    return DistributedDataParallel(asked, **options)


@contextmanager
def exchanging(asked: nn.Module, now: bool) -> Iterator[None]:
    """Gradients are exchanged in the last part of a step alone, and gathered here in those before."""
    for part in asked.modules():
        if callable(exchange := getattr(part, "set_requires_gradient_sync", None)):
            exchange(now, recurse=False)
    with asked.no_sync() if isinstance(asked, DistributedDataParallel) and not now else nullcontext():
        yield
