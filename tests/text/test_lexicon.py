"""Words of small letters: the fast way against `tokenizers` itself for any text, their order, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from nextile.base.errors import NextileError
from nextile.text.lexicon import train_lexicon
from nextile.text.tokenizer import Tokenizer

HARD = (
    "Don't 'tis the cats' dogs'' rock'n'roll '' ' a''b _x_ x_1 '_' 3.5 4'7 0x1F\tTHE the\r\nThe\x0bthe\x1cthe\x85the"
    "\u2028the\u2029the İstanbul ΣΑΣ σας Σ ς é É e\u0301 E\u0301'x it\u2019s \u0301 '\u0301' \u212a Å ǅ ß ẞ ﬁ "
    "漢字 १२ ٣ ² ½ ⅷ a\u200db \u00adx \ufeffx \ufb03 \x00 a\x7fb \U0001d400 <unk> <|endoftext|> 👩\u200d👧"
)
TEXT = st.text(
    st.sampled_from("abZ01_'’ -.\n\r\t\x0b\x0c\x1c\x1d\x1e\x1f\x85\u2028\u2029İıΣςſKéÉ\u0301\u0307ʼ٣²漢ǅ")
    | st.characters(codec="utf-8")
)


def learned(*texts, least=1, size=None):
    return train_lexicon(texts, least, size)


def words_of(tokenizer):
    return [tokenizer.token(index) for index in range(tokenizer.vocab_size)]


# --- the fast way is the slow way -----------------------------------------------------------------------------------


def by_the_file(tokenizer, text):
    """What `tokenizers` alone makes of the tokenizer.json; special tokens in the text are text."""
    core = tokenizers.Tokenizer.from_str(tokenizer.core.to_str())
    core.encode_special_tokens = True
    return core.encode(text, add_special_tokens=False).ids


def same_ids(tokenizer, text):
    fast = next(tokenizer.encode_documents([text]))
    assert fast.dtype == np.uint32
    assert fast.tolist() == by_the_file(tokenizer, text) == tokenizer.encode(text)


def test_the_fast_way_gives_the_same_ids_for_hard_text():
    tokenizer = learned(HARD)
    same_ids(tokenizer, HARD)
    assert tokenizer.unknown_id not in tokenizer.encode(HARD)  # what was counted is what is looked up
    for text in (
        HARD[::-1],
        HARD.replace(" ", "'"),
        HARD.replace(" ", "\x1f"),
        HARD.upper(),
        HARD.lower(),
        "",
        "'",
        "\n",
    ):
        same_ids(tokenizer, text)
        same_ids(learned(text + " a"), HARD)


@settings(max_examples=300, deadline=None)
@given(TEXT, TEXT)
def test_the_fast_way_gives_the_same_ids_for_any_text(text, other):
    same_ids(learned(text, "a"), text)
    same_ids(learned(other, "a"), text)


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=4))
def test_words_are_counted_as_they_are_looked_up(texts):
    """Each word of the vocabulary is met as often as its place says, and none is missed."""
    tokenizer = learned(*texts, "a")
    ids = np.concatenate(list(tokenizer.encode_documents([*texts, "a"])))
    counts = np.bincount(ids, minlength=tokenizer.vocab_size)[2:].tolist()
    assert counts == sorted(counts, reverse=True)
    assert min(counts) > 0
    assert tokenizer.unknown_id not in ids


def test_apostrophes_hold_a_word_together_and_do_not_end_it():
    tokenizer = learned("'Don't' don't, ''DON'T'' don''t ' ''")
    assert words_of(tokenizer)[2:] == ["don't", "don''t"]
    assert tokenizer.encode("'''don't'") == [2]


def test_the_texts_of_special_tokens_are_text():
    tokenizer = learned("<|endoftext|> x <unk>")
    assert words_of(tokenizer)[2:] == ["endoftext", "unk", "x"]
    assert tokenizer.encode("<|endoftext|><unk> y") == [2, 3, tokenizer.unknown_id]


# --- the order ------------------------------------------------------------------------------------------------------


def test_words_are_numbered_by_frequency_and_then_by_spelling():
    tokenizer = learned("b a é B z Z 1 the THE The")
    assert words_of(tokenizer) == ["<|endoftext|>", "<unk>", "the", "b", "z", "1", "a", "é"]
    assert (tokenizer.end_id, tokenizer.unknown_id, tokenizer.special_ids) == (0, 1, {0, 1})


def test_the_order_does_not_follow_that_of_the_texts():
    texts = ["x y", "y z", "w w"]
    assert (
        words_of(learned(*texts)) == words_of(learned(*texts[::-1])) == ["<|endoftext|>", "<unk>", "w", "y", "x", "z"]
    )


def test_rare_words_and_those_beyond_the_size_are_unknown():
    text = "a a a b b c"
    assert words_of(learned(text, least=2))[2:] == ["a", "b"]
    assert words_of(learned(text, size=3))[2:] == ["a"]
    assert words_of(learned(text, size=1000))[2:] == ["a", "b", "c"]
    assert learned(text, least=2).encode("c b") == [1, 3]


def test_a_word_is_as_frequent_as_all_its_spellings():
    assert words_of(learned("'tis 'Tis' TIS, tis", "it it it", least=4))[2:] == ["tis"]


# --- on disk, and back into text ------------------------------------------------------------------------------------


def test_ids_become_words_with_spaces_between():
    tokenizer = learned("The cat's mat!")
    assert tokenizer.decode(tokenizer.encode("the MAT -- the cat's ...")) == "the mat the cat's"
    assert tokenizer.decode([2, 1, 0, 3], skip_special=False) == "cat's <unk> <|endoftext|> mat"


def test_a_folder_keeps_what_it_is(tmp_path):
    tokenizer = learned(HARD)
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert (again.kind, again.fingerprint()) == ("lexicon", tokenizer.fingerprint())
    assert (again.end_id, again.unknown_id, again.special_ids) == (0, 1, {0, 1})
    same_ids(again, HARD)


def test_transformers_reads_the_folder(tmp_path):
    tokenizer = learned(HARD, least=2)
    tokenizer.save(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = HARD.replace("<unk>", "").replace("<|endoftext|>", "")  # theirs reads special tokens from a text
    assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    assert (theirs.eos_token_id, theirs.unk_token_id) == (tokenizer.end_id, tokenizer.unknown_id)


def test_a_word_of_another_file_that_ends_in_an_apostrophe_is_never_met():
    """`tokenizers` never looks such a word up, so neither may the fast way."""
    spec = json.loads(learned("tis cats").core.to_str())
    spec["model"]["vocab"] |= {"'tis": 4, "cats'": 5, "'": 6}
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(spec)), learned("a").config)
    assert tokenizer.kind == "lexicon"
    same_ids(tokenizer, "'tis cats' ' ''tis''")


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a b c", "", "... ' '' -"])
def test_text_without_a_frequent_word_is_an_error_in_one_line(text):
    with pytest.raises(
        NextileError, match=r"no word occurs 2 times: give more text, or lower words\.min_count"
    ) as found:
        learned(text, least=2)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("text", ["a\udc80", "'\udc80", "a\nb\nc\udfff"])
def test_a_lone_surrogate_is_refused(text):
    with pytest.raises(NextileError, match="lone surrogate"):
        learned(text)
    with pytest.raises(NextileError, match="lone surrogate"):
        list(learned("a").encode_documents([text]))
