"""How a model does without some of its parts, and how much the loss rises without each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nextile.base.errors import UsageError
from nextile.checkpoint.pretrained import Pretrained
from nextile.nn.silence import Each, parts_of, read_part, silenced
from nextile.tasks.report import Report, Silent

Measure = Callable[[Report], dict[str, Any]]  # what a model does as it is now, its "loss" among it

EACH: dict[str, Each] = {"each-head": "head", "each-layer": "layer"}


def each_of(parts: Sequence[str]) -> Each | None:
    """Whether every head, or every layer, is asked about, one after the other.

    Errors: UsageError where other parts are named beside that, and for no part at all.
    """
    if not parts:
        raise UsageError("no part is named: give some such as 2.3, or each-head, or each-layer")
    asked = [part for part in parts if part in EACH]
    if asked and len(parts) > 1:
        raise UsageError(f"{asked[0]} is asked alone: leave out the other parts, or {asked[0]}")
    return EACH[asked[0]] if asked else None


def evaluate_without(
    pretrained: Pretrained, parts: Sequence[str], measure: Measure, report: Report
) -> dict[str, Any]:  # fmt: skip
    """The measures while these parts are silent, their names under "without", and those of the whole under "whole".

    Errors: UsageError for a name of no part, before anything is measured.
    """
    for part in parts:
        read_part(pretrained.model, part)
    whole = {name: value for name, value in measure(report).items() if isinstance(value, float)}
    with silenced(pretrained.model, parts):
        return {**measure(report), "without": list(parts), "whole": whole}


def evaluate_each(
    pretrained: Pretrained, each: Each, whole: Measure, loss: Measure, report: Report
) -> dict[str, Any]:  # fmt: skip
    """The measures of the whole, and under "heads" or "layers" the loss without each, and how much that is more.

    whole: gives the former, and says what is to be said; loss: gives a loss again, and again.
    Errors: UsageError for a model without layers.
    """
    parts = parts_of(pretrained.model, each)
    measured = whole(report)
    found = []
    with report.bar(f"without each {each}", len(parts), f"{each}s") as bar:
        for part in parts:
            with silenced(pretrained.model, part):
                alone = loss(Silent())["loss"]
            found.append({"part": part, "loss": alone, "rise": alone - measured["loss"]})
            bar.advance()
    return {**measured, f"{each}s": found}
