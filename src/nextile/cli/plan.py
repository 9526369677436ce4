"""`nextile plan`: what a training would be, before anything is spent."""

from pathlib import Path
from typing import Annotated

import typer

from nextile.cli import options
from nextile.cli.result import write_json

EXAMPLES = """
\b
Examples:
  nextile plan book.txt --minutes 30
  nextile plan book.txt --preset gpt2 --steps 1000 --json
"""

Out = Annotated[str | None, typer.Option(metavar="DIR", help="Where train would write; refused if it is taken.")]


def plan(
    data: options.Data = None,
    task: options.Task = None,
    preset: options.Preset = None,
    out: Out = None,
    minutes: options.Minutes = None,
    steps: options.Steps = None,
    init: options.Init = None,
    recipe: options.Recipe = None,
    settings: options.Set = None,
    json: options.Json = False,
) -> None:
    """Show what a training would take before it starts.

    Parameters, memory, FLOPs and time; what does not fit is refused, with a command that does.
    """
    options.check_budget(minutes, steps)
    from nextile import api
    from nextile.base.config import parse_assignments
    from nextile.tasks.report import choose
    from nextile.tasks.run import check_free

    if out is not None:
        check_free(Path(out))
    report = choose()
    found = api.plan(
        data or None, task=task, preset=preset, minutes=minutes, steps=steps, init=init, recipe=recipe,
        settings=parse_assignments(settings or []), report=report,
    )  # fmt: skip
    if json:
        write_json(found.as_dict())
    else:
        report.table("plan", found.rows())
