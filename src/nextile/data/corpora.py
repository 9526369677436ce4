"""Text corpora from files, folders, standard input and this Python itself: re-iterable documents, checked in one pass.

A corpus is opened by one streaming pass that checks every byte, counts, and hashes; the documents are then read
again, as often as wanted, one at a time. Text is UTF-8: a byte order mark at the start of a file is dropped, and
newlines stay exactly as they are in the file, Windows ones included. Documents of nothing but white space are left
out, except that a corpus must have something else.
"""

from __future__ import annotations

import codecs
import difflib
import functools
import gzip
import hashlib
import importlib
import io
import itertools
import json
import os
import sys
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from nextile.base.device import memory_available
from nextile.base.errors import NextileError, UsageError

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".txt.gz")  # a file is one document
LINE_SUFFIXES = (".jsonl", ".jsonl.gz")  # a line is one document, its "text" field
SUFFIXES = TEXT_SUFFIXES + LINE_SUFFIXES
CHUNK = 2**20  # bytes
INDEX = np.dtype([("hash", "<u8"), ("bytes", "<i8"), ("characters", "<i8")])  # what is known of each document


class Documents:
    """Texts that can be iterated as often as wanted; each time they are read anew, one at a time.

    `len()` is their number, `bytes` their size in UTF-8 and `characters` their length, without reading them.
    Errors: NextileError at the end of an iteration that did not read what was counted when the corpus was opened.
    """

    def __init__(self, read: Callable[[], Iterator[str]], count: int, size: int, characters: int):
        self._read, self._count, self.bytes, self.characters = read, count, size, characters

    def __iter__(self) -> Iterator[str]:
        count = characters = 0
        for text in self._read():
            count, characters = count + 1, characters + len(text)
            yield text
        if (count, characters) != (self._count, self.characters):
            raise NextileError("the text changed while it was being read: run again when nobody writes to it")

    def __len__(self) -> int:
        return self._count


@dataclass(frozen=True, eq=False)
class Corpus:
    """A checked corpus: its documents, their size in UTF-8 bytes, a SHA-256 over them, and a row for each (INDEX)."""

    name: str
    documents: Documents
    bytes: int
    fingerprint: str
    index: np.ndarray
    builtin: bool = False


# --- pieces of text ------------------------------------------------------------------------------------------------

Piece = tuple[str, bool]  # text, and whether a document ends there; so checking never holds more than one piece
Pieces = Callable[[], Iterator[Piece]]


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file, unpacked if its name ends in .gz. Errors: NextileError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            yield gzip.GzipFile(fileobj=file) if path.suffix.lower() == ".gz" else file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise NextileError(f"'{path}' is a broken .gz file ({error}): get a complete copy of it") from error
    except OSError as error:
        raise NextileError(f"cannot read '{path}': {error.strerror or error}") from error


def refuse_binary(data: bytes, offset: int, name: str) -> None:
    """Errors: NextileError when these bytes, found at an offset of a file, are UTF-16 or not text at all."""
    if offset == 0 and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise NextileError(f"{name} is UTF-16: convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)")
    if b"\0" in data:
        at = offset + data.index(b"\0")
        raise NextileError(f"{name} is binary, not text (a zero byte at offset {at}): give UTF-8 text")


def _decode(file: io.BufferedIOBase, name: str) -> Iterator[str]:
    """UTF-8 text piece by piece. Errors: NextileError with the offset of the first byte that is not text."""
    decoder, offset, begun = codecs.getincrementaldecoder("utf-8")(), 0, False
    while True:
        chunk = file.read(CHUNK)
        refuse_binary(chunk, offset, name)
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            at = offset - pending + error.start
            raise NextileError(f"{name} is not valid UTF-8 (byte {at}): convert it to UTF-8 (iconv)") from error
        yield text if begun else text.removeprefix("\ufeff")
        begun = begun or bool(text)
        if not chunk:
            return
        offset += len(chunk)


def _whole(file: io.BufferedIOBase, name: str) -> Iterator[Piece]:
    """A file that is one document."""
    for text in _decode(file, name):
        yield text, False
    yield "", True


def _lines(file: Iterable[bytes], name: str) -> Iterator[Piece]:
    """A file of JSON lines, each a document; empty lines are skipped."""
    for number, line in enumerate(file, start=1):
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if line.strip():
            yield _text_field(line, f"{name} line {number}"), True


def parsed(line: bytes | str, place: str) -> Any:
    """What a line of JSON says. Errors: NextileError, beginning with the place, where it is none."""
    try:
        return json.loads(line if isinstance(line, str) else line.decode())
    except UnicodeDecodeError as error:
        raise NextileError(f"{place} is not valid UTF-8 (byte {error.start} of the line): convert the file") from error
    except (ValueError, RecursionError) as error:
        raise NextileError(f"{place} is not valid JSON ({error}): mend or remove the line") from error


