"""T5 (Raffel et al. 2020), also ByT5 (Xue et al. 2022): biases for distances, RMS norms, unscaled scores."""

from collections.abc import Mapping
from typing import Any

from nextile.models.families.keymap import Rule, activation_here, activation_there, expect, same
from nextile.nn import specs

MODEL_TYPE, ARCHITECTURE = "t5", "T5ForConditionalGeneration"

SIZES = {
    "t5-small": {"depth": 6, "width": 512, "heads": 8, "head_dim": 64, "hidden": 2048},
    "t5-base": {"depth": 12, "width": 768, "heads": 12, "head_dim": 64, "hidden": 3072},
    "t5-large": {"depth": 24, "width": 1024, "heads": 16, "head_dim": 64, "hidden": 4096},
}

BESIDE = {
    "lm_head.weight": "shared.weight",
    "encoder.embed_tokens.weight": "shared.weight",
    "decoder.embed_tokens.weight": "shared.weight",
    # Trained by nobody: biases beside the memory, which transformers left out later.
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": None,
}
LEFT_OUT = {"lm_head.weight": "shared.weight"}  # where the two are equal, although the model may tell them apart

MATRICES = {"query": "q", "key": "k", "value": "v", "out": "o"}
GATED = {"gate": "wi_0", "up": "wi_1", "down": "wo"}
PLAIN = {"up": "wi", "down": "wo"}


def spec(
    *, vocab: int = 32_128, context: int = 512, width: int = 512, depth: int = 6, decoder_depth: int | None = None,
    heads: int = 8, head_dim: int | None = None, hidden: int | None = None, activation: str = "gelu_tanh",
    gated: bool = True, buckets: int = 32, max_distance: int = 128, eps: float = 1e-6, tied: bool = False,
    start: int = 0, dropout: float = 0.0,
) -> specs.EncoderDecoder:  # fmt: skip
    """The shape of T5: by default 1.1, whose nets are gated and whose head is its own; the first had neither."""
    net: Any = {"hidden": hidden or 4 * width, "activation": activation, "bias": False}
    attention = specs.Attention(
        heads=heads, head_dim=head_dim or width // heads, bias="none", scale=1.0, dropout=dropout
    )
    encoder = specs.Stack(
        width=width,
        depth=depth,
        attention=attention,
        feed_forward=specs.GatedMLP(**net) if gated else specs.MLP(**net),
        norm=specs.RMSNorm(eps=eps),
        position=specs.RelativeBias(buckets=buckets, max_distance=max_distance),
        dropout=dropout,
    )
    below = {"depth": decoder_depth or depth, "causal": True, "cross": attention}
    return specs.EncoderDecoder(
        context=context,
        start=start,
        source=specs.TokenEmbedding(vocab=vocab, dropout=dropout),
        encoder=encoder,
        decoder=specs.Stack.model_validate(encoder.model_dump() | below | {"cross": attention.model_dump()}),
        head=specs.TiedHead(scale=width**-0.5) if tied else specs.LinearHead(),
    )


def from_config(config: Mapping[str, Any]) -> specs.EncoderDecoder:
    """The spec of a `config.json`; a head that is tied is scaled, as the first T5's."""
    expect(config, is_encoder_decoder=True)
    kind = config.get("feed_forward_proj", "relu")
    gated = kind.startswith("gated-")
    name = kind.removeprefix("gated-")
    return spec(
        vocab=config["vocab_size"],
        context=config.get("n_positions", 512),
        width=config["d_model"],
        depth=config["num_layers"],
        decoder_depth=config.get("num_decoder_layers"),
        heads=config["num_heads"],
        head_dim=config["d_kv"],
        hidden=config["d_ff"],
        activation=activation_here("gelu_new" if gated and name == "gelu" else name),
        gated=gated,
        buckets=config.get("relative_attention_num_buckets", 32),
        max_distance=config.get("relative_attention_max_distance", 128),
        eps=config.get("layer_norm_epsilon", 1e-6),
        tied=config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True)),
        start=config.get("decoder_start_token_id") or config.get("pad_token_id") or 0,
        dropout=config.get("dropout_rate", 0.1),
    )


def to_config(model: specs.EncoderDecoder) -> dict[str, Any]:
    """The `config.json` of a spec."""
    encoder, position = model.encoder, model.encoder.position
    assert isinstance(position, specs.RelativeBias)
    tied = isinstance(model.head, specs.TiedHead)
    gated = isinstance(encoder.feed_forward, specs.GatedMLP)
    return {
        "is_encoder_decoder": True,
        "vocab_size": model.source.vocab,
        "n_positions": model.context,
        "d_model": encoder.width,
        "num_layers": encoder.depth,
        "num_decoder_layers": model.decoder.depth,
        "num_heads": encoder.attention.heads,
        "d_kv": encoder.attention.head_width(encoder.width),
        "d_ff": encoder.feed_forward.hidden,
        "feed_forward_proj": _net_there(encoder.feed_forward.activation, gated=gated),
        "relative_attention_num_buckets": position.buckets,
        "relative_attention_max_distance": position.max_distance,
        "layer_norm_epsilon": encoder.norm.eps,
        "dropout_rate": encoder.dropout,
        "decoder_start_token_id": model.start,
        "tie_word_embeddings": tied,
        "scale_decoder_outputs": tied,
    }


def _net_there(activation: str, *, gated: bool) -> str:
    """The `feed_forward_proj`; what is called GELU there is its tanh form, where it is a gate."""
    name = activation_there(activation)
    assert name != "gelu" or not gated
    return f"gated-{'gelu' if name == 'gelu_new' else name}" if gated else name


def key_map(model: specs.EncoderDecoder) -> list[Rule]:
    """Every tensor as it is, under another name; the biases of all blocks are those of the first."""
    rules = [same("source.token.weight", "shared.weight")]
    if isinstance(model.head, specs.LinearHead):
        rules.append(same("head.weight", "lm_head.weight"))
    for side, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        rules += [
            same(f"{side}.position_bias.table.weight", table),
            same(f"{side}.norm.weight", f"{side}.final_layer_norm.weight"),
        ]
        for i in range(stack.depth):
            rules += _block(f"{side}.blocks.{i}", f"{side}.block.{i}.layer", stack)
    return rules


def _block(ours: str, theirs: str, stack: specs.Stack) -> list[Rule]:
    parts = {"self_attention": "SelfAttention", **({"cross_attention": "EncDecAttention"} if stack.cross else {})}
    net = GATED if isinstance(stack.feed_forward, specs.GatedMLP) else PLAIN
    names = {}
    for number, (part, name) in enumerate(parts.items()):
        names[f"{part}.norm"] = f"{number}.layer_norm"
        names |= {f"{part}.inner.{a}": f"{number}.{name}.{b}" for a, b in MATRICES.items()}
    names["feed_forward.norm"] = f"{len(parts)}.layer_norm"
    names |= {f"feed_forward.inner.{a}": f"{len(parts)}.DenseReluDense.{b}" for a, b in net.items()}
    return [same(f"{ours}.{here}.weight", f"{theirs}.{there}.weight") for here, there in names.items()]
