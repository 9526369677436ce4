"""Mistral (Jiang et al. 2023): Llama's shape, in which every block may see a window of tokens alone."""

from collections.abc import Mapping
from typing import Any

from nextile.models.families import llamalike as like
from nextile.models.families.keymap import Rule
from nextile.nn import specs

MODEL_TYPE, ARCHITECTURE = "mistral", "MistralForCausalLM"

SIZES = {"mistral-7b": {"depth": 32, "width": 4096, "heads": 32, "kv_heads": 8, "hidden": 14_336}}

BESIDE = like.BESIDE


def spec(
    *, vocab: int = 32_000, context: int = 32_768, width: int = 4096, depth: int = 32, heads: int = 32,
    kv_heads: int | None = None, head_dim: int | None = None, hidden: int | None = None,
    feed_forward: specs.GatedMLP | None = None, rotary: specs.Rotary | None = None, window: int | None = 4096,
    eps: float = 1e-5, tied: bool = False, dropout: float = 0.0, attention_dropout: float = 0.0,
) -> specs.Transformer:  # fmt: skip
    """The shape of Mistral; window: how many tokens a block sees, None: all before."""
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
        rotary=rotary or specs.Rotary(),
        tied=tied,
        dropout=dropout,
        attention_dropout=attention_dropout,
        local=None if window is None else specs.Local(window=window),
    )


def from_config(config: Mapping[str, Any]) -> specs.Transformer:
    """The spec of a `config.json`."""
    return spec(
        **like.sizes_here(config, context=131_072),
        feed_forward=like.gated_here(config),
        rotary=like.rotary_here(config),
        window=config.get("sliding_window", 4096),
        tied=like.is_tied(config),
    )


def to_config(model: specs.Transformer) -> dict[str, Any]:
    """The `config.json` of a spec."""
    local = model.stack.local
    return {
        **like.sizes_there(model),
        "rope_parameters": like.rotary_there(model.stack.position),
        "sliding_window": None if local is None else local.window,
    }


def key_map(model: specs.Transformer) -> list[Rule]:
    """Every tensor as it is, under another name."""
    return like.rules_of(model)
