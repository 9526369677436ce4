"""The loop: accumulation is the large batch, a seed is a run, and what is not finite is skipped and then said."""

import math
from dataclasses import replace

import pytest
import torch
from tests.conftest import older_torch

from nextile.base.errors import NextileError
from nextile.data.batches import IGNORE, Batch
from nextile.models.build import build
from nextile.models.families import gpt2, qwen3
from nextile.training.graph import one_graph
from nextile.training.loop import evaluate, mix, train
from nextile.training.objectives import next_token
from nextile.training.optim import AdamW, Muon, Optimizer
from nextile.training.schedule import Constant, Linear

SETTINGS = [AdamW(), Muon()]


def start(model, batches, steps=10, settings=None, **options):
    return train(model, batches, next_token, Optimizer(model, settings), Linear(), steps=steps, **options)


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def real(kind=gpt2, dropout: float = 0.1):
    """A real model, with dropout in every place its spec has one."""
    spec = kind.spec(vocab=11, context=8, width=16, depth=2, heads=2)
    stack = spec.stack.model_copy(
        update={"dropout": dropout, "attention": spec.stack.attention.model_copy(update={"dropout": dropout})}
    )
    return build(spec.model_copy(update={"stack": stack}))


# --- one step --------------------------------------------------------------------------------------------------------


def test_accumulating_4x8_is_1x32_however_the_targets_are_spread(tiny, batch):
    large = batch(0, rows=32, ignore=0.3)
    large.targets[:8, 2:] = IGNORE  # the first micro-batch asks far less than the others
    large = Batch.of(large.inputs, large.targets)
    micros = large.split(4)
    one, four = tiny(), tiny()
    (a,) = start(one, lambda step: [large], steps=1)
    (b,) = start(four, lambda step: micros, steps=1)
    assert (a.tokens, a.loss, a.grad_norm) == (
        b.tokens,
        pytest.approx(b.loss, abs=1e-6),
        pytest.approx(b.grad_norm, abs=1e-6),
    )
    for x, y in zip(one.parameters(), four.parameters(), strict=True):
        assert torch.allclose(x.grad, y.grad, atol=1e-6, rtol=0)
    mean_of_means = sum(next_token(tiny(), micro).item() / micro.weight for micro in micros) / 4
    assert abs(mean_of_means - a.loss) > 1e-3  # what averaging averages would have given


def test_a_step_says_what_it_did(tiny, batch):
    model = tiny()
    data = batch(3, ignore=0.5)
    before = next_token(model, data).item() / data.weight
    steps = list(start(model, lambda step: [data], steps=4, settings=AdamW(lr=0.5)))
    assert steps[0].loss == pytest.approx(before)
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert [step.lr for step in steps] == pytest.approx([0.5, 0.375, 0.25, 0.125])
    assert all(step.tokens == data.weight and step.seconds > 0 and not step.skipped for step in steps)


def test_it_learns(tiny, batch):
    model = tiny(width=16)
    steps = list(start(model, lambda step: [batch(step % 2)], steps=60, settings=Muon(lr=0.02)))
    assert steps[-1].loss < 0.5 * steps[0].loss


def test_clipping_bounds_what_the_optimizer_sees(tiny, batch):
    """AdamW's first moment after one step is 0.1 of the clipped gradient."""
    model = tiny()
    optimizer = Optimizer(model, AdamW())
    (step,) = train(model, lambda step: [batch(0)], next_token, optimizer, Constant(), steps=1, clip=0.01)
    seen = torch.stack([t.norm() for name, t in optimizer.state().items() if name.startswith("first.")]).norm() / 0.1
    assert step.grad_norm > 0.1
    assert seen.item() == pytest.approx(0.01, rel=1e-3)


def test_a_step_that_asks_nothing_is_an_error(tiny, batch):
    nothing = replace(batch(0), targets=torch.full((4, 6), IGNORE), weight=0)
    with pytest.raises(NextileError, match="step 0 asks for no target"):
        next(start(tiny(), lambda step: [nothing]))


