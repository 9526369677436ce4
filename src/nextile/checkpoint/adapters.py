"""PEFT's adapter folders, read and written for a model of any family: `adapter_config.json` beside the two factors.

Shapes: I inputs, O outputs, R rank. A matrix there, B A with A (R, I) and B (O, R), may be several of ours, queries,
keys and values in one: they share one `down`, and each has its rows of B. Ours that share nothing are written under
each other, R their sum, with zeros in B where one does not read another's. Modules that were trained in full beside
the factors (modules_to_save), a classifier's new head above all, stand in the same file under their own names.
A family that only nextile knows is written under our own names.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown  # short, however long the value is, and without control characters
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from nextile.base.config import Settings
from nextile.base.errors import NextileError
from nextile.base.files import atomic_write, inside
from nextile.checkpoint.weights import load_tensors, read_json, save_tensors
from nextile.models.build import AnyModel, AnySpec
from nextile.models.families.keymap import Rule, same
from nextile.models.families.table import family_named, family_of
from nextile.nn import specs
from nextile.nn.lora import DEFAULT, Adapter, Layer, Rank, adaptable, adapters_of, put_adapters

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
BEFORE = "base_model.model."  # the names of the base's modules
KEY = re.compile(re.escape(BEFORE) + r"(?P<module>[\w.-]+)\.lora_(?P<side>[AB])\.weight")

# What says nothing about the numbers, or says again what the tensors' own names and shapes say.
IDLE = {
    "auto_mapping", "base_model_name_or_path", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "layers_pattern", "layers_to_transform", "megatron_config", "megatron_core", "peft_version", "qalora_group_size",
    "revision", "runtime_config",
}  # fmt: skip
READ = {
    "alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "lora_dropout", "modules_to_save", "peft_type", "r",
    "rank_pattern", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
SOUND_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # the others change the base as well

Alpha = Annotated[float, Field(gt=0.0)]


class AdapterConfig(Settings):
    """What an `adapter_config.json` says of its tensors; modules are the base's, by its own names."""

    base: str | None = None
    task: str | None = None
    rank: Rank = 8
    alpha: Alpha = 8.0
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    by_root: bool = False  # scaled by alpha / sqrt(rank) (Kalajdzievski 2023)
    ranks: dict[str, Rank] = {}  # noqa: RUF012 (frozen; a copy for each)
    alphas: dict[str, Alpha] = {}  # noqa: RUF012
    targets: tuple[str, ...] | str | None = None
    saved: tuple[str, ...] = ()  # modules that were trained in full

    def rank_of(self, module: str) -> int:
        """A module's own, or that of all."""
        return _of_pattern(self.ranks, module) or self.rank

    def alpha_of(self, module: str) -> float:
        """A module's own, or that of all, for a scale of alpha / rank."""
        alpha = _of_pattern(self.alphas, module) or self.alpha
        return alpha * math.sqrt(self.rank_of(module)) if self.by_root else alpha

    def names(self, module: str) -> bool:
        """Whether the targets have this module; of a regular expression it is not asked."""
        return not isinstance(self.targets, tuple) or not {*_endings(module)}.isdisjoint(self.targets)

    def saves(self, tensor: str) -> bool:
        """Whether a tensor, by its name in the base, is of a module that was trained in full, or of a part of one."""
        parts = tensor.split(".")
        modules = (".".join(parts[:count]) for count in range(1, len(parts)))
        return any(not {*_endings(module)}.isdisjoint(self.saved) for module in modules)


class Factors(NamedTuple):
    """A module's two."""

    down: Tensor  # A: (R, I)
    up: Tensor  # B: (O, R)


class AdapterFiles(NamedTuple):
    """What a folder holds."""

    config: AdapterConfig
    factors: dict[str, Factors]  # by the module's name in the base
    whole: dict[str, Tensor]  # trained in full, by the tensor's name in the base


def _name(name: str) -> str:
    """That somebody else gave, for an error."""
    return repr(name if len(name) <= 120 else f"{name[:60]}...{name[-40:]}")


def _of_pattern(patterns: Mapping[str, Any], module: str) -> Any:
    """The value of the first pattern that a module's name ends in, or, after ^, is; None without one."""
    found = [name for name in (*_endings(module), f"^{module}") if name in patterns]
    order = {name: place for place, name in enumerate(patterns)} if len(found) > 1 else {}
    return patterns[min(found, key=lambda name: order.get(name, 0))] if found else None


def _endings(module: str) -> list[str]:
    """ "a.b.c" -> "c", "b.c", "a.b.c"."""
    parts = module.split(".")
    return [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]


