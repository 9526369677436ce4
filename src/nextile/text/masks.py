"""What a tokenizer has for self-supervision: BERT's mask, T5's sentinels, and the tokens that stand for text."""

from __future__ import annotations

import re

import numpy as np
import tokenizers

from nextile.base.errors import NextileError
from nextile.text.pairs import for_pairs
from nextile.text.tokenizer import Tokenizer

MASK = "[MASK]"
SENTINELS = 100  # as many as T5 has (Raffel et al. 2020)
_SENTINEL = re.compile(r"<extra_id_(0|[1-9][0-9]{0,5})>")


def for_masks(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a mask token, "[MASK]"; one that has one of its own is returned as it is."""
    if tokenizer.mask_id is not None:
        return tokenizer
    return Tokenizer(
        _with_specials(tokenizer, MASK),
        {**tokenizer.config, "chat_template": tokenizer.chat_template, "mask_token": MASK},
    )


def for_spans(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a padding token and T5's sentinels; one that has both is returned as it is."""
    padded = for_pairs(tokenizer)
    if sentinels_of(padded):
        return padded
    return Tokenizer(_with_specials(padded, *(f"<extra_id_{i}>" for i in range(SENTINELS))), padded.config)


def _with_specials(tokenizer: Tokenizer, *tokens: str) -> tokenizers.Tokenizer:
    """A copy of what it wraps, with special tokens behind all others."""
    core = tokenizers.Tokenizer.from_str(tokenizer.core.to_str())
    core.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in tokens])
    return core


def mask_of(tokenizer: Tokenizer) -> int:
    """The mask token. Errors: NextileError where there is none."""
    if tokenizer.mask_id is None:
        raise NextileError(
            'the tokenizer has no mask token: take one made for masks, or name its own as "mask_token" in its config'
        )
    return tokenizer.mask_id


def sentinels_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens <extra_id_0>, <extra_id_1>, ... in the order of their names; empty where there are none.

    The names decide, because the ids of T5's own go down.
    """
    found = {
        int(name[1]): index
        for index, token in tokenizer.core.get_added_tokens_decoder().items()
        if token.special and (name := _SENTINEL.fullmatch(token.content))
    }
    return tuple(found[number] for number in sorted(found))


def ordinary_of(tokenizer: Tokenizer) -> np.ndarray:
    """The tokens that text is made of, ascending, int64: all but the special ones."""
    known = set(tokenizer.core.get_vocab(with_added_tokens=True).values())
    return np.array(sorted(known - tokenizer.special_ids), dtype=np.int64)
