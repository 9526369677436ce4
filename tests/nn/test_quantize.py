"""Weights in 8 and 4 bits: how far off they may be, and that all but the weights is as it was."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nextile.base.errors import NextileError, UsageError
from nextile.models.build import build, skeleton
from nextile.models.families import gpt2, mixtral
from nextile.nn import quantize as packing
from nextile.nn.feedforward import Stacked
from nextile.nn.linear import Linear
from nextile.nn.lora import Lora, add_lora
from nextile.nn.quantize import (
    Int4,
    Int4Linear,
    Int8,
    Int8Linear,
    QuantizedLinear,
    pack4,
    pack8,
    quantize,
    row4,
    row8,
    unpack4,
    unpack8,
)

KINDS = [Int8(), Int4(group=32), Int4(group=64), Int4(group=128)]
GROUPS = [32, 64, 128]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model():
    return build(gpt2.spec(vocab=40, context=16, width=48, depth=2, heads=2), seed=1)


def ids():
    return torch.randint(0, 40, (2, 16), generator=torch.Generator().manual_seed(0))


def read4(weight, group):
    return unpack4(*pack4(weight, group), weight.shape[1], torch.float32)


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_int8_is_off_by_no_more_than_a_254th_of_a_rows_largest(size):
    weight = drawn(64, 100) * size * torch.logspace(-2, 2, 64)[:, None]
    codes, scale = pack8(weight)
    assert codes.dtype == torch.int8
    error = (unpack8(codes, scale, None, 100, torch.float32) - weight).abs().amax(1)
    assert (error <= weight.abs().amax(1) / 254 * (1 + 1e-5)).all()


@pytest.mark.parametrize("group", GROUPS)
def test_int4_is_nowhere_worse_than_half_a_step_of_the_plain_grid(group):
    weight = drawn(32, 256) * torch.logspace(-3, 3, 32)[:, None] + drawn(32, 1, seed=1)
    codes, scale, offset = pack4(weight, group)
    assert codes.shape == (32, 256 // group, group // 2)
    assert (codes.dtype, scale.dtype, offset.dtype) == (torch.uint8, torch.bfloat16, torch.bfloat16)
    groups = weight.unflatten(1, (-1, group))
    step = (groups.amax(-1) - groups.amin(-1)) / 15
    rounding = groups.abs().amax(-1) / 128  # of the grid itself to bfloat16
    error = (read4(weight, group).unflatten(1, (-1, group)) - groups).square().mean(-1).sqrt()
    assert (error <= step / 2 + rounding).all()


@pytest.mark.parametrize(("group", "share"), [(32, 0.86), (64, 0.89), (128, 0.92)])
def test_the_search_takes_away_square_error(group, share, monkeypatch):
    weight = drawn(64, 512)
    searched = (read4(weight, group) - weight).square().mean()
    monkeypatch.setattr(packing, "STARTS", ())
    assert searched < share * (read4(weight, group) - weight).square().mean()


def test_a_group_of_sixteen_even_steps_is_exact():
    weight = (torch.arange(32) % 16 - 5.0).repeat(3, 2)
    assert torch.equal(read4(weight, 32), weight)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5])
def test_a_constant_matrix_is_exact(value):
    weight = torch.full((4, 64), value)
    assert torch.equal(read4(weight, 32), weight)
    torch.testing.assert_close(unpack8(*pack8(weight), None, 64, torch.float32), weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("inputs", [1, 31, 33, 100])
def test_inputs_that_fill_no_group_cost_no_precision(inputs):
    weight = drawn(5, inputs) + 10  # far from zero, so that a filling of zeros would be seen
    error = (read4(weight, 32) - weight).abs().max()
    assert error <= (weight.max() - weight.min()) / 15 + 0.1
    codes, scale, _ = pack4(weight, 32)
    assert codes.shape == (5, -(-inputs // 32), 16)
    assert scale.max() <= 1.1 * (weight.max() - weight.min()) / 15


# --- layers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_layer_multiplies_by_what_it_unpacks_in_the_dtype_of_its_input(kind, dtype):
    layer = packing.MODULES[type(kind)](nn.Linear(100, 7), kind)
    x = drawn(3, 5, 100).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    wanted = F.linear(x, layer.dequantized(dtype), layer.bias.to(dtype))
    assert torch.equal(y, wanted)
    with torch.no_grad():
        assert torch.equal(layer(x), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_input_and_no_weight_is_kept_for_them(kind):
    layer = packing.MODULES[type(kind)](nn.Linear(128, 128), kind)
    x = drawn(2, 128).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x)
    y.square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * y.detach() @ layer.dequantized())
    numbers = sum(t.numel() for t in kept if t.is_floating_point())
    assert numbers < 128 * 128  # control: of a plain layer they are the matrix


# --- models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_blocks_matrices_are_packed_and_nothing_else(kind):
    ours, before = model(), model()
    paths = quantize(ours, kind)
    linear = [path for path, part in before.named_modules() if isinstance(part, nn.Linear)]
    assert paths == linear
    assert all(isinstance(ours.get_submodule(path), QuantizedLinear) for path in paths)
    kept = dict(ours.named_parameters())
    assert kept.keys() == {name for name, _ in before.named_parameters()} - {f"{path}.weight" for path in paths}
    assert all(torch.equal(value, before.get_parameter(name)) for name, value in kept.items())


def test_what_chooses_experts_is_left_as_it_is():
    ours = build(mixtral.spec(vocab=40, width=32, depth=1, heads=2, hidden=32))
    packed = {path.rpartition(".")[2] for path in quantize(ours, Int8())}
    assert packed == {"query", "key", "value", "out", "gate", "up", "down"}


# --- experts --------------------------------------------------------------------------------------------------------


def experts():
    spec = mixtral.spec(vocab=40, context=16, width=32, depth=1, heads=2, hidden=48, experts=4, chosen=2)
    ours = build(spec, seed=1)
    for parameter in ours.parameters():
        parameter.detach().normal_(0, 0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    return ours


def unpacked(ours, kind):
    """The same model in numbers: of each matrix what packing it gives back."""
    plain = experts()
    for path, module in plain.named_modules():
        if isinstance(module, Stacked):
            packed = ours.get_submodule(path)
            parts = (packed.codes, packed.scale, packed.offset)
            rows = [None if part is None else part.flatten(0, 1) for part in parts]
            weight = type(packed).unpack(*rows, packed.inputs, torch.float32)
            module.weight.detach().copy_(weight.view_as(module.weight))
        elif isinstance(module, nn.Linear) and isinstance(ours.get_submodule(path), QuantizedLinear):
            module.weight.detach().copy_(ours.get_submodule(path).dequantized())
    return plain


@pytest.mark.parametrize("kind", KINDS)
def test_packed_experts_compute_what_their_numbers_say(kind):
    ours = experts()
    quantize(ours, kind)
    plain = unpacked(ours, kind)
    assert (plain(ids()) - experts()(ids())).abs().max() > 1e-4
    torch.testing.assert_close(ours(ids()), plain(ids()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [Int8(), Int4()])
def test_all_experts_at_once_are_each_of_them(kind):
    ours = experts()
    quantize(ours, kind)
    gate, x = ours.stack.blocks[0].feed_forward.inner.gate, drawn(5, 32)
    torch.testing.assert_close(gate(x), torch.stack([gate.of(i, x) for i in range(4)]), rtol=0, atol=1e-6)
    several = drawn(4, 5, 32)
    wanted = torch.stack([gate.of(i, several[i]) for i in range(4)])
    torch.testing.assert_close(gate(several), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [Int8(), Int4()])
def test_gradients_pass_through_packed_experts(kind):
    ours = experts()
    quantize(ours, kind)
    plain = unpacked(ours, kind)
    for one in (ours, plain):
        one(ids()).square().mean().backward()
    found, wanted = (one.embed.token.weight.grad for one in (ours, plain))
    assert wanted.abs().max() > 1e-4
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("kind", "bits"), [(Int8(), 8), (Int4(), 5)])
def test_packed_experts_are_as_small_as_it_says(kind, bits):
    ours = build(mixtral.spec(vocab=40, width=64, depth=1, heads=2, hidden=128, experts=4, chosen=2))
    gate = ours.stack.blocks[0].feed_forward.inner.gate
    numbers = gate.weight.numel()
    quantize(ours, kind)
    packed = ours.stack.blocks[0].feed_forward.inner.gate
    scales = 4 * 4 * 128 if bits == 8 else 0  # float32 a row, which the bits of int4 hold already
    assert sum(buffer.nbytes for buffer in packed.buffers()) == numbers * bits // 8 + scales
    assert not list(packed.parameters())


def test_a_state_dict_fills_empty_experts():
    ours = experts()
    quantize(ours, Int4())
    empty = skeleton(ours.spec)
    quantize(empty, Int4())
    empty.load_state_dict(ours.state_dict(), assign=True)
    assert torch.equal(empty(ids()), ours(ids()))


def test_experts_that_are_not_finite_are_refused():
    ours = experts()
    ours.stack.blocks[0].feed_forward.inner.up.weight.detach()[1, 2, 3] = float("nan")
    with pytest.raises(NextileError, match="up holds numbers that are not finite"):
        quantize(ours, Int8())


@pytest.mark.parametrize("packed", [True, False])
def test_adapters_pass_over_experts_and_say_so(packed):
    ours = experts()
    if packed:
        quantize(ours, Int8())
    with pytest.raises(UsageError, match=r"no linear layer is called 'gate'.*experts, whose matrices are stacked"):
        add_lora(ours, Lora(targets=("gate",)))
    assert {path.rpartition(".")[2] for path in add_lora(ours, Lora())} == {"query", "key", "value", "out"}


@pytest.mark.parametrize(("kind", "limit"), [(Int8(), 0.02), (Int4(), 0.3)])
@torch.no_grad()
def test_a_model_says_nearly_the_same(kind, limit):
    ours = model()
    for parameter in ours.parameters():
        parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    before = ours(ids())
    quantize(ours, kind)
    off = (ours(ids()) - before).square().mean().sqrt() / before.std()
    assert 0 < off < limit


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_state_dict_fills_an_empty_model(kind):
    ours = model()
    quantize(ours, kind)
    empty = skeleton(ours.spec)
    quantize(empty, kind)
    empty.load_state_dict(ours.state_dict(), assign=True)
    assert torch.equal(empty(ids()), ours(ids()))


def test_under_adapters_their_base_is_packed_and_they_are_not():
    ours = model()
    adapted = add_lora(ours, Lora(rank=2, targets=("query",)))
    assert {f"{path}.base" for path in adapted} <= set(quantize(ours, Int4()))
    assert not any("adapters" in path for path, part in ours.named_modules() if isinstance(part, QuantizedLinear))


def test_packing_twice_is_an_error_in_one_line():
    ours = model()
    quantize(ours, Int8())
    with pytest.raises(NextileError, match="no linear layer of a block is left"):
        quantize(ours, Int4())


@torch.no_grad()
def test_numbers_that_are_not_finite_are_refused_before_anything_is_changed():
    ours = model()
    ours.get_parameter("stack.blocks.1.feed_forward.inner.down.weight")[0, 0] = torch.inf
    with pytest.raises(NextileError, match="down holds numbers that are not finite"):
        quantize(ours, Int8())
    assert isinstance(ours.get_submodule("stack.blocks.0.self_attention.inner.query"), Linear)


@torch.no_grad()
def test_a_compiled_step_reads_codes_as_the_numbers_they_stand_for():
    """Eight bits and four, with a last group that is filled up, a bias, and rows that are no multiple of any block."""
    linears = [torch.nn.Linear(100, 37), torch.nn.Linear(100, 64, bias=False)]
    packed = [kind(linear, spec) for linear in linears for kind, spec in ((Int8Linear, Int8()), (Int4Linear, Int4()))]
    whole = model()
    head = whole.head
    packing.pack_head(whole)
    assert len(whole.state_dict()) == len(model().state_dict())  # what a folder keeps is what it was
    several = torch.compile(lambda x, y: ([layer(x) for layer in packed], whole.head(y)), fullgraph=True, dynamic=False)
    x = torch.randn(1, 1, 100)
    y = torch.randn(1, 1, 48)
    found, scores = several(x, y)
    torch.testing.assert_close(scores, whole.head(y), rtol=1e-5, atol=1e-5)
    assert 0 < (scores - head(y)).abs().max() < 0.02 * head(y).abs().max()
    for layer, got in zip(packed, found, strict=True):
        want = torch.nn.functional.linear(x.double(), layer.dequantized(torch.float64), None)
        want = want if layer.bias is None else want + layer.bias.double()
        assert (got - want).abs().max() <= 1e-5 * want.abs().max()
        assert (got - want.roll(1, -1)).abs().max() > 1e-2


def test_rows_of_codes_are_products_of_numbers():
    weight, x = torch.randn(33, 70), torch.randn(1, 70)
    for pack, unpack, row in ((pack8, unpack8, row8), (partial(pack4, group=32), unpack4, row4)):
        codes, scale, *offset = pack(weight)
        parts = (codes, scale, offset[0] if offset else None, 70)
        torch.testing.assert_close(row(x, *parts), (x @ unpack(*parts, torch.float32).T)[0], rtol=1e-5, atol=1e-5)
