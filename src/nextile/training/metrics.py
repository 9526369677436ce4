"""What a loss means: perplexity, bits per byte; pure functions of totals and counts."""

from __future__ import annotations

import math


def perplexity(nats: float) -> float:
    """e to the mean loss in nats per token: among how many equally likely tokens the model still hesitates."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def bits_per_byte(total_nats: float, text_bytes: int) -> float:
    """Total nats over the UTF-8 bytes of the text they were asked on, in bits: comparable across tokenizers."""
    return total_nats / (text_bytes * math.log(2))
