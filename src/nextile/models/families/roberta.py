"""RoBERTa (Liu et al. 2019): BERT's shape, with positions that begin behind that of padding."""

from collections.abc import Mapping
from typing import Any

from nextile.models.families import bert
from nextile.models.families.keymap import Rule, same
from nextile.nn import specs

MODEL_TYPE, ARCHITECTURE = "roberta", "RobertaForMaskedLM"

SIZES = {
    "roberta-base": {"depth": 12, "width": 768, "heads": 12},
    "roberta-large": {"depth": 24, "width": 1024, "heads": 16},
}

HEAD = {"head.dense": "lm_head.dense", "head.norm": "lm_head.layer_norm"}
BESIDE = {
    "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
    "roberta.embeddings.position_ids": None,
    "roberta.pooler.dense.weight": None,  # nothing here asks it
    "roberta.pooler.dense.bias": None,
}


def spec(
    *, vocab: int = 50_265, context: int = 512, width: int = 768, depth: int = 12, heads: int = 12,
    hidden: int | None = None, activation: str = "gelu", eps: float = 1e-5, types: int = 1, unused: int = 2,
    dropout: float = 0.0, attention_dropout: float = 0.0,
) -> specs.Transformer:  # fmt: skip
    """The shape of RoBERTa; unused: positions before the first, one more than the number of the token of padding."""
    return bert.spec(
        vocab=vocab,
        context=context,
        width=width,
        depth=depth,
        heads=heads,
        hidden=hidden,
        activation=activation,
        eps=eps,
        types=types,
        unused=unused,
        head_activation="gelu",
        dropout=dropout,
        attention_dropout=attention_dropout,
    )


def from_config(config: Mapping[str, Any]) -> specs.Transformer:
    """The spec of a `config.json`, whose positions count those that are not used."""
    unused = config.get("pad_token_id", 1) + 1
    sizes = bert.sizes_here(config)
    return spec(**sizes | {"context": sizes["context"] - unused}, unused=unused)


def to_config(model: specs.Transformer) -> dict[str, Any]:
    """The `config.json` of a spec."""
    position = model.embed.position
    assert isinstance(position, specs.Learned)
    assert position.unused  # else it is BERT's
    return bert.to_config(model) | {
        "max_position_embeddings": position.length + position.unused,
        "pad_token_id": position.unused - 1,
    }


def key_map(model: specs.Transformer) -> list[Rule]:
    """Every tensor as it is, under another name."""
    return [*bert.encoder_rules(model, "roberta", HEAD), same("head.bias", "lm_head.bias")]
