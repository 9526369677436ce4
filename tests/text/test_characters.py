"""Characters, words and bytes as tokens: the ids, and that nothing is lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextile.base.errors import NextileError, UsageError
from nextile.text.characters import byte_tokenizer, train_characters, train_words

HARD = (
    "tab\there\r\nline\n\n  two  spaces\x0b\x00 e\u0301 \u200d👩\u200d👧 🙂 naïve don't a_b 12.5! "
    "<unk> <|endoftext|> </s>"
)


def test_characters_are_numbered_by_code_point():
    tokenizer = train_characters(["ba", "\nc"])
    assert [tokenizer.token(i) for i in range(6)] == ["<|endoftext|>", "<unk>", "\n", "a", "b", "c"]
    assert tokenizer.encode("cab\n") == [5, 3, 4, 2]
    assert (tokenizer.vocab_size, tokenizer.end_id, tokenizer.unknown_id, tokenizer.pad_id) == (6, 0, 1, None)


def test_words_are_numbered_by_frequency():
    tokenizer = train_words(["the cat the dog the\n"], size=5)
    assert [tokenizer.token(i) for i in range(5)] == ["<|endoftext|>", "<unk>", " ", "the", "\n"]
    assert tokenizer.encode("the cat\n") == [3, 2, 1, 4]
    assert (tokenizer.vocab_size, tokenizer.end_id, tokenizer.unknown_id) == (5, 0, 1)


def test_words_never_exceed_what_occurs():
    assert train_words(["one two"], size=1000).vocab_size == 2 + 3


def test_bytes_have_the_ids_of_byt5():
    tokenizer = byte_tokenizer()
    assert tokenizer.encode("aé\n") == [ord("a") + 3, 0xC3 + 3, 0xA9 + 3, 10 + 3]
    assert [tokenizer.bytes_of(byte + 3) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert (tokenizer.pad_id, tokenizer.end_id, tokenizer.unknown_id, tokenizer.vocab_size) == (0, 1, 2, 259)


TRAINED = {
    "char": train_characters([HARD]),
    "word": train_words([HARD], 1000),
    "byte": byte_tokenizer(),
}
kinds = pytest.mark.parametrize("kind", TRAINED)


@kinds
def test_known_text_survives(kind):
    tokenizer = TRAINED[kind]
    ids = tokenizer.encode(HARD)
    assert tokenizer.kind == kind
    assert tokenizer.decode(ids) == HARD
    assert not tokenizer.special_ids & set(ids)
    assert b"".join(tokenizer.bytes_of(index) or b"?" for index in ids) == HARD.encode()


@kinds
def test_the_fast_path_gives_the_same_ids(kind):
    tokenizer = TRAINED[kind]
    texts = [HARD, "", "unknown: ж 漢 \U0010ffff", "\ufffd", HARD[::-1]]
    for text, ids in zip(texts, tokenizer.encode_documents(texts), strict=True):
        assert ids.dtype == np.uint32
        assert ids.tolist() == tokenizer.encode(text)


def test_unknown_characters_are_one_token_each():
    tokenizer = train_characters(["ab"])
    assert tokenizer.encode("a🙂\r\nb") == [2, 1, 1, 1, 3]
    assert tokenizer.decode([2, 1, 3]) == "ab"
    assert tokenizer.decode([2, 1, 3], skip_special=False) == "a<unk>b"


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_survives_as_its_own_characters_and_words(text):
    for tokenizer in (train_characters([text]), train_words([text], 1000), TRAINED["byte"]):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("learner", [train_characters, lambda texts: train_words(texts, 9)])
def test_a_lone_surrogate_is_refused(learner):
    with pytest.raises(NextileError, match=r"lone surrogate U\+DC80 at character 1"):
        learner(["a\udc80"])


def test_a_size_without_room_for_words_is_refused():
    with pytest.raises(UsageError, match=r"tokenizer\.size 2 is too small for words"):
        train_words(["a"], 2)
