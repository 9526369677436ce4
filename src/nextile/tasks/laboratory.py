"""The tokenizer laboratory: what each kind of token makes of the same held-out text, and what a model makes of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Generic, TypeVar

import numpy as np
from rich.cells import cell_len

from nextile.base.config import environment, resolve
from nextile.base.errors import NextileError, UsageError
from nextile.data.corpora import Documents, open_corpus, split
from nextile.tasks.curve import best_validation
from nextile.tasks.report import Bar, Report, Silent
from nextile.tasks.run import new_run, task_named
from nextile.tasks.settings import RunSettings, TokenizerChoice, Validation
from nextile.tasks.tokens import bpe_size, learn_tokenizer
from nextile.text import bpe
from nextile.text.legacy import has_text
from nextile.text.pieces import Merge, byte_words, merges_of, one_by_one, spelled, visible
from nextile.text.tokenizer import Tokenizer

LEAST, MOST = 257, 1 << 24  # tokens: the end and all bytes; what a tokenizer.json may have
ENOUGH = 0.1  # seconds of encoding that are timed at least
FEWEST = 2048  # bytes to train on; of fewer the model's 128 tokens may already be too many
LONGEST = 1000  # characters of a text that is shown after every merge
MODEL = {"model.stack.width": 128, "model.stack.depth": 4, "context": 128, "batch": 16}  # the same for all

# Of the held-out bytes: written out at 8 bits each, so many unknown ones would add 0.001 bits per byte.
NEGLIGIBLE = 0.001 / 8

Item = TypeVar("Item")


@dataclass(frozen=True)
class Measured:
    """One kind of token on the held-out text; shares are from 0 to 1, a MB is a million bytes."""

    kind: str
    size: int | None  # asked for; None where the kind has no choice
    vocab_size: int
    tokens: int
    bytes_per_token: float
    unknown_tokens: float  # the share of tokens that are unknown
    unknown_bytes: float  # the share of bytes that these stand for
    learn_seconds_per_mb: float
    encode_mb_per_second: float
    parameters: int | None = None  # of the model that was trained
    bits_per_byte: float | None = None  # its best validation's
    step: int | None = None  # when that was

    @property
    def name(self) -> str:
        """bpe 1024."""
        return self.kind if self.size is None else f"{self.kind} {self.size}"

    @property
    def comparable(self) -> bool:
        """Whether a model of these tokens must write nearly all of the text."""
        return self.unknown_bytes <= NEGLIGIBLE

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"comparable": self.comparable}


# --- what is compared ---------------------------------------------------------------------------------------------


def usual_sizes(size: int) -> list[int]:
    """Half, all and four times of what suits a text of `size` bytes."""
    usual = bpe_size(size)
    return [usual // 2, usual, 4 * usual]


def read_sizes(text: str) -> list[int]:
    """ "512,1024" -> [512, 1024], sorted, each once. Errors: UsageError for what is no size of a BPE vocabulary."""
    sizes = set()
    for part in text.split(","):
        if not part.strip().isdecimal() or len(part) > 12:
            raise UsageError(f"--sizes '{text}' is no list of whole numbers: write for example --sizes 512,1024,4096")
        sizes.add(int(part))
    for size in sorted(sizes):
        if not LEAST <= size <= MOST:
            raise UsageError(
                f"--sizes has {size}: a BPE vocabulary has {LEAST} (the end and 256 bytes) to {MOST} tokens"
            )
    return sorted(sizes)


def candidates(sizes: Sequence[int]) -> list[TokenizerChoice]:
    """Characters, bytes, words at the two largest sizes, and BPE at all of them."""
    words = [TokenizerChoice(kind="word", size=size) for size in sizes[-2:]]
    pairs = [TokenizerChoice(kind="bpe", size=size) for size in sizes]
    return [TokenizerChoice(kind="char"), TokenizerChoice(kind="byte"), *words, *pairs]


# --- measuring ----------------------------------------------------------------------------------------------------


class Clocked(Generic[Item]):
    """Things that are iterated, and the seconds that waiting for them took."""

    def __init__(self, things: Iterable[Item], size: int):
        self._things, self.bytes, self.seconds = things, size, 0.0

    def __iter__(self) -> Iterator[Item]:
        things, end = iter(self._things), object()
        while True:
            began = perf_counter()
            thing = next(things, end)
            self.seconds += perf_counter() - began
            if thing is end:
                return
            yield thing  # type: ignore[misc]


def compare(train: Documents, held_out: Documents, choice: TokenizerChoice, report: Report) -> Measured:
    """Learn tokens from the one part of a corpus and measure them on the other."""
    texts, began = Clocked(train, train.bytes), perf_counter()
    tokenizer = learn_tokenizer(texts, choice, report)
    seconds = max(perf_counter() - began - texts.seconds, 0.0)
    return measure(tokenizer, choice.size, held_out, seconds / (train.bytes / 1e6))


def measure(tokenizer: Tokenizer, size: int | None, held_out: Documents, learned: float) -> Measured:
    """What a tokenizer, asked for in this size and learned in so many seconds/MB, makes of held-out text."""
    lengths = np.array([len(tokenizer.bytes_of(index) or b"") for index in range(tokenizer.vocab_size)])
    tokens = unknown = known_bytes = 0
    for ids in tokenizer.encode_documents(held_out):
        tokens += len(ids)
        known_bytes += int(lengths[ids].sum())
        unknown += 0 if tokenizer.unknown_id is None else int((ids == tokenizer.unknown_id).sum())
    return Measured(
        tokenizer.kind, size, tokenizer.vocab_size, tokens, held_out.bytes / tokens, unknown / tokens,
        1 - known_bytes / held_out.bytes, learned, encoding_speed(tokenizer, held_out),
    )  # fmt: skip


def encoding_speed(tokenizer: Tokenizer, texts: Documents) -> float:
    """MB/s, without reading, after a first pass has made the tables; as many passes as a short text needs."""
    seconds = passes = 0
    while seconds < ENOUGH:
        read = Clocked(texts, texts.bytes)
        encoded = Clocked(tokenizer.encode_documents(read), texts.bytes)
        for _ in encoded:
            pass
        seconds, passes = seconds + max(encoded.seconds - read.seconds, 1e-6), passes + 1
    return passes * texts.bytes / 1e6 / seconds


def train_on(source: str, choice: TokenizerChoice, measured: Measured, minutes: float) -> Measured:
    """The same, with what a small model comes to that is trained on these tokens for so many minutes, learning them
    included; the settings of the environment count, but for the model's size and what is held out.
    """
    fixed = {**MODEL, "seed": 0, "validation": Validation(), "tokenizer": choice}
    settings = resolve(RunSettings, environment(), fixed)
    with TemporaryDirectory(prefix="nextile-compare-") as place:
        folder = Path(place, "run")
        model = new_run(
            [source], settings, task=task_named("lm"), folder=folder, report=Silent(), minutes=minutes
        ).model
        best = best_validation(folder)
    parameters, step = sum(each.numel() for each in model.parameters()), int(best.get("step", 0))
    return replace(measured, parameters=parameters, bits_per_byte=best.get("bits_per_byte"), step=step)


def experiment(source: str, sizes: str | None, minutes: float | None, report: Report) -> Iterator[Measured]:
    """Everything that `nextile tokenize --compare` tells of a source, a kind of token at a time.

    sizes: of the vocabularies, "512,1024"; None: what suits the text.  minutes: for a model on each; None: no model.
    Errors: UsageError for sizes or minutes that are none, and to train on standard input; NextileError for little text.
    """
    asked = None if sizes is None else read_sizes(sizes)
    if minutes is not None and source == "-":
        raise UsageError("--train reads the text once more for each kind: put standard input into a file")
    if minutes is not None and not 0 < minutes < 1e7:
        raise UsageError(f"--minutes {minutes:g} is no time to train for: give a positive number")
    corpus = open_corpus(source)
    train, held_out = split(corpus)  # as a run of seed 0 does
    if minutes is not None and train.bytes < FEWEST:
        raise NextileError(f"'{corpus.name}' has {corpus.bytes:,} bytes, too few to train on: give some thousands")
    choices = candidates(asked or usual_sizes(corpus.bytes))
    report.say(f"{corpus.name}: {train.bytes:,} bytes to learn from, {held_out.bytes:,} bytes held out and measured")
    with report.bar("comparing", len(choices), "kinds") as bar:
        for number, choice in enumerate(choices, start=1):
            row = compare(train, held_out, choice, report)
            if minutes is not None:
                report.say(f"training on {row.name} for {minutes:g} min, {number} of {len(choices)}")
                row = train_on(source, choice, row, minutes)
            yield row
            bar.advance()


# --- one tokenizer, looked at closely -------------------------------------------------------------------------------


def learned(source: str, kind: str, size: int | None, report: Report) -> tuple[Tokenizer, dict[str, Any]]:
    """Tokens learned from a corpus, and how it divides into them."""
    choice, corpus = resolve(TokenizerChoice, {"kind": kind, "size": size}), open_corpus(source)
    tokenizer = learn_tokenizer(corpus.documents, choice, report)
    with report.bar("tokenizing", corpus.bytes, "B") as bar:
        tokens = sum(len(ids) for ids in tokenizer.encode_documents(corpus.documents, progress=bar.update))
    return tokenizer, {"bytes": corpus.bytes, "tokens": tokens, "bytes_per_token": corpus.bytes / tokens}


def _watched(texts: Iterable[str], bar: Bar) -> Iterator[str]:
    for text in texts:
        yield text
        bar.advance(len(text.encode()))


def first_merges(source: str, text: str, count: int, report: Report) -> list[Merge]:
    """The first merges that byte-pair encoding learns from a corpus, or that a folder's tokens have.

    Each with `text` after it. Errors: UsageError for a long text, and for a folder whose tokens have no merges.
    """
    if len(text) > LONGEST:
        raise UsageError(f"a text of {len(text):,} characters is too long to show after every merge: give {LONGEST:,}")
    known = has_text(Path(source))
    found = list(_merges_of_folder(source, text, count) if known else _merges_of_corpus(source, text, count, report))
    if len(found) < count:
        report.say(f"there are {len(found):,} merges and no more")
    return found


def _merges_of_folder(source: str, text: str, count: int) -> Iterator[Merge]:
    tokenizer = Tokenizer.load(source)
    return one_by_one(islice(merges_of(tokenizer), count), byte_words(text, tokenizer))


def _merges_of_corpus(source: str, text: str, count: int, report: Report) -> Iterator[Merge]:
    documents = open_corpus(source).documents
    with report.bar("counting words", documents.bytes, "B") as bar:
        merges = bpe.first_merges(_watched(documents, bar), count)
    return one_by_one(merges, byte_words(text))


# --- what is told -------------------------------------------------------------------------------------------------


def columns(header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str]) -> str:
    """A table as text, without the columns that hold nothing; the columns named in `left` begin at the left."""
    filled = [column for column in zip(header, *rows, strict=True) if any(column[1:])]
    aligned = [list(_aligned(column, column[0] in left)) for column in filled]
    return "".join("  ".join(line).rstrip(" ") + "\n" for line in zip(*aligned, strict=True))


def _aligned(column: Sequence[str], left: bool) -> Iterator[str]:
    widest = max(map(cell_len, column))
    for text in column:
        space = " " * (widest - cell_len(text))
        yield text + space if left else space + text


def merge_table(merges: Sequence[Merge]) -> str:
    """The merges as text, one a line."""
    rows = [
        (
            f"{merge.number:,}",
            "" if merge.count is None else f"{merge.count:,}",
            " + ".join(map(_seen, merge.pair)),
            _seen(merge.token),
            "|".join(map(_seen, merge.text)),
        )
        for merge in merges
    ]
    return columns(("merge", "count", "pair", "token", "text"), rows, left=("pair", "token", "text"))


def _seen(symbol: bytes) -> str:
    return visible(spelled(symbol))


HEADER = ("kind", "vocabulary", "tokens", "bytes/token", "unknown", "of bytes", "learn s/MB", "encode MB/s")
TRAINED = ("parameters", "bits/byte ")
STAR = "* what it does not know is text that its model need not write: these bits per byte do not compare\n"


def table(rows: Sequence[Measured]) -> str:
    """The rows as text; below, where models were trained, why some do not compare, and last which of the others won."""
    whole = columns((*HEADER, *TRAINED), [_shown(row) + _model(row) for row in rows], left=("kind",))
    if not any(row.parameters for row in rows):
        return whole
    return whole + ("" if all(row.comparable for row in rows) else STAR) + winner(rows) + "\n"


def _shown(row: Measured) -> list[str]:
    return [
        row.name, f"{row.vocab_size:,}", f"{row.tokens:,}", f"{row.bytes_per_token:.2f}",
        f"{row.unknown_tokens:.2%}", f"{row.unknown_bytes:.2%}",
        f"{row.learn_seconds_per_mb:.3f}", f"{row.encode_mb_per_second:.1f}",
    ]  # fmt: skip


def _model(row: Measured) -> list[str]:
    if row.parameters is None:
        return ["", ""]
    bits = "none" if row.bits_per_byte is None else f"{row.bits_per_byte:.4f}"
    return [f"{row.parameters:,}", bits + (" " if row.comparable else "*")]


def winner(rows: Sequence[Measured]) -> str:
    """Which of the rows that compare has the lowest bits per byte, and by how much."""
    ranked = sorted((row.bits_per_byte, row.name) for row in rows if row.comparable and row.bits_per_byte is not None)
    if not ranked:
        return "nothing won: no model came to a loss that is a number"
    (best, name), *others = ranked
    if not others:
        return f"{name}: {best:.4f} bits per byte, and nothing to compare it with"
    second, runner_up = others[0]
    return f"{name} won: {best:.4f} bits per byte, {second - best:.4f} ({1 - best / second:.1%}) below {runner_up}"
