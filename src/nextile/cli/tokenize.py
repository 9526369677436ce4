"""`nextile tokenize`: a tokenizer from data, or the tokens of a text."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextile.base.errors import UsageError
from nextile.cli import options
from nextile.cli.options import whole
from nextile.cli.prompts import decoded
from nextile.cli.result import write, write_json

if TYPE_CHECKING:
    from nextile.text.tokenizer import Tokenizer

EXAMPLES = """
\b
Examples:
  nextile tokenize runs/book "It was a dark night"      the model's tokens
  nextile tokenize book.txt --size 4096 --out tokens    a tokenizer learned from a text
  nextile tokenize book.txt "It was" --kind char --json
"""

Source = Annotated[str, typer.Argument(metavar="DATA|MODEL", help="A text to learn from, or a folder that has tokens.")]
Text = Annotated[str | None, typer.Argument(metavar="TEXT", help="What to split; - is standard input.")]
Kind = Annotated[str | None, typer.Option(metavar="K", help="char, word, byte or bpe. [default: follows from DATA]")]
Size = Annotated[
    int | None, typer.Option(metavar="N", parser=whole(1), help="Tokens at most. [default: follows from DATA]")
]
Out = Annotated[str | None, typer.Option(metavar="DIR", help="Save the tokenizer here.")]


def tokenize(
    source: Source,
    text: Text = None,
    kind: Kind = None,
    size: Size = None,
    out: Out = None,
    json: options.Json = False,
) -> None:
    """Split a text into tokens, a model's or learned ones.

    The result is their ids; without TEXT, what tokens there are.
    """
    from nextile.text.tokenizer import Tokenizer

    known = Path(source, "tokenizer.json").is_file()
    if known and (kind or size):
        raise UsageError(f"'{source}' has tokens already: leave out --kind and --size, or name a text")
    tokenizer, found = (Tokenizer.load(source), {}) if known else _learn(source, kind, size)
    if out:
        tokenizer.save(out)
    if text is not None:
        _split(tokenizer, decoded(sys.stdin.buffer.read()) if text == "-" else text, json)
    elif json:
        write_json(_facts(tokenizer) | found)
    else:
        _describe(source, _facts(tokenizer) | found)


def _learn(source: str, kind: str | None, size: int | None) -> "tuple[Tokenizer, dict[str, Any]]":
    """Tokens learned from a corpus, and how it divides into them."""
    from nextile.base.config import resolve
    from nextile.data.corpora import open_corpus
    from nextile.tasks.report import choose
    from nextile.tasks.settings import TokenizerChoice
    from nextile.tasks.tokens import learn_tokenizer

    corpus, report = open_corpus(source), choose()
    choice = resolve(TokenizerChoice, {"kind": kind or "auto", "size": size})
    tokenizer = learn_tokenizer(corpus.documents, choice, report)
    with report.bar("tokenizing", corpus.bytes, "B") as bar:
        tokens = sum(len(ids) for ids in tokenizer.encode_documents(corpus.documents, progress=bar.update))
    return tokenizer, {"bytes": corpus.bytes, "tokens": tokens, "bytes_per_token": corpus.bytes / tokens}


def _facts(tokenizer: "Tokenizer") -> dict[str, Any]:
    return {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "end_id": tokenizer.end_id}


def _describe(source: str, facts: dict[str, Any]) -> None:
    from nextile.tasks.report import choose

    shown = {name: f"{value:,.2f}" if isinstance(value, float) else str(value) for name, value in facts.items()}
    choose().table(f"tokens of {source}", [(name.replace("_", " "), value) for name, value in shown.items()])


def _split(tokenizer: "Tokenizer", text: str, json: bool) -> None:
    """The ids as the result; beside them, for people, the pieces of text that they stand for."""
    from nextile.tasks.report import choose

    ids = tokenizer.encode(text)
    pieces = [_piece(tokenizer, index) for index in ids]
    if json:
        write_json({"text": text, "tokens": ids, "pieces": pieces})
    else:
        choose().say(f"{len(ids):,} tokens: {' '.join(map(repr, pieces))}")
        write(" ".join(map(str, ids)) + "\n")


def _piece(tokenizer: "Tokenizer", index: int) -> str:
    """The text of a token; of part of a character, its bytes as \\x.."""
    known = tokenizer.bytes_of(index)
    return tokenizer.token(index) if known is None else known.decode(errors="backslashreplace")
