"""Checkpoints of nanoGPT, minGPT and LitGPT, made by small modules of their layout: equal logits, no code run."""

from __future__ import annotations

import json
import math
import os
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.foreign import find_foreign
from nextile.checkpoint.pretrained import load
from nextile.text.characters import train_characters

VOCAB, CONTEXT, WIDTH, DEPTH, HEADS = 40, 24, 32, 2, 4


# --- nanoGPT and minGPT, by their names -----------------------------------------------------------------------------


class Norm(nn.Module):
    """A layer norm with or without a bias."""

    def __init__(self, width: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)
        self.bias = nn.Parameter(torch.randn(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, 1e-5)


class GptAttention(nn.Module):
    def __init__(self, bias: bool, masked: bool):
        super().__init__()
        self.c_attn = nn.Linear(WIDTH, 3 * WIDTH, bias=bias)
        self.c_proj = nn.Linear(WIDTH, WIDTH, bias=bias)
        if masked:
            self.register_buffer("bias", torch.ones(CONTEXT, CONTEXT).tril()[None, None])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each.unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in self.c_attn(x).chunk(3, dim=-1))
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return self.c_proj((scores.masked_fill(hidden, -math.inf).softmax(-1) @ v).transpose(1, 2).flatten(2))


class GptBlock(nn.Module):
    def __init__(self, bias: bool, masked: bool, approximate: str):
        super().__init__()
        self.ln_1, self.ln_2 = Norm(WIDTH, bias), Norm(WIDTH, bias)
        self.attn = GptAttention(bias, masked)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(WIDTH, 4 * WIDTH, bias=bias), "c_proj": nn.Linear(4 * WIDTH, WIDTH, bias=bias)}
        )
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate=self.approximate))


class Gpt(nn.Module):
    def __init__(self, *, bias: bool = True, masked: bool = False, tied: bool = True, approximate: str = "none"):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(VOCAB, WIDTH),
                "wpe": nn.Embedding(CONTEXT, WIDTH),
                "h": nn.ModuleList(GptBlock(bias, masked, approximate) for _ in range(DEPTH)),
                "ln_f": Norm(WIDTH, bias),
            }
        )
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)
        if tied:
            self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.transformer["wte"](ids) + self.transformer["wpe"](torch.arange(ids.shape[1]))
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


ARGUMENTS = {
    "n_layer": DEPTH, "n_head": HEADS, "n_embd": WIDTH, "block_size": CONTEXT, "bias": True, "vocab_size": VOCAB,
    "dropout": 0.0,
}  # fmt: skip


def save_nanogpt(path: Path, model: Gpt, prefix: str = "", **arguments: Any) -> Path:
    optimizer = torch.optim.AdamW(model.parameters())
    model(ids()).sum().backward()
    optimizer.step()
    state = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    saved = {
        "model": state, "optimizer": optimizer.state_dict(), "model_args": ARGUMENTS | arguments, "iter_num": 5,
        "best_val_loss": torch.tensor(1.5), "config": {"dataset": "shakespeare_char", "compile": True},
    }  # fmt: skip
    torch.save(saved, path)
    return path


def ids() -> Tensor:
    return torch.randint(0, VOCAB, (2, CONTEXT), generator=torch.Generator().manual_seed(0))


def seeded(make: Any, **how: Any) -> Any:
    torch.manual_seed(1)
    return make(**how)


def assert_same(path: Path, reference: nn.Module, **how: Any) -> Any:
    found = load(path, device="cpu", **how)
    with torch.no_grad():
        torch.testing.assert_close(found.model(ids()), reference(ids()), rtol=0, atol=1e-5)
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_a_nanogpt_says_the_same(tmp_path, bias, prefix):
    model = seeded(Gpt, bias=bias)
    path = save_nanogpt(tmp_path / "ckpt.pt", model, prefix, bias=bias)
    found = assert_same(path, model)
    assert (found.family, found.task) == ("gpt2", "lm")
    assert_same(tmp_path, model)  # by its folder


