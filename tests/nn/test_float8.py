"""Products in float8: exactly those of the rounded numbers, near those of the given ones, and only while learning."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from nextile.base.errors import UsageError
from nextile.data.batches import Batch
from nextile.models.build import build
from nextile.models.families import gpt2, mixtral, qwen3
from nextile.nn import float8
from nextile.nn.float8 import float8_linear, use_float8
from nextile.nn.linear import Linear, linear
from nextile.nn.lora import Lora, add_lora
from nextile.nn.quantize import Int8, quantize
from nextile.training.learner import GradientLearner
from nextile.training.objectives import next_token
from nextile.training.optim import AdamW, Optimizer

FORWARD = (torch.float8_e4m3fn, 448.0, 2.0**-4, 2.0**-10)  # the largest number; half a step, relative, and below 2^-6
BACKWARD = (torch.float8_e5m2, 57344.0, 2.0**-3, 2.0**-17)
MULTIPLY = torch.ops.aten._scaled_mm.default


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def operands(*rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (..., 48), weight (32, 48), bias (32) and an incoming gradient (..., 32), of unlike sizes."""
    return drawn(*rows, 48) * 3, drawn(32, 48, seed=1) * 0.02, drawn(32, seed=2), drawn(*rows, 32, seed=3) * 1e-6


def results(function, x: Tensor, weight: Tensor, bias: Tensor, incoming: Tensor) -> tuple[Tensor, ...]:
    """The product, and the gradients of x, weight and bias."""
    inputs = [each.clone().requires_grad_() for each in (x, weight, bias)]
    y = function(*inputs)
    return y.detach(), *torch.autograd.grad(y, inputs, incoming)


def read_back(x: Tensor, kind: tuple) -> Tensor:
    """What a tensor is rounded to, in float64."""
    dtype, largest, *_ = kind
    scale = x.abs().max() / largest
    return (x / scale).to(dtype).double() * scale.double()


def larger(size: Tensor, kind: tuple) -> Tensor:
    """Magnitudes, and by how much rounding may move them at most."""
    _, largest, relative, absolute = kind
    return size * (1 + relative) + absolute * size.max() / largest


