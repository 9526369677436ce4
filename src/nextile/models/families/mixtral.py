"""Mixtral (Jiang et al. 2024): Mistral's shape, whose feed-forward nets are experts that a router chooses among."""

from collections.abc import Mapping
from typing import Any

from nextile.models.families import llamalike as like
from nextile.models.families.keymap import Rule, activation_here, expect, same, stacked
from nextile.nn import specs

MODEL_TYPE, ARCHITECTURE = "mixtral", "MixtralForCausalLM"

SIZES = {
    "mixtral-8x7b": {"depth": 32, "width": 4096, "heads": 32, "kv_heads": 8, "hidden": 14_336, "experts": 8},
}

BESIDE = like.BESIDE
NAMES = {"gate": "w1", "down": "w2", "up": "w3"}


def spec(
    *, vocab: int = 32_000, context: int = 32_768, width: int = 4096, depth: int = 32, heads: int = 32,
    kv_heads: int | None = None, head_dim: int | None = None, hidden: int | None = None, experts: int = 8,
    chosen: int = 2, activation: str = "silu", rotary: specs.Rotary | None = None, window: int | None = None,
    eps: float = 1e-5, tied: bool = False, dropout: float = 0.0, attention_dropout: float = 0.0,
) -> specs.Transformer:  # fmt: skip
    """The shape of Mixtral; what balances the experts' load in its training is not part of the model."""
    return like.decoder(
        vocab=vocab,
        context=context,
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        feed_forward=specs.Experts(
            hidden=hidden or like.gated_width(width), experts=experts, chosen=chosen,
            activation=activation,  # type: ignore[arg-type]
        ),
        norm=specs.RMSNorm(eps=eps),
        rotary=rotary or specs.Rotary(base=1_000_000.0),
        tied=tied,
        dropout=dropout,
        attention_dropout=attention_dropout,
        local=None if window is None else specs.Local(window=window),
    )  # fmt: skip


def from_config(config: Mapping[str, Any]) -> specs.Transformer:
    """The spec of a `config.json`."""
    expect(config, router_jitter_noise=0.0)
    return spec(
        **like.sizes_here(config, context=131_072, eps=1e-5),
        experts=config.get("num_local_experts", 8),
        chosen=config.get("num_experts_per_tok", 2),
        activation=activation_here(config.get("hidden_act", "silu")),
        rotary=like.rotary_here(config, base=1_000_000.0),
        window=config.get("sliding_window"),
        tied=like.is_tied(config),
    )


def to_config(model: specs.Transformer) -> dict[str, Any]:
    """The `config.json` of a spec."""
    experts, local = model.stack.feed_forward, model.stack.local
    assert isinstance(experts, specs.Experts)
    return {
        **like.sizes_there(model),
        "rope_parameters": like.rotary_there(model.stack.position),
        "num_local_experts": experts.experts,
        "num_experts_per_tok": experts.chosen,
        "sliding_window": None if local is None else local.window,
    }


def key_map(model: specs.Transformer) -> list[Rule]:
    """As Llama's; the matrices of all experts, which lie one by one there, are stacked here."""
    experts, rules = model.stack.feed_forward, like.rules_of(model)
    assert isinstance(experts, specs.Experts)
    for i in range(model.stack.depth):
        ours, theirs = f"stack.blocks.{i}.feed_forward.inner", f"model.layers.{i}.block_sparse_moe"
        rules.append(same(f"{ours}.router.weight", f"{theirs}.gate.weight"))
        for name, there in NAMES.items():
            each = [f"{theirs}.experts.{expert}.{there}.weight" for expert in range(experts.experts)]
            rules.append(stacked(f"{ours}.{name}.weight", each))
    return rules
