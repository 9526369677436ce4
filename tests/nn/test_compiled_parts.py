"""What is reckoned another way in a compiled graph on CPU: attention piece by piece, rows of tables, turned pairs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nextile.nn import attention, specs
from nextile.nn.attention import Weights, fast_attention, piece_by_piece
from nextile.nn.position import RotaryPosition
from nextile.nn.table import Embedding, table_gradient
from nextile.training.graph import one_graph

DOUBLE = {"rtol": 0, "atol": 1e-12}


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()


def traced(function):
    """As a compiled graph sees it, without the minutes of a C++ compiler."""
    return torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=False)


def gradients(found: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Of a sum in which each number counts otherwise."""
    worth = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view(found.shape)
    return torch.autograd.grad((found * worth).sum(), inputs)


def heads(time: int, seen: int, kv: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (2, 4, T, 8), keys and values (2, K, S, 8)."""
    draw = torch.Generator().manual_seed(time + seen)
    shapes = ((2, 4, time, 8), (2, kv, seen, 8), (2, kv, seen, 8))
    q, k, v = (torch.randn(shape, generator=draw, dtype=dtype).requires_grad_() for shape in shapes)
    return q, k, v


# --- attention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", [4, 2, 1])
@pytest.mark.parametrize(("time", "seen"), [(1, 1), (5, 5), (128, 128), (129, 129), (300, 300), (700, 700), (3, 9)])
def test_causal_attention_in_pieces_is_torchs(time, seen, kv):
    q, k, v = heads(time, seen, kv)
    found = traced(fast_attention)(q, k, v, bias=None, causal=True, scale=0.3)
    visible = torch.ones(time, seen, dtype=torch.bool).tril(seen - time)
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, wanted, **DOUBLE)
    for one, other in zip(gradients(found, q, k, v), gradients(wanted, q, k, v), strict=True):
        torch.testing.assert_close(one, other, **DOUBLE)


def test_pieces_leave_out_keys_that_no_query_of_theirs_sees(monkeypatch):
    met = []
    whole = attention._weighed
    monkeypatch.setattr(
        attention, "_weighed", lambda *each: met.append((each[0].shape[2], each[1].shape[2])) or whole(*each)
    )
    for time in (128, 200, 1000):
        q, k, v = heads(time, time)
        piece_by_piece(q, k, v, bias=None, causal=True, scale=0.3, share=0.0)
    assert met == [(128, 128), (100, 100), (100, 200), (250, 250), (250, 500), (250, 750), (250, 1000)]


@pytest.mark.parametrize("shape", [(2, 1, 6, 9), (1, 1, 6, 9), (2, 4, 6, 9)])
def test_a_bias_hides_and_weighs(shape):
    q, k, v = heads(6, 9, kv=2)
    bias = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bias[..., 4:6] = torch.finfo(bias.dtype).min
    found = traced(fast_attention)(q, k, v, bias=bias, causal=False, scale=0.3)
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, wanted, **DOUBLE)
    for one, other in zip(gradients(found, q, k, v), gradients(wanted, q, k, v), strict=True):
        torch.testing.assert_close(one, other, **DOUBLE)


def test_a_trained_bias_has_its_gradient():
    q, k, v = heads(6, 9)
    bias = torch.zeros(1, 4, 6, 9, dtype=torch.float64, requires_grad=True)
    found = gradients(traced(fast_attention)(q, k, v, bias=bias, causal=False, scale=0.3), bias)[0]
    wanted = gradients(F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.3), bias)[0]
    torch.testing.assert_close(found, wanted, **DOUBLE)
    assert wanted.abs().max() > 0.01


def test_weights_keep_for_the_gradient_what_they_return():
    scores = torch.randn(3, 4, 5, dtype=torch.bfloat16, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        found = Weights.apply(scores, None, 0.5)
    assert [each.dtype for each in kept] == [torch.bfloat16]
    wanted = (scores.double() * 0.5).softmax(-1)
    torch.testing.assert_close(found.double(), wanted, rtol=2**-8, atol=0)
    torch.testing.assert_close(
        gradients(found, scores)[0].double(), gradients(wanted, scores)[0].double(), rtol=0.02, atol=1e-3
    )


def test_weights_by_finite_differences():
    scores = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: Weights.apply(x, bias, 0.7), scores)
    assert torch.autograd.gradgradcheck(lambda x: Weights.apply(x, bias, 0.7), scores)


def test_dropout_in_pieces_leaves_the_share_out():
    q, k, _ = heads(64, 64, dtype=torch.float32)
    v = torch.ones_like(k)
    run = one_graph(fast_attention)
    found = [run(q, k, v, bias=None, causal=False, scale=0.3, share=0.25) for _ in range(2)]
    assert not torch.equal(*found)
    assert 0.9 < found[0].mean().item() < 1.1
    assert 0.05 < found[0].std().item() < 0.4


# --- tables ---------------------------------------------------------------------------------------------------------


def test_the_gradient_of_a_compiled_table_is_the_eager_one_each_time():
    table = Embedding(11, 6).double()
    ids = torch.randint(0, 11, (8, 50), generator=torch.Generator().manual_seed(0))
    (wanted,) = gradients(torch.nn.functional.embedding(ids, table.weight), table.weight)
    run = one_graph(lambda ids: table(ids) * 2)
    found = [gradients(run(ids), table.weight)[0] / 2 for _ in range(3)]
    torch.testing.assert_close(found[0], wanted, **DOUBLE)
    assert all(torch.equal(each, found[0]) for each in found)


def test_a_compiled_table_adds_up_in_float32_the_same_each_time():
    table = Embedding(3, 64)  # few rows: many threads would meet in each
    ids = torch.randint(0, 3, (64, 128), generator=torch.Generator().manual_seed(0))
    run = one_graph(lambda ids: table(ids).tanh())
    found = [gradients(run(ids), table.weight)[0] for _ in range(8)]
    assert all(torch.equal(each, found[0]) for each in found)


def test_the_gradient_of_a_table_as_an_operation():
    ids = torch.tensor([[0, 2, 2]])
    torch.library.opcheck(table_gradient, (torch.randn(1, 3, 4), ids, 5))
    found = table_gradient(torch.ones(1, 3, 4), ids, 5)
    assert found.sum(-1).tolist() == [4.0, 0.0, 8.0, 0.0, 0.0]


# --- turned pairs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_turn_and_its_gradient_by_finite_differences(share, compiled):
    turn = RotaryPosition(specs.Rotary(share=share), 8)(torch.arange(5))
    turn = traced(turn) if compiled else turn
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(turn, x, atol=1e-6)
    (gradient,) = torch.autograd.grad((turn(x) * turn(x).detach()).sum(), x)
    torch.testing.assert_close(gradient, x, rtol=0, atol=1e-6)  # turned and turned back
