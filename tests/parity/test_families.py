"""Logits, greedy tokens and folders against transformers, with random weights."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from nextile.checkpoint import convert
from nextile.checkpoint.store import load_model, save_model
from nextile.generation.decode import decode
from nextile.generation.sample import Sampling
from nextile.models import count
from nextile.models.build import build
from nextile.models.families import (
    gemma2,
    gemma3,
    gpt2,
    llama,
    mistral,
    mixtral,
    neox,
    olmo2,
    qwen2,
    qwen3,
    starcoder2,
)
from nextile.models.families.table import FAMILIES, family_of

SAME = {
    "vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96,
    "max_position_embeddings": 128,
}  # fmt: skip
GROUPED = SAME | {"num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
YARN = {
    "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 4.0
}  # fmt: skip
DEEP = YARN | {"mscale": 1.0, "mscale_all_dim": 0.4, "truncate": False}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 3.0}
LONG = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 48,
    "short_factor": [1.0 + i / 9 for i in range(6)], "long_factor": [1.0 + i for i in range(6)],
}  # fmt: skip
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

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
        transformers.Qwen3Config(**GROUPED, head_dim=16, tie_word_embeddings=True),
    ),
    "qwen3 untied, biased": (
        qwen3,
        transformers.Qwen3ForCausalLM,
        transformers.Qwen3Config(**SAME, num_key_value_heads=4, head_dim=8, attention_bias=True),
    ),
    "llama 2": (llama, transformers.LlamaForCausalLM, transformers.LlamaConfig(**SAME)),
    "llama 3, scaled turns, biases": (
        llama,
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(
            **GROUPED, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
        ),
    ),
    "llama, turns divided": (
        llama,
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(**GROUPED, rope_parameters=LINEAR, head_dim=16),
    ),
    "llama, turns by yarn": (
        llama,
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(**GROUPED, rope_parameters=YARN),
    ),
    "qwen3, turns by yarn with a gain in two parts": (
        qwen3,
        transformers.Qwen3ForCausalLM,
        transformers.Qwen3Config(**GROUPED, head_dim=16, rope_parameters=DEEP),
    ),
    "llama, turns that a long text slows down": (
        llama,
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(**GROUPED | {"max_position_embeddings": 48}, rope_parameters=DYNAMIC),
    ),
    "mistral, turns of two kinds": (
        mistral,
        transformers.MistralForCausalLM,
        transformers.MistralConfig(**GROUPED, sliding_window=None, rope_parameters=LONG),
    ),
    "mistral": (mistral, transformers.MistralForCausalLM, transformers.MistralConfig(**GROUPED, sliding_window=9)),
    "qwen2": (qwen2, transformers.Qwen2ForCausalLM, transformers.Qwen2Config(**GROUPED, tie_word_embeddings=True)),
    "qwen2, a window from the second layer on": (
        qwen2,
        transformers.Qwen2ForCausalLM,
        transformers.Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=9, max_window_layers=1),
    ),
    "gpt-neox, pythia": (
        neox,
        transformers.GPTNeoXForCausalLM,
        transformers.GPTNeoXConfig(**SAME | {"num_attention_heads": 3}, eos_token_id=0),
    ),
    "gpt-neox, one after the other": (
        neox,
        transformers.GPTNeoXForCausalLM,
        transformers.GPTNeoXConfig(
            **SAME,
            use_parallel_residual=False,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
            attention_bias=False,
            tie_word_embeddings=True,
        ),
    ),
    "starcoder2": (
        starcoder2,
        transformers.Starcoder2ForCausalLM,
        transformers.Starcoder2Config(**GROUPED, sliding_window=9, tie_word_embeddings=True),
    ),
    "starcoder2, without biases, untied": (
        starcoder2,
        transformers.Starcoder2ForCausalLM,
        transformers.Starcoder2Config(**GROUPED, use_bias=False, tie_word_embeddings=False),
    ),
    "olmo2": (olmo2, transformers.Olmo2ForCausalLM, transformers.Olmo2Config(**GROUPED, eos_token_id=0)),
    "gemma2": (
        gemma2,
        transformers.Gemma2ForCausalLM,
        transformers.Gemma2Config(
            **GROUPED,
            head_dim=16,
            sliding_window=9,
            query_pre_attn_scalar=20,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=4.0,
            attn_implementation="eager",
        ),
    ),
    "gemma3": (
        gemma3,
        transformers.Gemma3ForCausalLM,
        transformers.Gemma3TextConfig(
            **GROUPED,
            head_dim=16,
            sliding_window=9,
            query_pre_attn_scalar=16,
            layer_types=MIXED,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
    ),
    "mixtral": (
        mixtral,
        transformers.MixtralForCausalLM,
        transformers.MixtralConfig(
            **GROUPED, num_local_experts=4, num_experts_per_tok=2, experts_implementation="eager"
        ),
    ),
}
EXACT = (
    "gpt2",
    "gpt_neox",
)  # families whose reference computes in the precision that is asked for; others cast to float32


def random_model(kind, config):
    """A model of theirs in which every number counts, float32."""
    torch.manual_seed(0)
    theirs = kind(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.3 if parameter.dim() == 1 else 0.15)
    return theirs


def tensors_of(theirs, folder):
    """What they write of it: the names of a checkpoint, which need not be those of their memory."""
    theirs.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.fixture(params=CONFIGS)
def pair(request, tmp_path):
    """(our family, our model, theirs, what they write) with the same random numbers, float32."""
    family, kind, config = CONFIGS[request.param]
    theirs = random_model(kind, config)
    written = tensors_of(theirs, tmp_path / "theirs")
    spec = family.from_config(json.loads((tmp_path / "theirs" / "config.json").read_text()))
    ours = build(spec)
    ours.load_state_dict(convert.read(family.key_map(spec), written))
    return family, ours.eval(), theirs, written


def ids(rows=2, length=40):
    return torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(1))


def difference(a, b):
    return (a - b).abs().max().item()


@torch.no_grad()
def test_logits_are_those_of_transformers(pair):
    _, ours, theirs, _ = pair
    assert difference(ours(ids()), theirs(ids()).logits) <= 1e-5


@torch.no_grad()
def test_logits_in_double_precision(pair):
    family, ours, theirs, _ = pair
    limit = 1e-9 if family.MODEL_TYPE in EXACT else 1e-5  # the others cast their norms and angles to float32
    assert difference(ours.double()(ids()), theirs.double()(ids()).logits) <= limit


@torch.no_grad()
def test_a_padded_batch(pair):
    _, ours, theirs, _ = pair
    keep = torch.ones(2, 40, dtype=torch.bool)
    keep[1, 25:] = False
    a, b = ours(ids(), segments=keep), theirs(ids(), attention_mask=keep.long()).logits
    assert difference(a[keep], b[keep]) <= 1e-5


@torch.no_grad()
def test_sixty_four_greedy_tokens(pair):
    _, ours, theirs, _ = pair
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
    _, ours, theirs, _ = pair
    next(p for name, p in ours.named_parameters() if name.endswith("1.self_attention.inner.out.weight"))[0, 0] += 0.1
    assert difference(ours(ids()), theirs(ids()).logits) > 1e-5


def test_weights_go_there_and_back_byte_for_byte(pair):
    family, ours, _, written = pair
    rules = family.key_map(ours.spec)
    there = convert.write(rules, dict(ours.named_parameters()))
    assert there.keys() == written.keys()
    assert all(torch.equal(value, written[name]) for name, value in there.items())
    back = convert.read(rules, there)
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in back.items())


@torch.no_grad()
def test_what_is_read_is_written_so_that_they_read_it(pair, tmp_path):
    family, ours, theirs, _ = pair
    loaded, name = load_model(tmp_path / "theirs")
    assert (name, loaded.spec) == (family.MODEL_TYPE, ours.spec)
    save_model(tmp_path / "ours", loaded)
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation=theirs.config._attn_implementation
    )
    assert not any(info.values()), info
    assert type(again).__name__ == FAMILIES[family_of(ours.spec)].ARCHITECTURE
    assert difference(theirs(ids()).logits, again.eval()(ids()).logits) <= 1e-6
    save_model(tmp_path / "twice", load_model(tmp_path / "ours")[0])
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "twice" / file).read_bytes()


def test_as_many_parameters(pair):
    _, ours, theirs, _ = pair
    assert count.parameters(ours.spec).total == theirs.num_parameters()


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("pair", ["gpt-neox, pythia", "gemma2", "mixtral"], indirect=True)
def test_a_compiled_step_says_the_same(pair):
    _, ours, _, _ = pair
    wanted = ours(ids())
    assert difference(torch.compile(ours, fullgraph=True)(ids()), wanted) <= 1e-5


@torch.no_grad()
def test_a_cache_changes_nothing(pair):
    """Beyond every window, in pieces of several tokens and of one, and with rows of different lengths."""
    _, ours, _, _ = pair
    wanted = ours(ids())
    cache, got = ours.new_cache(2, 40), []
    for part in ids().split([7, 1, 1, 20, 1, 10], dim=1):
        got.append(ours(part, cache=cache))
        cache.advance(part.shape[1])
    assert difference(torch.cat(got, 1), wanted) <= 2e-5


def test_rows_of_different_lengths_are_each_as_if_alone(pair):
    _, ours, _, _ = pair
    prompts = [ids(1, 8)[0].tolist(), ids(2, 30)[1].tolist()]

    def texts(prompts):
        found = [[] for _ in prompts]
        for event in decode(ours, prompts, Sampling(temperature=0.0), max_tokens=20, compiled=False):
            found[event.row].append(event.token)
        return found

    assert texts(prompts) == [texts([prompt])[0] for prompt in prompts]
