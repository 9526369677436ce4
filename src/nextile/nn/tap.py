"""Name an intermediate; it is kept only while a recording is open.

    with record(model, "stack.blocks.2.self_attention.inner.weights") as seen:
        model(ids)
    seen["stack.blocks.2.self_attention.inner.weights"]        # (B, H, T, S)

Nothing is paid when no recording is open, and while one is, only the parts that it asks for leave the fast path. Of
attention a recording may ask for a few heads: the others are then never weighed in the open.

    with record(model, "stack.blocks.2.self_attention.inner.weights", heads=[3]) as seen:
        model(ids)
    seen["stack.blocks.2.self_attention.inner.weights"]        # (B, 1, T, S)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn


class Recording(dict[str, Tensor]):
    """Intermediates by name; a name is the part's path in the model, a dot, and what the part calls it."""

    def __init__(self, model: nn.Module, patterns: tuple[str, ...], heads: Sequence[int] | None = None):
        """heads: those of attention that are asked for; None: all."""
        super().__init__()
        self.heads = None if heads is None else list(heads)
        self._paths = {id(part): path for path, part in model.named_modules()}
        self._patterns = patterns

    def name(self, part: nn.Module, what: str) -> str | None:
        """The full name when this recording asks for it, else None."""
        if id(part) not in self._paths:
            return None
        name = f"{self._paths[id(part)]}.{what}".lstrip(".")
        return name if any(fnmatchcase(name, pattern) for pattern in self._patterns) else None


_open: ContextVar[Recording | None] = ContextVar("nextile_recording", default=None)


@contextmanager
def record(model: nn.Module, *patterns: str, heads: Sequence[int] | None = None) -> Iterator[Recording]:
    """Keep what `tap` is given under names that match a pattern (`*` matches anything); the latest value stays.

    heads: of attention keep these alone, in this order; None: all.
    """
    token = _open.set(Recording(model, patterns, heads))
    try:
        recording = _open.get()
        assert recording is not None
        yield recording
    finally:
        _open.reset(token)


def _recording() -> Recording | None:
    """The open one; a compiled graph has none, so that it holds no question about it."""
    return None if torch.compiler.is_compiling() else _open.get()


def wanted(part: nn.Module, what: str) -> bool:
    """Is a recording open that asks for this? Parts ask before they compute what the fast path never has."""
    recording = _recording()
    return recording is not None and recording.name(part, what) is not None


def chosen_heads() -> list[int] | None:
    """The heads that the open recording asks for; None: all."""
    recording = _recording()
    return None if recording is None else recording.heads


def tap(part: nn.Module, what: str, value: Tensor) -> None:
    """Keep a detached `value` if a recording asks for it."""
    recording = _recording()
    if recording is not None and (name := recording.name(part, what)) is not None:
        recording[name] = value.detach()
