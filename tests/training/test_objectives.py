"""The objectives against their formulas, written out."""

import pytest
import torch

from nextile.data.batches import Batch
from nextile.training.objectives import next_token, r_drop, smooth_and_consistent


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


# --- R-Drop -------------------------------------------------------------------------------------------------------


class TwoFaced(torch.nn.Module):
    """Answers the first half of its rows by one table of logits and the second half by another: two dropouts."""

    def __init__(self, rows, time, vocab=11):
        super().__init__()
        self.first = torch.nn.Parameter(torch.randn(rows, time, vocab))
        self.second = torch.nn.Parameter(torch.randn(rows, time, vocab))

    def forward(self, ids):
        assert len(ids) == 2 * len(self.first)
        return torch.cat((self.first, self.second))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@torch.no_grad()
def test_r_drop_equals_the_formula(batch, smoothing):
    torch.manual_seed(0)
    model, asked = TwoFaced(4, 6), batch(1, ignore=0.4)
    p, q = (face.double().log_softmax(-1) for face in (model.first, model.second))
    wanted = 0.0
    for row, time in (asked.targets >= 0).nonzero().tolist():
        target, a, b = asked.targets[row, time], p[row, time], q[row, time]
        for log in (a, b):
            wanted -= float((1 - smoothing) * log[target] + smoothing * log.mean()) / 2
        divergences = (a.exp() * (a - b)).sum() + (b.exp() * (b - a)).sum()
        wanted += 5.0 / 4 * float(divergences)
    assert r_drop(model, asked, weight=5.0, label_smoothing=smoothing).item() == pytest.approx(wanted, rel=1e-5)
    assert r_drop(model, asked, weight=4.0, label_smoothing=smoothing).item() != pytest.approx(wanted, rel=1e-3)


@torch.no_grad()
def test_passes_that_agree_cost_what_one_does(tiny, batch):
    model, asked = tiny(dropout=0.0), batch(2, ignore=0.3)
    assert r_drop(model, asked, weight=3.0).item() == pytest.approx(next_token(model, asked).item(), rel=1e-5)
    noisy = tiny(dropout=0.5)
    torch.manual_seed(0)
    assert r_drop(noisy, asked, weight=3.0).item() > r_drop(noisy, asked, weight=0.0).item() + 0.01


def test_what_is_beside_the_inputs_is_given_too(batch):
    seen = []

    def model(*given):
        seen.append([tuple(tensor.shape) for tensor in given])
        return torch.zeros(len(given[0]), 6, 11)

    asked = batch(3)
    beside = (torch.zeros(4, 9), torch.zeros(4, 2))
    next_token(model, Batch.of(asked.inputs, asked.targets, beside))
    r_drop(model, Batch.of(asked.inputs, asked.targets, beside), weight=1.0)
    assert seen == [[(4, 6), (4, 9), (4, 2)], [(8, 6), (8, 9), (8, 2)]]


@torch.no_grad()
def test_the_weight_decides_which(tiny, batch):
    model, asked = tiny(dropout=0.0), batch(4)
    plain, dropped = smooth_and_consistent(0.1, 0.0), smooth_and_consistent(0.1, 2.0)
    assert plain(model, asked).item() == next_token(model, asked, label_smoothing=0.1).item()
    assert dropped(model, asked).item() == pytest.approx(r_drop(model, asked, 2.0, 0.1).item())
