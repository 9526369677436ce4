"""The default masked model: the default language model's shape, looking both ways; no other program has this family."""

from typing import Any

from nextile.models.families import qwen3
from nextile.nn import specs

SIZES: dict[str, dict[str, int]] = {}


def spec(*, vocab: int, context: int, dropout: float = 0.0, **size: Any) -> specs.Transformer:
    """Qwen3's blocks without the mask that hides what comes, and rotary positions for shorter texts."""
    causal = qwen3.spec(vocab=vocab, context=context, dropout=dropout, base=10_000.0, **size)
    return causal.model_copy(update={"stack": causal.stack.model_copy(update={"causal": False})})
