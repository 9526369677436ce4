"""The product of several rows by oneDNN: the library's, and each row's its own."""

import gc

import pytest
import torch
from tests.conftest import exact_rows
from torch import nn
from torch.nn import functional as F

from nextile.generation.decode import EagerReader
from nextile.models.build import build
from nextile.models.families import gpt2
from nextile.nn.linear import FEW, Linear, Packed, linear
from nextile.nn.linear import _pack_of as pack_of

SHAPES = {
    "rows": lambda: (torch.randn(7, 64), torch.randn(96, 64), torch.randn(96)),
    "batches, no bias": lambda: (torch.randn(3, 5, 64), torch.randn(96, 64), None),
    "transposed": lambda: (torch.randn(64, 7).T, torch.randn(64, 96).T, torch.randn(96)),
    "strided": lambda: (torch.randn(7, 128)[:, ::2], torch.randn(96, 128)[:, ::2], None),
    "one row": lambda: (torch.randn(1, 64), torch.randn(96, 64), torch.randn(96)),
    "no row": lambda: (torch.randn(0, 64), torch.randn(96, 64), torch.randn(96)),
    "narrow": lambda: (torch.randn(7, 64).bfloat16(), torch.randn(96, 64).bfloat16(), None),
}


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_it_is_the_librarys_product(shape):
    torch.manual_seed(0)
    x, weight, bias = SHAPES[shape]()
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)
    if x.numel():
        assert not torch.allclose(linear(x, weight, bias), F.linear(x, weight.roll(1, 0), bias), atol=1e-2)


@exact_rows
@torch.no_grad()
def test_a_row_does_not_depend_on_the_rows_beside_it():
    torch.manual_seed(0)
    x, weight = torch.randn(33, 256), torch.randn(300, 256)
    together = linear(x, weight)
    for rows in (2, 5, 32):
        torch.testing.assert_close(linear(x[:rows], weight), together[:rows], rtol=0, atol=1e-6)


def test_gradients_are_those_of_the_library():
    torch.manual_seed(0)
    module, x = Linear(16, 8), torch.randn(5, 16)
    theirs = nn.Linear(16, 8)
    theirs.load_state_dict(module.state_dict())
    for each in (module, theirs):
        each(x).square().sum().backward()
    torch.testing.assert_close(module.weight.grad, theirs.weight.grad)


# --- held a second time ---------------------------------------------------------------------------------------------


def is_packed(weight: torch.Tensor) -> bool:
    return pack_of(weight) is not None


def tied(seed: int = 0) -> nn.Module:
    """A model of a linear layer and an embedding that is its head."""
    torch.manual_seed(seed)
    model = nn.Module()
    model.inner = Linear(64, 96)
    model.head = nn.Module()
    model.head.weight = nn.Parameter(torch.randn(300, 64))
    return model


@exact_rows
@pytest.mark.parametrize("rows", [2, 5, 16, 70])
@torch.no_grad()
def test_a_packed_weight_gives_the_same_bits(rows):
    model, x = tied(), torch.randn(rows, 64)
    before = model.inner(x), linear(x, model.head.weight)
    held = Packed(model)
    assert is_packed(model.inner.weight)
    assert is_packed(model.head.weight)
    assert torch.equal(model.inner(x), before[0])
    assert torch.equal(linear(x, model.head.weight), before[1])
    del held
    gc.collect()
    assert not is_packed(model.inner.weight)
    assert torch.equal(model.inner(x), before[0])


@torch.no_grad()
def test_a_weight_that_changes_is_read_as_it_is_then():
    model, x = tied(), torch.randn(5, 64)
    held = Packed(model)
    model.inner.weight.mul_(2.0)
    doubled = F.linear(x, model.inner.weight, model.inner.bias)
    torch.testing.assert_close(model.inner(x), doubled)
    model.inner.weight.data = torch.zeros(96, 64)
    torch.testing.assert_close(model.inner(x), model.inner.bias.expand(5, -1))
    again = Packed(model)
    assert is_packed(model.inner.weight)
    torch.testing.assert_close(model.inner(x), model.inner.bias.expand(5, -1))
    del held, again


@torch.no_grad()
def test_two_hold_one_pack_and_the_second_goes_on_holding_it():
    model = tied()
    first = Packed(model)
    second = Packed(model)
    del first
    gc.collect()
    assert is_packed(model.inner.weight)
    del second
    gc.collect()
    assert not is_packed(model.inner.weight)


def test_what_is_narrow_or_would_take_too_much_memory_is_read_as_before(monkeypatch):
    narrow = tied().bfloat16()
    held = Packed(narrow)
    assert not is_packed(narrow.inner.weight)
    model = tied()
    monkeypatch.setattr("nextile.nn.linear.memory_available", lambda: 4 * model.inner.weight.nbytes)
    held = Packed(model)
    assert is_packed(model.inner.weight)
    assert not is_packed(model.head.weight)
    del held


def test_gradients_do_not_go_by_a_pack():
    model, x = tied(), torch.randn(5, 64)
    held = Packed(model)
    model.inner(x).sum().backward()
    torch.testing.assert_close(model.inner.weight.grad, x.sum(0).expand(96, -1))
    del held


@pytest.mark.parametrize(("rows", "packs"), [(1, False), (2, True), (FEW, True), (FEW + 1, False)])
@torch.no_grad()
def test_a_reader_packs_where_its_rows_are_few(rows, packs):
    model = build(gpt2.spec(vocab=40, context=8, width=32, depth=1, heads=2)).eval()
    reader = EagerReader(model, 4)
    reader.start([[1]] * rows)
    reader.read([2] * rows)
    assert any(is_packed(parameter) for parameter in model.parameters()) is packs
