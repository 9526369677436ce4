"""Low-rank adapters: a built model becomes the same model beside a few numbers that are trained (Hu et al. 2021).

Shapes: I inputs, O outputs, R rank.
An adapted layer holds its base under `base` and its adapters by name under `adapters`; at most one of them is active.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from nextile.base.config import Settings
from nextile.base.errors import NextileError, UsageError
from nextile.nn.dropout import Dropout
from nextile.nn.feedforward import Stacked
from nextile.nn.head import LinearHead
from nextile.nn.linear import Linear, linear
from nextile.nn.quantize import QuantizedLinear, QuantizedStacked, replace

Rank = Annotated[int, Field(ge=1, le=1 << 14)]
Positive = Annotated[float, Field(gt=0.0)]

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
DEFAULT = "default"


class Lora(Settings):
    """Which layers are adapted, and by how much: y = base(x) + alpha / rank * up(down(dropout(x))).

    targets: our names of parts ("query", "key", "value", "out", "up", "gate", "down"; "self.query" and "cross.query"
    where both are) or of modules ("decoder.blocks.0.*"), `*` matches anything; none are all linear layers of the blocks
    but what chooses experts. Experts, whose matrices are stacked, are never adapted.
    """

    rank: Rank = 8
    alpha: Positive | None = None  # None: twice the rank, most recipes' choice; its ratio keeps the rate of one rank
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    targets: tuple[str, ...] = ()


# --- layers ---------------------------------------------------------------------------------------------------------


class Adapter(nn.Module):
    """alpha / rank * up(down(dropout(x))); begins as nothing, since `up` begins as zeros.

    The numbers are kept in float32, whatever the base is in, and multiplied in the dtype of x.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, alpha: float, dropout: float = 0.0):
        super().__init__()
        self.rank, self.alpha, self.scale = rank, alpha, alpha / rank
        self.dropout = Dropout(dropout)
        self.down = Linear(inputs, rank, bias=False)
        self.up = Linear(rank, outputs, bias=False)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """`down` uniform, as Kaiming's rule with a slope of √5 gives it (PEFT's and Hu et al.'s code); `up` zeros."""
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        narrow = linear(self.dropout(x), self.down.weight.to(x.dtype)) * self.scale  # (..., R)
        return linear(narrow, self.up.weight.to(narrow.dtype))

    def delta(self) -> Tensor:
        """What it adds to the matrix of its base, (O, I), at least in float32."""
        down, up = (
            layer.weight.to(torch.promote_types(layer.weight.dtype, torch.float32)) for layer in (self.down, self.up)
        )
        return self.scale * (up @ down)


class LoraLinear(nn.Module):
    """A linear layer, in numbers or packed, and what its active adapter adds."""

    def __init__(self, base: nn.Linear | QuantizedLinear):
        super().__init__()
        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.adapters = nn.ModuleDict()
        self.active: str | None = None

    @property
    def adapter(self) -> Adapter | None:
        """The active one."""
        return None if self.active is None else self.named(self.active)

    def named(self, name: str) -> Adapter:
        """One of its adapters."""
        return cast(Adapter, self.adapters[name])

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        y = self.base(x)
        return y if self.active is None else y + self.named(self.active)(x)


Layer = nn.Linear | QuantizedLinear | LoraLinear


# --- which layers ---------------------------------------------------------------------------------------------------


def adaptable(model: nn.Module) -> dict[str, Layer]:
    """The linear layers of a model by path, packed and adapted ones as well; an adapted one without what it holds."""
    held = tuple(f"{path}." for path in lora_parts(model))
    found = {path: module for path, module in model.named_modules() if _is_linear(module)}
    return {path: cast(Layer, module) for path, module in found.items() if not path.startswith(held)}


def _is_linear(module: nn.Module) -> bool:
    """Heads that do more than multiply are none, though they are subclasses."""
    plain = isinstance(module, nn.Linear) and type(module).forward in (nn.Linear.forward, Linear.forward)
    plain |= isinstance(module, LinearHead) and module.soft_cap is None
    return plain or isinstance(module, QuantizedLinear | LoraLinear)


