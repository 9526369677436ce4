"""embed -> stack -> head: a text in, a class out.

Shapes: B batch, T time, D width, K classes.
"""

import torch
from torch import Tensor, nn

from nextile.nn import specs
from nextile.nn.embed import TokenEmbedding
from nextile.nn.head import make_class_head
from nextile.nn.stack import TransformerStack, places


class TextClassifier(nn.Module):
    """Any encoder or decoder with a head over classes: which, is in the spec."""

    def __init__(self, spec: specs.TextClassifier):
        super().__init__()
        self.spec = spec
        self.embed = TokenEmbedding(spec.embed, spec.stack.width)
        self.stack = TransformerStack(spec.stack, spec.embed.vocab)
        self.head = make_class_head(spec.head, spec.stack.width)

    def forward(self, ids: Tensor, segments: Tensor | None = None) -> Tensor:
        """ids (B, T) -> logits (B, K).

        segments (B, T): 1, or True, at the tokens of a text and 0 at padding, which never counts; None: no padding.
        """
        there = torch.ones_like(ids, dtype=torch.bool) if segments is None else segments != 0
        return self.head.of_texts(self.features(ids, segments=segments), there)  # type: ignore[operator]

    def features(self, ids: Tensor, *, segments: Tensor | None = None) -> Tensor:
        """What the head reads: (B, T) -> (B, T, D)."""
        return self.stack(self.embed(ids, places(ids, segments)), segments=segments, ids=ids)
