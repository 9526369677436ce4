"""Pictures from files and bytes: decoded as they are meant to be seen, in one size, as numbers from 0 to 255.

Shapes: H height, W width, C channels, 1 (grey) or 3 (red, green, blue).
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

import numpy as np

from nextile.base.errors import NextileError, UsageError
from nextile.base.files import atomic_write

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MOST_PIXELS = 1 << 26  # of one picture: 256 MiB decoded, and a few times that while it is converted

Resample = Literal["bilinear", "bicubic"]

# PIL knows more formats, and starts another program for some (Ghostscript for EPS): they are not even tried.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}  # what brings each orientation upright, in PIL's names


# --- what can go wrong ---------------------------------------------------------------------------------------------


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise NextileError("pictures need Pillow: pip install 'nextile[images]'") from error


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn whatever PIL raises over a picture into one line that names it."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except NextileError:
        raise
    except UnidentifiedImageError as error:
        kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
        raise NextileError(f"{name} is no picture: give one of {kinds}") from error
    except Image.DecompressionBombError as error:
        raise NextileError(f"{name} has more than {MOST_PIXELS:,} pixels: scale it down") from error
    except Exception as error:  # SyntaxError, struct.error, ValueError, EOFError, OSError, MemoryError, ...
        why = _first_line(error)
        raise NextileError(f"{name} cannot be decoded ({why}): get a sound copy, or save it as PNG") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _refuse_too_many(image: Image, name: str, most: int) -> None:
    """Only the header has been read so far, and nothing been allocated."""
    if image.width * image.height > most:
        raise NextileError(f"{name} has {image.width:,} x {image.height:,} pixels, more than {most:,}: scale it down")


# --- any picture as red, green and blue ----------------------------------------------------------------------------


def _flat(image: Image) -> Image:
    """An image of any mode in RGB, what is transparent over white. Errors: ValueError for numbers without a scale."""
    from PIL.Image import alpha_composite, new

    if image.mode == "F" or image.mode.startswith("I"):
        return to_image(_eight_bits(image)[..., None]).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        return alpha_composite(new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image) -> np.ndarray:
    """Deep grey as uint8 (H, W): the high byte of 16 bits, as PIL reads 16-bit colour; floats go from 0 to 1."""
    values = np.asarray(image)
    highest = 1 if image.mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= highest):  # false for what is not a number, too
        raise ValueError(f"its numbers go from {values.min()} to {values.max()}, not from 0 to {highest}")
    grey = np.rint(values * 255) if image.mode == "F" else values >> 8
    grey = np.where(values == image.info.get("transparency", -1), 255, grey)
    return grey.astype(np.uint8)


def _turn(image: Image) -> str | None:
    """What brings the picture upright; None where its EXIF says nothing, or is broken, which spoils no pixel."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return None


# --- reading -------------------------------------------------------------------------------------------------------


def read_image(source: Path | bytes, name: str | None = None, most: int | None = None) -> Image:
    """The picture in a file, or in a file's bytes, as a PIL image in RGB: upright, over white, an animation's first.

    `name` is what an error calls it; most: pixels, at the highest MOST_PIXELS. PIL's warnings are silenced meanwhile,
    for the whole process. Errors: NextileError for what cannot be read, is no picture, is cut off or broken, or has
    more pixels.
    """
    _require_pillow()
    most = MOST_PIXELS if most is None else min(most, MOST_PIXELS)
    if isinstance(source, bytes):
        return _read(io.BytesIO(source), repr(name) if name else "the picture", most)
    called = repr(name or str(source))
    with _opened(source, called) as file:
        return _read(file, called, most)


@contextmanager
def _opened(path: Path, name: str) -> Iterator[IO[bytes]]:
    if os.path.exists(path) and not os.path.isfile(path):  # unlike Path's, they take a name too long to be one
        raise NextileError(f"{name} is not a regular file: name a picture")
    try:
        file = open(path, "rb")  # noqa: SIM115
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or _first_line(error)
        raise NextileError(f"cannot read {name}: {why}") from error
    with file:
        yield file


def _read(file: IO[bytes], name: str, most: int) -> Image:
    from PIL import Image

    with _explained(name), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PIL warns of is refused here, or spoils no pixel
        with Image.open(file, formats=_FORMATS) as image:
            _refuse_too_many(image, name, most)
            image.load()
            turn = _turn(image)
            flat = _flat(image)
        flat.info.clear()  # it says how to turn what is turned now
        return flat.transpose(Image.Transpose[turn]) if turn else flat


# --- pixels --------------------------------------------------------------------------------------------------------


def pixels_of(image: Image, size: int, channels: int, resample: Resample = "bilinear") -> np.ndarray:
    """A PIL image of any mode as uint8 (size, size, channels), the square filled whatever the shape was.

    It is resized as transformers' ViTImageProcessor does, with PIL's filter over all that a pixel covers.
    Errors: NextileError for an image whose numbers have no known scale.
    """
    from PIL.Image import Resampling

    with _explained("the picture"):
        image = _flat(image).convert("L" if channels == 1 else "RGB")
        image = image.resize((size, size), Resampling[resample.upper()])
        return np.array(image).reshape(size, size, channels)


def to_image(pixels: np.ndarray) -> Image:
    """Pixels, uint8 (H, W, C), as a PIL image. Errors: UsageError for another shape or type."""
    _require_pillow()
    from PIL.Image import fromarray

    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
        raise UsageError(f"{pixels.dtype} {pixels.shape} is no picture: give uint8 (height, width, 1 or 3)")
    return fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def save_png(path: str | Path, image: Image) -> None:
    """Write an image as PNG, whole or not at all. Errors: NextileError when the place cannot be written."""
    data = io.BytesIO()
    image.save(data, format="PNG")
    atomic_write(path, data.getvalue())