def test_the_other_gelu_would_be_seen(tmp_path):
    model = seeded(Gpt, approximate="tanh")
    with torch.no_grad():
        model.transformer["h"][0].mlp["c_fc"].weight.mul_(4)  # where the two forms differ most
    path = save_nanogpt(tmp_path / "ckpt.pt", model)
    with pytest.raises(AssertionError):
        assert_same(path, model)


def test_a_nanogpt_saved_again_loads_in_transformers(tmp_path):
    import transformers

    model = seeded(Gpt, bias=False)
    load(save_nanogpt(tmp_path / "ckpt.pt", model, bias=False), device="cpu").save(tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids()).logits, model(ids()), rtol=0, atol=1e-5)


def test_half_precision_stays(tmp_path):
    found = load(save_nanogpt(tmp_path / "ckpt.pt", seeded(Gpt).bfloat16()), device="cpu")
    assert {parameter.dtype for parameter in found.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in load(tmp_path, device="cpu", dtype="float32").model.parameters()} == {torch.float32}


def test_a_mingpt_says_the_same_with_heads_from_its_config_or_by_number(tmp_path):
    model = seeded(Gpt, masked=True, tied=False, approximate="tanh")
    torch.save(model.state_dict(), tmp_path / "model.pt")
    with pytest.raises(NextileError, match="--heads N"):
        load(tmp_path / "model.pt", device="cpu")
    found = assert_same(tmp_path / "model.pt", model, heads=HEADS)
    found.save(tmp_path / "again")
    assert_same(tmp_path / "again", model)
    for said in ({"n_head": HEADS}, {"model_type": "gpt-micro", "n_head": None}):  # which has four
        (tmp_path / "config.json").write_text(json.dumps({"system": {}, "model": said}))
        assert_same(tmp_path / "model.pt", model)
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "model.pt", model, heads=2)


# --- LitGPT ---------------------------------------------------------------------------------------------------------


def turned(x: Tensor, how: SimpleNamespace) -> Tensor:
    """Rotary positions on the first n numbers of a head, halves turned against each other."""
    n = int(how.rotary_percentage * how.head_size)
    theta = how.rope_base ** -(torch.arange(0, n, 2) / n)
    if how.rope_adjustments:
        a = how.rope_adjustments
        ratio = a["original_max_seq_len"] * theta / (2 * math.pi)
        smooth = (ratio - a["low_freq_factor"]) / (a["high_freq_factor"] - a["low_freq_factor"])
        smooth = smooth.clamp(0, 1)
        theta = (1 - smooth) * theta / a["factor"] + smooth * theta
    angle = torch.outer(torch.arange(x.shape[-2]) / how.rope_condense_ratio, theta).repeat(1, 2)
    head, rest = x[..., :n], x[..., n:]
    a, b = head.chunk(2, dim=-1)
    return torch.cat((head * angle.cos() + torch.cat((-b, a), -1) * angle.sin(), rest), -1)


class Rms(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(width) + 0.5), eps

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight


def norm(how: SimpleNamespace, width: int) -> nn.Module:
    return Rms(width, how.norm_eps) if how.norm_class_name == "RMSNorm" else Norm(width, True)


