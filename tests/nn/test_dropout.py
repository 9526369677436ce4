"""Dropout, eager and compiled: the stated share, scaled, other places each time, none when not training."""

import pytest
import torch

from nextile.nn.dropout import Dropout, dropout

SHARE = 0.3


@pytest.fixture(params=["eager", "compiled"])
def drop(request):
    return dropout if request.param == "eager" else torch.compile(dropout, fullgraph=True, dynamic=False)


def test_the_stated_share_goes_and_the_rest_is_scaled(drop):
    torch.manual_seed(0)
    kept = drop(torch.ones(200, 500), SHARE)
    assert abs((kept == 0).float().mean().item() - SHARE) < 0.005  # three standard deviations of 100,000 draws
    assert kept[kept != 0].sub(1 / (1 - SHARE)).abs().max() < 1e-6
    for axis in (0, 1):  # no row or column is favoured
        assert ((kept == 0).float().mean(axis) - SHARE).abs().max() < 0.16


def test_other_numbers_go_each_time_and_the_seed_decides(drop):
    x = torch.ones(40, 50)
    torch.manual_seed(0)
    first, second = drop(x, SHARE), drop(x, SHARE)
    torch.manual_seed(0)
    assert torch.equal(drop(x, SHARE), first)
    together = ((first == 0) & (second == 0)).float().mean().item()
    assert abs(together - SHARE**2) < 0.03  # independent: neither the same places nor the opposite ones


def test_neighbours_go_independently(drop):
    torch.manual_seed(3)
    gone = (drop(torch.ones(300, 300), SHARE) == 0).flatten()
    for apart in (1, 2, 16, 300):
        assert abs((gone[apart:] & gone[:-apart]).float().mean().item() - SHARE**2) < 0.01, apart


def test_the_gradient_takes_the_same_places(drop):
    x = torch.ones(20, 30, requires_grad=True)
    kept = drop(x, SHARE)
    kept.sum().backward()
    assert torch.equal(x.grad, kept.detach())


def test_only_in_training():
    part, x = Dropout(SHARE), torch.ones(50, 50)
    assert (part(x) == 0).any()
    assert part.eval()(x) is x
