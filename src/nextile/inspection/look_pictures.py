"""Looking at models of pictures: classifiers, which read patches, and painters, which read pixels.

Shapes: T vectors of a picture, its summaries first, D width, K classes.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nextile.base.errors import UsageError
from nextile.checkpoint.pretrained import Pretrained
from nextile.images.processor import Palette
from nextile.inspection.attention import over_picture
from nextile.inspection.look import Draw, OneStack, Predicting
from nextile.inspection.look_texts import ranked
from nextile.inspection.neighbours import Found
from nextile.inspection.pieces import Piece, places
from nextile.inspection.stack import within


class PictureLook(OneStack):
    """One stack that reads one picture.

    grid: (rows, columns) of its places among the pieces.
    """

    grid: tuple[int, int]
    names: tuple[str, ...] = ()  # of the summaries

    def __init__(self, pretrained: Pretrained, what: object, draw: Draw | None = None):
        """Errors: UsageError for what is no file; NextileError for one that is no picture."""
        super().__init__(pretrained, draw)
        if not isinstance(what, (str, Path, bytes)) or not what:
            raise UsageError(f"{pretrained.called} reads pictures: give a file, or the bytes of one")
        source = what if isinstance(what, bytes) else Path(what)
        self._pixels: np.ndarray = pretrained.images.open(source)  # (H, W, C)

    @cached_property
    def picture(self) -> np.ndarray:
        """uint8 (H, W, C), in the size and in the colours that the model sees."""
        images = self.pretrained.images
        return images.pixels(images.inputs(self._pixels[None]))[0] if isinstance(images, Palette) else self._pixels

    @property
    def summaries(self) -> int:
        """How many of the pieces stand for no place in the picture."""
        return len(self.names)

    @property
    def pieces(self) -> list[Piece]:
        return places(self.grid, self.names, self._count)

    @property
    def _count(self) -> int:
        """T."""
        return self.summaries + self.grid[0] * self.grid[1]

    def attended(
        self, query: int, which: str = "self", *, layer: int | None = None, head: int | None = None
    ) -> np.ndarray:  # fmt: skip
        query = within(query, self._count, "query")
        weights = self.weights(which, layer=layer, head=head)
        over = [name for name in ("layer", "head") if name in weights.dims]
        return over_picture(weights.isel(query=query).mean(*over), self.grid, self.summaries)

    def neighbours(self, n: int = 10) -> list[tuple[str, Found]]:
        raise UsageError(f"{self.pretrained.called} reads pictures, not text: it has no words")


class ClassifierLook(PictureLook):
    """A classifier of pictures; one that was made of a painter reads pixels as well."""

    kind = "classify"
    silent = "says which class a picture has and writes nothing"
    _said = ("class",)

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("[CLS]", "[DISTILLED]")[: self.spec.summaries]

    @cached_property
    def grid(self) -> tuple[int, int]:  # type: ignore[override]
        side = round((self.spec.context - self.summaries) ** 0.5)
        return side, side

    @property
    def classes(self) -> list[tuple[str, float]]:
        return ranked(self._logits, self.spec.head.classes)

    def token_text(self, index: int) -> str:
        return self.spec.head.classes[index]

    @cached_property
    def _inputs(self) -> Tensor:
        return self.pretrained.images.inputs(self._pixels[None]).to(self._device)

    def _truth(self) -> list[int]:
        return [-1]

    def _head(self, x: Tensor) -> Tensor:
        return self.model.head(x)  # (1, K)

    def _speak(self, direction: Tensor) -> Tensor:
        return self._head(direction.expand(1, 1 + self.summaries, -1))[0]  # as if all vectors were this one


class PainterLook(Predicting, PictureLook):
    """An image-GPT: each pixel is a token, predicted from those before it, row by row."""

    kind = "paint"
    names = ("start",)
    silent = "goes on from a part of a picture by nextile paint"

    @property
    def palette(self) -> Palette:
        """The colours that are its tokens."""
        return self.pretrained.images  # type: ignore[return-value]

    @cached_property
    def pixels(self) -> list[int]:
        """The colours of the picture, row by row."""
        return self.palette.inputs(self._pixels[None])[0].tolist()

    @property
    def grid(self) -> tuple[int, int]:  # type: ignore[override]
        return self.palette.size, self.palette.size

    @property
    def _count(self) -> int:
        return len(self.pixels)  # the last is predicted and never read

    def token_text(self, index: int) -> str:
        if index >= len(self.palette.colours):
            return "start"
        levels = self.palette.pixels(torch.full((1, len(self.pixels)), index))[0, 0, 0]
        return "#" + "".join(f"{level:02x}" for level in np.resize(levels, 3))

    @cached_property
    def _inputs(self) -> Tensor:
        return torch.tensor([[self.palette.start_id, *self.pixels[:-1]]], device=self._device)

    def _truth(self) -> list[int]:
        return self.pixels
