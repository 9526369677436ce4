"""When gigatoken's answer is taken; that it then is the right one is in tests/parity/test_bpe.py."""

from __future__ import annotations

import json

import pytest

from nextile.text import bulk
from nextile.text.bpe import train_bpe

MERGES = [(b"a", b"b"), (b"ab", b"c")]
SPEC = json.loads(train_bpe(["some text"], 270).core.to_str())


def test_merges_are_exact_while_a_word_is_in_parts():
    assert bulk._exact(MERGES, [b"abc", b"abcd"])
    assert not bulk._exact(MERGES, [b"abc", b"a", b""])


def test_two_merges_of_one_token_are_not_exact():
    assert not bulk._exact([*MERGES, (b"a", b"bc")], [b"abcd"])


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("model", "dropout", 0.1),
        ("model", "ignore_merges", True),
        ("model", "byte_fallback", True),
        ("model", "end_of_word_suffix", "</w>"),
        ("model", "vocab", {"a": 0}),
        ("pre_tokenizer", "add_prefix_space", True),
        ("pre_tokenizer", "use_regex", False),
        ("pre_tokenizer", "type", "Metaspace"),
    ],
)
def test_only_plain_byte_level_bpe_goes_to_gigatoken(part, name, value):
    assert bulk._is_plain(SPEC)
    assert not bulk._is_plain(SPEC | {part: SPEC[part] | {name: value}})


def test_a_normalizer_or_an_added_word_is_not_plain():
    word = SPEC["added_tokens"][0] | {"special": False}
    assert not bulk._is_plain(SPEC | {"normalizer": {"type": "NFC"}})
    assert not bulk._is_plain(SPEC | {"added_tokens": [word]})
    assert not bulk._is_plain(SPEC | {"pre_tokenizer": None})
