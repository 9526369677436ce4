"""`nextile tokenize`: a tokenizer from data, the tokens of a text, and which kind of token suits a text."""

import sys
from contextlib import nullcontext
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
  nextile tokenize runs/book --show "It was a dark"     its pieces in colour
  nextile tokenize book.txt --size 4096 --out tokens    a tokenizer learned from a text
  nextile tokenize book.txt "low lower" --merges 20     how byte-pair encoding learns
  nextile tokenize book.txt --compare --train           which kind of token suits it
  nextile tokenize runs/book --corpus crawl --out ids   the tokens of a large corpus, on disk
"""
Source = Annotated[str, typer.Argument(metavar="DATA|MODEL", help="A text to learn from, or a folder that has tokens.")]
Text = Annotated[str | None, typer.Argument(metavar="TEXT", help="What to split; - is standard input.")]
Kind = Annotated[str | None, typer.Option(metavar="K", help="char, word, byte or bpe. [default: follows from DATA]")]
Size = Annotated[int | None, typer.Option(metavar="N", parser=whole(1), help="Tokens at most. [default: from DATA]")]
Out = Annotated[str | None, typer.Option(metavar="DIR", help="Save the tokenizer here.")]
Show = Annotated[str | None, typer.Option(metavar="TEXT", help="Show its pieces above their ids; - is standard input.")]
Merges = Annotated[int | None, typer.Option(metavar="N", parser=whole(1), help="Show so many merges, TEXT after each.")]
Compare = Annotated[bool, typer.Option("--compare", help="Measure kinds of tokens on a part of DATA that is held out.")]
Sizes = Annotated[str | None, typer.Option(metavar="N,N", help="Of --compare's vocabularies. [default: from DATA]")]
Corpus = Annotated[str | None, typer.Option(metavar="DATA", help="Write the tokens of this corpus to --out, on disk.")]
Cluster = Annotated[str | None, typer.Option(metavar="ADDRESS", help="With --corpus: by a Ray cluster, or auto.")]
Train = Annotated[bool, typer.Option("--train", help="With --compare: train a small model on each kind as well.")]


def tokenize(
    source: Source, text: Text = None, kind: Kind = None, size: Size = None, out: Out = None, show: Show = None,
    merges: Merges = None, compare: Compare = False, sizes: Sizes = None, train: Train = False,
    minutes: options.Minutes = None, corpus: Corpus = None, cluster: Cluster = None, json: options.Json = False,
) -> None:  # fmt: skip
    """Split a text into tokens, a model's or learned ones.

    The result is their ids; without TEXT, what tokens there are.
    """
    from nextile.text.legacy import has_text

    known = has_text(Path(source))
    if known and (kind or size or compare):
        raise UsageError(f"'{source}' has tokens already: leave out --kind, --size and --compare, or name a text")
    if ((sizes or train) and not compare) or (minutes is not None and not train):
        raise UsageError("--sizes and --train belong to --compare, --minutes to --train: add that")
    if corpus is None and cluster is not None:
        raise UsageError("--cluster belongs to --corpus: add that")
    if corpus is not None:
        _refuse("--corpus", TEXT=text, show=show, merges=merges, compare=compare or None)
        if out is None:
            raise UsageError("--corpus writes tokens: name a folder for them by --out")
        _write_corpus(_tokens(source, known, kind, size)[0], corpus, out, cluster, json)
    elif compare:
        _refuse("--compare", TEXT=text, kind=kind, size=size, out=out, show=show, merges=merges)
        _compare(source, sizes, (0.5 if minutes is None else minutes) if train else None, json)
    elif merges is not None:
        _refuse("--merges", kind=None if kind == "bpe" else kind, size=size, out=out, show=show)
        _merges(source, _given(text or ""), merges, json)
    else:
        _refuse("--show", TEXT=None if show is None else text)
        tokenizer, found = _tokens(source, known, kind, size)
        if out:
            tokenizer.save(out)
        if show is not None:
            _show(tokenizer, _given(show), json)
        elif text is not None:
            _split(tokenizer, _given(text), json)
        else:
            _describe(source, tokenizer, found, json)


def _write_corpus(tokenizer: "Tokenizer", corpus: str, out: str, cluster: str | None, json: bool) -> None:
    """The corpus as a folder of tokens, by this process or by the workers of a cluster."""
    from nextile.tasks.cluster import alone, on_ray, store_corpus
    from nextile.tasks.report import choose

    report = choose()
    with nullcontext(alone) if cluster is None else on_ray(cluster) as workers:
        store = store_corpus(corpus, tokenizer, out, report, workers)
    facts = {"tokens": len(store), "documents": store.documents, "text_bytes": store.text_bytes,
             "shards": len(store.index.shards)}  # fmt: skip
    if json:
        return write_json({"folder": out, **facts})
    return report.table(f"tokens in {out}", [(name.replace("_", " "), f"{value:,}") for name, value in facts.items()])


def _refuse(option: str, **beside: Any) -> None:
    """Errors: UsageError for what was given beside an option that goes without it."""
    if names := [name if name.isupper() else f"--{name}" for name, value in beside.items() if value is not None]:
        raise UsageError(f"{option} goes without {' and '.join(names)}: leave out one or the other")


def _given(text: str) -> str:
    return decoded(sys.stdin.buffer.read()) if text == "-" else text


def _tokens(source: str, known: bool, kind: str | None, size: int | None) -> "tuple[Tokenizer, dict[str, Any]]":
    """A folder's tokens; else those learned from a corpus, and how it divides into them."""
    from nextile.text.tokenizer import Tokenizer

    if known:
        return Tokenizer.load(source), {}
    from nextile.tasks import laboratory, report

    return laboratory.learned(source, kind or "auto", size, report.choose())


