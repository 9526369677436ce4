"""Parameters, FLOPs and memory from the spec."""

import pytest

from nextile.models import count
from nextile.models.families import gpt2, qwen3
from nextile.models.families.table import family_of
from nextile.nn import specs


def test_published_parameter_counts():
    assert count.parameters(gpt2.spec()).total == 124_439_808
    assert count.parameters(gpt2.spec(**gpt2.SIZES["gpt2-medium"])).total == 354_823_168
    assert count.parameters(qwen3.spec(**qwen3.SIZES["qwen3-0.6b"])).total == 596_049_920


@pytest.mark.parametrize("position", [specs.RelativeBias(), specs.Alibi(), None])
@pytest.mark.parametrize("norm_place", ["before", "after"])
def test_every_shape_is_counted_as_it_is_built(position, norm_place):
    stack = specs.Stack(
        width=32,
        depth=3,
        attention=specs.Attention(heads=4, kv_heads=2, qk_norm=specs.LayerNorm(), bias="qkv"),
        feed_forward=specs.GatedMLP(hidden=40, bias=True),
        position=position,
        norm_place=norm_place,
    )
    decoder = stack.model_copy(update={"cross": specs.Attention(heads=2), "causal": True})
    embed = specs.TokenEmbedding(vocab=50, position=specs.Learned(length=9), norm=specs.LayerNorm())
    one = specs.Transformer(context=9, embed=embed, stack=stack, head=specs.TiedHead(bias=True))
    two = specs.EncoderDecoder(
        context=9, source=embed, encoder=stack, decoder=decoder, head=specs.LinearHead(bias=True)
    )
    assert count.parameters(one).total > 0  # counted == built is asserted inside
    assert count.parameters(two).total > count.parameters(one).total


def test_a_wrong_count_is_found(monkeypatch):
    monkeypatch.setattr(count, "norm_parameters", lambda norm, width: 1)
    with pytest.raises(AssertionError, match=r"counted .* parameters, built"):
        count.parameters(gpt2.spec(depth=1))


def test_flops_of_a_training_token_are_six_per_matrix_parameter():
    spec = gpt2.spec(context=64)
    flops = count.training_flops(spec, 64)
    assert flops == pytest.approx(6 * count.parameters(spec).total, rel=0.03)


def test_families_know_their_own():
    assert family_of(gpt2.spec(vocab=9, context=8, width=8, depth=1, heads=1)) == "gpt2"
    assert family_of(qwen3.spec(vocab=9, context=8, width=8, depth=1, heads=1)) == "qwen3"
    rotary_gpt2 = gpt2.spec(vocab=9).model_copy(update={"head": specs.LinearHead()})
    assert family_of(rotary_gpt2) is None


def test_a_cache_is_as_large_as_it_is_counted():
    from nextile.models.build import build

    spec = qwen3.spec(vocab=9, context=32, width=32, depth=3, heads=4, kv_heads=2)
    layers = build(spec).new_cache(5, 20).layers
    assert count.cache_memory(spec, rows=5, length=20) == sum(kept.keys.nbytes + kept.values.nbytes for kept in layers)
