"""A translator's tokens: padding beside the end token, the same ids for all text, and the end added for others only."""

import transformers

from nextile.text.build import train_tokenizer
from nextile.text.pairs import for_pairs, start_of
from nextile.text.tokenizer import Tokenizer

TEXTS = ["zwei junge Männer", "two young men <pad> <|endoftext|>"] * 5


def test_a_padding_token_is_added_behind_all_others():
    plain = train_tokenizer("bpe", 300, TEXTS)
    ours = for_pairs(plain)
    assert (ours.pad_id, ours.vocab_size, ours.end_id) == (plain.vocab_size, plain.vocab_size + 1, plain.end_id)
    assert start_of(ours) == ours.pad_id
    assert start_of(plain) == plain.end_id
    for text in TEXTS:  # also where the text spells the tokens' names
        assert ours.encode(text) == plain.encode(text)
        assert ours.decode(ours.encode(text)) == text
    assert [ids.tolist() for ids in ours.encode_documents(TEXTS)] == [plain.encode(text) for text in TEXTS]


def test_one_that_has_padding_is_taken_as_it_is():
    tokenizer = train_tokenizer("byte", 0, TEXTS)
    assert for_pairs(tokenizer) is tokenizer
    assert start_of(tokenizer) == 0  # as in ByT5


def test_other_programs_end_the_source(tmp_path):
    ours = for_pairs(train_tokenizer("bpe", 300, TEXTS))
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("zwei Männer")["input_ids"] == [*ours.encode("zwei Männer"), ours.end_id]
    assert theirs.pad_token_id == ours.pad_id
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint() == ours.fingerprint()
    assert again.encode("zwei Männer") == ours.encode("zwei Männer")
