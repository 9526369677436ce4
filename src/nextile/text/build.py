"""A tokenizer of the kind asked for, trained on texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nextile.base.errors import UsageError
from nextile.text.bpe import train_bpe
from nextile.text.characters import byte_tokenizer, train_characters, train_words
from nextile.text.tokenizer import Tokenizer

_KINDS: dict[str, Callable[[Iterable[str], int], Tokenizer]] = {
    "char": lambda texts, size: train_characters(texts),
    "word": train_words,
    "byte": lambda texts, size: byte_tokenizer(),
    "bpe": train_bpe,
}


def train_tokenizer(kind: str, size: int, texts: Iterable[str]) -> Tokenizer:
    """A tokenizer of `kind`; `size` tokens where the kind has a choice (word, bpe), never more than the texts give.

    Errors: UsageError for an unknown kind or a size too small for it; NextileError for a text that is not Unicode.
    """
    if kind not in _KINDS:
        raise UsageError(f"unknown tokenizer.kind {kind!r}: it is one of {', '.join(_KINDS)}")
    return _KINDS[kind](texts, size)
