"""encode -> decode: a source becomes a memory, the target attends to it (Vaswani et al. 2017).

Shapes: B batch, M source length, T target length, D width, V vocabulary.
"""

from torch import Tensor, nn

from nextile.base.errors import NextileError
from nextile.nn import specs
from nextile.nn.cache import Cache, Memory
from nextile.nn.embed import TokenEmbedding
from nextile.nn.head import Read, make_head, read_whole
from nextile.nn.stack import TransformerStack, places


class EncoderDecoder(nn.Module):
    """The 2017 Transformer, T5, Marian: what they are is in the spec."""

    def __init__(self, spec: specs.EncoderDecoder):
        super().__init__()
        self.spec = spec
        self.source = TokenEmbedding(spec.source, spec.encoder.width)
        self.encoder = TransformerStack(spec.encoder)
        self.target = TokenEmbedding(spec.target, spec.decoder.width, self.source) if spec.target else self.source
        self.decoder = TransformerStack(spec.decoder)
        self.head = make_head(spec.head, self.target)

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        source_segments: Tensor | None = None,
        target_segments: Tensor | None = None,
        *,
        read: Read = read_whole,
    ) -> Tensor:
        """source (B, M), target (B, T) -> logits (B, T, V), or what `read` makes of the head and the features.

        Segments, (B, M) and (B, T), let several pairs share a row: a token sees its own pair alone. 0 is padding, so a
        mask that is True at tokens is the case of one pair; without target_segments a target hears all of its row.
        """
        memory = self.encode(source, source_segments)
        return read(self.head, self.features(target, memory, segments=target_segments))

    def encode(self, source: Tensor, segments: Tensor | None = None) -> Memory:
        """(B, M) -> the decoder's keys and values of it."""
        features = self.encoder(self.source(source, places(source, segments)), segments=segments)
        return self.decoder.remember(features, segments)

    def features(
        self,
        target: Tensor,
        memory: Memory | None = None,
        *,
        segments: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """What the head reads: (B, T) -> (B, T, D), beside a memory, or that of the cache."""
        memory = cache.memory if memory is None and cache is not None else memory
        if memory is None:
            raise NextileError("an encoder-decoder reads a target beside its source: give the memory of one")
        positions = cache.slot(target.shape[1]).positions if cache else places(target, segments)
        return self.decoder(self.target(target, positions), segments=segments, cache=cache, memory=memory)

    def new_cache(self, batch: int, capacity: int, *, dtype=None, device=None, static: bool = False) -> Cache:
        """An empty cache of the decoder, without a memory, for `batch` rows of up to `capacity` tokens."""
        return self.decoder.new_cache(batch, capacity, dtype=dtype, device=device, static=static)
