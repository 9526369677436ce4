"""`nextile convert`: from every kind of checkpoint to a folder or a GGUF file, and nothing overwritten."""

from __future__ import annotations

import json

import pytest
import torch

from nextile.checkpoint.gguf import write_gguf
from nextile.checkpoint.pretrained import load
from nextile.checkpoint.store import save_model
from nextile.models.build import build
from nextile.models.families import gpt2, qwen3
from nextile.text.bpe import train_bpe
from nextile.text.characters import train_characters

SIZE = {"vocab": 300, "context": 32, "width": 32, "depth": 1, "heads": 4, "hidden": 128}


@pytest.fixture
def tokens():
    return train_bpe(["hello, hello world"] * 5, 265)


@pytest.fixture
def folder(tmp_path, tokens):
    """A model folder with a tokenizer."""
    save_model(tmp_path / "model", build(qwen3.spec(**SIZE), seed=1), tokens)
    return tmp_path / "model"


@pytest.fixture
def ckpt(tmp_path):
    """A checkpoint of nanoGPT, which has no tokenizer."""
    family, spec = gpt2, gpt2.spec(**SIZE, activation="gelu")
    from nextile.checkpoint import convert

    state = convert.write(family.key_map(spec), dict(build(spec, seed=1).named_parameters()))
    matrices = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    state = {name: value.detach().T if name.endswith(matrices) else value.detach() for name, value in state.items()}
    arguments = {"n_layer": 1, "n_head": 4, "n_embd": 32, "block_size": 32, "bias": True, "vocab_size": 300}
    torch.save({"model": state, "model_args": arguments}, tmp_path / "ckpt.pt")
    return tmp_path / "ckpt.pt"


def same(a, b) -> bool:
    ours, theirs = (dict(load(path, device="cpu").model.named_parameters()) for path in (a, b))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_to_gguf_and_back(nextile_, tmp_path, folder):
    assert nextile_("convert", str(folder), str(tmp_path / "m.gguf")).code == 0
    answer = nextile_("convert", str(tmp_path / "m.gguf"), str(tmp_path / "back"), "--json")
    found = json.loads(answer.out)
    assert (found["family"], found["dtype"], found["tokenizer"], found["notes"]) == (
        "qwen3",
        "float32",
        "Tokenizer",
        [],
    )
    assert found["parameters"] == sum(p.numel() for p in load(folder, device="cpu").model.parameters())
    assert same(folder, tmp_path / "back")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_from_nanogpt_with_the_tokenizer_of_another_model(nextile_, tmp_path, folder, ckpt):
    answer = nextile_("convert", str(ckpt), str(tmp_path / "out"), "--tokenizer", str(folder), "--dtype", "float16")
    assert answer == (0, "", f"{tmp_path / 'out'}: gpt2, 23,392 parameters in float16\n")
    found = load(tmp_path / "out", device="cpu")
    assert found.tokenizer.vocab_size == 265  # in a vocabulary of 300
    assert {parameter.dtype for parameter in found.model.parameters()} == {torch.float16}


def test_what_should_be_known_is_said(nextile_, tmp_path, ckpt):
    answer = nextile_("convert", str(ckpt), str(tmp_path / "m.gguf"))
    assert answer.code == 0
    assert "warning: llama.cpp computes GPT-2 by GELU's tanh form" in answer.err
    assert "warning: the model has no tokenizer, so the file has none" in answer.err


def test_a_tokenizer_of_too_many_tokens_is_refused(nextile_, tmp_path, ckpt):
    train_characters([chr(i) for i in range(500, 900)]).save(tmp_path / "chars")
    answer = nextile_("convert", str(ckpt), str(tmp_path / "out"), "--tokenizer", str(tmp_path / "chars"))
    assert answer.code == 2
    assert "402 tokens and the model 300" in answer.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["full", "full/x.txt", "x.gguf", "link"])
def test_what_is_there_is_never_touched(nextile_, tmp_path, folder, target):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x.txt").write_text("mine")
    (tmp_path / "x.gguf").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    answer = nextile_("convert", str(folder), str(tmp_path / target))
    assert answer.code == 2
    assert "is there already" in answer.err
    assert (tmp_path / "full" / "x.txt").read_text() == (tmp_path / "x.gguf").read_text() == "mine"
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["x.txt"]


def test_a_kind_of_file_that_is_not_written_is_refused(nextile_, tmp_path, folder):
    answer = nextile_("convert", str(folder), str(tmp_path / "x.safetensors"))
    assert (answer.code, "name a folder or a .gguf" in answer.err) == (2, True)


def test_a_failure_leaves_nothing(nextile_, tmp_path, folder):
    (folder / "model.safetensors").write_bytes(b"")
    before = sorted(tmp_path.iterdir())
    assert nextile_("convert", str(folder), str(tmp_path / "m.gguf")).code == 1
    assert nextile_("convert", str(folder), str(tmp_path / "out")).code == 1
    assert sorted(tmp_path.iterdir()) == before


def test_progress_counts_the_numbers_of_tensors(tmp_path, tokens):
    seen: list[int] = []
    model = build(qwen3.spec(**SIZE), seed=1)
    write_gguf(tmp_path / "m.gguf", model, tokens, seen.append)
    assert len(seen) == len(list(model.parameters()))
    assert sum(seen) == sum(parameter.numel() for parameter in model.parameters())


def test_the_help_shows_examples(nextile_):
    answer = nextile_("convert", "--help")
    assert answer.code == 0
    assert "nextile convert runs/book book.gguf --dtype float16" in answer.out
