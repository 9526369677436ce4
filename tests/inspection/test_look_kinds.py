"""Looking at translators, denoisers, masked models, classifiers, painters and words: each kind has what it has."""

import numpy as np
import pytest
import torch
import transformers
from tests.inspection import looks
from tests.inspection.looks import CLASSES, DEPTH, HEADS, TEXT, picture, softmax

from nextile.api import Model
from nextile.base.errors import NextileError, UsageError
from nextile.inspection import look_pairs
from nextile.models.build import build
from nextile.models.families import imagegpt, marian, t5
from nextile.nn import specs
from nextile.text.lexicon import train_lexicon
from nextile.text.masks import MASK, sentinels_of

CLOSE = {"rtol": 0, "atol": 1e-9}


# --- writing ----------------------------------------------------------------------------------------------------------


def test_steps_at_temperature_zero_are_what_generate_writes():
    model = looks.speaker()
    steps = model.inspect(TEXT).steps(max_tokens=9)
    written = model.generate(TEXT, max_tokens=9, temperature=0.0, logprobs=5, details=True)
    assert [step.id for step in steps if step.id != model.tokenizer.end_id] == written.tokens
    for step, told in zip(steps, written.logprobs, strict=True):
        assert step.logprob == pytest.approx(told["logprob"], abs=1e-9)
        assert [token for token, _, _ in step.alternatives] == [each["id"] for each in told["top"]]
        assert step.text == model.inspect(TEXT).token_text(step.id)


def test_steps_that_are_drawn_are_those_of_the_seed():
    model = looks.speaker()
    steps = model.inspect(TEXT).steps(max_tokens=9, temperature=1.3, seed=4)
    assert [step.id for step in steps] == model.generate(
        TEXT, max_tokens=9, temperature=1.3, seed=4, details=True
    ).tokens
    assert steps != model.inspect(TEXT).steps(max_tokens=9, temperature=1.3, seed=5)


def test_the_entropy_of_a_step_is_that_of_the_whole_distribution():
    look = looks.speaker().inspect(TEXT)
    shares = softmax(np.asarray(look.logits)[-1])
    assert look.steps(max_tokens=1)[0].entropy == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-5)


def test_the_beam_is_that_of_generate_and_its_paths_add_up():
    model = looks.speaker()
    look = model.inspect(TEXT)
    tree = look.beam(width=3, max_tokens=5)
    found = model.generate(TEXT, beams=3, n=3, max_tokens=5, details=True)
    assert [(text.ids, text.text) for text in tree.texts] == [(each.tokens, each.text) for each in found]
    np.testing.assert_allclose([text.score for text in tree.texts], [each.score for each in found])
    nodes = {node.id: node for nodes in tree.rounds for node in nodes}
    logprobs = np.log(softmax(np.asarray(look.logits)[-1]))
    assert all(node.logprob == pytest.approx(logprobs[node.token], abs=1e-6) for node in tree.rounds[0])
    for nodes_of_round in tree.rounds[1:]:
        for node in nodes_of_round:
            assert node.logprob <= nodes[node.parent].logprob
            assert nodes[node.parent].kept
    assert len(tree.rounds) <= 5
    assert any(not node.kept for node in nodes.values())


def test_a_text_that_fills_the_context_has_the_beam_that_generate_has():
    model = looks.speaker()
    ids = (model.tokenizer.encode(TEXT) * 9)[:48]
    text = model.tokenizer.decode(ids)
    assert len(model.tokenizer.encode(text)) == 48
    tree = model.inspect(text).beam(width=2, max_tokens=4)
    assert tree.texts[0].ids == model.generate(text, beams=2, max_tokens=4, details=True).tokens


