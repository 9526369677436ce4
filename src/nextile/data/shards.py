"""Memory-mapped token shards: a corpus as one long array of ids on disk, each document followed by its end token."""

from __future__ import annotations

import itertools
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from nextile.base.config import Settings
from nextile.base.errors import NextileError
from nextile.base.files import Checksum, atomic_folder, atomic_write, checksum, inside

INDEX = "index.json"
STRETCH = "stretch.json"  # instead of it, where the tokens lie in another folder
FORMAT = "nextile tokens 1"
SHARD_TOKENS = 2**28
BLOCK = 2**18  # tokens handled at a time while writing
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


class Shard(Settings):
    """One file of tokens."""

    name: str
    tokens: int = Field(ge=1)
    checksum: str


class Index(Settings):
    """What lies in the folder: `meta` is the writer's, with "text_bytes" and the "tokenizer" fingerprint by custom."""

    format: str = FORMAT
    dtype: str
    tokens: int
    documents: int
    vocab_size: int
    end_id: int
    shards: tuple[Shard, ...]
    meta: dict[str, Any]


class Stretch(Settings):
    """Tokens start..stop-1 of a store, and what they are of its documents and bytes."""

    store: str  # the whole path of its folder
    start: int = Field(ge=0)
    stop: int
    documents: int
    text_bytes: int


