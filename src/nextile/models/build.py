"""spec -> model."""

import torch

from nextile.models.encoder_decoder import EncoderDecoder
from nextile.models.transformer import Transformer
from nextile.nn import specs
from nextile.nn.init import initialise

MODULES = {specs.Transformer: Transformer, specs.EncoderDecoder: EncoderDecoder}
AnyModel = Transformer | EncoderDecoder


def depth(spec: specs.Transformer | specs.EncoderDecoder) -> int:
    """The depth of the stack that predicts."""
    return spec.stack.depth if isinstance(spec, specs.Transformer) else spec.decoder.depth


def skeleton(spec: specs.Transformer | specs.EncoderDecoder) -> AnyModel:
    """The model without memory for its numbers (the meta device): to count, or to be given a checkpoint's."""
    with torch.device("meta"):
        return MODULES[type(spec)](spec)


def build(
    spec: specs.Transformer | specs.EncoderDecoder, *, seed: int = 0, device: torch.device | str = "cpu"
) -> AnyModel:
    """The model of this spec, freshly initialised: the same seed gives the same numbers on every device."""
    with torch.device("cpu"):
        model = MODULES[type(spec)](spec)
    initialise(model, depth(spec), seed)
    return model.to(device)