@pytest.mark.parametrize(
    "filters",
    [{}, {"top_k": 7}, {"top_p": 0.6}, {"min_p": 0.2}, {"temperature": 2.0, "top_k": 20, "top_p": 0.9, "min_p": 0.01}],
)
def test_next_is_what_the_filters_of_transformers_leave(filters):
    look = looks.speaker().inspect(TEXT)
    logits = torch.from_numpy(np.asarray(look.logits).copy())[-2][None]
    processors = transformers.LogitsProcessorList(
        [transformers.TemperatureLogitsWarper(filters.get("temperature", 1.0))]
        + [transformers.TopKLogitsWarper(k) for k in [filters.get("top_k")] if k]
        + [transformers.TopPLogitsWarper(p) for p in [filters.get("top_p")] if p]
        + [transformers.MinPLogitsWarper(p) for p in [filters.get("min_p")] if p]
    )
    shares = processors(torch.zeros(1, 1, dtype=torch.long), logits)[0].softmax(-1)
    found = look.next(**filters, position=-2, top=None)
    assert len(found) == int((shares > 0).sum())
    for token, text, share in found:
        assert share == pytest.approx(float(shares[token]), abs=1e-9)
        assert text == look.token_text(token)
    assert [share for *_, share in found] == sorted((share for *_, share in found), reverse=True)
    assert sum(share for *_, share in found) == pytest.approx(1)
    assert look.next(**filters, position=-2, top=2) == found[:2]


def test_next_at_temperature_zero_is_the_likeliest_alone():
    look = looks.speaker().inspect(TEXT)
    [(token, _, share)] = look.next(temperature=0.0)
    assert (token, share) == (int(np.asarray(look.logits)[-1].argmax()), 1.0)


# --- pairs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[marian, t5])
def translator(request):
    return looks.translator(request.param)


def test_the_three_attentions_of_a_translator(translator):
    look = translator.inspect(TEXT, "the new")
    source, target = len(look.pieces), len(look.target_pieces)
    assert look.which == ("encoder", "self", "cross")
    assert source != target
    sizes = {which: tuple(look.weights(which).sizes.values())[2:] for which in look.which}
    assert sizes == {"encoder": (source, source), "self": (target, target), "cross": (target, source)}
    assert not np.asarray(look.head(0, 0, "cross").hidden).any()
    assert not np.asarray(look.head(0, 0, "encoder").hidden).any()
    np.testing.assert_array_equal(look.head(0, 0, "self").hidden, np.triu(np.ones((target, target), bool), 1))
    for which in look.which:
        head = look.head(1, 2, which)
        weights = softmax(np.where(head.hidden, -1e300, head.scores))
        np.testing.assert_allclose(head.weights, weights, **CLOSE)
        np.testing.assert_allclose(look.weights(which).isel(layer=1, head=2), weights, **CLOSE)
        assert (head.bias is None) is (which == "cross" or translator.spec.encoder.position is None)


def test_a_bias_tells_what_it_adds_from_what_it_hides():
    head = looks.translator(t5).inspect(TEXT, "the new and").head(0, 1)
    hidden, bias = np.asarray(head.hidden), np.asarray(head.bias)
    assert hidden.any()
    assert np.abs(bias).max() < 10
    scores = np.asarray(head.queries) @ np.asarray(head.keys).T * head.scale + bias
    np.testing.assert_allclose(head.scores, scores, **CLOSE)


def test_the_target_is_what_the_model_writes_itself_unless_it_is_given(translator):
    look = translator.inspect(TEXT, beams=3)
    best = translator.translate(TEXT, beams=3, details=True)
    assert look.ids == [translator.spec.start, *best.tokens]
    assert look.target_text == best.text
    assert np.asarray(look.lens().rank).shape == (DEPTH + 1, len(look.ids))
    given = translator.inspect(TEXT, "the new")
    assert given.ids[1:] == translator.tokenizer.encode("the new")
    row = np.asarray(given.logits)[-1]
    end = translator.tokenizer.end_id  # of a target that is given the end is known, of one that was cut it is not
    assert np.asarray(given.lens().rank)[-1, -1] == (row > row[end]).sum()
    cut = translator.inspect(TEXT, max_tokens=2)
    written = translator.translate(TEXT, beams=4, max_tokens=2, details=True)
    assert (cut.ids[1:], written.finish_reason) == (written.tokens, "length")
    assert np.asarray(cut.lens().rank)[-1, -1] == -1


