"""Qwen2 (Yang et al. 2024), also Qwen2.5: Llama's shape with biases on queries, keys and values."""

from collections.abc import Mapping
from typing import Any

from nextile.models.families import llamalike as like
from nextile.models.families.keymap import Rule
from nextile.nn import specs

MODEL_TYPE, ARCHITECTURE = "qwen2", "Qwen2ForCausalLM"

SIZES = {
    "qwen2.5-0.5b": {"depth": 24, "width": 896, "heads": 14, "kv_heads": 2, "hidden": 4864},
    "qwen2.5-1.5b": {"depth": 28, "width": 1536, "heads": 12, "kv_heads": 2, "hidden": 8960},
}

BESIDE = like.BESIDE


def spec(
    *, vocab: int = 151_936, context: int = 32_768, width: int = 896, depth: int = 24, heads: int = 14,
    kv_heads: int | None = None, head_dim: int | None = None, hidden: int | None = None,
    feed_forward: specs.GatedMLP | None = None, rotary: specs.Rotary | None = None, local: specs.Local | None = None,
    eps: float = 1e-6, tied: bool = True, dropout: float = 0.0, attention_dropout: float = 0.0,
) -> specs.Transformer:  # fmt: skip
    """The shape of Qwen2."""
    return like.decoder(
        vocab=vocab,
        context=context,
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        feed_forward=feed_forward or specs.GatedMLP(hidden=hidden or like.gated_width(width)),
        norm=specs.RMSNorm(eps=eps),
        rotary=rotary or specs.Rotary(base=1_000_000.0),
        tied=tied,
        dropout=dropout,
        attention_dropout=attention_dropout,
        attention={"bias": "qkv"},
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
    )


def to_config(model: specs.Transformer) -> dict[str, Any]:
    """The `config.json` of a spec."""
    return {
        **like.sizes_there(model),
        "rope_parameters": like.rotary_there(model.stack.position),
        **like.late_windows_there(model.stack),
    }


def key_map(model: specs.Transformer) -> list[Rule]:
    """Every tensor as it is, under another name."""
    return like.rules_of(model)
