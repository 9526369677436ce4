"""The outlook of a training on many GPUs, from the name of a preset and settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nextile.base.config import resolve
from nextile.base.errors import UsageError
from nextile.models.families.table import FAMILIES
from nextile.models.scale import Outlook, Scale
from nextile.nn import specs
from nextile.tasks.shapes import preset_of


def outlook(preset: str, *layers: Mapping[str, Any]) -> Outlook:
    """What training a model of this size will be; the settings are those of `Scale`, the later layer winning.

    Errors: UsageError for an unknown preset or setting, for one that is no language model, and for a mesh or a batch
    that does not divide; NextileError where the memory of a GPU is too small.
    """
    family, size = preset_of(preset, FAMILIES)
    scale = resolve(Scale, *layers)
    spec = family.spec(**size)
    if not isinstance(spec, specs.Transformer):
        raise UsageError(f"'{preset}' is no language model: name one such as llama-3-70b or gpt2")
    found = Outlook(spec.model_copy(update={"context": scale.context}), scale)
    found.fit()
    return found
