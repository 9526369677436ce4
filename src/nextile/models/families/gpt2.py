"""GPT-2 (Radford et al. 2019): learned positions, layer norm before each part, GELU, tied head."""

from collections.abc import Mapping
from typing import Any

from nextile.models.families.keymap import Rule, activation_here, activation_there, expect, fused, same, transposed
from nextile.nn import specs

MODEL_TYPE, ARCHITECTURE = "gpt2", "GPT2LMHeadModel"

SIZES = {
    "gpt2": {"depth": 12, "width": 768, "heads": 12},
    "gpt2-medium": {"depth": 24, "width": 1024, "heads": 16},
    "gpt2-large": {"depth": 36, "width": 1280, "heads": 20},
    "gpt2-xl": {"depth": 48, "width": 1600, "heads": 25},
}

BESIDE = {"lm_head.weight": "transformer.wte.weight"}


def spec(
    *, vocab: int = 50_257, context: int = 1024, width: int = 768, depth: int = 12, heads: int = 12,
    hidden: int | None = None, activation: str | None = "gelu_tanh", eps: float = 1e-5, dropout: float = 0.0,
) -> specs.Transformer:  # fmt: skip
    """The shape of GPT-2; the defaults are the 124M model."""
    return specs.Transformer(
        context=context,
        embed=specs.TokenEmbedding(vocab=vocab, position=specs.Learned(length=context), dropout=dropout),
        stack=specs.Stack(
            width=width,
            depth=depth,
            attention=specs.Attention(heads=heads, dropout=dropout),
            feed_forward=specs.MLP(hidden=hidden or 4 * width, activation=activation),  # type: ignore[arg-type]
            norm=specs.LayerNorm(eps=eps),
            causal=True,
            dropout=dropout,
        ),
        head=specs.TiedHead(),
    )


def from_config(config: Mapping[str, Any]) -> specs.Transformer:
    """The spec of a `config.json`."""
    expect(
        config,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        tie_word_embeddings=True,
        add_cross_attention=False,
    )
    return spec(
        vocab=config["vocab_size"],
        context=config["n_positions"],
        width=config["n_embd"],
        depth=config["n_layer"],
        heads=config["n_head"],
        hidden=config.get("n_inner"),
        activation=activation_here(config.get("activation_function", "gelu_new")),
        eps=config.get("layer_norm_epsilon", 1e-5),
        dropout=config.get("resid_pdrop", 0.0),
    )


def to_config(model: specs.Transformer | specs.VisionTransformer) -> dict[str, Any]:
    """The `config.json` of a spec."""
    stack, norm = model.stack, model.stack.norm
    assert isinstance(model.embed, specs.TokenEmbedding)
    return {
        "vocab_size": model.embed.vocab,
        "n_positions": model.context,
        "n_embd": stack.width,
        "n_layer": stack.depth,
        "n_head": stack.attention.heads,
        "n_inner": stack.feed_forward.hidden,
        "activation_function": activation_there(stack.feed_forward.activation),
        "layer_norm_epsilon": norm.eps,
        "resid_pdrop": stack.dropout,
        "embd_pdrop": stack.dropout,
        "attn_pdrop": stack.dropout,
        "tie_word_embeddings": True,
    }


def key_map(model: specs.Transformer | specs.VisionTransformer) -> list[Rule]:
    """Its projections are stored (in, out), queries, keys and values in one."""
    rules = [
        same("embed.token.weight", "transformer.wte.weight"),
        same("embed.position.weight", "transformer.wpe.weight"),
        same("stack.norm.weight", "transformer.ln_f.weight"),
        same("stack.norm.bias", "transformer.ln_f.bias"),
    ]
    for i in range(model.stack.depth):
        a, f, theirs = f"stack.blocks.{i}.self_attention", f"stack.blocks.{i}.feed_forward", f"transformer.h.{i}"
        for part in ("weight", "bias"):
            qkv = [f"{a}.inner.{name}.{part}" for name in ("query", "key", "value")]
            turned = transposed if part == "weight" else same
            rules += [
                same(f"{a}.norm.{part}", f"{theirs}.ln_1.{part}"),
                fused(qkv, f"{theirs}.attn.c_attn.{part}", axis=-1),
                turned(f"{a}.inner.out.{part}", f"{theirs}.attn.c_proj.{part}"),
                same(f"{f}.norm.{part}", f"{theirs}.ln_2.{part}"),
                turned(f"{f}.inner.up.{part}", f"{theirs}.mlp.c_fc.{part}"),
                turned(f"{f}.inner.down.{part}", f"{theirs}.mlp.c_proj.{part}"),
            ]
    return rules