# --- a model's modules under the names of its family ----------------------------------------------------------------


@dataclass(frozen=True)
class Carrier:
    """A matrix of theirs, and which layers of ours it is."""

    rule: Rule
    layers: tuple[str, ...]
    turned: bool  # stored (I, O) there

    def ours(self, up: Tensor) -> list[Tensor]:
        """B (O, R) -> its rows for each layer, (O of the layer, R)."""
        return [part.clone() for part in self.rule.read([up.mT if self.turned else up])]

    def theirs(self, ups: list[Tensor]) -> Tensor:
        """What `ours` undoes."""
        (joined,) = self.rule.write(ups)
        return (joined.mT if self.turned else joined).contiguous()


def carriers(model: AnyModel, family: str | None) -> dict[str, Carrier]:
    """The matrices of a family that are linear layers here, by their module's name; None: by our names.

    Where transformers calls a module otherwise in memory than in its files, both names are there, PEFT's last.
    """
    layers = adaptable(model)
    if family is None:
        return {path: Carrier(same(f"{path}.weight", f"{path}.weight"), (path,), turned=False) for path in layers}
    found = {}
    for rule in rules_of(model.spec, family):
        carrier = _carrier(rule, layers)
        if carrier is not None:
            names = [rule.theirs[0], *_beside(model.spec, family, rule.theirs[0])]
            found |= {name.removesuffix(".weight"): carrier for name in names}
    return found


def rules_of(spec: AnySpec, family: str) -> Sequence[Rule]:
    """The key map of a family for a model of this spec."""
    return family_named({"model_type": family}, spec).key_map(spec)


def _beside(spec: AnySpec, family: str, name: str) -> list[str]:
    """The other names of a tensor in memory."""
    beside = family_named({"model_type": family}, spec).BESIDE
    return [other for other, original in beside.items() if original == name]


def fused(model: AnyModel) -> list[tuple[str, ...]]:
    """The layers that are one matrix in the files of the model's family: GPT-2's queries, keys and values."""
    found = {carrier.layers for carrier in carriers(model, family_of(model.spec)).values()}
    return sorted(layers for layers in found if len(layers) > 1)


def _carrier(rule: Rule, layers: Mapping[str, Layer]) -> Carrier | None:
    """None for what is no matrix of linear layers; how it lies there is found out by matrices of one column."""
    paths = tuple(name.removesuffix(".weight") for name in rule.ours)
    if len(rule.theirs) > 1 or any(name.endswith(".bias") for name in rule.ours) or not set(paths) <= set(layers):
        return None
    outputs = [layers[path].out_features for path in paths]
    try:
        (joined,) = rule.write([torch.zeros(count, 1) for count in outputs])
    except RuntimeError:  # a convolution there, with an axis for each side of its squares
        return None
    return Carrier(rule, paths, turned=joined.shape[0] == 1 != sum(outputs))


def _modules(model: AnyModel, family: str | None) -> set[str]:
    """The names of all modules that a target might mean by mistake."""
    if family is None:
        return {path for path, _ in model.named_modules()}
    known = family_named({"model_type": family}, model.spec)
    names = [name for rule in known.key_map(model.spec) for name in rule.theirs] + list(known.BESIDE)
    return {name.rpartition(".")[0] for name in names}


# --- reading --------------------------------------------------------------------------------------------------------


def read_adapter(folder: str | Path) -> AdapterFiles:
    """What a folder of PEFT's holds.

    Errors: NextileError for what is damaged or does not fit together, and for what nextile cannot compute, by its name.
    """
    folder = Path(folder)
    if not (folder / CONFIG).exists():
        raise NextileError(f"'{folder}' is not an adapter's folder: it has no {CONFIG}")
    config = _config(read_json(inside(folder, CONFIG)), folder / CONFIG)
    if not (folder / TENSORS).exists():
        raise NextileError(f"'{folder}' has no {TENSORS}: save the adapter again with safe_serialization=True")
    tensors = {**load_tensors(inside(folder, TENSORS))}
    full = [name for name in tensors if config.saves(name.removeprefix(BEFORE)) and not KEY.fullmatch(name)]
    whole = {name.removeprefix(BEFORE): tensors.pop(name) for name in full}
    factors = _factors(tensors, folder / TENSORS)
    for module, (down, _) in factors.items():
        if down.shape[0] != config.rank_of(module):
            raise NextileError(
                f"'{folder}' has {_name(module)} of rank {down.shape[0]} and {CONFIG} says {config.rank_of(module)}: "
                "get a sound copy of it"
            )
        if not config.names(module):
            raise NextileError(
                f"'{folder}' has {_name(module)}, which target_modules in {CONFIG} leave out: get a sound copy of it"
            )
    return AdapterFiles(config, factors, whole)


