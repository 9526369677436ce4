"""GPT-NeoX (Black et al. 2022), also Pythia (Biderman et al. 2023): attention and feed-forward side by side."""

from collections.abc import Mapping
from typing import Any

from nextile.models.families.keymap import Rule, activation_here, activation_there, by_head, same
from nextile.models.families.llamalike import rotary_here, rotary_there
from nextile.nn import specs

MODEL_TYPE, ARCHITECTURE = "gpt_neox", "GPTNeoXForCausalLM"

SIZES = {
    "pythia-14m": {"depth": 6, "width": 128, "heads": 4},
    "pythia-70m": {"depth": 6, "width": 512, "heads": 8},
    "pythia-160m": {"depth": 12, "width": 768, "heads": 12},
    "pythia-410m": {"depth": 24, "width": 1024, "heads": 16},
    "pythia-1b": {"depth": 16, "width": 2048, "heads": 8},
}

BESIDE = {
    "embed_out.weight": "gpt_neox.embed_in.weight",
    # What older checkpoints keep of each layer although it is computed: masks and frequencies.
    **{
        f"gpt_neox.layers.{i}.attention.{name}": None
        for i in range(64)
        for name in ("bias", "masked_bias", "rotary_emb.inv_freq")
    },
}
PARTS = {
    "self_attention.norm": "input_layernorm",
    "self_attention.inner.out": "attention.dense",
    "feed_forward.norm": "post_attention_layernorm",
    "feed_forward.inner.up": "mlp.dense_h_to_4h",
    "feed_forward.inner.down": "mlp.dense_4h_to_h",
}


def spec(
    *, vocab: int = 50_304, context: int = 2048, width: int = 768, depth: int = 12, heads: int = 12,
    hidden: int | None = None, activation: str = "gelu", rotary: specs.Rotary | None = None, parallel: bool = True,
    eps: float = 1e-5, tied: bool = False, bias: bool = True, dropout: float = 0.0, attention_dropout: float = 0.0,
) -> specs.Transformer:  # fmt: skip
    """The shape of GPT-NeoX; the defaults are Pythia's 160M model."""
    return specs.Transformer(
        context=context,
        embed=specs.TokenEmbedding(vocab=vocab, dropout=dropout),
        stack=specs.Stack(
            width=width,
            depth=depth,
            attention=specs.Attention(heads=heads, bias="all" if bias else "none", dropout=attention_dropout),
            feed_forward=specs.MLP(hidden=hidden or 4 * width, activation=activation),  # type: ignore[arg-type]
            norm=specs.LayerNorm(eps=eps),
            order="parallel" if parallel else "serial",
            causal=True,
            position=rotary or specs.Rotary(share=0.25),
            dropout=dropout,
        ),
        head=specs.TiedHead() if tied else specs.LinearHead(),
    )


def from_config(config: Mapping[str, Any]) -> specs.Transformer:
    """The spec of a `config.json`."""
    base, share = config.get("rotary_emb_base", 10_000.0), config.get("rotary_pct", 0.25)
    return spec(
        vocab=config["vocab_size"],
        context=config["max_position_embeddings"],
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
        activation=activation_here(config.get("hidden_act", "gelu")),
        rotary=rotary_here(config, base=base, share=share),
        parallel=config.get("use_parallel_residual", True),
        eps=config.get("layer_norm_eps", 1e-5),
        tied=config.get("tie_word_embeddings", False),
        bias=config.get("attention_bias", True),
        dropout=config.get("hidden_dropout", 0.0),
        attention_dropout=config.get("attention_dropout", 0.0),
    )


def to_config(model: specs.Transformer) -> dict[str, Any]:
    """The `config.json` of a spec."""
    stack = model.stack
    assert isinstance(stack.position, specs.Rotary)
    return {
        "vocab_size": model.embed.vocab,
        "max_position_embeddings": model.context,
        "hidden_size": stack.width,
        "num_hidden_layers": stack.depth,
        "num_attention_heads": stack.attention.heads,
        "intermediate_size": stack.feed_forward.hidden,
        "hidden_act": activation_there(stack.feed_forward.activation),
        "rope_parameters": {**rotary_there(stack.position), "partial_rotary_factor": stack.position.share},
        "use_parallel_residual": stack.order == "parallel",
        "layer_norm_eps": stack.norm.eps,
        "tie_word_embeddings": isinstance(model.head, specs.TiedHead),
        "attention_bias": stack.attention.bias == "all",
        "hidden_dropout": stack.dropout,
        "attention_dropout": stack.attention.dropout,
    }


def key_map(model: specs.Transformer) -> list[Rule]:
    """Queries, keys and values of a head stand one after the other in one matrix, head by head."""
    stack = model.stack
    rules = [same("embed.token.weight", "gpt_neox.embed_in.weight")]
    rules += [same(f"stack.norm.{part}", f"gpt_neox.final_layer_norm.{part}") for part in ("weight", "bias")]
    if isinstance(model.head, specs.LinearHead):
        rules.append(same("head.weight", "embed_out.weight"))
    for i in range(stack.depth):
        ours, theirs = f"stack.blocks.{i}", f"gpt_neox.layers.{i}"
        for part in ("weight", "bias"):
            plain = part == "weight" or stack.attention.bias == "all"
            rules += [
                same(f"{ours}.{a}.{part}", f"{theirs}.{b}.{part}")
                for a, b in PARTS.items()
                if plain or b != "attention.dense"
            ]
            if plain:
                qkv = [f"{ours}.self_attention.inner.{name}.{part}" for name in ("query", "key", "value")]
                joined = f"{theirs}.attention.query_key_value.{part}"
                rules.append(by_head(qkv, joined, heads=stack.attention.heads))
    return rules
