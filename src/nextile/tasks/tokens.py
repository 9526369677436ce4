"""Texts as tokens on disk: the tokenizer that suits them, learned from them, and what it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from nextile.base.config import Settings
from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.pretrained import Pretrained
from nextile.checkpoint.store import Processor
from nextile.data.shards import Stretch, TokenStore, halves, is_store, open_store, write_store, write_stretch
from nextile.tasks.report import Report
from nextile.tasks.settings import RunSettings, TokenizerChoice
from nextile.text.build import train_tokenizer
from nextile.text.tokenizer import Tokenizer

BATCH_TOKENS = 4096  # of a batch that is measured
LARGEST_HELD_OUT = 1 << 22  # tokens of a corpus that lies there as tokens
SMALL = 300_000  # bytes; below, characters: a corpus this short shows too few examples of each larger piece


def text_only(processor: Processor, folder: Path) -> Tokenizer:
    """The processor, if it is one of text. Errors: NextileError where it is one of pictures."""
    if not isinstance(processor, Tokenizer):
        raise NextileError(f"'{folder}' holds text and its model reads pictures: train anew")
    return processor


def tokens_of(base: Pretrained | None, shape: type[Settings], task: str) -> Tokenizer | None:
    """The tokens of the model to begin from, if there is one. Errors: UsageError when it cannot do the task."""
    if base is None:
        return None
    if not isinstance(base.spec, shape) or not isinstance(base.processor, Tokenizer):
        raise UsageError(f"a run of the task '{task}' cannot begin from {base.called}, a model of another kind")
    return base.processor


class Texts(Protocol):
    """Texts that can be iterated as often as wanted, and their size in UTF-8 bytes."""

    @property
    def bytes(self) -> int: ...

    def __iter__(self) -> Iterator[str]: ...


def watched(texts: Iterable[str], advance: Callable[[int], None]) -> Iterator[str]:
    """The texts; the bytes of each are told when the next is asked for."""
    for text in texts:
        yield text
        advance(len(text.encode()))


def learn_tokenizer(texts: Texts, choice: TokenizerChoice, report: Report) -> Tokenizer:
    """The tokenizer that was chosen, or what suits the amount of text, learned from it."""
    kind = choice.kind
    if kind == "auto":
        kind = "char" if texts.bytes < SMALL else "bpe"
    with report.bar(f"learning the tokens ({kind})", texts.bytes, "B") as bar:
        return train_tokenizer(kind, choice.size or bpe_size(texts.bytes), watched(texts, bar.advance))


def bpe_size(size: int) -> int:
    """How many tokens a text of `size` bytes gives enough examples of: 1,024 at half a megabyte, 32,768 at 500 MB."""
    power = 10 + max(0, round(np.log2(max(size, 1) / 500_000) / 2))
    return 2 ** min(15, int(power))


def as_they_are(ids: np.ndarray) -> np.ndarray:
    """All tokens of a text."""
    return ids


def store_tokens(
    texts: Texts, tokenizer: Tokenizer, folder: Path, title: str, report: Report,
    kept: Callable[[np.ndarray], np.ndarray] = as_they_are,
) -> TokenStore:  # fmt: skip
    """The tokens of each text in a store of their own, or those of them that are kept."""
    meta = {"text_bytes": texts.bytes, "tokenizer": tokenizer.fingerprint()}
    with report.bar(title, texts.bytes, "B") as bar:
        arrays = map(kept, tokenizer.encode_documents(texts, progress=bar.update))
        return write_store(folder, arrays, vocab_size=tokenizer.vocab_size, end_id=tokenizer.end_id, meta=meta)


def stored_tokens(folder: Path, tokenizer: Tokenizer) -> TokenStore:
    """What `store_tokens` wrote. Errors: NextileError when that was with another tokenizer."""
    store = open_store(folder)
    if store.meta.get("tokenizer") != tokenizer.fingerprint():
        raise NextileError(f"'{folder}' was written with another tokenizer: train anew from the text")
    return store


def divide_store(
    source: str, settings: RunSettings, folder: Path, base: Tokenizer | None
) -> tuple[Tokenizer, TokenStore, TokenStore]:
    """The tokenizer of a corpus that lies there as tokens, what to train on and what to validate on; nothing is copied.

    The end of the corpus is held out, unless another such folder is named for it. Errors: NextileError for a broken
    folder; UsageError for settings that tokens do not read and for a model to begin from that has other tokens.
    """
    tokenizer = Tokenizer.load(source)
    _refuse_beside_store(source, settings.tokenizer, tokenizer, base)
    store, other = stored_tokens(Path(source), tokenizer), settings.validation.data
    if other:
        learned, held_out = (store, store.stretch), _all_of(_one_store(other), tokenizer)
    else:
        head, end = halves(store, settings.validation.fraction, LARGEST_HELD_OUT)
        size = sum(len(text.encode()) for text in _documents(store[end.start : end.stop], tokenizer))
        head = head.model_copy(update={"text_bytes": max(0, store.text_bytes - size)})
        learned, held_out = (store, head), (store, end.model_copy(update={"text_bytes": size}))
    return tokenizer, write_stretch(folder / "train", *learned), write_stretch(folder / "validation", *held_out)


def _all_of(folder: Path, tokenizer: Tokenizer) -> tuple[TokenStore, Stretch]:
    store = stored_tokens(folder, tokenizer)
    return store, store.stretch


def _documents(ids: np.ndarray, tokenizer: Tokenizer) -> Iterator[str]:
    ends = np.flatnonzero(ids == tokenizer.end_id)
    return (tokenizer.decode(part[part != tokenizer.end_id].tolist()) for part in np.split(ids, ends))


def _one_store(held_out: Sequence[str]) -> Path:
    if len(held_out) != 1 or not is_store(held_out[0]):
        raise UsageError(f"validation.data is {', '.join(held_out)}: name one folder of tokens, as the corpus is one")
    return Path(held_out[0])


def _refuse_beside_store(source: str, choice: TokenizerChoice, tokenizer: Tokenizer, base: Tokenizer | None) -> None:
    if choice != type(choice)():
        raise UsageError(f"'{source}' holds tokens, not text: leave out the settings of a tokenizer")
    if base is not None and base.fingerprint() != tokenizer.fingerprint():
        raise UsageError(f"'{source}' holds tokens of another tokenizer than the model to begin from: tokenize by its")


def stored_parts(folder: Path, processor: Processor) -> tuple[Tokenizer, TokenStore, TokenStore]:
    """The tokenizer of a run's data, and the tokens of what is trained on and of what is held out. Errors: as above."""
    tokenizer = text_only(processor, folder)
    train, held_out = (stored_tokens(folder / name, tokenizer) for name in ("train", "validation"))
    return tokenizer, train, held_out
