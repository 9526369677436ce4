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
    starcoder2,
    t5,
    vit,
)
from nextile.models.families.classifiers import CLASSIFIERS, Classifier, is_classifier
from nextile.nn import specs

Family = ModuleType | Classifier

# In the order in which they are asked whether a spec is theirs: Mistral without a window is Llama.
FAMILIES: dict[str, ModuleType] = {
    family.MODEL_TYPE: family
    for family in (
        qwen3, gpt2, llama, mistral, qwen2, neox, olmo2, gemma2, gemma3, mixtral, starcoder2, marian, bart, t5, bert,
        roberta, vit, deit, imagegpt,
    )
}  # fmt: skip


def family_of(spec: AnySpec) -> str | None:
    """The family whose configuration says all that the spec says, or None: then only nextile itself can read it."""
    known: Mapping[str, Family] = CLASSIFIERS if isinstance(spec, specs.TextClassifier) else FAMILIES
    return next((name for name, family in known.items() if _says_it_all(family, spec)), None)


def as_classifier(spec: AnySpec, count: int) -> specs.TextClassifier:
    """A classifier of texts into so many classes, named as transformers names them, on the body of a model.

    Errors: NextileError for a model of which no family has a classifier.
    """
    name = family_of(spec)
    if name is None or name not in CLASSIFIERS:
        raise NextileError(f"there is no classifier of texts of the family {name or 'nextile'}")
    names = {str(number): f"LABEL_{number}" for number in range(count)}
    classifier: Any = CLASSIFIERS[name]
    return classifier.from_config(FAMILIES[name].to_config(spec) | {"id2label": names})


def _says_it_all(family: Any, spec: AnySpec) -> bool:
    try:
        return family.from_config(family.to_config(spec)) == spec
    except (AttributeError, AssertionError, ValidationError, NextileError):  # a part that this family has no word for
        return False


def family_named(config: Mapping[str, Any], spec: AnySpec | None = None) -> Any:
    """The family of a `config.json`; of a classifier of texts, which the spec is or the configuration names, its own.

    Errors: NextileError for an unknown one, with those that are known.
    """
    classifies = is_classifier(config) if spec is None else isinstance(spec, specs.TextClassifier)
    known: Mapping[str, Family] = CLASSIFIERS if classifies else FAMILIES
    name: Any = config.get("model_type")
    if name not in known:
        what = "a classifier of texts of model_type" if classifies else "model_type"
        raise NextileError(f"{what} {name!r} is not one that nextile reads: it reads {', '.join(sorted(known))}")
    return known[name]
