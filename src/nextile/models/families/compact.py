"""The default classifier: a compact convolutional transformer (Hassani et al. 2021), which needs no big data."""

from math import log2

from nextile.nn import specs

SIZES: dict[str, dict[str, int]] = {}


def halvings(image: int) -> int:
    """How many leave about 8 x 8 vectors; of 8 to 15 pixels one leaves at least 4 x 4."""
    return max(1, round(log2(image / 8)))


def spec(
    *, classes: tuple[str, ...], image: int, channels: int = 3, width: int = 128, depth: int = 4, heads: int = 4,
    hidden: int | None = None, activation: str = "gelu_tanh", dropout: float = 0.0, stochastic_depth: float = 0.0,
    stages: int | None = None,
) -> specs.VisionTransformer:  # fmt: skip
    """A picture of image x image pixels; `stages` are the convolutions, each of which halves it."""
    return specs.VisionTransformer(
        embed=specs.ConvEmbedding(
            image=image,
            channels=channels,  # type: ignore[arg-type]
            hidden=(max(1, width // 2),) * ((stages or halvings(image)) - 1),
            dropout=dropout,
        ),
        stack=specs.Stack(
            width=width,
            depth=depth,
            attention=specs.Attention(heads=heads, bias="none", dropout=dropout),
            feed_forward=specs.MLP(hidden=hidden or 2 * width, activation=activation),  # type: ignore[arg-type]
            dropout=dropout,
            stochastic_depth=stochastic_depth,
        ),
        head=specs.WeightedHead(classes=classes),
    )
