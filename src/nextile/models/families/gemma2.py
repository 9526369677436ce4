"""Gemma 2 (Gemma Team 2024): norms around each part, capped scores, and a window in every other block."""

from collections.abc import Mapping
from math import sqrt
from typing import Any

from nextile.models.families import llamalike as like
from nextile.models.families.keymap import Rule, activation_here, expect
from nextile.nn import specs

MODEL_TYPE, ARCHITECTURE = "gemma2", "Gemma2ForCausalLM"

SIZES = {
    "gemma2-2b": {"depth": 26, "width": 2304, "heads": 8, "kv_heads": 4, "head_dim": 256, "hidden": 9216},
    "gemma2-9b": {"depth": 42, "width": 3584, "heads": 16, "kv_heads": 8, "head_dim": 256, "hidden": 14_336},
}

BESIDE = like.BESIDE
EVERY_OTHER = specs.Local(window=4096, pattern=(True, False))
NORMS = {
    "self_attention.norm": "input_layernorm",
    "self_attention.after_norm": "post_attention_layernorm",
    "feed_forward.norm": "pre_feedforward_layernorm",
    "feed_forward.after_norm": "post_feedforward_layernorm",
}


def spec(
    *, vocab: int = 256_000, context: int = 8192, width: int = 2304, depth: int = 26, heads: int = 8,
    kv_heads: int | None = None, head_dim: int | None = None, hidden: int | None = None,
    activation: str = "gelu_tanh", rotary: specs.Rotary | None = None,
    local: specs.Local | None = EVERY_OTHER, scalar: float | None = None,
    attention_cap: float | None = 50.0, cap: float | None = 30.0, eps: float = 1e-6, bias: bool = False,
    dropout: float = 0.0, attention_dropout: float = 0.0,
) -> specs.Transformer:  # fmt: skip
    """The shape of Gemma 2; scalar: scores are divided by its root, None: by that of the head width."""
    return like.decoder(
        vocab=vocab,
        context=context,
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        feed_forward=specs.GatedMLP(hidden=hidden or 4 * width, activation=activation),  # type: ignore[arg-type]
        norm=specs.OffsetRMSNorm(eps=eps),
        rotary=rotary or specs.Rotary(),
        tied=True,
        dropout=dropout,
        attention_dropout=attention_dropout,
        attention={
            "bias": "all" if bias else "none",
            "scale": scale_of(scalar, head_dim or width // heads),
            "soft_cap": attention_cap,
        },
        scale=sqrt(width),
        soft_cap=cap,
        norm_place="around",
        local=local,
    )


def scale_of(scalar: float | None, head_dim: int) -> float | None:
    """What scores are multiplied by, where that is not what every attention does."""
    return None if scalar is None or scalar == head_dim else scalar**-0.5


def scalar_of(stack: specs.Stack) -> int:
    """The `query_pre_attn_scalar` of a stack, a whole number there."""
    scale = stack.attention.scale
    return stack.attention.head_width(stack.width) if scale is None else round(scale**-2)


def expect_this_shape(config: Mapping[str, Any]) -> None:
    """Refuse what no Gemma may be here."""
    expect(config, tie_word_embeddings=True)
    if config.get("use_bidirectional_attention") is not None:  # null there, where it means no
        expect(config, use_bidirectional_attention=False)


def from_config(config: Mapping[str, Any]) -> specs.Transformer:
    """The spec of a `config.json`; without layer_types every other block sees a window, the first among them."""
    expect_this_shape(config)
    said = {"sliding_window": 4096, **config}
    return spec(
        **like.sizes_here({"head_dim": 256, **config}, context=8192),
        activation=activation_here(config.get("hidden_activation") or "gelu_pytorch_tanh"),
        rotary=like.rotary_here(config),
        local=like.windowed(said, (True, False)),
        scalar=config.get("query_pre_attn_scalar", 256),
        attention_cap=config.get("attn_logit_softcapping", 50.0),
        cap=config.get("final_logit_softcapping", 30.0),
        bias=config.get("attention_bias", False),
    )


def to_config(model: specs.Transformer) -> dict[str, Any]:
    """The `config.json` of a spec."""
    stack, sizes = model.stack, like.sizes_there(model)
    assert isinstance(model.head, specs.TiedHead)
    return {
        **sizes,
        "hidden_activation": activation_name(stack.feed_forward.activation),
        "rope_parameters": like.rotary_there(stack.position),
        "sliding_window": None if stack.local is None else stack.local.window,
        "layer_types": like.layer_types(stack),
        "query_pre_attn_scalar": scalar_of(stack),
        "attn_logit_softcapping": stack.attention.soft_cap,
        "final_logit_softcapping": model.head.soft_cap,
        "attention_bias": stack.attention.bias == "all",
    }


def activation_name(ours: str) -> str:
    """What Gemma's configurations call the tanh form of GELU, and the others as usual."""
    return "gelu_pytorch_tanh" if ours == "gelu_tanh" else ours


def key_map(model: specs.Transformer) -> list[Rule]:
    """Every tensor as it is, under another name."""
    return like.rules_of(model, NORMS)
