"""Metrics against numbers worked out by hand."""

import math

import pytest
import torch

from nextile.training.metrics import bits_per_byte, correct, perplexity


def test_perplexity_of_a_fair_die_is_six():
    assert perplexity(math.log(6)) == pytest.approx(6)


def test_perplexity_of_a_hopeless_model_is_infinite():
    assert perplexity(1e6) == math.inf


def test_a_guess_among_256_bytes_costs_eight_bits_each():
    assert bits_per_byte(10 * math.log(256), 10) == pytest.approx(8)


def test_accuracy_does_not_count_what_was_not_asked():
    logits = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]])
    assert correct(logits, torch.tensor([[1, 1, -100]])) == (1, 2)
