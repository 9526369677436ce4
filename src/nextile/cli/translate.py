"""`nextile translate`: what a translator makes of one sentence or many."""

import sys
from functools import partial
from typing import Annotated, Any

import typer

from nextile.cli import options
from nextile.cli.options import number, whole
from nextile.cli.prompts import arriving
from nextile.cli.result import answered, one_a_line, write, write_json

EXAMPLES = """
\b
Examples:
  nextile translate runs/numbers "forty-two"
  nextile translate runs/numbers "forty-two" --n 3        # the three best, with scores
  nextile translate runs/numbers - < english.txt > german.txt
  nextile translate runs/numbers "forty-two" --beams 1 --json
"""

RECORD = ("source", "text", "score", "logprob", "tokens", "finish_reason")

Text = Annotated[str, typer.Argument(metavar="TEXT", help="A sentence; - reads one a line.")]
Width = Annotated[int, typer.Option("--beams", metavar="B", parser=whole(1), help="Beginnings kept; 1 is greedy.")]
Penalty = Annotated[
    float,
    typer.Option(metavar="A", parser=number, help="Log-probability / length ** A is the score; above 0 for longer."),
]
Count = Annotated[int, typer.Option("--n", metavar="N", parser=whole(1), help="The N best of each, with scores.")]
MaxTokens = Annotated[
    int | None, typer.Option(metavar="N", parser=whole(1), help="Tokens at most. [default: twice the source's and 16]")
]


def translate(
    model: options.Name,
    text: Text = "-",
    beams: Width = 5,
    length_penalty: Penalty = 1.0,
    n: Count = 1,
    max_tokens: MaxTokens = None,
    json: options.Json = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Translate sentences, one a line.

    Of many sentences each translation is one line, in order, as soon as it is there; of a blank line a blank one.
    """
    batches = arriving(sys.stdin.buffer) if text == "-" else [[text]]

    from nextile import api

    loaded = api.load(model, device=device, dtype=dtype)
    settings: dict[str, Any] = {"beams": beams, "length_penalty": length_penalty, "n": n, "max_tokens": max_tokens}
    for found in answered(batches, partial(loaded.translate, details=True, **settings)):
        if json:
            write_json({name: getattr(found, name) for name in RECORD})
        else:
            write(f"{found.score:.4f}\t{one_a_line(found.text)}\n" if n > 1 else one_a_line(found.text) + "\n")
