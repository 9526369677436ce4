"""What is looked at, against transformers' eager attentions and hidden states, and against GPT-2's shape in NumPy.

Random weights in float64; where transformers computes in float32 all the same (norms, turns, softmax), to 1e-5.
"""

import math
from io import BytesIO

import numpy as np
import pytest
import torch
import transformers
from tests.inspection.looks import shaken, softmax

from nextile.api import Model
from nextile.checkpoint.store import load_model
from nextile.images.processor import Normaliser
from nextile.models.build import build
from nextile.models.families import gpt2
from nextile.text.build import train_tokenizer

SAME = {
    "vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96,
    "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = SAME | {"num_key_value_heads": 2, "head_dim": 16}
PAIRS = {
    "vocab_size": 97, "d_model": 48, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 6, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "max_position_embeddings": 64,
    "pad_token_id": 96, "decoder_start_token_id": 96, "eos_token_id": 0, "forced_eos_token_id": None,
}  # fmt: skip
T5 = {
    "vocab_size": 97, "d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}  # fmt: skip
PICTURES = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96, "image_size": 12,
    "patch_size": 4,
}  # fmt: skip
EXACT, ROUNDED = 1e-9, 1e-5
hf = transformers
ALONE = {
    "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config(n_layer=3, n_embd=48, n_head=4, vocab_size=97, n_positions=64), EXACT),
    "bert": (hf.BertForMaskedLM, hf.BertConfig(**SAME), EXACT),
    "neox": (hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig(**SAME | {"num_attention_heads": 3}), ROUNDED),
    "qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config(**GROUPED), ROUNDED),
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig(**GROUPED), ROUNDED),
    "gemma2": (
        hf.Gemma2ForCausalLM,
        hf.Gemma2Config(
            **GROUPED, sliding_window=9, attn_logit_softcapping=3.0, final_logit_softcapping=5.0,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"], pad_token_id=0,
        ),
        ROUNDED,
    ),
}  # fmt: skip
TOGETHER = {
    "marian": (hf.MarianMTModel, hf.MarianConfig(**PAIRS), 1e-7),  # its sines are of float32
    "t5": (hf.T5ForConditionalGeneration, hf.T5Config(**T5), ROUNDED),
}


def random_model(kind, config):
    """A model of theirs in float64 in which every number counts, and which shows its attentions."""
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    theirs = kind(config).double().eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            gain = ("norm" in name.lower() and name.endswith("weight")) or ("ln_" in name and name.endswith("weight"))
            centre = 1.0 if gain and "gemma" not in type(theirs).__name__.lower() else 0.0
            parameter.normal_(centre, 0.1 if parameter.dim() == 1 else 0.2)
        for embed in ("model.encoder.embed_positions", "model.decoder.embed_positions"):
            if hasattr(theirs, "model") and hasattr(theirs.model, "encoder"):
                theirs.get_submodule(embed).weight.copy_(theirs.get_submodule(embed).create_weight())
    return theirs


def ours(theirs, folder, processor=None):
    """Our model of the same numbers."""
    theirs.save_pretrained(folder)
    model, family = load_model(folder, dtype=torch.float64)
    return Model(model, processor or train_tokenizer("byte", 300, ["text"]), model.spec, family)


