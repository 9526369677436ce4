"""Pictures with classes, or without: from a folder of class folders, Parquet files, or the digits of scikit-learn.

A corpus is opened by looking at names and labels alone, and at the headers of a few pictures; what is in a picture is
read when it is asked for. Names come from files that others wrote: none leads out of its folder, none is shown raw.

Shapes: N pictures, K classes.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nextile.base.errors import NextileError, UsageError
from nextile.base.files import inside
from nextile.data.corpora import SUFFIXES as TEXT_SUFFIXES
from nextile.data.corpora import missing, refuse_fraction
from nextile.data.tables import (
    Picture,
    Rows,
    Source,
    check_columns,
    checked_names,
    column_type,
    labels_of,
    open_table,
    shown,
)
from nextile.images.pixels import SUFFIXES

DIGITS = "digits"  # 1,797 written digits of 8x8 pixels, which come with scikit-learn
TABLE_SUFFIX = ".parquet"
ASIDE = ("labels", "license", "readme")  # texts that tell of the pictures beside them
PARTS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})  # no names of classes
GREY = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F"})  # modes of PIL without colour
LOOKED_AT = 64  # pictures whose headers tell the size and the colours of all


@dataclass(frozen=True, eq=False)
class PictureCorpus:
    """Pictures and their classes: `source(i)` is the i-th picture and its name, labels (N,) int64 its class or -1.

    side: the usual length of a shorter side, in pixels; grey: none has colours; note: what the user should be told.
    """

    name: str
    classes: tuple[str, ...]
    labels: np.ndarray
    source: Source
    side: int
    grey: bool
    note: str | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class _Found:
    """Pictures that nobody has looked at yet."""

    source: Source
    labels: np.ndarray  # (N,)
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def _unlabelled(count: int) -> np.ndarray:
    return np.full(count, -1, dtype=np.int64)


def _count(number: int, thing: str) -> str:
    """2, "file" -> "2 files"."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


# --- a folder ------------------------------------------------------------------------------------------------------

Parts = tuple[str, ...]  # the names from a folder down to a file


@dataclass
class _Listing:
    """What is in a folder, at any depth; hidden names are skipped."""

    pictures: list[Parts] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)  # Parquet files directly in it
    folders: list[str] = field(default_factory=list)  # directly in it
    others: int = 0
    links: int = 0  # that were not followed


def _is_picture(name: str) -> bool:
    return name.lower().endswith(tuple(SUFFIXES))


def _is_table(name: str) -> bool:
    return name.lower().endswith(TABLE_SUFFIX)


def _is_text(name: str) -> bool:
    return name.lower().endswith(TEXT_SUFFIXES) and not _is_aside(name)