def _text_field(line: bytes, place: str) -> str:
    value = parsed(line, place)
    if not isinstance(value, dict) or "text" not in value:
        raise NextileError(f'{place} has no "text" field: each line must be like {{"text": "..."}}')
    return string(value["text"], '"text"', place)


def string(value: Any, name: str, place: str) -> str:
    """A string that came from JSON under this name. Errors: NextileError where it is none, or no Unicode."""
    if not isinstance(value, str):
        raise NextileError(f"{place}: {name} is {json_kind(value)}, not a string: mend or remove the line")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise NextileError(f"{place}: {name} holds half of a surrogate pair: mend or remove the line") from error
    return value


def json_kind(value: Any) -> str:
    """How people call what a value is."""
    kinds = {dict: "an object", list: "a list", bool: "true or false", type(None): "null", str: "a string"}
    return kinds.get(type(value), "a number")


def _file_pieces(path: Path) -> Iterator[Piece]:
    read = _lines if _suffix(path.name) in LINE_SUFFIXES else _whole
    with open_bytes(path) as file:
        yield from read(file, f"'{path}'")


def _suffix(name: str) -> str:
    """The supported suffix of a file's name, the longest that fits, or nothing."""
    fitting = [suffix for suffix in SUFFIXES if name.lower().endswith(suffix)]
    return max(fitting, key=len, default="")


# --- sources -------------------------------------------------------------------------------------------------------


def _text_file(path: Path) -> Path:
    """The path. Errors: NextileError where it is no regular file of a kind that is read."""
    if not path.is_file():
        raise NextileError(f"'{path}' is not a regular file: pipe it into standard input and give '-'")
    if not _suffix(path.name):
        raise NextileError(f"'{path}' has an unsupported suffix: rename it to one of {' '.join(SUFFIXES)}")
    return path


def _from_file(path: Path) -> Pieces:
    return functools.partial(_file_pieces, _text_file(path))


def _text_files(folder: Path) -> list[Path]:
    """Those of a folder that are read, in order. Errors: NextileError where there are none."""
    paths = [path for path in _visible_files(folder) if _suffix(path.name)]
    if not paths:
        raise NextileError(f"'{folder}' has no text in it: put files of these kinds there: {' '.join(SUFFIXES)}")
    return paths


def _from_folder(folder: Path) -> Pieces:
    paths = _text_files(folder)
    return lambda: (piece for path in paths for piece in _file_pieces(path))


def _visible_files(folder: Path, skip: frozenset[str] = frozenset()) -> list[Path]:
    """The regular files below a folder, sorted by path; links are followed, but no folder is entered twice."""

    def unreadable(error: OSError) -> None:
        raise NextileError(f"cannot read '{error.filename}': {error.strerror}") from error

    found, entered = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        status = os.stat(parent)
        seen = (status.st_dev, status.st_ino) in entered
        entered.add((status.st_dev, status.st_ino))
        folders[:] = [] if seen else sorted(name for name in folders if not name.startswith(".") and name not in skip)
        visible = [] if seen else [Path(parent, name) for name in names if not name.startswith(".")]
        found += [path for path in visible if path.is_file()]
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _from_stream(stream: IO[bytes]) -> Pieces:
    """Standard input can be read once only, so it is kept."""
    data = stream.read()
    return lambda: _whole(io.BytesIO(data), "'standard input'")


