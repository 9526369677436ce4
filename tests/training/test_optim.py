"""AdamW and Muon against PyTorch's own; groups that are a partition; steps that must not be applied."""

import copy
import math

import pytest
import torch
from tests.conftest import older_torch
from torch import nn

from nextile.base.errors import NextileError
from nextile.training.objectives import next_token
from nextile.training.optim import (
    AdamW,
    Group,
    Muon,
    MuonRule,
    Optimizer,
    Pace,
    Part,
    check_partition,
    groups,
    orthogonalize,
)

FACTORS = [(step + 1) / 5 if step < 5 else 1 - step / 25 for step in range(20)]


def run(model, batch, step, steps=20):
    """Train with `step(factor)`; the gradients of every step come from another batch."""
    for i, factor in zip(range(steps), FACTORS, strict=False):
        model.zero_grad()
        next_token(model, batch(i)).div(24).backward()
        step(factor)


def run_ours(model, batch, settings, steps=20, clip=math.inf, **options):
    optimizer = Optimizer(model, settings, **options)
    run(model, batch, lambda factor: optimizer.step(factor, clip=clip), steps)
    return optimizer


def run_torch(model, batch, optimizers, clip=math.inf):
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]

    def step(factor):
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        param_groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, rate in zip(param_groups, rates, strict=True):
            group["lr"] = rate * factor
        for optimizer in optimizers:
            optimizer.step()

    run(model, batch, step)


@torch.no_grad()
def furthest(a: nn.Module, b: nn.Module) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a.parameters(), b.parameters(), strict=True))


def torch_adamw(parameters, decay, **options):
    by_decay = [([p for p in parameters if p.ndim > 1], decay), ([p for p in parameters if p.ndim < 2], 0.0)]
    param_groups = [{"params": list(ps), "weight_decay": decay} for ps, decay in by_decay if ps]
    return torch.optim.AdamW(param_groups, **options)


# --- groups ----------------------------------------------------------------------------------------------------------


def test_roles(tiny):
    found = {group.role: set(group.names) for group in groups(tiny(depth=1))}
    assert found["matrix"] == {"blocks.0.up.weight", "blocks.0.down.weight", "blocks.0.mix.weight"}
    assert found["embedding"] == {"token.weight", "blocks.0.bias_table.weight", "conv.weight"}
    assert found["vector"] == {
        *("blocks.0.up.bias", "blocks.0.mix.bias", "blocks.0.norm.weight", "blocks.0.norm.bias"),
        *("conv.bias", "head.bias"),
    }


def test_groups_hold_every_number_once_and_nothing_frozen(tiny):
    model = tiny()
    model.conv.weight.requires_grad_(False)
    count = sum(p.numel() for group in groups(model) for p in group.parameters)
    assert count == sum(p.numel() for p in model.parameters()) - model.conv.weight.numel()


def test_a_lost_a_doubled_and_a_foreign_parameter_are_named(tiny):
    model = tiny()
    good = groups(model)
    check_partition(model, good)
    lost = [Group(g.role, tuple(n for n in g.names if n != "conv.weight"), g.parameters) for g in good]
    foreign = [*good, Group("vector", ("nobody.weight",), ())]
    for bad, name in ((lost, "conv.weight"), (good + good[:1], good[0].names[0]), (foreign, "nobody.weight")):
        with pytest.raises(NextileError, match=f"not in exactly one group, first '{name}'"):
            check_partition(model, bad)


# --- parity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("clip", [math.inf, 0.05])
def test_adamw_is_torchs(tiny, batch, dtype, tolerance, clip):
    ours, theirs = tiny().to(dtype), tiny().to(dtype)
    settings = AdamW(lr=2e-3, betas=(0.8, 0.97), weight_decay=0.2)
    run_ours(ours, batch, settings, clip=clip)
    run_torch(theirs, batch, [torch_adamw(list(theirs.parameters()), 0.2, lr=2e-3, betas=(0.8, 0.97))], clip)
    assert furthest(ours, theirs) < tolerance
    assert furthest(ours, tiny().to(dtype)) > 1e-3  # they moved


@pytest.mark.parametrize("wrong", [{"betas": (0.8, 0.96)}, {"eps": 1e-5}, {"weight_decay": 0.25}])
def test_the_parity_of_adamw_can_fail(tiny, batch, wrong):
    ours, theirs = tiny(), tiny()
    run_ours(ours, batch, AdamW(**{"lr": 2e-3, "betas": (0.8, 0.97), "weight_decay": 0.2} | wrong))
    run_torch(theirs, batch, [torch_adamw(list(theirs.parameters()), 0.2, lr=2e-3, betas=(0.8, 0.97))])
    assert furthest(ours, theirs) > 1e-6


