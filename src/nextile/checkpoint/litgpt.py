"""Checkpoints of LitGPT: a folder with lit_model.pth and model_config.yaml, told in transformers' words.

Shapes: D width, H heads, K groups that share keys (H / K heads each), E head width.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from nextile.base.errors import NextileError
from nextile.base.files import inside
from nextile.checkpoint.nanogpt import Words, is_tied

WEIGHTS, CONFIG = "lit_model.pth", "model_config.yaml"
LONGEST_CONFIG, DEEPEST_CONFIG = 1 << 16, 16  # bytes and levels; a real one has two thousand and three

# What our families of these shapes do not have, and what such a setting is where it is not used.
UNUSED = {
    "latent_attention": None, "n_expert": 0, "scale_embeddings": False, "final_logit_softcapping": None,
    "attention_logit_softcapping": None, "attention_scores_scalar": None, "post_attention_norm": False,
    "post_mlp_norm": False, "shared_attention_norm": False, "norm_1": True, "norm_2": True, "lm_head_bias": False,
    "norm_qk_type": "default", "rope_interleave": False, "rope_local_base_freq": None,
}  # fmt: skip

NEOX = {
    "norm_1": "input_layernorm",
    "norm_2": "post_attention_layernorm",
    "attn.proj": "attention.dense",
    "mlp.fc": "mlp.dense_h_to_4h",
    "mlp.proj": "mlp.dense_4h_to_h",
}
LLAMA = {
    "norm_1": "input_layernorm",
    "norm_2": "post_attention_layernorm",
    "attn.norm_q": "self_attn.q_norm",
    "attn.norm_k": "self_attn.k_norm",
    "attn.proj": "self_attn.o_proj",
    "mlp.fc_1": "mlp.gate_proj",
    "mlp.fc_2": "mlp.up_proj",
    "mlp.proj": "mlp.down_proj",
}
OUTER = {
    "gpt_neox": {"transformer.wte": "gpt_neox.embed_in", "transformer.ln_f": "gpt_neox.final_layer_norm"},
    "llama": {"transformer.wte": "model.embed_tokens", "transformer.ln_f": "model.norm"},
}
HEAD = {"gpt_neox": "embed_out", "llama": "lm_head"}


class Heads(NamedTuple):
    """How the rows of the one matrix of queries, keys and values are shared out."""

    heads: int
    groups: int
    width: int

    @property
    def queries(self) -> int:
        """How many heads share the keys of a group."""
        return self.heads // self.groups


# --- the whole ------------------------------------------------------------------------------------------------------


def read_config(folder: Path) -> dict[str, Any]:
    """The settings of a LitGPT folder. Errors: NextileError when they are no YAML object of sound size."""
    path = inside(folder, CONFIG)
    try:
        if path.stat().st_size > LONGEST_CONFIG:
            raise ValueError(f"larger than {LONGEST_CONFIG >> 10} KiB")
        text = path.read_text(encoding="utf-8")
        _check_depth(text)
        found = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        why = (str(error).splitlines() or [""])[0]
        raise NextileError(f"'{path}' cannot be read as YAML ({why}): get a complete copy of it") from error
    if not isinstance(found, dict):
        raise NextileError(f"'{path}' holds no settings: get a complete copy of it")
    return found


def _check_depth(text: str) -> None:
    """Errors: ValueError, as soon as it is known, for levels within levels that the library needs seconds for."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST_CONFIG:
            raise ValueError(f"more than {DEEPEST_CONFIG} levels deep")


def read_litgpt(settings: Mapping[str, Any], saved: Any) -> Words:
    """The words of a LitGPT checkpoint: settings of its model_config.yaml, and what its lit_model.pth holds.

    Errors: NextileError for a shape that none of our families has.
    """
    state = _state(saved)
    tied = is_tied(state, "transformer.wte.weight")
    config = {**_config(settings), "vocab_size": len(state["transformer.wte.weight"]), "tie_word_embeddings": tied}
    return config, _tensors(state, config["model_type"], _heads(settings))


