"""What a translator's tokens have beside those of a text: one that fills rows and begins every target."""

from __future__ import annotations

import tokenizers
from tokenizers import processors

from nextile.text.tokenizer import Tokenizer

PAD = "<pad>"


def for_pairs(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a padding token; one that has it is returned as it is.

    For other programs its tokenizer.json says too that a text ends with the end token; our own `encode` adds nothing.
    """
    if tokenizer.pad_id is not None:
        return tokenizer
    core = tokenizers.Tokenizer.from_str(tokenizer.core.to_str())
    core.add_special_tokens([tokenizers.AddedToken(PAD, special=True, normalized=False)])
    end = tokenizer.token(tokenizer.end_id)
    core.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, tokenizer.end_id)]
    )
    return Tokenizer(core, {**tokenizer.config, "chat_template": tokenizer.chat_template, "pad_token": PAD})


def start_of(tokenizer: Tokenizer) -> int:
    """The token that every target begins with: the padding token, as in Marian and T5; without one the end token."""
    return tokenizer.end_id if tokenizer.pad_id is None else tokenizer.pad_id