def _is_aside(name: str) -> bool:
    return name.lower().partition(".")[0] in ASIDE


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    """What can be seen in a folder, by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted((each for each in entries if not each.name.startswith(".")), key=lambda each: each.name)
    except OSError as error:
        raise NextileError(f"cannot read '{shown(str(folder))}': {error.strerror or error}") from error


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # links in a circle
        return False


def _is_open_table(entry: os.DirEntry[str]) -> bool:
    return _is_table(entry.name) and _is_file(entry) and shown(entry.name) == entry.name


def _list(folder: Path) -> _Listing:
    found = _Listing()
    waiting: list[Parts] = [()]
    while waiting:
        parts = waiting.pop()
        for entry in _scan(folder.joinpath(*parts)):
            if entry.is_dir(follow_symlinks=False):
                waiting.append((*parts, entry.name))
            else:
                _add(found, folder, (*parts, entry.name), entry)
        if not parts:
            found.folders = [inner[0] for inner in waiting]
    found.pictures.sort()
    return found


def _add(found: _Listing, folder: Path, parts: Parts, entry: os.DirEntry[str]) -> None:
    if entry.is_symlink() and not _stays(folder, parts):
        found.links += 1
    elif _is_picture(entry.name) and _is_file(entry):
        found.pictures.append(parts)
    elif len(parts) == 1 and _is_open_table(entry):
        found.tables.append(entry.name)
    elif not _is_aside(entry.name):
        found.others += 1


def _stays(folder: Path, parts: Parts) -> bool:
    """Whether a link leads to a file of the same folder."""
    try:
        return inside(folder, "/".join(parts)).is_file()
    except (NextileError, OSError, RuntimeError):  # the last for links in a circle
        return False


def _from_folder(folder: Path, labelled: bool) -> _Found:
    listing = _list(folder)
    if listing.tables and not listing.pictures:
        _refuse_parts(folder, listing.tables)
        return _from_tables([folder / name for name in listing.tables], labelled)
    if not labelled:
        return _Found(_paths(folder, listing.pictures), _unlabelled(len(listing.pictures)), notes=_notes(listing))
    classes = _class_folders(folder, listing)
    number = {name: label for label, name in enumerate(classes)}
    labels = np.array([number[parts[0]] for parts in listing.pictures], dtype=np.int64)
    return _Found(_paths(folder, listing.pictures), labels, classes, _notes(listing, classes))


def _paths(folder: Path, pictures: Sequence[Parts]) -> Source:
    def source(index: int) -> Picture:
        path = folder.joinpath(*pictures[index])
        return path, shown(str(path))

    return source


def _class_folders(folder: Path, listing: _Listing) -> tuple[str, ...]:
    """The folders with pictures, sorted. Errors: NextileError for pictures outside of them, or none that is a class."""
    outside = [parts[0] for parts in listing.pictures if len(parts) == 1]
    if outside:
        raise NextileError(
            f"'{folder}' has pictures that are in no class folder ({shown(outside[0])}): put each into the folder of "
            f"its class, like {folder / 'cat' / '1.png'} and {folder / 'dog' / '1.png'}"
        )
    classes = checked_names(sorted({parts[0] for parts in listing.pictures}), f"'{folder}'")
    _refuse_parts(folder, classes)
    return classes


def _refuse_parts(folder: Path, names: Sequence[str]) -> None:
    """Errors: NextileError when these are parts of a data set, of which one is to be trained on: train, test."""
    parts = {re.split(r"[-_.\d]", name.lower())[0] for name in names}
    alone = len(names) == 1 and names[0].lower() in parts
    if parts <= PARTS and (len(parts) > 1 or alone):
        first = max(names, key=lambda name: name.lower().startswith("train"))
        raise NextileError(
            f"'{folder}' has parts of a data set ({_some(names)}), to be trained on apart: give '{folder / first}'"
        )


def _notes(listing: _Listing, classes: Sequence[str] = ()) -> tuple[str, ...]:
    """What of a folder was left out; without classes, a folder without pictures is nothing to tell."""
    empty = [shown(name) for name in listing.folders if classes and name not in classes]
    others = listing.others + len(listing.tables)
    return (
        *([f"{_count(len(empty), 'folder')} without pictures left out: {_some(empty)}"] * bool(empty)),
        *([f"{_count(others, 'file')} without a picture's suffix ignored"] * bool(others)),
        *([f"{_count(listing.links, 'link')} out of the folder, or to folders, not followed"] * bool(listing.links)),
    )


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join([*map(shown, names[:most]), *["..."] * (len(names) > most)])


def _from_tables(paths: Sequence[Path], labelled: bool) -> _Found:
    tables = [open_table(path) for path in paths]
    for table in tables:
        check_columns(table, labelled)
    classes, labels = labels_of(tables) if labelled else ((), _unlabelled(sum(table.rows for table in tables)))
    notes = (f"{len(paths)} Parquet files read as one: {_some([path.name for path in paths])}",)
    return _Found(Rows(tables), labels, classes, notes if len(paths) > 1 else ())


# --- built in ------------------------------------------------------------------------------------------------------


def _from_digits(labelled: bool) -> _Found:
    """Digits written by hand, 8x8 pixels from white paper 0 to black ink 16 (Alpaydin and Kaynak 1998)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise NextileError(f"{DIGITS} needs scikit-learn: pip install 'nextile[images]'") from error
    digits: Any = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (N, 8, 8)

    def source(index: int) -> Picture:
        return _png(pixels[index]), f"{DIGITS} {index}"

    if not labelled:
        return _Found(source, _unlabelled(len(pixels)))
    return _Found(source, digits.target.astype(np.int64), tuple(map(str, range(10))))


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    _pillow().fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _pillow() -> Any:
    """Its module of pictures. Errors: NextileError when it is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise NextileError("pictures need Pillow: pip install 'nextile[images]'") from error
    return Image


# --- opening -------------------------------------------------------------------------------------------------------


def are_pictures(sources: Sequence[str]) -> bool:
    """Whether these arguments mean pictures: `digits`, a .parquet with a column `image`, or a folder of pictures.

    A folder is one if it, or the first folder in it that has either, has pictures and no texts. A file wins over
    `digits`. Of a .parquet that cannot be read, pictures are assumed; opening it says what is wrong.
    """
    if len(sources) != 1:
        return False
    path = Path(sources[0])
    if not os.path.exists(path):  # unlike Path.exists, False for a name too long to be one
        return sources[0] == DIGITS or _is_table(path.name)
    try:
        return _shows_pictures(path) if path.is_dir() else _is_table(path.name) and _has_images(path)
    except NextileError:
        return not path.is_dir()


def _has_images(path: Path) -> bool:
    return column_type(open_table(_regular(path)).schema, "image") is not None


def _shows_pictures(folder: Path) -> bool:
    entries = _scan(folder)
    folders = [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]
    for each in itertools.chain([entries], map(_scan, folders)):
        names = [entry.name for entry in each if _is_file(entry)]
        if any(map(_is_text, names)):
            return False
        if any(map(_is_picture, names)):
            return True
    tables = [entry for entry in entries if _is_open_table(entry)]
    return bool(tables) and _has_images(Path(tables[0]))


def open_pictures(sources: Sequence[str], labelled: bool) -> PictureCorpus:
    """Pictures from a folder, a .parquet file or a folder of them, or `digits`; a file wins over the built-in name.

    labelled: with classes. Those of a folder are the folders in it, each with pictures at any depth; those of Parquet
    are in the column `label`, named by the file or by a labels.txt beside it; its pictures are in the column `image`.
    Errors: NextileError for what is missing, unreadable, fewer than 2 pictures or (labelled) classes, a label that is
    none, and an optional library that is not there; UsageError for more sources than one.
    """
    if len(sources) != 1:
        raise UsageError(f"pictures come from one source, not {len(sources)}: {_remedy()}")
    name = sources[0]
    found = _find(name, labelled)
    _refuse_too_little(name, found, labelled)
    note = "; ".join(found.notes) or None
    return PictureCorpus(shown(name), found.classes, found.labels, found.source, *_look(name, found), note)


def _remedy() -> str:
    return f"give a folder of pictures, a {TABLE_SUFFIX} file or '{DIGITS}'"


def _find(name: str, labelled: bool) -> _Found:
    path = Path(name)
    if not os.path.exists(path):
        if name == DIGITS:
            return _from_digits(labelled)
        raise NextileError(missing(path, [DIGITS], _remedy()))
    if path.is_dir():
        return _from_folder(path, labelled)
    if not _is_table(name):
        raise NextileError(f"'{path}' is no collection of pictures: {_remedy()}")
    return _from_tables([_regular(path)], labelled)


def _regular(path: Path) -> Path:
    if not path.is_file():
        raise NextileError(f"'{path}' is not a regular file: {_remedy()}")
    return path


def _refuse_too_little(name: str, found: _Found, labelled: bool) -> None:
    count = len(found.labels)
    if not count:
        raise NextileError(f"'{name}' has no pictures in it: put files of these kinds there: {' '.join(SUFFIXES)}")
    if count < 2:
        raise NextileError(f"'{name}' has 1 picture: at least 2 are needed, and a few hundred to learn from")
    if labelled and (found.labels == found.labels[0]).all():
        only = found.classes[found.labels[0]]
        raise NextileError(f"all {count:,} pictures of '{name}' are of the class '{only}': give some of another class")


def _look(name: str, found: _Found) -> tuple[int, bool]:
    """The median of the shorter sides of a few pictures, and whether all of those are grey."""
    count = len(found.labels)
    places = np.linspace(0, count - 1, min(LOOKED_AT, count)).astype(int).tolist()
    headers = [header for place in places if (header := _header(found.source(place)[0]))]
    if not headers:
        raise NextileError(f"none of {len(places)} pictures looked at in '{name}' is one: get sound copies")
    return int(np.median([side for side, _ in headers])), all(grey for _, grey in headers)


def _header(source: Path | bytes) -> tuple[int, bool] | None:
    """The shorter side and whether it is grey, or None for what is no picture; that is said when it is read."""
    library, file = _pillow(), io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings(action="ignore"), library.open(file) as picture:
            return min(picture.size), picture.mode in GREY
    except Exception:  # a broken header raises what its reader happens to stumble over
        return None


# --- holding out for validation ------------------------------------------------------------------------------------


def split_pictures(corpus: PictureCorpus, fraction: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Which pictures to train on and which to validate on, `fraction` of each class; a pure function of its input.

    Both are sorted, (N,) int64 together. One picture at least of every class is left to train on, and one is held out
    of every class that has two, if the fraction of all is as many as those classes.
    Errors: NextileError when none can be held out, UsageError for a fraction that is none.
    """
    refuse_fraction(fraction)
    _, classes, sizes = np.unique(corpus.labels, return_inverse=True, return_counts=True)
    held = _shares(sizes, fraction)  # of each class
    if not held.sum():
        raise NextileError(
            f"'{corpus.name}' has one picture of each class, so none can be held out for validation: give more of them"
        )
    order = np.lexsort((_random(len(corpus), seed), classes))  # class by class
    ranks = np.empty(len(corpus), dtype=np.int64)
    ranks[order] = np.arange(len(corpus)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within the class
    chosen = ranks < held[classes]
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _random(count: int, seed: int) -> np.ndarray:
    """64 bits for each of `count` indices, that of an index depending on it and the seed alone: (count,) uint64."""
    key = hashlib.blake2b(f"pictures {seed}".encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)


def _shares(sizes: np.ndarray, fraction: float) -> np.ndarray:
    """How many of each class to hold out, (K,): the fraction of all in sum, and nearest to it in each."""
    total, most = max(1, round(fraction * int(sizes.sum()))), sizes - 1
    held = np.minimum((fraction * sizes).astype(np.int64), most)
    if (most > 0).sum() <= total:
        held = np.maximum(held, most > 0)
    lacking = np.where(held < most, fraction * sizes - held, -np.inf)  # the largest remainders are rounded up
    first = np.argsort(-lacking, kind="stable")[: max(0, total - int(held.sum()))]
    held[first[np.isfinite(lacking[first])]] += 1
    return held