class LitAttention(nn.Module):
    def __init__(self, how: SimpleNamespace):
        super().__init__()
        self.how, rows = how, (how.n_head + 2 * how.n_query_groups) * how.head_size
        self.qkv = nn.Linear(WIDTH, rows, bias=how.bias or how.attn_bias)
        self.proj = nn.Linear(how.n_head * how.head_size, WIDTH, bias=how.bias)
        if how.norm_qk:
            self.norm_q, self.norm_k = norm(how, how.head_size), norm(how, how.head_size)

    def forward(self, x: Tensor) -> Tensor:
        h, g, e = self.how.n_head, self.how.n_query_groups, self.how.head_size
        q, k, v = (p.unflatten(-1, (-1, e)).transpose(1, 2) for p in self.qkv(x).split([h * e, g * e, g * e], -1))
        if self.how.norm_qk:
            q, k = self.norm_q(q), self.norm_k(k)
        k, v = turned(k, self.how).repeat_interleave(h // g, 1), v.repeat_interleave(h // g, 1)
        scores = turned(q, self.how) @ k.mT / math.sqrt(e)
        away = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        hidden = (away < 0) | (away >= (self.how.sliding_window_size or CONTEXT))
        return self.proj((scores.masked_fill(hidden, -math.inf).softmax(-1) @ v).transpose(1, 2).flatten(2))


class LitMLP(nn.Module):
    def __init__(self, how: SimpleNamespace):
        super().__init__()
        self.gated = how.mlp_class_name == "LLaMAMLP"
        for name in ("fc_1", "fc_2") if self.gated else ("fc",):
            setattr(self, name, nn.Linear(WIDTH, how.intermediate_size, bias=how.bias))
        self.proj = nn.Linear(how.intermediate_size, WIDTH, bias=how.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.silu(self.fc_1(x)) * self.fc_2(x) if self.gated else F.gelu(self.fc(x)))


class LitBlock(nn.Module):
    def __init__(self, how: SimpleNamespace):
        super().__init__()
        self.parallel = how.parallel_residual
        self.norm_1, self.norm_2 = norm(how, WIDTH), norm(how, WIDTH)
        self.attn, self.mlp = LitAttention(how), LitMLP(how)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.attn(self.norm_1(x))
        return y + self.mlp(self.norm_2(x if self.parallel else y))


class Lit(nn.Module):
    def __init__(self, how: SimpleNamespace):
        super().__init__()
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(VOCAB, WIDTH),
                "h": nn.ModuleList(LitBlock(how) for _ in range(DEPTH)),
                "ln_f": norm(how, WIDTH),
            }
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = self.transformer["wte"](ids)
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


NEOX = {
    "name": "tiny", "hf_config": {"org": "x", "name": "tiny"}, "block_size": CONTEXT, "n_layer": DEPTH, "n_head": HEADS,
    "n_embd": WIDTH, "head_size": 8, "n_query_groups": HEADS, "vocab_size": 37, "padded_vocab_size": VOCAB,
    "rotary_percentage": 0.5, "parallel_residual": True, "bias": True, "attn_bias": False, "norm_qk": False,
    "norm_class_name": "LayerNorm", "norm_eps": 1e-5, "mlp_class_name": "GptNeoxMLP", "intermediate_size": 24,
    "rope_base": 10000, "rope_condense_ratio": 1, "rope_adjustments": None, "sliding_window_size": None,
    "latent_attention": None, "gelu_approximate": "none", "lm_head_bias": False, "n_expert": 0,
}  # fmt: skip
LLAMA = NEOX | {
    "n_query_groups": 2, "rotary_percentage": 1.0, "parallel_residual": False, "bias": False, "head_size": 12,
    "norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "rope_base": 500,
}  # fmt: skip
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 16}
LITS = {
    "gpt_neox": NEOX,
    "gpt_neox, serial": NEOX | {"parallel_residual": False, "rope_condense_ratio": 2},
    "llama": LLAMA,
    "llama, scaled": LLAMA | {"rope_adjustments": LLAMA3, "bias": True},
    "mistral": LLAMA | {"sliding_window_size": 6},
    "qwen2": LLAMA | {"attn_bias": True},
    "qwen3": LLAMA | {"norm_qk": True},
}


def save_litgpt(folder: Path, settings: dict[str, Any], *, legacy: bool = False) -> Lit:
    model = seeded(Lit, how=SimpleNamespace(**settings))
    state = model.state_dict()
    if legacy:
        state = dict(_by_group(name, value, settings) for name, value in state.items())
    folder.mkdir(exist_ok=True)
    torch.save({"model": state} if legacy else state, folder / "lit_model.pth")
    (folder / "model_config.yaml").write_text(yaml.dump(settings))
    return model


