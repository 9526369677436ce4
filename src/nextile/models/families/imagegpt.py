"""Image-GPT (Chen et al. 2020): a language model whose words are the colours of pixels, and a classifier made of it."""

from collections.abc import Mapping
from typing import Any

from nextile.models.families import gpt2
from nextile.models.families.keymap import Rule, classes_here, classes_there, expect, same
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
    return _painter(
        gpt2.spec(
            vocab=vocab, context=context, width=width, depth=depth, heads=heads, hidden=hidden, activation=activation,
            eps=eps, dropout=dropout,
        )
    )  # fmt: skip


def _painter(body: specs.Transformer) -> specs.Transformer:
    """GPT-2's shape with RMS norms and a head of its own."""
    stack = body.stack.model_copy(update={"norm": specs.RMSNorm(eps=body.stack.norm.eps)})
    return body.model_copy(update={"stack": stack, "head": specs.LinearHead(vocab=body.embed.vocab - 1)})


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
    expect(config, tie_word_embeddings=False)
    body = gpt2.from_config({"activation_function": "quick_gelu", **config, "tie_word_embeddings": True})
    if CLASSIFIER not in (config.get("architectures") or ()):
        return _painter(body)
    return classifier(_painter(body), classes_here(config), body.stack.dropout)


def to_config(model: specs.Transformer | specs.VisionTransformer) -> dict[str, Any]:
    """The `config.json` of a spec."""
    assert isinstance(model.embed, specs.TokenEmbedding)
    config = {**gpt2.to_config(model), "architectures": [ARCHITECTURE], "tie_word_embeddings": False}
    if isinstance(model, specs.VisionTransformer):
        config |= {"architectures": [CLASSIFIER], **classes_there(model.head.classes)}
    return config


def key_map(model: specs.Transformer | specs.VisionTransformer) -> list[Rule]:
    """GPT-2's, without the biases that its norms have, and with the head."""
    head = "score" if isinstance(model, specs.VisionTransformer) else "lm_head"
    body = [rule for rule in gpt2.key_map(model) if not rule.ours[0].endswith("norm.bias")]
    return [*body, same("head.weight", f"{head}.weight")]
