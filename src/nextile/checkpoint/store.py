"""The model folder: Hugging Face's layout, read and written, so that what is trained here loads elsewhere."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from nextile.base.errors import NextileError
from nextile.base.files import atomic_write, inside
from nextile.checkpoint import convert, weights
from nextile.images.processor import AnyProcessor
from nextile.models.build import AnyModel, AnySpec, depth, skeleton
from nextile.models.families.keymap import Rule, same
from nextile.models.families.table import family_named, family_of
from nextile.nn import specs
from nextile.text.tokenizer import Tokenizer

OURS = "nextile"  # the model_type of what no other program knows
LOG = logging.getLogger(__name__)
CODE = ("auto_map", "custom_pipelines")  # where a configuration names Python files to be run
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# What a family's reading of a configuration raises where a value is not what it should be.
UNSOUND = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
Spec = AnySpec
Processor = Tokenizer | AnyProcessor


def save_model(folder: str | Path, model: AnyModel, processor: Processor | None = None) -> None:
    """Write the folder, each file whole or not at all, the weights last.

    A family that transformers knows is written in its words, so that transformers loads it; the rest as a spec tree.
    """
    save_config(folder, model, processor)
    save_weights(folder, model)


def save_config(
    folder: str | Path, model: AnyModel, processor: Processor | None = None, beside: Mapping[str, Any] | None = None
) -> None:
    """Write all of the folder but the weights; beside: what the configuration says beside the family's words."""
    folder = Path(folder)
    if processor is not None:
        processor.save(folder)
    if isinstance(processor, Tokenizer):
        _write_json(folder / "generation_config.json", _ends(model.spec, processor) | _longest(model.spec))
    _write_json(folder / "config.json", config_of(model.spec, model, processor) | dict(beside or {}))


def save_weights(folder: str | Path, model: AnyModel) -> None:
    """Write `model.safetensors` alone, or shards, in the layout that the folder's configuration names."""
    tensors = _tensors(model)
    family = family_of(model.spec)
    if family is not None:
        tensors = convert.write(family_named({"model_type": family}, model.spec).key_map(model.spec), tensors)
    weights.save_folder(Path(folder), tensors)


def config_of(spec: Spec, model: nn.Module, processor: Processor | None) -> dict[str, Any]:
    """The `config.json` of a model."""
    name = family_of(spec)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    common = {"dtype": dtype, **_ends(spec, processor)}
    if name is None:
        return {"model_type": OURS, **common, OURS: spec.model_dump()}
    family = family_named({"model_type": name}, spec)
    return {"architectures": [family.ARCHITECTURE], "model_type": name, **common, **family.to_config(spec)}


def _ends(spec: Spec, reads: Processor | None) -> dict[str, int | None]:
    """The tokens that begin, end and fill a text, as transformers calls them."""
    ids = {}
    if isinstance(reads, Tokenizer):
        ids = {"bos_token_id": reads.begin_id, "eos_token_id": reads.end_id, "pad_token_id": reads.pad_id}
    known: dict[str, int | None] = {name: number for name, number in ids.items() if number is not None}
    if not isinstance(spec, specs.EncoderDecoder):
        return known
    silent = dict.fromkeys(("bos_token_id", "eos_token_id", "forced_eos_token_id"))  # else Marian's own defaults hold
    return {**silent, "decoder_start_token_id": spec.start, "pad_token_id": spec.start, **known}


def _longest(spec: Spec) -> dict[str, int]:
    """How long a translation may become: transformers' own default is 20 tokens."""
    return {"max_length": spec.context} if isinstance(spec, specs.EncoderDecoder) else {}


def _tensors(model: AnyModel) -> dict[str, torch.Tensor]:
    """A model is its parameters; those that two parts share have one name."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    atomic_write(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def load_spec(folder: str | Path) -> tuple[Spec, str]:
    """The spec and the family's name of a model folder. Errors: NextileError when it is none, or one unknown here."""
    folder = Path(folder)
    if not folder.is_dir():
        raise NextileError(f"'{folder}' is not a folder: name a model folder, such as the --out of a training run")
    if not (folder / "config.json").exists():
        raise NextileError(f"'{folder}' is not a model folder: it has no config.json")
    config = weights.read_json(inside(folder, "config.json"))
    _say_what_is_ignored(config, folder)
    try:
        return _spec_of(config)
    except NextileError as error:  # of a family, which may show what is a text of 10 MB
        raise NextileError(_short(str(error))) from error
    except UNSOUND as error:
        why = _short(_first_line(error))
        raise NextileError(f"'{folder / 'config.json'}': {why}: get a sound copy of it") from error


def _spec_of(config: Mapping[str, Any]) -> tuple[Spec, str]:
    if config.get("model_type") == OURS:
        spec = TypeAdapter(specs.Model).validate_python(config.get(OURS))
        _refuse_flags(config[OURS], spec.model_dump())
        return spec, OURS
    family = family_named(config)
    spec = family.from_config(config)
    try:
        said = family.to_config(spec)
    except (AssertionError, *UNSOUND):
        said = {}  # a variant that is only read has no configuration to compare with
    _refuse_flags(config, said)
    return spec, config["model_type"]


