"""spec -> model."""

import torch
from torch.overrides import TorchFunctionMode

from nextile.models.encoder_decoder import EncoderDecoder
from nextile.models.text_classifier import TextClassifier
from nextile.models.transformer import Transformer
from nextile.models.vision import VisionTransformer
from nextile.models.words import CBOW, SkipGram, WordVectors
from nextile.nn import specs
from nextile.nn.init import Init, initialise

MODULES = {
    specs.Transformer: Transformer,
    specs.EncoderDecoder: EncoderDecoder,
    specs.VisionTransformer: VisionTransformer,
    specs.TextClassifier: TextClassifier,
    specs.CBOW: CBOW,
    specs.SkipGram: SkipGram,
}
AnyModel = Transformer | EncoderDecoder | VisionTransformer | TextClassifier | WordVectors
DeepSpec = specs.Transformer | specs.EncoderDecoder | specs.VisionTransformer | specs.TextClassifier
AnySpec = DeepSpec | specs.CBOW | specs.SkipGram


def depth(spec: AnySpec) -> int:
    """The depth of the stack that predicts; word vectors have none."""
    if isinstance(spec, specs.WordModel):
        return 0
    return spec.decoder.depth if isinstance(spec, specs.EncoderDecoder) else spec.stack.depth


class _Undrawn(TorchFunctionMode):
    """Passes over `torch.nn.init`: the meta device has nothing to fill, and torch imports a compiler to draw that."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def skeleton(spec: AnySpec) -> AnyModel:
    """The model without memory for its numbers (the meta device): to count, or to be given a checkpoint's."""
    with torch.device("meta"), _Undrawn():
        return MODULES[type(spec)](spec)


def build(spec: AnySpec, *, seed: int = 0, device: torch.device | str = "cpu", init: Init = "normal") -> AnyModel:
    """The model of this spec, freshly initialised: the same seed gives the same numbers on every device."""
    with torch.device("cpu"):
        model = MODULES[type(spec)](spec)
    initialise(model, depth(spec), seed, init)
    return model.to(device)
