"""Marian (Junczys-Dowmunt et al. 2018): the 2017 Transformer, post-norm, sinusoidal, one scaled embedding for all."""

from collections.abc import Mapping
from math import sqrt
from typing import Any

from nextile.models.families.keymap import Rule, activation_here, activation_there, expect, one_row, same
from nextile.nn import specs

MODEL_TYPE, ARCHITECTURE = "marian", "MarianMTModel"

SIZES = {
    "marian-tiny": {"depth": 4, "width": 128, "heads": 4, "hidden": 256},  # Wu et al. 2021, for Multi30k
    "marian-base": {"depth": 6, "width": 512, "heads": 8, "hidden": 2048},  # Vaswani et al.'s base, and opus-mt's
}

BESIDE = {
    "lm_head.weight": "model.shared.weight",
    "model.encoder.embed_tokens.weight": "model.shared.weight",
    "model.decoder.embed_tokens.weight": "model.shared.weight",
    "model.encoder.embed_positions.weight": None,
    "model.decoder.embed_positions.weight": None,
}


def spec(
    *, vocab: int = 58_101, context: int = 512, width: int = 512, depth: int = 6, decoder_depth: int | None = None,
    heads: int = 8, hidden: int = 2048, activation: str = "relu", dropout: float = 0.0,
    attention_dropout: float = 0.0, start: int = 0, scaled: bool = True,
) -> specs.EncoderDecoder:  # fmt: skip
    """The shape of 2017; depth is that of the encoder and, without a decoder_depth, of the decoder."""
    encoder = specs.Stack(
        width=width,
        depth=depth,
        attention=specs.Attention(heads=heads, dropout=attention_dropout),
        feed_forward=specs.MLP(hidden=hidden, activation=activation),  # type: ignore[arg-type]
        norm_place="after",
        dropout=dropout,
    )
    return specs.EncoderDecoder(
        context=context,
        start=start,
        source=specs.TokenEmbedding(
            vocab=vocab,
            position=specs.Sinusoidal(length=context),
            scale=sqrt(width) if scaled else 1.0,
            dropout=dropout,
        ),
        encoder=encoder,
        decoder=_decoder(encoder, depth if decoder_depth is None else decoder_depth, heads, hidden),
        head=specs.TiedHead(bias=True),
    )


def _decoder(encoder: specs.Stack, depth: int, heads: int, hidden: int) -> specs.Stack:
    """The encoder's shape in these sizes, causal, beside a memory."""
    attention = specs.Attention(heads=heads, dropout=encoder.attention.dropout)
    return specs.Stack(
        width=encoder.width,
        depth=depth,
        attention=attention,
        feed_forward=specs.MLP(hidden=hidden, activation=encoder.feed_forward.activation),
        norm_place="after",
        causal=True,
        cross=attention,
        dropout=encoder.dropout,
    )


def from_config(config: Mapping[str, Any]) -> specs.EncoderDecoder:
    """The spec of a `config.json`."""
    expect_this_shape(config)
    expect(config, normalize_embedding=False, static_position_embeddings=True)
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
        start=config["decoder_start_token_id"],
        scaled=config.get("scale_embedding", False),
    )
    return with_decoder(model, config)


def expect_this_shape(config: Mapping[str, Any]) -> None:
    """Refuse what neither Marian nor BART may be here."""
    expect(
        config,
        is_encoder_decoder=True,
        share_encoder_decoder_embeddings=True,
        tie_word_embeddings=True,
        normalize_before=False,
        add_final_layer_norm=False,
        activation_dropout=0.0,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        decoder_vocab_size=config["vocab_size"],
    )


def with_decoder(model: specs.EncoderDecoder, config: Mapping[str, Any]) -> specs.EncoderDecoder:
    """The model with a decoder of its own sizes."""
    sizes = (config["decoder_layers"], config["decoder_attention_heads"], config["decoder_ffn_dim"])
    return model.model_copy(update={"decoder": _decoder(model.encoder, *sizes)})


def to_config(model: specs.EncoderDecoder) -> dict[str, Any]:
    """The `config.json` of a spec."""
    encoder, decoder = model.encoder, model.decoder
    return {
        "is_encoder_decoder": True,
        "vocab_size": model.source.vocab,
        "decoder_vocab_size": model.source.vocab,
        "max_position_embeddings": model.context,
        "d_model": encoder.width,
        "encoder_layers": encoder.depth,
        "encoder_attention_heads": encoder.attention.heads,
        "encoder_ffn_dim": encoder.feed_forward.hidden,
        "decoder_layers": decoder.depth,
        "decoder_attention_heads": decoder.attention.heads,
        "decoder_ffn_dim": decoder.feed_forward.hidden,
        "activation_function": activation_there(encoder.feed_forward.activation),
        "dropout": encoder.dropout,
        "attention_dropout": encoder.attention.dropout,
        "scale_embedding": model.source.scale != 1.0,
        "decoder_start_token_id": model.start,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
    }


def key_map(model: specs.EncoderDecoder) -> list[Rule]:
    """Every tensor as it is, under another name; the bias of the head is a row."""
    rules = [same("source.token.weight", "model.shared.weight"), one_row("head.bias", "final_logits_bias")]
    for side, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        for i in range(stack.depth):
            rules += block_rules(f"{side}.blocks.{i}", f"model.{side}.layers.{i}", stack)
    return rules


def block_rules(ours: str, theirs: str, stack: specs.Stack) -> list[Rule]:
    """Those of a block, which BART calls the same."""
    parts = {"self_attention": "self_attn", **({"cross_attention": "encoder_attn"} if stack.cross else {})}
    names = {"feed_forward.norm": "final_layer_norm", "feed_forward.inner.up": "fc1", "feed_forward.inner.down": "fc2"}
    for part, name in parts.items():
        names[f"{part}.norm"] = f"{name}_layer_norm"
        names |= {f"{part}.inner.{matrix}": f"{name}.{matrix[0]}_proj" for matrix in ("query", "key", "value")}
        names[f"{part}.inner.out"] = f"{name}.out_proj"
    return [
        same(f"{ours}.{here}.{part}", f"{theirs}.{there}.{part}")
        for here, there in names.items()
        for part in ("weight", "bias")
    ]
