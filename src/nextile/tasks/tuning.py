"""Runs that begin from a model: at which rates; and by adapters, beside a base that stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextile.base.config import Settings
from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.pretrained import Pretrained, load
from nextile.checkpoint.tuned import PACKED, begin, digest, unlike
from nextile.models import count
from nextile.models.build import AnyModel, skeleton
from nextile.nn.lora import narrow
from nextile.nn.quantize import Int4, Int8
from nextile.tasks.settings import LoraChoice, RunSettings

KINDS = {"int8": Int8(), "int4": Int4()}

# Ten times what full tuning wants, for adapters begin as nothing (Schulman et al. 2025, "LoRA without regret").
ADAPTER_RATE = 1e-3
# What tunes BERT and GPT-2 of a hundred million parameters (Devlin et al. 2019); it falls as the width grows (Yang et
# al. 2022), which goes with the cube root of the size. A smaller model never takes more than a new one does.
TUNING_RATE, TUNED_SIZE, MOST = 5e-5, 1e8, 1e-3
PREFERENCE_RATE = 5e-5  # at most: what is preferred is a nudge

Adapt = Callable[[Pretrained], AnyModel]


class Tuning(Settings):
    """What a run must know of the model that it tunes, to begin again from the same."""

    base: str  # its folder, or its name on the hub
    digest: str  # of its numbers
    fresh: tuple[str, ...] = ()  # parameters that it has not: they are trained in full


# --- rates ----------------------------------------------------------------------------------------------------------


def usual(settings: RunSettings, task: str, base: Pretrained | None) -> Mapping[str, Any]:
    """What is laid over a task's settings where a run begins from a model, under what anybody asks for."""
    if settings.lora:
        return _adamw(ADAPTER_RATE)
    if base is None:
        return {}
    rate = tuning_rate(count.parameters(base.spec).total)
    return _adamw(min(rate, PREFERENCE_RATE) if task == "prefer" else rate)


def tuning_rate(parameters: int) -> float:
    """AdamW's, for all of a model of so many parameters that has learned already, in two digits."""
    return float(f"{min(TUNING_RATE * (TUNED_SIZE / parameters) ** (1 / 3), MOST):.1e}")


def _adamw(rate: float) -> dict[str, Any]:
    return {"optimizer": {"type": "adamw", "lr": rate, "weight_decay": 0.0}}


# --- a run by adapters ----------------------------------------------------------------------------------------------


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


def prepare(
    tuning: Tuning, model: AnyModel, choice: LoraChoice, seed: int, precision: torch.dtype = torch.float32
) -> AnyModel:
    """The model with its adapters, packed if it is to be; only they and what is fresh are trained.

    What is frozen is held in the precision of the products. The numbers of the base are in its own folder.
    """
    begin(model, choice, KINDS.get(choice.base), tuning.fresh, seed)
    narrow(model, precision)
    return model


@dataclass(frozen=True)
class Outline:
    """A model with its adapters, by its shapes alone: what it costs, and one of those shapes to be timed."""

    model: AnyModel  # on the meta device

    @classmethod
    def of(cls, tuning: Tuning, first: AnyModel, choice: LoraChoice, precision: torch.dtype) -> Outline:
        """Of the model that a run begins from, which stays as it is, for products in this precision."""
        bare = skeleton(first.spec).to(next(first.parameters()).dtype)
        return cls(prepare(tuning, bare, choice, 0, precision))

    @property
    def trained(self) -> int:
        """How many parameters are trained."""
        return sum(each.numel() for each in self.model.parameters() if each.requires_grad)

    @property
    def bytes(self) -> int:
        """Of all that the model holds."""
        return sum(each.nbytes for each in [*self.model.parameters(), *self.model.buffers()])

    def built(self, device: torch.device) -> AnyModel:
        """A throw-away model of these shapes, whose numbers are 0."""
        model = copy.deepcopy(self.model).to_empty(device=device)
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.detach().zero_()
        return model


def said_of_base(choice: LoraChoice | None) -> dict[str, Any]:
    """What the model's configuration says beside its family's words."""
    kind = KINDS.get(choice.base) if choice else None
    return {PACKED: kind.model_dump()} if kind else {}
