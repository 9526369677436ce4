"""Llama 2 and 3 (Touvron et al. 2023, Dubey et al. 2024): RMS norm, rotary positions, SwiGLU, and hardly a bias."""

from collections.abc import Mapping
from typing import Any

from nextile.models.families import llamalike as like
from nextile.models.families.keymap import Rule, expect
from nextile.nn import specs

MODEL_TYPE, ARCHITECTURE = "llama", "LlamaForCausalLM"

SIZES = {
    "llama-3.2-1b": {"depth": 16, "width": 2048, "heads": 32, "kv_heads": 8, "hidden": 8192},
    "llama-3.2-3b": {"depth": 28, "width": 3072, "heads": 24, "kv_heads": 8, "hidden": 8192},
    "llama-2-7b": {"depth": 32, "width": 4096, "heads": 32, "kv_heads": 32, "hidden": 11_008},
    "llama-3-8b": {"depth": 32, "width": 4096, "heads": 32, "kv_heads": 8, "hidden": 14_336},
    "llama-3-70b": {"depth": 80, "width": 8192, "heads": 64, "kv_heads": 8, "hidden": 28_672},
    "llama-3-405b": {"depth": 126, "width": 16_384, "heads": 128, "kv_heads": 8, "hidden": 53_248},
}

BESIDE = like.BESIDE


def spec(
    *, vocab: int = 128_256, context: int = 8192, width: int = 4096, depth: int = 32, heads: int = 32,
    kv_heads: int | None = None, head_dim: int | None = None, hidden: int | None = None,
    feed_forward: specs.GatedMLP | None = None, rotary: specs.Rotary | None = None, eps: float = 1e-5,
    tied: bool = False, bias: bool = False, dropout: float = 0.0, attention_dropout: float = 0.0,
) -> specs.Transformer:  # fmt: skip
    """The shape of Llama; the defaults are Llama 3's."""
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
        rotary=rotary or specs.Rotary(base=500_000.0),
        tied=tied,
        dropout=dropout,
        attention_dropout=attention_dropout,
        attention={"bias": "all" if bias else "none"},
    )


def from_config(config: Mapping[str, Any]) -> specs.Transformer:
    """The spec of a `config.json`."""
    expect(config, pretraining_tp=1)
    return spec(
        **like.sizes_here(config),
        feed_forward=like.gated_here(config),
        rotary=like.rotary_here(config),
        tied=like.is_tied(config),
        bias=config.get("attention_bias", False),
    )


def to_config(model: specs.Transformer) -> dict[str, Any]:
    """The `config.json` of a spec."""
    assert isinstance(model.stack.feed_forward, specs.GatedMLP)
    return {
        **like.sizes_there(model),
        "rope_parameters": like.rotary_there(model.stack.position),
        "attention_bias": model.stack.attention.bias == "all",
        "mlp_bias": model.stack.feed_forward.bias,
    }


def key_map(model: specs.Transformer) -> list[Rule]:
    """Every tensor as it is, under another name."""
    return like.rules_of(model)