def chosen(model: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """The paths that the targets name. Errors: UsageError for those that name none, with the names that there are."""
    layers = {path: _names(path) for path in adaptable(model) if "blocks" in path.split(".") or targets}
    if not targets:
        targets = ("*",)
        layers = {path: names for path, names in layers.items() if not path.endswith(".router")}
    idle = [target for target in targets if not any(_matches(names, target) for names in layers.values())]
    if idle:
        known = sorted({names[0] for names in layers.values()})
        stacked = any(isinstance(module, Stacked | QuantizedStacked) for module in model.modules())
        aside = "; its experts, whose matrices are stacked, are not adapted" if stacked else ""
        raise UsageError(
            f"no linear layer is called {', '.join(map(repr, idle))}: this model has {', '.join(known) or 'none'}"
            f"{aside}"
        )
    return [path for path, names in layers.items() if any(_matches(names, target) for target in targets)]


def _names(path: str) -> tuple[str, ...]:
    """By which a layer is asked for: "query", "cross.query", its path."""
    parts = path.split(".")
    sides = [part.removesuffix("_attention") for part in parts if part.endswith("_attention")]
    return (parts[-1], *(f"{side}.{parts[-1]}" for side in sides), path)


def _matches(names: tuple[str, ...], target: str) -> bool:
    return any(fnmatchcase(name, target) for name in names)


# --- adding and choosing --------------------------------------------------------------------------------------------


def add_lora(
    model: nn.Module, spec: Lora, seed: int = 0, name: str = DEFAULT, *, fused: Iterable[Sequence[str]] = ()
) -> list[str]:
    """Put a fresh adapter beside each layer that the spec names, in place; it alone is active and trained.

    The numbers are drawn in order of the model's layers, the same for a seed on every device. Returns the paths.
    fused: the paths of layers that are one matrix elsewhere, and are adapted as one: they share one `down`.
    Errors: UsageError for targets that name no layer; NextileError for a name that is taken or cannot be one.
    """
    generator, layers = torch.Generator().manual_seed(seed), adaptable(model)
    alpha = 2.0 * spec.rank if spec.alpha is None else spec.alpha
    adapters = {}
    for path in chosen(model, spec.targets):
        sizes = (layers[path].in_features, layers[path].out_features)
        with torch.device("cpu"):
            adapters[path] = Adapter(*sizes, spec.rank, alpha, spec.dropout)
        adapters[path].initialise(generator)
    for paths in fused:
        together = [adapters[path] for path in paths if path in adapters]
        for other in together[1:]:
            other.down = together[0].down
    put_adapters(model, adapters, name)
    return list(adapters)


def put_adapters(model: nn.Module, adapters: Mapping[str, Adapter], name: str = DEFAULT) -> None:
    """Put made adapters beside the layers of their paths, in place; they alone are active and trained.

    Errors: NextileError, before anything is changed, for a name that is taken or cannot be one.
    """
    if not NAME.fullmatch(name) or hasattr(nn.ModuleDict, name):
        raise NextileError(f"an adapter cannot be called {name!r}: use letters, digits, - and _, such as chat-2")
    if any(name in part.adapters for part in lora_parts(model).values()):
        raise NextileError(f"the model has an adapter {name!r}: choose another name")
    layers = adaptable(model)
    for path, adapter in adapters.items():
        layer = layers[path]
        if not isinstance(layer, LoraLinear):
            layer = LoraLinear(layer)
            replace(model, path, layer)
        layer.adapters[name] = adapter.to(_device(layer)).train(layer.training)
    use_adapter(model, name)
    train_only(model, name)


def _device(layer: nn.Module) -> torch.device:
    """A layer's; a packed one has buffers alone."""
    tensors = [*layer.parameters(), *layer.buffers()]
    return tensors[0].device


def lora_parts(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, LoraLinear)}


def adapters_of(model: nn.Module, name: str = DEFAULT) -> dict[str, Adapter]:
    """One adapter's parts by the path of their layer. Errors: UsageError with the names that there are."""
    parts = lora_parts(model)
    found = {path: part.named(name) for path, part in parts.items() if name in part.adapters}
    if not found:
        known = sorted({name for part in parts.values() for name in part.adapters})
        raise UsageError(f"the model has no adapter {name!r}: it has {', '.join(known) or 'none'}")
    return found


def adapter_tensors(model: nn.Module, name: str = DEFAULT) -> dict[str, Tensor]:
    """One adapter's numbers, by "<path of the layer>.down.weight" and ".up.weight"; the tensors, not copies."""
    return {
        f"{path}.{side}.weight": matrix.detach()
        for path, adapter in adapters_of(model, name).items()
        for side, matrix in (("down", adapter.down.weight), ("up", adapter.up.weight))
    }


