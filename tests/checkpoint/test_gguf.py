"""GGUF: what is written is read back to the bit, as llama.cpp expects it, and a hostile file is one line."""

from __future__ import annotations

import builtins
import math
import random
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.gguf import write_gguf
from nextile.checkpoint.pretrained import load
from nextile.models.build import build
from nextile.models.families import gpt2, llama, mistral, qwen3
from nextile.nn import specs
from nextile.text.bpe import train_bpe
from nextile.text.characters import train_characters

SIZE = {"vocab": 300, "context": 32, "width": 32, "depth": 2, "heads": 4, "hidden": 64}
LINEAR = specs.Rotary(scaling=specs.LinearScaling(factor=2.0))
LLAMA3 = specs.Rotary(base=500.0, scaling=specs.Llama3Scaling(factor=8.0, original=64))
SPECS = {
    "gpt2": gpt2.spec(**SIZE),
    "llama": llama.spec(**SIZE, kv_heads=2),
    "llama, tied": llama.spec(**SIZE, tied=True, bias=True, rotary=LINEAR),
    "llama, scaled": llama.spec(**SIZE, kv_heads=2, head_dim=16, rotary=LLAMA3),
    "qwen3": qwen3.spec(**SIZE, kv_heads=2, head_dim=16),
    "qwen3, untied": qwen3.spec(**SIZE, tied=False),
}  # fmt: skip
TEXTS = ["hello, hello world! 123 it's the quick brown fox jumps over the lazy dog\n"] * 5


def tokens():
    return train_bpe(TEXTS, 290)


