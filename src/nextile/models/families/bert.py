"""BERT (Devlin et al. 2019): an encoder that sees both sides, norms after each part, and a head for masked tokens."""

from collections.abc import Mapping
from typing import Any

from nextile.models.families.keymap import Rule, activation_here, activation_there, expect, same
from nextile.nn import specs

MODEL_TYPE, ARCHITECTURE = "bert", "BertForMaskedLM"

SIZES = {
    "bert-tiny": {"depth": 2, "width": 128, "heads": 2},  # Turc et al. 2019, up to medium
    "bert-mini": {"depth": 4, "width": 256, "heads": 4},
    "bert-small": {"depth": 4, "width": 512, "heads": 8},
    "bert-medium": {"depth": 8, "width": 512, "heads": 8},
    "bert-base": {"depth": 12, "width": 768, "heads": 12},
    "bert-large": {"depth": 24, "width": 1024, "heads": 16},
}

HEAD = {
    "head.dense": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
}
BLOCK = {
    "self_attention.inner.query": "attention.self.query",
    "self_attention.inner.key": "attention.self.key",
    "self_attention.inner.value": "attention.self.value",
    "self_attention.inner.out": "attention.output.dense",
    "self_attention.norm": "attention.output.LayerNorm",
    "feed_forward.inner.up": "intermediate.dense",
    "feed_forward.inner.down": "output.dense",
    "feed_forward.norm": "output.LayerNorm",
}


def _names(depth: int, root: str = "bert", head: Mapping[str, str] = HEAD) -> dict[str, str]:
    """Of all that has a weight and a bias: here, and there."""
    blocks = {
        f"stack.blocks.{i}.{ours}": f"{root}.encoder.layer.{i}.{theirs}"
        for i in range(depth)
        for ours, theirs in BLOCK.items()
    }
    return {"embed.norm": f"{root}.embeddings.LayerNorm", **head, **blocks}


def _first_names() -> dict[str, str]:
    """The norms' gain and bias as the first checkpoints call them, bert-base-uncased among them."""
    norms = [theirs for ours, theirs in _names(24).items() if ours.endswith("norm")]  # the deepest that was published
    return {
        f"{norm}.{first}": f"{norm}.{now}" for norm in norms for first, now in (("gamma", "weight"), ("beta", "bias"))
    }


BESIDE = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    "bert.embeddings.position_ids": None,
    # What says of two texts whether one follows the other: it was trained with the rest, and nothing here asks it.
    "bert.pooler.dense.weight": None,
    "bert.pooler.dense.bias": None,
    "cls.seq_relationship.weight": None,
    "cls.seq_relationship.bias": None,
    **_first_names(),
}


def spec(
    *, vocab: int = 30_522, context: int = 512, width: int = 768, depth: int = 12, heads: int = 12,
    hidden: int | None = None, activation: str = "gelu", eps: float = 1e-12, types: int = 2, unused: int = 0,
    head_activation: str | None = None, dropout: float = 0.0, attention_dropout: float = 0.0,
) -> specs.Transformer:  # fmt: skip
    """The shape of BERT; the defaults are the base model."""
    norm = specs.LayerNorm(eps=eps)
    return specs.Transformer(
        context=context,
        embed=specs.TokenEmbedding(
            vocab=vocab,
            position=specs.Learned(length=context, unused=unused),
            norm=norm,
            dropout=dropout,
            types=types,
        ),
        stack=specs.Stack(
            width=width,
            depth=depth,
            attention=specs.Attention(heads=heads, dropout=attention_dropout),
            feed_forward=specs.MLP(hidden=hidden or 4 * width, activation=activation),  # type: ignore[arg-type]
            norm=norm,
            norm_place="after",
            dropout=dropout,
        ),
        head=specs.MaskedHead(activation=head_activation or activation, norm=norm),  # type: ignore[arg-type]
    )


def from_config(config: Mapping[str, Any]) -> specs.Transformer:
    """The spec of a `config.json`."""
    return spec(**sizes_here(config))


def sizes_here(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a `config.json` says, in our words. Errors: NextileError for a variant that the spec cannot say."""
    expect(
        config,
        is_decoder=False,
        add_cross_attention=False,
        position_embedding_type="absolute",
        tie_word_embeddings=True,
    )
    return {
        "vocab": config["vocab_size"],
        "context": config["max_position_embeddings"],
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "hidden": config["intermediate_size"],
        "activation": activation_here(config.get("hidden_act", "gelu")),
        "eps": config.get("layer_norm_eps", 1e-12),
        "types": config.get("type_vocab_size", 2),
        "dropout": config.get("hidden_dropout_prob", 0.1),
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.1),
    }


def to_config(model: specs.Transformer) -> dict[str, Any]:
    """The `config.json` of a spec."""
    stack = model.stack
    assert model.embed.types is not None  # transformers has no BERT without
    return {
        "vocab_size": model.embed.vocab,
        "max_position_embeddings": model.context,
        "hidden_size": stack.width,
        "num_hidden_layers": stack.depth,
        "num_attention_heads": stack.attention.heads,
        "intermediate_size": stack.feed_forward.hidden,
        "hidden_act": activation_there(stack.feed_forward.activation),
        "layer_norm_eps": stack.norm.eps,
        "type_vocab_size": model.embed.types,
        "hidden_dropout_prob": stack.dropout,
        "attention_probs_dropout_prob": stack.attention.dropout,
        "is_decoder": False,
        "tie_word_embeddings": True,
    }


def key_map(model: specs.Transformer) -> list[Rule]:
    """Every tensor as it is, under another name."""
    return [*encoder_rules(model, "bert", HEAD), same("head.bias", "cls.predictions.bias")]


def encoder_rules(model: specs.Transformer | specs.TextClassifier, root: str, head: Mapping[str, str]) -> list[Rule]:
    """All but the bias of the head; root: what the encoder is called there."""
    rules = [
        same("embed.token.weight", f"{root}.embeddings.word_embeddings.weight"),
        same("embed.types.weight", f"{root}.embeddings.token_type_embeddings.weight"),
        same("embed.position.weight", f"{root}.embeddings.position_embeddings.weight"),
    ]
    names = _names(model.stack.depth, root, head)
    return rules + [same(f"{a}.{part}", f"{b}.{part}") for a, b in names.items() for part in ("weight", "bias")]