def test_nothing_is_written_before_it_is_asked_for(translator, monkeypatch):
    calls = []
    monkeypatch.setattr(look_pairs, "beam_search", lambda **asked: calls.append(1))
    look = translator.inspect(TEXT)
    assert [(look.depth(which), look.heads(which)) for which in look.which] == [(DEPTH, HEADS)] * 3
    assert look.parts() == ("self_attention", "cross_attention", "feed_forward")
    assert len(look.pieces) < look.most_ids <= 48
    assert calls == []
    assert translator.inspect(TEXT, "the new").most_ids == len(translator.inspect(TEXT, "the new").target_pieces)


def test_steps_and_beams_of_a_translator_are_those_of_translate(translator):
    look = translator.inspect(TEXT, "the new")
    greedy = translator.translate(TEXT, beams=1, max_tokens=7, details=True)
    written = [step.id for step in look.steps(max_tokens=7)]
    assert [token for token in written if token != translator.tokenizer.end_id] == greedy.tokens
    tree = look.beam(width=3, max_tokens=7)
    found = translator.translate(TEXT, beams=3, n=3, max_tokens=7, details=True)
    assert [text.ids for text in tree.texts] == [each.tokens for each in found]


def test_of_a_translator_the_stream_and_the_lens_are_the_decoders(translator):
    look = translator.inspect(TEXT, "the new")
    with torch.no_grad():
        logits = translator.model(torch.tensor([look.source_ids]), torch.tensor([look.ids]))[0]
    np.testing.assert_allclose(look.logits, logits, **CLOSE)
    shares = softmax(logits.numpy())
    np.testing.assert_allclose(np.asarray(look.lens(top=1).probabilities)[-1, :, 0], shares.max(-1), **CLOSE)
    nats = [-np.log(row[came]) for row, came in zip(shares, look.ids[1:], strict=False)]
    np.testing.assert_allclose(np.asarray(look.surprise)[1:], nats, **CLOSE)
    assert look.stream("encoder").sizes["position"] == len(look.pieces)
    assert look.added("self").sizes["part"] == 3
    assert look.added("encoder").sizes["part"] == 2
    assert look.parts() == ("self_attention", "cross_attention", "feed_forward")
    with pytest.raises(UsageError, match="an encoder says nothing"):
        look.lens(which="encoder")
    with pytest.raises(UsageError, match="ask for 'self' or 'encoder'"):
        look.rollout("cross")
    assert look.neurons(which="encoder").indices.sizes["position"] == len(look.pieces)


def test_source_and_target_have_embeddings_of_their_own(translator):
    look = translator.inspect(TEXT, "the new")
    assert look.embedding("encoder").sum.sizes["position"] == len(look.pieces)
    assert look.embedding("self").sum.sizes["position"] == len(look.target_pieces)
    np.testing.assert_array_equal(look.token_vectors, look.embedding("encoder").tokens)


@pytest.mark.parametrize("target", ["", [], [999], [5] * 48])
def test_a_target_that_cannot_be_is_an_error_in_one_line(target):
    with pytest.raises(NextileError) as caught:
        looks.translator().inspect(TEXT, target)
    assert "\n" not in str(caught.value)


# --- gaps -------------------------------------------------------------------------------------------------------------


def test_a_denoiser_writes_what_was_cut_out():
    model = looks.denoiser()
    look = model.inspect(f"the {MASK} bottles {MASK}", beams=3, max_tokens=6)
    assert set(sentinels_of(model.tokenizer)[:2]) <= set(look.source_ids)
    best = model.generate(f"the {MASK} bottles {MASK}", beams=3, max_tokens=6, details=True)
    assert look.ids[1:] == best.tokens
    greedy = model.generate(f"the {MASK} bottles {MASK}", beams=1, max_tokens=6, details=True)
    ends = {model.tokenizer.end_id, sentinels_of(model.tokenizer)[2]}
    assert [step.id for step in look.steps(max_tokens=6) if step.id not in ends] == greedy.tokens
    assert look.kind == "denoise"
    with pytest.raises(UsageError, match="leave it out"):
        model.inspect(f"the {MASK} bottles", "new")


