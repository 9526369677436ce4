"""Sampling and decoding against transformers: the same tokens are cut, the same are chosen."""

import pytest
import torch
import transformers
from transformers.generation import logits_process as theirs

from nextile.checkpoint import convert
from nextile.generation import sample
from nextile.generation.decode import decode
from nextile.generation.sample import Sampling
from nextile.models.build import build
from nextile.models.families import gpt2, qwen3

GREEDY = Sampling(temperature=0.0)


def rows(kind: str):
    """Logits (4, V): smooth ones, ones with many ties, all equal, and a vocabulary beyond the quick search of top-p."""
    generator = torch.Generator().manual_seed(0)
    if kind == "ties":
        return torch.randint(-3, 4, (4, 60), generator=generator).float()
    if kind == "equal":
        return torch.zeros(4, 64)
    return torch.randn(4, 20_000 if kind == "wide" else 60, generator=generator) * 3


CUTS = {
    "top_k": (sample.top_k, theirs.TopKLogitsWarper, [1, 2, 7, 60, 1000]),
    "top_p": (sample.top_p, theirs.TopPLogitsWarper, [1e-6, 0.1, 0.5, 0.75, 0.9, 0.99]),
    "min_p": (sample.min_p, theirs.MinPLogitsWarper, [0.0, 0.01, 0.1, 0.5, 1.0]),
}


@pytest.mark.parametrize("kind", ["smooth", "ties", "equal", "wide"])
@pytest.mark.parametrize("cut", CUTS)
def test_the_same_tokens_are_cut(cut, kind):
    ours, warper, values = CUTS[cut]
    for value in values:
        got, want = ours(rows(kind), value), warper(value)(None, rows(kind))
        if cut == "top_p" and kind in ("ties", "equal"):  # their sort leaves open which of equal ones go, not how many
            got, want = got.sort(-1).values, want.sort(-1).values
        assert torch.equal(got, want), value


def test_control_a_slightly_other_value_cuts_others():
    assert not torch.equal(sample.top_p(rows("smooth"), 0.9), theirs.TopPLogitsWarper(0.93)(None, rows("smooth")))
    assert not torch.equal(sample.min_p(rows("smooth"), 0.1), theirs.MinPLogitsWarper(0.12)(None, rows("smooth")))
    assert not torch.equal(sample.top_k(rows("smooth"), 7), theirs.TopKLogitsWarper(8)(None, rows("smooth")))


@pytest.mark.parametrize("degree", [1e-3, 0.7, 1.0, 2.5])
def test_the_same_distribution_after_temperature(degree):
    want = theirs.TemperatureLogitsWarper(degree)(None, rows("smooth")).log_softmax(-1)
    torch.testing.assert_close(sample.temperature(rows("smooth"), degree).log_softmax(-1), want, rtol=1e-4, atol=1e-5)


def test_the_same_penalty():
    ids = torch.tensor([[1, 2, 2], [0, 59, 5], [3, 3, 3], [7, 8, 9]])
    seen = torch.zeros(4, 60, dtype=torch.bool).scatter(1, ids, True)
    want = theirs.RepetitionPenaltyLogitsProcessor(1.3)(ids, rows("smooth"))
    assert torch.equal(sample.repetition_penalty(rows("smooth"), seen, 1.3), want)
    assert not torch.equal(sample.repetition_penalty(rows("smooth"), ~seen, 1.3), want)


def test_all_of_them_in_their_order():
    sampling = Sampling(temperature=0.8, top_k=30, top_p=0.9, min_p=0.05)
    config = transformers.GenerationConfig(
        do_sample=True, **sampling.model_dump(include=set(sampling.model_fields_set))
    )
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=4, n_head=1, vocab_size=60))
    processors = model._get_logits_processor(config, input_ids_seq_length=1)
    want = processors(torch.zeros(4, 1, dtype=torch.long), rows("smooth")).softmax(-1)
    assert len(processors) == 4
    torch.testing.assert_close(sample.warp(rows("smooth"), sampling).softmax(-1), want)
    other = Sampling(temperature=0.8, top_k=30, top_p=0.8, min_p=0.05)
    assert not torch.allclose(sample.warp(rows("smooth"), other).softmax(-1), want)


# --- whole texts --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["gpt2", "qwen3"])
def pair(request):
    """(ours, theirs) with the same lively random numbers."""
    if request.param == "gpt2":
        family, kind = gpt2, transformers.GPT2LMHeadModel
        config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=97, n_positions=128)
    else:
        family, kind = qwen3, transformers.Qwen3ForCausalLM
        config = transformers.Qwen3Config(
            num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            intermediate_size=64, vocab_size=97, max_position_embeddings=128, tie_word_embeddings=True,
        )  # fmt: skip
    spec = family.from_config(config.to_dict())
    ours, other = build(spec).eval(), kind(config).eval()
    with torch.no_grad():
        for number, parameter in enumerate(ours.parameters()):
            parameter.normal_(0, 0.25, generator=torch.Generator().manual_seed(number))
    other.load_state_dict(convert.write(family.key_map(spec), dict(ours.state_dict())), strict=False)
    other.tie_weights()
    return ours, other


def generated(model, prompt, **options):
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": 64, "eos_token_id": None, "pad_token_id": 0} | options
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()


def decoded(model, prompt, sampling=GREEDY, **options):
    return [event.token for event in decode(model, [prompt], sampling, max_tokens=64, compiled=False, **options)]


PROMPT = [3, 14, 15, 92, 65, 35]


def test_sixty_four_greedy_tokens(pair):
    ours, other = pair
    assert decoded(ours, PROMPT) == generated(other, PROMPT)
    assert decoded(ours, PROMPT) != generated(other, PROMPT[1:])


def test_the_end_token_ends_where_it_ends_theirs(pair):
    ours, other = pair
    text = decoded(ours, PROMPT)
    end = text[20]
    got = decoded(ours, PROMPT, end_ids={end})
    assert got == generated(other, PROMPT, eos_token_id=end) == text[: text.index(end) + 1]
    assert len(got) < 64


def test_greedy_with_a_penalty(pair):
    ours, other = pair
    got = decoded(ours, PROMPT, Sampling(temperature=0.0, repetition_penalty=1.5))
    assert got == generated(other, PROMPT, repetition_penalty=1.5)
    assert got != decoded(ours, PROMPT)