def _state(saved: Any) -> dict[str, Tensor]:
    saved = saved.get("model", saved) if isinstance(saved, dict) else saved
    if not isinstance(saved, dict) or not all(isinstance(value, Tensor) for value in saved.values()):
        raise NextileError(f"{WEIGHTS} holds no tensors by name: get a complete copy of it")
    return {str(name).removeprefix("_orig_mod."): value.detach() for name, value in saved.items()}


# --- the configuration ----------------------------------------------------------------------------------------------


def _config(settings: Mapping[str, Any]) -> dict[str, Any]:
    for name, unused in UNUSED.items():
        if settings.get(name, unused) not in (unused, None):
            raise NextileError(
                f"{name} is {settings[name]!r} in {CONFIG}: nextile reads LitGPT's GPT-NeoX, Llama, Mistral and Qwen "
                "shapes only, so convert it by LitGPT's own litgpt convert_from_litgpt"
            )
    heads = _heads(settings)
    common = {
        "max_position_embeddings": settings["block_size"],
        "hidden_size": settings["n_embd"],
        "num_hidden_layers": settings["n_layer"],
        "num_attention_heads": heads.heads,
        "intermediate_size": settings.get("intermediate_size") or 4 * settings["n_embd"],
        "rope_parameters": _rope(settings),
    }
    shape = (settings.get("norm_class_name", "LayerNorm"), settings.get("mlp_class_name", "GptNeoxMLP"))
    if shape == ("LayerNorm", "GptNeoxMLP"):
        return common | _neox(settings)
    if shape == ("RMSNorm", "LLaMAMLP"):
        return common | _llama(settings, heads)
    raise NextileError(
        f"{' with '.join(map(str, shape))} in {CONFIG} is a shape that nextile does not read from LitGPT: convert it "
        "by LitGPT's own litgpt convert_from_litgpt"
    )


def _neox(settings: Mapping[str, Any]) -> dict[str, Any]:
    if _groups(settings) != settings["n_head"] or not settings.get("bias", True):
        raise NextileError(f"{CONFIG} has a GPT-NeoX with shared keys or without biases, which nextile does not read")
    return {
        "model_type": "gpt_neox",
        "hidden_act": "gelu" if settings.get("gelu_approximate", "none") == "none" else "gelu_new",
        "use_parallel_residual": settings.get("parallel_residual", True),
        "layer_norm_eps": settings.get("norm_eps", 1e-5),
    }


def _llama(settings: Mapping[str, Any], heads: Heads) -> dict[str, Any]:
    if settings.get("parallel_residual", True) or settings.get("rotary_percentage", 0.25) != 1.0:
        raise NextileError(
            f"{CONFIG} has a Llama with parallel parts or partly turned heads, which nextile cannot read"
        )
    biased, qkv_biased = settings.get("bias", True), settings.get("attn_bias", False)
    window = _window(settings)
    kind = "qwen3" if settings.get("norm_qk") else "qwen2" if qkv_biased and not biased else "llama"
    if kind == "llama" and window is not None:
        kind = "mistral"
    return {
        "model_type": kind,
        "num_key_value_heads": heads.groups,
        "head_dim": heads.width,
        "hidden_act": "silu",
        "rms_norm_eps": settings.get("norm_eps", 1e-5),
        "attention_bias": biased or (qkv_biased and kind == "qwen3"),
        "mlp_bias": biased,
        "sliding_window": window,
        "use_sliding_window": window is not None,
        "max_window_layers": 0,
    }


def _window(settings: Mapping[str, Any]) -> int | None:
    """How many tokens every block sees. Errors: NextileError where only some blocks see a window."""
    window, which = settings.get("sliding_window_size"), settings.get("sliding_window_indices")
    if window is not None and which is not None and not all(list(which)[: settings["n_layer"]]):
        raise NextileError(f"sliding_window_indices of {CONFIG} leaves out some blocks, which nextile does not read")
    return window