def ids(length=20, seed=1):
    return torch.randint(1, 95, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def far(found, wanted):
    """The largest difference, of numbers above 1 in their share of the largest; wanted: of a batch of one."""
    wanted = wanted.detach().numpy()[0]
    return np.abs(np.asarray(found) - wanted).max() / max(1.0, np.abs(wanted).max())


@pytest.fixture(params=ALONE)
def alone(request, tmp_path):
    """What we look at, what transformers says, and how near both are."""
    kind, config, near = ALONE[request.param]
    theirs = random_model(kind, config)
    with torch.no_grad():
        told = theirs(torch.tensor([ids()]), output_attentions=True, output_hidden_states=True)
    return ours(theirs, tmp_path).inspect(ids()), told, near, theirs


def test_weights_are_their_attentions(alone):
    look, told, near, _ = alone
    for layer, wanted in enumerate(told.attentions):
        assert far(look.weights().isel(layer=layer), wanted) <= near
        assert far(look.weights(layer=layer, head=0), wanted[:, 0]) <= near
        assert far(look.head(layer, 2).weights, wanted[:, 2]) <= near
        assert far(look.head(layer, 2).weights, wanted[:, 1]) > 100 * near  # control: another head is not that one


def test_the_stream_is_their_hidden_states(alone):
    look, told, near, _ = alone
    stream = look.stream()
    for layer, wanted in enumerate(told.hidden_states[:-1]):
        assert far(stream.isel(layer=layer), wanted) <= near
        assert far(stream.isel(layer=layer), told.hidden_states[layer + 1]) > 100 * near
    with torch.no_grad():
        last = look.model.stack.norm(torch.from_numpy(stream.values[-1].copy()))  # theirs is normed
    assert far(last, told.hidden_states[-1]) <= near


def test_logits_and_the_lens_are_their_head_on_their_hidden_states(alone):
    look, told, near, theirs = alone
    assert far(look.logits, told.logits) <= near
    shares = told.logits.softmax(-1)
    assert far(np.asarray(look.lens(97).probabilities)[-1], shares.sort(descending=True).values) <= near
    if not hasattr(theirs, "transformer"):
        return
    with torch.no_grad():  # GPT-2's, layer by layer
        for layer, stream in enumerate(told.hidden_states[:-1]):
            wanted = theirs.lm_head(theirs.transformer.ln_f(stream)).softmax(-1).sort(descending=True)
            assert far(look.lens(97).probabilities.isel(layer=layer), wanted.values) <= near


@pytest.fixture(params=TOGETHER)
def together(request, tmp_path):
    kind, config, near = TOGETHER[request.param]
    theirs = random_model(kind, config)
    source, target = ids(17), ids(9, seed=2)
    start = config.decoder_start_token_id
    with torch.no_grad():
        told = theirs(
            input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[start, *target]]),
            output_attentions=True, output_hidden_states=True,
        )  # fmt: skip
    return ours(theirs, tmp_path).inspect(source, target), told, near


def test_the_three_attentions_of_a_pair_are_theirs(together):
    look, told, near = together
    kept = {"encoder": told.encoder_attentions, "self": told.decoder_attentions, "cross": told.cross_attentions}
    for which, attentions in kept.items():
        assert look.depth(which) == len(attentions)
        for layer, wanted in enumerate(attentions):
            assert far(look.weights(which).isel(layer=layer), wanted) <= near
            assert far(look.head(layer, 1, which).weights, wanted[:, 1]) <= near
            assert far(look.head(layer, 1, which).weights, wanted[:, 0]) > 100 * near


def test_both_streams_of_a_pair_are_theirs(together):
    look, told, near = together
    for which, states in (("encoder", told.encoder_hidden_states), ("self", told.decoder_hidden_states)):
        stack = look.model.encoder if which == "encoder" else look.model.decoder
        for layer, wanted in enumerate(states[:-1]):
            assert far(look.stream(which).isel(layer=layer), wanted) <= near
        with torch.no_grad():
            last = stack.norm(torch.from_numpy(look.stream(which).values[-1].copy()))
        assert far(last, states[-1]) <= near
    assert far(look.logits, told.logits) <= near


def test_a_picture_is_looked_at_as_by_transformers(tmp_path):
    from PIL import Image

    theirs = random_model(hf.ViTForImageClassification, hf.ViTConfig(**PICTURES))
    model = ours(theirs, tmp_path, Normaliser(size=12, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3))
    pixels = np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    look = model.inspect(file.getvalue())
    given = torch.from_numpy((pixels / np.float32(255) - 0.5) / 0.5).permute(2, 0, 1)[None].double()
    with torch.no_grad():
        told = theirs(given, output_attentions=True, output_hidden_states=True)
    for layer, wanted in enumerate(told.attentions):
        assert far(look.weights(layer=layer), wanted) <= 1e-6  # pixels are float32
    for layer, wanted in enumerate(told.hidden_states[:-1]):
        assert far(look.stream().isel(layer=layer), wanted) <= 1e-5
    assert far(look.logits, told.logits) <= 1e-5
    seen = told.attentions[1][0, 2, 0, 1:].reshape(3, 3).numpy()
    np.testing.assert_allclose(look.attended(0, layer=1, head=2), seen, rtol=0, atol=1e-6)