def _python_docs() -> Pieces:
    """The topics of `help()`: the chapters of the Python reference that ship inside CPython."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise NextileError("this Python comes without pydoc_data: install the whole of it, or give a file") from error
    return lambda: ((topics[name], True) for name in sorted(topics))


NOT_LIBRARY = frozenset({"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"})


def _python_stdlib() -> Pieces:
    """The source of the standard library of this Python, without its tests, its editor and what was installed."""
    folder = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in _visible_files(folder, skip=NOT_LIBRARY) if path.suffix == ".py"]
    if not paths:
        raise NextileError(f"this Python comes without source in '{folder}': give a file or a folder")
    return lambda: (piece for path in paths for piece in _file_pieces(path))


BUILTINS: dict[str, Callable[[], Pieces]] = {"python-docs": _python_docs, "python-stdlib": _python_stdlib}


# --- opening -------------------------------------------------------------------------------------------------------


def open_corpus(source: str | Path, *, stdin: IO[bytes] | None = None) -> Corpus:
    """A corpus from a file, a folder of files, "-" for standard input, or a built-in name; a file wins over a built-in.

    A .txt (.md, .rst, .py, .txt.gz) is one document, a line of a .jsonl (.jsonl.gz) is one; a folder is read whole,
    sorted by path, its hidden files skipped; standard input is one document.
    Errors: NextileError for what is missing, unreadable, empty, binary, not UTF-8, or not the JSON it should be.
    """
    if source == "-":
        return _survey("standard input", _from_stream(stdin or sys.stdin.buffer))
    path = Path(source)
    if os.path.exists(path):  # unlike Path.exists, False for a name too long to be one
        return _survey(str(path), _from_folder(path) if path.is_dir() else _from_file(path))
    if str(source) in BUILTINS:
        return _survey(str(source), BUILTINS[str(source)](), builtin=True)
    raise NextileError(missing(path, BUILTINS, f"give a file, a folder, '-' or one of {', '.join(BUILTINS)}"))


def missing(path: Path, builtins: Iterable[str], remedy: str) -> str:
    """That a path does not exist: with the nearest name, of a file beside it or built in; else with the remedy."""
    beside = os.listdir(path.parent) if os.access(path.parent, os.R_OK) and path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, [*beside, *builtins], n=1)
    name = path.with_name(near[0]) if near and near[0] in beside else "".join(near)
    return f"'{path}' does not exist: " + (f"did you mean '{name}'?" if near else remedy)


def _survey(name: str, pieces: Pieces, builtin: bool = False) -> Corpus:
    """Read everything once: check, count and hash it, holding one piece at a time."""
    digest, rows, read = hashlib.sha256(), [], 0
    for each, size, characters, blank in _measure(pieces()):
        read += size
        if not blank:
            digest.update(each)
            rows.append((int.from_bytes(each[:8], "little"), size, characters))
    index = np.array(rows, dtype=INDEX)
    total, characters = int(index["bytes"].sum()), int(index["characters"].sum())
    _refuse_too_little(name, characters, nothing=not read)
    _refuse_too_large(name, int(index["bytes"].max()))
    documents = Documents(lambda: _join(pieces()), len(index), total, characters)
    return Corpus(name, documents, total, digest.hexdigest(), index, builtin)


def _measure(pieces: Iterator[Piece]) -> Iterator[tuple[bytes, int, int, bool]]:
    """Of every document its SHA-256, its bytes, its characters, and whether it is nothing but white space."""
    digest, size, characters, blank = hashlib.sha256(), 0, 0, True
    for text, ends in pieces:
        data = text.encode()
        digest.update(data)
        size, characters, blank = size + len(data), characters + len(text), blank and not text.strip()
        if ends:
            yield digest.digest(), size, characters, blank
            digest, size, characters, blank = hashlib.sha256(), 0, 0, True


def _join(pieces: Iterator[Piece]) -> Iterator[str]:
    """The documents that are more than white space."""
    parts: list[str] = []
    for text, ends in pieces:
        parts.append(text)
        if ends:
            document = "".join(parts)
            parts.clear()
            if document and not document.isspace():
                yield document


def _refuse_too_little(name: str, characters: int, nothing: bool) -> None:
    if nothing:
        raise NextileError(f"'{name}' is empty: give some text to learn from")
    if characters == 0:
        raise NextileError(f"'{name}' holds nothing but white space: give some text to learn from")
    if characters < 2:
        raise NextileError(f"'{name}' has 1 character: at least 2 are needed, and a few thousand to learn from")


def _refuse_too_large(name: str, largest: int) -> None:
    """A document is handled whole, as text and as tokens; a small .gz may unpack to more than fits."""
    free = memory_available()
    if 2 * largest > free:
        raise NextileError(
            f"'{name}' has a document of {largest:,} bytes, too much for {free:,} bytes of free memory: "
            'give it as .jsonl, one {"text": ...} a document'
        )


# --- parts, for many readers ---------------------------------------------------------------------------------------

PART = 64 * 2**20  # bytes of a file that one reader takes at a time, about


@dataclass(frozen=True)
class Part:
    """The bytes `start` to `stop` of a file, both between documents; None: to its end."""

    path: Path
    start: int = 0
    stop: int | None = None

    @property
    def bytes(self) -> int:
        """How many, as they lie on disk."""
        return (self.path.stat().st_size if self.stop is None else self.stop) - self.start

    def documents(self) -> Iterator[str]:
        """Its texts, as `open_corpus` reads them, not counted before. Errors: NextileError, as there."""
        return _join(self._pieces())

    def _pieces(self) -> Iterator[Piece]:
        if self.stop is None:
            yield from _file_pieces(self.path)
            return
        with open_bytes(self.path) as file:
            file.seek(self.start)
            yield from _lines(_up_to(file, self.stop - self.start), f"'{self.path}' from byte {self.start},")


def _up_to(file: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The lines in the next so many bytes."""
    for line in file:
        yield line
        size -= len(line)
        if size <= 0:
            return


