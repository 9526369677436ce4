"""The parts of sampling one by one, and the draw against the distribution that it is to follow."""

import math

import pytest
import torch

from nextile.base.config import resolve
from nextile.base.errors import UsageError
from nextile.generation import sample
from nextile.generation.sample import Sampling


def logits(*shares: float):
    """Logits of one row, (1, V), with these probabilities."""
    return torch.tensor([shares]).log()


def kept(row):
    return row[0].isfinite().nonzero()[:, 0].tolist()


@pytest.fixture
def wide():
    """Three rows over a vocabulary of GPT-2's size, the middle one flat."""
    row = torch.randn(3, 50_257, generator=torch.Generator().manual_seed(0))
    return row * torch.tensor([[4.0], [0.01], [2.0]])


# --- settings -----------------------------------------------------------------------------------------------------


OUT_OF_BOUNDS = {
    "temperature": (-0.1, "nan", "warm"),
    "top_k": (0, 1.5),
    "top_p": (0.0, 1.1),
    "min_p": (-1, 2),
    "repetition_penalty": (0.0, -1),
    "seed": (-1, 1 << 64),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in OUT_OF_BOUNDS for value in OUT_OF_BOUNDS[name]])
def test_a_value_out_of_bounds_is_named(name, value):
    with pytest.raises(UsageError, match=f"setting '{name}'"):
        resolve(Sampling, {name: value})


def test_the_bounds_themselves_are_fine():
    least = {
        "temperature": 0.0,
        "top_k": 1,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 0.5,
        "seed": (1 << 64) - 1,
    }
    assert resolve(Sampling, least).top_p == 1.0


# --- cuts ---------------------------------------------------------------------------------------------------------


def test_top_k_keeps_k_and_what_equals_the_last():
    row = logits(0.1, 0.4, 0.2, 0.2, 0.1)
    assert kept(sample.top_k(row, 1)) == [1]
    assert kept(sample.top_k(row, 2)) == [1, 2, 3]
    assert kept(sample.top_k(row, 99)) == [0, 1, 2, 3, 4]


def test_top_p_keeps_the_fewest_that_reach_p():
    row = logits(0.05, 0.5, 0.15, 0.3)
    assert kept(sample.top_p(row, 0.4)) == [1]
    assert kept(sample.top_p(row, 0.79)) == [1, 3]
    assert kept(sample.top_p(row, 0.81)) == [1, 2, 3]
    assert kept(sample.top_p(row, 1e-9)) == [1]
    assert sample.top_p(row, 1.0) is row


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.99, 0.9999])
def test_top_p_in_a_large_vocabulary_is_what_a_sort_gives(wide, p):
    got = sample.top_p(wide, p).isfinite()
    shares, ids = wide.double().softmax(-1).sort(-1, descending=True)
    before = shares.cumsum(-1) - shares
    clear = ((before - p).abs() > 1e-5).gather(-1, ids.argsort(-1))  # where rounding does not decide
    want = (before < p).gather(-1, ids.argsort(-1))
    assert torch.equal(got[clear], want[clear])
    assert clear.float().mean() > 0.4
    assert 1 <= got[0].sum() < got[1].sum()


def test_top_p_finds_few_without_sorting_all(wide, monkeypatch):
    sizes = []
    nucleus = sample._nucleus
    monkeypatch.setattr(
        sample, "_nucleus", lambda row, *rest, **more: sizes.append(row.shape[-1]) or nucleus(row, *rest, **more)
    )
    quick = sample.top_p(wide[:1], 0.9)
    slow = nucleus(wide[:1], wide[:1].softmax(-1), 0.9)
    assert torch.equal(quick, slow)
    sample.top_p(wide[1:2], 0.9)
    assert sizes == [sample.CANDIDATES, 50_257]


def test_top_p_among_equals_beyond_the_candidates():
    row = torch.zeros(1, 3000)
    assert sample.top_p(row, 0.25).isfinite().sum() == pytest.approx(750, abs=1)
    row[0, 7] = 20.0
    assert kept(sample.top_p(row, 0.9)) == [7]


def test_min_p_keeps_what_is_near_the_best():
    row = logits(0.05, 0.5, 0.15, 0.3)
    assert kept(sample.min_p(row, 0.0)) == [0, 1, 2, 3]
    assert kept(sample.min_p(row, 0.29)) == [1, 2, 3]
    assert kept(sample.min_p(row, 0.31)) == [1, 3]
    assert kept(sample.min_p(row, 1.0)) == [1]