# --- in NumPy ---------------------------------------------------------------------------------------------------------


class Written:
    """GPT-2's shape in NumPy, written for this test alone (Radford et al. 2019)."""

    def __init__(self, state, ids, heads):
        self.state, self.heads = {name: value.numpy() for name, value in state.items()}, heads
        x = self.state["embed.token.weight"][ids] + self.state["embed.position.weight"][: len(ids)]
        self.stream, self.of_heads, self.hidden, self.added = [x], [], [], []
        while f"stack.blocks.{len(self.of_heads)}.self_attention.norm.weight" in self.state:
            block = f"stack.blocks.{len(self.of_heads)}"
            attended = self.attention(f"{block}.self_attention", x)
            fed = self.feed_forward(f"{block}.feed_forward", x + attended)
            x = x + attended + fed
            self.stream.append(x)
            self.added.append([np.linalg.norm(part, axis=-1) for part in (attended, fed)])
        self.logits = self.say(x)

    def say(self, x):
        return self.norm("stack.norm", x) @ self.state["embed.token.weight"].T

    def norm(self, name, x):
        centred = x - x.mean(-1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return unit * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def linear(self, name, x):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def attention(self, name, x):
        x = self.norm(f"{name}.norm", x)
        length, width = len(x), x.shape[1] // self.heads
        q, k, v = (
            self.linear(f"{name}.inner.{part}", x).reshape(length, self.heads, width).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(width)
        weights = softmax(np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf))
        result = weights @ v
        self.of_heads.append({"queries": q, "keys": k, "values": v, "scores": scores, "weights": weights,
                              "result": result})  # fmt: skip
        return self.linear(f"{name}.inner.out", result.transpose(1, 0, 2).reshape(length, -1))

    def feed_forward(self, name, x):
        up = self.linear(f"{name}.inner.up", self.norm(f"{name}.norm", x))
        hidden = 0.5 * up * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
        self.hidden.append(hidden)
        return self.linear(f"{name}.inner.down", hidden)


@pytest.fixture(scope="module")
def written():
    """A look, and the same in NumPy."""
    model = shaken(build(gpt2.spec(vocab=97, context=32, width=48, depth=3, heads=4)))
    look = Model(model, train_tokenizer("byte", 300, ["text"]), model.spec, "gpt2").inspect(ids())
    return look, Written(model.state_dict(), ids(), 4)


def near(found, wanted):
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=0, atol=1e-9)


def test_every_part_of_every_head_is_that_of_numpy(written):
    look, wanted = written
    for layer, parts in enumerate(wanted.of_heads):
        for head in range(4):
            found = look.head(layer, head)
            for name, value in parts.items():
                near(getattr(found, name), value[head])
            assert not np.allclose(found.queries, parts["queries"][head - 1])  # control
        near(look.weights(layer=layer), parts["weights"])


def test_stream_embedding_and_what_is_added_are_those_of_numpy(written):
    look, wanted = written
    near(look.stream(), wanted.stream)
    near(look.token_vectors, wanted.state["embed.token.weight"][ids()])
    near(look.position_vectors, wanted.state["embed.position.weight"][:20])
    near(look.embedded, wanted.stream[0])
    near(look.added(), wanted.added)


def test_lens_neurons_and_surprise_are_those_of_numpy(written):
    look, wanted = written
    near(look.logits, wanted.logits)
    for layer, stream in enumerate(wanted.stream):
        shares = softmax(wanted.say(stream))
        order = np.argsort(-shares, axis=-1)[:, :5]
        near(look.lens().probabilities.isel(layer=layer), np.take_along_axis(shares, order, -1))
        np.testing.assert_array_equal(look.lens().ids.isel(layer=layer), order)
    for layer, hidden in enumerate(wanted.hidden):
        order = np.argsort(-np.abs(hidden), axis=-1)[:, :8]
        near(look.neurons().activations.isel(layer=layer), np.take_along_axis(hidden, order, -1))
    shares = softmax(wanted.logits)
    near(np.asarray(look.surprise)[1:], [-np.log(row[came]) for row, came in zip(shares, ids()[1:], strict=False)])
