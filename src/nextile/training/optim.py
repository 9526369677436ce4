"""AdamW and Muon behind one facade; every parameter belongs to exactly one group.

Shapes: N matrices of R rows and C columns.
The update is one function of tensors without a question to the device: it runs as it is, or as one compiled graph. A
step whose loss or gradient is not finite changes nothing; that too is arithmetic and no branch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from nextile.base.config import Settings
from nextile.base.device import has_fast_bf16
from nextile.base.errors import NextileError
from nextile.training.graph import one_graph
from nextile.training.pieces import local, mine

Rate = Annotated[float, Field(gt=0.0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Decay = Annotated[float, Field(ge=0.0)]


class AdamW(Settings):
    """AdamW for every parameter (Loshchilov and Hutter 2019); what has two or more dimensions decays."""

    type: Literal["adamw"] = "adamw"
    lr: Rate = 1e-3  # for models up to some ten million parameters; larger ones want less
    betas: tuple[Share, Share] = (0.9, 0.95)  # 0.95 and not 0.999: short runs must forget their start
    eps: Rate = 1e-8
    weight_decay: Decay = 0.1


class Muon(Settings):
    """Muon for the hidden matrices (Jordan et al. 2024), AdamW for the rest.

    matrix_lr is Jordan's: the update has a fixed size whatever the gradient's, so it hardly depends on the model. The
    rest is tables and gains, of which a batch touches a part: they stand three times the rate of plain AdamW.
    """

    type: Literal["muon"] = "muon"
    matrix_lr: Rate = 0.02
    momentum: Share = 0.95
    momentum_warmup: Annotated[int, Field(ge=0)] = 0  # steps over which it rises to that from 0.85 (Jordan et al. 2024)
    lr: Rate = 3e-3
    betas: tuple[Share, Share] = (0.9, 0.95)
    eps: Rate = 1e-8
    weight_decay: Decay = 0.1


OptimizerSettings = Annotated[AdamW | Muon, Field(discriminator="type")]

Role = Literal["matrix", "embedding", "vector"]
EARLY_MOMENTUM = 0.85  # from which Muon's rises, where it is warmed up


@dataclass(frozen=True)
class Group:
    """Parameters of one role: hidden matrices of the stack; tables and heads; gains and biases."""

    role: Role
    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]


def groups(model: nn.Module) -> list[Group]:
    """The trainable parameters by role, tied ones once and under their first name; together they are all of them."""
    members: dict[Role, dict[str, nn.Parameter]] = {"matrix": {}, "embedding": {}, "vector": {}}
    for name, parameter in _trainable(model).items():
        members[_role(model, name, parameter)][name] = parameter
    found = [Group(role, tuple(named), tuple(named.values())) for role, named in members.items() if named]
    check_partition(model, found)
    return found


def check_partition(model: nn.Module, found: Sequence[Group]) -> None:
    """Raise NextileError, naming the first, unless each trainable parameter is in exactly one group."""
    names = [name for group in found for name in group.names]
    wrong = [name for name in _trainable(model) if names.count(name) != 1] + sorted(set(names) - set(_trainable(model)))
    if wrong:
        raise NextileError(f"{len(wrong)} parameters are not in exactly one group, first {wrong[0]!r}: mend groups()")


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _role(model: nn.Module, name: str, parameter: nn.Parameter) -> Role:
    if parameter.ndim < 2:
        return "vector"
    owner, _, leaf = name.rpartition(".")
    hidden = (
        "blocks" in owner.split(".") and leaf == "weight" and not isinstance(model.get_submodule(owner), nn.Embedding)
    )
    return "matrix" if hidden and parameter.ndim == 2 else "embedding"


class Pace(NamedTuple):
    """What all rules share in one step, as () tensors: so that nothing is compiled anew when they change."""

    factor: Tensor  # the schedule's; 0 when the step is not applied
    applied: Tensor  # 1; 0 when something was not finite
    count: Tensor  # steps applied, this one included


def pace_of(norm: Tensor, loss: Tensor, factor: Tensor, count: Tensor) -> Pace:
    """That of a step whose gradient has this norm; it is counted, in place, when it is applied."""
    finite = norm.isfinite() & loss.isfinite()
    count.add_(finite)
    return Pace(factor * finite, finite.to(factor.dtype), (count + ~finite).to(factor.dtype))


def tamed(gradient: Tensor, norm: Tensor, clip: float, pace: Pace) -> Tensor:
    """A part of the gradient, in place, as if the whole had a norm of `clip` at most; 0 in a step not applied."""
    return gradient.mul_((clip / (norm + 1e-6)).clamp(max=1.0)).masked_fill_(pace.applied == 0, 0.0)


@dataclass(frozen=True)
class AdamWRule:
    """First and second moments of the gradient, start corrected, decay apart (Loshchilov and Hutter 2019)."""

    lr: float
    decay: float
    betas: tuple[float, float]
    eps: float

    buffers = ("first", "second")

    def step(self, gradient: Tensor, buffers: Sequence[Tensor], pace: Pace) -> None:
        """The gradient becomes what is to be subtracted from the weights, in place; all of one shape, whichever."""
        first, second = buffers
        beta1, beta2 = self.betas
        first.mul_(1 - (1 - beta1) * pace.applied).add_(gradient, alpha=1 - beta1)
        second.mul_(1 - (1 - beta2) * pace.applied).addcmul_(gradient, gradient, value=1 - beta2)
        scale = second.sqrt().div_((1 - beta2**pace.count).sqrt()).add_(self.eps)
        torch.div(first, scale, out=gradient).mul_(self.lr * pace.factor / (1 - beta1**pace.count))


@dataclass(frozen=True)
class MuonRule:
    """Momentum whose singular values are made one: every direction moves alike (Jordan et al. 2024)."""

    settings: Muon
    dtype: torch.dtype  # of the matrix products

    buffers = ("momentum",)

    @property
    def lr(self) -> float:
        """The peak rate."""
        return self.settings.matrix_lr

    @property
    def decay(self) -> float:
        """Of the weights, by the rate."""
        return self.settings.weight_decay

    def step(self, gradient: Tensor, buffers: Sequence[Tensor], pace: Pace) -> None:
        """The gradient (N, R, C) becomes what is to be subtracted from the weights, in place."""
        (momentum,) = buffers
        kept = self.kept(pace.count)
        momentum.lerp_(gradient, ((1 - kept) * pace.applied).to(gradient.dtype))
        ahead = gradient.lerp(momentum, kept.to(gradient.dtype))  # Nesterov: the gradient counts once more
        rows, columns = self.shape_of(gradient)
        gradient.copy_(self.directions(ahead)).mul_(self.lr * max(1.0, rows / columns) ** 0.5 * pace.factor)

    def kept(self, count: Tensor) -> Tensor:
        """How much of the momentum the step with this number, counted from 1, keeps: ()."""
        last = self.settings.momentum
        if not self.settings.momentum_warmup:
            return torch.full_like(count, last)
        first = min(EARLY_MOMENTUM, last)
        return first + (last - first) * (count / self.settings.momentum_warmup).clamp(max=1.0)

    def shape_of(self, gradient: Tensor) -> tuple[int, int]:
        """R and C of the matrices, of which a gradient may be given in pieces."""
        return gradient.shape[-2], gradient.shape[-1]

    def directions(self, ahead: Tensor) -> Tensor:
        """Where the weights move, (N, R, C): what is ahead, made orthogonal."""
        return orthogonalize(ahead, self.dtype)


Rule = AdamWRule | MuonRule


def orthogonalize(x: Tensor, dtype: torch.dtype, steps: int = 5) -> Tensor:
    """(N, R, C) = U S Vᵀ -> U S' Vᵀ with S' about 0.7..1.2, by the quintic steepest at zero (Jordan et al. 2024)."""
    if x.shape[-2] > x.shape[-1]:
        return orthogonalize(x.mT, dtype, steps).mT
    a, b, c = 3.4445, -4.7750, 2.0315
    y = (x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)).to(dtype)
    for _ in range(steps):
        gram = y @ y.mT  # (N, R, R)
        y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return y.to(x.dtype)


class Part:
    """Parameters that one rule moves as one tensor: stacked when `shape` is given, which is theirs, else laid flat.

    One tensor, because an update of a hundred is a hundred times the launches, or a minute of compiling.
    """

    def __init__(self, rule: Rule, members: Mapping[str, Tensor], shape: torch.Size | None = None):
        self.rule, self.members, self.shape = rule, members, shape
        weights = list(members.values())
        self.dtype = torch.float32  # at least: running means drown in bfloat16's eight bits
        for weight in weights:
            self.dtype = torch.promote_types(self.dtype, weight.dtype)
        total = (len(weights), *shape) if shape else (sum(weight.numel() for weight in weights),)
        device = weights[0].device
        self.buffers = [torch.zeros(total, dtype=self.dtype, device=device) for _ in rule.buffers]
        self.joined = torch.empty(total, dtype=self.dtype) if device.type == "cpu" else None  # fresh pages cost time

    def gradient(self) -> Tensor:
        """All gradients as one tensor that may be written to, 0 where there is none."""
        found = [w.new_zeros(w.shape) if w.grad is None else w.grad for w in self.members.values()]
        if self.shape:
            return torch.stack(found, out=self.joined).to(self.dtype)
        return torch.cat([gradient.flatten() for gradient in found], out=self.joined).to(self.dtype)

    def split(self, joined: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Views of a joined tensor, each by its parameter's name and in its shape."""
        sizes = [weight.numel() for weight in self.members.values()]
        for (name, weight), view in zip(self.members.items(), joined.reshape(-1).split(sizes), strict=True):
            yield name, view.view(weight.shape)

    def move(self, step: Tensor, factor: Tensor) -> None:
        """Subtract each parameter's share of the step, after the decay; what has no gradient stays."""
        keep = (1 - self.rule.lr * self.rule.decay * factor).to(self.dtype)
        both = [(self.members[name], change) for name, change in self.split(step)]
        both = [(weight, change) for weight, change in both if weight.grad is not None]
        alike = [(weight, change) for weight, change in both if weight.dtype == self.dtype]
        if alike:  # one call for all of them: a call for each takes longer than to move a small one
            weights, changes = map(list, zip(*alike, strict=True))
            torch._foreach_mul_(weights, keep)  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_sub_(weights, changes)  # pyright: ignore[reportPrivateImportUsage]
        for weight, change in both:
            if weight.dtype != self.dtype:
                weight.mul_(keep).sub_(change)


