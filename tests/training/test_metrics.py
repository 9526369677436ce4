"""Metrics against numbers worked out by hand, and those of translations against sacrebleu's own objects."""

import logging
import math
import socket
import sys

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from nextile.base.errors import NextileError, UsageError
from nextile.training.metrics import TOKENIZERS, bits_per_byte, bleu, chrf, exact, perplexity


def test_perplexity_of_a_fair_die_is_six():
    assert perplexity(math.log(6)) == pytest.approx(6)


def test_perplexity_of_a_hopeless_model_is_infinite():
    assert perplexity(1e6) == math.inf


def test_a_guess_among_256_bytes_costs_eight_bits_each():
    assert bits_per_byte(10 * math.log(256), 10) == pytest.approx(8)


# --- translations --------------------------------------------------------------------------------------------------

HYPOTHESES = ["The cat sat on the mat, quietly.", "A man rides a bicycle.", "Zwei Männer gehen."]
REFERENCES = ["The cat sat on a mat, quietly.", "A man is riding a red bicycle.", "Zwei Männer laufen!"]


def problem(measure, *args) -> str:
    with pytest.raises(NextileError) as caught:
        measure(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("tokenize", TOKENIZERS)
def test_bleu_is_sacrebleus(tokenize):
    metric = BLEU(tokenize=tokenize)
    score = bleu(HYPOTHESES, REFERENCES, tokenize)
    assert score.value == metric.corpus_score(HYPOTHESES, [REFERENCES]).score
    assert score.signature == metric.get_signature().format()
    assert f"|tok:{tokenize}|" in score.signature
    assert score.signature.endswith(f"|version:{sacrebleu.__version__}")


def test_the_ways_to_tokenize_differ():
    sides = [*HYPOTHESES, "a-b c%d (e)"], [*REFERENCES, "a-b c%d (e)!"]
    assert len({round(bleu(*sides, tokenize).value, 6) for tokenize in TOKENIZERS}) > 2
    assert bleu(*sides) == bleu(*sides, "13a") != bleu(*sides, "none")


def test_chrf_is_sacrebleus():
    metric = CHRF()
    score = chrf(HYPOTHESES, REFERENCES)
    assert score.value == metric.corpus_score(HYPOTHESES, [REFERENCES]).score
    assert score.signature == metric.get_signature().format()
    assert score.signature.endswith(f"|nc:6|nw:0|space:no|version:{sacrebleu.__version__}")


def test_bleu_by_hand():
    precisions = 5 / 6 * 3 / 5 * 1 / 4 * 1 / (2 * 3)  # of 1 to 4 words; none of the last, which counts as half a one
    assert bleu(["a b c x e f"], ["a b c d e f"], "none").value == pytest.approx(100 * precisions**0.25)
    assert bleu(["a b c d"], ["a b c d e"], "none").value == pytest.approx(100 * math.exp(1 - 5 / 4))  # too short


def test_chrf_by_hand():
    precision, recall = 1, (2 / 3 + 1 / 2) / 2  # the means over 1 and 2 characters
    assert chrf(["ab"], ["abc"]).value == pytest.approx(100 * 5 * precision * recall / (4 * precision + recall))


def test_the_same_is_perfect_and_the_different_is_not():
    for measure in (bleu, chrf):
        assert measure(REFERENCES, REFERENCES).value == pytest.approx(100)
        assert 0 < measure(HYPOTHESES, REFERENCES).value < 90
        assert measure([""] * 3, REFERENCES).value == 0
        turned = [*REFERENCES[1:], REFERENCES[0]]
        assert measure(turned, REFERENCES).value < measure(HYPOTHESES, REFERENCES).value  # the order counts


def test_exact_counts_equal_texts():
    assert exact([" zwei\n", "drei", "Vier", "f  g"], ["zwei", "drei ", "vier", "f g"]) == 0.5
    assert exact(["a"], ["a"]) == 1
    assert exact(["a"], ["b"]) == 0


@given(st.lists(st.text(max_size=8), min_size=1, max_size=5))
@settings(deadline=None)
def test_any_text_is_measured(texts):
    assert 0 <= bleu(texts, texts[::-1]).value < 100.001
    assert 0 <= chrf(texts, texts[::-1]).value < 100.001
    assert exact(texts, texts) == 1


def test_tokenized_text_brings_a_warning_only_where_it_should_not_be_tokenized(caplog):
    with caplog.at_level(logging.WARNING, "sacrebleu"):
        bleu(["a b ."] * 100, ["a b ."] * 100, "none")
        assert not caplog.records
        bleu(["a b ."] * 100, ["a b ."] * 100)
        assert caplog.records


@pytest.mark.parametrize("measure", [bleu, chrf, exact])
def test_texts_that_do_not_match(measure):
    assert problem(measure, ["a"] * 1234, ["a"]) == "1,234 hypotheses do not match 1 references: give one for each"
    assert problem(measure, [], []).startswith("there is nothing to compare")


@pytest.mark.parametrize("name", [*sorted(set(BLEU.TOKENIZERS) - set(TOKENIZERS)), "", "13A", "words"])
def test_other_ways_to_tokenize_ask_no_network(monkeypatch, name):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    message = problem(bleu, HYPOTHESES, REFERENCES, name)
    assert message.startswith(f"'{name}' is no way to tokenize for BLEU that needs no network")
    assert message.endswith("use one of 13a, intl, zh, char, none")
    with pytest.raises(UsageError):
        bleu(HYPOTHESES, REFERENCES, name)


def test_without_sacrebleu(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.delitem(sys.modules, "sacrebleu.metrics", raising=False)
    for measure in (bleu, chrf):
        assert problem(measure, ["a"], ["a"]) == "BLEU and chrF need sacrebleu: pip install 'nextile[mt]'"
    assert exact(["a"], ["a"]) == 1
