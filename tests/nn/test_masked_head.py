"""The head that says what masked tokens were, and the types of tokens that go with it."""

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from nextile.models import count
from nextile.models.build import build
from nextile.nn import specs
from nextile.nn.embed import TokenEmbedding
from nextile.nn.head import MaskedHead, TiedHead, make_head
from nextile.nn.tap import record

WIDTH, VOCAB = 16, 30


def embedding(**more) -> TokenEmbedding:
    """With numbers of which each counts."""
    return lively(TokenEmbedding(specs.TokenEmbedding(vocab=VOCAB, **more), WIDTH))


def lively(module):
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(i))
    return module.double().eval()


def reader(**more) -> specs.Transformer:
    """Without biases in its blocks, whose additions are not counted."""
    stack = specs.Stack(
        width=WIDTH,
        depth=2,
        attention=specs.Attention(heads=2, bias="none"),
        feed_forward=specs.MLP(hidden=24, bias=False),
    )
    return specs.Transformer(**{"context": 8, "embed": specs.TokenEmbedding(vocab=VOCAB), "stack": stack} | more)


def vectors(seed=7):
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- head -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("activation", "function"), [("gelu", F.gelu), ("relu", F.relu)])
def test_the_head_is_a_transform_and_the_embedding_read_backwards(activation, function):
    embed, x = embedding(), vectors()
    head = lively(make_head(specs.MaskedHead(activation=activation, norm=specs.LayerNorm(eps=0.1)), embed))
    hidden = function(x @ head.dense.weight.mT + head.dense.bias)
    normal = (hidden - hidden.mean(-1, keepdim=True)) / (hidden.var(-1, correction=0, keepdim=True) + 0.1).sqrt()
    wanted = (normal * head.norm.weight + head.norm.bias) @ embed.token.weight.mT + head.bias
    torch.testing.assert_close(head(x), wanted)


def test_the_head_owns_no_second_copy_of_the_embedding():
    model = build(reader(head=specs.MaskedHead()))
    assert isinstance(model.head, MaskedHead)
    assert isinstance(model.head, TiedHead)
    names = [name for name, _ in model.named_parameters() if name.startswith("head.")]
    assert names == ["head.bias", "head.dense.weight", "head.dense.bias", "head.norm.weight", "head.norm.bias"]
    assert model.head.weight is model.embed.token.weight
    model(torch.zeros(1, 3, dtype=torch.long)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_fresh_head_has_gains_of_one_and_biases_of_zero():
    head = build(reader(head=specs.MaskedHead()), seed=1).head
    assert torch.equal(head.norm.weight, torch.ones(WIDTH))
    assert not any(part.any() for part in (head.bias, head.norm.bias, head.dense.bias))
    assert head.dense.weight.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("norm", [specs.LayerNorm(), specs.RMSNorm()])
@pytest.mark.parametrize("types", [None, 3])
def test_head_and_types_are_counted_as_they_are_built(norm, types):
    embed = specs.TokenEmbedding(vocab=VOCAB, types=types)
    counted = count.parameters(reader(embed=embed, head=specs.MaskedHead(norm=norm)))  # asserts that they are built
    gains = WIDTH * (2 if isinstance(norm, specs.LayerNorm) else 1)
    assert counted.head == WIDTH * (WIDTH + 1) + gains + VOCAB
    assert counted.embedding == (VOCAB + (types or 0)) * WIDTH


def test_the_flops_of_the_head_are_those_that_torch_counts():
    spec, ids = reader(head=specs.MaskedHead()), torch.zeros(2, 8, dtype=torch.long)
    model = build(spec)
    with FlopCounterMode(display=False) as counter, record(model, "*.weights"):  # the explicit attention
        model(ids)
    assert counter.get_total_flops() == count.forward_flops(spec, 8) * 2 * 8
    assert count.forward_flops(spec, 8) - count.forward_flops(reader(), 8) == 2 * WIDTH**2


def test_a_decoder_beside_a_memory_may_have_the_head_too():
    stack = reader().stack
    decoder = stack.model_copy(update={"cross": stack.attention, "causal": True})
    spec = specs.EncoderDecoder(
        context=8, source=reader().embed, encoder=stack, decoder=decoder, head=specs.MaskedHead()
    )
    ids = torch.zeros(2, 4, dtype=torch.long)
    assert build(spec)(ids, ids).shape == (2, 4, VOCAB)


@pytest.mark.parametrize("fields", [{"activation": "tanh"}, {"norm": None}, {"bias": False}, {"scale": 2.0}])
def test_a_head_that_there_is_not_is_refused(fields):
    with pytest.raises(ValidationError):
        specs.MaskedHead(**fields)


# --- types ----------------------------------------------------------------------------------------------------------


def test_every_token_has_the_first_type_before_the_norm():
    embed = embedding(types=2, scale=3.0, position=specs.Learned(length=4), norm=specs.LayerNorm(eps=0.1))
    ids = torch.tensor([[4, 0, 29]])
    sums = embed.token(ids) * 3.0 + embed.types.weight[0] + embed.position.weight[:3]
    torch.testing.assert_close(embed(ids), embed.norm(sums))


def test_the_type_of_a_second_text_is_never_trained():
    embed = embedding(types=2)
    embed(torch.tensor([[1, 2]])).sum().backward()
    assert embed.types.weight.grad.tolist() == [[2.0] * WIDTH, [0.0] * WIDTH]


def test_without_types_there_is_nothing_of_them():
    embed = embedding()
    assert [name for name, _ in embed.named_parameters()] == ["token.weight"]
    assert torch.equal(embed(torch.tensor([[5]])), embed.token.weight[5].reshape(1, 1, WIDTH))


@pytest.mark.parametrize("types", [0, 1025, 1.5, "two"])
def test_a_number_of_types_out_of_bounds_is_refused(types):
    with pytest.raises(ValidationError):
        specs.TokenEmbedding(vocab=VOCAB, types=types)
