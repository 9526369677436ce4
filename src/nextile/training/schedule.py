"""The learning rate as a function of the step: pure, so that resuming is setting a number.

Every schedule is a factor in (0, 1] on the optimizer's rates. It first rises linearly over the warm-up, whose first
step already moves, and then does what its name says.
"""

import math
from typing import Annotated, Literal

from pydantic import Field

from nextile.base.config import Settings

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class _WarmUp(Settings):
    """What all schedules share: the way up."""

    warmup: Annotated[float, Field(ge=0.0)] = 0.02  # below 1: a part of the run; otherwise a number of steps

    def warmup_steps(self, steps: int) -> int:
        """The steps before the peak, out of `steps`; always fewer than all of them."""
        asked = self.warmup * steps if self.warmup < 1 else self.warmup
        return min(round(asked), steps - 1)

    def factor(self, step: int, steps: int) -> float:
        """The factor of step 0 <= step < steps."""
        rise = self.warmup_steps(steps)
        return (step + 1) / (rise + 1) if step < rise else self._after(step - rise, steps - rise)

    def _after(self, step: int, steps: int) -> float:
        """The factor `step` steps after the peak, of `steps` that are left there; 1 at step 0."""
        return 1.0


class Constant(_WarmUp):
    """Stays at the peak."""

    type: Literal["constant"] = "constant"


class Linear(_WarmUp):
    """Falls in a straight line to the floor: the best of the simple ones for a known length (Bergsma et al. 2025)."""

    type: Literal["linear"] = "linear"
    floor: Fraction = 0.0

    def _after(self, step: int, steps: int) -> float:
        return self.floor + (1 - self.floor) * (1 - step / steps)


class Cosine(_WarmUp):
    """Falls along half a cosine to the floor (Loshchilov and Hutter 2017)."""

    type: Literal["cosine"] = "cosine"
    floor: Fraction = 0.1

    def _after(self, step: int, steps: int) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * step / steps)) / 2


class InverseSquareRoot(_WarmUp):
    """Falls as 1/sqrt(step) from the end of the warm-up, whatever the run's length (Vaswani et al. 2017)."""

    type: Literal["inverse_sqrt"] = "inverse_sqrt"

    def factor(self, step: int, steps: int) -> float:
        peak = self.warmup_steps(steps) + 1
        return min((step + 1) / peak, math.sqrt(peak / (step + 1)))


class WarmupStableDecay(_WarmUp):
    """Stays at the peak and falls linearly over the last part, so that a run can be prolonged (Hu et al. 2024)."""

    type: Literal["wsd"] = "wsd"
    floor: Fraction = 0.0
    decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2  # the part of what follows the warm-up

    def _after(self, step: int, steps: int) -> float:
        left = (steps - step) / (self.decay * steps)
        return min(1.0, self.floor + (1 - self.floor) * left)


Schedule = Annotated[Constant | Linear | Cosine | InverseSquareRoot | WarmupStableDecay, Field(discriminator="type")]
