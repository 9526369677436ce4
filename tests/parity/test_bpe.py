"""Byte-pair encoding against `tokenizers`, gigatoken and transformers: the same merges, the same ids, the same text.

Every comparison has beside it a case that it must tell apart.
"""

from __future__ import annotations

import json
import os
import pydoc_data.topics
import random
import re
from collections import Counter
from functools import cache
from pathlib import Path

import gigatoken
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from nextile.text import bulk
from nextile.text.bpe import Merges, learn, pretokenize, train, train_bpe
from nextile.text.bytelevel import CHARACTER, raw
from nextile.text.characters import byte_tokenizer, train_characters, train_words
from nextile.text.tokenizer import END, Tokenizer

PYTHON_DOCS = list(pydoc_data.topics.topics.values())
DATA = Path(os.environ.get("NEXTILE_DATA", "data"))
SIZE = 4096


def theirs(texts: list[str], size: int) -> tokenizers.Tokenizer:
    """Byte-level BPE as one trains it with `tokenizers` alone."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(texts, trainer)
    return core


def merges_of(core: tokenizers.Tokenizer) -> list[tuple[bytes, bytes]]:
    return [(raw(left), raw(right)) for left, right in json.loads(core.to_str())["model"]["merges"]]


def gigatokens_merges(texts: list[str], size: int) -> list[tuple[bytes, bytes]]:
    data = b"\xff".join(text.encode() for text in texts)
    return gigatoken.train_bpe(data, size - 1, [], separator=b"\xff")[1]


@cache
def reference() -> tokenizers.Tokenizer:
    core = theirs(PYTHON_DOCS, SIZE)
    core.encode_special_tokens = True
    return core


@cache
def ours() -> Tokenizer:
    return train_bpe(PYTHON_DOCS, SIZE)


# --- merges -------------------------------------------------------------------------------------------------------


def test_merges_are_those_of_the_libraries():
    merges = list(train(PYTHON_DOCS, SIZE).pairs)
    assert len(merges) == SIZE - 257
    assert merges == merges_of(reference())
    assert merges == gigatokens_merges(PYTHON_DOCS, SIZE)
    assert merges == merges_of(ours().core)


def test_other_ties_would_be_seen():
    counts = Counter(word for text in PYTHON_DOCS for word in pretokenize(text))
    words = {tuple(bytes([byte]) for byte in word.encode()): count for word, count in counts.items()}
    by_value = [bytes([byte]) for byte in range(256)]  # not the order of their characters: a space comes early
    merges = learn(words, by_value, SIZE - 1)
    assert merges != merges_of(reference())
    assert len(set(merges) & set(merges_of(reference()))) > 0.9 * len(merges)


def small_corpora() -> list[list[str]]:
    """Few letters, so that runs, ties and exhausted corpora are the rule."""
    rng = random.Random(0)
    letters = ["ab", "ab ", "aab  c", "a-=\n ", "é漢a "]
    return [
        ["".join(rng.choices(rng.choice(letters), k=rng.randrange(40))) for _ in range(rng.randrange(1, 6))]
        for _ in range(300)
    ]


def test_merges_of_small_corpora_are_those_of_tokenizers():
    for texts in small_corpora():
        expected = merges_of(theirs(texts, 300))
        assert list(train(texts, 300).pairs) == expected, texts
        assert merges_of(train_bpe(texts, 300).core) == expected, texts


def test_merges_of_letters_new_in_unicode_are_those_of_tokenizers():
    """U+088F and U+A7CE are letters to gigatoken 0.10 and signs to tokenizers 0.23."""
    texts = [*PYTHON_DOCS[:5], "a\u088fa\u088f b\ua7ceb\ua7ce " * 99]
    assert merges_of(train_bpe(texts, 600).core) == merges_of(theirs(texts, 600))


def test_gigatoken_alone_would_be_seen_to_differ():
    """It goes on when nothing is left to join, which is why `bulk` looks."""
    different = [texts for texts in small_corpora() if gigatokens_merges(texts, 300) != merges_of(theirs(texts, 300))]
    assert different


@pytest.mark.slow
def test_merges_of_a_large_corpus():
    path = DATA / "english" / "train.jsonl"
    if not path.exists():
        pytest.skip(f"no {path}; NEXTILE_DATA names the folder that holds english/train.jsonl")
    with path.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    merges = list(train(texts, 32_768).pairs)
    core = theirs(texts, 32_768)
    assert merges == merges_of(core) == gigatokens_merges(texts, 32_768) == merges_of(train_bpe(texts, 32_768).core)
    tokenizer = train_bpe(texts, 32_768)
    assert [ids.tolist() for ids in tokenizer.encode_documents(texts)] == [e.ids for e in core.encode_batch(texts)]


# --- words --------------------------------------------------------------------------------------------------------


def everything() -> str:
    return "".join(chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000)


def test_words_are_split_as_the_byte_level_pre_tokenizer_does():
    expected = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in (everything(), *fuzzed(2000)):
        assert [raw(word).decode() for word, _ in expected.pre_tokenize_str(text)] == pretokenize(text)


def test_words_by_the_standard_library_would_be_seen_to_differ():
    approximation = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")
    assert approximation.findall("it's plain, 12 ") == pretokenize("it's plain, 12 ")
    assert approximation.findall("x² e\u0301") != pretokenize("x² e\u0301")


def test_both_splitters_are_known_to_differ_where_they_do():
    """Characters newer than the older of the two libraries' tables of Unicode are not given to gigatoken."""
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for point in (*range(0x80, 0x3000), *range(0xA000, 0xD800), *range(0xF900, 0x1F000), *range(0x32000, 0x33500, 7)):
        for text in (f"a{chr(point)}a", f"1{chr(point)}1", f" {chr(point)} "):
            same = [len(word) for word in gigatoken.pretokenizer(text.encode())] == [
                len(word) for word, _ in splitter.pre_tokenize_str(text)
            ]
            assert same or not bulk.alike(text), f"U+{point:04X}"


