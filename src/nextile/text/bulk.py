"""Bulk training and encoding through gigatoken and numpy: what `tokenizers` gives, to the id, many times faster.

Where gigatoken could differ from `tokenizers`, `tokenizers` does the work: `alike` says for which texts that is,
`_exact` for which merges, `_is_plain` for which tokenizers.
"""

from __future__ import annotations

import json
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import groupby, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gigatoken
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from nextile.base.errors import NextileError
from nextile.text.bytelevel import BYTE, CHARACTER, raw, utf8

Merge = tuple[bytes, bytes]
Encoder = Callable[[Sequence[str]], list[np.ndarray]]

_SEPARATOR = b"\xff"  # between documents in a file: a byte that UTF-8 never uses
_CODE_POINTS = 0x110000
_BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)

# --- where gigatoken and tokenizers agree -------------------------------------------------------------------------


def alike(text: str) -> bool:
    """Whether both libraries split `text` into the same words: their tables are of different versions of Unicode."""
    return text.isascii() or all(map(_classed_alike, set(text)))


@cache
def _classed_alike(character: str) -> bool:
    """Whether both take `character` for a letter (joins "a"), a number (joins "1"), a sign (joins "!") or a space."""
    probe = f"a{character}a1{character}1!{character}!"
    theirs = [len(word) for word in gigatoken.pretokenizer(utf8(probe))]
    return theirs == [len(word) for word, _ in _BYTE_LEVEL.pre_tokenize_str(probe)]