def test_the_penalty_lowers_what_was_there():
    row = torch.tensor([[2.0, -2.0, 1.0, 0.0]])
    seen = torch.tensor([[True, True, False, True]])
    assert sample.repetition_penalty(row, seen, 2.0).tolist() == [[1.0, -4.0, 1.0, 0.0]]
    assert sample.repetition_penalty(row, seen, 0.5).tolist() == [[4.0, -1.0, 1.0, 0.0]]
    assert sample.repetition_penalty(row, seen, 1e-45).isfinite().all()  # which overflows


@pytest.mark.parametrize("degree", [5e-324, 1e-40, 1e-6, 1.0, 1e6])
def test_no_temperature_makes_nan(degree):
    shares = sample.temperature(torch.tensor([[-80.0, 90.0, 89.0]]), degree).softmax(-1)
    assert shares.sum().item() == pytest.approx(1.0)
    assert (shares[0, 1] > 0.999) == (degree <= 1e-6)


def test_parts_apply_in_the_order_of_the_settings():
    row = logits(0.4, 0.3, 0.2, 0.1)
    hot = Sampling(temperature=2.0, top_p=0.65)  # three of the heated distribution, two of the given one
    assert kept(sample.warp(row, hot)) == [0, 1, 2]
    assert kept(sample.top_p(row, 0.65)) == [0, 1]
    assert kept(sample.warp(row, Sampling(temperature=1.0, top_k=2, top_p=0.55))) == [0]  # 4/7 of what top-k leaves


# --- the draw -----------------------------------------------------------------------------------------------------


def draws(row, count, sampling=None, seed=0):
    """How often each token is drawn from one row, (V,)."""
    many, streams = row.expand(count, -1), [sample.random_stream(seed, number) for number in range(count)]
    tokens = sample.next_token(many, sampling or Sampling(temperature=1.0), streams)
    return torch.bincount(tokens, minlength=row.shape[-1])


def chi_square(counts, shares):
    expected = shares.double() * counts.sum()
    return ((counts - expected) ** 2 / expected).sum().item()


LIMIT = 24.3  # of chi-square with 7 degrees of freedom, exceeded once in a thousand

SHARES = (0.3, 0.25, 0.15, 0.1, 0.08, 0.06, 0.04, 0.02)


def test_the_draw_follows_the_distribution():
    shares = torch.tensor(SHARES)
    assert chi_square(draws(logits(*SHARES), 20_000), shares) < LIMIT


def test_one_stream_after_another_follows_it_too():
    stream, row = [sample.random_stream(3, 0)], logits(*SHARES)
    tokens = torch.cat([sample.draw(row, stream) for _ in range(5_000)])
    assert chi_square(torch.bincount(tokens, minlength=8), torch.tensor(SHARES)) < LIMIT


def test_control_the_statistic_sees_a_small_bias():
    off = torch.tensor(SHARES)
    off[0], off[1] = off[0] - 0.02, off[1] + 0.02
    assert chi_square(draws(logits(*SHARES), 20_000), off) > LIMIT


def test_a_temperature_is_a_power():
    shares = torch.tensor(SHARES) ** 2
    assert chi_square(draws(logits(*SHARES), 20_000, Sampling(temperature=0.5)), shares / shares.sum()) < LIMIT


def test_what_is_cut_is_never_drawn():
    counts = draws(logits(*SHARES).flip(-1), 20_000, Sampling(temperature=1.0, top_k=3))
    assert counts[:5].sum() == 0
    assert counts[5:].min() > 0


@pytest.mark.parametrize("point", [0.0, 1 - 2.0**-53])
def test_the_ends_of_the_scale_draw_what_may_be_drawn(point, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *_, **options: torch.tensor([point], dtype=options["dtype"]))
    for shares in ((0.0, 0.3, 0.7, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.1, 0.2, 0.7)):
        row = logits(*shares)
        [token] = sample.draw(row, [sample.random_stream(0, 0)]).tolist()
        assert shares[token] > 0


def test_streams_are_their_own():
    def numbers(seed, number):
        return torch.rand(4, generator=sample.random_stream(seed, number)).tolist()

    assert numbers(1, 2) == numbers(1, 2)
    assert len({tuple(numbers(seed, number)) for seed in (0, 1, 12, (1 << 64) - 1) for number in (0, 1, 2)}) == 12


def test_greedy_takes_the_first_of_the_highest():
    row = torch.tensor([[0.0, 3.0, 3.0], [math.pi, 1.0, 2.0]])
    assert sample.next_token(row, Sampling(temperature=0.0), []).tolist() == [1, 0]
