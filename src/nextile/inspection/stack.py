"""One stack of a model as it reads one input: each question is a forward pass with only what is asked captured.

Shapes: L layers, H heads, T time asked, S time seen, D width, E head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, cast

import torch
from torch import Tensor

from nextile.base.errors import UsageError
from nextile.generation.decode import evaluating
from nextile.inspection.named import NamedArray, named
from nextile.nn.stack import TransformerStack
from nextile.nn.tap import record

PARTS = ("self_attention", "cross_attention", "feed_forward")


@dataclass(frozen=True)
class Stack:
    """Where a stack lies in its model, and the forward pass that it is part of."""

    model: Any
    path: str  # of the stack
    embed: str  # of what makes vectors for it
    run: Callable[..., object]
    inputs: Callable[[], tuple[Any, ...]]  # of `run`, made only when a pass is due, before anything is captured

    @property
    def module(self) -> TransformerStack:
        """The stack itself."""
        return cast(TransformerStack, self.model.get_submodule(self.path))

    @property
    def depth(self) -> int:
        """L."""
        return len(self.module.blocks)

    @property
    def parts(self) -> tuple[str, ...]:
        """What adds to the stream in each block, in order."""
        block = self.module.blocks[0]
        return tuple(part for part in PARTS if getattr(block, part) is not None)

    def captured(self, *names: str, heads: Sequence[int] | None = None) -> dict[str, Tensor]:
        """One forward pass -> what was recorded under these names, each (1, ...) or without a batch."""
        inputs = self.inputs()
        with evaluating(self.model), torch.no_grad(), record(self.model, *names, heads=heads) as seen:
            self.run(*inputs)
        return seen

    def all_of(self, *names: str, heads: Sequence[int] | None = None) -> list[Tensor]:
        """The same of parts that every pass reaches. Errors: UsageError for one that is switched off."""
        seen = self.captured(*names, heads=heads)
        return [found_in(seen, name) for name in names]

    def of_layers(self, what: str, layer: int | None = None, heads: Sequence[int] | None = None) -> list[Tensor]:
        """What each block, or one, calls so: (...) each, without the batch."""
        layers = range(self.depth) if layer is None else [layer]
        names = [f"{self.path}.blocks.{number}.{what}" for number in layers]
        return [found[0] for found in self.all_of(*names, heads=heads)]

    def layer(self, number: int) -> int:
        """The number of a layer, counted from 0. Errors: UsageError for one that there is not."""
        return within(number, self.depth, "layer")


def found_in(seen: Mapping[str, Tensor], name: str) -> Tensor:
    """What was recorded under a name. Errors: UsageError for a part that is switched off (`nn.silence`)."""
    if name not in seen:
        raise UsageError(f"{name} was not computed, since it is switched off: look at it where it is not silenced")
    return seen[name]


def within(number: int, count: int, what: str) -> int:
    """A number below `count`; negative ones count from the end. Errors: UsageError for another."""
    if isinstance(number, bool) or not isinstance(number, Integral) or not -count <= number < count:
        raise UsageError(f"{what} {number} is not there: there are {count}, from 0 to {count - 1}")
    return int(number) % count


def positive(number: int, what: str) -> int:
    """A count. Errors: UsageError for one below 1."""
    if number < 1:
        raise UsageError(f"{what} is {number}: ask for at least 1")
    return number


@dataclass(frozen=True)
class Embedding:
    """What comes into a stack: tokens + positions = sum, which `entered` may norm."""

    tokens: NamedArray  # (position, width), scaled, with the vector of their text's number where there is one
    positions: NamedArray | None  # (position, width); None where positions are no vectors, as rotary ones are none
    sum: NamedArray
    entered: NamedArray  # what the first block reads


def embedding(stack: Stack) -> Embedding:
    """The vectors of the input, before any block."""
    names = [f"{stack.embed}.scaled", f"{stack.embed}.places", f"{stack.path}.entered"]
    seen = stack.captured(*names)
    tokens, places, entered = (seen.get(name) for name in names)
    assert tokens is not None
    assert entered is not None
    together = tokens if places is None else tokens + places
    tokens, together, entered = (each.reshape(-1, each.shape[-1]) for each in (tokens, together, entered))
    where = None if places is None else named(places.reshape(-1, places.shape[-1]), "position", "width")
    return Embedding(
        named(tokens, "position", "width"), where, named(together, "position", "width"),
        named(entered, "position", "width"),
    )  # fmt: skip


def stream(stack: Stack) -> Tensor:
    """What comes into the stack, and what each block passes on: (L + 1, T, D)."""
    names = [f"{stack.path}.entered", *(f"{stack.path}.blocks.{layer}.stream" for layer in range(stack.depth))]
    return torch.cat(stack.all_of(*names))


def added(stack: Stack) -> NamedArray:
    """How long the vectors are that each part of each block adds, in the order of `Stack.parts`.

    Where the norm stands after the sum (2017), as they are added, before that norm.
    """
    names = [f"{stack.path}.blocks.{n}.{part}.added" for n in range(stack.depth) for part in stack.parts]
    lengths = torch.stack([_length(found[0]) for found in stack.all_of(*names)])  # (L * parts, T)
    return named(lengths.unflatten(0, (stack.depth, -1)), "layer", "part", "position")


def _length(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32)).norm(dim=-1)
