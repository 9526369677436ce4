"""embed -> stack -> head: a picture in, a class out.

Shapes: B batch, C channels, H x W pixels, T vectors, D width, K classes.
"""

from torch import Tensor, nn

from nextile.nn import specs
from nextile.nn.embed import make_image_embedding
from nextile.nn.head import make_class_head
from nextile.nn.stack import TransformerStack


class VisionTransformer(nn.Module):
    """ViT, compact transformers, image-GPT that classifies: what they are is in the spec."""

    def __init__(self, spec: specs.VisionTransformer):
        super().__init__()
        self.spec = spec
        self.embed = make_image_embedding(spec.embed, spec.stack.width, spec.summaries)
        self.stack = TransformerStack(spec.stack)
        self.head = make_class_head(spec.head, spec.stack.width)

    def forward(self, inputs: Tensor) -> Tensor:
        """Pictures (B, C, H, W), or their tokens (B, T) where the embedding is one of tokens -> logits (B, K)."""
        return self.head(self.features(inputs))

    def features(self, inputs: Tensor) -> Tensor:
        """What the head reads: -> (B, T, D)."""
        return self.stack(self.embed(inputs))
