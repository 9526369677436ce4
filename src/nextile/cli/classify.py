"""`nextile classify`: what pictures show."""

from typing import Annotated

import typer

from nextile.base.errors import NextileError
from nextile.cli import options
from nextile.cli.options import whole
from nextile.cli.result import write, write_json

EXAMPLES = """
\b
Examples:
  nextile classify runs/photos picture.png
  nextile classify runs/photos *.jpg --top 1 > classes.tsv
  nextile classify runs/photos picture.png --json
"""

Pictures = Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Files: .png, .jpg, .webp, .gif, .tif, ...")]
Top = Annotated[int, typer.Option(metavar="N", parser=whole(1), help="Show so many classes of each.")]


def classify(
    model: options.Name,
    pictures: Pictures,
    top: Top = 5,
    json: options.Json = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Say what pictures show.

    The most probable classes of each, with their probabilities.
    A line a class: file, class, probability, between tabs. A file that is no picture is said and left out, and the
    exit code is 1.
    """
    from nextile import api
    from nextile.tasks.report import choose

    loaded, broken = api.load(model, device=device, dtype=dtype), 0
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
            write_json({"image": name, "classes": [{"class": each, "probability": share} for each, share in found]})
        else:
            write("".join(f"{name}\t{each}\t{share:.4f}\n" for each, share in found))
    if broken:
        raise NextileError(f"{broken} of {len(pictures)} files are no pictures that can be read")
