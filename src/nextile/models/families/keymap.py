"""A key map as data: which of our tensors stand where in somebody's checkpoint, and how they lie there.

A rule goes both ways; quirks of a layout (transposed or fused projections) are here and nowhere else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nextile.base.errors import NextileError

Move = Callable[[list[Tensor]], list[Tensor]]

ACTIVATIONS = {"gelu_tanh": "gelu_new", "relu_squared": "relu2"}  # those with another name in transformers
ALIASES = {"gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"}
MOST_CLASSES = 1 << 20  # that the spec allows


@dataclass(frozen=True)
class Rule:
    """`read` makes our tensors from theirs, `write` theirs from ours; both must undo each other exactly."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    read: Move
    write: Move


def _as_it_is(tensors: list[Tensor]) -> list[Tensor]:
    return tensors


def _turned(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.mT for tensor in tensors]  # seen the other way, not moved: a mapped file stays where it is


def same(ours: str, theirs: str) -> Rule:
    """The same numbers in the same order."""
    return Rule((ours,), (theirs,), _as_it_is, _as_it_is)


def transposed(ours: str, theirs: str) -> Rule:
    """(out, in) here, (in, out) there."""
    return Rule((ours,), (theirs,), _turned, _turned)


def one_row(ours: str, theirs: str) -> Rule:
    """(V,) here, (1, V) there."""
    return Rule(
        (ours,),
        (theirs,),
        lambda tensors: [tensor.squeeze(0) for tensor in tensors],
        lambda tensors: [tensor.unsqueeze(0) for tensor in tensors],
    )


def fused(ours: Sequence[str], theirs: str, *, axis: int) -> Rule:
    """Several of ours, of equal size, in one of theirs along its axis; matrices are transposed there."""

    def read(tensors: list[Tensor]) -> list[Tensor]:
        # Copied, for a part of a matrix has gaps between its rows, over which torch's fused optimizers stumble.
        parts = [part.contiguous() for part in tensors[0].chunk(len(ours), dim=axis)]
        return [part.mT if part.dim() == 2 else part for part in parts]

    def write(tensors: list[Tensor]) -> list[Tensor]:
        return [torch.cat([tensor.mT if tensor.dim() == 2 else tensor for tensor in tensors], dim=axis).contiguous()]

    return Rule(tuple(ours), (theirs,), read, write)


def by_head(ours: Sequence[str], theirs: str, *, heads: int) -> Rule:
    """Several of ours, of equal size, in one of theirs: the rows of the first head from each, then of the second."""

    def read(tensors: list[Tensor]) -> list[Tensor]:
        apart = tensors[0].unflatten(0, (heads, len(ours), -1))  # (H, 3, E, ...)
        return [apart[:, i].flatten(0, 1).contiguous() for i in range(len(ours))]

    def write(tensors: list[Tensor]) -> list[Tensor]:
        return [torch.stack([tensor.unflatten(0, (heads, -1)) for tensor in tensors], dim=1).flatten(0, 2)]

    return Rule(tuple(ours), (theirs,), read, write)


def stacked(ours: str, theirs: Sequence[str], *, there: Sequence[int] = ()) -> Rule:
    """Several of theirs, of equal shape, one after the other along a new first axis of one of ours.

    there: that shape, where it has axes of one number that ours has not.
    """

    def read(tensors: list[Tensor]) -> list[Tensor]:
        return [torch.stack([tensor.flatten() if there else tensor for tensor in tensors])]

    def write(tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.reshape(there).clone() if there else tensor.contiguous() for tensor in tensors[0]]

    return Rule((ours,), tuple(theirs), read, write)


def reshaped(ours: str, theirs: str, *, here: Sequence[int], there: Sequence[int]) -> Rule:
    """The same numbers in the same order, in another shape. Errors: NextileError, when read, for a third shape."""

    def read(tensors: list[Tensor]) -> list[Tensor]:
        found = tuple(tensors[0].shape)
        if found != tuple(there):
            raise NextileError(
                f"the weights have {theirs} as {found} and config.json says {tuple(there)}: the files are of different "
                "models"
            )
        return [tensors[0].reshape(*here)]

    def write(tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[0].reshape(*there)]

    return Rule((ours,), (theirs,), read, write)


def activation_here(theirs: str) -> str:
    """Our name of an activation that transformers calls so."""
    ours = {theirs: ours for ours, theirs in ACTIVATIONS.items()} | ALIASES
    return ours.get(theirs, theirs)


def activation_there(ours: str) -> str:
    """transformers' name of one of our activations."""
    return ACTIVATIONS.get(ours, ours)


def expect(config: Mapping[str, Any], **expected: Any) -> None:
    """Refuse a variant that the family's spec cannot say. Errors: NextileError with the field and both values."""
    for field, value in expected.items():
        if config.get(field, value) != value:
            raise NextileError(
                f"{field} is {config[field]!r} in config.json; nextile reads this family with {value!r} only"
            )


def classes_here(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a classifier's classes, in the order of its scores. Errors: NextileError for ids with a gap."""
    names = config.get("id2label")
    if names is None:
        number = min(config.get("num_labels") or 2, MOST_CLASSES + 1)  # two is what transformers leaves unsaid
        return tuple(f"LABEL_{i}" for i in range(number))
    if not isinstance(names, Mapping):
        raise NextileError(f"id2label is {type(names).__name__} in config.json: it must name each class by its number")
    by_number = {str(number): name for number, name in names.items()}
    wanted = [str(number) for number in range(len(by_number))]
    missing = next((number for number in wanted if number not in by_number), None)
    if missing is not None:
        raise NextileError(f"id2label in config.json has {len(by_number)} classes and none of them is {missing}")
    return tuple(by_number[number] for number in wanted)


def classes_there(classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The two tables of a `config.json` that name the classes."""
    return {
        "id2label": {str(number): name for number, name in enumerate(classes)},
        "label2id": {name: number for number, name in enumerate(classes)},
    }
