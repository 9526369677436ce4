"""Where a token stands: angles for queries and keys, biases on the scores, or vectors added to the embedding.

Shapes: T time asked, S time seen, H heads, E head width, D width. Positions are integers, (T,) or, row by row, (B, T);
a distance is key position minus query position, (T, S) or (B, T, S): negative looks back. What is not trained is
computed when it is needed, so that a checkpoint is its parameters and nothing else.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from nextile.nn import specs
from nextile.nn.linear import held, in_type
from nextile.nn.table import Embedding

Rotate = Callable[[Tensor], Tensor]


class Turns(NamedTuple):
    """What frequencies follow from: pair i of R/2 turns by base^(-exponent_i) a token."""

    exponent: Tensor  # (R/2,), 2i/R
    base: float
    positions: Tensor  # (T,) or (B, T)

    def frequencies(self) -> Tensor:
        """Those of the base."""
        return 1.0 / self.base**self.exponent

    def length(self) -> Tensor:
        """Of the text up to the last token asked, (1,), or, so that no row depends on those beside it, (B, 1, 1)."""
        found = self.positions.amax(-1, keepdim=True) + 1
        return found[..., None] if found.dim() == 2 else found


def as_they_are(turns: Turns, scaling: None) -> Tensor:
    """The frequencies that the base gives."""
    return turns.frequencies()


def divided(turns: Turns, scaling: specs.LinearScaling) -> Tensor:
    """All slower by the same factor (Chen et al. 2023)."""
    return turns.frequencies() / scaling.factor


def slow_divided(given: Turns, scaling: specs.Llama3Scaling) -> Tensor:
    """Those slower that turn seldom in the original context, the more the slower they are (Dubey et al. 2024)."""
    frequencies = given.frequencies()
    turns = scaling.original * frequencies / (2 * math.pi)
    kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0.0, 1.0)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def blended(turns: Turns, scaling: specs.YarnScaling) -> Tensor:
    """As before, blended in a straight line between two pairs (Peng et al. 2023)."""
    frequencies, pairs = turns.frequencies(), len(turns.exponent)

    def pair(count: float) -> float:
        """The number, with a fraction, of the one that turns so often in the original context."""
        return pairs * math.log(scaling.original / (count * 2 * math.pi)) / math.log(turns.base)

    first, last = pair(scaling.fast), pair(scaling.slow)
    if scaling.whole:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    last += 0.001 if first == last else 0  # a step
    number = torch.arange(pairs, device=frequencies.device, dtype=torch.float32)
    kept = 1 - ((number - first) / (last - first)).clamp(0.0, 1.0)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def stretched(turns: Turns, scaling: specs.DynamicScaling) -> Tensor:
    """Of a base that grows when the text outgrows the context: (R/2,), or row by row (B, 1, R/2)."""
    length = turns.length().clamp(min=scaling.original)
    beyond = scaling.factor * length / scaling.original - (scaling.factor - 1)
    pairs = len(turns.exponent)
    return 1.0 / (turns.base * beyond ** (pairs / (pairs - 1))) ** turns.exponent


def searched(turns: Turns, scaling: specs.LongScaling) -> Tensor:
    """Each by its own divisor, for short texts or for long ones: (R/2,), or row by row (B, 1, R/2)."""
    frequencies = turns.frequencies()
    short, long = (frequencies.new_tensor(divisors) for divisors in (scaling.short, scaling.long))
    return frequencies / torch.where(turns.length() > scaling.original, long, short)


def gain_of(scaling: specs.RotaryScaling | None) -> float:
    """By which turned queries and keys are multiplied."""
    if isinstance(scaling, specs.YarnScaling) and scaling.gain is None:
        return 0.1 * math.log(scaling.factor) + 1.0
    return getattr(scaling, "gain", 1.0)


SCALINGS: dict[type, Callable[..., Tensor]] = {
    type(None): as_they_are,
    specs.LinearScaling: divided,
    specs.Llama3Scaling: slow_divided,
    specs.YarnScaling: blended,
    specs.DynamicScaling: stretched,
    specs.LongScaling: searched,
}


class Turn(torch.autograd.Function):
    """Pairs (x_i, x_{i+R/2}) turned by angles; the gradient is turned back, in one pass as fast as this one."""

    @staticmethod
    def forward(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(..., T, R) and what broadcasts with (..., T, R/2) -> (..., T, R)."""
        a, b = x.chunk(2, dim=-1)
        return in_type(torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1), x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        _, cos, sin = inputs
        ctx.save_for_backward(cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return cast("Tensor", Turn.apply(grads[0], cos, -sin)), None, None


class RotaryPosition(nn.Module):
    """Turns the pairs (x_i, x_{i+R/2}) by position / base^(2i/R) (Su et al. 2021, in GPT-NeoX's half-split layout).

    R: the part of the head width E that is turned, its beginning; often all of it.
    """

    def __init__(self, spec: specs.Rotary, head_width: int):
        super().__init__()
        self.base, self.scaling, self.turned = spec.base, spec.scaling, spec.turned(head_width)
        self.all_turned, self.gain = self.turned == head_width, gain_of(spec.scaling)

    def forward(self, positions: Tensor) -> Rotate:
        """The turn for these positions, to be applied to (B, H, T, E)."""
        exponent = torch.arange(0, self.turned, 2, device=positions.device, dtype=torch.float32) / self.turned
        frequencies = SCALINGS[type(self.scaling)](Turns(exponent, self.base, positions), self.scaling)
        angle = positions[..., None].float() * frequencies  # (T, R/2) or (B, T, R/2)
        angle = angle[:, None] if angle.dim() == 3 else angle  # (B, 1, T, R/2): the same for every head
        cos, sin = angle.cos(), angle.sin()
        if self.gain != 1.0:
            cos, sin = cos * self.gain, sin * self.gain
        cos, sin = held(cos), held(sin)  # else a compiled graph reckons them anew for each head of each row

        def rotate(x: Tensor) -> Tensor:
            return cast("Tensor", Turn.apply(x, cos, sin))

        def rotate_beginning(x: Tensor) -> Tensor:
            return torch.cat((rotate(x[..., : self.turned]), x[..., self.turned :]), dim=-1)

        return rotate if self.all_turned else rotate_beginning


class RelativePositionBias(nn.Module):
    """A trained number per head and bucket of distance: near ones exact, far ones in log-spaced buckets (T5)."""

    def __init__(self, spec: specs.RelativeBias, heads: int, causal: bool):
        super().__init__()
        self.buckets, self.max_distance, self.causal = spec.buckets, spec.max_distance, causal
        self.table = Embedding(spec.buckets, heads)

    def forward(self, distance: Tensor) -> Tensor:
        """(..., T, S) distances -> (..., H, T, S) biases."""
        return self.table(self._bucket(distance)).movedim(-1, -3)

    def _bucket(self, distance: Tensor) -> Tensor:
        buckets, offset = self.buckets, torch.zeros_like(distance)
        if self.causal:
            away = (-distance).clamp(min=0)
        else:  # one half of the buckets looks back, the other ahead
            buckets //= 2
            offset, away = (distance > 0) * buckets, distance.abs()
        exact = buckets // 2
        ratio = torch.log(away.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        far = exact + (ratio * (buckets - exact)).long()
        return offset + torch.where(away < exact, away, far.clamp(max=buckets - 1))


class AlibiBias(nn.Module):
    """A penalty that grows with the distance, with slopes 2^(-8i/H) (Press et al. 2022)."""

    def __init__(self, spec: specs.Alibi, heads: int, causal: bool):
        super().__init__()
        self.slopes = self._slopes(heads)

    def forward(self, distance: Tensor) -> Tensor:
        """(..., T, S) distances -> (..., H, T, S) biases."""
        slopes = torch.tensor(self.slopes, device=distance.device)  # (H,)
        return -slopes[:, None, None] * distance.abs().unsqueeze(-3)

    @staticmethod
    def _slopes(heads: int) -> list[float]:
        power = 2 ** math.floor(math.log2(heads))
        slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
        between = [2 ** (-8 * (i + 0.5) / power) for i in range(heads - power)]  # of twice as many heads
        return slopes + between


BIASES = {specs.RelativeBias: RelativePositionBias, specs.Alibi: AlibiBias}


def within(segments: Tensor) -> Tensor:
    """Where each token stands in its own segment, which need not begin where the row does: (B, T) -> (B, T)."""
    same = segments[:, :, None] == segments[:, None, :]
    return same.tril(-1).sum(-1)  # as many as stand before it


def sinusoid(positions: Tensor, width: int) -> Tensor:
    """(..., D): sines of pos / 10000^(2i/D) in the first half, cosines in the second.

    In float64, rounded once: an angle of 500 in float32 is off by 3e-5.
    """
    exact = torch.float32 if positions.device.type == "mps" else torch.float64  # which has no float64
    exponent = torch.arange(0, width, 2, device=positions.device, dtype=exact) / width
    angle = positions[..., None].to(exact) * 10_000.0**-exponent  # (..., ceil(D/2))
    return torch.cat((angle.sin(), angle.cos()), dim=-1)[..., :width]