# --- ids ----------------------------------------------------------------------------------------------------------


@cache
def fuzzed(count: int) -> list[str]:
    """Texts of everything that has ever broken a tokenizer; every tenth part is the text of the end token."""
    rng = random.Random(0)
    pools = [
        [chr(point) for point in range(32, 127)],
        list(" \t\n\r\x0b\x0c\x85\xa0\u2003\u2028\u3000\u200b\ufeff"),
        list("'stremvldSTREMVLD’"),
        list("0123456789٣²½"),
        list("\0\x01\x1b\x1c\x1d\x1e\x1f\x7f\ufffd\uffff\U0010ffff"),
        list("e\u0301a\u0308🙂👩\u200d👧🇩🇪"),
        [chr(point) for point in range(0x80, 0x3000)],
        [chr(point) for point in range(0x4E00, 0xA000)],
        [chr(rng.randrange(0x10000, 0x110000)) for _ in range(500)],
    ]

    def part() -> str:
        return END if rng.random() < 0.1 else "".join(rng.choices(rng.choice(pools), k=rng.randrange(1, 9)))

    return ["".join(part() for _ in range(rng.randrange(9))) for _ in range(count)]


def test_ten_thousand_texts_have_the_ids_of_tokenizers_and_come_back():
    texts = fuzzed(10_000)
    tokenizer = ours()
    expected = [encoding.ids for encoding in reference().encode_batch(texts, add_special_tokens=False)]
    assert [tokenizer.encode(text) for text in texts] == expected
    assert [ids.tolist() for ids in tokenizer.encode_documents(texts)] == expected
    assert [tokenizer.decode(ids) for ids in expected] == texts


def test_ids_of_the_readable_algorithm():
    merges = Merges(tuple(merges_of(reference())))
    texts = [*PYTHON_DOCS[:3], *fuzzed(10_000)[:1000]]
    assert [merges.encode(text) for text in texts] == [reference().encode(text).ids for text in texts]


def test_two_merges_exchanged_would_be_seen():
    pairs = merges_of(reference())
    exchanged = Merges((*pairs[1:60], pairs[0], *pairs[60:]))
    assert exchanged.encode(PYTHON_DOCS[0]) != reference().encode(PYTHON_DOCS[0]).ids


def test_an_end_token_read_from_text_would_be_seen():
    careless = theirs(PYTHON_DOCS, SIZE)
    text = f"one{END}two"
    assert careless.encode(text).ids != ours().encode(text)
    assert careless.encode("one two").ids == ours().encode("one two")


def test_ten_thousand_texts_come_back_from_bytes_with_the_ids_of_byt5():
    byt5 = pytest.importorskip("transformers").ByT5Tokenizer(extra_ids=0)
    tokenizer = byte_tokenizer()
    texts = fuzzed(10_000)
    encoded = [tokenizer.encode(text) for text in texts]
    assert [tokenizer.decode(ids) for ids in encoded] == texts
    assert [ids.tolist() for ids in tokenizer.encode_documents(texts)] == encoded
    assert [byt5(text, add_special_tokens=False).input_ids for text in texts[:2000]] == encoded[:2000]
    assert (byt5.pad_token_id, byt5.eos_token_id, byt5.unk_token_id) == (0, 1, 2)
    assert encoded[1] != list(texts[1].encode())  # what it would be without ByT5's offset


# --- folders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bpe", "byte", "char", "word"])
@pytest.mark.parametrize("model_type", [None, "gpt2", "qwen3"])
def test_a_saved_folder_loads_in_transformers(kind, model_type, tmp_path):
    """Whatever model lies beside it: transformers has tokenizers of its own for some of them."""
    transformers = pytest.importorskip("transformers")
    trained = {
        "bpe": ours,
        "byte": byte_tokenizer,
        "char": lambda: train_characters(PYTHON_DOCS),
        "word": lambda: train_words(PYTHON_DOCS, 2000),
    }
    tokenizer = trained[kind]()
    tokenizer.save(tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = PYTHON_DOCS[0] + "\r\n  don't e\u0301 .,"
    assert loaded(text).input_ids == tokenizer.encode(text)
    assert loaded.decode(tokenizer.encode("with , the .")) == "with , the ."
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tokenizer.end_id, tokenizer.pad_id)
    assert loaded.unk_token_id == tokenizer.unknown_id
    assert len(loaded) == tokenizer.vocab_size


def test_another_folder_would_be_seen(tmp_path):
    transformers = pytest.importorskip("transformers")
    train_bpe(PYTHON_DOCS, 1000).save(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(PYTHON_DOCS[0]).input_ids != ours().encode(PYTHON_DOCS[0])


def test_a_tokenizer_of_transformers_loads_here(tmp_path):
    """GPT-2's class and Qwen's, built from our merges, saved by transformers and read back as a Hugging Face folder."""
    transformers = pytest.importorskip("transformers")
    vocabulary = {END: 0} | {CHARACTER[byte]: 1 + i for i, byte in enumerate(CHARACTER)}
    gpt2 = transformers.GPT2Tokenizer(vocab=vocabulary, merges=[], eos_token=END)
    gpt2.save_pretrained(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.kind, tokenizer.end_id, tokenizer.begin_id) == ("bpe", 0, gpt2.bos_token_id)
    for text in fuzzed(10_000)[:200]:
        if END not in text:
            assert tokenizer.encode(text) == gpt2(text).input_ids
            assert [ids.tolist() for ids in tokenizer.encode_documents([text])] == [tokenizer.encode(text)]