def test_a_masked_model_is_asked_at_its_first_mask():
    model = looks.masked()
    look = model.inspect(f"the {MASK} bottles")
    place = look.ids.index(model.tokenizer.mask_id)
    assert [token for token, *_ in look.next(temperature=0.0)] == [
        token for token, *_ in look.next(position=place, top=1)
    ]
    filled = model.generate(f"the {MASK} bottles", details=True)
    assert look.next(temperature=0.0)[0][0] == filled.tokens[0]
    ordinary = [token for token, *_ in look.next(top=None)]
    assert not set(ordinary) & model.tokenizer.special_ids
    rank = np.asarray(look.lens().rank)[-1]
    assert rank[place] == -1
    assert (np.delete(rank, place) >= 0).all()
    assert not np.asarray(look.head(0, 0).hidden).any()


@pytest.mark.parametrize("ask", ["steps", "beam"])
def test_what_does_not_write_says_so(ask):
    for look in (
        looks.masked().inspect(TEXT), looks.labeller().inspect(TEXT), looks.classifier().inspect(picture()),
        looks.painter().inspect(picture(6)),
    ):  # fmt: skip
        with pytest.raises(UsageError) as caught:
            getattr(look, ask)()
        assert "\n" not in str(caught.value)


# --- classes ----------------------------------------------------------------------------------------------------------


HEADS_OF_PICTURES = [specs.SummaryHead, specs.MeanHead, specs.WeightedHead, specs.DistilledHead]


@pytest.mark.parametrize("kind", HEADS_OF_PICTURES)
def test_a_classifier_of_pictures_has_classes_and_looks_at_places(kind):
    model = looks.classifier(kind(classes=CLASSES))
    look = model.inspect(picture())
    assert look.classes == [(name, pytest.approx(share, abs=1e-6)) for name, share in model.classify(picture())]
    shares = softmax(np.asarray(look.logits))
    lens = look.lens()
    assert lens.ids.sizes == {"layer": DEPTH + 1, "position": 1, "rank": 3}
    np.testing.assert_allclose(np.asarray(lens.probabilities)[-1, 0], np.sort(shares)[::-1], **CLOSE)
    assert look.summaries == model.spec.summaries
    assert look.grid == (4, 4)
    assert len(look.pieces) == look.weights().sizes["query"] == 16 + look.summaries
    assert look.pieces[look.summaries + 5].text == "row 2, column 2"
    found = look.attended(3, layer=1, head=2)
    np.testing.assert_array_equal(found.reshape(-1), np.asarray(look.weights(layer=1, head=2))[3, look.summaries :])
    np.testing.assert_allclose(
        look.attended(0), np.asarray(look.weights()).mean((0, 1))[0, look.summaries :].reshape(4, 4), **CLOSE
    )
    assert look.picture.dtype == np.uint8
    assert look.picture.shape == (8, 8, 3)
    assert {name for _, name, _ in look.neurons().promotes(0, 1, 3)} == set(CLASSES)


TEXT_HEADS = [(specs.PooledHead, False), (specs.MeanHead, False), (specs.SummaryHead, False), (specs.LastHead, True)]


@pytest.mark.parametrize(("kind", "is_causal"), TEXT_HEADS)
def test_a_classifier_of_texts_has_classes(kind, is_causal):
    model = looks.labeller(kind(classes=CLASSES), is_causal)
    look = model.inspect(TEXT)
    assert look.classes == [(name, pytest.approx(share, abs=1e-6)) for name, share in model.classify(TEXT)]
    assert look.ids[-1] == model.tokenizer.end_id
    shares = softmax(np.asarray(look.logits))
    np.testing.assert_allclose(np.asarray(look.lens().probabilities)[-1, 0], np.sort(shares)[::-1], **CLOSE)
    assert look.kind == "classify-text"
    assert look.weights().sizes["head"] == HEADS


# --- pixels -----------------------------------------------------------------------------------------------------------


