"""`nextile classify`: what pictures show, or which class texts have."""

import sys
from functools import partial
from typing import Annotated, Any

import typer

from nextile.base.errors import NextileError
from nextile.cli import options
from nextile.cli.options import whole
from nextile.cli.prompts import arriving
from nextile.cli.result import answered, one_a_line, write, write_json

EXAMPLES = """
\b
Examples:
  nextile classify runs/photos picture.png
  nextile classify runs/photos *.jpg --top 1 > classes.tsv
  nextile classify runs/photos picture.png --json
  nextile classify runs/reviews "A film to see twice."
  nextile classify runs/reviews - < reviews.txt > labels.tsv   # a text a line
"""

Things = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE|TEXT...", help="Files: .png, .jpg, .webp, ...; or texts, of which - reads one a line."
    ),
]
Top = Annotated[
    int | None,
    typer.Option(
        metavar="N", parser=whole(1), help="Show so many classes of each. [default: 5 of a picture, 1 of a text]"
    ),
]


def classify(
    model: options.Name,
    things: Things,
    top: Top = None,
    json: options.Json = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Say what pictures show, or which class texts have.

    The most probable classes of each, with their probabilities.
    Of pictures a line a class: file, class, probability, between tabs. A file that is no picture is said and left out,
    and the exit code is 1. Of texts a line a text: class, probability, and of --top more the next ones after them.
    """
    from nextile import api

    loaded = api.load(model, device=device, dtype=dtype)
    if loaded.task == "classify-text":
        _label(loaded, things, top or 1, json)
    else:
        _classify(loaded, things, top or 5, json)


def _label(loaded: Any, texts: list[str], top: int, json: bool) -> None:
    batches = arriving(sys.stdin.buffer) if texts == ["-"] else [texts]
    for found in answered(batches, partial(loaded.classify, top=top, details=True)):
        if json:
            write_json({"text": found.text, "classes": _record(found.classes)})
        else:
            write("\t".join(f"{one_a_line(name)}\t{share:.4f}" for name, share in found.classes) + "\n")


def _record(classes: list[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"class": name, "probability": share} for name, share in classes]


def _classify(loaded: Any, pictures: list[str], top: int, json: bool) -> None:
    from nextile.tasks.report import choose

    broken = 0
    for name in pictures:
        try:
            found = loaded.classify(name, top=top)
        except NextileError as error:
            if error.exit_code != 1:
                raise
            choose().warn(str(error))
            broken += 1
            continue
        if json:
            write_json({"image": name, "classes": _record(found)})
        else:
            write("".join(f"{name}\t{each}\t{share:.4f}\n" for each, share in found))
    if broken:
        raise NextileError(f"{broken} of {len(pictures)} files are no pictures that can be read")