def made(name: str, dtype: torch.dtype = torch.float32):
    """A model whose norms and biases are no ones and zeros."""
    model = build(SPECS[name], seed=3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += torch.rand(parameter.shape, generator=torch.Generator().manual_seed(0))
    return model.to(dtype)


def written(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> tuple[Path, torch.nn.Module]:
    model = made(name, dtype)
    assert write_gguf(folder / "m.gguf", model, tokens()) == []
    return folder / "m.gguf", model


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_written_is_read_back_to_the_bit(tmp_path, name, dtype):
    path, model = written(tmp_path, name, dtype)
    found = load(path, device="cpu")
    assert (found.family, found.spec) == (name.partition(",")[0], SPECS[name])
    ours = dict(found.model.named_parameters())
    for wanted, value in model.named_parameters():
        assert ours[wanted].dtype == dtype
        assert torch.equal(ours[wanted], value), wanted
    found.save(tmp_path / "again" / "m.gguf")
    assert (tmp_path / "again" / "m.gguf").read_bytes() == path.read_bytes()


def test_the_tokens_come_back(tmp_path):
    path, _ = written(tmp_path, "qwen3")
    mine, theirs = tokens(), load(path, device="cpu").tokenizer
    text = "hello world, it's 1234  foxes <|endoftext|> \n\n é"
    assert theirs.encode(text) == mine.encode(text)
    assert (theirs.end_id, theirs.vocab_size, theirs.kind) == (mine.end_id, mine.vocab_size, "bpe")
    assert theirs.special_ids == mine.special_ids


# --- as others expect it --------------------------------------------------------------------------------------------


def seen_by_others(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """A file by the gguf package's own reader: values and tensors."""
    reader = gguf.GGUFReader(path)
    values = {name: field.contents() for name, field in reader.fields.items()}
    return values, {each.name: torch.from_numpy(np.array(each.data)) for each in reader.tensors}


def interleaved(x: Tensor, base: float) -> Tensor:
    """Rotary positions as llama.cpp turns those of Llama: neighbours against each other, (H, T, E)."""
    angle = torch.outer(torch.arange(x.shape[1]), base ** -(torch.arange(0, x.shape[2], 2) / x.shape[2]))
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), -1).flatten(2)


def llama_cpp(values: dict, t: dict[str, Tensor], ids: Tensor) -> Tensor:
    """What llama.cpp computes of a Llama, from the file alone."""
    heads, kv, eps = (values[f"llama.attention.{n}"] for n in ("head_count", "head_count_kv", "layer_norm_rms_epsilon"))

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * t[f"{name}.weight"]

    def split(x: Tensor, count: int) -> Tensor:
        return x.unflatten(-1, (count, -1)).transpose(0, 1)

    x = t["token_embd.weight"][ids]
    for i in range(values["llama.block_count"]):
        b, y = f"blk.{i}", norm(x, f"blk.{i}.attn_norm")
        q, k, v = (y @ t[f"{b}.attn_{n}.weight"].T for n in "qkv")
        q, k = (interleaved(split(z, n), values["llama.rope.freq_base"]) for z, n in ((q, heads), (k, kv)))
        k, v = (z.repeat_interleave(heads // kv, 0) for z in (k, split(v, kv)))
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(torch.ones(len(ids), len(ids)).triu(1) > 0, -math.inf)
        x = x + (scores.softmax(-1) @ v).transpose(0, 1).flatten(1) @ t[f"{b}.attn_output.weight"].T
        y = norm(x, f"{b}.ffn_norm")
        hidden = F.silu(y @ t[f"{b}.ffn_gate.weight"].T) * (y @ t[f"{b}.ffn_up.weight"].T)
        x = x + hidden @ t[f"{b}.ffn_down.weight"].T
    return norm(x, "output_norm") @ t["output.weight"].T


def test_a_llama_is_what_llama_cpp_would_compute(tmp_path):
    path, model = written(tmp_path, "llama")
    values, tensors = seen_by_others(path)
    ids = torch.randint(0, 300, (20,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(ids[None])[0]
        torch.testing.assert_close(llama_cpp(values, tensors, ids), wanted, rtol=0, atol=1e-5)
        tensors["blk.0.attn_q.weight"] = model.stack.blocks[0].self_attention.inner.query.weight  # in halves
        with pytest.raises(AssertionError):
            torch.testing.assert_close(llama_cpp(values, tensors, ids), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_other_families_keep_their_rows_in_order(tmp_path, name):
    path, model = written(tmp_path, name)
    values, tensors = seen_by_others(path)
    inner = model.stack.blocks[1].self_attention.inner
    if name == "qwen3":
        assert torch.equal(tensors["blk.1.attn_q.weight"], inner.query.weight)
        assert torch.equal(tensors["blk.1.attn_k_norm.weight"], inner.key_norm.weight)
    else:
        together = torch.cat([inner.query.weight, inner.key.weight, inner.value.weight])
        assert torch.equal(tensors["blk.1.attn_qkv.weight"], together)
        assert torch.equal(tensors["position_embd.weight"], model.embed.position.weight)
    assert values["general.architecture"] == name
    assert len(values["tokenizer.ggml.tokens"]) == len(values["tokenizer.ggml.token_type"]) == 300
    assert (values["tokenizer.ggml.pre"], values["tokenizer.ggml.eos_token_id"]) == ("gpt-2", 0)


def test_the_names_are_those_that_the_package_knows(tmp_path):
    for name in ("gpt2", "llama", "qwen3"):
        path, _ = written(tmp_path, name)
        architecture = next(arch for arch, word in gguf.MODEL_ARCH_NAMES.items() if word == name)
        known = {gguf.TENSOR_NAMES[each].format(bid=1) for each in gguf.MODEL_TENSORS[architecture]}
        found = {tensor.rpartition(".")[0].replace("blk.0", "blk.1") for tensor in seen_by_others(path)[1]}
        assert found <= known
        if name == "gpt2":
            assert found == known - {"output"}


def test_in_a_file_of_halves_vectors_are_float32(tmp_path):
    path, _ = written(tmp_path, "gpt2", torch.float16)
    types = {each.name: each.tensor_type.name for each in gguf.GGUFReader(path).tensors}
    assert types["blk.0.ffn_up.weight"] == types["token_embd.weight"] == "F16"
    assert types["blk.0.ffn_up.bias"] == types["output_norm.weight"] == types["position_embd.weight"] == "F32"


def test_llama_3_scaling_is_written_as_divisors_and_read_without_the_rest(tmp_path):
    path, _ = written(tmp_path, "llama, scaled")
    factors = seen_by_others(path)[1]["rope_freqs.weight"]
    assert factors.shape == (8,)
    assert (factors.min(), factors.max()) == (1.0, 8.0)
    data = path.read_bytes()  # what llama.cpp's own converter leaves out
    path.write_bytes(data.replace(b"rope.scaling.low_freq_factor", b"rope.scaling.xxx_freq_factor"))
    assert load(path, device="cpu").spec == SPECS["llama, scaled"]
    path.write_bytes(data.replace(factors.numpy().tobytes(), factors.flip(0).numpy().tobytes()))
    with pytest.raises(NextileError, match="divides the angles"):
        load(path, device="cpu")


# --- what a file cannot say -----------------------------------------------------------------------------------------


def test_a_shape_that_gguf_has_no_word_for_is_refused(tmp_path):
    with pytest.raises(UsageError, match="only, and this is mistral"):
        write_gguf(tmp_path / "m.gguf", build(mistral.spec(**SIZE, window=8)), None)
    with pytest.raises(UsageError, match="no such variant"):
        write_gguf(tmp_path / "m.gguf", build(qwen3.spec(**SIZE, bias=True)), None)
    with pytest.raises(UsageError, match="by GELU, this model by relu"):
        write_gguf(tmp_path / "m.gguf", build(gpt2.spec(**SIZE, activation="relu")), None)
    with pytest.raises(UsageError, match="float64"):
        write_gguf(tmp_path / "m.gguf", made("gpt2", torch.float64), None)
    with pytest.raises(UsageError, match="320 tokens and the model 300"):
        write_gguf(tmp_path / "m.gguf", made("gpt2"), train_bpe([*TEXTS, "many more words and pieces of them"], 320))
    assert list(tmp_path.iterdir()) == []


def test_the_exact_gelu_is_said_and_comes_back(tmp_path):
    model = build(gpt2.spec(**SIZE, activation="gelu"))
    [note] = write_gguf(tmp_path / "m.gguf", model, tokens())
    assert "GELU" in note
    assert load(tmp_path / "m.gguf", device="cpu").spec == model.spec


@pytest.mark.parametrize("tokenizer", [None, train_characters(["abc"])])
def test_other_tokenizers_are_left_out_and_it_is_said(tmp_path, tokenizer):
    [note] = write_gguf(tmp_path / "m.gguf", made("llama"), tokenizer)
    assert ("no tokenizer" if tokenizer is None else "'char'") in note
    found = load(tmp_path / "m.gguf", device="cpu")
    with pytest.raises(UsageError, match="no tokenizer that nextile reads"):
        _ = found.tokenizer


def test_without_the_package_it_is_one_line(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "gguf":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(NextileError, match=r"pip install 'nextile\[gguf\]'"):
        write_gguf(tmp_path / "m.gguf", made("llama"), None)
    assert list(tmp_path.iterdir()) == []


# --- quantized ------------------------------------------------------------------------------------------------------


def quantized(path: Path, kind: str) -> Path:
    """The file with the matrices of its blocks quantized."""
    reader, out = gguf.GGUFReader(path), path.with_name("q.gguf")
    writer = gguf.GGUFWriter(out, "llama")
    for name, field in reader.fields.items():
        if name.startswith("llama.") and field.types[0] != gguf.GGUFValueType.ARRAY:
            writer.add_key_value(name, field.contents(), field.types[0])
    for each in reader.tensors:
        if each.name.startswith("blk") and len(each.shape) == 2:
            type_ = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(each.name, gguf.quantize(np.array(each.data), type_), raw_dtype=type_)
        else:
            writer.add_tensor(each.name, np.array(each.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_quantized_file_is_read_as_float32(tmp_path, kind):
    path, model = written(tmp_path, "llama")
    found = dict(load(quantized(path, kind), device="cpu").model.named_parameters())
    name = "stack.blocks.0.feed_forward.inner.up.weight"
    away = (found[name] - dict(model.named_parameters())[name]).abs().max()
    assert found[name].dtype == torch.float32
    assert 0 < away < (0.001 if kind == "Q8_0" else 0.02)


def test_a_quantization_that_is_unknown_is_refused_by_name(tmp_path):
    path = quantized(written(tmp_path, "llama")[0], "Q8_0")
    data = path.read_bytes()
    entry = struct.pack("<QQI", 32, 32, 8)  # a matrix of 32 times 32, of type 8
    assert entry in data
    path.write_bytes(data.replace(entry, struct.pack("<QQI", 32, 32, 9)))  # Q8_1
    with pytest.raises(NextileError, match=r"GGUF's type Q8_1|as its size says"):
        load(path, device="cpu")
    path.write_bytes(data.replace(entry, struct.pack("<QQI", 32, 32, 77)))
    with pytest.raises(NextileError, match="type 77"):
        load(path, device="cpu")


# --- hostile input --------------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def problem(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    begun = time.monotonic()
    with pytest.raises(NextileError) as caught:
        load(path, device="cpu")
    assert time.monotonic() - begun < 2
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value)


HEAD, NAMED = b"GGUF" + struct.pack("<I", 3), text("general.architecture")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (HEAD, "not whole"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "little-endian"),
        (HEAD + struct.pack("<QQ", 1 << 60, 0), "tensors"),
        (HEAD + struct.pack("<QQ", 0, 1 << 60), "values"),
        (HEAD + struct.pack("<QQQ", 0, 1, 1 << 62), "not whole"),
        (HEAD + struct.pack("<QQ", 0, 1) + text("a") + struct.pack("<IIQ", 9, 0, 1 << 62), "not whole"),
        (HEAD + struct.pack("<QQ", 0, 1) + text("a") + struct.pack("<IIQ", 9, 8, 1 << 62), "not whole"),
        (HEAD + struct.pack("<QQ", 0, 1) + text("a") + struct.pack("<IIQI", 9, 9, 1, 9), "kind 9"),
        (HEAD + struct.pack("<QQ", 0, 2) + (text("a") + struct.pack("<II", 4, 1)) * 2, "twice"),
        (HEAD + struct.pack("<QQ", 0, 1) + text("general.alignment") + struct.pack("<II", 4, 0), "alignment"),
        (HEAD + struct.pack("<QQ", 1, 0) + text("t") + struct.pack("<I", 1 << 30), "axes"),
        (HEAD + struct.pack("<QQ", 0, 1) + NAMED + struct.pack("<I", 8) + text("rwkv\x1b[2J"), "rwkv"),
        (HEAD + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1) + b"\xff", "decode"),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(tmp_path, data, said):
    message = problem(tmp_path / "m.gguf", data)
    assert said in message
    assert "\x1b" not in message


@pytest.mark.parametrize("axes", [(1 << 40, 1 << 40), (0, 32), (32, 1 << 62), (32, 64)])
def test_a_tensor_beyond_the_file_is_refused(tmp_path, axes):
    path, _ = written(tmp_path, "llama")
    entry = struct.pack("<QQ", 32, 300)
    data = path.read_bytes()
    assert data.count(entry) == 2
    problem(path, data.replace(entry, struct.pack("<QQ", *axes)))


def test_tensors_that_lie_in_each_other_are_refused(tmp_path):
    path, _ = written(tmp_path, "llama")
    data = path.read_bytes()
    names = [tensor.name for tensor in gguf.GGUFReader(path).tensors]
    for name in names:  # each as large as the embedding, all at the beginning
        at = data.index(text(name)) + len(text(name))
        axes = 2 if data[at] == 2 else 1
        shape = (32, 300) if axes == 2 else (9600,)
        entry = struct.pack(f"<I{axes}QIQ", axes, *shape, 0, 0)
        data = data[:at] + entry + data[at + len(entry) :]
    assert "lie in each other" in problem(path, data)


SETTINGS = {
    "llama.block_count": 1 << 31, "llama.embedding_length": 31, "llama.attention.head_count": 0,
    "llama.attention.head_count_kv": 3, "llama.attention.key_length": 1 << 31, "llama.feed_forward_length": 0,
    "llama.context_length": 0,
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_cannot_be_are_refused(tmp_path, name):
    path, _ = written(tmp_path, "llama, scaled")
    data = path.read_bytes()
    at = data.index(text(name)) + len(text(name)) + 4
    problem(path, data[:at] + struct.pack("<I", SETTINGS[name]) + data[at + 4 :])


def test_a_missing_setting_is_named(tmp_path):
    path, _ = written(tmp_path, "llama")
    assert "hidden_size" in problem(path, path.read_bytes().replace(b"embedding_length", b"embedding_lengtx"))


def refusal(path: Path) -> str:
    """What is said of a file, nothing of one that loads."""
    try:
        load(path, device="cpu")
    except NextileError as error:
        return str(error)
    return ""


def test_damaged_files_are_errors_or_models_and_nothing_else(tmp_path):
    path, _ = written(tmp_path, "llama, scaled")
    data, chance = path.read_bytes(), random.Random(0)
    header, said = data.index(b"rope_freqs.weight") + 60, []
    for _ in range(150):
        broken = bytearray(data[: chance.choice([len(data), chance.randrange(header)])])
        for _ in range(chance.randint(1, 4)):
            if broken:
                broken[chance.randrange(min(len(broken), header))] = chance.randrange(256)
        path.write_bytes(broken)
        said.append(refusal(path))
    assert all(len(message.splitlines()) <= 1 for message in said)
    assert sum(map(bool, said)) > 50
