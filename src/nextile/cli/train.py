"""`nextile train`: a model from data."""

from typing import Annotated

import typer

from nextile.cli import options
from nextile.cli.result import write_json

EXAMPLES = """
\b
Examples:
  nextile train book.txt                      a model in about five minutes
  nextile train book.txt --minutes 30         the best that half an hour gives
  nextile train python-docs --steps 500 --preset gpt2 --out runs/docs
  nextile train english.txt german.txt        a translator from aligned lines; or pairs.tsv
  nextile train photos/                       a classifier from a folder of pictures for each class
  nextile train photos/ --task paint          a painter of such pictures
  nextile train book.txt --task words         word vectors; masked, denoise: models that fill gaps
  nextile train chats.jsonl --init MODEL      fine-tune on conversations; --lora 8 tunes adapters alone
  nextile train --resume runs/docs            go on exactly where it stopped
  cat *.md | nextile train - --set lr=3e-3 --set tokenizer.kind=char
"""

Out = Annotated[
    str | None, typer.Option(metavar="DIR", help="The run's folder, the model's in the end. [default: runs/NAME]")
]
Resume = Annotated[str | None, typer.Option(metavar="DIR", help="Go on with an interrupted run.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing but errors.")]


def train(
    data: options.Data = None,
    task: options.Task = None,
    preset: options.Preset = None,
    out: Out = None,
    minutes: options.Minutes = None,
    steps: options.Steps = None,
    resume: Resume = None,
    init: options.Init = None,
    lora: options.Lora = None,
    recipe: options.Recipe = None,
    settings: options.Set = None,
    json: options.Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a model and keep the best one.

    Ctrl-C saves and tells how to go on.
    """
    options.check_budget(minutes, steps)
    from nextile import api
    from nextile.base.config import parse_assignments
    from nextile.tasks.curve import best_validation
    from nextile.tasks.report import choose
    from nextile.training.parallel import rank_of

    model = api.train(
        data or None, task=task, preset=preset, out=out, minutes=minutes, steps=steps, resume=resume, init=init,
        lora=lora, recipe=recipe, settings=parse_assignments(settings or []), report=choose(quiet=quiet),
    )  # fmt: skip
    if json and rank_of() == 0:
        measured = best_validation(model.folder) if model.folder else {}
        write_json({"folder": str(model.folder)} | measured | model.describe())
