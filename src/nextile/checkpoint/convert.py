"""Applies a family's key map both ways, every key accounted for."""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from nextile.base.errors import NextileError
from nextile.models.families.keymap import Rule

Names = Callable[[Rule], tuple[str, ...]]


def _ours(rule: Rule) -> tuple[str, ...]:
    return rule.ours


def _theirs(rule: Rule) -> tuple[str, ...]:
    return rule.theirs


def read(rules: Iterable[Rule], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors from a checkpoint's. Errors: NextileError naming what is missing and what nobody asked for."""
    return _apply(list(rules), theirs, source=_theirs, target=_ours, move=lambda rule: rule.read)


def write(rules: Iterable[Rule], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors from ours. Errors: as in `read`."""
    return _apply(list(rules), ours, source=_ours, target=_theirs, move=lambda rule: rule.write)


def _apply(
    rules: list[Rule], tensors: Mapping[str, Tensor], *, source: Names, target: Names, move
) -> dict[str, Tensor]:
    asked = [name for rule in rules for name in source(rule)]
    _same_names(asked, tensors)
    moved: dict[str, Tensor] = {}
    for rule in rules:
        results = move(rule)([tensors[name] for name in source(rule)])
        moved.update(zip(target(rule), results, strict=True))
    return moved


def _same_names(asked: list[str], given: Mapping[str, Tensor]) -> None:
    missing, unknown = sorted(set(asked) - set(given)), sorted(set(given) - set(asked))
    if missing:
        raise NextileError(f"the checkpoint lacks {_few(missing)}: it is of another model, or incomplete")
    if unknown:
        raise NextileError(
            f"the checkpoint has {_few(unknown)}, which this family does not know: it is of another model"
        )


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
