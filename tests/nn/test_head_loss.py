"""The loss in pieces against torch's own over whole scores, in every way that it is run."""

import ctypes
import gc
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.func import grad_and_value
from torch.nn import functional as F

from nextile.data.batches import IGNORE, Batch
from nextile.models.build import build
from nextile.models.families import gpt2
from nextile.nn import head_loss
from nextile.nn.head_loss import Product, each, summed
from nextile.training.graph import one_graph
from nextile.training.objectives import answers_log_probability, apart, next_token

N, D, V = 23, 12, 97


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """Several pieces of several parts, and several bands, of a few numbers."""
    monkeypatch.setitem(head_loss.PIECE, "cpu", 4 * V * 7)
    monkeypatch.setattr(head_loss, "IN_CACHE", 4 * V * 2)
    monkeypatch.setattr(head_loss, "BAND", 40)


def given(dtype=torch.double, ignore=5):
    """x (N, D), weight (V, D), bias (V,), targets (N,), of which every so many is not asked."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(shape, generator=generator, dtype=torch.double).to(dtype) for shape in ((N, D), (V, D), (V,))]
    targets = torch.randint(V, (N,), generator=generator)
    targets[::ignore] = IGNORE
    return *(part.requires_grad_() for part in parts), targets


def reference(x, weight, bias, cap, targets, smoothing=0.0, reduction="sum"):
    """torch's own, of whole scores."""
    scores = Product(x, weight, bias, cap).whole()
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return F.cross_entropy(wide, targets, ignore_index=IGNORE, label_smoothing=smoothing, reduction=reduction)


def traced(function):
    """One graph, as `one_graph` makes it, that is not made into machine code."""
    return torch.compile(function, fullgraph=True, dynamic=False, backend="aot_eager")


