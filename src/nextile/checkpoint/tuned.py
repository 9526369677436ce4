"""A folder of what was trained beside a base that stays where it is, and how both become one model.

adapter_config.json  adapter_model.safetensors   PEFT's, the adapter, and what was trained in full: a new head
config.json                                      the whole model's, and what its base was packed as
trained.safetensors                              what was trained in full and has no name in the family's files
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from nextile.base.errors import NextileError
from nextile.base.files import inside
from nextile.checkpoint.adapters import (
    AdapterFiles,
    attach_factors,
    fused,
    in_full,
    read_adapter,
    rules_of,
    save_adapter,
    saved_in_full,
)
from nextile.checkpoint.store import load_spec
from nextile.checkpoint.weights import INDEX, WHOLE, load_folder, load_tensors, read_json, save_tensors
from nextile.models.build import AnyModel, AnySpec, skeleton
from nextile.models.families.table import as_classifier, family_of
from nextile.nn import specs
from nextile.nn.lora import Lora, add_lora, lora_parts, merge
from nextile.nn.quantize import Int4, Int8, Quantization, quantize

TRAINED, PACKED = "trained.safetensors", "nextile_base"
SCORES = ("score.weight", "classifier.weight", "classifier.out_proj.weight")  # of classes, in PEFT's files


def unlike(model: AnyModel, base: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The parameters of a model that its base, by name, has not, or has in another shape or with other numbers."""
    return tuple(
        name
        for name, mine in model.named_parameters()
        if name not in base or base[name].shape != mine.shape or not torch.equal(base[name], mine)
    )


def digest(model: AnyModel) -> str:
    """A SHA-256 of all numbers of a model, by which it is known again."""
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        found.update(name.encode())
        found.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def begin(model: AnyModel, lora: Lora, packed: Int8 | Int4 | None, fresh: tuple[str, ...], seed: int) -> None:
    """Pack the base, put an adapter beside it, and freeze all but that and what is fresh; in place.

    Layers that are one matrix in the family's files are adapted as one, as PEFT adapts it.
    Errors: UsageError for targets that name no layer; NextileError for a model that cannot be packed.
    """
    if packed is not None:
        quantize(model, packed)
    add_lora(model, lora, seed, fused=fused(model))
    parameters = dict(model.named_parameters())
    for name in fresh:
        if name in parameters:  # a layer that is adapted stays as it is
            parameters[name].requires_grad_(True)


def save_tuned(folder: str | Path, model: AnyModel, base: str) -> None:
    """Write the adapter, and what else is trained; each file whole or not at all."""
    adapted = {id(parameter) for part in lora_parts(model).values() for parameter in part.adapters.parameters()}
    whole = {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) not in adapted}
    saved = saved_in_full(model, whole)
    own = {name: tensor for name, tensor in whole.items() if name not in saved.ours}
    if own:
        save_tensors(Path(folder) / TRAINED, own)
    save_adapter(folder, model, base, saved=saved)


def packed_as(folder: Path) -> Int8 | Int4 | None:
    """What the base was packed as. Errors: NextileError where the configuration is damaged."""
    config: dict[str, Any] = read_json(inside(folder, "config.json")) if (folder / "config.json").exists() else {}
    if config.get(PACKED) is None:
        return None
    try:
        return TypeAdapter(Quantization).validate_python(config[PACKED])
    except ValidationError as error:
        raise NextileError(f"'{folder / 'config.json'}' has an unknown {PACKED}: get a sound copy of it") from error


def join(folder: Path, base: AnyModel, home: Path | None = None) -> AnyModel:
    """The model that a folder and its base make; the base, which may be changed, has given its numbers to it.

    home: the base's folder, for what its files have and the base as it was loaded has not.
    Errors: NextileError for files that are damaged or of another base.
    """
    plain(base)
    files = read_adapter(folder)
    spec = load_spec(folder)[0] if (folder / "config.json").exists() else _asked(files, base.spec, folder)
    whole = {**load_tensors(inside(folder, TRAINED))} if (folder / TRAINED).exists() else {}
    whole |= in_full(spec, files, folder)
    if home is not None and type(spec) is not type(base.spec):
        whole = _spare(spec, home) | whole
    model = base
    if whole or spec != base.spec:
        model = skeleton(spec)
        model.load_state_dict(_together(model, base, whole, folder), assign=True, strict=False)
    packed = packed_as(folder)
    if packed is not None:
        quantize(model, packed)
    attach_factors(model, files, folder)
    return model


def _asked(files: AdapterFiles, spec: AnySpec, folder: Path) -> AnySpec:
    """What a base becomes by a folder without a configuration of its own: a classifier, where that was trained.

    Errors: NextileError for a base of which no family makes a classifier.
    """
    if files.config.task != "SEQ_CLS" or isinstance(spec, specs.TextClassifier):
        return spec
    scores = [tensor for name, tensor in files.whole.items() if name.endswith(SCORES) and tensor.dim() == 2]
    if len(scores) != 1:
        raise NextileError(f"'{folder}' is a classifier's adapter, and has no scores of classes: save it with its head")
    return as_classifier(spec, len(scores[0]))


def _spare(spec: AnySpec, home: Path) -> dict[str, Tensor]:
    """Of a base's files what a head is made of: BERT's pooler, for which a masked model has no use."""
    family = family_of(spec)
    if family is None or not any((home / name).exists() for name in (WHOLE, INDEX)):
        return {}
    tensors, found = load_folder(home), {}
    for rule in rules_of(spec, family):
        if tensors.keys() >= set(rule.theirs) and all(name.startswith("head.") for name in rule.ours):
            found |= zip(rule.ours, rule.read([tensors[name] for name in rule.theirs]), strict=True)
    return found


def _together(model: AnyModel, base: AnyModel, whole: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """A model's numbers: those that were trained in full, and the others from its base."""
    mine = {name: parameter.detach() for name, parameter in base.named_parameters()}
    if type(model.spec) is not type(base.spec):  # another head, with other numbers under the same names
        mine = {name: tensor for name, tensor in mine.items() if not name.startswith("head.")}
    dtype = next(iter(mine.values())).dtype
    mine |= {name: tensor.to(dtype) for name, tensor in whole.items()}
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    wrong = [name for name in whole if name not in wanted]
    wrong += [name for name, shape in wanted.items() if name not in mine or mine[name].shape != shape]
    if wrong:
        raise NextileError(f"'{folder}' and its base do not make one model, first at {wrong[0]}: get both anew")
    return {name: mine[name] for name in wanted}


def plain(model: AnyModel) -> None:
    """Fold an adapter, if there is one, into the weights, in place."""
    if lora_parts(model):
        merge(model)
