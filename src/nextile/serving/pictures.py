"""Pictures in requests and answers: data URLs of what a browser has, PNG in base64 of what a model painted.

Shapes: N pictures, H x W pixels, C channels.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Sequence

import numpy as np
import torch

from nextile.base.errors import NextileError
from nextile.images.pixels import pixels_of, read_image
from nextile.images.processor import ImageProcessor, Palette
from nextile.serving.protocol import Painted, Refusal

LARGEST = 6 << 20  # bytes of one picture's file
MOST_PIXELS = 1 << 25  # of one picture: some 33 millions, more than a telephone's
_URL = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,")


def picture_bytes(url: str, param: str) -> bytes:
    """The file in a data URL. Errors: Refusal (400) for anything else; (413) for one that is too large."""
    found = _URL.match(url)
    if not found:
        raise Refusal(400, f"'{param}' is no picture: give a data URL, data:image/png;base64,...", param=param)
    if (len(url) - found.end()) * 3 // 4 > LARGEST:
        raise Refusal(413, f"the picture in '{param}' has more than {LARGEST:,} bytes: scale it down", param=param)
    try:
        return base64.b64decode(url[found.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, f"the picture in '{param}' is not in base64", param=param) from None


def read_picture(data: bytes, processor: ImageProcessor, param: str) -> np.ndarray:
    """A file's picture as a model reads it: uint8 (H, W, C). Errors: Refusal (400) for what is no sound picture."""
    try:
        return pixels_of(read_image(data, most=MOST_PIXELS), processor.size, processor.channels, processor.resample)
    except NextileError as error:
        raise Refusal(400, f"'{param}': {error}", param=param, code="invalid_image") from None


def upper_half(pixels: np.ndarray, palette: Palette) -> list[int]:
    """The colours of the upper half of a picture, uint8 (H, W, C)."""
    return palette.inputs(pixels[None])[0, : palette.size // 2 * palette.size].tolist()


def drawn(palette: Palette, painted: Sequence[Sequence[int]]) -> list[Painted]:
    """PNG of pictures of which so many colours are known; the pixels that are not are transparent."""
    return [_drawn(palette, colours) for colours in painted]


def _drawn(palette: Palette, colours: Sequence[int]) -> Painted:
    from PIL import Image

    size = palette.size
    filled = torch.tensor([[*colours, *[0] * (size**2 - len(colours))]])  # (1, H * W)
    pixels = np.broadcast_to(palette.pixels(filled)[0], (size, size, 3))  # of grey, three alike
    alpha = (np.arange(size**2) < len(colours)).reshape(size, size, 1)
    file = io.BytesIO()
    Image.fromarray(np.concatenate([pixels, alpha * np.uint8(255)], axis=-1)).save(file, format="PNG")
    return Painted(b64_json=base64.b64encode(file.getvalue()).decode())
