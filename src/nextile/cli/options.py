"""What several verbs ask for in the same words, and how numbers are read."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

# --- numbers --------------------------------------------------------------------------------------------------------


def number(text: Any) -> float:
    """A number. Errors: BadParameter with the text that is none."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not a number") from None


def whole(least: int) -> Callable[[Any], int]:
    """What reads a whole number of at least so much, else raises BadParameter with the text that is none."""

    def read(text: Any) -> int:
        try:
            value = int(text)
        except ValueError:
            raise typer.BadParameter(f"'{text}' is not a whole number") from None
        if value < least:
            raise typer.BadParameter(f"{value} is too small: it is at least {least}")
        return value

    return read


# --- the same for several verbs ---------------------------------------------------------------------------------------

DATA = (
    "A .txt or .jsonl (also .gz), a folder of these, - for standard input, or python-docs, python-stdlib; "
    "for a translator a .tsv, two aligned files, or numbers-en-de; "
    "for a classifier a folder of class folders of pictures, a .parquet, or digits; "
    "texts with labels as .csv or .jsonl, or python-labels; "
    "conversations or preferences as .jsonl, or sums-chat, sums-preferences."
)
SETTING = "Any setting: lr=1e-3, batch=32, tokenizer.kind=bpe, model.stack.depth=6."

Name = Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, ours or Hugging Face's, or a hub name.")]
Data = Annotated[list[str] | None, typer.Argument(metavar="DATA...", help=DATA, show_default=False)]
Device = Annotated[str | None, typer.Option(metavar="D", help="cpu, cuda, ... [default: the accelerator if any]")]
Dtype = Annotated[str | None, typer.Option(metavar="T", help="float32, bfloat16. [default: what the file has]")]
Json = Annotated[bool, typer.Option("--json", help="Write the result to standard output as JSON.")]

Task = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="lm, chat, prefer, masked, denoise, words, translate, classify, paint. [default: by DATA]"
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The model's shape: gpt2, marian, vit, ... [default: qwen3, modern, compact, imagegpt]"
    ),
]
Minutes = Annotated[
    float | None, typer.Option(metavar="M", parser=number, help="Train for so long; size and schedule follow.")
]
Steps = Annotated[int | None, typer.Option(metavar="N", parser=whole(1), help="Train for so many steps.")]
Init = Annotated[str | None, typer.Option(metavar="MODEL", help="Begin from this model's weights and tokens.")]
Lora = Annotated[
    int | None, typer.Option(metavar="R", parser=whole(1), help="Train adapters of rank R beside --init MODEL.")
]
Recipe = Annotated[str | None, typer.Option(metavar="FILE", help="A TOML file of settings.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help=SETTING)]


def check_budget(minutes: float | None, steps: int | None) -> None:
    """Errors: UsageError where both are given; said before any work is done."""
    if minutes is not None and steps is not None:
        from nextile.base.errors import UsageError

        raise UsageError("--minutes and --steps exclude each other: give one of them")
