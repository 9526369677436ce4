"""The families by name, and which of them a spec or a configuration belongs to.

A family's BESIDE names what a file may hold beside the key map: copies of a tensor that is tied, other names of one,
and, with None, what is computed here or not needed. LEFT_OUT names those that a writer may leave out as copies.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from nextile.base.errors import NextileError
from nextile.models.build import AnySpec
from nextile.models.families import (
    bart,
    bert,
    deit,
    gemma2,
    gemma3,
    gpt2,
    imagegpt,
    llama,
    marian,
    mistral,
    mixtral,
    neox,
    olmo2,
    qwen2,
    qwen3,
    roberta,
    t5,
    vit,
)

# In the order in which they are asked whether a spec is theirs: Mistral without a window is Llama.
FAMILIES: dict[str, ModuleType] = {
    family.MODEL_TYPE: family
    for family in (
        qwen3, gpt2, llama, mistral, qwen2, neox, olmo2, gemma2, gemma3, mixtral, marian, bart, t5, bert, roberta, vit,
        deit, imagegpt,
    )
}  # fmt: skip


def family_of(spec: AnySpec) -> str | None:
    """The family whose configuration says all that the spec says, or None: then only nextile itself can read it."""
    return next((name for name, family in FAMILIES.items() if _says_it_all(family, spec)), None)


def _says_it_all(family: ModuleType, spec: AnySpec) -> bool:
    try:
        return family.from_config(family.to_config(spec)) == spec
    except (AttributeError, AssertionError, ValidationError, NextileError):  # a part that this family has no word for
        return False


def family_named(config: Mapping[str, Any]) -> ModuleType:
    """The family of a `config.json`. Errors: NextileError for an unknown one, with those that are known."""
    name = config.get("model_type")
    if name not in FAMILIES:
        raise NextileError(f"model_type {name!r} is not one that nextile reads: it reads {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]
