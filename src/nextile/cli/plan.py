"""`nextile plan`: what a training would be, before anything is spent."""

from pathlib import Path
from typing import Annotated

import typer

from nextile.base.errors import UsageError
from nextile.cli import options
from nextile.cli.result import write_json

EXAMPLES = """
\b
Examples:
  nextile plan book.txt --minutes 30
  nextile plan book.txt --preset gpt2 --steps 1000 --json
  nextile plan --preset llama-3-70b --gpus 1024 --tokens 15e12 --set batch=256
"""

Out = Annotated[str | None, typer.Option(metavar="DIR", help="Where train would write; refused if it is taken.")]


Gpus = Annotated[int | None, typer.Option(metavar="N", parser=options.whole(1), help="On paper: on so many GPUs.")]
Tokens = Annotated[float | None, typer.Option(metavar="N", help="With --gpus: so many tokens are read.")]


def plan(
    data: options.Data = None,
    task: options.Task = None,
    preset: options.Preset = None,
    out: Out = None,
    minutes: options.Minutes = None,
    steps: options.Steps = None,
    init: options.Init = None,
    lora: options.Lora = None,
    recipe: options.Recipe = None,
    gpus: Gpus = None,
    tokens: Tokens = None,
    settings: options.Set = None,
    json: options.Json = False,
) -> None:
    """Show what a training would take before it starts.

    Parameters, memory, FLOPs and time; what does not fit is refused, with a command that does.
    """
    options.check_budget(minutes, steps)
    if gpus is not None or tokens is not None:
        beside = {"DATA": data, "--task": task, "--out": out, "--minutes": minutes, "--steps": steps, "--init": init}
        _on_paper(preset, gpus, tokens, recipe, settings, json, [name for name in beside if beside[name]])
        return
    from nextile import api
    from nextile.base.config import parse_assignments
    from nextile.tasks.report import choose
    from nextile.tasks.run import check_free

    if out is not None:
        check_free(Path(out))
    report = choose()
    found = api.plan(
        data or None, task=task, preset=preset, minutes=minutes, steps=steps, init=init, lora=lora,
        recipe=recipe, settings=parse_assignments(settings or []), report=report,
    )  # fmt: skip
    if json:
        write_json(found.as_dict())
    else:
        report.table("plan", found.rows())


def _on_paper(
    preset: str | None, gpus: int | None, tokens: float | None, recipe: str | None, settings: list[str] | None,
    json: bool, beside: list[str],
) -> None:  # fmt: skip
    """A training on many GPUs: from formulas, without data. Errors: UsageError for what is missing or too much."""
    if gpus is None or tokens is None or preset is None:
        raise UsageError("a plan on paper needs --preset, --gpus and --tokens: such as llama-3-70b, 1024 and 15e12")
    if beside:
        raise UsageError(f"--gpus goes without {' and '.join(beside)}: leave out one or the other")
    from nextile.base.config import parse_assignments, read_toml
    from nextile.tasks.report import choose
    from nextile.tasks.scaling import outlook

    given = {"cluster.gpus": gpus, "tokens": tokens}
    found = outlook(preset, read_toml(recipe) if recipe else {}, given, parse_assignments(settings or []))
    if json:
        return write_json(found.as_dict())
    return choose().table(f"{preset} on {gpus:,} GPUs, on paper", found.rows())
