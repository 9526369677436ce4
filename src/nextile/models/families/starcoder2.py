"""StarCoder2 (Lozhkov et al. 2024), for code: Llama's turns and groups of heads, with GPT-2's norms, biases and net."""

from collections.abc import Mapping
from typing import Any

from nextile.models.families import llamalike as like
from nextile.models.families.keymap import Rule, activation_here, same
from nextile.nn import specs

MODEL_TYPE, ARCHITECTURE = "starcoder2", "Starcoder2ForCausalLM"

SIZES = {
    "starcoder2-3b": {"depth": 30, "width": 3072, "heads": 24, "kv_heads": 2},
    "starcoder2-7b": {"depth": 32, "width": 4608, "heads": 36, "kv_heads": 4},
}

BESIDE = like.BESIDE
NET = {"up": "c_fc", "down": "c_proj"}


def spec(
    *, vocab: int = 49_152, context: int = 16_384, width: int = 3072, depth: int = 30, heads: int = 24,
    kv_heads: int | None = None, head_dim: int | None = None, hidden: int | None = None,
    activation: str = "gelu_tanh", rotary: specs.Rotary | None = None, window: int | None = None, eps: float = 1e-5,
    tied: bool = True, bias: bool = True, dropout: float = 0.0, attention_dropout: float = 0.0,
) -> specs.Transformer:  # fmt: skip
    """The shape of StarCoder2; window: what each token looks back at, None: all."""
    net = specs.MLP(hidden=hidden or 4 * width, activation=activation, bias=bias)  # type: ignore[arg-type]
    return like.decoder(
        vocab=vocab,
        context=context,
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        feed_forward=net,
        norm=specs.LayerNorm(eps=eps),
        rotary=rotary or specs.Rotary(base=999_999.0),
        tied=tied,
        dropout=dropout,
        attention_dropout=attention_dropout,
        attention={"bias": "all" if bias else "none"},
        local=None if window is None else specs.Local(window=window),
    )


def from_config(config: Mapping[str, Any]) -> specs.Transformer:
    """The spec of a `config.json`."""
    sizes = like.sizes_here(config, context=4096)
    sizes |= {"eps": config.get("norm_epsilon", 1e-5), "dropout": config.get("residual_dropout", 0.0)}
    return spec(
        **sizes,
        activation=activation_here(config.get("hidden_act", "gelu_pytorch_tanh")),
        rotary=like.rotary_here(config),
        window=config.get("sliding_window"),
        tied=config.get("tie_word_embeddings", True),
        bias=config.get("use_bias", True),
    )


def to_config(model: specs.Transformer) -> dict[str, Any]:
    """The `config.json` of a spec."""
    stack = model.stack
    assert isinstance(stack.norm, specs.LayerNorm)
    assert isinstance(stack.feed_forward, specs.MLP)
    return {
        **like.sizes_there(model),
        "norm_epsilon": stack.norm.eps,
        "rope_parameters": like.rotary_there(stack.position),
        "sliding_window": None if stack.local is None else stack.local.window,
        "use_bias": stack.feed_forward.bias,
        "residual_dropout": stack.dropout,
        "embedding_dropout": stack.dropout,
    }


def key_map(model: specs.Transformer) -> list[Rule]:
    """Every tensor as it is, under another name."""
    stack = model.stack
    assert isinstance(stack.feed_forward, specs.MLP)
    rules = [*like.rules_of(model), same("stack.norm.bias", "model.norm.bias")]
    parts = ("weight", "bias") if stack.feed_forward.bias else ("weight",)
    for i in range(stack.depth):
        ours, theirs = f"stack.blocks.{i}", f"model.layers.{i}"
        rules += [same(f"{ours}.{a}.bias", f"{theirs}.{b}.bias") for a, b in like.NORMS.items()]
        rules += [
            same(f"{ours}.feed_forward.inner.{a}.{part}", f"{theirs}.mlp.{b}.{part}")
            for a, b in NET.items()
            for part in parts
        ]
    return rules
