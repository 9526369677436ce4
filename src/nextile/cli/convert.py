"""`nextile convert`: a model from any program's files to a Hugging Face folder or a GGUF file."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextile.base.errors import UsageError
from nextile.cli import options
from nextile.cli.options import whole
from nextile.cli.result import write_json

if TYPE_CHECKING:
    from nextile.checkpoint.pretrained import Pretrained
    from nextile.tasks.report import Bar

EXAMPLES = """
\b
Examples:
  nextile convert ckpt.pt models/shakespeare --tokenizer gpt2     nanoGPT
  nextile convert out/chargpt/model.pt models/char --heads 6      minGPT
  nextile convert checkpoints/EleutherAI/pythia-160m models/p     LitGPT
  nextile convert runs/book book.gguf --dtype float16             for llama.cpp
  nextile convert book.gguf models/book
"""
SOURCE = "A model folder or hub name, a .pt of nanoGPT or minGPT, a folder of LitGPT, or a .gguf."

Source = Annotated[str, typer.Argument(metavar="FROM", help=SOURCE)]
Target = Annotated[str, typer.Argument(metavar="TO", help="A new folder in Hugging Face's layout, or a new .gguf.")]
Tokens = Annotated[
    str | None, typer.Option("--tokenizer", metavar="MODEL", help="A folder or hub name whose tokenizer it gets.")
]
Heads = Annotated[int | None, typer.Option(metavar="N", parser=whole(1), help="Of a minGPT, which does not say it.")]


def convert(
    source: Source,
    target: Target,
    tokenizer: Tokens = None,
    heads: Heads = None,
    dtype: options.Dtype = None,
    json: options.Json = False,
) -> None:
    """Bring a model in from another program, or take it to one.

    Numbers keep the precision that they have unless --dtype names another. What is at TO already is never touched.
    """
    _check_target(target)
    from nextile.tasks.report import choose

    report = choose()
    with report.bar(f"converting {source}", 1, "numbers") as bar:
        model = _loaded(source, tokenizer, heads, dtype)
        bar.resize(sum(parameter.numel() for parameter in model.model.parameters()))
        notes = _write(model, Path(target), bar)
    for note in notes:
        report.warn(note)
    found = _described(model, source, target) | {"notes": notes}
    if json:
        write_json(found)
    else:
        report.say(f"{target}: {found['family']}, {found['parameters']:,} parameters in {found['dtype']}")


def _check_target(target: str) -> None:
    """Errors: UsageError for a place that is taken and for a kind of file that is not written."""
    path = Path(target)
    if path.suffix in (".pt", ".pth", ".bin", ".safetensors", ".json"):
        raise UsageError(f"'{target}' is no model that is written: name a folder or a .gguf")
    if path.is_file() or path.is_symlink() or (path.is_dir() and (path.suffix == ".gguf" or any(path.iterdir()))):
        raise UsageError(f"'{target}' is there already: choose another name, or remove it first")


def _loaded(source: str, tokenizer: str | None, heads: int | None, dtype: str | None) -> "Pretrained":
    from nextile.checkpoint.pretrained import load, load_processor, locate
    from nextile.text.tokenizer import Tokenizer

    model = load(source, device="cpu", dtype=dtype, heads=heads)
    if tokenizer is None:
        return model
    tokens = load_processor(locate(tokenizer))
    if not isinstance(tokens, Tokenizer):
        raise UsageError(f"'{tokenizer}' reads pictures and has no tokenizer: name the folder of a language model")
    _check_sizes(tokens.vocab_size, model.spec, tokenizer)
    return replace(model, processor=tokens)


def _check_sizes(tokens: int, spec: Any, tokenizer: str) -> None:
    """A model may have rows for more tokens than there are, nanoGPT's usually has; never for fewer."""
    rows = getattr(getattr(spec, "embed", None), "vocab", None)
    if rows is None or tokens > rows:
        raise UsageError(
            f"'{tokenizer}' has {tokens:,} tokens and the model {rows or 0:,}: they do not belong together"
        )


def _write(model: "Pretrained", target: Path, bar: "Bar") -> list[str]:
    """Whole or not at all. Returns what the user should know."""
    from nextile.base.files import atomic_folder
    from nextile.checkpoint.gguf import write_gguf

    if target.suffix == ".gguf":
        return write_gguf(target, model.model, model.processor, bar.advance)
    with atomic_folder(target) as folder:
        model.save(folder)
    bar.update(bar.total)
    return []


def _described(model: "Pretrained", source: str, target: str) -> dict[str, Any]:
    from nextile.models.count import parameters

    return {
        "from": source,
        "to": target,
        "family": model.family,
        "parameters": parameters(model.spec).total,
        "dtype": str(next(model.model.parameters()).dtype).removeprefix("torch."),
        "tokenizer": None if model.processor is None else type(model.processor).__name__,
    }