def _is_plain(spec: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is byte-level BPE exactly as GPT-2 has it, the kind that is proven here."""
    model, splitter = spec["model"], spec["pre_tokenizer"] or {}
    variations = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    return (
        model["type"] == "BPE"
        and not any(model[name] for name in variations)
        and spec["normalizer"] is None
        and splitter.get("type") == "ByteLevel"
        and splitter["use_regex"]
        and not splitter["add_prefix_space"]
        and all(token["special"] for token in spec["added_tokens"])
        and BYTE.keys() <= model["vocab"].keys()
    )


# --- training -----------------------------------------------------------------------------------------------------


def learn_merges(texts: Iterable[str], size: int, end: str) -> list[Merge]:
    """The merges of a byte-level BPE vocabulary of `size`: the token `end`, 256 bytes, and what is joined from them.

    The texts pass through a temporary file, so a corpus need not fit into memory; each is one document.
    Fewer merges come back where the texts have no more to give.
    Errors: NextileError where a text is not Unicode or the temporary file cannot be written.
    """
    with TemporaryDirectory(prefix="nextile-") as folder:
        corpus = Path(folder, "corpus")
        if _spool(texts, corpus):
            merges = _learn_with_gigatoken(corpus, size)
            if _exact(merges, _documents(corpus)):
                return merges
        return _learn_with_tokenizers(_documents(corpus), size, end)


def _spool(texts: Iterable[str], path: Path) -> bool:
    """Write the texts to a file, a separator after each; whether all of them are alike to both libraries."""
    agreed = True
    try:
        with path.open("wb") as file:
            for text in texts:
                file.write(utf8(text))
                file.write(_SEPARATOR)
                agreed = agreed and alike(text)
    except OSError as error:
        reason = f"the temporary copy of the corpus in {path.parent.parent} failed: {error.strerror}"
        raise NextileError(f"{reason}; point TMPDIR to a place with more room") from error
    return agreed


def _documents(path: Path) -> Iterator[bytes]:
    """The documents of a spooled file, one in memory at a time."""
    if path.stat().st_size == 0:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = 0
        while (end := data.find(_SEPARATOR, start)) >= 0:
            yield data[start:end]
            start = end + 1


def _learn_with_gigatoken(path: Path, size: int) -> list[Merge]:
    with _quiet():
        # It counts its vocabulary without our end token.
        return gigatoken.train_bpe(str(path), size - 1, [], separator=_SEPARATOR)[1]


def _exact(merges: list[Merge], documents: Iterable[bytes]) -> bool:
    """Whether `tokenizers` would give the same merges. It does unless

    - two merges spell the same token, which `tokenizers` numbers once and gigatoken twice; or
    - every word of the corpus has become one token: gigatoken goes on with pairs that occur nowhere.
      The first word that is still in parts answers that, so a large corpus is not read again.
    """
    tokens = {left + right for left, right in merges}
    words = (word for document in documents for word in gigatoken.pretokenizer(document))
    return len(tokens) == len(merges) and any(len(word) > 1 and word not in tokens for word in words)


def _learn_with_tokenizers(documents: Iterable[bytes], size: int, end: str) -> list[Merge]:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = _BYTE_LEVEL
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[end], initial_alphabet=list(CHARACTER.values()), show_progress=False
    )
    core.train_from_iterator((document.decode() for document in documents), trainer)
    return [(raw(left), raw(right)) for left, right in json.loads(core.to_str())["model"]["merges"]]


_redirecting = threading.Lock()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what gigatoken's trainer prints out of our output, which may be JSON for another program.

    It writes to the process's descriptors, so those are turned away. It holds the interpreter lock meanwhile: no
    other thread of ours writes into the void.
    """
    with _redirecting, open(os.devnull, "wb") as void:
        kept = [os.dup(1), os.dup(2)]
        try:
            os.dup2(void.fileno(), 1)
            os.dup2(void.fileno(), 2)
            yield
        finally:
            for descriptor, copy in enumerate(kept, start=1):
                os.dup2(copy, descriptor)
                os.close(copy)


# --- encoding -----------------------------------------------------------------------------------------------------


def encode(core: Tokenizer, text: str) -> list[int]:
    """The ids of one text, as `tokenizers` gives them.

    Errors: NextileError for a text that is not Unicode or that the tokenizer cannot express.
    """
    utf8(text)
    with _explained():
        return core.encode(text, add_special_tokens=False).ids


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the library raises bare Exceptions
        raise NextileError(f"this tokenizer cannot encode the text ({error}); it may have no unknown token") from None


def encoder(core: Tokenizer, kind: str, spec: dict[str, Any]) -> Encoder:
    """The fastest way to encode many texts with exactly the ids of `core`: a list of texts -> arrays of uint32.

    kind and spec, the tokenizer.json as a tree, are those of `core`.
    """
    if kind == "char":
        return partial(_encode_characters, _character_table(spec["model"]))
    if kind == "byte":
        return partial(_encode_bytes, _byte_table(spec["model"]))
    if kind == "lexicon":
        return partial(_encode_words, _WordIds(spec["model"]), core)
    if _is_plain(spec):
        return partial(_encode_with_gigatoken, _without_added_tokens(spec), core)
    return partial(_encode_with_tokenizers, core)


def _character_table(model: dict[str, Any]) -> np.ndarray:
    """The id of every code point, (0x110000,): the unknown token's where the vocabulary has no other."""
    table = np.full(_CODE_POINTS, model["vocab"][model["unk_token"]], np.uint32)
    for token, index in model["vocab"].items():
        if len(token) == 1:
            table[ord(token)] = index
    return table


def _encode_characters(table: np.ndarray, texts: Sequence[str]) -> list[np.ndarray]:
    return [table[np.frombuffer(text.encode("utf-32-le"), "<u4")] for text in texts]


def _byte_table(model: dict[str, Any]) -> np.ndarray:
    """The id of every byte, (256,)."""
    return np.array([model["vocab"][CHARACTER[byte]] for byte in range(256)], np.uint32)


def _encode_bytes(table: np.ndarray, texts: Sequence[str]) -> list[np.ndarray]:
    return [table[np.frombuffer(utf8(text), np.uint8)] for text in texts]


# What a translation to this leaves of ASCII: small letters, digits, apostrophes, and spaces for all else.
_PLAIN = "".join(chr(i).lower() if chr(i).isalnum() or chr(i) in "_'" else " " for i in range(128))


def words_of(core: Tokenizer, text: str) -> list[str]:
    """What `core` splits a text into: words in small letters, some here still between apostrophes, or nothing else.

    ASCII goes a faster way, line by line, since hardly any text is ASCII from end to end.
    Errors: NextileError for a text that is not Unicode.
    """
    if text.isascii():
        return text.translate(_PLAIN).split()
    utf8(text)
    words: list[str] = []
    for plain, lines in groupby(text.splitlines(keepends=True), str.isascii):
        part = "".join(lines)
        words += part.translate(_PLAIN).split() if plain else _words_with_tokenizers(core, part)
    return words


def _words_with_tokenizers(core: Tokenizer, text: str) -> list[str]:
    lowered = core.normalizer.normalize_str(text)
    return [word for word, _ in core.pre_tokenizer.pre_tokenize_str(lowered)]


class _WordIds(dict[str, int]):
    """The id of every word, also of one that still stands between apostrophes; -1 where there is nothing else."""

    def __init__(self, model: dict[str, Any]):
        words = model["vocab"].items()
        super().__init__((word, index) for word, index in words if word == word.strip("'"))  # no text holds the others
        self._unknown = self[model["unk_token"]]

    def __missing__(self, piece: str) -> int:
        word = piece.strip("'")
        self[piece] = found = self.get(word, self._unknown) if word else -1
        return found


def _encode_words(ids: _WordIds, core: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    split = (words_of(core, text) for text in texts)
    found = (np.fromiter(map(ids.__getitem__, words), np.int64, len(words)) for words in split)
    return [numbers[numbers >= 0].astype(np.uint32) for numbers in found]


def _without_added_tokens(spec: dict[str, Any]) -> gigatoken.Tokenizer:
    """gigatoken's tokenizer, in which the text of a special token is text like any other."""
    return gigatoken.Tokenizer.from_json(json.dumps(spec | {"added_tokens": []}))


def _encode_with_gigatoken(fast: gigatoken.Tokenizer, core: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    agreed = [alike(text) for text in texts]
    easy = iter(_rows(fast.encode_batch([text for text, yes in zip(texts, agreed, strict=True) if yes])))
    hard = iter(_encode_with_tokenizers(core, [text for text, yes in zip(texts, agreed, strict=True) if not yes]))
    return [next(easy if yes else hard) for yes in agreed]


def _rows(batch: Any) -> list[np.ndarray]:
    """The rows of an awkward array of token ids, as views of its one buffer."""
    bounds, ids = batch.layout.offsets.data, batch.layout.content.data
    return [ids[start:stop] for start, stop in pairwise(bounds)]


def _encode_with_tokenizers(core: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    with _explained():
        encodings = core.encode_batch(list(texts), add_special_tokens=False)
    return [np.array(encoding.ids, np.uint32) for encoding in encodings]
