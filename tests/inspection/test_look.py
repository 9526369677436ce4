"""Looking at a model: what is captured is what it computes, one head costs one head, and what cannot be is said."""

import numpy as np
import pytest
import torch
from tests.inspection import looks
from tests.inspection.looks import DEPTH, HEADS, SHAPES, TEXT, softmax

from nextile.base.errors import NextileError, UsageError
from nextile.nn import attention as attending
from nextile.nn import specs
from nextile.nn.lora import Lora, add_lora
from nextile.nn.quantize import Int8, quantize
from nextile.nn.silence import silenced
from nextile.nn.tap import record

CLOSE = {"rtol": 0, "atol": 1e-9}
HIDDEN = -1e300


@pytest.fixture(params=SHAPES, scope="module")
def look(request):
    return SHAPES[request.param]().inspect(TEXT)


def window(look, layer):
    """How far back a layer sees."""
    local = look.model.spec.stack.local
    return local.window if local is not None and local.holds(layer) else 1000


# --- attention --------------------------------------------------------------------------------------------------------


def test_a_head_is_the_softmax_of_its_scores_over_what_is_not_hidden(look):
    for layer in range(DEPTH):
        head = look.head(layer, 1)
        scores, hidden = np.asarray(head.scores), np.asarray(head.hidden)
        weights = softmax(np.where(hidden, HIDDEN, scores))
        np.testing.assert_allclose(head.weights, weights, **CLOSE)
        np.testing.assert_allclose(head.result, weights @ np.asarray(head.values), **CLOSE)
        assert np.isfinite(scores).all()
        assert np.abs(scores).max() < 1e4


def test_scores_are_products_of_queries_and_keys_capped_and_biased(look):
    for layer in range(DEPTH):
        head = look.head(layer, 2)
        scores = np.asarray(head.queries) @ np.asarray(head.keys).T * head.scale
        scores = scores if head.cap is None else head.cap * np.tanh(scores / head.cap)
        np.testing.assert_allclose(head.scores, scores + (0 if head.bias is None else np.asarray(head.bias)), **CLOSE)


def test_hidden_is_what_lies_ahead_or_outside_the_window(look):
    for layer in range(DEPTH):
        place = np.arange(len(look.pieces))
        back = place[:, None] - place
        np.testing.assert_array_equal(look.head(layer, 0).hidden, (back < 0) | (back >= window(look, layer)))
        assert (np.asarray(look.weights(layer=layer))[:, (back < 0)] == 0).all()


def test_a_head_alone_is_that_head_of_all(look):
    every = look.weights()
    assert every.sizes == {"layer": DEPTH, "head": HEADS, "query": len(look.pieces), "key": len(look.pieces)}
    for layer in range(DEPTH):
        for head in range(HEADS):
            one = look.weights(layer=layer, head=head)
            np.testing.assert_allclose(one, every.isel(layer=layer, head=head), **CLOSE)
            np.testing.assert_allclose(look.head(layer, head).weights, one, **CLOSE)
    assert look.weights(head=2).dims == ("layer", "query", "key")
    np.testing.assert_allclose(look.weights(head=2), every.isel(head=2), **CLOSE)
    assert look.weights(layer=-1).dims == ("head", "query", "key")


def test_one_head_is_weighed_in_the_open_and_all_go_the_fast_path(monkeypatch):
    look, open_heads, fast_heads = SHAPES["learned places"]().inspect(TEXT), [], []
    explicit, fast = attending.explicit_attention, attending.fast_attention

    def seen(q, *args, **rule):
        open_heads.append(q.shape[1])
        return explicit(q, *args, **rule)

    def seen_fast(q, *args, **rule):
        fast_heads.append(q.shape[1])
        return fast(q, *args, **rule)

    monkeypatch.setattr(attending, "explicit_attention", seen)
    monkeypatch.setattr(attending, "fast_attention", seen_fast)
    look.weights(layer=1, head=2)
    assert (open_heads, fast_heads) == ([1], [HEADS] * DEPTH)
    look.weights(layer=1)
    assert (open_heads, fast_heads) == ([1, HEADS], [HEADS] * DEPTH + [HEADS] * (DEPTH - 1))


def test_capturing_leaves_what_the_model_says_as_it_is(look):
    model, ids = look.model, torch.tensor([look.ids])
    with torch.no_grad():
        plain = model(ids)
        with record(model, "*.inner.*", heads=[3, 0]) as seen:
            torch.testing.assert_close(model(ids), plain, rtol=0, atol=0)
        assert seen["stack.blocks.1.self_attention.inner.weights"].shape[1] == 2
    first, second = seen["stack.blocks.1.self_attention.inner.weights"][0]
    np.testing.assert_allclose(first, look.weights(layer=1, head=3), **CLOSE)
    np.testing.assert_allclose(second, look.weights(layer=1, head=0), **CLOSE)


