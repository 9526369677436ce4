"""The model folder: what is written is read, byte for byte, and what is damaged is refused in one line."""

import json

import pytest
import torch
import transformers

from nextile.base.errors import NextileError
from nextile.checkpoint.pretrained import load
from nextile.checkpoint.store import load_model, load_spec, save_model, save_weights
from nextile.checkpoint.weights import load_tensors, save_tensors
from nextile.models.build import build
from nextile.models.families import gpt2, marian, qwen3
from nextile.models.families.table import FAMILIES
from nextile.nn import specs
from nextile.text.characters import train_characters

SPECS = {
    "gpt2": gpt2.spec(vocab=30, context=32, width=16, depth=2, heads=2, dropout=0.1),
    "qwen3": qwen3.spec(vocab=30, context=32, width=16, depth=2, heads=2, dropout=0.1),
    "marian": marian.spec(vocab=30, context=32, width=16, depth=2, heads=2, hidden=20, dropout=0.1, start=2),
    "nextile": specs.Transformer(
        context=32,
        embed=specs.TokenEmbedding(vocab=30),
        stack=specs.Stack(
            width=16,
            depth=2,
            attention=specs.Attention(heads=2),
            feed_forward=specs.MLP(hidden=20),
            position=specs.Alibi(),
            causal=True,
        ),
        head=specs.LinearHead(bias=True),
    ),
}


@pytest.fixture(params=SPECS)
def folder(request, tmp_path):
    """A saved model of each kind, with a tokenizer of characters."""
    tokenizer = train_characters(["the quick brown fox jumps over the lazy dog"])
    model = build(SPECS[request.param].model_copy(), seed=3)
    save_model(tmp_path / request.param, model, tokenizer)
    return tmp_path / request.param


def test_what_is_saved_is_loaded(folder):
    found = load(folder, device="cpu")
    assert found.family == folder.name
    assert found.spec == SPECS[folder.name]
    wanted = build(SPECS[folder.name], seed=3).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in found.model.state_dict().items())
    assert found.tokenizer.decode(found.tokenizer.encode("lazy dog")) == "lazy dog"


def test_saved_again_it_is_the_same_bytes(folder, tmp_path):
    load(folder, device="cpu").save(tmp_path / "again")
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_transformers_loads_it_and_says_the_same(folder):
    if folder.name == "nextile":
        with pytest.raises(ValueError, match="nextile"):
            transformers.AutoModelForCausalLM.from_pretrained(folder)
        return
    kind = transformers.AutoModelForSeq2SeqLM if folder.name == "marian" else transformers.AutoModelForCausalLM
    theirs = kind.from_pretrained(folder).eval()
    ours, _ = load_model(folder)
    ids = torch.randint(0, 30, (2, 20), generator=torch.Generator().manual_seed(0))
    pair = {"decoder_input_ids": ids} if folder.name == "marian" else {}
    with torch.no_grad():
        torch.testing.assert_close(ours(ids, *pair.values()), theirs(ids, **pair).logits, rtol=0, atol=1e-5)


