"""The first steps of a run may be smaller: fewer rows, which learn as much while gradients agree, and shorter texts.

Batches that grow: Smith et al. 2018, McCandlish et al. 2018. Texts that grow: Li et al. 2022, "The stability-efficiency
dilemma". Both keep the order of the data, and a step stays a function of its number alone.
Shapes: B rows, T tokens, C texts that a row is read as.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated

import numpy as np
from pydantic import Field

from nextile.base.config import Settings
from nextile.base.errors import UsageError
from nextile.data.batches import Batch, MicroBatches

MOST = 8  # texts that a row is read as at first; then 4, then 2

Duration = Annotated[int, Field(ge=0, le=1 << 24)]


class Growth(Settings):
    """How long a run grows: in steps, since a run with a time limit does not know its length from the beginning."""

    batch: Duration = 0  # so long a step's parts (`accumulate`) become more, from one to all of them
    context: Duration = 0  # so long rows are read as 8, then 4, then 2 texts, a third of the time each


@dataclass(frozen=True)
class Growing:
    """The parts of a source's steps, of which the first steps take fewer, and whose rows are cut into shorter texts.

    parts: of each of the source's steps. Errors: UsageError where there is nothing that grows.
    """

    source: MicroBatches
    growth: Growth
    parts: int

    def __post_init__(self) -> None:
        if self.growth.batch and self.parts == 1:
            raise UsageError("growth.batch makes a step of fewer parts, and there is one: set accumulate=8, say")

    def __call__(self, step: int) -> list[Batch]:
        """The micro-batches of a step."""
        found = [self._part(number) for number in range(self._before(step), self._before(step + 1))]
        return [cut(batch, self.texts(step)) for batch in found]

    def named(self, step: int) -> str:
        """Of which of the source's steps they are parts."""
        first, last = self._before(step), self._before(step + 1) - 1
        names = [self.source.named(number) for number in dict.fromkeys((first // self.parts, last // self.parts))]
        return "; ".join(names) if last - first + 1 == self.parts else f"part of {'; '.join(names)}"

    def taken(self, step: int) -> int:
        """How many parts a step takes: 1 at first, all of them after `growth.batch` steps."""
        return self._before(step + 1) - self._before(step)

    def texts(self, step: int) -> int:
        """C: as how many texts a row is read."""
        return MOST >> (3 * step // self.growth.context) if step < self.growth.context else 1

    @cached_property
    def _grown(self) -> np.ndarray:
        """How many parts the steps 0 .. n - 1 have taken, for n up to the end of the growth: (growth.batch + 1,)."""
        steps = np.arange(1, self.growth.batch + 1)
        taken = -(-self.parts * steps // max(1, self.growth.batch))  # rounded up
        return np.concatenate([[0], np.cumsum(taken)])

    def _before(self, step: int) -> int:
        """How many parts the steps before this one have taken."""
        grown = min(step, self.growth.batch)
        return int(self._grown[grown]) + (step - grown) * self.parts

    def _part(self, number: int) -> Batch:
        """Of all parts of all of the source's steps, one after the other."""
        return self._whole(number // self.parts)[number % self.parts]

    @cached_property
    def _whole(self) -> Callable[[int], Sequence[Batch]]:
        """The source's steps, of which the last few are remembered: several steps take parts of the same."""
        return lru_cache(maxsize=2)(self.source)


def cut(batch: Batch, texts: int) -> Batch:
    """The same tokens as shorter texts, each row as C of them: (B, T) -> (B * C, T / C)."""
    if texts == 1:
        return batch
    tokens = batch.inputs
    if tokens.dim() != 2 or tokens.shape != batch.targets.shape or batch.beside:
        raise UsageError("growth.context is of windows of a text, and these rows are none: leave it out")
    if tokens.shape[1] % texts:
        raise UsageError(
            f"growth.context reads rows as {MOST}, 4 and 2 texts, and {tokens.shape[1]} tokens do not divide: "
            f"set context to a multiple of {MOST}"
        )
    shape = (-1, tokens.shape[1] // texts)
    return Batch(tokens.reshape(shape), batch.targets.reshape(shape), batch.weight)