def file_parts(source: str | Path, size: int = PART) -> list[Part]:
    """A file or a folder in parts of about so many bytes, in the order in which `open_corpus` reads it.

    A .jsonl is cut between its lines; another file is one part, as large as it is.
    Errors: NextileError for what is missing, and for what is no file or folder of text.
    """
    path = Path(source)
    if not os.path.exists(path):
        raise NextileError(missing(path, (), "give a file or a folder that all workers see"))
    paths = _text_files(path) if path.is_dir() else [_text_file(path)]
    return [part for each in paths for part in _cut_file(each, size)]


def _cut_file(path: Path, size: int) -> list[Part]:
    total = path.stat().st_size
    if _suffix(path.name) != ".jsonl" or total <= size:
        return [Part(path)]
    cuts = [0]
    with open_bytes(path) as file:
        for place in range(size, total, size):
            file.seek(place)
            file.readline()
            cuts += [file.tell()] if cuts[-1] < file.tell() < total else []
    return [Part(path, start, stop) for start, stop in itertools.pairwise([*cuts, total])]


# --- holding out for validation ------------------------------------------------------------------------------------


def split(corpus: Corpus, fraction: float = 0.1, seed: int = 0) -> tuple[Documents, Documents]:
    """The documents to train on and those to validate on, about `fraction` of the bytes; a pure function of its input.

    Whole documents are held out, chosen by their hash and the seed. Where documents are too few or too large for that,
    the last fraction of the text is: everything from character int(characters * (1 - fraction)).
    Errors: NextileError when one side would be empty, UsageError for a fraction that is none.
    """
    refuse_fraction(fraction)
    characters = corpus.index["characters"]
    held = _choose(corpus.index, fraction, seed)
    kept = np.where(held, 0, characters) if held.any() else _cut(characters, fraction)  # by training, of each document
    if kept.sum() in (0, characters.sum()):
        raise NextileError(
            f"'{corpus.name}' has {characters.sum()} characters, too few to hold out {fraction} of them "
            "for validation: give a longer text or another fraction"
        )
    size, length, count = _size(corpus, kept), int(kept.sum()), int((kept > 0).sum())
    left = corpus.bytes - size, int(characters.sum()) - length
    train = Documents(functools.partial(_heads, corpus, kept), count, size, length)
    return train, Documents(functools.partial(_tails, corpus, kept), int((kept < characters).sum()), *left)


def refuse_fraction(fraction: float) -> None:
    """Errors: UsageError for a fraction that would leave one side of a split empty."""
    if not 0 < fraction < 1:
        raise UsageError(f"validation fraction {fraction} is not between 0 and 1: 0.1 holds out a tenth")


def _choose(index: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which documents to hold out, (documents,) bool; none at all when whole ones cannot give half of the fraction.

    Those larger than that half are left to training, so that the rest, in the order of their hashes, come close.
    """
    key = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "little")
    sizes, target = index["bytes"], fraction * int(index["bytes"].sum())
    order = np.argsort(index["hash"] ^ np.uint64(key), kind="stable")
    order = order[2 * sizes[order] <= target]
    chosen = order[np.cumsum(sizes[order]) <= target]
    held = np.zeros(len(index), dtype=bool)
    held[chosen] = 2 * sizes[chosen].sum() >= target
    return held


def _cut(characters: np.ndarray, fraction: float) -> np.ndarray:
    """How much of each document lies before the cut through the whole text, (documents,) characters."""
    starts = np.cumsum(characters) - characters
    cut = int(int(characters.sum()) * (1 - fraction))
    return np.clip(cut - starts, 0, characters)


def _size(corpus: Corpus, kept: np.ndarray) -> int:
    """The bytes of the kept characters; a document must be read to know the size of a part of it."""
    whole = kept == corpus.index["characters"]
    parts = np.flatnonzero(~whole & (kept > 0))
    texts = (next(itertools.islice(corpus.documents, row, None), "")[: kept[row]] for row in parts.tolist())
    return int(corpus.index["bytes"][whole].sum()) + sum(len(text.encode()) for text in texts)


def _heads(corpus: Corpus, kept: np.ndarray) -> Iterator[str]:
    return (text[:end] for text, end in zip(corpus.documents, kept, strict=False) if end > 0)


def _tails(corpus: Corpus, kept: np.ndarray) -> Iterator[str]:
    return (text[start:] for text, start in zip(corpus.documents, kept, strict=False) if start < len(text))
