"""One call for every kind."""

from __future__ import annotations

import pytest

from nextile.base.errors import UsageError
from nextile.text.build import train_tokenizer

TEXTS = ["one two two", "three"]


@pytest.mark.parametrize(("kind", "size"), [("char", 10), ("word", 5), ("byte", 259), ("bpe", 260)])
def test_each_kind_is_built(kind, size):
    tokenizer = train_tokenizer(kind, size, TEXTS)
    assert (tokenizer.kind, tokenizer.vocab_size) == (kind, size)


def test_an_unknown_kind_names_the_kinds():
    with pytest.raises(UsageError, match=r"unknown tokenizer\.kind 'chars': it is one of char, word, byte, bpe"):
        train_tokenizer("chars", 100, TEXTS)
