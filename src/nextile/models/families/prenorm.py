"""The 2017 Transformer with its norms before each part (Xiong et al. 2020), which trains without care for warm-up."""

from typing import Any

from nextile.models.families import marian
from nextile.nn import specs

SIZES: dict[str, dict[str, int]] = {}


def spec(**size: Any) -> specs.EncoderDecoder:
    """Marian's shape in this size, with the norms moved."""
    post = marian.spec(**size)
    moved = {"norm_place": "before"}
    return post.model_copy(
        update={"encoder": post.encoder.model_copy(update=moved), "decoder": post.decoder.model_copy(update=moved)}
    )