def run_torch_muon(model, batch):
    matrices = [p for group in groups(model) if group.role == "matrix" for p in group.parameters]
    rest = [p for group in groups(model) if group.role != "matrix" for p in group.parameters]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="original")
    run_torch(model, batch, [muon, torch_adamw(rest, 0.1, lr=3e-3, betas=(0.9, 0.95))])


@pytest.fixture
def in_float32(monkeypatch):
    """Both do their matrix products in float32, so that nothing hides in the roundings of bfloat16."""
    monkeypatch.setattr("nextile.training.optim.has_fast_bf16", lambda device: False)
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.clone())


@pytest.mark.usefixtures("in_float32")
def test_muon_is_torchs(tiny, batch):
    ours, theirs = tiny(), tiny()
    run_ours(ours, batch, Muon(lr=3e-3, matrix_lr=0.02, weight_decay=0.1))
    run_torch_muon(theirs, batch)
    assert furthest(ours, theirs) < 2e-5
    assert furthest(ours, tiny()) > 5e-2  # they moved


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("wrong", [{"momentum": 0.949}, {"matrix_lr": 0.0199}, {"weight_decay": 0.11}])
def test_the_parity_of_muon_can_fail(tiny, batch, wrong):
    ours, theirs = tiny(), tiny()
    run_ours(ours, batch, Muon(**{"lr": 3e-3, "matrix_lr": 0.02, "weight_decay": 0.1} | wrong))
    run_torch_muon(theirs, batch)
    assert furthest(ours, theirs) > 1e-4


@pytest.mark.parametrize("wrong", [None, {"momentum_warmup": 4}, {"momentum": 0.94}])
def test_a_momentum_that_warms_up_is_torchs_with_another_each_step(wrong):
    torch.manual_seed(0)
    gradients = torch.randn(8, 6, 4)
    ours, theirs = (torch.zeros(6, 4, requires_grad=True) for _ in range(2))
    rule = MuonRule(Muon(**{"momentum_warmup": 5} | (wrong or {})), torch.float32)
    part = Part(rule, {"w": ours}, ours.shape)
    muon = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="original", ns_steps=5)
    one = torch.ones((), dtype=torch.float64)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.clone())
        for number, gradient in enumerate(gradients, start=1):
            muon.param_groups[0]["momentum"] = 0.85 + 0.1 * min(1.0, number / 5)
            theirs.grad, ours.grad = gradient.clone(), gradient.clone()
            muon.step()
            step = part.gradient()
            rule.step(step, part.buffers, Pace(one, one, one * number))
            part.move(step, one)
    difference = (ours - theirs).abs().max().item()
    assert difference < 2e-6 if wrong is None else difference > 1e-4


def test_bfloat16_is_used_where_the_machine_has_it(tiny, monkeypatch):
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("nextile.training.optim.has_fast_bf16", lambda device, fast=fast: fast)
        rules = [part.rule for part in Optimizer(tiny(), Muon()).parts]
        assert {rule.dtype for rule in rules if isinstance(rule, MuonRule)} == {dtype}


# --- Newton-Schulz ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 16), (16, 48), (48, 16)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_all_singular_values_become_about_one(shape, dtype, tolerance):
    torch.manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(3, *shape), full_matrices=False)
    result = orthogonalize(u @ torch.linspace(0.2, 3, 16).diag() @ vh, dtype)
    assert result.shape == (3, *shape)
    core = u.mT @ result @ vh.mT  # diagonal: the directions are those of the input
    values = core.diagonal(dim1=1, dim2=2)
    assert (core - values.diag_embed()).abs().max() < tolerance
    assert ((values > 0.6) & (values < 1.25)).all()


def test_the_iteration_is_jordans_polynomial_on_the_singular_values():
    singular = torch.tensor([0.6, 0.5, 0.4, 0.1], dtype=torch.float64)
    expected = singular / singular.norm()
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    assert torch.allclose(orthogonalize(singular.diag()[None], torch.float64)[0], expected.diag(), atol=1e-12)


def test_stacked_matrices_do_not_touch_each_other():
    stacked = torch.randn(4, 8, 4, generator=torch.Generator().manual_seed(0))
    together = orthogonalize(stacked, torch.float32)
    for matrix, result in zip(stacked, together, strict=True):
        assert torch.allclose(orthogonalize(matrix[None], torch.float32)[0], result, atol=1e-6)


