"""Metrics against numbers worked out by hand."""

import math

import pytest

from nextile.training.metrics import bits_per_byte, perplexity


def test_perplexity_of_a_fair_die_is_six():
    assert perplexity(math.log(6)) == pytest.approx(6)


def test_perplexity_of_a_hopeless_model_is_infinite():
    assert perplexity(1e6) == math.inf


def test_a_guess_among_256_bytes_costs_eight_bits_each():
    assert bits_per_byte(10 * math.log(256), 10) == pytest.approx(8)
