"""Pictures read from files: every mode as it is meant to be seen, one size as transformers has it, hostile ones."""

from __future__ import annotations

import io
import os
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers import ViTImageProcessorPil

from nextile.base.errors import NextileError, UsageError
from nextile.images import pixels
from nextile.images.pixels import MOST_PIXELS, SUFFIXES, pixels_of, read_image, save_png, to_image

UNUSUAL = "give one of png, jpg, jpeg, webp, bmp, gif, tif, tiff, ppm, pgm"


def picture(height: int = 20, width: int = 30) -> Image.Image:
    """Colours that change smoothly, and differently along each side."""
    down, across = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([down * 9, across * 7, 255 - down - across], -1).astype(np.uint8))


def noise(*shape: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG written by hand: what PIL itself does not write, and headers that lie."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def seen(data: bytes) -> list:
    """The pixels of the first row."""
    image = read_image(data)
    assert image.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(image)[0].tolist()]


def problem(source: Path | bytes, name: str | None = None) -> str:
    with pytest.raises(NextileError) as caught:
        read_image(source, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def outcome(data: bytes) -> bytes | str:
    """The pixels, or the one line that says why there are none."""
    try:
        return read_image(data, "cat.jpg").tobytes()
    except NextileError as error:
        line = str(error)
    assert line.startswith("'cat.jpg' ")
    assert "\n" not in line
    return line


# --- one size, as transformers has it ------------------------------------------------------------------------------


@pytest.mark.parametrize(("resample", "number"), [("bilinear", 2), ("bicubic", 3)])
@pytest.mark.parametrize("shape", [(20, 30), (97, 61), (8, 8), (1, 40)])
def test_a_picture_is_resized_as_transformers_does(shape, resample, number):
    theirs = ViTImageProcessorPil(size=16, resample=number, do_rescale=False, do_normalize=False)
    wanted = theirs(noise(*shape), return_tensors="np")["pixel_values"][0]
    found = pixels_of(noise(*shape), 16, 3, resample)
    assert found.dtype == np.uint8
    assert np.array_equal(found.transpose(2, 0, 1), wanted)


def test_the_filters_differ():
    assert not np.array_equal(pixels_of(picture(), 16, 3), pixels_of(picture(), 16, 3, "bicubic"))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_of_the_size_stays_as_it_is(channels):
    exact = np.asarray(noise(16, 16))[..., :channels]
    assert np.array_equal(pixels_of(to_image(exact), 16, channels), exact)
    assert pixels_of(to_image(exact), 8, channels).shape == (8, 8, channels)


def test_grey_is_the_brightness_of_colours():
    image = Image.new("RGB", (2, 2), (255, 0, 0))
    assert pixels_of(image, 2, 1).tolist() == np.full((2, 2, 1), 76).tolist()  # 0.299 of red
    assert pixels_of(Image.new("L", (2, 2), 7), 2, 3).tolist() == np.full((2, 2, 3), 7).tolist()


def test_an_image_in_hand_may_have_any_mode():
    assert pixels_of(Image.new("RGBA", (2, 2), (0, 0, 0, 0)), 2, 3).min() == 255
    deep = Image.fromarray(np.full((2, 2), 0x8000, np.uint16))
    assert (pixels_of(deep, 2, 1) == 0x80).all()
    with pytest.raises(NextileError, match=r"its numbers go from 255.0 to 255.0, not from 0 to 1"):
        pixels_of(Image.fromarray(np.full((2, 2), 255, np.float32)), 2, 1)


# --- as they are meant to be seen ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_every_exact_format_gives_every_pixel(kind, tmp_path):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(picture(), kind, **options)
    (tmp_path / "x").write_bytes(data)
    for source in (data, tmp_path / "x"):
        assert np.array_equal(np.asarray(read_image(source)), np.asarray(picture()))


@pytest.mark.parametrize("kind", ["JPEG", "GIF"])
def test_every_other_format_gives_about_every_pixel(kind):
    found = np.asarray(read_image(encoded(picture(), kind))).astype(int)
    assert np.abs(found - np.asarray(picture())).mean() < 12


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = {"quality": 95, "lossless": True} if kind in ("JPEG", "WEBP") else {}
    data = encoded(picture(), kind, exif=exif, **upright)
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    found = read_image(data)
    assert found.size == ((20, 30) if orientation > 4 else (30, 20))
    assert np.array_equal(np.asarray(found), np.asarray(wanted))
    assert ImageOps.exif_transpose(found).tobytes() == found.tobytes()  # it is not turned a second time


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage!", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0"])
def test_broken_exif_spoils_no_picture(exif, monkeypatch):
    data = encoded(picture(), "JPEG", exif=exif)
    assert read_image(data).size == (30, 20)
    monkeypatch.setattr("PIL.Image.Image.getexif", lambda *_: struct.unpack("<H", b""))
    assert read_image(data).size == (30, 20)