def _config(found: Mapping[str, Any], path: Path) -> AdapterConfig:
    _refuse_variants(found, path)
    targets, saved = found.get("target_modules"), found.get("modules_to_save") or ()
    try:
        return AdapterConfig(
            base=found.get("base_model_name_or_path"),
            task=found.get("task_type"),
            rank=found.get("r", 8),
            alpha=found.get("lora_alpha", 8),
            dropout=found.get("lora_dropout", 0.0),
            by_root=found.get("use_rslora") or False,
            ranks=_patterns(found.get("rank_pattern") or {}, path),
            alphas=_patterns(found.get("alpha_pattern") or {}, path),
            targets=tuple(targets) if isinstance(targets, list) else targets,
            saved=tuple(saved) if isinstance(saved, list) else saved,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise NextileError(f"'{path}': {shown(where)}: {first['msg']}: get a sound copy of it") from error


def _refuse_variants(found: Mapping[str, Any], path: Path) -> None:
    """Whatever is asked for beyond plain LoRA of linear layers, in PEFT's next version as well."""
    if found.get("peft_type") != "LORA":
        raise NextileError(f"'{path}': peft_type is {shown(found.get('peft_type'))}; nextile reads LORA only")
    if found.get("bias", "none") != "none":
        raise NextileError(f"'{path}': bias is {shown(found['bias'])}; nextile reads adapters with 'none' only")
    start = found.get("init_lora_weights")
    if not any(start is sound or start == sound for sound in SOUND_STARTS):
        raise NextileError(
            f"'{path}': init_lora_weights is {shown(start)}, which changes the base too: save it again converted "
            "(path_initial_model_for_weight_conversion)"
        )
    for name, value in found.items():
        if name not in IDLE | READ and value:
            raise NextileError(
                f"'{path}': {_name(name)} is {shown(value)}; nextile reads plain LoRA of linear layers only"
            )


def _patterns(found: Any, path: Path) -> dict[str, Any]:
    """They are regular expressions; names alone are read, which no text can make slow."""
    if not isinstance(found, dict):
        raise NextileError(f"'{path}': a pattern is {type(found).__name__} and no table: get a sound copy of it")
    plain = {name.replace("\\.", ".").removesuffix("$"): value for name, value in found.items()}
    wrong = next((name for name in plain if not re.fullmatch(r"\^?[\w.-]+", name)), None)
    if wrong is not None:
        raise NextileError(f"'{path}': the pattern {_name(wrong)} is no module's name; nextile reads names only")
    return plain


def _factors(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Factors]:
    sides: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
    for name, tensor in tensors.items():
        match = KEY.fullmatch(name)
        if match is None:
            raise NextileError(f"'{path}' has {_name(name)}; nextile reads lora_A and lora_B of linear layers only")
        if tensor.dim() != 2 or not tensor.is_floating_point():
            raise NextileError(f"'{path}' has {_name(name)}, which is no matrix of numbers: get a sound copy of it")
        sides[match["side"]][match["module"]] = tensor
    alone = sorted(sides["A"].keys() ^ sides["B"].keys())
    if alone or not tensors:
        what = f"one of the two factors of {_name(alone[0])} only" if alone else "no tensor"
        raise NextileError(f"'{path}' has {what}: get a complete copy of it")
    for module, down in sides["A"].items():
        if sides["B"][module].shape[1] != down.shape[0]:
            raise NextileError(f"'{path}' has factors of different ranks for {_name(module)}: get a sound copy of it")
    return {module: Factors(down, sides["B"][module]) for module, down in sides["A"].items()}


def attach(model: AnyModel, folder: str | Path, name: str = DEFAULT, family: str | None = None) -> AdapterConfig:
    """Put a folder's adapter beside a model's layers, in place; it alone is active and trained. What the folder says.

    family: whose names the folder uses; None: those of the family that the model's spec belongs to. Numbers are taken
    in float32, or in float64. Layers that lie in one matrix there share one `down`, and are trained as there.
    Errors: NextileError, before anything is changed, as `read_adapter`, for an adapter of another model, and for one
    with modules that were trained in full, which are no adapter: with its base it is a model of its own (`tuned.join`).
    """
    files = read_adapter(folder)
    if files.whole:
        raise NextileError(
            f"'{folder}' has {_name(next(iter(files.whole)))}, which was trained in full: load the folder as a model"
        )
    attach_factors(model, files, folder, name, family)
    return files.config


def attach_factors(
    model: AnyModel, files: AdapterFiles, folder: str | Path, name: str = DEFAULT, family: str | None = None
) -> None:
    """`attach` of what was read from a folder, without what was trained in full."""
    config, factors, _ = files
    known = carriers(model, family or family_of(model.spec))
    unknown = sorted(factors.keys() - known.keys())
    if unknown:
        raise NextileError(
            f"'{folder}' adapts {_name(unknown[0])}, which is no linear layer of this model: attach it to its base"
            + (f", {shown(config.base)}" if config.base else "")
        )
    layers, adapters = adaptable(model), {}
    for module, pair in factors.items():
        _check_sizes(module, pair, [layers[path] for path in known[module].layers], folder)
        adapters |= _adapters(known[module], pair, config.alpha_of(module), config.dropout)
    put_adapters(model, adapters, name)


def in_full(spec: AnySpec, files: AdapterFiles, folder: str | Path, family: str | None = None) -> dict[str, Tensor]:
    """What a folder has that was trained in full, by our names, for a model of this spec.

    Errors: NextileError for a tensor that such a model has not, or has not by itself.
    """
    family, left, found = family or family_of(spec), dict(files.whole), {}
    rules = [same(name, name) for name in left] if family is None else rules_of(spec, family)
    for rule in rules:
        if left.keys() >= set(rule.theirs):
            try:
                ours = rule.read([left.pop(name) for name in rule.theirs])
            except RuntimeError as error:
                raise NextileError(f"'{folder}' has {_name(rule.theirs[0])} in another shape than its base") from error
            found |= zip(rule.ours, ours, strict=True)
    if left:
        base = f": give it its own, {shown(files.config.base)}" if files.config.base else ""
        raise NextileError(f"'{folder}' has {_name(next(iter(left)))} in full, which its base has not{base}")
    return found


def _check_sizes(module: str, pair: Factors, layers: Sequence[Layer], folder: str | Path) -> None:
    wanted = (sum(layer.out_features for layer in layers), layers[0].in_features)
    found = (pair.up.shape[0], pair.down.shape[1])
    if found != wanted:
        raise NextileError(
            f"'{folder}' adapts {_name(module)} as a matrix {found} and here it is {wanted}: attach it to its base"
        )


def _adapters(carrier: Carrier, pair: Factors, alpha: float, dropout: float) -> dict[str, Adapter]:
    """Of each layer in the matrix."""
    down, up = (factor.to(torch.promote_types(factor.dtype, torch.float32)) for factor in pair)
    adapters = {}
    for path, rows in zip(carrier.layers, carrier.ours(up), strict=True):
        with torch.device("meta"):
            adapter = Adapter(down.shape[1], len(rows), down.shape[0], alpha, dropout)
        adapter.up.weight = torch.nn.Parameter(rows)
        adapters[path] = adapter
    first, *others = adapters.values()
    first.down.weight = torch.nn.Parameter(down.clone())  # the file's bytes are not ours to train
    for other in others:
        other.down = first.down
    return adapters


# --- writing --------------------------------------------------------------------------------------------------------


def save_adapter(
    folder: str | Path, model: AnyModel, base: str, name: str = DEFAULT, family: str | None = None,
    saved: Saved | None = None,
) -> None:  # fmt: skip
    """Write one adapter as PEFT's folder, the tensors last; each file whole or not at all.

    base: the name or folder of the model that it belongs to. family: as in `attach`. saved: what was trained in full
    beside it.
    Errors: UsageError for a name that there is not; NextileError for a layer that the family's checkpoint has not as a
    matrix, and when the disk is full.
    """
    folder, family = Path(folder), family or family_of(model.spec)
    adapters, known = adapters_of(model, name), carriers(model, family)
    names = {carrier.layers: module for module, carrier in known.items()}
    mine = {name: known[name] for name in names.values() if not adapters.keys().isdisjoint(known[name].layers)}
    lost = sorted(adapters.keys() - {path for carrier in mine.values() for path in carrier.layers})
    if lost:
        raise NextileError(f"{lost[0]} is no matrix of its own in {family}'s files: leave it out of the targets")
    joined = {module: _joined(carrier, adapters, adaptable(model)) for module, carrier in mine.items()}
    document = _document(joined, next(iter(adapters.values())).dropout.share, _targets(mine, _modules(model, family)))
    document |= {
        "base_model_name_or_path": base,
        "modules_to_save": saved.modules if saved and saved.modules else None,
        "fan_in_fan_out": any(carrier.turned for carrier in mine.values()),
        "task_type": _task(model.spec),
    }
    atomic_write(folder / CONFIG, json.dumps(document, indent=2, sort_keys=True) + "\n")
    sides = {"A": lambda one: one.factors.down, "B": lambda one: one.factors.up}
    tensors = {
        f"{BEFORE}{module}.lora_{side}.weight": of(one) for module, one in joined.items() for side, of in sides.items()
    }
    tensors |= {f"{BEFORE}{name}": tensor for name, tensor in (saved.tensors if saved else {}).items()}
    save_tensors(folder / TENSORS, tensors)


class Saved(NamedTuple):
    """What was trained in full, as it stands beside an adapter."""

    modules: list[str]  # of the base
    tensors: dict[str, Tensor]  # by their names there
    ours: frozenset[str]  # the same by our names


def saved_in_full(model: AnyModel, whole: Mapping[str, Tensor], family: str | None = None) -> Saved:
    """Of tensors by our names those that make whole modules in the files of a model's family."""
    family = family or family_of(model.spec)
    rules = [] if family is None else rules_of(model.spec, family)
    mine = [rule for rule in rules if whole.keys() >= set(rule.ours)]
    others = {name for rule in rules if rule not in mine for name in rule.theirs}
    modules, tensors, ours = set[str](), dict[str, Tensor](), set[str]()
    for rule in mine:
        around = [_module_without(others, name) for name in rule.theirs]
        if None not in around:
            modules |= {name for name in around if name is not None}
            tensors |= zip(rule.theirs, rule.write([whole[name].detach() for name in rule.ours]), strict=True)
            ours |= set(rule.ours)
    return Saved(sorted(modules), tensors, frozenset(ours))


def _module_without(others: Collection[str], name: str) -> str | None:
    """The outermost module around a tensor that holds none of the others; None where the innermost does."""
    parts = name.split(".")
    modules = (".".join(parts[:count]) for count in range(1, len(parts)))
    return next((each for each in modules if not any(other.startswith(f"{each}.") for other in others)), None)


class Joined(NamedTuple):
    """A matrix as PEFT has it."""

    factors: Factors
    alpha: float

    @property
    def rank(self) -> int:
        """R."""
        return len(self.factors.down)


def _joined(carrier: Carrier, adapters: Mapping[str, Adapter], layers: Mapping[str, Layer]) -> Joined:
    """The adapters of a matrix as one: those that share a `down` as they are, others under each other."""
    present = [adapters[path] for path in carrier.layers if path in adapters]
    first, down = present[0], present[0].down.weight.detach()
    shared = all(one.alpha == first.alpha and torch.equal(one.down.weight, down) for one in present)
    if not shared:
        down = torch.cat([one.down.weight.detach() for one in present])
    ups, begin = [], 0
    for path in carrier.layers:
        up = down.new_zeros(layers[path].out_features, len(down))
        if path in adapters:
            one = adapters[path]
            up[:, begin : begin + one.rank] = one.up.weight.detach() * (1.0 if shared else one.scale / first.scale)
            begin += 0 if shared else one.rank
        ups.append(up)
    return Joined(Factors(down, carrier.theirs(ups)), first.alpha * len(down) / first.rank)


def _document(joined: Mapping[str, Joined], dropout: float, targets: list[str]) -> dict[str, Any]:
    """What is most common is said once, the rest module by module."""
    (rank, alpha), _ = Counter((one.rank, one.alpha) for one in joined.values()).most_common(1)[0]
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _short(alpha),
        "lora_dropout": dropout,
        "bias": "none",
        "use_rslora": False,
        "inference_mode": True,
        "target_modules": targets,
        "rank_pattern": {module: one.rank for module, one in joined.items() if one.rank != rank},
        "alpha_pattern": {module: _short(one.alpha) for module, one in joined.items() if one.alpha != alpha},
    }


def _short(number: float) -> int | float:
    return int(number) if number == int(number) else number


def _targets(mine: Mapping[str, Carrier], modules: set[str]) -> list[str]:
    """For each module the shortest ending of its name that no other module has, so that PEFT adapts these alone."""
    others = {ending for module in modules - mine.keys() for ending in _endings(module)}
    return sorted({next((end for end in _endings(module) if end not in others), module) for module in mine})


def _task(spec: AnySpec) -> str | None:
    """PEFT's word for it."""
    if isinstance(spec, specs.EncoderDecoder):
        return "SEQ_2_SEQ_LM"
    if isinstance(spec, specs.TextClassifier):
        return "SEQ_CLS"
    return "CAUSAL_LM" if isinstance(spec, specs.Transformer) and spec.stack.causal else None
