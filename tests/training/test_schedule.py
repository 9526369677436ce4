"""Schedules: how they start, where they end, and that they are what their papers say."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from nextile.training.schedule import Constant, Cosine, InverseSquareRoot, Linear, Schedule, WarmupStableDecay

ALL = [Constant, Cosine, InverseSquareRoot, Linear, WarmupStableDecay]


@pytest.mark.parametrize("kind", ALL)
@given(steps=st.integers(1, 3000), warmup=st.floats(0, 500), data=st.data())
def test_every_factor_is_positive_and_at_most_one(kind, steps, warmup, data):
    step = data.draw(st.integers(0, steps - 1))
    assert 0 < kind(warmup=warmup).factor(step, steps) <= 1


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_the_peak_is_reached_where_the_warm_up_ends(kind, steps):
    schedule = kind(warmup=0.3)
    rise = schedule.warmup_steps(steps)
    assert schedule.factor(rise, steps) == 1
    rising = [schedule.factor(step, steps) for step in range(rise + 1)]
    assert rising == sorted(set(rising))


def test_warm_up_counts_a_part_below_one_and_steps_from_one():
    assert Linear(warmup=0.1).warmup_steps(200) == 20
    assert Linear(warmup=50).warmup_steps(200) == 50
    assert Linear(warmup=500).warmup_steps(200) == 199


def test_linear_by_hand():
    assert [Linear(warmup=2).factor(step, 6) for step in range(6)] == pytest.approx(
        [1 / 3, 2 / 3, 1, 3 / 4, 1 / 2, 1 / 4]
    )


def test_cosine_by_hand():
    schedule = Cosine(warmup=0, floor=0.1)
    assert [schedule.factor(step, 4) for step in (0, 2)] == pytest.approx([1, 0.55])
    assert schedule.factor(3, 4) == pytest.approx(0.1 + 0.9 * (1 + math.cos(0.75 * math.pi)) / 2)


def test_inverse_square_root_is_that_of_the_transformer_paper():
    """min(s^-1/2, s·w^-3/2), scaled to a peak of one, for s = 1, 2, ..."""
    ours = [InverseSquareRoot(warmup=39).factor(s - 1, 1000) for s in range(1, 1001)]
    paper = [min(s**-0.5, s * 40**-1.5) * 40**0.5 for s in range(1, 1001)]
    assert ours == pytest.approx(paper)


def test_stable_then_decay_can_be_prolonged():
    """Until the decay begins, the factor does not depend on the length of the run."""
    schedule = WarmupStableDecay(warmup=10, decay=0.2)
    short, long = ([schedule.factor(step, steps) for step in range(80)] for steps in (110, 1000))
    assert short == long
    assert schedule.factor(100, 110) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("schedule", "floor"), [(Linear(), 0), (Cosine(), 0.1), (Linear(floor=0.3), 0.3), (WarmupStableDecay(), 0)]
)
def test_the_last_step_is_near_the_floor(schedule, floor):
    last = schedule.factor(9999, 10000)
    assert floor < last < floor + 1e-3


def test_type_names_the_schedule():
    read = TypeAdapter(Schedule).validate_python
    assert [type(read({"type": name})) for name in ("constant", "cosine", "inverse_sqrt", "linear", "wsd")] == ALL
    with pytest.raises(ValidationError):
        read({"type": "linear", "warmup": -1})
