"""Attention by FlexAttention (Dong et al. 2024): what a step must be for it, and how a model is told to use it."""

from __future__ import annotations

import torch
from torch import nn

from nextile.base.errors import UsageError
from nextile.nn.stack import TransformerStack

NARROWEST = 16  # numbers of a head that its kernel multiplies
WITHOUT = "or leave attention=flex out"


def use_flex(model: nn.Module) -> None:
    """Let the model's stacks attend by FlexAttention where a compiled graph hides keys by more than their order.

    That is where texts share rows, where a window is shorter than the row, and where scores are capped. Uncompiled,
    with a cache or with a recording all goes on as it did; a memory is heard through a dense mask. It is how a process
    computes, and no part of the model: neither of its spec nor of its state.

    Errors: UsageError for attention that FlexAttention's kernel does not know.
    """
    stacks = [part for part in model.modules() if isinstance(part, TransformerStack)]
    for stack in stacks:
        _refuse(stack)
    for stack in stacks:
        stack.flex = True


def check_step(device: torch.device, compiled: bool) -> None:
    """Errors: UsageError for a step that has no kernel of FlexAttention's."""
    if device.type != "cuda":
        raise UsageError(
            f"attention=flex is for steps on cuda, and this one is on {device.type}: set device=cuda, {WITHOUT}"
        )
    if not compiled:
        raise UsageError("attention=flex is for compiled steps, and this one is not: set compile=true and leave "
                         f"parallel.shard and parallel.tensor out, {WITHOUT}")  # fmt: skip


def _refuse(stack: TransformerStack) -> None:
    attention = stack.spec.attention
    if attention.dropout:
        raise UsageError(f"attention=flex has no dropout, and attention.dropout is {attention.dropout:g}: "
                         f"set dropout=0, {WITHOUT}")  # fmt: skip
    if stack.position_bias is not None:
        raise UsageError("attention=flex takes no positions that are biases of scores (T5, ALiBi): take a model with "
                         f"rotary or learned ones, {WITHOUT}")  # fmt: skip
    width = attention.head_width(stack.spec.width)
    if width < NARROWEST:
        raise UsageError(f"attention=flex wants heads that are {NARROWEST} wide or more, and {width} are given: "
                         f"choose fewer heads, {WITHOUT}")  # fmt: skip