def test_what_is_transparent_is_white():
    half = 127  # black over white, half of it seen
    assert seen(encoded(Image.new("LA", (1, 1), (0, 128)))) == [(half,) * 3]
    assert seen(encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 128)))) == [(255, half, half)]
    assert seen(encoded(Image.new("RGBA", (1, 1), (1, 2, 3, 255)))) == [(1, 2, 3)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert seen(encoded(palette)) == [(255, 0, 0)]
    assert seen(encoded(palette, transparency=b"\x80")) == [(255, half, half)]
    assert seen(encoded(palette, "GIF", transparency=0)) == [(255, 255, 255)]


def test_one_colour_may_be_the_transparent_one():
    assert seen(png(2, 1, 8, 0, bytes([0, 7, 9]), chunk(b"tRNS", b"\0\7"))) == [(255,) * 3, (9,) * 3]
    assert seen(png(2, 1, 8, 2, bytes([0, 1, 2, 3, 4, 5, 6]), chunk(b"tRNS", b"\0\1\0\2\0\3")))[1] == (4, 5, 6)
    deep = png(2, 1, 16, 0, b"\0\x12\x34\x12\x35", chunk(b"tRNS", b"\x12\x34"))
    assert seen(deep) == [(255,) * 3, (0x12,) * 3]


def test_deep_greys_count_by_their_high_byte():
    values = [0, 0x80FF, 0xFFFF]
    wanted = [(value >> 8,) * 3 for value in values]
    assert seen(png(3, 1, 16, 0, b"\0" + struct.pack(">3H", *values))) == wanted
    assert seen(b"P5\n3 1\n65535\n" + struct.pack(">3H", *values)) == wanted
    for kind in (np.uint16, np.int32):
        assert seen(encoded(Image.fromarray(np.array([values], kind)), "TIFF")) == wanted
    assert seen(png(1, 1, 16, 2, b"\0" + struct.pack(">3H", *values))) == [(0, 0x80, 255)]  # colours: the same


def test_floats_go_from_0_to_1():
    def tiff(values: list[float]) -> bytes:
        return encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")

    assert seen(tiff([0.0, 0.5, 1.0])) == [(0,) * 3, (128,) * 3, (255,) * 3]
    assert "its numbers go from 0.0 to 255.0, not from 0 to 1" in problem(tiff([0.0, 255.0]))
    assert "from nan to nan" in problem(tiff([0.0, float("nan")]))
    assert "from -1 to 3, not from 0 to 65535" in problem(
        encoded(Image.fromarray(np.array([[-1, 3]], np.int32)), "TIFF")
    )


def test_few_bits_and_four_inks():
    assert seen(png(3, 1, 1, 0, b"\0\xa0")) == [(255,) * 3, (0,) * 3, (255,) * 3]
    assert seen(b"P4\n3 1\n\xa0") == [(0,) * 3, (255,) * 3, (0,) * 3]
    for kind in ("JPEG", "TIFF"):
        assert seen(encoded(Image.new("CMYK", (1, 1), (255, 0, 0, 0)), kind)) == [(0, 255, 255)]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_its_first_picture(kind):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    assert seen(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))[0] == (255, 0, 0)