def products(x: Tensor, weight: Tensor, incoming: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y, and the gradients of x and weight."""
    flat = incoming.flatten(0, -2)
    return x @ weight.T, incoming @ weight, flat.T @ x.flatten(0, -2)


def model(width: int = 32, depth: int = 2):
    return build(qwen3.spec(vocab=40, context=16, width=width, depth=depth, heads=2), seed=1)


def batch() -> Batch:
    ids = torch.randint(0, 40, (4, 17), generator=torch.Generator().manual_seed(0))
    return Batch.of(ids[:, :-1], ids[:, 1:])


# --- numbers --------------------------------------------------------------------------------------------------------

ROWS = [(16,), (1,), (17,), (3, 5), (2, 4, 8)]


def deviations(rows: tuple[int, ...]) -> list[float]:
    """Of the product and its gradients from those of the rounded numbers in float64, by their largest."""
    x, weight, bias, incoming = operands(*rows)
    y, of_x, of_weight, of_bias = results(float8_linear, x, weight, bias, incoming)
    wanted = products(read_back(x, FORWARD), read_back(weight, FORWARD), read_back(incoming, BACKWARD))
    assert of_bias.shape == bias.shape
    torch.testing.assert_close(of_bias, incoming.flatten(0, -2).sum(0))
    found = (y - bias, of_x, of_weight)
    return [((one - other).abs().max() / other.abs().max()).item() for one, other in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_it_is_the_product_of_the_rounded_numbers(rows):
    forward, *backward = deviations(rows)
    assert forward < 3e-6  # the bias, added in float32, is taken off again
    assert max(backward) < 1e-6


def test_a_wrong_scale_is_seen(monkeypatch):
    right = float8.rounded

    def wrong(x: Tensor, dtype: torch.dtype) -> float8.Rounded:
        return right(x, dtype)._replace(scale=right(x, dtype).scale * (1 + 1e-4))

    monkeypatch.setattr(float8, "rounded", wrong)
    assert min(deviations((16,))) > 1e-4


@pytest.mark.parametrize("sign", [torch.abs, torch.clone], ids=["of one sign", "of both signs"])
def test_it_is_as_near_the_exact_product_as_three_and_two_bits_are(sign):
    x, weight, _, incoming = (sign(each) for each in operands(64))
    found = results(float8_linear, x, weight, torch.zeros(32), incoming)[:3]
    exact = products(x.double(), weight.double(), incoming.double())
    sizes = [tensor.abs().double() for tensor in (x, weight, incoming)]
    most = products(*map(larger, sizes, (FORWARD, FORWARD, BACKWARD)))
    for one, other, high, low in zip(found, exact, most, products(*sizes), strict=True):
        assert ((one - other).abs() <= high - low).all()
        assert (one - other).norm() > 1e-3 * other.norm()  # and it was rounded


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-20, 1e20])
def test_nothing_and_very_small_and_large_numbers(size):
    for place in (0, 1, 3):
        given = list(operands(16))
        given[place] = given[place] * size
        found = results(float8_linear, *given)
        assert all(each.isfinite().all() for each in found)
        wanted = results(linear, *given)
        for one, other in zip(found, wanted, strict=True):
            assert (one - other).norm() <= 0.1 * other.norm() + 1e-35


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 3], ids=["x", "weight", "incoming"])
def test_what_is_not_finite_stays_so(bad, place):
    given = operands(20)
    given[place][1, 2] = bad
    y, of_x, of_weight, _ = results(float8_linear, *given)
    assert y.isfinite().all() == (place == 3)
    assert place == 0 or not of_x.isfinite().any()
    assert place == 1 or not of_weight.isfinite().any()


def test_no_rows_at_all():
    y, of_x, of_weight, of_bias = results(float8_linear, *operands(0))
    assert (y.shape, of_x.shape) == ((0, 32), (0, 48))
    assert not of_weight.any()
    assert not of_bias.any()


def by_columns(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same, of matrices that are laid out the other way round."""
    return float8_linear(x.t().contiguous().t(), weight.t().contiguous().t(), bias)


def test_layouts_make_no_difference():
    x, weight, bias, incoming = operands(16)
    wanted = results(float8_linear, x, weight, bias, incoming)
    found = results(by_columns, x, weight, bias, incoming.t().contiguous().t())
    for one, other in list(zip(found, wanted, strict=True))[:3]:  # a bias's sum may be taken in another order
        assert torch.equal(one, other)


class Noting(TorchDispatchMode):
    """Keeps what is given to the library's product of float8 matrices."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is MULTIPLY:
            self.noted.append((args, kwargs))
        return func(*args, **(kwargs or {}))


def on_cuda(given: object) -> object:
    """A tensor of this layout there, without numbers and whether there is one or not; anything else as it is."""
    if not isinstance(given, Tensor):
        return given
    return torch.empty_strided(given.shape, given.stride(), dtype=given.dtype, device="cuda")


@pytest.mark.parametrize("rows", [(0,), (1,), (17,), (3, 5), (64,)], ids=str)
def test_what_is_multiplied_is_what_cuda_takes(rows):
    """By torch's own rules for layouts, sizes and types there; a CPU takes anything."""
    x, weight, bias, incoming = operands(*rows)
    with Noting() as products:
        results(float8_linear, x, weight, bias, incoming)
        if x.ndim == 2:
            results(by_columns, x, weight, bias, incoming.t().contiguous().t())
    assert len(products.noted) == (6 if x.ndim == 2 else 3)
    for (a, b, *rest), options in products.noted:
        turned = b.contiguous()
        with FakeTensorMode():
            MULTIPLY(*map(on_cuda, (a, b, *rest)), **options)
            with pytest.raises(RuntimeError, match="col_major"):
                MULTIPLY(*map(on_cuda, (a, turned, *rest)), **options)


def test_the_product_is_of_autocasts_type_and_gradients_are_of_the_tensors():
    x, weight, bias, incoming = operands(16)
    narrow = x.bfloat16().requires_grad_()
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = float8_linear(narrow, weight, bias)
    assert y.dtype == torch.bfloat16
    y.backward(incoming.bfloat16())
    assert (narrow.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.float32)
    assert not torch.equal(weight.grad, weight.grad.bfloat16().float())  # nor was it ever narrower
    assert float8_linear(narrow, weight.bfloat16()).dtype == torch.bfloat16


# --- compiled -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [(16,), (3, 5)], ids=str)
def test_a_compiled_graph_has_the_same_bits(rows):
    torch._dynamo.reset()
    traced = torch.compile(float8_linear, backend="aot_eager", fullgraph=True, dynamic=False)
    for one, other in zip(results(traced, *operands(*rows)), results(float8_linear, *operands(*rows)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_a_compiled_step_learns_the_same():
    losses = []
    for compiled in (True, False):
        learner = learner_of(model(depth=1), compiled=compiled)
        losses.append([learner.learn([batch()], step, 1.0).loss.item() for step in range(10)])
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-3)
    assert losses[0][-1] == pytest.approx(losses[1][-1], rel=0.02)


# --- models ---------------------------------------------------------------------------------------------------------


def learner_of(learned, *, compiled: bool = False) -> GradientLearner:
    use_float8(learned)
    optimizer = Optimizer(learned, AdamW(lr=3e-3))
    return GradientLearner(learned, next_token, optimizer, precision=torch.bfloat16, compiled=compiled)


def in_float8(learned) -> list[str]:
    return [name for name, part in learned.named_modules() if getattr(part, "learning", linear) is float8_linear]


def test_a_models_numbers_and_names_stay_and_so_does_what_it_does_outside_of_training():
    learned, plain = model().eval(), model().eval()
    assert use_float8(learned) == use_float8(learned) == len(in_float8(learned)) == 2 * 7
    assert not in_float8(plain)
    assert list(learned.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(one, other) for one, other in zip(learned.parameters(), plain.parameters(), strict=True))
    inputs = batch().inputs
    for each in (learned, copy.deepcopy(learned), pickle.loads(pickle.dumps(learned))):
        assert torch.equal(each(inputs), plain(inputs))
        assert not torch.equal(each.train()(inputs), plain.train()(inputs))
        assert torch.equal(each.eval()(inputs), plain.eval()(inputs))


def test_what_is_no_such_layer_stays_as_it_is():
    wide = build(gpt2.spec(vocab=48, context=16, width=48, depth=1, heads=3))
    assert use_float8(wide) == len(in_float8(wide)) == 6
    assert all(".blocks." in name for name in in_float8(wide))  # neither an embedding nor a head
    experts = build(mixtral.spec(vocab=40, context=16, width=32, depth=1, heads=2, experts=16, chosen=2))
    assert use_float8(experts) == 4
    assert not any(name.endswith(".router") for name in in_float8(experts))
    adapted = model()
    paths = add_lora(adapted, Lora(rank=16, targets=("query", "value")))
    use_float8(adapted)
    assert not [name for name in in_float8(adapted) if name.startswith(tuple(paths))]


def test_a_model_without_such_layers_is_refused():
    packed = model()
    quantize(packed, Int8())
    for refused in (packed, model(width=20)):
        with pytest.raises(UsageError, match=r"^precision 'fp8': no layer .* multiples of 16: choose such a width, .*"):
            use_float8(refused)
        assert not in_float8(refused)


def test_a_layer_of_its_own_is_not_changed_by_others():
    use_float8(model())
    assert Linear(16, 16).learning is linear


# --- learning -------------------------------------------------------------------------------------------------------


def test_a_step_that_is_not_finite_changes_nothing():
    learned = model()
    learner = learner_of(learned)
    with torch.no_grad():
        learned.stack.blocks[1].feed_forward.inner.up.weight[0, 0] = math.inf
    before = copy.deepcopy(learned.state_dict())
    found = learner.learn([batch()], 0, 1.0)
    assert not found.loss.isfinite()
    assert not found.norm.isfinite()
    assert all(torch.equal(tensor, before[name]) for name, tensor in learned.state_dict().items())


def test_a_tiny_model_learns_as_in_bf16():
    """Eight texts of four tokens, over and over."""
    losses = {}
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 40, (8, 4), generator=draw).repeat(1, 5)[:, :17]
    given = Batch.of(ids[:, :-1], ids[:, 1:])
    for name in ("bf16", "fp8"):
        learned = model()
        if name == "fp8":
            use_float8(learned)
        learner = GradientLearner(learned, next_token, Optimizer(learned, AdamW(lr=3e-3)), precision=torch.bfloat16)
        losses[name] = [learner.learn([given], step, 1.0).loss.item() for step in range(60)]
    assert losses["bf16"][-1] < 0.5 * losses["bf16"][0]
    assert losses["fp8"] != losses["bf16"]
    assert losses["fp8"][-1] == pytest.approx(losses["bf16"][-1], rel=0.08)  # about one step of them
    assert sum(losses["fp8"]) == pytest.approx(sum(losses["bf16"]), rel=0.02)
