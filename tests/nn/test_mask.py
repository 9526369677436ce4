"""Who sees whom: one rule, held against loops, as a dense mask and as FlexAttention's blocks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_mask

from nextile.nn.attention import block_attention, capped
from nextile.nn.mask import Sight
from nextile.nn.stack import hide, places

TIME = 23
CASES = [
    pytest.param(kind, window, causal, id=f"{kind}, {window or 'no window'}, {'causal' if causal else 'both ways'}")
    for kind in ("none", "packed", "scattered", "mask")
    for window in (None, 5)
    for causal in (True, False)
]
unfused = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def segments_of(kind: str, time: int = TIME) -> Tensor | None:
    """(3, T): texts one after the other and padding, texts that lie between each other, or where there are tokens."""
    draw = torch.Generator().manual_seed(0)
    ends = torch.randint(1, time, (3, 3), generator=draw).sort(-1).values
    packed = (torch.arange(time) >= ends[..., None]).sum(1) + 1  # 1, 2, 3, 4
    kinds = {
        "none": None,
        "packed": packed % 4,
        "scattered": torch.randint(0, 3, (3, time), generator=draw),
        "mask": packed < 3,
    }
    return kinds[kind]


def sight_of(kind: str, window: int | None, causal: bool, time: int = TIME) -> Sight:
    """As a stack makes it."""
    segments = segments_of(kind, time)
    stand = places(torch.zeros(3, time), segments)
    return Sight(stand, stand, causal, window, segments)


def by_loops(segments: Tensor | None, window: int | None, causal: bool) -> list[list[list[bool]]]:
    """The same, pair by pair, from what is meant."""
    rows = [[1] * TIME] if segments is None else segments.tolist()
    found = []
    for row in rows:
        stand = [row[:at].count(text) for at, text in enumerate(row)]  # in its own text
        found.append([[False] * TIME for _ in range(TIME)])
        for query in range(TIME):
            for key in range(TIME):
                back = stand[query] - stand[key]
                near = window is None or back < window
                found[-1][query][key] = row[query] == row[key] and near and (back >= 0 or not causal)
    return found


@pytest.mark.parametrize(("kind", "window", "causal"), CASES)
def test_the_dense_mask_is_what_is_meant(kind, window, causal):
    sight = sight_of(kind, window, causal)
    assert sight.dense().tolist() == by_loops(segments_of(kind), window, causal)
    assert sight.dense().diagonal(dim1=-2, dim2=-1).all()  # so that nothing becomes NaN


@pytest.mark.parametrize(("kind", "window", "causal"), CASES)
def test_the_rule_by_numbers_is_the_dense_mask(kind, window, causal):
    sight = sight_of(kind, window, causal)
    rows = len(sight.dense())
    found = create_mask(sight.by_number(), rows, 1, TIME, TIME, device="cpu")
    assert torch.equal(found[:, 0], sight.dense())


def test_control_a_window_off_by_one_is_seen():
    sight = sight_of("packed", 5, True)
    other = replace(sight, window=6)
    assert other.dense().tolist() != by_loops(sight.segments, 5, True)
    assert not torch.equal(create_mask(other.by_number(), 3, 1, TIME, TIME, device="cpu")[:, 0], sight.dense())


def test_blocks_in_which_nothing_is_seen_are_passed_over():
    stand, segments = torch.arange(128).repeat(8)[None], torch.arange(8).repeat_interleave(128)[None]
    packed = Sight(stand, stand, causal=True, segments=segments)
    assert torch.equal(packed.blocks().to_dense()[0, 0], torch.eye(8, dtype=torch.int32))
    near = Sight(torch.arange(1024), torch.arange(1024), causal=True, window=129)
    there = torch.ones(8, 8, dtype=torch.int32).tril().triu(-1)  # its own block and the one before it
    assert torch.equal(near.blocks().to_dense()[0, 0], there)
    wider = replace(near, window=130)  # control: one token more is in a third block
    assert not torch.equal(wider.blocks().to_dense()[0, 0], there)


def attended(sight: Sight, dtype: torch.dtype, kv: int, cap: float | None = None) -> tuple[Tensor, Tensor]:
    """By blocks, and by PyTorch's kernel with the dense mask: (3, 4, T, 16) both."""
    draw, time = torch.Generator().manual_seed(0), sight.queries.shape[-1]
    q, k, v = (torch.randn(3, heads, time, 16, generator=draw, dtype=dtype) for heads in (4, kv, kv))
    found = block_attention(q, k, v, sight.blocks(), scale=0.3, cap=cap)
    if cap is not None:
        scores = capped(q @ k.repeat_interleave(4 // kv, 1).mT * 0.3, cap) + hide(sight.dense()[:, None], 0.0, dtype)
        return found, scores.softmax(-1) @ v.repeat_interleave(4 // kv, 1)
    mask = sight.dense()[:, None]
    return found, F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=kv != 4)


@unfused
@pytest.mark.parametrize(
    ("kind", "window", "causal"), [("packed", None, True), ("packed", None, False), ("none", 9, True)]
)
@pytest.mark.parametrize(
    ("dtype", "kv"), [(torch.float32, 4), (torch.float64, 4), (torch.float32, 2), (torch.float64, 1)]
)
@torch.no_grad()
def test_blocks_attend_as_the_dense_mask_does(kind, window, causal, dtype, kv):
    found, wanted = attended(sight_of(kind, window, causal, time=150), dtype, kv)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6 if dtype == torch.float32 else 1e-12)


@unfused
@torch.no_grad()
def test_scores_are_capped_in_blocks_too():
    found, wanted = attended(sight_of("packed", 9, True, time=150), torch.float64, 2, cap=0.5)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    uncapped, _ = attended(sight_of("packed", 9, True, time=150), torch.float64, 2)
    assert not torch.allclose(found, uncapped, atol=1e-3)  # control


@unfused
@torch.no_grad()
def test_a_query_that_sees_nothing_hears_nothing():
    behind = Sight(torch.arange(150) - 3, torch.arange(150), causal=True)  # the first three see no key
    ones = torch.ones(1, 1, 150, 16)
    found = block_attention(ones, ones, ones, behind.blocks(), scale=1.0, cap=None)
    torch.testing.assert_close(found[0, 0, :, 0], (torch.arange(150) >= 3).float())