def use_adapter(model: nn.Module, name: str | None) -> None:
    """Compute with this adapter alone, or with the base alone. Errors: UsageError for a name that there is not."""
    holders = {} if name is None else adapters_of(model, name)
    for path, part in lora_parts(model).items():
        part.active = name if path in holders else None


def train_only(model: nn.Module, name: str = DEFAULT) -> None:
    """Freeze all of a model but one adapter. Errors: UsageError for a name that there is not."""
    adapters = adapters_of(model, name)
    model.requires_grad_(False)
    for adapter in adapters.values():
        adapter.requires_grad_(True)


def narrow(model: nn.Module, dtype: torch.dtype) -> None:
    """Hold the frozen matrices of the blocks and of the head in the dtype in which they are multiplied, in place.

    Autocast casts a float32 matrix in every step, to these very numbers: a frozen one never changes, so that once is
    enough, and the results are the same bit for bit. What is trained or packed stays as it is, an embedding that is
    the head as well too, and nothing is made wider. The model is for training then: to merge, load its base again.
    """
    for path, layer in adaptable(model).items():
        base = layer.base if isinstance(layer, LoraLinear) else layer
        inside = not {"blocks", "head"}.isdisjoint(path.split("."))
        if inside and isinstance(base, nn.Linear) and not base.weight.requires_grad:
            base.weight = _at_most(base.weight, dtype)


def _at_most(weight: Tensor, dtype: torch.dtype) -> nn.Parameter:
    narrower = dtype.itemsize < weight.itemsize
    return nn.Parameter(weight.detach().to(dtype if narrower else weight.dtype), requires_grad=False)


# --- merging --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def merge(model: nn.Module) -> dict[str, LoraLinear]:
    """Fold the active adapter into the weights, in place: plain layers under their old names, all to be trained again.

    The sum is taken in float32 at least and rounded once to the base's dtype; a packed base becomes one in float32.
    Returns what was taken out, for `unmerge`. Errors: NextileError for a model without adapters.
    """
    parts = lora_parts(model)
    if not parts:
        raise NextileError("the model has no adapters to merge: add or attach one first")
    for path, part in parts.items():
        replace(model, path, _merged(part))
    model.requires_grad_(True)
    return parts


def _merged(part: LoraLinear) -> nn.Module:
    adapter = part.adapter
    if adapter is None:
        return part.base
    layer = part.base
    if isinstance(layer, QuantizedLinear):
        weight = layer.dequantized(torch.promote_types(adapter.up.weight.dtype, torch.float32))
        return _plain(weight + adapter.delta(), layer.bias)
    layer.weight = _shifted(layer.weight, adapter.delta())
    return layer


def _plain(weight: Tensor, bias: nn.Parameter | None) -> Linear:
    with torch.device("meta"):
        layer = Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight, layer.bias = nn.Parameter(weight), bias  # type: ignore[assignment]
    return layer


def _shifted(weight: Tensor, delta: Tensor) -> nn.Parameter:
    """A new one, since the old one may be a file's bytes mapped into memory."""
    return nn.Parameter((weight.to(delta.dtype) + delta).to(weight.dtype))


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """The active adapter folded into the weights for as long as it is needed; afterwards every number is as it was."""
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    kept = {path: part.base.weight for path, part in lora_parts(model).items() if isinstance(part.base, nn.Linear)}
    taken = merge(model) if lora_parts(model) else {}
    try:
        yield
    finally:
        for path, part in taken.items():
            if path in kept:
                part.base.weight = kept[path]  # type: ignore[assignment]
            replace(model, path, part)
        for parameter, was in trained:
            parameter.requires_grad_(was)


@torch.no_grad()
def unmerge(model: nn.Module, taken: Mapping[str, LoraLinear]) -> None:
    """Undo `merge`, in place, by subtracting what was added; the adapter alone is trained.

    A float32 weight comes back within one rounding of the sum, 2^-24 of |W| + |W merged| twice; in bfloat16 what the
    sum rounded away is lost for good, 2^-9 of them. A packed base comes back as it was.
    """
    active = next((part.active for part in taken.values() if part.active is not None), None)
    for path, part in taken.items():
        if part.adapter is not None and isinstance(part.base, nn.Linear):
            part.base.weight = _shifted(part.base.weight, -part.adapter.delta())
        replace(model, path, part)
    if active is not None:
        train_only(model, active)
