"""OLMo 2 (OLMo et al. 2024): norms on what each part gives instead of before it, and over all queries and keys."""

from collections.abc import Mapping
from typing import Any

from nextile.models.families import llamalike as like
from nextile.models.families.keymap import Rule
from nextile.nn import specs

MODEL_TYPE, ARCHITECTURE = "olmo2", "Olmo2ForCausalLM"

SIZES = {
    "olmo2-1b": {"depth": 16, "width": 2048, "heads": 16, "hidden": 8192},
    "olmo2-7b": {"depth": 32, "width": 4096, "heads": 32, "hidden": 11_008},
}

BESIDE = like.BESIDE
NORMS = {"self_attention.norm": "post_attention_layernorm", "feed_forward.norm": "post_feedforward_layernorm"}


def spec(
    *, vocab: int = 100_352, context: int = 4096, width: int = 2048, depth: int = 16, heads: int = 16,
    kv_heads: int | None = None, head_dim: int | None = None, hidden: int | None = None,
    feed_forward: specs.GatedMLP | None = None, rotary: specs.Rotary | None = None, eps: float = 1e-6,
    tied: bool = False, bias: bool = False, dropout: float = 0.0, attention_dropout: float = 0.0,
) -> specs.Transformer:  # fmt: skip
    """The shape of OLMo 2."""
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
        rotary=rotary or specs.Rotary(base=500_000.0),
        tied=tied,
        dropout=dropout,
        attention_dropout=attention_dropout,
        attention={"bias": "all" if bias else "none", "qk_norm": norm, "qk_norm_over": "heads"},
        norm_place="inside",
    )


def from_config(config: Mapping[str, Any]) -> specs.Transformer:
    """The spec of a `config.json`."""
    return spec(
        **like.sizes_here(config, eps=1e-5),
        feed_forward=like.gated_here(config),
        rotary=like.rotary_here(config),
        tied=like.is_tied(config),
        bias=config.get("attention_bias", False),
    )


def to_config(model: specs.Transformer) -> dict[str, Any]:
    """The `config.json` of a spec."""
    return {
        **like.sizes_there(model),
        "rope_parameters": like.rotary_there(model.stack.position),
        "attention_bias": model.stack.attention.bias == "all",
    }


def key_map(model: specs.Transformer) -> list[Rule]:
    """Every tensor as it is, under another name."""
    return like.rules_of(model, NORMS)