# --- hostile input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("WEBP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
    ],
)
def test_a_truncated_picture_is_an_error_in_one_line(kind, options):
    data = encoded(noise(20, 30), kind, **options)
    whole = outcome(data)
    for end in range(0, len(data), len(data) // 40):
        found = outcome(data[:end])
        assert isinstance(found, str) or found == whole  # all of the pixels were there
        assert isinstance(found, str) or end > len(data) * 0.95
    assert "truncated" in problem(encoded(picture(), "JPEG")[:-30])
    assert "truncated" in problem(encoded(picture(), "PNG")[:-40])


def test_broken_bytes_are_a_picture_or_an_error_in_one_line():
    rng = np.random.default_rng(0)
    refused = 0
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"):
        data = encoded(picture(), kind)
        for _ in range(60):
            broken = bytearray(data)
            for place in rng.integers(0, len(data), 3):
                broken[place] = rng.integers(256)
            refused += isinstance(outcome(bytes(broken)), str)
    assert 50 < refused < 400


def test_a_text_file_called_png(tmp_path):
    path = tmp_path / "cat.png"
    path.write_text("meow")
    assert problem(path) == f"'{path}' is no picture: {UNUSUAL}"
    assert problem(path, "the cat") == f"'the cat' is no picture: {UNUSUAL}"
    assert problem(b"") == f"the picture is no picture: {UNUSUAL}"
    assert problem(b"x", "a\nb") == f"'a\\nb' is no picture: {UNUSUAL}"


def test_formats_that_start_programs_are_not_tried(monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    assert "is no picture" in problem(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")


@pytest.mark.parametrize("side", [8193, 9500, 60_000])  # more than we take, than PIL warns of, than PIL takes
def test_a_decompression_bomb_is_refused_by_its_header(side, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("it was decoded"))
    assert "67,108,864: scale it down" in problem(png(side, side, 8, 2, b"")).replace(" pixels:", ":")
    assert f"has {8193:,} x {8193:,} pixels" in problem(png(8193, 8193, 8, 2, b""))


def test_as_many_pixels_as_may_be_are_read(monkeypatch):
    monkeypatch.setattr(pixels, "MOST_PIXELS", 600)
    assert read_image(encoded(picture(20, 30))).size == (30, 20)
    assert "has 31 x 20 pixels, more than 600: scale it down" in problem(encoded(picture(20, 31)))
    assert MOST_PIXELS == 1 << 26


def test_places_that_hold_no_file(tmp_path):
    assert problem(tmp_path / "x.png") == f"cannot read '{tmp_path}/x.png': No such file or directory"
    assert problem(tmp_path) == f"'{tmp_path}' is not a regular file: name a picture"
    os.mkfifo(tmp_path / "pipe.png")
    assert "is not a regular file" in problem(tmp_path / "pipe.png")
    assert "File name too long" in problem(Path("x" * 5000))
    assert "cannot read" in problem(Path("a\0b"))


@pytest.mark.parametrize(
    "error",
    [MemoryError(), EOFError(), SyntaxError("not\nthis"), struct.error("x"), RuntimeError("y"), OSError(5, "z")],
)
def test_whatever_pillow_raises_is_one_line(error, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    why = str(error).splitlines()[0] if str(error) else type(error).__name__
    assert problem(encoded(picture()), "x") == f"'x' cannot be decoded ({why}): get a sound copy, or save it as PNG"


def test_warnings_of_pillow_do_not_show_and_others_still_do():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_image(encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff"))
        assert caught == []
        warnings.warn("mine", stacklevel=1)
        assert len(caught) == 1


def test_without_pillow_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    for work in (lambda: read_image(b""), lambda: to_image(np.zeros((1, 1, 3), np.uint8))):
        with pytest.raises(NextileError, match=r"pictures need Pillow: pip install 'nextile\[images\]'"):
            work()


# --- writing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_saved_reads_back_the_same(channels, tmp_path):
    exact = np.asarray(noise(5, 7))[..., :channels]
    save_png(tmp_path / "new" / "x.png", to_image(exact))
    data = (tmp_path / "new" / "x.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert np.array_equal(np.asarray(read_image(data)), np.broadcast_to(exact, (5, 7, 3)))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.png"]


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((2, 2), np.uint8), np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 3)), np.zeros((0, 2, 3), np.uint8)],
)
def test_what_is_no_picture_is_not_made_one(pixels):
    with pytest.raises(UsageError, match=r"is no picture: give uint8 \(height, width, 1 or 3\)"):
        to_image(pixels)


def test_every_suffix_is_of_a_format_that_is_read():
    formats = Image.registered_extensions()
    assert {formats[suffix] for suffix in SUFFIXES} == set(pixels._FORMATS)
