"""ViT (Dosovitskiy et al. 2021): squares of a picture as tokens, a summary before them, norms before each part."""

from collections.abc import Mapping
from reprlib import repr as shown  # short, however long the value is
from typing import Any

from nextile.base.errors import NextileError
from nextile.models.families.keymap import (
    Rule,
    activation_here,
    activation_there,
    classes_here,
    classes_there,
    expect,
    reshaped,
    same,
)
from nextile.nn import specs

MODEL_TYPE, ARCHITECTURE = "vit", "ViTForImageClassification"

SIZES = {
    "vit-tiny": {"depth": 12, "width": 192, "heads": 3},  # Touvron et al. 2021, DeiT; so is small
    "vit-small": {"depth": 12, "width": 384, "heads": 6},
    "vit-base": {"depth": 12, "width": 768, "heads": 12},
    "vit-large": {"depth": 24, "width": 1024, "heads": 16},
}

BLOCK = {
    "self_attention.norm": ("layernorm_before", "layernorm_before"),
    "self_attention.inner.query": ("attention.attention.query", "attention.q_proj"),
    "self_attention.inner.key": ("attention.attention.key", "attention.k_proj"),
    "self_attention.inner.value": ("attention.attention.value", "attention.v_proj"),
    "self_attention.inner.out": ("attention.output.dense", "attention.o_proj"),
    "feed_forward.norm": ("layernorm_after", "layernorm_after"),
    "feed_forward.inner.up": ("intermediate.dense", "mlp.fc1"),
    "feed_forward.inner.down": ("output.dense", "mlp.fc2"),
}  # a block's parts: here, in a file of transformers, and in its memory, which some write as it is


def copies(root: str) -> dict[str, str]:
    """Other names of the blocks' tensors."""
    return {
        f"{root}.layers.{i}.{memory}.{part}": f"{root}.encoder.layer.{i}.{file}.{part}"
        for i in range(48)  # the deepest that was published
        for file, memory in BLOCK.values()
        for part in ("weight", "bias")
    }


BESIDE = copies("vit")


def spec(
    *, classes: tuple[str, ...], image: int = 224, channels: int = 3, patch: int = 16, width: int = 768,
    depth: int = 12, heads: int = 12, hidden: int | None = None, activation: str = "gelu", eps: float = 1e-12,
    dropout: float = 0.0, attention_dropout: float = 0.0, stochastic_depth: float = 0.0,
) -> specs.VisionTransformer:  # fmt: skip
    """The shape of ViT; the defaults are the base model's, and transformers' eps."""
    return specs.VisionTransformer(
        embed=specs.PatchEmbedding(image=image, patch=patch, channels=channels, dropout=dropout),  # type: ignore[arg-type]
        stack=specs.Stack(
            width=width,
            depth=depth,
            attention=specs.Attention(heads=heads, dropout=attention_dropout),
            feed_forward=specs.MLP(hidden=hidden or 4 * width, activation=activation),  # type: ignore[arg-type]
            norm=specs.LayerNorm(eps=eps),
            dropout=dropout,
            stochastic_depth=stochastic_depth,
        ),
        head=specs.SummaryHead(classes=classes),
    )


def from_config(config: Mapping[str, Any]) -> specs.VisionTransformer:
    """The spec of a `config.json`."""
    return spec(**sizes_here(config))


def sizes_here(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a `config.json` says, in our words. Errors: NextileError for a variant that the spec cannot say."""
    expect(config, qkv_bias=True)
    return {
        "classes": classes_here(config),
        "image": _side(config, "image_size", 224),
        "channels": config.get("num_channels", 3),
        "patch": _side(config, "patch_size", 16),
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "hidden": config["intermediate_size"],
        "activation": activation_here(config.get("hidden_act", "gelu")),
        "eps": config.get("layer_norm_eps", 1e-12),
        "dropout": config.get("hidden_dropout_prob", 0.0),
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.0),
        "stochastic_depth": config.get("nextile_stochastic_depth", 0.0),
    }


def _side(config: Mapping[str, Any], field: str, default: int) -> int:
    """Of a square, which may be written as a pair. Errors: NextileError for other rectangles."""
    said = config.get(field, default)
    if not isinstance(said, list | tuple):
        return said
    if len(said) != 2 or said[0] != said[1]:
        raise NextileError(f"{field} is {shown(said)} in config.json; nextile reads this family with squares only")
    return said[0]


def to_config(model: specs.VisionTransformer) -> dict[str, Any]:
    """The `config.json` of a spec."""
    embed, stack = model.embed, model.stack
    assert isinstance(embed, specs.PatchEmbedding)
    return {
        **classes_there(model.head.classes),
        "image_size": embed.image,
        "patch_size": embed.patch,
        "num_channels": embed.channels,
        "hidden_size": stack.width,
        "num_hidden_layers": stack.depth,
        "num_attention_heads": stack.attention.heads,
        "intermediate_size": stack.feed_forward.hidden,
        "hidden_act": activation_there(stack.feed_forward.activation),
        "layer_norm_eps": stack.norm.eps,
        "hidden_dropout_prob": stack.dropout,
        "attention_probs_dropout_prob": stack.attention.dropout,
        "qkv_bias": True,
        "nextile_stochastic_depth": stack.stochastic_depth,
    }


def key_map(model: specs.VisionTransformer) -> list[Rule]:
    """Its summary has an axis for the batch."""
    width = model.stack.width
    rules = [reshaped("embed.summary", "vit.embeddings.cls_token", here=(1, width), there=(1, 1, width))]
    rules += [same(f"head.{part}", f"classifier.{part}") for part in ("weight", "bias")]
    return rules + body_rules(model, "vit")


def body_rules(model: specs.VisionTransformer, root: str) -> list[Rule]:
    """All but summary and head: the patches are a convolution, the places have an axis for the batch."""
    embed, width = model.embed, model.stack.width
    assert isinstance(embed, specs.PatchEmbedding)
    patch = (embed.channels, embed.patch, embed.patch)
    rules = [
        reshaped(
            "embed.position.weight",
            f"{root}.embeddings.position_embeddings",
            here=(model.context, width),
            there=(1, model.context, width),
        ),
        reshaped(
            "embed.project.weight",
            f"{root}.embeddings.patch_embeddings.projection.weight",
            here=(width, embed.channels * embed.patch**2),
            there=(width, *patch),
        ),
        same("embed.project.bias", f"{root}.embeddings.patch_embeddings.projection.bias"),
    ]
    names = {"stack.norm": f"{root}.layernorm"}
    for i in range(model.stack.depth):
        names |= {f"stack.blocks.{i}.{ours}": f"{root}.encoder.layer.{i}.{file}" for ours, (file, _) in BLOCK.items()}
    return rules + [same(f"{a}.{part}", f"{b}.{part}") for a, b in names.items() for part in ("weight", "bias")]
