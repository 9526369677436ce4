"""The next-token objective against its formula, written out."""

import pytest
import torch

from nextile.training.objectives import next_token


@torch.no_grad()
def by_hand(model, batch, smoothing: float) -> float:
    """Every asked target's -log p, one at a time."""
    logs = model(batch.inputs).double().log_softmax(-1)
    total = 0.0
    for row, targets in zip(logs, batch.targets.tolist(), strict=True):
        for log, target in zip(row, targets, strict=True):
            if target >= 0:
                total -= float((1 - smoothing) * log[target] + smoothing * log.mean())
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_the_formula(tiny, batch, smoothing):
    model, asked = tiny(), batch(1, ignore=0.4)
    ours = next_token(model, asked, label_smoothing=smoothing).item()
    assert ours == pytest.approx(by_hand(model, asked, smoothing), rel=1e-6)
    assert abs(ours - by_hand(model, asked, smoothing + 0.01)) > 1e-3  # the test can fail


def test_a_sum_in_float32_even_when_the_logits_are_not(tiny, batch):
    assert next_token(tiny().bfloat16(), batch(1)).dtype == torch.float32
