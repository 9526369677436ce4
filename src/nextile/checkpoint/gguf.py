"""GGUF, the one-file format of llama.cpp: models of GPT-2's, Llama's and Qwen3's shape, written and read back.

Both ways go through transformers' words, a configuration and tensors by name, so that a family's own key map does the
rest; here is only what GGUF calls otherwise or stores in another order.
Shapes: D width, H heads, E head width.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextile.base.errors import NextileError, UsageError
from nextile.base.files import atomic_file
from nextile.checkpoint import convert
from nextile.checkpoint.gguf_file import library, read_header, read_tensors
from nextile.checkpoint.gguf_tokens import tokenizer_here, tokens_there
from nextile.checkpoint.nanogpt import Words
from nextile.checkpoint.store import Processor
from nextile.models.build import AnyModel
from nextile.models.families.table import family_named, family_of
from nextile.models.transformer import Transformer
from nextile.text.tokenizer import Tokenizer

FILE_TYPES = {torch.float32: ("F32", 0), torch.float16: ("F16", 1), torch.bfloat16: ("BF16", 32)}
GELU = "nextile.activation_function"  # of a GPT-2 with the exact one, which llama.cpp does not know


# --- the families ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dialect:
    """How GGUF calls a family's parts: the file's words, then transformers'."""

    outer: Mapping[str, str]
    inner: Mapping[str, str]  # of block N, "blk.N" and `block`.N
    block: str
    settings: Mapping[str, str]
    matrices_turned: tuple[str, ...] = ()  # (in, out) in transformers, (out, in) in the file
    interleaved: tuple[str, ...] = ()  # rows in the order in which llama.cpp turns pairs: see `_interleaved`
    wide: tuple[str, ...] = ()  # matrices that stay float32 in a file of halves
    said: Mapping[str, Any] = field(default_factory=dict)  # what holds of every file


LLAMA = Dialect(
    outer={"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"},
    inner={
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    },
    block="model.layers",
    settings={
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "block_count": "num_hidden_layers",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    },
    interleaved=("attn_q", "attn_k"),
    said={"hidden_act": "silu"},
)
QWEN3 = Dialect(
    outer=LLAMA.outer,
    inner={**LLAMA.inner, "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"},
    block=LLAMA.block,
    settings=LLAMA.settings,
    said={"hidden_act": "silu", "use_sliding_window": False},
)
GPT2 = Dialect(
    outer={"token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f"},
    inner={
        "attn_norm": "ln_1",
        "attn_qkv": "attn.c_attn",
        "attn_output": "attn.c_proj",
        "ffn_norm": "ln_2",
        "ffn_up": "mlp.c_fc",
        "ffn_down": "mlp.c_proj",
    },
    block="transformer.h",
    settings={
        "context_length": "n_positions",
        "embedding_length": "n_embd",
        "block_count": "n_layer",
        "feed_forward_length": "n_inner",
        "attention.head_count": "n_head",
        "attention.layer_norm_epsilon": "layer_norm_epsilon",
    },
    matrices_turned=("attn_qkv", "attn_output", "ffn_up", "ffn_down"),
    wide=("position_embd",),
    said={"tie_word_embeddings": True},
)
DIALECTS = {"gpt2": GPT2, "llama": LLAMA, "qwen3": QWEN3}


def _renamed(name: str, outer: Mapping[str, str], inner: Mapping[str, str], block: tuple[str, str]) -> str:
    """A tensor's name in the other words; block: what stands before a block's number, here and there."""
    owner, _, part = name.rpartition(".")
    if owner.startswith(block[0] + "."):
        number, _, inside = owner.removeprefix(block[0] + ".").partition(".")
        if inside in inner:
            return f"{block[1]}.{number}.{inner[inside]}.{part}"
    elif owner in outer:
        return f"{outer[owner]}.{part}"
    raise NextileError(f"{name[:80]!r} has no place in a model of this shape: GGUF and the model do not fit together")


def _swapped(names: Mapping[str, str]) -> dict[str, str]:
    return {value: name for name, value in names.items()}


def _part(name: str) -> str:
    """blk.3.attn_q.weight -> attn_q."""
    return name.split(".")[-2]