# --- randomness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [gpt2, qwen3])
@pytest.mark.parametrize("settings", SETTINGS, ids=["adamw", "muon"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_same_seed_gives_the_same_100_losses_bit_for_bit(kind, settings, precision, batch):
    def losses(seed):
        options = {"steps": 100, "settings": settings, "precision": precision, "seed": seed}
        return [step.loss for step in start(real(kind), lambda step: [batch(step)], **options)]

    first = losses(seed=5)
    assert losses(seed=5) == first
    assert losses(seed=6) != first  # dropout


def test_what_a_caller_draws_between_steps_changes_nothing(batch):
    def run(disturb):
        model = real()
        for _ in start(model, lambda step: [batch(step)]):
            if disturb:
                torch.rand(3)
                model.eval()
        return weights(model)

    assert torch.equal(run(False), run(True))


def test_mixed_seeds_do_not_meet():
    seeds = {mix(seed, step) for seed in range(100) for step in range(100)}
    assert len(seeds) == 10_000
    assert all(0 <= seed < 2**63 for seed in seeds)
    bits = [bin(mix(1, step) ^ mix(1, step + 1)).count("1") for step in range(1000)]
    assert sum(bits) / 1000 == pytest.approx(31.5, abs=1)  # neighbours differ in half of the bits


# --- what is not finite ----------------------------------------------------------------------------------------------


def poisoned(bad_steps, poison):
    """An objective that fails in some steps; `seen` counts its calls."""

    def objective(model, batch):
        objective.seen += 1
        return next_token(model, batch) * (poison if objective.seen - 1 in bad_steps else 1.0)

    objective.seen = 0
    return objective


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_bad_step_is_skipped_as_if_it_had_not_been(tiny, batch, poison):
    model = tiny()
    optimizer = Optimizer(model)
    skipped = []
    for step in train(model, lambda step: [batch(step)], poisoned({2, 3}, poison), optimizer, Constant(), steps=6):
        skipped.append(step.skipped)
        if step.index == 1:
            before = weights(model)
        if step.index == 3:
            assert torch.equal(weights(model), before)
    assert skipped == [False, False, True, True, False, False]
    assert optimizer.state()["count"] == 4
    assert not torch.equal(weights(model), before)


def test_five_bad_steps_in_a_row_end_the_run_with_a_remedy(tiny, batch):
    model, taken = tiny(), []
    objective = poisoned({1, 2, 3, 4, 6, 7, 8, 9, 10}, math.nan)
    run = train(model, lambda step: [batch(step)], objective, Optimizer(model, AdamW()), Constant(), steps=20)
    with pytest.raises(NextileError, match=r"step 11: loss nan.*5 steps in a row were skipped: lower lr \(now 0.001\)"):
        taken.extend(step.index for step in run)
    assert taken == list(range(10))
    assert weights(model).isfinite().all()


# --- evaluation ------------------------------------------------------------------------------------------------------


def test_evaluation_sums_all_batches_and_leaves_the_model_as_it_was(batch):
    model = real(dropout=0.5).train()
    batches = [batch(i, rows=i + 1, ignore=0.2) for i in range(4)]
    total, asked = evaluate(model, batches, next_token)
    assert asked == sum(b.weight for b in batches)
    assert model.training
    model.eval()
    assert total == pytest.approx(sum(next_token(model, b).item() for b in batches), rel=1e-6)
    assert evaluate(model, batches, next_token) == (total, asked)
    assert not model.training
    model.train()
    assert next_token(model, batches[0]).item() != next_token(model, batches[0]).item()  # dropout would have shown


def test_evaluation_restores_the_mode_after_an_error(tiny, batch):
    def broken(model, batch):
        raise ZeroDivisionError

    model = tiny().train()
    with pytest.raises(ZeroDivisionError):
        evaluate(model, [batch(0)], broken)
    assert model.training


def test_evaluation_of_nothing_is_nothing(tiny):
    assert evaluate(tiny(), [], next_token) == (0.0, 0)


def test_bf16_is_near_fp32_and_not_equal(batch):
    model, data = real(dropout=0.0), [batch(0)]
    full, half = (evaluate(model, data, next_token, precision=p)[0] for p in (torch.float32, torch.bfloat16))
    assert half == pytest.approx(full, rel=1e-2)
    assert half != full


# --- compiled --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(older_torch, reason="functions share their compilations in this torch")
@pytest.mark.slow
@pytest.mark.parametrize("kind", [gpt2, qwen3])
def test_compiled_is_eager_without_a_graph_break_or_a_second_compilation(kind, batch):
    def run(compiled):
        model = real(kind, dropout=0.0)
        optimizer = Optimizer(model, AdamW(), compiled=compiled)
        options = {"steps": 6, "compiled": compiled}
        return [s.loss for s in train(model, uneven, next_token, optimizer, Linear(), **options)]

    def uneven(step):
        return [batch(step, ignore=0.1 * step), batch(step + 50)]

    eager = run(False)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert run(True) == pytest.approx(eager, abs=1e-5)


@pytest.mark.slow
def test_a_seed_is_a_run_when_compiled_too(batch):
    objective = one_graph(next_token)

    def losses(seed):
        model = real(dropout=0.3)
        optimizer = Optimizer(model, Muon(), compiled=True)
        options = {"steps": 20, "precision": torch.bfloat16, "seed": seed}
        return [s.loss for s in train(model, lambda s: [batch(s)], objective, optimizer, Linear(), **options)]

    first = losses(1)
    assert losses(1) == first
    assert losses(2) != first  # dropout


@pytest.mark.slow
def test_a_compiled_objective_serves_training_and_evaluation(batch):
    model = real(dropout=0.3)
    objective = one_graph(next_token)
    assert one_graph(objective) is objective

    def run():
        return [s.loss for s in train(model, lambda s: [batch(s)], objective, Optimizer(model), Linear(), steps=3)]

    run()
    compiled = evaluate(model, [batch(1)], objective)[0]
    assert compiled == pytest.approx(evaluate(model, [batch(1)], next_token)[0], rel=1e-5)
    with torch._dynamo.config.patch(error_on_recompile=True):  # both are compiled by now
        run()
        evaluate(model, [batch(2)], objective)
