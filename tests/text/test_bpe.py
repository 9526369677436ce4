"""The algorithm on plain symbols and on bytes; parity with the libraries is in tests/parity/test_bpe.py."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextile.base.errors import NextileError, UsageError
from nextile.text.bpe import Merges, join, join_all, learn, pretokenize, to_tokenizer, train, train_bpe

TEXTS = ["low lower lowest", "new newer newest", "wide wider widest"]


def test_the_example_of_wikipedia():
    """aaabdaaabac -> ZabdZabac -> ZYdZYac -> XdXac, with Z = aa, Y = ab, X = ZY."""
    word = tuple("aaabdaaabac")
    merges = learn({word: 1}, "abcd", size=7)
    assert merges == [("a", "a"), ("a", "b"), ("aa", "ab")]
    letters = {"aa": "Z", "ab": "Y", "aaab": "X"}
    steps = [join_all(word, {pair: rank for rank, pair in enumerate(merges[:n])}) for n in range(4)]
    assert ["".join(letters.get(symbol, symbol) for symbol in step) for step in steps] == [
        "aaabdaaabac",
        "ZabdZabac",
        "ZYdZYac",
        "XdXac",
    ]


def test_join_goes_from_left_to_right():
    assert join("aaaba", ("a", "a")) == ["aa", "a", "b", "a"]
    assert join("", ("a", "a")) == []


def test_learning_ends_when_nothing_is_left_to_join():
    assert learn({("a", "b"): 2, ("c",): 9}, "abc", size=100) == [("a", "b")]


def test_counts_weigh_words():
    assert learn({("a", "b"): 1, ("b", "c"): 2}, "abc", size=4) == [("b", "c")]


def test_of_equally_frequent_pairs_the_oldest_symbols_win():
    words = {("c", "d"): 1, ("b", "d"): 1, ("b", "a"): 1}
    assert learn(words, "abcd", size=7) == [("b", "a"), ("b", "d"), ("c", "d")]
    assert learn(words, "dcba", size=7) == [("c", "d"), ("b", "d"), ("b", "a")]


def naive(words: dict[tuple[str, ...], int], alphabet: str, size: int) -> list[tuple[str, str]]:
    """Training as its definition: count everything again after every join."""
    order = {symbol: age for age, symbol in enumerate(alphabet)}
    spelled = {word: list(word) for word in words}
    merges = []
    while len(order) < size:
        counts: dict[tuple[str, str], int] = {}
        for word, symbols in spelled.items():
            for pair in pairwise(symbols):
                counts[pair] = counts.get(pair, 0) + words[word]
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], order[pair[0]], order[pair[1]]))
        order.setdefault("".join(best), len(order))
        spelled = {word: join(symbols, best) for word, symbols in spelled.items()}
        merges.append(best)
    return merges


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=12).map(tuple), st.integers(1, 5), max_size=8),
    st.integers(3, 20),
)
def test_incremental_counts_give_what_counting_again_gives(words, size):
    assert learn(words, "abc", size) == naive(words, "abc", size)


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_words_are_the_text(text):
    assert "".join(pretokenize(text)) == text


def test_words_are_gpt2s():
    assert pretokenize("I'll pay  $12, you've\n\n  naïve ٣²!") == [
        *("I", "'ll", " pay", " ", " $", "12", ",", " you", "'ve", "\n\n ", " naïve", " ٣²", "!")
    ]


def test_ids_are_the_end_token_then_bytes_then_merges():
    merges = train(TEXTS, 260)
    assert list(merges.ids.items())[:3] == [(b"<|endoftext|>", 0), (b"!", 1), (b'"', 2)]
    assert merges.ids[b" "] == 1 + 188 + 32  # the 33rd of the bytes that are not printable
    assert [merges.ids[left + right] for left, right in merges.pairs] == [257, 258, 259]
    assert merges.encode("lowest") == to_tokenizer(merges).encode("lowest")


def test_encoding_is_lossless_without_a_single_merge():
    merges = Merges(())
    names = {index: symbol for symbol, index in merges.ids.items()}
    text = "naïve 🙂\r\n"
    assert b"".join(names[index] for index in merges.encode(text)) == text.encode()


def test_bulk_training_gives_the_same_tokenizer():
    assert train_bpe(TEXTS, 270).fingerprint() == to_tokenizer(train(TEXTS, 270)).fingerprint()


@pytest.mark.parametrize("texts", [[], [""], ["a"], ["a", "b c"], ["hello hello", "", "hello"]])
def test_a_small_corpus_gives_what_it_has(texts):
    tokenizer = train_bpe(texts, 1000)
    assert tokenizer.vocab_size == 257 + len(train(texts, 1000).pairs) < 1000
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in [*texts, "others 🙂"])


def test_a_generator_will_do():
    assert train_bpe((text for text in TEXTS), 270).fingerprint() == train_bpe(TEXTS, 270).fingerprint()


def test_the_text_of_the_end_token_is_learned_as_text():
    tokenizer = train_bpe(["<|endoftext|> " * 9], 300)
    assert tokenizer.end_id not in tokenizer.encode("<|endoftext|>")
    assert tokenizer.decode(tokenizer.encode("<|endoftext|>")) == "<|endoftext|>"


@pytest.mark.parametrize("learner", [train, train_bpe])
def test_too_small_a_size_is_refused(learner):
    with pytest.raises(UsageError, match=r"tokenizer\.size 256 is too small for bpe: .* need 257"):
        learner(TEXTS, 256)
    learner(TEXTS, 257)


@pytest.mark.parametrize("learner", [train, train_bpe])
def test_a_lone_surrogate_is_refused(learner):
    with pytest.raises(NextileError, match=r"lone surrogate U\+D800 at character 2; replace it"):
        learner(["ok", "ab\ud800"], 300)


def test_training_prints_nothing(capfd):
    train_bpe(TEXTS, 270)
    assert capfd.readouterr() == ("", "")


def test_a_full_disk_is_said(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.open", full)
    with pytest.raises(NextileError, match="No space left on device; point TMPDIR"):
        train_bpe(TEXTS, 270)
