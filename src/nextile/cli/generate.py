"""`nextile generate`: what a model writes after one prompt or many."""

import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from nextile.base.errors import UsageError
from nextile.cli import options
from nextile.cli.options import number, whole
from nextile.cli.prompts import arriving, in_batches, read_prompts
from nextile.cli.result import answered, one_a_line, write, write_json

EXAMPLES = """
\b
Examples:
  nextile generate runs/book "It was"
  nextile generate runs/book "It was" --temperature 0 --stop "."   # greedy, one sentence
  nextile generate runs/book "It was" --n 3 --seed 1 --json
  nextile generate runs/book "It was" --draft runs/small           # the same text, sooner
  nextile generate runs/masked "It was a dark and [MASK] night"
  nextile generate runs/book --prompts prompts.txt > answers.txt   # a prompt a line
  tail -f questions.txt | nextile generate runs/book -             # as the lines come
"""

BETWEEN = "---\n"  # several texts for one prompt
RECORD = ("prompt", "text", "tokens", "finish_reason")

Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue; - reads prompts, one a line.")]
MaxTokens = Annotated[int, typer.Option(metavar="N", parser=whole(1), help="Stop after so many tokens.")]
Temperature = Annotated[
    float | None,
    typer.Option(metavar="T", parser=number, help="0 is greedy; above 1 is wilder. [default: 0.8, gaps 0]"),
]
TopK = Annotated[int | None, typer.Option(metavar="K", parser=whole(1), help="Choose among the K likeliest tokens.")]
TopP = Annotated[float | None, typer.Option(metavar="P", parser=number, help="... that together are this likely.")]
MinP = Annotated[
    float | None, typer.Option(metavar="P", parser=number, help="... at least so likely beside the first.")
]
Penalty = Annotated[float, typer.Option(metavar="R", parser=number, help="Above 1, used tokens are less likely.")]
Count = Annotated[int, typer.Option("--n", metavar="N", parser=whole(1), help="Texts for each prompt.")]
Seed = Annotated[int | None, typer.Option(metavar="N", parser=whole(0), help="The same seed gives the same text.")]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End before this text; may be given again.")]
Logprobs = Annotated[
    int | None, typer.Option(metavar="K", parser=whole(0), help="Log-probabilities, also of the K likeliest; in JSON.")
]
Prompts = Annotated[Path | None, typer.Option("--prompts", metavar="FILE", help="Prompts, one a line, in one batch.")]
Width = Annotated[
    int | None,
    typer.Option("--beams", metavar="B", parser=whole(1), help="Seek the likeliest texts; nothing is drawn."),
]
Draft = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="A small model, or lookup, proposes tokens that MODEL confirms."),
]


def generate(
    model: options.Name,
    prompt: Prompt = "",
    max_tokens: MaxTokens = 200,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = 1.0,
    n: Count = 1,
    beams: Width = None,
    seed: Seed = None,
    stop: Stop = None,
    logprobs: Logprobs = None,
    draft: Draft = None,
    prompts: Prompts = None,
    json: options.Json = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    r"""Continue a text with a model's own words, or fill its gaps.

    Of a masked model or a denoiser every [MASK] in PROMPT is filled.
    Of many prompts each answer is one line, in order, its line breaks written as \n; --json has the exact text.
    """
    if prompts is not None and prompt:
        raise UsageError("PROMPT and --prompts exclude each other: give one of them")
    if logprobs is not None and not json:
        raise UsageError("--logprobs are shown in JSON only: add --json")
    if beams is not None and temperature is not None:
        raise UsageError("--beams and --temperature exclude each other: beams draw nothing")
    batches = _batches(prompt, prompts)
    single = prompts is None and prompt != "-"

    from nextile import api

    loaded = api.load(model, device=device, dtype=dtype)
    settings: dict[str, Any] = {
        "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k,
        "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty, "seed": seed, "stop": stop or (),
    }  # fmt: skip
    if draft is not None:
        settings["draft"] = draft if draft == "lookup" else api.load(draft, device=device, dtype=dtype)
    if single and n == 1 and not json and beams is None and loaded.streams and sys.stdout.isatty():
        _write_pieces(prompt, loaded.stream(prompt, **settings))
        return
    settings |= {"n": n, "logprobs": logprobs, "beams": beams, "details": True}
    answers = answered(batches, partial(loaded.generate, **settings))
    if json:
        _write_records(answers)
    elif single:
        write(BETWEEN.join(f"{answer.text}\n" for answer in answers))
    else:
        _write_lines(answers)


def _batches(prompt: str, prompts: Path | None) -> Iterable[list[str]]:
    """What to continue. Errors: NextileError for a file that cannot be read."""
    if prompts is not None:
        return in_batches(read_prompts(prompts))
    return arriving(sys.stdin.buffer) if prompt == "-" else [[prompt]]


# --- how they are written ---------------------------------------------------------------------------------------------


def _write_pieces(prompt: str, pieces: Iterable[str]) -> None:
    """The text as it is made, after its prompt, which is no part of the result."""
    from nextile.tasks.report import printable

    if sys.stderr.isatty():
        print(printable(prompt), end="", file=sys.stderr, flush=True)
    try:
        for piece in pieces:
            write(piece)
    finally:
        write("\n")


def _write_lines(answers: Iterable[Any]) -> None:
    for answer in answers:
        write(one_a_line(answer.text) + "\n")


def _write_records(answers: Iterable[Any]) -> None:
    for answer in answers:
        record = {name: getattr(answer, name) for name in RECORD}
        write_json(record if answer.logprobs is None else record | {"logprobs": answer.logprobs})
