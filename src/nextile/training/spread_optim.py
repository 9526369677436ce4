"""AdamW and Muon over a model that several processes hold.

Each process moves the pieces of parameters that it holds, as one process moves whole ones. Two things need the others:
the gradient's global norm, and Muon, whose matrices are gathered, orthogonalised by one process each, and exchanged.
Shapes: N matrices of R rows and C columns, W processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nextile.base.device import has_fast_bf16
from nextile.base.errors import NextileError
from nextile.training.graph import one_graph
from nextile.training.optim import (
    AdamW,
    AdamWRule,
    Muon,
    MuonRule,
    Pace,
    Part,
    Rule,
    groups,
    orthogonalize,
    pace_of,
    tamed,
)
from nextile.training.parallel import World
from nextile.training.pieces import box_of, holders, is_divided, like, local, whole
from nextile.training.spread import reshard

ROUND = 1 << 28  # bytes of whole matrices that a process holds at a time

Named = dict[str, nn.Parameter]


# --- Muon -------------------------------------------------------------------------------------------------------------


def shares(number: int, world: World) -> tuple[int, slice]:
    """How many of N matrices a process works on at most, and which are this one's."""
    each = -(-number // world.size)
    return each, slice(min(number, world.rank * each), min(number, (world.rank + 1) * each))


def orthogonalized_together(matrices: Tensor, world: World, dtype: torch.dtype) -> Tensor:
    """`orthogonalize`d matrices (N, R, C), of which each process works on N / W: (N, R, C) of that type.

    What is exchanged has the type of the products: no bit of the result is lost.
    """
    import torch.distributed as dist

    number = len(matrices)
    each, mine = shares(number, world)
    sent = matrices.new_zeros(each, *matrices.shape[1:], dtype=dtype)
    if mine.stop > mine.start:
        sent[: mine.stop - mine.start] = orthogonalize(matrices[mine], dtype)
    found = sent.new_empty(world.size * each, *sent.shape[1:])
    dist.all_gather(list(found.split(each)), sent)
    return found[:number]


@dataclass(frozen=True)
class SharedMuonRule(MuonRule):
    """Muon over matrices that may be divided; all have the shape of `example`, and lie as it does."""

    example: Tensor
    world: World

    def shape_of(self, gradient: Tensor) -> tuple[int, int]:
        rows, columns = self.example.shape
        return rows, columns

    def directions(self, ahead: Tensor) -> Tensor:
        """This process's pieces (N, r, c) of where the weights move; in the memory of `ahead`."""
        box = box_of(self.example)
        for some in ahead.split(self._at_a_time()):
            matrices = torch.stack([whole(like(self.example, one)) for one in some]) if self._divided else some
            straight = orthogonalized_together(matrices, self.world, self.dtype)
            for one, found in zip(some, straight, strict=True):
                one.copy_(box.of(found))
        return ahead

    @property
    def _divided(self) -> bool:
        return is_divided(self.example)

    def _at_a_time(self) -> int:
        """Matrices: all, or as many as may be whole at once."""
        rows, columns = self.example.shape
        return self.world.size * max(1, ROUND // (4 * rows * columns * self.world.size))


# --- parts ------------------------------------------------------------------------------------------------------------


class Held(NamedTuple):
    """A part, with the parameters whose pieces are its members."""

    part: Part
    parameters: Named
    copies: dict[str, int]  # how many processes hold the same piece

    def take_gradients(self) -> None:
        """Let each piece have its part of the gradient."""
        for name, parameter in self.parameters.items():
            self.part.members[name].grad = None if parameter.grad is None else _local_gradient(parameter)

    def square(self, gradient: Tensor) -> Tensor:
        """The sum of the squares of the joined gradient, (), each number counted as 1 / as many as hold it."""
        squares = [view.square().sum() / self.copies[name] for name, view in self.part.split(gradient)]
        return torch.stack(squares).sum()

    def state(self) -> dict[str, Tensor]:
        """The buffers by "<buffer>.<parameter>", divided as the parameters are."""
        return {
            f"{kind}.{name}": like(self.parameters[name], view)
            for kind, buffer in zip(self.part.rule.buffers, self.part.buffers, strict=True)
            for name, view in self.part.split(buffer)
        }


def _local_gradient(parameter: nn.Parameter) -> Tensor:
    gradient = parameter.grad
    assert gradient is not None
    if not is_divided(parameter):
        return gradient
    if gradient.placements != parameter.placements:  # type: ignore[attr-defined]
        gradient = gradient.redistribute(placements=parameter.placements)  # type: ignore[attr-defined]
    return local(gradient)


def _held(rule: Rule, named: Named, world: World, stacked: bool = False) -> Held:
    members = {name: local(parameter) for name, parameter in named.items()}
    shape = next(iter(members.values())).shape if stacked else None
    part = Part(rule, members, shape)
    return Held(part, named, {name: holders(parameter, world).number for name, parameter in named.items()})


def _parts(model: nn.Module, settings: AdamW | Muon, world: World) -> list[Held]:
    named = {group.role: dict(zip(group.names, group.parameters, strict=True)) for group in groups(model)}
    matrices, tables, vectors = (named.get(role, {}) for role in ("matrix", "embedding", "vector"))
    found = _stacks(matrices, settings, world) if isinstance(settings, Muon) else []
    decayed = tables if isinstance(settings, Muon) else matrices | tables
    for members, decay in ((decayed, settings.weight_decay), (vectors, 0.0)):
        if members:
            found.append(_held(AdamWRule(settings.lr, decay, settings.betas, settings.eps), members, world))
    return found


def _stacks(matrices: Named, settings: Muon, world: World) -> list[Held]:
    """Muon's parts: a stack for each shape and way in which matrices of it lie."""
    alike: dict[tuple[torch.Size, object], Named] = {}
    for name, matrix in matrices.items():
        alike.setdefault((matrix.shape, getattr(matrix, "placements", None)), {})[name] = matrix
    found = []
    for named in alike.values():
        example = next(iter(named.values()))
        dtype = torch.bfloat16 if has_fast_bf16(local(example).device) else torch.float32
        rule = SharedMuonRule(settings, dtype, example, world)
        found.append(_held(rule, named, world, stacked=True))
    return found


# --- the optimizer ----------------------------------------------------------------------------------------------------


def _directed(rule: Rule, gradient: Tensor, buffers: Sequence[Tensor], norm: Tensor, clip: float, pace: Pace) -> None:
    """A part of the gradient, of which the whole has this norm, becomes the part's step, in place."""
    rule.step(tamed(gradient, norm, clip, pace), buffers, pace)


class SharedOptimizer:
    """`Optimizer` for a model over the mesh; its processes must ask everything together."""

    def __init__(self, model: nn.Module, settings: AdamW | Muon | None, world: World, *, compiled: bool = False):
        reshard(model)
        self.settings, self.world = settings or Muon(), world
        self.held = _parts(model, self.settings, world)
        device = local(next(model.parameters())).device
        self.count = torch.zeros((), dtype=torch.int64, device=device)  # steps applied
        self._factor = torch.zeros((), dtype=torch.float64, device=device)
        self._alone = one_graph(_directed) if compiled else _directed  # for rules that need no other process

    @property
    def kind(self) -> str:
        """Whose state it is."""
        return self.settings.type

    def zero_grad(self) -> None:
        """Forget the gradients, and their memory."""
        for held in self.held:
            for name, parameter in held.parameters.items():
                parameter.grad = held.part.members[name].grad = None

    @torch.no_grad()
    def step(self, factor: float, *, clip: float = math.inf, loss: Tensor | None = None) -> Tensor:
        """As `Optimizer.step`; the gradients are summed over the processes already, and `loss` is of all."""
        for held in self.held:
            held.take_gradients()
        if all(piece.grad is None for held in self.held for piece in held.part.members.values()):
            raise NextileError("no parameter has a gradient: call backward before step, and freeze less")
        gradients = [held.part.gradient() for held in self.held]
        squares = [held.square(gradient) for held, gradient in zip(self.held, gradients, strict=True)]
        norm = self.world.sum(torch.stack(squares).sum()).sqrt()
        self._factor.fill_(factor)
        pace = pace_of(norm, norm if loss is None else loss, self._factor, self.count)
        for held, gradient in zip(self.held, gradients, strict=True):
            directed = _directed if isinstance(held.part.rule, SharedMuonRule) else self._alone
            directed(held.part.rule, gradient, held.part.buffers, norm, clip, pace)
            held.part.move(gradient, pace.factor)
        return norm

    def state(self) -> dict[str, Tensor]:
        """Everything but the weights, by "<buffer>.<parameter>", and "count"; the tensors themselves, not copies."""
        found = {"count": self.count}
        for held in self.held:
            found |= held.state()
        return found