def test_a_zero_gradient_does_not_divide_by_zero():
    assert not orthogonalize(torch.zeros(1, 3, 4), torch.float32).any()


# --- the facade ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [AdamW(), Muon()], ids=["adamw", "muon"])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("place", ["gradient", "loss"])
def test_a_step_that_is_not_finite_changes_nothing(tiny, batch, settings, poison, place):
    model = tiny()
    optimizer = run_ours(model, batch, settings, steps=3)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state())
    if place == "gradient":
        model.blocks[0].up.weight.grad[0, 0] = poison
    norm = optimizer.step(1.0, clip=1.0, loss=torch.tensor(poison if place == "loss" else 1.0))
    assert norm.isfinite() == (place == "loss")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, state[name]) for name, tensor in optimizer.state().items())
    model.blocks[0].up.weight.grad[0, 0] = 0.0
    optimizer.step(1.0)
    assert optimizer.state()["count"] == 4
    assert not torch.equal(model.conv.weight, weights["conv.weight"])


@pytest.mark.parametrize("settings", [AdamW(), Muon()], ids=["adamw", "muon"])
def test_the_norm_is_the_global_one_before_clipping(tiny, batch, settings):
    model = tiny()
    next_token(model, batch(0)).backward()
    expected = nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert torch.allclose(Optimizer(model, settings).step(1.0, clip=1e-3), expected)


def test_a_parameter_without_a_gradient_stays(tiny, batch):
    model = tiny()
    before = model.conv.weight.clone()
    optimizer = Optimizer(model, AdamW())
    next_token(model, batch(0)).backward()
    model.conv.weight.grad = None
    optimizer.step(1.0)
    assert torch.equal(model.conv.weight, before)
    optimizer.zero_grad()
    with pytest.raises(NextileError, match="no parameter has a gradient"):
        optimizer.step(1.0)


def test_weights_in_bfloat16_have_their_means_in_float32(tiny, batch):
    model = tiny().bfloat16()
    optimizer = run_ours(model, batch, Muon(), steps=2)
    assert {tensor.dtype for name, tensor in optimizer.state().items() if name != "count"} == {torch.float32}
    assert all(p.dtype == torch.bfloat16 and p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("settings", [AdamW(), Muon()], ids=["adamw", "muon"])
def test_state_taken_over_goes_on_exactly(tiny, batch, settings):
    first, second = tiny(), tiny(seed=1)
    optimizer = run_ours(first, batch, settings, steps=3)
    other = Optimizer(second, settings)
    second.load_state_dict(first.state_dict())
    other.load_state(copy.deepcopy(optimizer.state()))
    for model, stepper in ((first, optimizer), (second, other)):
        model.zero_grad()
        next_token(model, batch(9)).backward()
        stepper.step(0.5)
    assert furthest(first, second) == 0


def test_state_that_does_not_fit_is_refused_by_name(tiny):
    optimizer = Optimizer(tiny(), AdamW())
    state = optimizer.state()
    missing = {name: tensor for name, tensor in state.items() if name != "first.conv.weight"}
    with pytest.raises(NextileError, match=r"lacks 'first\.conv\.weight'"):
        optimizer.load_state(missing)
    with pytest.raises(NextileError, match=r"unknown 'momentum\.x'"):
        optimizer.load_state(state | {"momentum.x": torch.zeros(1)})
    with pytest.raises(NextileError, match=r"'second.conv.weight' as float64 \(8, 8, 1\) and not float32 \(8, 8, 1\)"):
        optimizer.load_state(state | {"second.conv.weight": torch.zeros(8, 8, 1, dtype=torch.float64)})
    with pytest.raises(NextileError, match=r"'second.conv.weight' as float32 \(8, 1, 8\)"):
        optimizer.load_state(state | {"second.conv.weight": torch.zeros(8, 1, 8)})


@pytest.mark.skipif(older_torch, reason="functions share their compilations in this torch")
@pytest.mark.parametrize("settings", [AdamW(), Muon()], ids=["adamw", "muon"])
def test_compiled_is_eager_and_compiles_once(tiny, batch, settings):
    eager, compiled = tiny(depth=1), tiny(depth=1)
    run_ours(eager, batch, settings, clip=0.5)
    with torch._dynamo.config.patch(error_on_recompile=True):
        run_ours(compiled, batch, settings, clip=0.5, compiled=True)
    assert furthest(eager, compiled) < (1e-5 if settings.type == "adamw" else 2e-3)
