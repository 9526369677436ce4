"""Low-rank tuning in a run: the base stays as it is, adapters and what is new beside them are trained and saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from nextile.base.config import Settings
from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.pretrained import Pretrained, load
from nextile.checkpoint.tuned import PACKED, begin, digest, unlike
from nextile.models.build import AnyModel
from nextile.nn.quantize import Int4, Int8
from nextile.tasks.settings import LoraChoice, RunSettings

KINDS = {"int8": Int8(), "int4": Int4()}
# Ten times what full tuning wants, for adapters begin as nothing (Schulman et al. 2025, "LoRA without regret").
OPTIMIZER = MappingProxyType({"optimizer": {"type": "adamw", "lr": 1e-3, "weight_decay": 0.0}})

Adapt = Callable[[Pretrained], AnyModel]


class Tuning(Settings):
    """What a run must know of the model that it tunes, to begin again from the same."""

    base: str  # its folder, or its name on the hub
    digest: str  # of its numbers
    fresh: tuple[str, ...] = ()  # parameters that it has not: they are trained in full


def usual(settings: RunSettings) -> Mapping[str, Any]:
    """What is laid over a task's settings where a run tunes adapters, under what anybody asks for."""
    return OPTIMIZER if settings.lora else {}


def first_tuning(base: Pretrained | None, init: str | None, adapt: Adapt) -> tuple[Tuning, AnyModel]:
    """What a run tunes, and the model that was made to fit its data. Errors: UsageError without a model."""
    if base is None or init is None:
        raise UsageError("--lora tunes a model that there is: name it by --init MODEL")
    mark, before = digest(base.model), _numbers(base.model)
    model = adapt(base)
    where = str(Path(init).expanduser().resolve()) if Path(init).expanduser().exists() else init
    return Tuning(base=where, digest=mark, fresh=unlike(model, before)), model


def _numbers(model: AnyModel) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def again(tuning: Tuning, adapt: Adapt) -> AnyModel:
    """The model that a run began from, made to fit its data. Errors: NextileError when it is not the same any more."""
    base = load(tuning.base, device="cpu")
    if digest(base.model) != tuning.digest:
        raise NextileError(f"'{tuning.base}' is not the model that this run began to tune: put that one back")
    return adapt(base)


def prepare(tuning: Tuning, model: AnyModel, choice: LoraChoice, seed: int) -> AnyModel:
    """The model with its adapters, packed if it is to be; only they and what is fresh are trained."""
    begin(model, choice, KINDS.get(choice.base), tuning.fresh, seed)
    return model


def said_of_base(choice: LoraChoice | None) -> dict[str, Any]:
    """What the model's configuration says beside its family's words."""
    kind = KINDS.get(choice.base) if choice else None
    return {PACKED: kind.model_dump()} if kind else {}
