"""What stands around a text: cut to fit, read from a tokenizer.json and written into one."""

import pytest
import tokenizers
from tokenizers import processors

from nextile.text.build import train_tokenizer
from nextile.text.frame import Frame, framed, own_frame, usual_frame
from nextile.text.tokenizer import Tokenizer


@pytest.fixture
def plain():
    return train_tokenizer("byte", 300, ["a text"])


def begun(tokenizer):
    """The same with a token that begins a text."""
    core = tokenizers.Tokenizer.from_str(tokenizer.core.to_str())
    core.add_special_tokens([tokenizers.AddedToken("<s>", special=True)])
    return Tokenizer(core, {**tokenizer.config, "bos_token": "<s>"})


def test_a_text_is_cut_between_its_begin_and_its_end():
    assert Frame((), (0,)).around([5, 6, 7], 9) == [5, 6, 7, 0]
    assert Frame((1,), (0,)).around([5, 6, 7], 9) == [1, 5, 6, 7, 0]
    assert Frame((1,), (0,)).around([5, 6, 7], 4) == [1, 5, 6, 0]
    assert Frame((), (0,)).around([], 4) == [0]
    assert Frame((1, 2), (3,)).around([5], 2) == [1, 2]
    assert Frame().around([5, 6], 1) == [5]


def test_what_a_tokenizer_says_of_itself_is_not_what_is_usual(plain):
    assert own_frame(plain) == Frame()
    assert usual_frame(plain) == Frame((), (plain.end_id,))
    both = begun(plain)
    assert usual_frame(both) == Frame((both.begin_id,), (both.end_id,))


def test_a_framed_tokenizer_says_it_and_encodes_as_before(plain, tmp_path):
    for number, tokenizer in enumerate((plain, begun(plain))):
        whole = framed(tokenizer)
        assert own_frame(whole) == usual_frame(tokenizer)
        assert whole.encode("a text") == tokenizer.encode("a text")
        assert framed(whole) is whole
        whole.save(tmp_path / str(number))
        theirs = tokenizers.Tokenizer.from_file(str(tmp_path / str(number) / "tokenizer.json"))
        assert theirs.encode("a text").ids == usual_frame(tokenizer).around(tokenizer.encode("a text"), 99)
    assert own_frame(plain) == Frame()  # it is not changed


def test_what_begins_and_ends_a_text_may_be_one_token(plain):
    tokenizer = Tokenizer(plain.core, {**plain.config, "bos_token": plain.token(plain.end_id)})
    assert own_frame(framed(tokenizer)) == Frame((plain.end_id,), (plain.end_id,))


def test_another_frame_is_replaced(plain):
    core = tokenizers.Tokenizer.from_str(plain.core.to_str())
    end = plain.token(plain.end_id)
    core.post_processor = processors.TemplateProcessing(single=f"{end} {end} $A", special_tokens=[(end, plain.end_id)])
    tokenizer = Tokenizer(core, plain.config)
    assert own_frame(tokenizer) == Frame((plain.end_id, plain.end_id), ())
    assert own_frame(framed(tokenizer)) == Frame((), (plain.end_id,))