def test_another_dtype(folder):
    model, _ = load_model(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def flip(path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_a_flipped_bit_is_found(folder, share):
    path = folder / "model.safetensors"
    flip(path, int(share * path.stat().st_size))
    with pytest.raises(NextileError, match="damaged or no safetensors file"):
        load(folder, device="cpu")


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_truncated_file_is_found(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(NextileError, match="get a complete copy of it"):
        load(folder, device="cpu")


def test_a_file_of_others_has_no_hash_and_loads(folder):
    from safetensors.torch import save_file

    tensors = load_tensors(folder / "model.safetensors")
    save_file({name: value.clone() for name, value in tensors.items()}, folder / "model.safetensors")
    load(folder, device="cpu")


def test_shards_with_an_index(folder):
    tensors = {name: value.clone() for name, value in load_tensors(folder / "model.safetensors").items()}
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, members in halves.items():
        save_tensors(folder / shard, {name: tensors[name] for name in members})
    index = {"weight_map": {name: shard for shard, members in halves.items() for name in members}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    wanted = build(SPECS[folder.name], seed=3).state_dict()
    found = load(folder, device="cpu").model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())
    index["weight_map"][names[0]] = "../a.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(NextileError, match="is not the name of a file in that folder"):
        load(folder, device="cpu")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read as JSON"),
        ("[1]", "holds no JSON object"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        (
            '{"model_type": "mamba"}',
            f"model_type 'mamba' is not one that nextile reads: it reads {', '.join(sorted(FAMILIES))}",
        ),
        ('{"model_type": "gpt2"}', "'vocab_size' is missing"),
        ('{"model_type": "nextile", "nextile": {"type": "transformer", "context": -1}}', "context"),
    ],
)
def test_a_configuration_that_is_none(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(NextileError, match=message):
        load_spec(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("n_layer", 10**9), ("n_embd", -4), ("n_head", 0), ("n_embd", "wide"), ("vocab_size", None)]
)
def test_hostile_sizes_are_refused_before_anything_is_allocated(tmp_path, field, value):
    save_model(tmp_path, build(SPECS["gpt2"]), train_characters(["abc"]))
    config = json.loads((tmp_path / "config.json").read_text()) | {field: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(NextileError, match=r"config\.json"):
        load(tmp_path, device="cpu")


def test_variants_that_the_family_cannot_say_are_refused(tmp_path):
    save_model(tmp_path, build(SPECS["gpt2"]))
    config = json.loads((tmp_path / "config.json").read_text()) | {"scale_attn_by_inverse_layer_idx": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(NextileError, match="scale_attn_by_inverse_layer_idx is True"):
        load_spec(tmp_path)


def test_weights_of_another_model(folder):
    spec = SPECS[folder.name]
    name = "source" if folder.name == "marian" else "embed"
    other = build(spec.model_copy(update={name: getattr(spec, name).model_copy(update={"vocab": 31})}))
    save_weights(folder, other)
    with pytest.raises(NextileError, match="the files are of different models"):
        load(folder, device="cpu")


def test_a_tied_matrix_may_be_there_twice_but_not_in_two_ways(folder):
    tensors = {name: value.clone() for name, value in load_tensors(folder / "model.safetensors").items()}
    family = {"gpt2": gpt2, "marian": marian, "qwen3": qwen3}.get(folder.name)
    copied = family.BESIDE["lm_head.weight"] if family else "embed.token.weight"
    save_tensors(folder / "model.safetensors", tensors | {"lm_head.weight": tensors[copied].clone()})
    if family:
        wanted = build(SPECS[folder.name], seed=3).state_dict()
        found = load(folder, device="cpu").model.state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in found.items())
    save_tensors(folder / "model.safetensors", tensors | {"lm_head.weight": tensors[copied] + 1})
    with pytest.raises(NextileError, match=r"lm_head\.weight.*different models"):
        load(folder, device="cpu")


@pytest.mark.parametrize("activation", ["relu", "relu_squared", "gelu", "gelu_tanh", "quick_gelu", "silu"])
def test_transformers_knows_the_activation(tmp_path, activation):
    ours = build(gpt2.spec(vocab=30, context=32, width=16, depth=1, heads=2, activation=activation)).eval()
    save_model(tmp_path, ours)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        for parameters in (ours.parameters(), theirs.parameters()):
            for parameter in parameters:
                parameter.mul_(8)  # the tied ones once in both: the activation counts
        torch.testing.assert_close(ours(ids := torch.arange(30)[None]), theirs(ids).logits, rtol=1e-5, atol=1e-4)


def test_no_model_folder(tmp_path):
    with pytest.raises(NextileError, match=r"is not a model folder: it has no config\.json"):
        load(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(NextileError, match="is no checkpoint"):
        load(tmp_path / "file")


def test_dtype_names(folder):
    assert next(load(folder, device="cpu", dtype="bf16").model.parameters()).dtype == torch.bfloat16
    with pytest.raises(NextileError, match="dtype 'int8' is unknown"):
        load(folder, device="cpu", dtype="int8")
