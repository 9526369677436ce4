"""Qwen3 (Yang et al. 2025), the default language model: RMS norm, rotary positions, QK-norm, SwiGLU."""

from collections.abc import Mapping
from typing import Any

from nextile.models.families.keymap import Rule, expect, same
from nextile.nn import specs

MODEL_TYPE, ARCHITECTURE = "qwen3", "Qwen3ForCausalLM"

SIZES = {
    "qwen3-0.6b": {"depth": 28, "width": 1024, "heads": 16, "kv_heads": 8, "head_dim": 128, "hidden": 3072},
    "qwen3-1.7b": {"depth": 28, "width": 2048, "heads": 16, "kv_heads": 8, "head_dim": 128, "hidden": 6144},
    "qwen3-4b": {"depth": 36, "width": 2560, "heads": 32, "kv_heads": 8, "head_dim": 128, "hidden": 9728},
}

BESIDE = {"lm_head.weight": "model.embed_tokens.weight"}


def gated_width(width: int) -> int:
    """8/3 of the width, in multiples of 32: three matrices of it cost what two of 4 * width do (Shazeer 2020)."""
    return max(32, round(width * 8 / 3 / 32) * 32)


def spec(
    *, vocab: int = 151_936, context: int = 40_960, width: int = 1024, depth: int = 28, heads: int = 16,
    kv_heads: int | None = None, head_dim: int | None = None, hidden: int | None = None, base: float = 1_000_000.0,
    eps: float = 1e-6, tied: bool = True, bias: bool = False, dropout: float = 0.0,
) -> specs.Transformer:  # fmt: skip
    """The shape of Qwen3."""
    return specs.Transformer(
        context=context,
        embed=specs.TokenEmbedding(vocab=vocab, dropout=dropout),
        stack=specs.Stack(
            width=width,
            depth=depth,
            attention=specs.Attention(
                heads=heads,
                kv_heads=kv_heads or heads,
                head_dim=head_dim or width // heads,
                bias="all" if bias else "none",
                qk_norm=specs.RMSNorm(eps=eps),
            ),
            feed_forward=specs.GatedMLP(hidden=hidden or gated_width(width)),
            norm=specs.RMSNorm(eps=eps),
            causal=True,
            position=specs.Rotary(base=base),
            dropout=dropout,
        ),
        head=specs.TiedHead() if tied else specs.LinearHead(),
    )


def from_config(config: Mapping[str, Any]) -> specs.Transformer:
    """The spec of a `config.json`."""
    expect(config, use_sliding_window=False, hidden_act="silu", attention_dropout=0.0)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    expect(rope, rope_type="default")
    return spec(
        vocab=config["vocab_size"],
        context=config["max_position_embeddings"],
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads"),
        head_dim=config.get("head_dim"),
        hidden=config["intermediate_size"],
        base=rope.get("rope_theta", config.get("rope_theta", 10_000.0)),
        eps=config.get("rms_norm_eps", 1e-6),
        tied=config.get("tie_word_embeddings", False),
        bias=config.get("attention_bias", False),
        dropout=config.get("nextile_dropout", 0.0),
    )


def to_config(model: specs.Transformer) -> dict[str, Any]:
    """The `config.json` of a spec."""
    stack, attention = model.stack, model.stack.attention
    assert isinstance(stack.position, specs.Rotary)
    return {
        "vocab_size": model.embed.vocab,
        "max_position_embeddings": model.context,
        "hidden_size": stack.width,
        "num_hidden_layers": stack.depth,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads or attention.heads,
        "head_dim": attention.head_width(stack.width),
        "intermediate_size": stack.feed_forward.hidden,
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": stack.position.base},
        "rms_norm_eps": stack.norm.eps,
        "attention_bias": attention.bias == "all",
        "attention_dropout": attention.dropout,
        "tie_word_embeddings": isinstance(model.head, specs.TiedHead),
        "use_sliding_window": False,
        "nextile_dropout": stack.dropout,
    }


def key_map(model: specs.Transformer) -> list[Rule]:
    """Every tensor as it is, under another name."""
    rules = [
        same("embed.token.weight", "model.embed_tokens.weight"),
        same("stack.norm.weight", "model.norm.weight"),
    ]
    if isinstance(model.head, specs.LinearHead):
        rules.append(same("head.weight", "lm_head.weight"))
    parts = ("weight", "bias") if model.stack.attention.bias == "all" else ("weight",)
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
    for i in range(model.stack.depth):
        a, f, theirs = f"stack.blocks.{i}.self_attention", f"stack.blocks.{i}.feed_forward", f"model.layers.{i}"
        rules += [
            same(f"{a}.norm.weight", f"{theirs}.input_layernorm.weight"),
            same(f"{a}.inner.query_norm.weight", f"{theirs}.self_attn.q_norm.weight"),
            same(f"{a}.inner.key_norm.weight", f"{theirs}.self_attn.k_norm.weight"),
            same(f"{f}.norm.weight", f"{theirs}.post_attention_layernorm.weight"),
        ]
        rules += [
            same(f"{a}.inner.{ours}.{p}", f"{theirs}.self_attn.{name}.{p}")
            for ours, name in names.items()
            for p in parts
        ]
        rules += [
            same(f"{f}.inner.{name}.weight", f"{theirs}.mlp.{name}_proj.weight") for name in ("gate", "up", "down")
        ]
    return rules