def _by_group(name: str, value: Tensor, settings: dict[str, Any]) -> tuple[str, Tensor]:
    """The older layout: for each group its queries, its key, its value."""
    if ".attn.qkv." not in name:
        return name, value
    h, g, e = settings["n_head"], settings["n_query_groups"], settings["head_size"]
    q, k, v = value.split([h * e, g * e, g * e])
    rows = [part for i in range(g) for part in (q.chunk(g)[i], k.chunk(g)[i], v.chunk(g)[i])]
    return name.replace(".qkv.", ".attn."), torch.cat(rows)


@pytest.mark.parametrize("kind", LITS)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_litgpt_says_the_same(tmp_path, kind, legacy):
    model = save_litgpt(tmp_path, LITS[kind], legacy=legacy)
    found = assert_same(tmp_path, model)
    assert found.family == kind.partition(",")[0]
    assert_same(tmp_path / "lit_model.pth", model)


@pytest.mark.parametrize("changed", [{"rope_base": 600}, {"rotary_percentage": 0.25}, {"parallel_residual": False}])
def test_another_setting_of_litgpt_would_be_seen(tmp_path, changed):
    model = save_litgpt(tmp_path, NEOX)
    (tmp_path / "model_config.yaml").write_text(yaml.dump(NEOX | changed))
    with pytest.raises(AssertionError):
        assert_same(tmp_path, model)


def test_the_tokenizer_beside_a_checkpoint_is_its_own(tmp_path):
    save_litgpt(tmp_path, LLAMA)
    train_characters(["abcdefg"]).save(tmp_path)
    assert load(tmp_path, device="cpu").tokenizer.decode(load(tmp_path, device="cpu").tokenizer.encode("cab")) == "cab"
    train_characters([chr(i) for i in range(100, 200)]).save(tmp_path)
    with pytest.raises(NextileError, match="102 tokens and the model 40"):
        load(tmp_path, device="cpu")


def test_a_model_without_a_tokenizer_loads_and_says_how_to_give_it_one(tmp_path):
    import nextile

    model = nextile.load(save_nanogpt(tmp_path / "ckpt.pt", seeded(Gpt)), device="cpu")
    assert "tokenizer" not in model.describe()
    with pytest.raises(UsageError, match=r"ckpt.pt' has no tokenizer .* --tokenizer MODEL"):
        model.generate("x")
    with pytest.raises(UsageError, match="reads text"):
        _ = model.images


def test_a_folder_of_hugging_face_stays_one_whatever_lies_beside(tmp_path):
    (tmp_path / "ckpt.pt").touch()
    (tmp_path / "model.safetensors").touch()
    assert find_foreign(tmp_path) is None
    assert find_foreign(tmp_path / "absent.pt") is None


# --- hostile input --------------------------------------------------------------------------------------------------