def test_rollout_is_a_product_of_layers_with_what_passes_by(look):
    flow = np.eye(len(look.pieces))
    for layer in np.asarray(look.weights()).mean(1):
        flow = (layer + np.eye(len(layer))) / 2 @ flow
    np.testing.assert_allclose(look.rollout(), flow, **CLOSE)
    np.testing.assert_allclose(np.asarray(look.rollout()).sum(-1), 1, **CLOSE)


def test_whether_queries_are_turned_is_said():
    turned = {name: SHAPES[name]().inspect(TEXT).head(0, 0).rotated for name in SHAPES}
    assert {name for name, is_turned in turned.items() if is_turned} == {
        "inside, groups, turned", "around, capped, a window", "parallel, partly turned", "of a speedrun"
    }  # fmt: skip


# --- the stream -------------------------------------------------------------------------------------------------------


def test_the_stream_begins_with_the_embedding_and_ends_in_what_the_head_reads(look):
    stream, model = look.stream(), look.model
    assert stream.sizes == {"layer": DEPTH + 1, "position": len(look.pieces), "width": looks.WIDTH}
    np.testing.assert_allclose(stream.isel(layer=0), look.embedded, **CLOSE)
    with torch.no_grad():
        last = torch.from_numpy(stream.values[-1].copy())
        np.testing.assert_allclose(model.head(model.stack.norm(last)[None])[0], look.logits, **CLOSE)
        np.testing.assert_allclose(model(torch.tensor([look.ids]))[0], look.logits, **CLOSE)


def test_the_embedding_is_tokens_and_positions(look):
    embedding, model = look.embedding(), look.model
    ids = torch.tensor(look.ids)
    with torch.no_grad():
        tokens = model.embed.token(ids) * model.embed.scale
        np.testing.assert_allclose(embedding.tokens, tokens, **CLOSE)
        if model.embed.position is None:
            assert embedding.positions is None
            assert look.position_vectors is None
        else:
            positions = model.embed.position(torch.arange(len(ids)))
            np.testing.assert_allclose(embedding.positions, positions, **CLOSE)
            tokens = tokens + positions
        np.testing.assert_allclose(embedding.sum, tokens, **CLOSE)
        np.testing.assert_allclose(embedding.entered, model.embed.norm(tokens), **CLOSE)


def test_what_is_added_is_what_the_stream_gains():
    for name in ("learned places", "inside, groups, turned", "around, capped, a window", "parallel, partly turned"):
        look = SHAPES[name]().inspect(TEXT)
        with record(look.model, "*.added") as seen, torch.no_grad():
            look.model(torch.tensor([look.ids]))
        stream = np.asarray(look.stream())
        for layer in range(DEPTH):
            parts = [seen[f"stack.blocks.{layer}.{part}.added"][0].numpy() for part in look.parts()]
            np.testing.assert_allclose(stream[layer] + sum(parts), stream[layer + 1], **CLOSE)
            lengths = [np.linalg.norm(part, axis=-1) for part in parts]
            np.testing.assert_allclose(look.added().isel(layer=layer), lengths, **CLOSE)


def test_the_lens_of_the_last_layer_is_the_model_itself(look):
    lens, shares = look.lens(top=3), softmax(np.asarray(look.logits))
    order = np.argsort(-shares, axis=-1)[:, :3]
    np.testing.assert_array_equal(lens.ids.isel(layer=-1), order)
    np.testing.assert_allclose(lens.probabilities.isel(layer=-1), np.take_along_axis(shares, order, -1), **CLOSE)
    rank = [int((row > row[came]).sum()) for row, came in zip(shares, look.ids[1:], strict=False)]
    assert np.asarray(lens.rank)[-1].tolist() == [*rank, -1]
    assert lens.ids.sizes == {"layer": DEPTH + 1, "position": len(look.pieces), "rank": 3}
    assert np.asarray(lens.probabilities.isel(layer=0)).tolist() != np.asarray(lens.probabilities)[-1].tolist()


def test_surprise_is_the_nats_of_each_token_after_those_before(look):
    logprobs = np.log(softmax(np.asarray(look.logits)))
    surprise = np.asarray(look.surprise)
    assert np.isnan(surprise[0])
    assert len(surprise) == len(look.pieces)
    wanted = [-row[came] for row, came in zip(logprobs, look.ids[1:], strict=False)]
    np.testing.assert_allclose(surprise[1:], wanted, **CLOSE)


# --- parts that are switched off -----------------------------------------------------------------------------------