def _interleaved(rows: Tensor, heads: int) -> Tensor:
    """Of each head's rows first and second half in turn: (H * E, ...), where llama.cpp turns neighbours, not halves."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _in_halves(rows: Tensor, heads: int) -> Tensor:
    """`_interleaved` undone."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _heads(config: Mapping[str, Any], part: str) -> int:
    return config["num_key_value_heads" if part == "attn_k" else "num_attention_heads"]


# --- reading --------------------------------------------------------------------------------------------------------


def read_gguf(path: Path) -> tuple[Words, Tokenizer | None]:
    """A file in transformers' words, and its tokenizer if that is byte-level BPE.

    All tensors get the dtype of the matrices, the widest where they differ. Errors: NextileError for a damaged file
    and for an architecture that nextile does not read.
    """
    header = read_header(path)
    architecture = header.values.get("general.architecture")
    dialect = DIALECTS.get(str(architecture))
    if dialect is None:
        raise NextileError(
            f"'{path}' has the architecture {str(architecture)[:40]!r}: nextile reads {', '.join(DIALECTS)}"
        )
    tensors = read_tensors(path, header)
    dtype = _widest(
        value for name, value in tensors.items() if value.dim() > 1 and _part(f".{name}") not in dialect.wide
    )
    config = _config(str(architecture), dialect, header.values, tensors)
    tensors = {name: value.to(dtype) for name, value in tensors.items() if name != "rope_freqs.weight"}
    return (config, _theirs(dialect, config, tensors)), tokenizer_here(header.values)


def _widest(matrices: Iterator[Tensor]) -> torch.dtype:
    found = {matrix.dtype for matrix in matrices}
    return next((dtype for dtype in (torch.float64, torch.float32) if dtype in found), None) or _half(found)


def _half(found: set[torch.dtype]) -> torch.dtype:
    return found.pop() if len(found) == 1 else torch.float32