def _refuse_flags(given: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """In Python true is 1. Errors: NextileError where it stands for a number, which `said` has in the same place."""
    for field in given.keys() & said.keys():
        value, meant = given[field], said[field]
        if isinstance(value, bool) and isinstance(meant, int | float) and not isinstance(meant, bool):
            raise NextileError(f"{field} is {str(value).lower()} in config.json, and must be a number")
        if isinstance(value, dict) and isinstance(meant, dict):
            _refuse_flags(value, meant)


def _say_what_is_ignored(config: Mapping[str, Any], folder: Path) -> None:
    """Log that code of the folder's own is not run; Python prints a warning that is logged, unless told otherwise."""
    for field in CODE:
        if config.get(field):
            LOG.warning("'%s' names code of its own (%s in config.json), which nextile never runs", folder, field)


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))} {first['msg']}"
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _short(text: str) -> str:
    return text if len(text) <= 1000 else f"{text[:500]}...{text[-400:]}"


def load_model(
    folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[AnyModel, str]:
    """The model of a folder, ready to run, and its family's name. Errors: NextileError if it is not sound."""
    folder = Path(folder)
    spec, name = load_spec(folder)
    mapped = weights.load_folder(folder)
    if name == OURS:
        tensors, rules = dict(mapped), [same(own, own) for own in mapped]
    else:
        family = family_named({"model_type": name}, spec)
        rules = family.key_map(spec)
        left_out: Mapping[str, str] = getattr(family, "LEFT_OUT", {})
        tensors = _completed(_without_copies(mapped, rules, family.BESIDE), rules, left_out)
    model = _checked_skeleton(spec, rules, tensors, folder)
    ours = weights.as_dtype(convert.read(rules, tensors, done=mapped.forget), dtype, done=mapped.forget)
    model.load_state_dict(ours, assign=True, strict=False)  # checked above
    return model.to(device).eval(), name


def _blocks(spec: Spec) -> int:
    return depth(spec) + (spec.encoder.depth if isinstance(spec, specs.EncoderDecoder) else 0)


def _checked_skeleton(spec: Spec, rules: list[Rule], tensors: Mapping[str, torch.Tensor], folder: Path) -> AnyModel:
    """The model that these tensors will fill, found out by their shapes alone. Errors: NextileError if they cannot."""
    shapes = {name: torch.empty(value.shape, dtype=value.dtype, device="meta") for name, value in tensors.items()}
    found = convert.read(rules, shapes)
    if _blocks(spec) > len(found):  # said before a thousand of them are made
        raise NextileError(
            f"the weights in '{folder}' are {len(found)} tensors, and config.json has {_blocks(spec)} blocks: the "
            "files are of different models"
        )
    model = skeleton(spec)
    _check_shapes(found, model, folder)
    return model


def _without_copies(
    tensors: dict[str, torch.Tensor], rules: list[Rule], beside: Mapping[str, str | None]
) -> dict[str, torch.Tensor]:
    """Some writers store a tied matrix under several names, or under another than the rest. Errors: NextileError."""
    asked = {name for rule in rules for name in rule.theirs}
    spare = (beside.keys() & tensors.keys()) - asked
    kept = {name: value for name, value in tensors.items() if name not in spare}
    for name, original in ((name, beside[name]) for name in sorted(spare)):
        if original and not torch.equal(kept.setdefault(original, tensors[name]), tensors[name]):
            raise NextileError(
                f"the weights have {name} unlike {original}, to which config.json ties it: the files are of different "
                "models"
            )
    return kept


def _completed(
    tensors: dict[str, torch.Tensor], rules: list[Rule], left_out: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """With those tensors that some writers leave out where they equal another."""
    asked = {name for rule in rules for name in rule.theirs}
    lacking = {name: other for name, other in left_out.items() if name in asked - tensors.keys() and other in tensors}
    return tensors | {name: tensors[other].clone() for name, other in lacking.items()}


def _check_shapes(tensors: dict[str, torch.Tensor], model: AnyModel, folder: Path) -> None:
    wanted = {name: tuple(value.shape) for name, value in _tensors(model).items()}
    for name in sorted(wanted.keys() ^ tensors.keys()):
        state = "lacks" if name in wanted else "has, and config.json does not know,"
        raise NextileError(f"the weights in '{folder}' {state} {name}: the files are of different models")
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise NextileError(
                f"the weights in '{folder}' have {name} as {tuple(tensors[name].shape)} and config.json says {shape}: "
                "the files are of different models"
            )
        if tensors[name].dtype not in FLOATS:
            raise NextileError(
                f"the weights in '{folder}' have {name} as {str(tensors[name].dtype).removeprefix('torch.')}, which "
                "nextile does not compute with: get them as float32, float16 or bfloat16"
            )
