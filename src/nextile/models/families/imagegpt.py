"""Image-GPT (Chen et al. 2020): a language model whose words are the colours of pixels, and a classifier made of it."""

from collections.abc import Mapping
from typing import Any

from nextile.models.families.keymap import (
    Rule,
    activation_here,
    activation_there,
    classes_here,
    classes_there,
    expect,
    fused,
    same,
    transposed,
)
from nextile.nn import specs

MODEL_TYPE, ARCHITECTURE = "imagegpt", "ImageGPTForCausalImageModeling"
CLASSIFIER = "ImageGPTForImageClassification"

SIZES = {
    "imagegpt-small": {"depth": 24, "width": 512, "heads": 8},
    "imagegpt-medium": {"depth": 36, "width": 1024, "heads": 8},
    "imagegpt-large": {"depth": 48, "width": 1536, "heads": 16},
}

# What files of early versions hold of each block beside its weights: who may see whom.
BESIDE = {f"transformer.h.{i}.attn.{mask}": None for i in range(48) for mask in ("bias", "masked_bias")}


def spec(
    *, vocab: int = 513, context: int = 1024, width: int = 512, depth: int = 24, heads: int = 8,
    hidden: int | None = None, activation: str = "quick_gelu", eps: float = 1e-5, dropout: float = 0.0,
) -> specs.Transformer:  # fmt: skip
    """The shape of image-GPT; the last of its tokens begins every picture, and is never predicted."""
    return specs.Transformer(
        context=context,
        embed=specs.TokenEmbedding(vocab=vocab, position=specs.Learned(length=context), dropout=dropout),
        stack=specs.Stack(
            width=width,
            depth=depth,
            attention=specs.Attention(heads=heads, dropout=dropout),
            feed_forward=specs.MLP(hidden=hidden or 4 * width, activation=activation),  # type: ignore[arg-type]
            norm=specs.RMSNorm(eps=eps),
            causal=True,
            dropout=dropout,
        ),
        head=specs.LinearHead(vocab=vocab - 1),
    )


def classifier(painter: specs.Transformer, classes: tuple[str, ...], dropout: float = 0.0) -> specs.VisionTransformer:
    """A painter's body, and a head that reads the mean of its vectors."""
    attention = painter.stack.attention.model_copy(update={"dropout": dropout})
    return specs.VisionTransformer(
        embed=painter.embed.model_copy(update={"dropout": dropout}),
        stack=painter.stack.model_copy(update={"attention": attention, "dropout": dropout}),
        head=specs.MeanHead(classes=classes, bias=False),
    )


def from_config(config: Mapping[str, Any]) -> specs.Transformer | specs.VisionTransformer:
    """The spec of a `config.json`: a painter's, or a classifier's."""
    expect(
        config,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        tie_word_embeddings=False,
        add_cross_attention=False,
    )
    dropout = config.get("resid_pdrop", 0.0)
    painter = spec(
        vocab=config["vocab_size"],
        context=config["n_positions"],
        width=config["n_embd"],
        depth=config["n_layer"],
        heads=config["n_head"],
        hidden=config.get("n_inner"),
        activation=activation_here(config.get("activation_function", "quick_gelu")),
        eps=config.get("layer_norm_epsilon", 1e-5),
        dropout=dropout,
    )
    if CLASSIFIER not in (config.get("architectures") or ()):
        return painter
    return classifier(painter, classes_here(config), dropout)


def to_config(model: specs.Transformer | specs.VisionTransformer) -> dict[str, Any]:
    """The `config.json` of a spec."""
    stack, embed = model.stack, model.embed
    assert isinstance(embed, specs.TokenEmbedding)
    config = {
        "architectures": [ARCHITECTURE],
        "vocab_size": embed.vocab,
        "n_positions": model.context,
        "n_embd": stack.width,
        "n_layer": stack.depth,
        "n_head": stack.attention.heads,
        "n_inner": stack.feed_forward.hidden,
        "activation_function": activation_there(stack.feed_forward.activation),
        "layer_norm_epsilon": stack.norm.eps,
        "resid_pdrop": stack.dropout,
        "embd_pdrop": stack.dropout,
        "attn_pdrop": stack.dropout,
        "tie_word_embeddings": False,
    }
    if isinstance(model, specs.VisionTransformer):
        config |= {"architectures": [CLASSIFIER], **classes_there(model.head.classes)}
    return config


def key_map(model: specs.Transformer | specs.VisionTransformer) -> list[Rule]:
    """Its projections are stored (in, out), queries, keys and values in one."""
    head = "score" if isinstance(model, specs.VisionTransformer) else "lm_head"
    rules = [
        same("embed.token.weight", "transformer.wte.weight"),
        same("embed.position.weight", "transformer.wpe.weight"),
        same("stack.norm.weight", "transformer.ln_f.weight"),
        same("head.weight", f"{head}.weight"),
    ]
    for i in range(model.stack.depth):
        rules += _block(f"stack.blocks.{i}", f"transformer.h.{i}")
    return rules


def _block(ours: str, theirs: str) -> list[Rule]:
    a, f = f"{ours}.self_attention", f"{ours}.feed_forward"
    rules = [same(f"{a}.norm.weight", f"{theirs}.ln_1.weight"), same(f"{f}.norm.weight", f"{theirs}.ln_2.weight")]
    for part in ("weight", "bias"):
        qkv = [f"{a}.inner.{name}.{part}" for name in ("query", "key", "value")]
        turned = transposed if part == "weight" else same
        rules += [
            fused(qkv, f"{theirs}.attn.c_attn.{part}", axis=-1),
            turned(f"{a}.inner.out.{part}", f"{theirs}.attn.c_proj.{part}"),
            turned(f"{f}.inner.up.{part}", f"{theirs}.mlp.c_fc.{part}"),
            turned(f"{f}.inner.down.{part}", f"{theirs}.mlp.c_proj.{part}"),
        ]
    return rules
