"""A text that is written alone: token by token by the compiled step, which is several times quicker than a round.

As long as nobody else is there, a text's keys lie in one piece, as the step wants them; its pages follow page by page,
so that it can go on beside others at any time and reads at most a page anew.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nextile.base.device import has_compiler
from nextile.generation.decode import CompiledReader
from nextile.generation.step import Told, compile_beside
from nextile.nn.paged import PagedCache

LONGEST = 4096  # tokens that are kept in one piece


class Solo:
    """The step for one text, and the text that it holds. It is compiled beside whatever else is done."""

    def __init__(self, model: Any, cache: PagedCache):
        self._model, self._cache = model, cache
        self.capacity = min(model.spec.context, LONGEST)
        self._ready = compile_beside(model, 1, self.capacity)
        self._reader: CompiledReader | None = None
        self._whose: object = None
        self.there = 0  # tokens of it that have been read

    def can_take(self, tokens: int) -> bool:
        """Whether the step is there, and has room for so many tokens."""
        return self._ready() and tokens <= self.capacity

    def holds(self, whose: object, tokens: int) -> bool:
        """Whether so many tokens of this text are in it."""
        return self._whose is whose and self.there == tokens

    def take(self, whose: object, pages: list[int], tokens: int, temperature: float) -> None:
        """Go on with another text, of which so many tokens are on pages; draw at this temperature."""
        if self._reader is None:
            self._reader = CompiledReader(self._model, self.capacity, 1)
        self._cache.lay_out(pages, tokens, self._reader.cache)
        self._reader.cache.lengths.fill_(tokens)
        self._reader.longest = tokens
        self._reader.inputs.degree.fill_(temperature)
        self._whose, self.there = whose, tokens

    def follow(self, token: int, point: float) -> tuple[Tensor, Told]:
        """Read one more token -> logits (1, V), and what the step makes of them at a point of 0..1."""
        assert self._reader is not None
        found = self._reader.follow(token, point)
        self.there += 1
        return found

    def give_back(self, pages: list[int], start: int, stop: int) -> None:
        """Write these tokens on the text's pages."""
        assert self._reader is not None
        self._cache.take_back(pages, start, stop, self._reader.cache)


def can_be_compiled(device: str) -> bool:
    """Whether a step is worth it here: on CPU, where there is a compiler."""
    return device == "cpu" and has_compiler()