class TokenStore:
    """The tokens of a corpus; `store[a:b]` reads only what is asked for, as int64, across the borders of shards.

    stretch: the part of them that this is; None: all.
    """

    def __init__(self, folder: Path, index: Index, stretch: Stretch | None = None):
        self.folder, self.index, self.meta = folder, index, index.meta
        size = int(index.meta.get("text_bytes", 0))
        self.stretch = stretch or Stretch(
            store=str(folder.resolve()), start=0, stop=index.tokens, documents=index.documents, text_bytes=size
        )
        self.documents, self.text_bytes = self.stretch.documents, self.stretch.text_bytes
        self._start, self._stop = self.stretch.start, self.stretch.stop
        self.vocab_size, self.end_id = index.vocab_size, index.end_id
        self._shards = [np.memmap(folder / shard.name, DTYPES[index.dtype], mode="r") for shard in index.shards]
        self._starts = np.cumsum([0, *(shard.tokens for shard in index.shards)])

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, span: slice) -> np.ndarray:
        start, stop, step = span.indices(len(self))
        if step != 1:
            raise ValueError(f"a token store is read without steps, not with {step}")
        pieces = self._pieces(self._start + start, self._start + stop)
        return np.concatenate([np.empty(0, np.int64), *pieces], dtype=np.int64)

    def take(self, places: np.ndarray) -> np.ndarray:
        """The tokens at these places, int64 of the same shape."""
        found, places = np.empty(places.shape, np.int64), places + self._start
        numbers = np.searchsorted(self._starts, places, side="right") - 1
        for number in np.unique(numbers):
            there = numbers == number
            found[there] = self._shards[number][places[there] - self._starts[number]]
        return found

    def ends(self) -> np.ndarray:
        """Where each document ends: the places of the end tokens, (documents,) int64."""
        found = (
            np.flatnonzero(shard == self.end_id) + start
            for shard, start in zip(self._shards, self._starts, strict=False)
        )
        places = np.concatenate([np.empty(0, np.int64), *found])
        return places[(places >= self._start) & (places < self._stop)] - self._start

    def _pieces(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """The parts of start..stop in each shard that has some."""
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            first = int(self._starts[number])
            piece = self._shards[number][start - first : stop - first]
            yield piece
            start, number = start + len(piece), number + 1


# --- writing -------------------------------------------------------------------------------------------------------


def write_store(
    folder: str | Path,
    documents: Iterable[np.ndarray],
    *,
    vocab_size: int,
    end_id: int,
    meta: Mapping[str, Any],
    shard_tokens: int = SHARD_TOKENS,
) -> TokenStore:
    """Write arrays of token ids, one a document, each followed by `end_id`, as a store that appears whole or never.

    The documents are streamed; `meta` must fit in JSON and is read after the last document.
    Errors: NextileError for no documents at all, for an id outside 0..vocab_size-1, and for a full disk.
    """
    dtype = "uint16" if vocab_size <= 2**16 else "uint32"
    tally = Counter[str]()
    blocks = _checked(_packed(documents, end_id, tally), vocab_size)
    with atomic_folder(folder) as temporary:
        shards = tuple(
            _write_shard(temporary / _name(number), (piece for _, piece in pieces), DTYPES[dtype])
            for number, pieces in itertools.groupby(_cut(blocks, shard_tokens), key=operator.itemgetter(0))
        )
        if not shards:
            raise NextileError(f"'{folder}': there are no documents to write: give some text")
        index = Index(
            dtype=dtype,
            tokens=sum(shard.tokens for shard in shards),
            documents=tally["documents"],
            vocab_size=vocab_size,
            end_id=end_id,
            shards=shards,
            meta=dict(meta),
        )
        atomic_write(temporary / INDEX, index.model_dump_json(indent=1) + "\n")
    return open_store(folder)


def _name(number: int) -> str:
    return f"tokens-{number:05d}.bin"


def _packed(documents: Iterable[np.ndarray], end_id: int, tally: Counter[str]) -> Iterator[np.ndarray]:
    """The documents and their end tokens in blocks of BLOCK tokens or a little more; `tally` counts the documents."""
    end = np.array([end_id], dtype=np.int64)
    parts: list[np.ndarray] = []
    size = 0
    for ids in documents:
        tally["documents"] += 1
        parts += (ids, end)
        size += len(ids) + 1
        if size >= BLOCK:
            yield np.concatenate(parts, dtype=np.int64)
            parts, size = [], 0
    if parts:
        yield np.concatenate(parts, dtype=np.int64)


def _checked(blocks: Iterable[np.ndarray], vocab_size: int) -> Iterator[np.ndarray]:
    """The blocks, if their ids are in the vocabulary: those that are not would wrap silently into others."""
    for ids in blocks:
        wrong = ids[(ids < 0) | (ids >= vocab_size)]
        if len(wrong):
            raise NextileError(f"token id {wrong[0]} is not in the vocabulary of {vocab_size}: use its own tokenizer")
        yield ids


def _cut(blocks: Iterable[np.ndarray], shard_tokens: int) -> Iterator[tuple[int, np.ndarray]]:
    """The blocks cut where a shard is full, each piece with the number of its shard."""
    position = 0
    for ids in blocks:
        while len(ids):
            piece = ids[: shard_tokens - position % shard_tokens]
            yield position // shard_tokens, piece
            position, ids = position + len(piece), ids[len(piece) :]


def _write_shard(path: Path, pieces: Iterable[np.ndarray], dtype: np.dtype) -> Shard:
    digest, tokens = Checksum(), 0
    with open(path, "wb") as file:
        for piece in pieces:
            data = piece.astype(dtype).tobytes()
            file.write(data)
            digest.update(data)
            tokens += len(piece)
    return Shard(name=path.name, tokens=tokens, checksum=digest.hexdigest())


def halves(store: TokenStore, fraction: float, most: int) -> tuple[Stretch, Stretch]:
    """All but the end of a store, and its end: about `fraction` of its tokens, `most` of them at most.

    The end begins with a document where one begins in its first half; a document that is cut counts on both sides. The
    bytes of text are shared out by the number of tokens, as nobody reads them here.
    """
    cut = len(store) - max(1, min(int(len(store) * fraction), most))
    cut = _next_document(store, cut)
    ends = int(np.count_nonzero(store[cut:] == store.end_id))
    at_border = cut == 0 or store[cut - 1 : cut][0] == store.end_id
    size = round(store.text_bytes * (len(store) - cut) / len(store))
    head = Stretch(
        store=store.stretch.store, start=0, stop=cut, documents=store.documents - ends + (not at_border),
        text_bytes=store.text_bytes - size,
    )  # fmt: skip
    return head, head.model_copy(update={"start": cut, "stop": len(store), "documents": ends, "text_bytes": size})


def _next_document(store: TokenStore, place: int) -> int:
    """Where the first document at or behind a place begins; the place itself when half of the rest holds no begin."""
    last = place + (len(store) - place) // 2
    for start in range(max(0, place - 1), last, BLOCK):
        found = np.flatnonzero(store[start : min(start + BLOCK, last)] == store.end_id)
        if len(found):
            return start + int(found[0]) + 1
    return place


# --- joining -------------------------------------------------------------------------------------------------------


def side_by_side(stores: Sequence[TokenStore], meta: Mapping[str, Any]) -> TokenStore:
    """Stores that lie in one folder as one, in this order; nothing is copied. They have one vocabulary."""
    shards = (
        shard.model_copy(update={"name": f"{store.folder.name}/{shard.name}"})
        for store in stores
        for shard in store.index.shards
    )
    sums = {"tokens": sum(map(len, stores)), "documents": sum(store.documents for store in stores)}
    index = stores[0].index.model_copy(update={**sums, "shards": tuple(shards), "meta": dict(meta)})
    return TokenStore(stores[0].folder.parent, index)


def copy_shard(store: TokenStore, folder: Path, number: int, shard_tokens: int = SHARD_TOKENS) -> Shard:
    """Write shard `number` of the store that `write_store` would make of the same documents."""
    start, stop = number * shard_tokens, min((number + 1) * shard_tokens, len(store))
    pieces = (store[place : min(place + BLOCK, stop)] for place in range(start, stop, BLOCK))
    return _write_shard(folder / _name(number), pieces, DTYPES[store.index.dtype])


def write_index(store: TokenStore, folder: Path, shards: Sequence[Shard]) -> None:
    """Write the index of what `copy_shard` wrote: the folder is a store then."""
    index = store.index.model_copy(update={"shards": tuple(shards)})
    atomic_write(folder / INDEX, index.model_dump_json(indent=1) + "\n")


# --- opening -------------------------------------------------------------------------------------------------------


def open_store(folder: str | Path, verify: bool = False) -> TokenStore:
    """Open a store that `write_store` wrote, checking its sizes, and with `verify` every byte against its checksum.

    Errors: NextileError when it is no store, is of another version, or a file is missing, truncated or changed.
    """
    folder = Path(folder)
    return _open_stretch(folder, verify) if (folder / STRETCH).exists() else _open_whole(folder, verify)


def _open_whole(folder: Path, verify: bool) -> TokenStore:
    index = _read_index(folder)
    for shard in index.shards:
        _check_shard(folder, shard, DTYPES[index.dtype].itemsize, verify)
    return TokenStore(folder, index)


def is_store(folder: str | Path) -> bool:
    """Whether a folder looks like one that `write_store` wrote."""
    return all((Path(folder) / name).is_file() for name in (INDEX, _name(0)))


def write_stretch(folder: Path, store: TokenStore, stretch: Stretch) -> TokenStore:
    """Part of a store as a store: no token is copied, the folder says where they lie."""
    with atomic_folder(folder) as temporary:
        atomic_write(temporary / STRETCH, stretch.model_dump_json(indent=1) + "\n")
    return TokenStore(store.folder, store.index, stretch)


def _open_stretch(folder: Path, verify: bool) -> TokenStore:
    again = "train anew"
    try:
        stretch = Stretch.model_validate_json(inside(folder, STRETCH).read_bytes())
    except (NextileError, OSError, ValidationError) as error:
        raise NextileError(f"'{folder / STRETCH}' is broken: {again}") from error
    try:
        store = _open_whole(Path(stretch.store), verify)  # and no stretch of a stretch, which might go round
    except NextileError as error:
        raise NextileError(f"the tokens of '{folder}' are not where they were: {error}") from error
    if not stretch.start < stretch.stop <= len(store):
        raise NextileError(f"'{folder / STRETCH}' is of other tokens than lie in '{stretch.store}' now: {again}")
    return TokenStore(store.folder, store.index, stretch)


def _read_index(folder: Path) -> Index:
    again = "tokenize the text again"
    try:
        index = Index.model_validate_json(inside(folder, INDEX).read_bytes())
    except (NextileError, OSError) as error:
        raise NextileError(f"'{folder}' is not a folder of tokens (it has no readable {INDEX}): {again}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "JSON"
        raise NextileError(f"'{folder / INDEX}' is broken ({place}: {problem['msg']}): {again}") from error
    if index.format != FORMAT or index.dtype not in DTYPES:
        raise NextileError(f"'{folder}' is of another format ({index.format}, {index.dtype}): {again}")
    if index.tokens != sum(shard.tokens for shard in index.shards):
        raise NextileError(f"'{folder / INDEX}' is broken (its shards do not sum to its tokens): {again}")
    return index


def _check_shard(folder: Path, shard: Shard, itemsize: int, verify: bool) -> None:
    path = inside(folder, shard.name)
    size = path.stat().st_size
    if size != shard.tokens * itemsize:
        raise NextileError(
            f"'{path}' has {size:,} bytes instead of {shard.tokens * itemsize:,}: tokenize the text again"
        )
    if verify and checksum(path) != shard.checksum:
        raise NextileError(f"'{path}' is not what was written (its checksum differs): tokenize the text again")