def test_what_is_silent_adds_nothing_and_the_rest_is_looked_at():
    model = SHAPES["learned places"]()
    whole = np.asarray(model.inspect(TEXT).added())
    with silenced(model.model, ["0", "1.attention", "2.3"]):
        look = model.inspect(TEXT)
        added = np.asarray(look.added())
        assert (added[0] == 0).all()
        assert (added[1, 0] == 0).all()
        assert (added[1:, 1] > 0).all()
        stream = np.asarray(look.stream())
        np.testing.assert_array_equal(stream[0], stream[1])
        assert look.weights(layer=2).sizes["head"] == HEADS
    assert (whole > 0).all()


@pytest.mark.parametrize(
    "ask",
    [
        lambda look: look.weights(),
        lambda look: look.head(1, 0),
        lambda look: look.rollout(),
        lambda look: look.neurons(),
    ],
)
def test_of_what_is_silent_there_are_no_weights_and_that_is_one_line(ask):
    model = SHAPES["learned places"]()
    with silenced(model.model, "1"):
        look = model.inspect(TEXT)
        with pytest.raises(UsageError, match="was not computed, since it is switched off") as caught:
            ask(look)
    assert "\n" not in str(caught.value)


# --- neurons ----------------------------------------------------------------------------------------------------------


def test_the_strongest_neurons_are_those_whose_activations_are_furthest_from_zero():
    look = SHAPES["inside, groups, turned"]().inspect(TEXT)
    found = look.neurons(top=4)
    for layer in range(DEPTH):
        with record(look.model, f"stack.blocks.{layer}.feed_forward.inner.hidden") as seen, torch.no_grad():
            look.model(torch.tensor([look.ids]))
        [hidden] = (value[0].numpy() for value in seen.values())
        order = np.argsort(-np.abs(hidden), axis=-1)[:, :4]
        np.testing.assert_array_equal(found.indices.isel(layer=layer), order)
        np.testing.assert_allclose(found.activations.isel(layer=layer), np.take_along_axis(hidden, order, -1), **CLOSE)


def test_a_neuron_promotes_what_its_column_points_at():
    look = looks.speaker().inspect(TEXT)
    column = look.model.stack.blocks[1].feed_forward.inner.down.weight[:, 7].detach().numpy()
    scores = look.model.embed.token.weight.detach().numpy() @ column
    found = look.neurons().promotes(1, 7, top=3)
    assert [token for token, _, _ in found] == np.argsort(-scores)[:3].tolist()
    np.testing.assert_allclose([score for _, _, score in found], np.sort(scores)[:-4:-1], **CLOSE)
    assert [text for _, text, _ in found] == [look.token_text(token) for token, _, _ in found]


def test_what_a_neuron_promotes_is_without_the_bias_of_the_head():
    look = looks.causal(looks.LEARNED, head=specs.LinearHead(bias=True)).inspect(TEXT)
    column = look.model.stack.blocks[2].feed_forward.inner.down.weight[:, 3].detach().numpy()
    scores = look.model.head.weight.detach().numpy() @ column
    found = look.neurons().promotes(2, 3, top=2)
    np.testing.assert_allclose([score for *_, score in found], np.sort(scores)[:-3:-1], **CLOSE)


def test_neurons_of_packed_and_tuned_models_are_those_of_what_they_compute():
    model = looks.speaker()
    add_lora(model.model, Lora(rank=2, targets=("down",)))
    looks.shaken(model.model, seed=3)
    layer = model.model.stack.blocks[0].feed_forward.inner.down
    column = (layer.base.weight + layer.adapter.delta())[:, 5].detach().numpy()
    scores = model.model.embed.token.weight.detach().numpy() @ column
    assert model.inspect(TEXT).neurons().promotes(0, 5, 1)[0][0] == int(scores.argmax())
    packed = looks.speaker()
    packed.model.float()
    quantize(packed.model, Int8())
    layer = packed.model.stack.blocks[0].feed_forward.inner.down
    scores = packed.model.embed.token.weight.detach() @ layer.dequantized()[:, 5]
    assert packed.inspect(TEXT).neurons().promotes(0, 5, 1)[0][0] == int(scores.argmax())
    assert packed.inspect(TEXT).weights().sizes["layer"] == DEPTH


def test_experts_have_no_neurons_in_common_and_say_so():
    look = SHAPES["experts"]().inspect(TEXT)
    with pytest.raises(UsageError, match="experts"):
        look.neurons()
    assert look.weights().sizes["head"] == HEADS


# --- nothing before it is asked for -----------------------------------------------------------------------------------


def test_a_question_is_a_forward_pass_and_the_same_question_none():
    model, calls = looks.speaker(), []
    forward = model.model.features
    model.model.features = lambda *args, **named: calls.append(1) or forward(*args, **named)
    look = model.inspect(TEXT)
    assert look.pieces
    assert calls == []
    look.weights(layer=0, head=0)
    look.weights(layer=0, head=0)
    assert len(calls) == 1
    look.lens()
    look.stream()
    look.lens()
    assert len(calls) == 2


