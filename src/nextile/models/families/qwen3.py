"""Qwen3 (Yang et al. 2025), the default language model: RMS norm, rotary positions, QK-norm, SwiGLU."""

from collections.abc import Mapping
from typing import Any

from nextile.models.families import llamalike as like
from nextile.models.families.keymap import Rule
from nextile.nn import specs

MODEL_TYPE, ARCHITECTURE = "qwen3", "Qwen3ForCausalLM"

SIZES = {
    "qwen3-0.6b": {"depth": 28, "width": 1024, "heads": 16, "kv_heads": 8, "head_dim": 128, "hidden": 3072},
    "qwen3-1.7b": {"depth": 28, "width": 2048, "heads": 16, "kv_heads": 8, "head_dim": 128, "hidden": 6144},
    "qwen3-4b": {"depth": 36, "width": 2560, "heads": 32, "kv_heads": 8, "head_dim": 128, "hidden": 9728},
}

BESIDE = like.BESIDE


def spec(
    *, vocab: int = 151_936, context: int = 40_960, width: int = 1024, depth: int = 28, heads: int = 16,
    kv_heads: int | None = None, head_dim: int | None = None, hidden: int | None = None,
    feed_forward: specs.GatedMLP | None = None, rotary: specs.Rotary | None = None, local: specs.Local | None = None,
    base: float = 1_000_000.0, eps: float = 1e-6, tied: bool = True, bias: bool = False, dropout: float = 0.0,
    attention_dropout: float = 0.0,
) -> specs.Transformer:  # fmt: skip
    """The shape of Qwen3."""
    norm = specs.RMSNorm(eps=eps)
    return like.decoder(
        vocab=vocab,
        context=context,
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        feed_forward=feed_forward or specs.GatedMLP(hidden=hidden or like.gated_width(width)),
        norm=norm,
        rotary=rotary or specs.Rotary(base=base),
        tied=tied,
        dropout=dropout,
        attention_dropout=attention_dropout,
        attention={"bias": "all" if bias else "none", "qk_norm": norm},
        local=local,
    )


def from_config(config: Mapping[str, Any]) -> specs.Transformer:
    """The spec of a `config.json`."""
    return spec(
        **like.sizes_here(config, context=32_768),
        feed_forward=like.gated_here(config),
        rotary=like.rotary_here(config),
        local=like.late_windows(config),
        tied=like.is_tied(config),
        bias=config.get("attention_bias", False),
    )


def to_config(model: specs.Transformer) -> dict[str, Any]:
    """The `config.json` of a spec."""
    return {
        **like.sizes_there(model),
        "rope_parameters": like.rotary_there(model.stack.position),
        "attention_bias": model.stack.attention.bias == "all",
        **like.late_windows_there(model.stack),
    }


def key_map(model: specs.Transformer) -> list[Rule]:
    """Every tensor as it is, under another name."""
    return like.rules_of(model)
