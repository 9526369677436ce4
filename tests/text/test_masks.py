"""Masks and sentinels: added behind all other tokens, found again in any order, and never what text encodes to."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import models

from nextile.base.errors import NextileError
from nextile.text.build import train_tokenizer
from nextile.text.masks import for_masks, for_spans, mask_of, ordinary_of, sentinels_of
from nextile.text.pairs import PAD, start_of
from nextile.text.tokenizer import Tokenizer

TEXTS = ["zwei junge Männer", "two young men [MASK] <extra_id_0> <pad>"] * 5
KINDS = ["char", "word", "byte", "bpe"]


def trained(kind: str) -> Tokenizer:
    return train_tokenizer(kind, 300, TEXTS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_is_added_behind_all_others(kind):
    plain = trained(kind)
    ours = for_masks(plain)
    assert mask_of(ours) == plain.vocab_size == ours.vocab_size - 1
    assert ours.token(mask_of(ours)) == "[MASK]"
    assert ours.config == plain.config | {"mask_token": "[MASK]"}
    assert (ours.kind, ours.end_id, ours.special_ids) == (plain.kind, plain.end_id, plain.special_ids | {mask_of(ours)})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extend", [for_masks, for_spans])
def test_text_has_the_same_tokens_as_before(kind, extend):
    plain = trained(kind)
    ours = extend(plain)
    for text in TEXTS:  # also where it spells the tokens' names
        assert ours.encode(text) == plain.encode(text)
        assert ours.decode(ours.encode(text)) == text
    assert [ids.tolist() for ids in ours.encode_documents(TEXTS)] == [plain.encode(text) for text in TEXTS]


def test_the_tokenizer_that_was_given_stays_as_it_was():
    plain = trained("bpe")
    before = plain.fingerprint(), plain.config
    for_masks(plain), for_spans(plain)
    assert (plain.fingerprint(), plain.config) == before


def test_a_mask_of_its_own_is_kept():
    once = for_masks(trained("word"))
    assert for_masks(once) is once
    core = once.core
    for named in ("[MASK]", {"content": "[MASK]", "lstrip": True}):  # both are found in folders
        theirs = Tokenizer(core, {"eos_token": "<|endoftext|>", "mask_token": named})
        assert for_masks(theirs) is theirs
        assert mask_of(theirs) == mask_of(once)


def test_a_mask_that_is_named_and_not_there_is_none():
    plain = trained("char")
    lying = Tokenizer(plain.core, plain.config | {"mask_token": "[GONE]"})
    for tokenizer in (plain, lying):
        with pytest.raises(NextileError, match="the tokenizer has no mask token: take one made for masks") as caught:
            mask_of(tokenizer)
        assert "\n" not in str(caught.value)
    assert mask_of(for_masks(lying)) == plain.vocab_size


@pytest.mark.parametrize("kind", KINDS)
def test_sentinels_and_padding_are_added(kind):
    plain = trained(kind)
    ours = for_spans(plain)
    own_padding = plain.pad_id is not None
    first = plain.vocab_size + (not own_padding)
    assert sentinels_of(ours) == tuple(range(first, first + 100))
    assert ours.token(sentinels_of(ours)[7]) == "<extra_id_7>"
    assert start_of(ours) == ours.pad_id == (plain.pad_id if own_padding else plain.vocab_size)
    assert set(sentinels_of(ours)) < ours.special_ids
    assert for_spans(ours) is ours
    assert sentinels_of(plain) == ()


def test_sentinels_of_t5_go_down():
    theirs = transformers.T5TokenizerFast()._tokenizer
    t5 = Tokenizer(theirs, {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"})
    assert sentinels_of(t5) == tuple(t5.core.token_to_id(f"<extra_id_{i}>") for i in range(100))
    assert sentinels_of(t5)[0] > sentinels_of(t5)[1] > sentinels_of(t5)[99]
    assert for_spans(t5) is t5


def test_only_special_tokens_of_that_very_name_are_sentinels():
    core = for_spans(trained("word")).core
    core.add_tokens(["<extra_id_200>"])
    core.add_special_tokens(
        ["<extra_id_01>", "<extra_id_>", "<extra_id_-1>", "<extra_id_٣>", f"<extra_id_{'9' * 5000}>"]
    )
    core.add_special_tokens(["<extra_id_100>"])
    found = sentinels_of(Tokenizer(core, {"eos_token": "<|endoftext|>"}))
    assert len(found) == 101
    assert found[100] == core.token_to_id("<extra_id_100>")


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_tokens_are_all_but_the_special_ones(kind):
    plain = trained(kind)
    ours = for_spans(for_masks(plain))
    found = ordinary_of(ours)
    assert np.array_equal(found, ordinary_of(plain))
    assert found.dtype == np.int64
    assert set(found.tolist()) == set(range(ours.vocab_size)) - ours.special_ids
    assert mask_of(ours) not in found


def test_an_id_that_no_token_has_is_not_ordinary():
    words = models.WordLevel({"<|endoftext|>": 0, "a": 2, "b": 30}, unk_token="a")
    holes = Tokenizer(tokenizers.Tokenizer(words), {"eos_token": "<|endoftext|>"})
    assert holes.vocab_size == 31
    assert ordinary_of(holes).tolist() == [2, 30]


def test_other_programs_read_masks_and_sentinels(tmp_path):
    ours = for_spans(for_masks(trained("bpe")))
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.mask_token_id == mask_of(ours)
    assert theirs.pad_token == PAD
    assert theirs.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_99>"]) == [sentinels_of(ours)[i] for i in (0, 99)]
    assert sentinels_of(ours)[0] in theirs("zwei<extra_id_0>Männer")["input_ids"]
    again = Tokenizer.load(tmp_path)
    assert (mask_of(again), sentinels_of(again)) == (mask_of(ours), sentinels_of(ours))
