"""Gemma 3 (Gemma Team 2025), its language models: Gemma 2's shape with QK-norm, and turns of two bases."""

from collections.abc import Mapping
from math import sqrt
from typing import Any

from nextile.models.families import llamalike as like
from nextile.models.families.gemma2 import NORMS, activation_name, expect_this_shape, scalar_of, scale_of
from nextile.models.families.keymap import Rule, activation_here
from nextile.nn import specs

MODEL_TYPE, ARCHITECTURE = "gemma3_text", "Gemma3ForCausalLM"

SIZES = {
    "gemma3-270m": {"depth": 18, "width": 640, "heads": 4, "kv_heads": 1, "head_dim": 256, "hidden": 2048},
    "gemma3-1b": {"depth": 26, "width": 1152, "heads": 4, "kv_heads": 1, "head_dim": 256, "hidden": 6912},
}

BESIDE = like.BESIDE
GLOBAL, LOCAL = 1_000_000.0, 10_000.0  # bases of the turns
FIVE_OF_SIX = specs.Local(window=512, pattern=(True,) * 5 + (False,), position=specs.Rotary(base=LOCAL))


def spec(
    *, vocab: int = 262_144, context: int = 32_768, width: int = 640, depth: int = 18, heads: int = 4,
    kv_heads: int | None = None, head_dim: int | None = None, hidden: int | None = None,
    activation: str = "gelu_tanh", rotary: specs.Rotary | None = None,
    local: specs.Local | None = FIVE_OF_SIX, scalar: float | None = None, attention_cap: float | None = None,
    cap: float | None = None, eps: float = 1e-6, bias: bool = False, dropout: float = 0.0,
    attention_dropout: float = 0.0,
) -> specs.Transformer:  # fmt: skip
    """The shape of Gemma 3; scalar: scores are divided by its root, None: by that of the head width."""
    norm = specs.OffsetRMSNorm(eps=eps)
    return like.decoder(
        vocab=vocab,
        context=context,
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        feed_forward=specs.GatedMLP(hidden=hidden or 4 * width, activation=activation),  # type: ignore[arg-type]
        norm=norm,
        rotary=rotary or specs.Rotary(base=GLOBAL),
        tied=True,
        dropout=dropout,
        attention_dropout=attention_dropout,
        attention={
            "bias": "all" if bias else "none",
            "scale": scale_of(scalar, head_dim or width // heads),
            "soft_cap": attention_cap,
            "qk_norm": norm,
        },
        scale=sqrt(width),
        soft_cap=cap,
        norm_place="around",
        local=local,
    )


def from_config(config: Mapping[str, Any]) -> specs.Transformer:
    """The spec of a `config.json`; without layer_types five blocks of six see a window."""
    expect_this_shape(config)
    everywhere, windows = _rotaries_here(config)
    every = config.get("sliding_window_pattern", 6)
    pattern = tuple((i + 1) % every != 0 for i in range(min(every, 1024)))
    local = like.windowed({"sliding_window": 4096, **config}, pattern)
    return spec(
        **like.sizes_here({"head_dim": 256, **config}, context=131_072),
        activation=activation_here(config.get("hidden_activation") or "gelu_pytorch_tanh"),
        rotary=everywhere,
        local=specs.Local(window=local.window, pattern=local.pattern, position=windows) if local else None,
        scalar=config.get("query_pre_attn_scalar", 256),
        attention_cap=config.get("attn_logit_softcapping"),
        cap=config.get("final_logit_softcapping"),
        bias=config.get("attention_bias", False),
    )


def _rotaries_here(config: Mapping[str, Any]) -> tuple[specs.Rotary, specs.Rotary]:
    """Of blocks that see everything and of those that see a window, in the words of today or those before."""
    each = config.get("rope_parameters") or {}
    if "full_attention" in each or "sliding_attention" in each:
        full, window = (each.get(kind) or {} for kind in ("full_attention", "sliding_attention"))
        return like.rotary_here({"rope_parameters": full}, base=GLOBAL), like.rotary_here(
            {"rope_parameters": window}, base=LOCAL
        )
    return like.rotary_here(config, base=GLOBAL), specs.Rotary(base=config.get("rope_local_base_freq", LOCAL))


def to_config(model: specs.Transformer) -> dict[str, Any]:
    """The `config.json` of a spec."""
    stack = model.stack
    assert isinstance(model.head, specs.TiedHead)
    window = stack.local.position if stack.local else specs.Rotary(base=LOCAL)
    return {
        **like.sizes_there(model),
        "hidden_activation": activation_name(stack.feed_forward.activation),
        "rope_parameters": {
            "full_attention": like.rotary_there(stack.position),
            "sliding_attention": like.rotary_there(window),
        },
        "sliding_window": None if stack.local is None else stack.local.window,
        "layer_types": like.layer_types(stack),
        "query_pre_attn_scalar": scalar_of(stack),
        "attn_logit_softcapping": stack.attention.soft_cap,
        "final_logit_softcapping": model.head.soft_cap,
        "attention_bias": stack.attention.bias == "all",
    }


def key_map(model: specs.Transformer) -> list[Rule]:
    """Every tensor as it is, under another name."""
    return like.rules_of(model, NORMS)