def test_a_model_in_training_is_looked_at_without_dropout_and_goes_on_training():
    tokenizer = looks.tokens()
    stack = looks.stack(dropout=0.5, attention=specs.Attention(heads=HEADS, dropout=0.5))
    spec = specs.Transformer(
        context=48, embed=specs.TokenEmbedding(vocab=tokenizer.vocab_size, dropout=0.5), stack=stack
    )
    model = looks.loaded(spec, tokenizer)
    model.model.train()
    first, second = (np.asarray(model.inspect(TEXT).weights()) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert model.model.training


# --- pieces -----------------------------------------------------------------------------------------------------------


def test_pieces_are_the_tokens_with_the_merges_that_made_them():
    look = looks.speaker().inspect("lowest <script>\x00é")
    tokenizer = look.pretrained.tokenizer
    assert [piece.id for piece in look.pieces] == tokenizer.encode("lowest <script>\x00é")
    for piece in look.pieces:
        assert piece.merges[-1] == [piece.text]
        assert all("".join(step) == piece.text for step in piece.merges)
        assert len(piece.merges[0]) == len(tokenizer.bytes_of(piece.id))
        assert [len(step) for step in piece.merges] == sorted({len(step) for step in piece.merges}, reverse=True)
    assert max(len(piece.merges) for piece in look.pieces) > 2


def test_kinds_of_tokens_without_merges_have_none():
    tokenizer = looks.tokens("char")
    spec = specs.Transformer(context=48, embed=specs.TokenEmbedding(vocab=tokenizer.vocab_size), stack=looks.stack())
    look = looks.loaded(spec, tokenizer).inspect("low")
    assert [(piece.text, piece.merges) for piece in look.pieces] == [(letter, []) for letter in "low"]


def test_token_ids_may_be_given_for_a_text():
    model = looks.speaker()
    ids = model.tokenizer.encode(TEXT)
    np.testing.assert_array_equal(model.inspect(ids).logits, model.inspect(TEXT).logits)


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("", "the text is empty"),
        ([], "the text is empty"),
        (b"\x89PNG", "reads text, not pictures"),
        (3, "reads text, not pictures"),
        (["a", "b"], "as whole numbers"),
        ([True], "as whole numbers"),
    ],
)
def test_what_is_no_text_is_an_error_in_one_line(what, said):
    with pytest.raises(UsageError, match=said) as caught:
        looks.speaker().inspect(what)
    assert "\n" not in str(caught.value)


def test_a_text_longer_than_the_context_says_both_numbers():
    model = looks.speaker()
    with pytest.raises(NextileError, match="the text has 49 tokens and the model reads 48: shorten it"):
        model.inspect([5] * 49)
    assert len(model.inspect([5] * 48).pieces) == 48
    with pytest.raises(NextileError, match="an id outside"):
        model.inspect([model.tokenizer.vocab_size])


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda look: look.weights(layer=3), "layer 3 is not there: there are 3, from 0 to 2"),
        (lambda look: look.weights(head=4), "head 4 is not there: there are 4, from 0 to 3"),
        (lambda look: look.head(0, -5), "head -5 is not there: there are 4, from 0 to 3"),
        (lambda look: look.weights("cross"), "there is no attention 'cross' in this model: ask for 'self'"),
        (lambda look: look.lens(top=0), "top is 0: ask for at least 1"),
        (lambda look: look.neurons(top=0), "top is 0: ask for at least 1"),
        (lambda look: look.neurons().promotes(9, 0), "layer 9 is not there: there are 3, from 0 to 2"),
        (lambda look: look.neurons().promotes(0, 500), "neuron 500 is not there: there are 128, from 0 to 127"),
        (lambda look: look.next(position=99), "position 99 is not there: there are 7, from 0 to 6"),
        (lambda look: look.next(top=-1), "top is -1: ask for at least 1"),
        (lambda look: look.next(temperature=-1.0), "temperature"),
        (lambda look: look.beam(max_tokens=0), "max_tokens is 0: ask for at least 1"),
        (lambda look: look.steps(max_tokens=0), "max_tokens is 0: ask for at least 1"),
        (lambda look: look.attended(0), "reads text, not pictures"),
        (lambda look: look.classes, "is no classifier"),
    ],
)
def test_what_is_not_there_is_an_error_in_one_line(ask, said):
    look = looks.speaker().inspect(TEXT)
    with pytest.raises(UsageError) as caught:
        ask(look)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_target_beside_what_is_no_pair_is_an_error():
    with pytest.raises(UsageError, match="reads no pairs: leave out the target"):
        looks.speaker().inspect(TEXT, "low")
