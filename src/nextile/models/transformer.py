"""embed -> stack -> head: one stream of tokens in, predictions out.

Shapes: B batch, T time, D width, V vocabulary.
"""

from torch import Tensor, nn

from nextile.base.errors import NextileError
from nextile.nn import specs
from nextile.nn.cache import Cache
from nextile.nn.embed import TokenEmbedding
from nextile.nn.head import Read, make_head, read_whole
from nextile.nn.stack import TransformerStack, places


class Transformer(nn.Module):
    """GPT-2, Llama, Qwen, BERT: what they are is in the spec."""

    def __init__(self, spec: specs.Transformer):
        super().__init__()
        self.spec = spec
        self.embed = TokenEmbedding(spec.embed, spec.stack.width)
        self.stack = TransformerStack(spec.stack, spec.embed.vocab)
        self.head = make_head(spec.head, self.embed)

    def forward(
        self, ids: Tensor, *, segments: Tensor | None = None, cache: Cache | None = None, read: Read = read_whole
    ) -> Tensor:
        """ids (B, T) -> logits (B, T, V), or what `read` makes of the head and the features.

        segments (B, T): which sequence of its row a token belongs to, 0 at padding; or a mask, True at tokens.
        """
        return read(self.head, self.features(ids, segments=segments, cache=cache))

    def features(self, ids: Tensor, *, segments: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """What the head reads: (B, T) -> (B, T, D)."""
        positions = cache.slot(ids.shape[1]).positions if cache else places(ids, segments)
        return self.stack(self.embed(ids, positions), segments=segments, cache=cache, ids=ids)

    def new_cache(self, batch: int, capacity: int, *, dtype=None, device=None, static: bool = False) -> Cache:
        """An empty cache for `batch` rows of up to `capacity` tokens."""
        position = self.spec.embed.position
        if position is not None and capacity > position.length:
            raise NextileError(
                f"{capacity} tokens were asked for and the model has {position.length} positions: ask for fewer tokens"
            )
        return self.stack.new_cache(batch, capacity, dtype=dtype, device=device, static=static)