def _describe(source: str, tokenizer: "Tokenizer", found: dict[str, Any], json: bool) -> None:
    facts = {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "end_id": tokenizer.end_id} | found
    if json:
        return write_json(facts)
    from nextile.tasks.report import choose

    shown = {name: f"{value:,.2f}" if isinstance(value, float) else str(value) for name, value in facts.items()}
    return choose().table(f"tokens of {source}", [(name.replace("_", " "), value) for name, value in shown.items()])


def _split(tokenizer: "Tokenizer", text: str, json: bool) -> None:
    """The ids as the result; beside them, for people, the pieces of text that they stand for."""
    from nextile.tasks.report import choose
    from nextile.text.pieces import piece

    ids = tokenizer.encode(text)
    pieces = [piece(tokenizer, index) for index in ids]
    if json:
        return write_json({"text": text, "tokens": ids, "pieces": pieces})
    choose().say(f"{len(ids):,} tokens: {' '.join(map(repr, pieces))}")
    return write(" ".join(map(str, ids)) + "\n")


def _show(tokenizer: "Tokenizer", text: str, json: bool) -> None:
    """The pieces above their ids: in colour on a terminal that wants it, else with bars between."""
    from nextile.text.pieces import draw, piece

    if not text:
        raise UsageError("--show has nothing to show: give a text, or - and one on standard input")
    ids = tokenizer.encode(text)
    if json:
        return write_json([{"id": index, "piece": piece(tokenizer, index)} for index in ids])
    return draw(tokenizer, ids, sys.stdout)


def _merges(source: str, text: str, count: int, json: bool) -> None:
    """A line a merge, with the text after it."""
    from nextile.tasks.laboratory import first_merges, merge_table
    from nextile.tasks.report import choose

    rows = first_merges(source, text, count, choose())
    for row in rows if json else ():
        write_json(row.as_dict())
    write("" if json else merge_table(rows))


def _compare(source: str, sizes: str | None, minutes: float | None, json: bool) -> None:
    """A line a kind of token, and at the end, where models were trained, which won."""
    from nextile.tasks.laboratory import experiment, table
    from nextile.tasks.report import choose

    rows = []
    for row in experiment(source, sizes, minutes, choose()):
        rows.append(row)
        if json:
            write_json(row.as_dict())
    write("" if json else table(rows))