def _rope(settings: Mapping[str, Any]) -> dict[str, Any]:
    """How far heads are turned. Errors: NextileError for a way to scale that nextile does not have."""
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": settings.get("rope_base", 10_000),
        "partial_rotary_factor": settings.get("rotary_percentage", 0.25),
    }
    ratio, adjusted = settings.get("rope_condense_ratio", 1), settings.get("rope_adjustments")
    if adjusted is None:
        return rope | ({"rope_type": "linear", "factor": ratio} if ratio != 1 else {})
    names = {"factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len"}
    if ratio != 1 or set(adjusted) not in ({"factor"}, names):
        raise NextileError(f"rope_adjustments of {CONFIG} are of a kind that nextile does not read: it reads Llama 3's")
    if set(adjusted) == {"factor"}:
        return rope | {"rope_type": "linear", "factor": adjusted["factor"]}
    original = adjusted["original_max_seq_len"]
    return rope | {**adjusted, "rope_type": "llama3", "original_max_position_embeddings": original}


def _groups(settings: Mapping[str, Any]) -> int:
    return settings.get("n_query_groups") or settings["n_head"]


def _heads(settings: Mapping[str, Any]) -> Heads:
    heads = settings["n_head"]
    return Heads(heads, _groups(settings), settings.get("head_size") or settings["n_embd"] // heads)


# --- the tensors ----------------------------------------------------------------------------------------------------


def _tensors(state: Mapping[str, Tensor], kind: str, heads: Heads) -> dict[str, Tensor]:
    family = "gpt_neox" if kind == "gpt_neox" else "llama"
    names = {**OUTER[family], "lm_head": HEAD[family]}
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        owner, _, part = name.rpartition(".")
        block, inner = _place(owner)
        if inner in ("attn.qkv", "attn.attn"):
            queries, keys, values = _apart(value, heads, by_group=inner == "attn.attn")
            found |= _attention(f"{block}.", part, (queries, keys, values), heads, family)
        elif block:
            known = NEOX if family == "gpt_neox" else LLAMA
            prefix = f"gpt_neox.layers.{block}" if family == "gpt_neox" else f"model.layers.{block}"
            found[f"{prefix}.{known.get(inner, inner)}.{part}"] = value
        else:
            found[f"{names.get(owner, owner)}.{part}"] = value
    return found


def _place(owner: str) -> tuple[str, str]:
    """transformer.h.3.mlp.fc -> ("3", "mlp.fc"); of a name outside of the blocks ("", name)."""
    if not owner.startswith("transformer.h."):
        return "", owner
    block, _, inner = owner.removeprefix("transformer.h.").partition(".")
    return block, inner


def _apart(joined: Tensor, heads: Heads, *, by_group: bool) -> tuple[Tensor, ...]:
    """Queries (H * E, ...), keys and values (K * E, ...) of one matrix or bias.

    by_group: as LitGPT had it before 2025, queries, keys and values of the first group, then those of the second.
    """
    h, k, e = heads
    if not by_group:
        return joined.split([h * e, k * e, k * e])
    groups = joined.unflatten(0, (k, heads.queries + 2, e))  # (K, H/K + 2, E, ...)
    parts = groups.split([heads.queries, 1, 1], dim=1)
    return tuple(part.flatten(0, 2).contiguous() for part in parts)


def _attention(block: str, part: str, parts: tuple[Tensor, ...], heads: Heads, family: str) -> dict[str, Tensor]:
    """Three tensors of Llama, or NeoX's one, in which those of a head stand together."""
    if family == "llama":
        return {f"model.layers.{block}self_attn.{n}_proj.{part}": t for n, t in zip("qkv", parts, strict=True)}
    together = torch.stack([each.unflatten(0, (heads.heads, heads.width)) for each in parts], dim=1)  # (H, 3, E, ...)
    return {f"gpt_neox.layers.{block}attention.query_key_value.{part}": together.flatten(0, 2)}
