"""Everything needed to resume exactly: weights, the optimizer's state and a count of what was done.

There is no state of random generators: the order of the data and dropout are functions of the seed and the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from nextile.base.errors import NextileError
from nextile.training.optim import copy_exactly
from nextile.training.pieces import like, local

FORMAT = 1


class Stateful(Protocol):
    """What changes the weights, an optimizer or a learner: its kind, and its tensors by name."""

    @property
    def kind(self) -> str: ...

    def state(self) -> dict[str, Tensor]: ...


def snapshot(
    model: nn.Module, optimizer: Stateful, progress: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors on the CPU that later steps do not touch, and a document for JSON; `progress` is the caller's own."""
    copies = {name: _copied(tensor) for name, tensor in tensors_of(model, optimizer).items()}
    return copies, document_of(optimizer, progress)


def document_of(optimizer: Stateful, progress: dict[str, Any]) -> dict[str, Any]:
    """What is said beside the tensors."""
    return {"format": FORMAT, "optimizer": optimizer.kind, "progress": progress}


def restore(
    model: nn.Module, optimizer: Stateful, tensors: Mapping[str, Tensor], document: dict[str, Any]
) -> dict[str, Any]:
    """Put a snapshot back, bit for bit, and return its `progress`.

    Errors: NextileError, before anything is changed, when it is of another format, optimizer or model.
    """
    if document.get("format") != FORMAT:
        raise NextileError(
            f"training state of format {document.get('format')}, not {FORMAT}: resume with the nextile that wrote it"
        )
    wrote, reads = document["optimizer"], optimizer.kind
    if wrote != reads:
        raise NextileError(f"training state of optimizer {wrote!r}, not {reads!r}: resume with optimizer={wrote}")
    copy_exactly(tensors, tensors_of(model, optimizer), "the training state")
    return document["progress"]


def _copied(tensor: Tensor) -> Tensor:
    return like(tensor, local(tensor).to("cpu", copy=True))


def tensors_of(model: nn.Module, optimizer: Stateful) -> dict[str, Tensor]:
    """The weights that are trained, tied ones once, beside the optimizer's; a model is its parameters."""
    weights = {f"model.{name}": tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    return weights | {f"optimizer.{name}": tensor for name, tensor in optimizer.state().items()}
