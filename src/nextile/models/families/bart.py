"""BART (Lewis et al. 2020): the 2017 shape with learned positions, GELU, and norms on the embeddings."""

from collections.abc import Mapping
from math import sqrt
from typing import Any

from nextile.models.families import marian
from nextile.models.families.keymap import Rule, activation_here, one_row, same
from nextile.nn import specs

MODEL_TYPE, ARCHITECTURE = "bart", "BartForConditionalGeneration"

SIZES = {
    "bart-base": {"depth": 6, "width": 768, "heads": 12, "hidden": 3072},
    "bart-large": {"depth": 12, "width": 1024, "heads": 16, "hidden": 4096},
}

BESIDE = {name: tied for name, tied in marian.BESIDE.items() if tied}
UNUSED = 2  # positions begin where fairseq's do, behind two that padding had


def spec(
    *, vocab: int = 50_265, context: int = 1024, width: int = 768, depth: int = 6, decoder_depth: int | None = None,
    heads: int = 12, hidden: int = 3072, activation: str = "gelu", dropout: float = 0.0,
    attention_dropout: float = 0.0, start: int = 2, scaled: bool = False,
) -> specs.EncoderDecoder:  # fmt: skip
    """The shape of BART; the defaults are the base model's."""
    model = marian.spec(
        vocab=vocab,
        context=context,
        width=width,
        depth=depth,
        decoder_depth=decoder_depth,
        heads=heads,
        hidden=hidden,
        activation=activation,
        dropout=dropout,
        attention_dropout=attention_dropout,
        start=start,
    )
    own: Any = {
        "position": specs.Learned(length=context, unused=UNUSED), "norm": specs.LayerNorm(), "dropout": dropout,
    }  # fmt: skip
    return specs.EncoderDecoder(
        context=context,
        start=start,
        source=specs.TokenEmbedding(vocab=vocab, scale=sqrt(width) if scaled else 1.0, **own),
        encoder=model.encoder,
        target=specs.SharedTokens(**own),
        decoder=model.decoder,
        head=specs.TiedHead(bias=True),
    )


def from_config(config: Mapping[str, Any]) -> specs.EncoderDecoder:
    """The spec of a `config.json`."""
    marian.expect_this_shape(config)
    model = spec(
        vocab=config["vocab_size"],
        context=config["max_position_embeddings"],
        width=config["d_model"],
        depth=config["encoder_layers"],
        heads=config["encoder_attention_heads"],
        hidden=config["encoder_ffn_dim"],
        activation=activation_here(config.get("activation_function", "gelu")),
        dropout=config.get("dropout", 0.1),
        attention_dropout=config.get("attention_dropout", 0.0),
        start=config.get("decoder_start_token_id", 2),
        scaled=config.get("scale_embedding", False),
    )
    return marian.with_decoder(model, config)


def to_config(model: specs.EncoderDecoder) -> dict[str, Any]:
    """The `config.json` of a spec."""
    return marian.to_config(model)


def key_map(model: specs.EncoderDecoder) -> list[Rule]:
    """As Marian's, beside the positions and the norm of either side."""
    rules = [same("source.token.weight", "model.shared.weight"), one_row("head.bias", "final_logits_bias")]
    for embed, side, stack in (("source", "encoder", model.encoder), ("target", "decoder", model.decoder)):
        rules.append(same(f"{embed}.position.weight", f"model.{side}.embed_positions.weight"))
        rules += [
            same(f"{embed}.norm.{part}", f"model.{side}.layernorm_embedding.{part}") for part in ("weight", "bias")
        ]
        for i in range(stack.depth):
            rules += marian.block_rules(f"{side}.blocks.{i}", f"model.{side}.layers.{i}", stack)
    return rules
