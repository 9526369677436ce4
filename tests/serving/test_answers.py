"""Texts as they grow: pieces, stop strings and the tokens that are shown, whatever the pieces are."""

import random

import pytest

from nextile.generation.complete import Text
from nextile.generation.decode import Emitted
from nextile.serving.answers import NEVER, Choice, Shown, Words, chat_logprobs, prompt_tokens, text_logprobs
from nextile.text.build import train_tokenizer
from nextile.text.characters import byte_tokenizer

OCTETS = byte_tokenizer()


def grown(tokens, stops=(), *, shown=True, start=0):
    """(text, shown tokens, the choice) of tokens of which the last is told to be so."""
    choice = Choice(OCTETS, stops, shown=shown, start=start)
    text, found = "", []
    for number, token in enumerate(tokens):
        stopped = choice.stop is not None and choice.stop(token)
        reason = "stop" if stopped else "length" if number == len(tokens) - 1 else None
        piece = choice.take(Emitted(0, token, -1.0, ((token, -1.0),), reason))
        text += piece.text
        found += piece.tokens
        if stopped:
            break
    return text, found, choice


@pytest.mark.parametrize("seed", range(20))
def test_a_text_and_its_tokens_fit_each_other(seed):
    dice = random.Random(seed)
    text = "".join(dice.choice("abé\U0001f600.") for _ in range(60))
    stops = ["".join(dice.choice("abé.") for _ in range(dice.randint(1, 3))) for _ in range(dice.randint(0, 3))]
    tokens = OCTETS.encode(text)
    found, shown, choice = grown(tokens, stops, start=7)
    plain = Text(OCTETS.decode_stream(), stops)
    wanted = "".join(plain.push(token) for token in tokens) + plain.flush()
    assert found == wanted
    assert OCTETS.decode([each.token for each in shown]).startswith(found)
    assert all(each.offset < 7 + len(found) for each in shown) or not choice.stop
    assert [each.offset for each in shown] == sorted(each.offset for each in shown)
    for each, token in zip(shown, tokens, strict=False):
        assert each.token == token
        before = OCTETS.decode(tokens[: shown.index(each)])
        assert each.offset == 7 + len(before.rstrip("\ufffd"))


def test_nothing_is_kept_of_tokens_that_are_not_shown():
    text, shown, choice = grown(OCTETS.encode("abc"), shown=False)
    assert (text, shown, choice.tokens, choice.logprob) == ("abc", [], 3, -3.0)


def test_the_end_token_is_no_text_and_not_shown():
    choice = Choice(OCTETS, (), shown=True)
    assert choice.take(Emitted(0, OCTETS.encode("a")[0], -1.0)).text == "a"
    last = choice.take(Emitted(0, OCTETS.end_id, -0.5, (), "end"))
    assert (last.text, last.tokens, last.finished, choice.tokens) == ("", [], "stop", 2)


def test_tokens_of_a_prompt_have_scores_but_for_the_first():
    ids = OCTETS.encode("é.")
    shown = prompt_tokens(OCTETS, ids, [(-1.0, ((5, -0.5),)), (-2.0, ())])
    assert [each.logprob for each in shown] == [None, -1.0, -2.0]
    assert [each.offset for each in shown] == [0, 0, 1]


def test_tokens_that_read_the_same_keep_the_likeliest():
    words = Words(OCTETS)
    special = OCTETS.vocab_size + 5  # beyond the tokenizer: a model may have room for more
    shown = [Shown(special, float("-inf"), ((special + 1, -1.0), (special, -2.0)), 0)]
    assert text_logprobs(words, shown, 2).top_logprobs == [{"": -1.0}]
    assert text_logprobs(words, shown, 2).token_logprobs == [NEVER]
    assert text_logprobs(words, shown, 0).top_logprobs is None
    assert chat_logprobs(words, shown).content[0].logprob == NEVER


def test_words_are_written_as_they_read():
    words = Words(train_tokenizer("bpe", 300, ["the cat, the dog and the bird"] * 50))
    ids = words._tokenizer.encode("the cat")
    assert "".join(words.text(token) for token in ids) == "the cat"
    assert words.text(words._tokenizer.end_id) == "<|endoftext|>"
    assert words.bytes(words._tokenizer.end_id) is None
