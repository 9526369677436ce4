"""`nextile paint`: pictures from nothing, or from their upper half."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nextile.base.errors import UsageError
from nextile.cli import options
from nextile.cli.options import number, whole
from nextile.cli.result import write_json

EXAMPLES = """
\b
Examples:
  nextile paint runs/photos --n 16 --out sheet.png
  nextile paint runs/photos --from half.png --n 4 --seed 1 --out completed.png
  nextile paint runs/photos --temperature 0.9 --top-k 100 --out one.png
"""

Out = Annotated[Path, typer.Option(metavar="FILE.png", help="Where the picture goes; several are a sheet.")]
From = Annotated[str | None, typer.Option("--from", metavar="IMAGE", help="Complete the lower half of this one.")]
Count = Annotated[int, typer.Option("--n", metavar="N", parser=whole(1), help="Pictures.")]
Temperature = Annotated[
    float | None, typer.Option(metavar="T", parser=number, help="Below 1 is tamer, above wilder. [default: 1]")
]
TopK = Annotated[int | None, typer.Option(metavar="K", parser=whole(1), help="Choose among the K likeliest colours.")]
TopP = Annotated[float | None, typer.Option(metavar="P", parser=number, help="... that together are this likely.")]
Seed = Annotated[int | None, typer.Option(metavar="N", parser=whole(0), help="The same seed paints the same.")]
Width = Annotated[
    int | None, typer.Option("--beams", metavar="B", parser=whole(1), help="Seek the likeliest; nothing is drawn.")
]


def paint(
    model: options.Name,
    out: Out,
    start: From = None,
    n: Count = 1,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    beams: Width = None,
    json: options.Json = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Paint pictures, pixel by pixel.

    With --from the upper half of a picture is completed, and shown beside what was given and the original.
    """
    if out.suffix.lower() != ".png":
        raise UsageError(f"'{out}' is no .png: name the picture so, as --out sheet.png")
    if beams is not None and temperature is not None:
        raise UsageError("--beams and --temperature exclude each other: beams draw nothing")
    from nextile import api
    from nextile.images.pixels import save_png, to_image
    from nextile.tasks.sheets import completions, sheet

    loaded = api.load(model, device=device, dtype=dtype)
    sampling: dict[str, Any] = {
        "temperature": 1.0 if temperature is None else temperature,
        "top_k": top_k,
        "top_p": top_p,
    }
    painted = loaded.paint(n, start=start, seed=seed, beams=beams, **sampling)
    if start is not None:
        given = loaded.images.open(Path(start))[None]
        picture = completions(given, given.shape[1] // 2, painted[None], given)
    else:
        picture = sheet(painted) if n > 1 else to_image(painted[0])
    save_png(out, picture)
    if json:
        write_json({"out": str(out), "n": n, "size": painted.shape[1]})
