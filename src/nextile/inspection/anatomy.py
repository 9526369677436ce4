"""What of a model is packed in fewer bits, and what was tuned beside its base."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from nextile.base.files import inside
from nextile.checkpoint.adapters import CONFIG, read_adapter
from nextile.checkpoint.pretrained import Pretrained
from nextile.checkpoint.tuned import TRAINED
from nextile.checkpoint.weights import load_tensors
from nextile.nn.lora import lora_parts
from nextile.nn.quantize import MODULES, STACKED_MODULES, QuantizedLinear, QuantizedStacked


def anatomy(pretrained: Pretrained) -> dict[str, Any]:
    """What `describe` tells of these; "bytes" are those of all its numbers in memory, a tied one's once."""
    model = pretrained.model
    size = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    return {"bytes": size, **_packed(model), **_tuned(model, pretrained.folder)}


def _packed(model: nn.Module) -> dict[str, Any]:
    """Kind, layers and bytes of what is packed; nothing where nothing is."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear | QuantizedStacked)]
    if not layers:
        return {}
    kinds = [*MODULES.items(), *STACKED_MODULES.items()]
    names = {module: kind.model_fields["type"].default for kind, module in kinds}
    return {
        "packed": {
            "kind": ", ".join(sorted({names[type(layer)] for layer in layers})),
            "layers": len(layers),
            "bytes": sum(buffer.nbytes for layer in layers for buffer in layer.buffers()),
        }
    }


def _tuned(model: nn.Module, folder: Path | None) -> dict[str, Any]:
    """The active adapter, and what was trained in full beside it; nothing where there is none."""
    found = {path: part.adapter for path, part in lora_parts(model).items()}
    adapters = {path: adapter for path, adapter in found.items() if adapter is not None}
    if not adapters:
        return {}
    whole = _in_full(folder)
    numbers = {id(each): each.numel() for adapter in adapters.values() for each in adapter.parameters()}  # shared once
    return {
        "adapter": {
            **_base(folder),
            "rank": _one_or_several(adapter.rank for adapter in adapters.values()),
            "alpha": _one_or_several(adapter.alpha for adapter in adapters.values()),
            "targets": list(dict.fromkeys(path.rpartition(".")[2] for path in adapters)),
            "layers": len(adapters),
            "trained_parameters": sum(numbers.values()) + whole,
            "trained_in_full": whole,
        }
    }


def _one_or_several(numbers: Iterable[float]) -> Any:
    found = sorted(set(numbers))
    return found[0] if len(found) == 1 else found


def _base(folder: Path | None) -> dict[str, str | None]:
    """What the adapter lies beside, where its folder says it."""
    return {"base": read_adapter(folder).config.base} if folder and (folder / CONFIG).exists() else {}


def _in_full(folder: Path | None) -> int:
    """How many numbers beside the adapter were trained, such as those of a new head."""
    if folder is None or not (folder / CONFIG).exists():
        return 0
    own = load_tensors(inside(folder, TRAINED)) if (folder / TRAINED).exists() else {}
    return sum(tensor.numel() for tensor in (*own.values(), *read_adapter(folder).whole.values()))