def _config(
    architecture: str, dialect: Dialect, values: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    own = {name.removeprefix(f"{architecture}."): value for name, value in values.items()}
    config = {theirs: own[ours] for ours, theirs in dialect.settings.items() if ours in own}
    config |= {"model_type": architecture, "vocab_size": len(tensors["token_embd.weight"]), **dialect.said}
    if dialect is GPT2:
        return config | {"activation_function": "gelu" if values.get(GELU) == "gelu" else "gelu_new"}
    heads = config["num_attention_heads"]
    head_dim = config.setdefault("head_dim", config["hidden_size"] // heads)
    if own.get("rope.dimension_count", head_dim) != head_dim or own.get("attention.value_length", head_dim) != head_dim:
        raise NextileError(
            "the file has heads of which a part is turned, or of two widths, which nextile does not read"
        )
    return config | {
        "num_key_value_heads": config.get("num_key_value_heads", heads),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "rope_parameters": _rope_here(own, tensors.get("rope_freqs.weight"), head_dim),
    }


def _theirs(dialect: Dialect, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by transformers' names and in its order of rows."""
    head = tensors.pop("output.weight", None) if dialect is GPT2 else None
    if head is not None and not torch.equal(head, tensors["token_embd.weight"]):
        raise NextileError("the file has a head unlike its embedding, which nextile reads of no GPT-2")
    found = {}
    for name, value in tensors.items():
        part = _part(f".{name}")
        if part in dialect.interleaved:
            value = _in_halves(value, _heads(config, part))
        elif part in dialect.matrices_turned and value.dim() == 2:
            value = value.mT
        found[_renamed(name, dialect.outer, dialect.inner, ("blk", dialect.block))] = value
    return found


# --- rotary positions -----------------------------------------------------------------------------------------------


def _rope_here(own: Mapping[str, Any], factors: Tensor | None, head_dim: int) -> dict[str, Any]:
    """transformers' `rope_parameters`. Errors: NextileError for a way to scale them that nextile does not have."""
    base, kind = own.get("rope.freq_base", 10_000.0), own.get("rope.scaling.type", "none")
    if factors is not None:
        return _llama3_here(own, factors, base, head_dim)
    if kind == "none":
        return {"rope_type": "default", "rope_theta": base}
    if kind == "linear":
        return {"rope_type": "linear", "rope_theta": base, "factor": own["rope.scaling.factor"]}
    raise NextileError(f"the file scales rotary positions by {str(kind)[:40]!r}: nextile reads none and linear")


def _llama3_here(own: Mapping[str, Any], factors: Tensor, base: float, head_dim: int) -> dict[str, Any]:
    """A file has Llama 3's scaling as the divisor of each angle: guess the rest, and see whether that gives them."""
    if factors.shape != (head_dim // 2,):
        raise NextileError(
            f"the file has {factors.numel()} angles to turn heads of {head_dim} by: get a sound copy of it"
        )
    guess = {
        "rope_type": "llama3",
        "rope_theta": base,
        "factor": factors.max().item(),
        "low_freq_factor": own.get("rope.scaling.low_freq_factor", 1.0),
        "high_freq_factor": own.get("rope.scaling.high_freq_factor", 4.0),
        "original_max_position_embeddings": own.get("rope.scaling.original_context_length", 8192),
    }
    wanted = _llama3_factors(guess, head_dim)
    if not torch.allclose(factors.float(), wanted, rtol=1e-4):
        raise NextileError(
            "the file divides the angles of its rotary positions as nextile cannot: it reads Llama 3's way"
        )
    return guess


def _llama3_factors(rope: Mapping[str, Any], head_dim: int) -> Tensor:
    """What each angle is divided by, (E/2): the factor where it turns seldom, one where often, blended between."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    turns = rope["original_max_position_embeddings"] * float(rope["rope_theta"]) ** -exponent / (2 * torch.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - share) / rope["factor"] + share)).float()


def _rope_there(rope: Mapping[str, Any]) -> dict[str, Any]:
    """The file's values, without the architecture before them."""
    values: dict[str, Any] = {"rope.freq_base": float(rope["rope_theta"])}
    if rope["rope_type"] not in ("default", "linear", "llama3"):
        raise UsageError(f"GGUF is not written of turns scaled by {rope['rope_type']}: name a folder")
    if rope["rope_type"] == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if rope["rope_type"] == "llama3":  # which llama.cpp takes from the tensor rope_freqs; these are for reading back
        values |= {
            "rope.scaling.low_freq_factor": float(rope["low_freq_factor"]),
            "rope.scaling.high_freq_factor": float(rope["high_freq_factor"]),
            "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
        }
    return values


# --- writing --------------------------------------------------------------------------------------------------------


def write_gguf(
    path: str | Path,
    model: AnyModel,
    reads: Processor | None,
    progress: Callable[[int], object] = lambda n: None,
) -> list[str]:
    """Write the file, whole or not at all; progress is told how many numbers each tensor has that is written.

    Float32, float16 or bfloat16, as the model is; norms and biases are float32, which llama.cpp asks for. Returns what
    the user should know, in lines. Errors: UsageError for a shape or a dtype that GGUF has no word for.
    """
    path, architecture = Path(path), _architecture(model)
    assert isinstance(model, Transformer)
    dialect, dtype = DIALECTS[architecture], next(model.parameters()).dtype
    family = family_named({"model_type": architecture})
    config = family.to_config(model.spec)
    notes = _cautions(dialect, config)
    values = _values(architecture, dialect, config, dtype)
    tokens, note = tokens_there(reads if isinstance(reads, Tokenizer) else None, model.spec.embed.vocab)
    values, notes = values | tokens, notes + ([note] if note else [])
    ours = {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}
    tensors = _file_tensors(dialect, config, convert.write(family.key_map(model.spec), ours))
    with atomic_file(path) as temporary:
        _write(temporary, architecture, values, _as_stored(dialect, tensors, dtype), progress)
    return notes


def _architecture(model: Any) -> str:
    """Errors: UsageError for what GGUF cannot hold."""
    name = family_of(model.spec) if isinstance(model, Transformer) else None
    dtype = next(model.parameters()).dtype
    if name not in DIALECTS:
        raise UsageError(
            f"GGUF is written of {', '.join(DIALECTS)} only, and this is {name or 'a shape of our own'}: name a folder"
        )
    if dtype not in FILE_TYPES:
        raise UsageError(f"GGUF has no {dtype} that llama.cpp reads: use --dtype float32, float16 or bfloat16")
    return name


def _cautions(dialect: Dialect, config: Mapping[str, Any]) -> list[str]:
    """What llama.cpp computes in another way. Errors: UsageError where that is another model."""
    if dialect is GPT2:
        activation = config["activation_function"]
        if activation == "gelu":
            return [
                "llama.cpp computes GPT-2 by GELU's tanh form, this model by the exact one: they differ by up to 5e-4"
            ]
        if activation != "gelu_new":
            raise UsageError(f"llama.cpp computes GPT-2 by GELU, this model by {activation}: name a folder")
        return []
    strange = config["hidden_act"] != "silu" or config.get("use_sliding_window")
    if strange or (dialect is QWEN3 and config["attention_bias"]):
        raise UsageError(
            "llama.cpp has no such variant of this family (SiLU, no window, Qwen3 without biases): name a folder"
        )
    return []


def _values(architecture: str, dialect: Dialect, config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The header's values, the tokenizer's left out."""
    own = {ours: config[theirs] for ours, theirs in dialect.settings.items()}
    if dialect is not GPT2:
        head_dim = config["head_dim"]
        own |= {
            "attention.value_length": head_dim,
            "rope.dimension_count": head_dim,
            **_rope_there(config["rope_parameters"]),
        }
    exact = {GELU: "gelu"} if config.get("activation_function") == "gelu" else {}
    named = {"general.file_type": FILE_TYPES[dtype][1], **exact}
    return (
        named
        | {f"{architecture}.{name}": value for name, value in own.items()}
        | {f"{architecture}.vocab_size": config["vocab_size"]}
    )


def _file_tensors(dialect: Dialect, config: Mapping[str, Any], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the file's names and in its order of rows."""
    found: dict[str, Tensor] = {}
    outer, inner = _swapped(dialect.outer), _swapped(dialect.inner)
    for name, value in theirs.items():
        name = _file_name(name, outer, inner, dialect.block)
        part = _part(f".{name}")
        if part in dialect.interleaved:
            value = _interleaved(value, _heads(config, part))
        elif part in dialect.matrices_turned and value.dim() == 2:
            value = value.mT
        found[name] = value
    rope = config.get("rope_parameters", {})
    if rope.get("rope_type") == "llama3":
        found["rope_freqs.weight"] = _llama3_factors(rope, config["head_dim"])
    return found


def _file_name(name: str, outer: Mapping[str, str], inner: Mapping[str, str], block: str) -> str:
    return _renamed(name, outer, inner, (block, "blk"))


def _as_stored(dialect: Dialect, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Vectors, and matrices that are added, in float32; the others as the model has them."""
    return {
        name: value.float() if value.dim() == 1 or _part(f".{name}") in dialect.wide else value.to(dtype)
        for name, value in tensors.items()
    }


def _write(
    path: Path,
    architecture: str,
    values: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    progress: Callable[[int], object],
) -> None:
    gguf = library()
    writer = gguf.GGUFWriter(path, architecture)
    try:
        for name, value in values.items():
            _add(writer, name, value)
        for name, value in tensors.items():
            kind = gguf.GGMLQuantizationType[FILE_TYPES[value.dtype][0]]
            writer.add_tensor_info(name, value.shape, np.dtype(np.float32), value.nbytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for value in tensors.values():
            writer.write_tensor_data(value.contiguous().view(torch.uint8).numpy())
            progress(value.numel())
        writer.flush()
    finally:
        writer.close()


def _add(writer: Any, name: str, value: Any) -> None:
    """A value as the kind that llama.cpp expects of such: whole numbers unsigned, others of 32 bits."""
    match value:
        case bool():
            writer.add_bool(name, value)
        case int():
            writer.add_uint32(name, value)
        case float():
            writer.add_float32(name, value)
        case str():
            writer.add_string(name, value)
        case _:
            writer.add_array(name, value)
