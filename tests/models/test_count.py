"""Parameters, FLOPs and memory from the spec."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nextile.models import count
from nextile.models.build import build
from nextile.models.families import gpt2, marian, mistral, qwen3
from nextile.models.families.table import family_of
from nextile.nn import specs
from nextile.nn.tap import record


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


def translator(causal: bool) -> specs.EncoderDecoder:
    """Without biases, whose additions are not counted; encoder, decoder and memory each have a shape of their own."""

    def stack(heads, hidden, **more):
        attention = specs.Attention(heads=heads, head_dim=6, bias="none")
        return specs.Stack(width=32, depth=3, attention=attention, feed_forward=specs.GatedMLP(hidden=hidden), **more)

    cross = specs.Attention(heads=4, kv_heads=2, bias="none")
    return specs.EncoderDecoder(
        context=64,
        source=specs.TokenEmbedding(vocab=50),
        encoder=stack(2, 40),
        target=specs.TokenEmbedding(vocab=70),
        decoder=stack(3, 24, causal=causal, cross=cross),
        head=specs.LinearHead(),
    )


def test_flops_of_an_encoder_decoder_are_those_that_torch_counts():
    spec, rows, length = translator(causal=False), 2, 10
    model, ids = build(spec), torch.zeros(rows, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, record(model, "*.weights"):  # the explicit attention
        model(ids, ids)
    assert counter.get_total_flops() == count.forward_flops(spec, length) * rows * length
    unseen = 3 * 2 * 2 * (3 * 6) * length / 2  # depth, two products of 2 FLOPs, the width of the heads, half a square
    assert count.forward_flops(spec, length) - count.forward_flops(translator(causal=True), length) == unseen


def test_training_memory_of_an_encoder_decoder_is_that_of_its_stacks():
    spec = marian.spec(vocab=50, context=64, width=32, depth=3, decoder_depth=2, heads=4, hidden=64)
    sizes = {"rows": 2, "length": 10}
    alone = {
        name: specs.Transformer(
            context=64, embed=spec.source, stack=getattr(spec, name).model_copy(update={"cross": None}), head=spec.head
        )
        for name in ("encoder", "decoder")
    }

    def running(model: specs.Transformer | specs.EncoderDecoder) -> int:
        """Without what stands still, the parameters, and without the logits."""
        still = count.parameters(model).total * 4 * 5
        return count.training_memory(model, **sizes) - still - 3 * 4 * 2 * 10 * 50

    cross = 2 * 2 * 10 * (4 * 4 * 32 + 4 * 2 * 32 + 2 * 4 * 4 * 10)  # depth, tokens; its matrices, its norm, its scores
    assert running(spec) == running(alone["encoder"]) + running(alone["decoder"]) + cross


def test_families_know_their_own():
    assert family_of(gpt2.spec(vocab=9, context=8, width=8, depth=1, heads=1)) == "gpt2"
    assert family_of(qwen3.spec(vocab=9, context=8, width=8, depth=1, heads=1)) == "qwen3"
    rotary_gpt2 = gpt2.spec(vocab=9).model_copy(update={"head": specs.LinearHead()})
    assert family_of(rotary_gpt2) is None
    refused = qwen3.spec(vocab=9, context=8, width=8, depth=1, heads=1)
    attention = refused.stack.attention.model_copy(update={"soft_cap": 9.0})
    assert (
        family_of(refused.model_copy(update={"stack": refused.stack.model_copy(update={"attention": attention})}))
        is None
    )
    assert family_of(marian.spec(vocab=9, context=8, width=8, depth=1, heads=1)) == "marian"
    odd_heads = gpt2.spec(vocab=9).stack.model_copy(update={"attention": specs.Attention(heads=5, head_dim=8)})
    assert family_of(gpt2.spec(vocab=9).model_copy(update={"stack": odd_heads})) is None


def test_a_cache_is_as_large_as_it_is_counted():
    spec = qwen3.spec(vocab=9, context=32, width=32, depth=3, heads=4, kv_heads=2)
    layers = build(spec).new_cache(5, 20).layers
    assert count.cache_memory(spec, rows=5, length=20) == sum(kept.keys.nbytes + kept.values.nbytes for kept in layers)


def test_a_window_is_counted_as_far_as_it_reaches():
    spec = mistral.spec(vocab=9, context=64, width=8, depth=2, heads=1, hidden=8, window=4)
    stack, whole = spec.stack, spec.stack.model_copy(update={"local": None})
    seen = [min(t + 1, 4) for t in range(64)]  # tokens that each token sees
    assert count.seen_in(4, 64) == pytest.approx(sum(seen) / 64, abs=0.5)  # half of a square counts no diagonal
    assert count.score_flops(stack, 64) == 2 * 2 * 2 * 8 * count.seen_in(4, 64)
    assert count.score_flops(whole, 64) == 2 * 2 * 2 * 8 * 32
    assert count.seen_in(64, 64) == count.seen_in(100, 64) == 32


def test_scores_are_counted_as_they_are_held():
    """Of the head a piece of rows; of attention nothing where a kernel stores none."""
    sizes = {"rows": 2, "length": 64}
    few, many = (gpt2.spec(vocab=vocab, context=64, width=64, depth=1, heads=4) for vocab in (1000, 600_000))

    def beside(spec, **more):
        return count.training_memory(spec, **sizes, **more) - count.parameters(spec).total * 4 * 5

    assert beside(many, device="cpu") - beside(few, device="cpu") == 3 * (2**26 - 4 * 2 * 64 * 1000)
    assert beside(many) - beside(few) == 3 * (2**28 - 4 * 2 * 64 * 1000)  # a GPU's pieces are larger
    assert beside(few) - beside(few, scores="fused") == 2 * 64 * (
        2 * 4 * 64 * 4
    )  # tokens x (twice, fp32, length, heads)
