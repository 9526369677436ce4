"""Applies a family's key map both ways, every key accounted for."""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from nextile.base.errors import NextileError
from nextile.models.families.keymap import Move, Rule

Names = Callable[[Rule], tuple[str, ...]]


def _ours(rule: Rule) -> tuple[str, ...]:
    return rule.ours


def _theirs(rule: Rule) -> tuple[str, ...]:
    return rule.theirs


def _nothing(tensors: list[Tensor]) -> None:
    pass


def read(
    rules: Iterable[Rule], theirs: Mapping[str, Tensor], *, done: Callable[[list[Tensor]], object] = _nothing
) -> dict[str, Tensor]:
    """Our tensors from a checkpoint's; done is told of theirs, rule by rule, when ours are made of them.

    Errors: NextileError naming what is missing and what nobody asked for.
    """
    return _apply(list(rules), theirs, source=_theirs, target=_ours, move=lambda rule: rule.read, done=done)


def write(rules: Iterable[Rule], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors from ours. Errors: as in `read`."""
    return _apply(list(rules), ours, source=_ours, target=_theirs, move=lambda rule: rule.write)


def _apply(
    rules: list[Rule], tensors: Mapping[str, Tensor], *, source: Names, target: Names, move, done=_nothing
) -> dict[str, Tensor]:
    asked = [name for rule in rules for name in source(rule)]
    _same_names(asked, tensors)
    moved: dict[str, Tensor] = {}
    for rule in rules:
        sources = [tensors[name] for name in source(rule)]
        results = _moved(move(rule), sources, source(rule), len(target(rule)))
        moved.update(zip(target(rule), results, strict=True))
        done(sources)
    return moved


def _moved(move: Move, tensors: list[Tensor], names: tuple[str, ...], number: int) -> list[Tensor]:
    try:
        results = move(tensors)
        if len(results) != number:
            raise ValueError(f"{len(results)} tensors and not {number}")
        return results
    except (RuntimeError, ValueError, IndexError) as error:  # what torch says of shapes that do not suit
        raise NextileError(
            f"the weights have {_few(list(names))} in a shape that this family cannot have: the files are of different "
            "models"
        ) from error


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
