"""`nextile inspect`: a page that shows what a model makes of a text, a picture or a word, number by number."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextile.base.errors import UsageError
from nextile.cli import options
from nextile.cli.options import whole
from nextile.cli.prompts import decoded
from nextile.cli.result import write_json

if TYPE_CHECKING:
    from nextile.inspection.look import Inspection

EXAMPLES = """
\b
Examples:
  nextile inspect runs/book "It was the best of times"          # writes inspect-book.html
  nextile inspect runs/book "It was" --layer 3 --head 5 --out head.html
  nextile inspect runs/numbers "forty-two"                      # and how it is translated
  nextile inspect runs/numbers "forty-two" "zweiundvierzig"     # with a translation of yours
  nextile inspect runs/photos cat.png
  nextile inspect runs/words king
  nextile inspect runs/book - --json < chapter.txt
"""

LONGEST = 256  # tokens of a page: more could be neither drawn nor read

Input = Annotated[str, typer.Argument(metavar="INPUT", help="A text, a picture's file, or a word; - reads it.")]
Target = Annotated[
    str | None, typer.Argument(metavar="TARGET", help="Of a translator a translation. [default: its own]")
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="The page. [default: inspect-MODEL.html, here]")
]
Layer = Annotated[
    int | None, typer.Option("--layer", metavar="L", parser=whole(0), help="Open with this layer, from 0 on.")
]
Head = Annotated[
    int | None, typer.Option("--head", metavar="H", parser=whole(0), help="Open with this head, from 0 on.")
]
Which = Annotated[
    str | None, typer.Option("--which", metavar="W", help="Open with self, encoder or cross. [default: cross, or self]")
]
MaxTokens = Annotated[
    int, typer.Option("--max-tokens", metavar="N", parser=whole(1), help="Steps of the decoding that are shown.")
]
Width = Annotated[int, typer.Option("--beams", metavar="B", parser=whole(1), help="Beginnings that beams keep.")]


def inspect(
    model: options.Name,
    given: Input,
    target: Target = None,
    out: Out = None,
    layer: Layer = None,
    head: Head = None,
    which: Which = None,
    max_tokens: MaxTokens = 12,
    beams: Width = 4,
    json: options.Json = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Write a page that shows what goes on inside a model.

    What it makes of an input, number by number, in one HTML file: pieces and merges, vectors, the Q, K and V of a head
    and all that is reckoned from them, all heads at a glance, what each layer would say, the distribution under
    temperature, the decoding and its beams. Without --layer and --head it opens with a head that is worth a look.
    """
    _check(out)

    from nextile import api
    from nextile.base.files import atomic_write
    from nextile.inspection.page import is_page, page
    from nextile.inspection.payload import PARTS, payload
    from nextile.tasks.report import choose

    loaded, report = api.load(model, device=device, dtype=dtype), choose()
    path = out or Path(f"inspect-{_called(loaded)}.html")
    if path.exists() and not is_page(path):
        raise UsageError(f"'{path}' is there and is no page of nextile inspect: name another file by --out")
    with report.bar("looking inside", len(PARTS[loaded.task]) + 2, "parts") as bar:
        look = loaded.inspect(_read(loaded, given), target, beams=beams)
        content = payload(
            look, which=which, layer=layer, head=head, max_tokens=max_tokens, beams=beams, advance=bar.advance
        )
        whole_page = page(content)
        bar.advance()
        atomic_write(path, whole_page)
        bar.advance()
    if json:
        write_json(_summary(look, content, path, len(whole_page.encode())))
    else:
        report.say(f"wrote {path}: {len(whole_page.encode()) / 1000:,.0f} kB; open it in a browser")


def _check(out: Path | None) -> None:
    """Errors: UsageError for a name that no browser would open; said before any work is done."""
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"'{out}' is no page: name a file that ends in .html")


def _called(loaded: Any) -> str:
    """What a page of this model is called: by its folder, without what does not belong into a file's name."""
    name = "model" if loaded.folder is None else Path(loaded.folder).resolve().name
    kept = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
    return kept.strip(".-")[:100] or "model"


def _read(loaded: Any, given: str) -> Any:
    """What is looked at: a picture's path or its bytes, a text, or the first token ids of a long one."""
    pictures = loaded.task in ("classify", "paint")
    if given == "-":
        data = sys.stdin.buffer.read()
        if pictures:
            return data
        given = decoded(data).removesuffix("\n").removesuffix("\r")
    if pictures:
        return Path(given)
    return _cut(loaded, given) if loaded.task == "lm" else given


def _cut(loaded: Any, text: str) -> Any:
    """The text, or of one too long for a page its first tokens, and a word about it."""
    from nextile.tasks.report import choose

    limit = min(LONGEST, loaded.spec.context or LONGEST)
    ids = loaded.tokenizer.encode(text)
    if len(ids) <= limit:
        return text
    choose().warn(f"the text has {len(ids):,} tokens: the first {limit} are looked at")
    return ids[:limit]


def _summary(look: "Inspection", content: dict[str, Any], path: Path, size: int) -> dict[str, Any]:
    """What is on the page, without the arrays."""
    stacks = {which: {"layers": each["depth"], "heads": each["heads"]} for which, each in content["stacks"].items()}
    found = {
        "out": str(path), "bytes": size, "kind": look.kind, "pieces": [piece.text for piece in look.pieces],
        "target": [piece.text for piece in look.target_pieces] or None, "stacks": stacks,
        "chosen": content.get("chosen"), "left_out": content["leftOut"],
    }  # fmt: skip
    return found | {name: content[name] for name in ("classes", "steps", "neighbours") if name in content}
