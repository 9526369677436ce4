"""The default translator: the 2017 Transformer with what was learned since; no other program has this family.

Norm before each part (Xiong et al. 2020), RMS norm, rotary positions, QK-norm, no biases; one embedding for source,
target and output, as in 2017.
"""

from nextile.nn import specs

SIZES: dict[str, dict[str, int]] = {}


def spec(
    *, vocab: int, context: int, width: int = 512, depth: int = 6, heads: int = 8, hidden: int | None = None,
    activation: str = "silu", dropout: float = 0.0, start: int = 0,
) -> specs.EncoderDecoder:  # fmt: skip
    """Encoder and decoder of equal size."""
    attention = specs.Attention(heads=heads, bias="none", qk_norm=specs.RMSNorm())
    encoder = specs.Stack(
        width=width,
        depth=depth,
        attention=attention,
        feed_forward=specs.MLP(hidden=hidden or 4 * width, activation=activation, bias=False),  # type: ignore[arg-type]
        norm=specs.RMSNorm(),
        position=specs.Rotary(),
        dropout=dropout,
    )
    return specs.EncoderDecoder(
        context=context,
        start=start,
        source=specs.TokenEmbedding(vocab=vocab, dropout=dropout),
        encoder=encoder,
        decoder=encoder.model_copy(update={"causal": True, "cross": attention}),
        head=specs.TiedHead(bias=True),
    )
