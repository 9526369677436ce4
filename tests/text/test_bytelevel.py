"""Bytes as printable characters, against the library that defines them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from nextile.base.errors import NextileError
from nextile.text.bytelevel import BYTE, CHARACTER, printable, raw, utf8


def test_the_table_is_that_of_tokenizers():
    assert list(CHARACTER.values()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert printable(b" hi\n\xff") == "ĠhiĊÿ"
    assert all(BYTE[character] == byte for byte, character in CHARACTER.items())


@given(st.binary())
def test_bytes_come_back(data):
    assert raw(printable(data)) == data


def test_an_added_token_outside_the_table_stands_for_itself():
    assert raw("Ġ漢") == "Ġ漢".encode()
    assert raw("<｜end｜>") == "<｜end｜>".encode()


def test_a_lone_surrogate_names_its_place():
    assert utf8("é🙂") == "é🙂".encode()
    with pytest.raises(NextileError, match=r"U\+DFFF at character 3; replace it with text\.encode\(errors='replace'\)"):
        utf8("é🙂a\udfff")
