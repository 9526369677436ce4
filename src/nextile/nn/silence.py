"""Parts that are switched off for a while: heads, layers, and the halves of layers.

    with silenced(m.model, ["2.3", "4"]):  # m = nextile.load(...)
        m.generate("The")                  # without head 3 of layer 2, and without layer 4

Layers and heads are counted from 0. A silent head adds nothing to the sum that the output matrix makes of all heads
(zero ablation; Michel et al. 2019, "Are Sixteen Heads Really Better than One?"); a bias of that matrix stays.

Shapes: B batch, T time, D width, H heads, E head width.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from nextile.base.errors import UsageError
from nextile.nn.attention import MultiHeadAttention
from nextile.nn.block import Block, ResidualAfter, ResidualBefore
from nextile.nn.stack import TransformerStack
from nextile.nn.tap import tap, wanted

Each = Literal["head", "layer"]
ATTENTION, FEED_FORWARD, CROSS = "attention", "feed_forward", "cross"
NAME = re.compile(rf"(?:(encoder|decoder|{CROSS})\.)?([0-9]{{1,6}})(?:\.([0-9]{{1,6}}|{ATTENTION}|{FEED_FORWARD}))?")
FORMS = {
    False: f"LAYER such as 2, LAYER.HEAD such as 2.3, 2.{ATTENTION} or 2.{FEED_FORWARD}",
    True: f"encoder.2, decoder.2.3, decoder.2.{ATTENTION}, encoder.2.{FEED_FORWARD}, cross.2 or cross.2.3",
}  # by whether there are two stacks


# --- names ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A place in a model: layer 2 is "2", its head 3 "2.3", its halves "2.attention" and "2.feed_forward".

    Of an encoder-decoder the stack comes first, "encoder.2.3"; "cross.2.3" is a head of the decoder's attention to the
    source, "cross.2" all of them.
    """

    stack: str  # "encoder", "decoder" or "cross"; "" where there is one stack
    layer: int
    piece: int | str | None = None  # a head, "attention" or "feed_forward"; None: the whole

    def __str__(self) -> str:
        return ".".join(str(each) for each in (self.stack, self.layer, self.piece) if each not in ("", None))


def read_part(model: nn.Module, name: str) -> Part:
    """The part of this model that has the name. Errors: UsageError for a name of none, with what there is."""
    stacks = _stacks(model)
    match = NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise UsageError(f"{name!r} is no part of a model: write {FORMS[len(stacks) > 1]} ({_there_is(stacks)})")
    stack, layer, piece = match.groups()
    part = Part(stack or "", int(layer), int(piece) if piece and piece[0].isdigit() else piece)
    if not _exists(stacks, part):
        raise UsageError(f"{name!r} is no part of this model: it has {_there_is(stacks)}")
    return part


def parts_of(model: nn.Module, each: Each) -> list[str]:
    """The names of all heads of a model, those of cross-attention as well, or of all its layers, from the first on.

    Errors: UsageError for a model without layers.
    """
    stacks = _stacks(model)
    if not stacks:
        raise UsageError(f"there is no {each} to switch off: this model has no layers")
    named = [(name, layer) for name, stack in stacks.items() for layer in range(len(stack.blocks))]
    if each == "layer":
        return [str(Part(name, layer)) for name, layer in named if name != CROSS]
    return [str(Part(name, layer, head)) for name, layer in named for head in range(_heads(stacks[name], name))]


def _stacks(model: nn.Module) -> dict[str, TransformerStack]:
    """By what stands before the dot: "" where there is one; two are "encoder" and "decoder", and "cross" beside it."""
    found = {path.rpartition(".")[2]: part for path, part in model.named_modules() if _is_stack(part)}
    stacks = cast(dict[str, TransformerStack], found)
    if len(stacks) == 1:
        return {"": next(iter(stacks.values()))}
    listening = [stack for stack in stacks.values() if stack.spec.cross is not None]
    return {**stacks, CROSS: listening[0]} if listening else stacks


def _is_stack(part: nn.Module) -> bool:
    return isinstance(part, TransformerStack)


def _heads(stack: TransformerStack, name: str) -> int:
    attention = stack.spec.cross if name == CROSS else stack.spec.attention
    assert attention is not None
    return attention.heads


def _exists(stacks: dict[str, TransformerStack], part: Part) -> bool:
    if part.stack not in stacks or part.layer >= len(stacks[part.stack].blocks):
        return False
    if isinstance(part.piece, int):
        return part.piece < _heads(stacks[part.stack], part.stack)
    return part.piece is None or part.stack != CROSS


