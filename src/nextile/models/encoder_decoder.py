"""encode -> decode: a source becomes a memory, the target attends to it (Vaswani et al. 2017).

Shapes: B batch, M source length, T target length, D width, V vocabulary.
"""

from torch import Tensor, nn

from nextile.nn import specs
from nextile.nn.cache import Cache
from nextile.nn.embed import TokenEmbedding
from nextile.nn.head import make_head
from nextile.nn.stack import Memory, TransformerStack


class EncoderDecoder(nn.Module):
    """The 2017 Transformer, T5, Marian: what they are is in the spec."""

    def __init__(self, spec: specs.EncoderDecoder):
        super().__init__()
        self.spec = spec
        self.source = TokenEmbedding(spec.source, spec.encoder.width)
        self.encoder = TransformerStack(spec.encoder)
        self.target = TokenEmbedding(spec.target, spec.decoder.width) if spec.target else self.source
        self.decoder = TransformerStack(spec.decoder)
        self.head = make_head(spec.head, self.target)

    def forward(self, source: Tensor, target: Tensor, *, keep: Tensor | None = None) -> Tensor:
        """source (B, M), target (B, T), keep (B, M) False at padding -> logits (B, T, V)."""
        return self.decode(target, self.encode(source, keep))

    def encode(self, source: Tensor, keep: Tensor | None = None) -> Memory:
        """(B, M) -> the decoder's keys and values of it."""
        return self.decoder.remember(self.encoder(self.source(source), keep=keep), keep)

    def decode(self, target: Tensor, memory: Memory, *, cache: Cache | None = None) -> Tensor:
        """(B, T) -> logits (B, T, V)."""
        positions = cache.slot(target.shape[1]).positions if cache else None
        return self.head(self.decoder(self.target(target, positions), cache=cache, memory=memory))

    def new_cache(self, batch: int, capacity: int, *, dtype=None, device=None, static: bool = False) -> Cache:
        """An empty cache of the decoder."""
        return self.decoder.new_cache(batch, capacity, dtype=dtype, device=device, static=static)
