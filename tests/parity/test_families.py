"""Logits, greedy tokens and folders against transformers, with random weights."""

import pytest
import torch
import transformers

from nextile.checkpoint import convert
from nextile.models.build import build
from nextile.models.families import gpt2, qwen3

CONFIGS = {
    "gpt2": (
        gpt2,
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(
            n_layer=3, n_embd=48, n_head=4, vocab_size=97, n_positions=128, bos_token_id=0, eos_token_id=0
        ),
    ),
    "qwen3": (
        qwen3,
        transformers.Qwen3ForCausalLM,
        transformers.Qwen3Config(
            num_hidden_layers=3,
            hidden_size=48,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=96,
            vocab_size=97,
            max_position_embeddings=128,
            tie_word_embeddings=True,
        ),
    ),
    "qwen3 untied, biased": (
        qwen3,
        transformers.Qwen3ForCausalLM,
        transformers.Qwen3Config(
            num_hidden_layers=2,
            hidden_size=32,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=8,
            intermediate_size=64,
            vocab_size=97,
            max_position_embeddings=128,
            tie_word_embeddings=False,
            attention_bias=True,
        ),
    ),
}


@pytest.fixture(params=CONFIGS)
def pair(request):
    """(our family, our model, theirs) with the same random numbers, float32."""
    family, kind, config = CONFIGS[request.param]
    torch.manual_seed(0)
    theirs = kind(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.3 if parameter.dim() == 1 else 0.15)
    spec = family.from_config(config.to_dict())
    tied = config.tie_word_embeddings
    state = {name: value for name, value in theirs.state_dict().items() if not (tied and name == "lm_head.weight")}
    ours = build(spec)
    ours.load_state_dict(convert.read(family.key_map(spec), state))
    return family, ours.eval(), theirs


def ids(rows=2, length=40):
    return torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(1))


def difference(a, b):
    return (a - b).abs().max().item()


@torch.no_grad()
def test_logits_are_those_of_transformers(pair):
    _, ours, theirs = pair
    assert difference(ours(ids()), theirs(ids()).logits) <= 1e-5


@torch.no_grad()
def test_logits_in_double_precision(pair):
    _, ours, theirs = pair
    limit = 1e-9 if "GPT2" in type(theirs).__name__ else 1e-5  # Qwen3 casts its norms and angles to float32
    assert difference(ours.double()(ids()), theirs.double()(ids()).logits) <= limit


@torch.no_grad()
def test_a_padded_batch(pair):
    _, ours, theirs = pair
    keep = torch.ones(2, 40, dtype=torch.bool)
    keep[1, 25:] = False
    a, b = ours(ids(), segments=keep), theirs(ids(), attention_mask=keep.long()).logits
    assert difference(a[keep], b[keep]) <= 1e-5


@torch.no_grad()
def test_sixty_four_greedy_tokens(pair):
    _, ours, theirs = pair
    prompt = ids(1, 8)
    want = theirs.generate(
        prompt,
        max_new_tokens=64,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        attention_mask=torch.ones_like(prompt),
    )
    cache, got = ours.new_cache(1, 72), prompt
    step = prompt
    for _ in range(64):
        logits = ours(step, cache=cache)
        cache.advance(step.shape[1])
        step = logits[:, -1:].argmax(-1)
        got = torch.cat((got, step), 1)
    assert got.tolist() == want.tolist()


@torch.no_grad()
def test_control_one_wrong_number_is_seen(pair):
    _, ours, theirs = pair
    next(p for name, p in ours.named_parameters() if name.endswith("1.self_attention.inner.out.weight"))[0, 0] += 0.1
    assert difference(ours(ids()), theirs(ids()).logits) > 1e-5


def test_weights_go_there_and_back_byte_for_byte(pair):
    family, ours, theirs = pair
    rules = family.key_map(ours.spec)
    there = convert.write(rules, dict(ours.state_dict()))
    tied = theirs.config.tie_word_embeddings
    assert set(there) == {name for name in theirs.state_dict() if not (tied and name == "lm_head.weight")}
    for name, value in there.items():
        assert torch.equal(value, theirs.state_dict()[name]), name
    back = convert.read(rules, there)
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in back.items())