def _there_is(stacks: dict[str, TransformerStack]) -> str:
    """What may be named, "layers 0 to 3, each with heads 0 to 7"; of several stacks by name."""
    said = [
        f"{name + ': ' if name else ''}{_numbered('layer', len(stack.blocks))}, "
        f"each with {_numbered('head', _heads(stack, name))}"
        for name, stack in stacks.items()
    ]
    return "; ".join(said) or "no layers"


def _numbered(what: str, count: int) -> str:
    return f"{what} 0" if count == 1 else f"{what}s 0 to {count - 1}"


# --- what is silent ---------------------------------------------------------------------------------------------------


class SilentHeads(nn.Module):
    """What an output matrix is while some of its heads are silent, whatever it is made of: numbers, codes, adapters."""

    silent: Tensor  # (H * E,): True where nothing is heard

    def forward(self, z: Tensor) -> Tensor:
        """The heads side by side (B, T, H * E) -> (B, T, D)."""
        return super().forward(z.masked_fill(self.silent, 0.0))  # type: ignore[misc]


def _tell_nothing_added(part: nn.Module, x: Tensor) -> None:
    if wanted(part, "added"):
        tap(part, "added", torch.zeros_like(x))


class SilentResidual(nn.Module):
    """What attention or a feed-forward net is while it adds nothing. A norm of the sum (post-norm) stays."""

    def branch(self, x: Tensor, *context: Any) -> Tensor:
        """What is added to x (B, T, D)."""
        return torch.zeros_like(x)

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        _tell_nothing_added(self, x)
        return cast(ResidualAfter, self).norm(x) if isinstance(self, ResidualAfter) else x.clone()


class SilentBlock(nn.Module):
    """What a block is while it gives what came in."""

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        for part in self.children():
            if isinstance(part, ResidualBefore):
                _tell_nothing_added(part, x)
        x = x.clone()  # a compiled region gives nothing back that it was given
        tap(self, "stream", x)
        return x


@contextmanager
def silenced(model: nn.Module, parts: str | Iterable[str]) -> Iterator[None]:
    """Switch parts of a model off for a `with` block; afterwards, and after an error, it is what it was.

    parts: names as `Part` has them, or one of them. A silent layer gives what came in; a silent attention or
    feed-forward net adds nothing to the stream. What is written to a cache meanwhile was written without them.
    The modules stay the same ones, under the same paths, with the same weights: for the time being each is of a
    subclass of its own (as torch's parametrizations do it), which compiled graphs notice.
    Errors: UsageError for a name of no part, before anything is changed.
    """
    names = [parts] if isinstance(parts, str) else list(parts)
    found = [read_part(model, name) for name in names]
    with ExitStack() as changes:
        for part in found:
            changes.enter_context(_silent(_stacks(model)[part.stack], part))
        yield


def _silent(stack: TransformerStack, part: Part) -> Any:
    """The change that silences a part of a stack, to be entered."""
    block = cast(Block, stack.blocks[part.layer])
    attention = block.cross_attention if part.stack == CROSS else block.self_attention
    assert attention is not None
    if isinstance(part.piece, int):
        return _head_off(cast(MultiHeadAttention, attention.inner), part.piece)
    if part.piece == FEED_FORWARD:
        return _changed(block.feed_forward, SilentResidual)
    whole = part.piece is None and part.stack != CROSS
    return _changed(block, SilentBlock) if whole else _changed(attention, SilentResidual)


@contextmanager
def _head_off(attention: MultiHeadAttention, head: int) -> Iterator[None]:
    """One more head of an attention is silent."""
    out = attention.out
    others = out._buffers.get("silent")
    device = next(chain(out.parameters(), out.buffers())).device
    own = torch.arange(attention.heads, device=device).repeat_interleave(attention.head_width) == head  # (H * E,)
    with _changed(out, SilentHeads):
        out.register_buffer("silent", own if others is None else own | others, persistent=False)
        try:
            yield
        finally:
            if others is None:
                del out.silent
            else:
                out.register_buffer("silent", others, persistent=False)


@contextmanager
def _changed(module: nn.Module, silent: type[nn.Module]) -> Iterator[None]:
    """The module is of a fresh subclass of both, unless it is silent in this way already."""
    own = type(module)
    if not isinstance(module, silent):
        module.__class__ = type(f"{silent.__name__}{own.__name__}", (silent, own), {})
    _forget_graphs()
    try:
        yield
    finally:
        module.__class__ = own
        _forget_graphs()


def _forget_graphs() -> None:
    """What was compiled by a torch that does not notice that a module's class is another is compiled anew."""
    if torch.__version__ < "2.13" and "torch._dynamo" in sys.modules:
        torch.compiler.reset()