def _parts(model: nn.Module, settings: AdamW | Muon) -> list[Part]:
    members = {group.role: dict(zip(group.names, group.parameters, strict=True)) for group in groups(model)}
    matrices, tables, vectors = (members.get(role, {}) for role in ("matrix", "embedding", "vector"))
    decayed = tables if isinstance(settings, Muon) else matrices | tables
    found = _stacks(matrices, settings) if isinstance(settings, Muon) else []
    for named, decay in ((decayed, settings.weight_decay), (vectors, 0.0)):
        if named:
            found.append(Part(AdamWRule(settings.lr, decay, settings.betas, settings.eps), named))
    return found


def _stacks(matrices: dict[str, nn.Parameter], settings: Muon) -> list[Part]:
    """Muon's parts: a stack of matrices for each shape."""
    by_shape: dict[torch.Size, dict[str, nn.Parameter]] = {}
    for name, matrix in matrices.items():
        by_shape.setdefault(matrix.shape, {})[name] = matrix
    found = []
    for shape, named in by_shape.items():
        fast = has_fast_bf16(next(iter(named.values())).device)
        dtype = torch.bfloat16 if fast else torch.float32
        found.append(Part(MuonRule(settings, dtype), named, shape))
    return found


Work = list[tuple[Rule, Tensor, list[Tensor]]]  # a rule, its joined gradient, its buffers