def test_a_painter_predicts_pixels_from_those_before():
    model = looks.painter()
    look = model.inspect(picture(6))
    ids = model.images.inputs(look.picture[None])[0]
    assert ids.tolist() == look.pixels
    assert look.picture.shape == (6, 6, 3)
    with torch.no_grad():
        logits = model.model(torch.cat((torch.tensor([8]), ids[:-1]))[None])[0]
    np.testing.assert_allclose(look.logits, logits, **CLOSE)
    assert (look.summaries, look.grid, len(look.pieces)) == (1, (6, 6), 36)
    assert [piece.text for piece in look.pieces[:2]] == ["start", "row 1, column 1"]
    rank = [int((row > row[pixel]).sum()) for row, pixel in zip(logits, ids, strict=True)]
    assert np.asarray(look.lens().rank)[-1].tolist() == rank
    nats = -logits.log_softmax(-1)[torch.arange(35), ids[:-1]]
    np.testing.assert_allclose(np.asarray(look.surprise)[1:], nats, **CLOSE)
    seen = look.attended(4, layer=0, head=0)
    assert seen.shape == (6, 6)
    assert (seen.reshape(-1)[4:] == 0).all()
    assert (seen.reshape(-1)[:4] > 0).all()
    assert {text for _, text, _ in look.next()} <= {"#" + "".join(x) for x in np.array(
        np.meshgrid(*[["00", "ff"]] * 3)).T.reshape(-1, 3).tolist()}  # fmt: skip


@pytest.mark.parametrize("what", ["", 3, [1, 2], None])
def test_what_is_no_picture_is_an_error(what):
    with pytest.raises(UsageError, match="reads pictures"):
        looks.classifier().inspect(what)


def test_a_text_where_a_picture_is_read_is_an_error():
    for model in (looks.classifier(), looks.painter()):
        with pytest.raises(NextileError) as caught:
            model.inspect("It was a dark night")
        assert "\n" not in str(caught.value)
        with pytest.raises(UsageError, match="it has no words"):
            model.inspect(picture(6)).neighbours()


# --- words ------------------------------------------------------------------------------------------------------------


def words():
    tokenizer = train_lexicon(["the cat and the dog and the bottle on the wall"], 1)
    spec = specs.CBOW(vocab=tokenizer.vocab_size, width=8)
    return Model(looks.shaken(build(spec)).float(), tokenizer, spec, "nextile")


def test_words_have_neighbours_and_no_layers():
    model = words()
    look = model.inspect("cat Dog")
    assert [piece.text for piece in look.pieces] == ["cat", "dog"]
    vectors = model.model.words_in.weight.detach().numpy()
    ids = [model.tokenizer.encode(word)[0] for word in ("cat", "dog")]
    np.testing.assert_array_equal(look.token_vectors, vectors[ids])
    [(first, found), _] = look.neighbours(n=2)
    best = model.tokenizer.encode(found[0][0])[0]
    cosine = vectors[ids[0]] @ vectors[best] / np.linalg.norm(vectors[ids[0]]) / np.linalg.norm(vectors[best])
    assert first == "cat"
    assert found[0][1] == pytest.approx(float(cosine), abs=1e-6)
    assert len(found) == 2
    with pytest.raises(UsageError, match="has no layers"):
        look.weights()
    with pytest.raises(UsageError, match="predicts no text"):
        look.next()
    with pytest.raises(NextileError, match="'cats' is not among the"):
        model.inspect("cats")


def test_pieces_of_a_text_have_neighbours_too():
    look = looks.speaker().inspect(TEXT)
    found = look.neighbours(n=3)
    assert [text for text, _ in found] == [piece.text for piece in look.pieces]
    assert all(len(near) == 3 for text, near in found if text.strip())


def test_a_classifier_made_of_a_painter_looks_at_pixels():
    base = looks.painter()
    spec = imagegpt.classifier(base.spec, CLASSES)
    look = looks.loaded(spec, base.images).inspect(picture(6))
    assert (look.kind, look.grid, look.summaries, len(look.pieces)) == ("classify", (6, 6), 0, 36)
    np.testing.assert_array_equal(look.picture, base.inspect(picture(6)).picture)
    assert look.weights().sizes["key"] == 36
    assert look.embedding().positions is not None
    assert sum(share for _, share in look.classes) == pytest.approx(1)


def test_a_model_in_bfloat16_is_looked_at_in_float32():
    model = looks.speaker()
    model.model.bfloat16()
    look = model.inspect(TEXT)
    head = look.head(1, 1)
    assert head.scores.values.dtype == head.queries.values.dtype == np.float32
    weights = softmax(np.where(head.hidden, -1e30, head.scores))
    np.testing.assert_allclose(head.weights, weights, rtol=0, atol=5e-3)
    assert look.lens().probabilities.values.dtype == np.float32
    assert look.steps(max_tokens=2)
