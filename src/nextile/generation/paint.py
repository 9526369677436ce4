"""Pictures from nothing, or from their upper part: colours are decoded pixel by pixel as words are (image-GPT).

Shapes: N pictures, T pixels of a picture in raster order, H x W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from nextile.base.errors import UsageError
from nextile.generation.beam import Beams, beam_search
from nextile.generation.decode import EagerReader, decode, evaluating
from nextile.generation.sample import Sampling
from nextile.images.processor import ImageProcessor, Palette
from nextile.nn import specs


class Painter(Protocol):
    """A model, what it is, and its palette; `nextile.load` returns one."""

    @property
    def model(self) -> Any: ...
    @property
    def spec(self) -> Any: ...
    @property
    def images(self) -> ImageProcessor: ...
    @property
    def called(self) -> str: ...


def palette_of(pretrained: Painter) -> Palette:
    """Its palette. Errors: UsageError for a model that is no painter."""
    palette = pretrained.images
    if not isinstance(palette, Palette) or not isinstance(pretrained.spec, specs.Transformer):
        raise UsageError(f"{pretrained.called} is a classifier, not a painter: use nextile classify")
    return palette


def paint(
    pretrained: Painter,
    beginnings: Sequence[Sequence[int]],
    sampling: Sampling | None = None,
    *,
    streams: Sequence[int] | None = None,
    batch: int = 16,
    progress: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Whole pictures, uint8 (N, H, W, C), that begin with these colours; [] is a picture from nothing.

    streams: which stream of the seed each draws from, its number when None. batch: pictures at a time, a matter of
    memory only. progress is told of every pixel. Errors: UsageError for no painter and for beginnings that are whole
    pictures or longer; NextileError when the model predicts NaN.
    """
    palette = palette_of(pretrained)
    pixels = palette.size**2
    _refuse_whole(beginnings, pixels)
    streams = list(range(len(beginnings))) if streams is None else list(streams)
    painted = np.zeros((len(beginnings), pixels), dtype=np.int64)
    for length in sorted({len(beginning) for beginning in beginnings}):
        alike = [number for number, beginning in enumerate(beginnings) if len(beginning) == length]
        for start in range(0, len(alike), batch):
            numbers = alike[start : start + batch]
            prompts = [[palette.start_id, *beginnings[number]] for number in numbers]
            chosen = [streams[number] for number in numbers]
            painted[numbers, :length] = [beginnings[number] for number in numbers]
            places = [length] * len(numbers)
            for event in decode(
                pretrained.model, prompts, sampling or Sampling(temperature=1.0), max_tokens=pixels - length,
                streams=chosen, compiled=False,
            ):  # fmt: skip
                painted[numbers[event.row], places[event.row]] = event.token
                places[event.row] += 1
                if progress is not None:
                    progress(1)
    return palette.pixels(torch.from_numpy(painted))


def paint_by_beams(pretrained: Painter, beginnings: Sequence[Sequence[int]], beams: Beams, n: int = 1) -> np.ndarray:
    """The n most probable whole pictures after each beginning that beams find, best first: uint8 (N * n, H, W, C).

    Errors: as in `paint`; UsageError for counts out of bounds.
    """
    palette = palette_of(pretrained)
    pixels = palette.size**2
    _refuse_whole(beginnings, pixels)
    prompts = [[palette.start_id, *beginning] for beginning in beginnings]
    limits = [pixels - len(beginning) for beginning in beginnings]
    with evaluating(pretrained.model):
        found = beam_search(EagerReader(pretrained.model, pixels), prompts, beams, limits=limits, end_ids=(), n=n)
    whole = [[*beginning, *text.tokens] for beginning, texts in zip(beginnings, found, strict=True) for text in texts]
    return palette.pixels(torch.tensor(whole))


def _refuse_whole(beginnings: Sequence[Sequence[int]], pixels: int) -> None:
    longest = max(map(len, beginnings), default=0)
    if longest >= pixels:
        raise UsageError(f"a beginning has {longest} pixels and a picture {pixels}: leave some to paint")