def problem(path: Path) -> str:
    with pytest.raises(NextileError) as caught:
        load(path, device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Canary:
    """Would create a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_with_code_is_refused_and_never_run(tmp_path, protocol):
    bird = tmp_path / "bird"
    saved = {"model": {"x": torch.ones(2)}, "model_args": Canary(bird)}
    torch.save(saved, tmp_path / "ckpt.pt", pickle_protocol=protocol)
    assert "would run" in problem(tmp_path / "ckpt.pt")
    assert not bird.exists()
    torch.load(tmp_path / "ckpt.pt", weights_only=False)  # it would sing
    assert bird.exists()


def test_a_pickle_that_allocates_is_refused(tmp_path):
    class Large:
        def __reduce__(self):
            return bytearray, (1 << 40,)

    torch.save({"model": {}, "x": Large()}, tmp_path / "x.pt")
    assert "would run 'builtins.bytearray'" in problem(tmp_path / "x.pt").replace("__builtin__", "builtins")


class Claimed:
    """A tensor of a shape of one's choice over another's numbers."""

    def __init__(self, shape: tuple[int, ...], stride: tuple[int, ...]):
        self.arguments = (torch.ones(8)._typed_storage(), 0, shape, stride, False, {})

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


@pytest.mark.parametrize(
    ("shape", "stride"),
    [((1 << 20, 1 << 20), (1 << 20, 1)), ((1 << 20, 1 << 20), (0, 0)), ((9,), (1,)), ((4, 4), (1, 1))],
)
def test_a_tensor_larger_than_its_numbers_is_refused(tmp_path, shape, stride):
    torch.save({"model": {"x": Claimed(shape, stride)}, "model_args": {}}, tmp_path / "x.pt")
    assert "damaged" in problem(tmp_path / "x.pt")


def test_one_tensor_under_a_thousand_names_is_refused(tmp_path):
    one = torch.ones(10_000)
    torch.save({"model": {str(i): one for i in range(1000)}, "model_args": {}}, tmp_path / "x.pt")
    assert "its tensors are larger than the file" in problem(tmp_path / "x.pt")


@pytest.mark.parametrize("size", [0, 3, 100, 5000, -1, -100])
def test_a_truncated_checkpoint_is_an_error_in_one_line(tmp_path, size):
    path = save_nanogpt(tmp_path / "ckpt.pt", seeded(Gpt))
    path.write_bytes(path.read_bytes()[:size])
    problem(path)


def test_a_compressed_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\0" * (1 << 24))
    assert "compressed" in problem(tmp_path / "x.pt")


def test_other_files_and_no_files_are_refused(tmp_path):
    (tmp_path / "x.pt").write_text("hello")
    assert "is no checkpoint that nextile reads" in problem(tmp_path / "x.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt")
    assert "holds no model of nanoGPT" in problem(tmp_path / "x.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    assert "is not a folder" in problem(tmp_path / "pipe.pt")
    (tmp_path / "lit").mkdir()
    (tmp_path / "lit" / "lit_model.pth").symlink_to(tmp_path / "x.pt")
    assert "link that leaves its folder" in problem(tmp_path / "lit")


@pytest.mark.parametrize(
    "changed",
    [
        {"n_layer": 10**9}, {"n_embd": -1}, {"n_embd": 10**30}, {"n_head": 0}, {"n_head": 3}, {"vocab_size": "\x1b[2J"},
        {"block_size": None}, {"dropout": math.nan}, {"n_layer": 1}, {"n_embd": 16}, {"vocab_size": [1] * 10**4},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(tmp_path, changed):
    assert len(problem(save_nanogpt(tmp_path / "ckpt.pt", seeded(Gpt), **changed))) < 500


@pytest.mark.parametrize(
    "changed",
    [
        {"n_layer": 10**9}, {"n_head": 0}, {"n_query_groups": 3}, {"head_size": -8}, {"n_expert": 4},
        {"rope_base": "x"},
        {"norm_1": False}, {"mlp_class_name": "os.system"}, {"rope_adjustments": {"factor": 2, "beta_fast": 1}},
        {"rotary_percentage": 0.5}, {"sliding_window_size": 4, "sliding_window_indices": [1, 0]},
    ],
)  # fmt: skip
def test_settings_of_litgpt_that_are_not_read_are_refused(tmp_path, changed):
    save_litgpt(tmp_path, LLAMA)
    (tmp_path / "model_config.yaml").write_text(yaml.dump(LLAMA | changed))
    assert len(problem(tmp_path)) < 500


@pytest.mark.parametrize(
    "text",
    ["", "- 1", "a: [", "{" * 30_000, "- " * 30_000, " " * 70_000, "!!python/object/apply:os.mkdir ['BIRD']", "\xff"],
)
def test_settings_that_are_no_yaml_object_are_refused(tmp_path, text):
    save_litgpt(tmp_path, LLAMA)
    (tmp_path / "model_config.yaml").write_bytes(text.replace("BIRD", str(tmp_path / "bird")).encode("latin-1"))
    assert "model_config.yaml" in problem(tmp_path)
    assert not (tmp_path / "bird").exists()
