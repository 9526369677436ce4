"""Training is a generator of steps; what to do with them (show, evaluate, save) is its caller's business.

A step is a pure function of the model, the optimizer's state, the seed and the step's number: resuming is `start=`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nextile.base.errors import NextileError
from nextile.data.batches import Batch, prefetch
from nextile.training.learner import GradientLearner, Learner, Measure
from nextile.training.objectives import Objective
from nextile.training.optim import Optimizer

if TYPE_CHECKING:
    from nextile.training.schedule import Schedule

PATIENCE = 5  # steps in a row that may be skipped


@dataclass(frozen=True)
class Step:
    """What one step did. Its loss and norm wait for the device when they are first asked for, not before."""

    index: int
    lr: float
    tokens: int  # targets asked
    seconds: float  # without the batch, which was prepared meanwhile; on a GPU until the work was handed over
    loss_tensor: Tensor
    norm_tensor: Tensor

    @property
    def loss(self) -> float:
        """Nats per target, before the update."""
        return self.loss_tensor.item()

    @property
    def grad_norm(self) -> float:
        """The global norm of the gradient, before clipping."""
        return self.norm_tensor.item()

    @property
    def skipped(self) -> bool:
        """Whether loss or norm was not finite, so that nothing changed."""
        return not (math.isfinite(self.loss) and math.isfinite(self.grad_norm))


@dataclass
class Watch:
    """Counts the steps that were skipped: one watch for all of a run, however often it stops to look at itself.

    named: where in the data the batch of a step is from.
    """

    named: Callable[[int], str] | None = None
    skipped: int = 0
    row: int = 0  # of them, up to the last step
    unseen: list[Step] = field(default_factory=list)

    def see(self, step: Step, every: int) -> None:
        """Look at `every` steps at once, where looking at each would stall the device."""
        self.unseen.append(step)
        if len(self.unseen) >= every:
            self.look()

    def look(self) -> None:
        """Errors: NextileError after PATIENCE skipped steps in a row."""
        seen, self.unseen = self.unseen, []
        for step in seen:
            self.row = self.row + 1 if step.skipped else 0
            self.skipped += step.skipped
            if self.row >= PATIENCE:
                raise NextileError(self._complaint(step))

    def _complaint(self, step: Step) -> str:
        where = f" of {self.named(step.index)}" if self.named else ""
        if self.row > step.index:  # no step was ever made
            remedy = "begin from a sound model, with sound data, or train with precision=fp32"
        else:
            remedy = f"lower lr (now {step.lr:.3g}), lengthen the warm-up, or train with precision=fp32"
        return (
            f"step {step.index + 1}{where}: loss {step.loss}, gradient norm {step.grad_norm}, "
            f"and {PATIENCE} steps in a row were skipped: {remedy}"
        )


def train(
    model: nn.Module,
    batches: Callable[[int], Sequence[Batch]],
    objective: Objective,
    optimizer: Optimizer,
    schedule: Schedule,
    *,
    steps: int,
    start: int = 0,
    clip: float = 1.0,
    precision: torch.dtype = torch.float32,
    seed: int = 0,
    compiled: bool = False,
) -> Iterator[Step]:
    """Train by gradients from step `start` up to `steps`: `learn` with a `GradientLearner`, whose options these are."""
    learner = GradientLearner(model, objective, optimizer, clip=clip, precision=precision, compiled=compiled)
    return learn(learner, batches, schedule, steps=steps, start=start, seed=seed)


def learn(
    learner: Learner,
    batches: Callable[[int], Sequence[Batch]],
    schedule: Schedule,
    *,
    steps: int,
    start: int = 0,
    seed: int = 0,
    watch: Watch | None = None,
) -> Iterator[Step]:
    """From step `start` up to `steps`; each step learns from the micro-batches `batches(step)` as from one batch.

    Seeds torch's global generators at each step. A caller that stops early gives the `watch` that it goes on with.
    Errors: NextileError after five skipped steps in a row.
    """
    watch, every = watch or Watch(), 16 if learner.patient else 1
    with closing(prefetch(batches, start, steps)) as ahead:
        for index, micros in enumerate(ahead, start):
            began = time.perf_counter()
            seed_generators(mix(seed, index))
            factor = schedule.factor(index, steps)
            loss, norm, targets = learner.learn(micros, index, factor)
            step = Step(index, learner.lr * factor, targets, time.perf_counter() - began, loss, norm)
            watch.see(step, every)
            yield step
    watch.look()


def evaluate(
    model: nn.Module, batches: Iterable[Batch], objective: Objective, *, precision: torch.dtype = torch.float32
) -> tuple[float, int]:
    """The objective's total nats over all batches, summed in float64, and how many targets were asked.

    The model is as it was afterwards. For a compiled evaluation pass `one_graph(objective)`, the same one each time.
    """
    measure = Measure(model, objective, precision)
    training, totals, asked = model.training, [], 0
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                totals.append(measure.nats(batch))
                asked += batch.weight
    finally:
        model.train(training)
    return math.fsum(torch.stack(totals).tolist()) if totals else 0.0, asked


def seed_generators(seed: int) -> None:
    """As `torch.manual_seed`, which takes half a millisecond to ask after devices that nobody uses."""
    torch.default_generator.manual_seed(seed)
    for kind in (torch.cuda, torch.xpu):
        if kind.is_initialized():
            kind.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def mix(seed: int, step: int) -> int:
    """A seed for this step: 63 bits, unlike its neighbours' (the finalizer of SplitMix64, twice)."""
    return _scramble(_scramble(seed) + step) >> 1


def _scramble(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31