def _update(work: Work, clip: float, factor: Tensor, loss: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The arithmetic of a step: gradients become steps in place. Returns the gradient's norm and the factor applied."""
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for _, gradient, _ in work]))
    pace = pace_of(norm, loss, factor, count)
    for rule, gradient, buffers in work:
        rule.step(tamed(gradient, norm, clip, pace), buffers, pace)
    return norm, pace.factor


class Optimizer:
    """AdamW or Muon over a model's trainable parameters, as its settings say."""

    def __init__(self, model: nn.Module, settings: AdamW | Muon | None = None, *, compiled: bool = False):
        self.settings = settings or Muon()
        self.parts = _parts(model, self.settings)
        device = next(model.parameters()).device
        self.count = torch.zeros((), dtype=torch.int64, device=device)  # steps applied
        wide = torch.float32 if device.type == "mps" else torch.float64  # for powers of the betas
        self._factor = torch.zeros((), dtype=wide, device=device)
        self._update = one_graph(_update) if compiled else _update

    @property
    def kind(self) -> str:
        """Whose state it is."""
        return self.settings.type

    def zero_grad(self) -> None:
        """Forget the gradients, and their memory."""
        for part in self.parts:
            for parameter in part.members.values():
                parameter.grad = None

    @torch.no_grad()
    def step(self, factor: float, *, clip: float = math.inf, loss: Tensor | None = None) -> Tensor:
        """Move the parameters that have a gradient, at `factor` times the settings' rates.

        Gradients count as shrunk to a global norm of `clip`. When that norm, or `loss`, is not finite, nothing changes.
        Returns the norm before clipping, (), which the device may still be computing.
        """
        if all(weight.grad is None for part in self.parts for weight in part.members.values()):
            raise NextileError("no parameter has a gradient: call backward before step, and freeze less")
        work: Work = [(part.rule, part.gradient(), part.buffers) for part in self.parts]
        self._factor.fill_(factor)
        loss = self._factor if loss is None else loss.detach()
        norm, applied = self._update(work, clip, self._factor, loss, self.count)
        for part, (_, step, _) in zip(self.parts, work, strict=True):
            part.move(step, applied)
        return norm

    def state(self) -> dict[str, Tensor]:
        """Everything but the weights, by "<buffer>.<parameter>", and "count"; the tensors themselves, not copies."""
        kept = {
            f"{kind}.{name}": view
            for part in self.parts
            for kind, buffer in zip(part.rule.buffers, part.buffers, strict=True)
            for name, view in part.split(buffer)
        }
        return {"count": self.count, **kept}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave, exactly. Errors: NextileError naming the first key that does not fit."""
        copy_exactly(state, self.state(), "the optimizer's state")


@torch.no_grad()
def copy_exactly(source: Mapping[str, Tensor], target: Mapping[str, Tensor], what: str) -> None:
    """Copy tensors by name; NextileError, before anything is copied, when a name, shape or dtype differs."""
    for name in sorted(source.keys() ^ target.keys()):
        fault = "lacks" if name in target else "has an unknown"
        raise NextileError(f"{what} {fault} {name!r}: resume with the model and optimizer that wrote it")
    for name, tensor in target.items():
        found, wanted = (f"{t.dtype} {tuple(t.shape)}".removeprefix("torch.") for t in (source[name], tensor))
        if found != wanted:
            raise NextileError(f"{what} has {name!r} as {found} and not {wanted}: resume with what wrote it")
    for name, tensor in target.items():
        local(tensor).copy_(mine(source[name], tensor))