def furthest(ours, theirs):
    return max(float((a.double() - b.double()).detach().abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignore", [5, 1000])
def test_equals_torchs_in_float64(with_bias, cap, smoothing, ignore):
    x, weight, bias, targets = given(ignore=ignore)
    bias = bias if with_bias else None
    learned = [tensor for tensor in (x, weight, bias) if tensor is not None]
    theirs = reference(x, weight, bias, cap, targets, smoothing)
    wanted = torch.autograd.grad(0.3 * theirs, learned)
    ours = summed(Product(x, weight, bias, cap), targets, smoothing)
    assert ours.dtype == torch.double
    assert abs(ours - theirs) <= 1e-12 * abs(theirs)
    assert furthest(torch.autograd.grad(0.3 * ours, learned, retain_graph=True), wanted) <= 1e-12
    assert furthest(torch.autograd.grad(0.3 * ours, learned), wanted) <= 1e-12  # a second time
    other = torch.autograd.grad(reference(x, weight, bias, 2.9, targets, smoothing), learned)
    assert furthest(wanted, other) > 1e-3  # the test can fail


@pytest.mark.parametrize("cap", [None, 3.0])
def test_each_loss_and_its_gradients_equal_torchs(cap):
    x, weight, bias, targets = given()
    worth = torch.randn(N, dtype=torch.double)
    theirs, ours = reference(x, weight, bias, cap, targets, 0.0, "none"), each(Product(x, weight, bias, cap), targets)
    assert furthest([ours], [theirs]) <= 1e-12
    assert ours[0] == 0
    wanted = torch.autograd.grad(theirs @ worth, (x, weight, bias))
    assert furthest(torch.autograd.grad(ours @ worth, (x, weight, bias)), wanted) <= 1e-12


def test_gradients_are_those_of_the_values():
    x, weight, bias, targets = given()
    for loss in (partial(summed, label_smoothing=0.1), each):

        def of_tensors(*tensors, loss=loss):
            return loss(Product(*tensors, 3.0), targets)

        assert torch.autograd.gradcheck(of_tensors, (x, weight, bias), fast_mode=True)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_equals_torchs_in_float32_and_under_autocast(half, compiled):
    x, weight, bias, targets = given(torch.float32)

    def both(loss):
        def run(x, weight, bias):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                return loss(Product(2 * x, weight, bias), targets)

        value = (one_graph(run) if compiled else run)(x, weight, bias)
        return value.detach(), *torch.autograd.grad(value / 7, (x, weight, bias))

    ours, theirs = both(summed), both(lambda product, targets: reference(*product, targets))
    assert all(tensor.dtype == torch.float32 for tensor in ours)
    bound = 2e-2 if half else 1e-5
    assert all(furthest([a], [b]) <= bound * float(b.abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_transform_of_functions_has_the_same_gradients(compiled):
    *tensors, targets = given()

    def of(loss):
        found = grad_and_value(lambda x, weight, bias: loss(2 * x, weight, bias) / 7, (0, 1, 2))
        grads, value = (traced(found) if compiled else found)(*(tensor.detach() for tensor in tensors))
        return value, *grads

    ours = of(lambda *of: summed(Product(*of, 3.0), targets, 0.1))
    assert furthest(ours, of(lambda *of: reference(*of, 3.0, targets, 0.1))) <= 1e-12


@pytest.mark.parametrize("compiled", [False, True])
def test_a_frozen_weight_costs_no_gradient(compiled, monkeypatch):
    x, weight, bias, targets = given()
    weight, bias = (torch.nn.Parameter(tensor.detach(), requires_grad=False) for tensor in (weight, bias))
    monkeypatch.setattr(head_loss, "_add_product", lambda *_: pytest.fail("a gradient that nobody asked for"))
    run = partial(lambda x: summed(Product(x, weight, bias), targets))
    value = (traced(run) if compiled else run)(x)
    wanted = torch.autograd.grad(reference(x, weight, bias, None, targets), x)
    assert furthest(torch.autograd.grad(value, x), wanted) <= 1e-12
    with torch.no_grad():
        assert summed(Product(x, weight, bias), targets).requires_grad is False


def test_rows_that_are_not_asked_are_not_multiplied(monkeypatch):
    seen = []
    plain = head_loss._Pass._piece

    def counted(self, rows, *args, **how):
        seen.append(len(self.targets[rows]))
        return plain(self, rows, *args, **how)

    monkeypatch.setattr(head_loss._Pass, "_piece", counted)
    x, weight, bias, targets = given(ignore=2)
    summed(Product(x, weight, bias), targets)
    assert sum(seen) == int((targets != IGNORE).sum()) < N
    assert summed(Product(x, weight, bias), torch.full_like(targets, IGNORE)) == 0


# --- through models -------------------------------------------------------------------------------------------------


def tiny(vocab=V):
    torch.manual_seed(0)
    return build(gpt2.spec(vocab=vocab, context=16, width=16, depth=1, heads=2))


def batch(rows=4, time=16, vocab=V):
    ids = torch.randint(vocab, (rows, time + 1), generator=torch.Generator().manual_seed(1))
    targets = ids[:, 1:].clone()
    targets[:, ::3] = IGNORE
    return Batch.of(ids[:, :-1], targets, (torch.ones_like(targets),))


@pytest.mark.parametrize("objective", [apart(partial(next_token, label_smoothing=0.1)), answers_log_probability])
@pytest.mark.parametrize("compiled", [False, True])
def test_an_objective_is_the_same_in_pieces(objective, compiled, monkeypatch):
    model, asked, found = tiny(), batch(), []
    for bound in (1 << 30, 0):
        monkeypatch.setattr(head_loss, "WHOLE", bound)
        called = []
        plain = head_loss._Pass._piece
        with monkeypatch.context() as patch:
            patch.setattr(head_loss._Pass, "_piece", lambda *a, f=plain, c=called, **k: c.append(1) or f(*a, **k))
            model.zero_grad()
            value = (traced(objective) if compiled else objective)(model, asked)
            value.sum().backward()
        assert bool(called) is (bound == 0)
        found.append([value.detach(), *(p.grad.clone() for p in model.parameters())])
    assert furthest(*found) < 1e-4


def _status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell its peak of memory")
def test_scores_are_never_held_whole(monkeypatch):
    monkeypatch.setitem(head_loss.PIECE, "cpu", 1 << 23)
    monkeypatch.setattr(head_loss, "BAND", 4096)
    model, asked = tiny(50_257), batch(32, 16, 50_257)
    whole = 4 * 32 * 16 * 50_257  # 100 MB

    def growth(bound):
        monkeypatch.setattr(head_loss, "WHOLE", bound)
        model.zero_grad()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what this process freed and kept (`keep_memory`) is nobody's
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        apart(next_token)(model, asked).backward()
        return _status("VmHWM") - before

    growth(0)
    assert growth(0) < whole / 2
    assert growth(1 << 40) > 2 * whole  # the test can fail
