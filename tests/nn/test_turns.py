"""Scaled turns: what a row's own length decides, what they come to, and which specs are refused."""

import math

import pytest
import torch
from pydantic import ValidationError

from nextile.models.families import llama
from nextile.models.families.llamalike import rotary_here, rotary_there
from nextile.nn import specs
from nextile.nn.position import RotaryPosition

DYNAMIC = specs.DynamicScaling(factor=2.0, original=8)
LONG = specs.LongScaling(short=(1.0, 2.0), long=(4.0, 8.0), original=8, gain=1.5)
YARN = specs.YarnScaling(factor=4.0, original=64)


def turned(scaling, positions, width=4):
    """What (1, 0, ..., 1, 0, ...) becomes at each position: (..., T, E)."""
    position = RotaryPosition(specs.Rotary(scaling=scaling), width)
    x = torch.ones(*positions.shape[:-1], 1, positions.shape[-1], width)
    return position(positions)(x if positions.dim() == 2 else x[None])


@pytest.mark.parametrize("scaling", [DYNAMIC, LONG])
def test_a_row_does_not_depend_on_those_beside_it(scaling):
    rows = torch.stack([torch.arange(20), torch.arange(20).clamp(max=5)])
    both = turned(scaling, rows)
    assert torch.equal(both[:1], turned(scaling, rows[:1]))
    assert torch.equal(both[1:], turned(scaling, rows[1:]))
    plain = turned(None, rows) * (1.0 if scaling is DYNAMIC else 1.5)
    assert not torch.allclose(both[0], plain[0])  # a long text is turned otherwise
    assert torch.allclose(both[1], plain[1]) == (scaling is DYNAMIC)  # a short one as it was


def test_a_base_grows_as_the_text_does():
    short, long = (turned(DYNAMIC, torch.arange(count)) for count in (8, 9))
    assert torch.equal(short, turned(None, torch.arange(8)))
    base = 10_000.0 * (2.0 * 9 / 8 - 1.0) ** (4 / 2)
    angle = torch.arange(9)[:, None] / base ** torch.tensor([0.0, 0.5])
    torch.testing.assert_close(long[0, 0, :, :2], angle.cos() - angle.sin(), rtol=0, atol=1e-5)


def test_the_gain_of_yarn_follows_from_its_factor():
    wanted = 0.1 * math.log(4.0) + 1.0
    assert turned(YARN, torch.zeros(1, dtype=torch.long)).unique().tolist() == pytest.approx([wanted])
    own = YARN.model_copy(update={"gain": 0.5})
    assert turned(own, torch.zeros(1, dtype=torch.long)).unique().tolist() == [0.5]


@pytest.mark.parametrize("scaling", [DYNAMIC, LONG, YARN, YARN.model_copy(update={"whole": False, "gain": 2.0}), None])
def test_what_is_written_is_read_again(scaling):
    position = specs.Rotary(base=500.0, scaling=scaling)
    assert rotary_here({"rope_parameters": rotary_there(position), "max_position_embeddings": 8}) == position


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base": 1.0, "scaling": YARN}, "base 1.0 must exceed 1"),
        ({"scaling": LONG}, "longrope has 2 and 2 divisors for 4 pairs"),
        ({"share": 0.25, "scaling": DYNAMIC}, "two pairs that are turned, or more"),
        ({"scaling": {"type": "yarn", "factor": 0.5}}, "greater than or equal to 1"),
        ({"scaling": {"type": "longrope", "short": [0.0] * 4, "long": [1.0] * 4, "original": 8}}, "greater than 0"),
        ({"scaling": {"type": "longrope", "short": [1.0] * 9999, "long": [1.0], "original": 8}}, "at most 4096"),
        ({"scaling": {"type": "dynamic", "factor": 2.0, "original": 0}}, "greater than or equal to 1"),
    ],
)
def test_turns_that_cannot_be_are_refused(change, said):
    with pytest.raises(ValidationError, match=said):
        llama.spec(vocab=50, context=16, width=16, depth=1, heads=2, rotary=specs.Rotary(**change))


def test_a_text_that_outgrows_the_first_context_is_within_that_of_the_model():
    config = llama.to_config(llama.spec(vocab=50, context=16, width=16, depth=1, heads=2))
    config |= {"max_position_embeddings": 16, "rope_parameters": {"rope_type": "dynamic", "factor": 2.5}}
    spec = llama.from_config(config)
    assert spec.context == 40
    assert llama.to_config(spec)["max_position_embeddings"] == 16
