"""Processors: the numbers and tokens that transformers makes, through its file in both directions; hostile files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from transformers import AutoImageProcessor, DeiTImageProcessorPil, ImageGPTImageProcessorPil, ViTImageProcessorPil

from nextile.base.errors import NextileError, UsageError
from nextile.images.processor import FILE, Normaliser, Palette, load_processor, normaliser_for, palette_for

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
FIVE = ((-1.0, -1.0, -1.0), (-0.5, 0.25, 0.0), (0.0, 0.0, 0.0), (0.9, -0.3, 0.1), (1.0, 1.0, 1.0))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def images(pixels: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each) for each in pixels]


def bytes_of(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def theirs(processor: Any, pictures: list[Image.Image]) -> torch.Tensor:
    """What transformers makes of pictures."""
    (found,) = processor(pictures, return_tensors="pt").values()
    return found


def ours(processor: Normaliser | Palette, pictures: list[Image.Image]) -> torch.Tensor:
    """The same from us, from the files' bytes."""
    return processor.inputs(np.stack([processor.open(bytes_of(picture)) for picture in pictures]))


def write(folder: Path, content: Any) -> Path:
    text = content if isinstance(content, (str, bytes)) else json.dumps(content)
    (folder / FILE).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def problem(folder: Path) -> str:
    with pytest.raises(NextileError) as caught:
        load_processor(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    return str(caught.value)


# --- numbers: ours to transformers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_transformers_loads_our_normaliser_and_gives_the_same_numbers(resample, tmp_path):
    mine = Normaliser(size=24, resample=resample, **IMAGENET)
    mine.save(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, ViTImageProcessorPil)
    pictures = [*images(noise(3, 24, 24, 3)), *images(noise(1, 57, 31, 3)), *images(noise(1, 9, 70, 3))]
    assert torch.equal(ours(mine, pictures), theirs(loaded, pictures))
    other = mine.model_copy(update={"resample": "bicubic" if resample == "bilinear" else "bilinear"})
    assert not torch.equal(ours(other, pictures), theirs(loaded, pictures))


def test_a_grey_normaliser_too(tmp_path):
    mine = Normaliser(size=12, channels=1, mean=(0.4,), std=(0.3,))
    mine.save(tmp_path)
    pictures = images(noise(3, 20, 15, 1))
    found = ours(mine, pictures)
    assert found.shape == (3, 1, 12, 12)
    assert torch.equal(found, theirs(AutoImageProcessor.from_pretrained(tmp_path), pictures))


def test_pictures_of_any_mode_become_the_same_numbers(tmp_path):
    mine = Normaliser(size=12, **IMAGENET)
    mine.save(tmp_path)
    pictures = [
        Image.fromarray(noise(12, 12, 4)),
        *images(noise(1, 12, 12, 1)),
        images(noise(1, 12, 12, 3))[0].quantize(7),
    ]
    assert torch.equal(ours(mine, pictures), theirs(AutoImageProcessor.from_pretrained(tmp_path), pictures))


def test_each_channel_has_its_own_mean_and_deviation():
    pixels = np.zeros((1, 2, 2, 3), np.uint8)
    pixels[0, 0, 1] = (255, 51, 102)
    found = Normaliser(size=2, mean=(0.5, 0.1, 0.0), std=(0.5, 0.1, 2.0)).inputs(pixels)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert found[0, :, 0, 1].tolist() == pytest.approx([1.0, 1.0, 0.2])
    assert found[0, :, 1, 0].tolist() == pytest.approx([-1.0, -1.0, 0.0])


# --- numbers: transformers to ours ---------------------------------------------------------------------------------

BY_TRANSFORMERS = {
    "vit": ViTImageProcessorPil(size=18, image_mean=IMAGENET["mean"], image_std=IMAGENET["std"]),
    "vit of 224": ViTImageProcessorPil(),
    "bicubic": ViTImageProcessorPil(size={"height": 18, "width": 18}, resample=3),
    "not normalised": ViTImageProcessorPil(size=18, do_normalize=False),
    "one mean for all": ViTImageProcessorPil(size=18, image_mean=0.25, image_std=0.5),
    "deit": DeiTImageProcessorPil(size=18, do_center_crop=False),
}


@pytest.mark.parametrize("processor", BY_TRANSFORMERS.values(), ids=BY_TRANSFORMERS)
def test_what_transformers_saves_gives_the_same_numbers_here(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    pictures = [*images(noise(2, 18, 18, 3)), *images(noise(1, 40, 25, 3))]
    mine = load_processor(tmp_path)
    assert isinstance(mine, Normaliser)
    assert torch.equal(ours(mine, pictures), theirs(processor, pictures))


def test_the_shortest_edge_of_a_square_is_its_side(tmp_path):
    processor = ViTImageProcessorPil(size={"shortest_edge": 18})
    processor.save_pretrained(tmp_path)
    pictures = images(noise(2, 40, 40, 3))
    assert torch.equal(ours(load_processor(tmp_path), pictures), theirs(processor, pictures))


@pytest.mark.parametrize(
    "kind", ["ViTImageProcessor", "ViTImageProcessorFast", "ViTFeatureExtractor", "ViTImageProcessorPil", None]
)
def test_what_older_ones_saved_is_read(kind, tmp_path):
    old = {"do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": 224}
    named = old | (
        {"image_processor_type": kind} if kind else {"crop_size": None, "resample": None, "do_center_crop": None}
    )
    wanted = Normaliser(size=224, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert load_processor(write(tmp_path, named)) == wanted
    assert load_processor(write(tmp_path, old | {"feature_extractor_type": "ViTFeatureExtractor"})) == wanted
    assert load_processor(write(tmp_path, {"do_center_crop": False, "image_processor_type": "DeiTImageProcessor"})) == (
        Normaliser(size=256, resample="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
    )


def test_what_a_file_lacks_is_what_transformers_takes_for_it(tmp_path):
    for kind in (ViTImageProcessorPil, DeiTImageProcessorPil, ImageGPTImageProcessorPil):
        bare = {"image_processor_type": kind.__name__, "do_center_crop": False, "clusters": FIVE}
        short = load_processor(write(tmp_path, bare))
        kind(**{name: value for name, value in bare.items() if name != "image_processor_type"}).save_pretrained(
            tmp_path
        )
        assert load_processor(tmp_path) == short


# --- measuring -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_the_mean_and_deviation_are_those_of_the_pixels(channels, monkeypatch):
    pixels = (noise(700, 4, 4, channels) // np.arange(1, channels + 1)).astype(np.uint8)
    found = normaliser_for(pixels)
    scaled = pixels.reshape(-1, channels) / 255
    assert found == Normaliser(
        size=4, channels=channels, mean=tuple(scaled.mean(0).round(4)), std=tuple(scaled.std(0).round(4))
    )
    normalised = found.inputs(pixels).double()
    assert normalised.mean((0, 2, 3)).abs().max() < 1e-3
    assert (normalised.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_a_channel_that_never_changes_has_the_deviation_one():
    pixels = np.full((2, 3, 3, 3), 51, np.uint8)
    pixels[0, 0, 0, 1] = 60
    found = normaliser_for(pixels)
    assert found.mean[0] == 0.2
    assert (found.std[0], found.std[2]) == (1.0, 1.0)
    assert 0 < found.std[1] < 0.1


@pytest.mark.parametrize("pixels", [noise(0, 4, 4, 3), noise(2, 4, 5, 3), noise(4, 4, 3), np.zeros((2, 4, 4, 3))])
def test_measuring_wants_square_pictures(pixels):
    for measure in (normaliser_for, lambda pixels: palette_for(pixels, 4, 0)):
        with pytest.raises(UsageError):
            measure(pixels)


# --- tokens --------------------------------------------------------------------------------------------------------


def test_transformers_loads_our_palette_and_gives_the_same_tokens(tmp_path):
    pixels = noise(6, 10, 10, 3)
    mine = palette_for(pixels, 30, seed=0)
    mine.save(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, ImageGPTImageProcessorPil)
    pictures = [*images(pixels), *images(noise(1, 25, 40, 3))]
    found = ours(mine, pictures)
    assert found.dtype == torch.int64
    assert found.shape == (7, 100)
    assert torch.equal(found, theirs(loaded, pictures))
    assert torch.equal(found[:6], mine.inputs(pixels))
    assert not torch.equal(found, ours(palette_for(pixels, 29, seed=0), pictures))


def test_a_grey_palette_gives_grey_pictures_the_same_tokens(tmp_path):
    pixels = noise(4, 10, 10, 1)
    mine = palette_for(pixels, 8, seed=0)
    assert (mine.channels, mine.vocab_size) == (1, 9)
    mine.save(tmp_path)
    assert load_processor(tmp_path) == mine
    pictures = images(pixels)
    assert torch.equal(ours(mine, pictures), theirs(AutoImageProcessor.from_pretrained(tmp_path), pictures))


@pytest.mark.parametrize("resample", [2, 3])
def test_what_transformers_saves_gives_the_same_tokens_here(resample, tmp_path):
    processor = ImageGPTImageProcessorPil(clusters=FIVE, size=9, resample=resample)
    processor.save_pretrained(tmp_path)
    mine = load_processor(tmp_path)
    assert isinstance(mine, Palette)
    pictures = images(noise(5, 30, 20, 3))
    assert torch.equal(ours(mine, pictures), theirs(processor, pictures))


def test_the_oldest_palettes_are_read(tmp_path):
    old = {"clusters": FIVE, "do_normalize": True, "do_resize": True, "resample": 2, "size": 32}
    wanted = Palette(size=32, colours=FIVE)
    assert load_processor(write(tmp_path, old)) == wanted
    assert load_processor(write(tmp_path, old | {"feature_extractor_type": "ImageGPTFeatureExtractor"})) == wanted


def test_tokens_run_along_the_rows_and_come_back():
    palette = Palette(size=2, colours=FIVE)
    pixels = np.array([[[[0, 0, 0], [255, 255, 255]], [[63, 159, 127], [242, 90, 140]]]], np.uint8)
    tokens = palette.inputs(pixels)
    assert tokens.tolist() == [[0, 4, 1, 3]]
    back = palette.pixels(tokens)
    assert back.shape == (1, 2, 2, 3)
    assert np.abs(back.astype(int) - pixels).max() <= 1
    assert torch.equal(palette.inputs(back), tokens)
    assert np.array_equal(palette.pixels(tokens.numpy()), back)
    assert (palette.start_id, palette.vocab_size) == (5, 6)


def test_tokens_that_are_no_picture_are_refused():
    palette = Palette(size=2, colours=FIVE)
    with pytest.raises(NextileError, match="token 5 is no colour: the palette has 0 to 4"):
        palette.pixels(torch.tensor([[0, 1, 2, palette.start_id]]))
    for shape in ((1, 5), (4,), (1, 2, 2)):
        with pytest.raises(UsageError, match=r"are no pictures of 2 x 2 tokens"):
            palette.pixels(torch.zeros(shape, dtype=torch.int64))


def test_pictures_of_one_colour_make_no_palette():
    with pytest.raises(NextileError, match="the pictures have one colour"):
        palette_for(np.full((3, 4, 4, 3), 9, np.uint8), 8, seed=0)


# --- both ----------------------------------------------------------------------------------------------------------

BOTH = [
    Normaliser(size=8, **IMAGENET),
    Normaliser(size=8, channels=1, resample="bicubic", mean=(0.1,), std=(0.2,)),
    Palette(size=8, colours=FIVE),
    Palette(size=8, resample="bicubic", channels=1, colours=((-1.0,), (0.1234567,), (1.0,))),
]


@pytest.mark.parametrize("processor", BOTH)
def test_what_is_saved_is_loaded(processor, tmp_path):
    processor.save(tmp_path / "new")
    assert load_processor(tmp_path / "new") == processor
    assert load_processor(tmp_path / "new").fingerprint() == processor.fingerprint()


def test_every_setting_has_a_fingerprint_of_its_own():
    bicubic = BOTH[0].model_copy(update={"resample": "bicubic"})
    larger = BOTH[2].model_copy(update={"size": 9})
    found = {processor.fingerprint() for processor in (*BOTH, bicubic, larger)}
    assert len(found) == 6
    assert all(len(each) == 64 for each in found)
    assert Normaliser(size=8, **IMAGENET).fingerprint() in found


@pytest.mark.parametrize("processor", [BOTH[0], BOTH[2]])
@pytest.mark.parametrize(
    "pixels", [noise(1, 9, 8, 3), noise(8, 8, 3), noise(1, 8, 8, 1), np.zeros((1, 8, 8, 3), np.float32)]
)
def test_other_pixels_are_refused(processor, pixels):
    with pytest.raises(UsageError, match=r"are not pictures of uint8 \(any number, \(8, 8, 3\)\)"):
        processor.inputs(pixels)


@pytest.mark.parametrize("processor", BOTH)
def test_no_pictures_are_fine(processor):
    assert len(processor.inputs(noise(0, 8, 8, processor.channels))) == 0


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Normaliser, {"size": 8, "mean": (0.5,), "std": (0.5,)}),
        (Normaliser, {"size": 8, "mean": (0.5,) * 3, "std": (0.5, 0.5)}),
        (Normaliser, {"size": 8, "mean": (0.5,) * 3, "std": (0.5, 0.5, 0.0)}),
        (Normaliser, {"size": 8, "mean": (float("nan"),) * 3, "std": (0.5,) * 3}),
        (Normaliser, {"size": 0, **IMAGENET}),
        (Normaliser, {"size": 4097, **IMAGENET}),
        (Normaliser, {"size": 8, "channels": 2, "mean": (0.5,) * 2, "std": (0.5,) * 2}),
        (Palette, {"size": 8, "colours": FIVE[:1]}),
        (Palette, {"size": 8, "colours": ((0.0, 0.0, 0.0), (0.0, 0.0))}),
        (Palette, {"size": 8, "colours": ((0.0, 0.0, 0.0), (0.0, 0.0, 1.01))}),
        (Palette, {"size": 8, "colours": ((0.0, 0.0, 0.0),) * 65536}),
        (Palette, {"size": 8, "channels": 1, "colours": FIVE}),
    ],
)
def test_settings_that_make_no_processor(kind, settings):
    with pytest.raises(ValidationError):
        kind(**settings)


# --- hostile files -------------------------------------------------------------------------------------------------

VIT = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
GPT = {"image_processor_type": "ImageGPTImageProcessor", "size": 8, "clusters": FIVE}


def test_the_files_to_be_broken_are_sound(tmp_path):
    assert isinstance(load_processor(write(tmp_path, VIT)), Normaliser)
    assert isinstance(load_processor(write(tmp_path, GPT)), Palette)


@pytest.mark.parametrize(
    ("base", "field", "value"),
    [
        (VIT, "do_center_crop", True),
        (VIT, "do_center_crop", 1),
        (VIT, "do_pad", True),
        (VIT, "do_resize", False),
        (VIT, "do_rescale", False),
        (VIT, "do_rescale", "yes"),
        (VIT, "do_normalize", "no"),
        (VIT, "rescale_factor", 1 / 127.5),
        (VIT, "rescale_factor", "1/255"),
        (VIT, "rescale_factor", 10**400),
        (VIT, "rescale_factor", True),
        (VIT, "resample", 0),
        (VIT, "resample", 2.0),
        (VIT, "resample", "bilinear"),
        (VIT, "resample", []),
        (VIT, "size", {"height": 8, "width": 9}),
        (VIT, "size", {"height": 8}),
        (VIT, "size", {"shortest_edge": 8, "longest_edge": 9}),
        (VIT, "size", {"shortest_edge": True}),
        (VIT, "size", "8"),
        (VIT, "size", [8, 8]),
        (VIT, "size", {}),
        (VIT, "size", 0),
        (VIT, "size", -8),
        (VIT, "size", 5000),
        (VIT, "size", 10**4000),
        (VIT, "image_mean", [0.5, 0.5]),
        (VIT, "image_mean", ["0.5", 0.5, 0.5]),
        (VIT, "image_mean", [True, 0.5, 0.5]),
        (VIT, "image_mean", "0.5"),
        (VIT, "image_mean", []),
        (VIT, "image_mean", [10**400, 0.5, 0.5]),
        (VIT, "image_mean", [1e30, 0.5, 0.5]),
        (VIT, "image_std", [0.5, 0.5, 0]),
        (VIT, "image_std", [0.5, 0.5, -1]),
        (VIT, "image_std", [0.5, 0.5, 1e-30]),
        (VIT, "image_std", {"r": 1}),
        (VIT, "image_processor_type", "CLIPImageProcessor"),
        (VIT, "image_processor_type", "ViTImageProcessor\nx" * 100),
        (VIT, "image_processor_type", 7),
        (GPT, "clusters", None),
        (GPT, "clusters", 5),
        (GPT, "clusters", [1, 2]),
        (GPT, "clusters", [[0.0, 0.0, 0.0]]),
        (GPT, "clusters", [[0.0, 0.0, 0.0], [0.0, 0.0]]),
        (GPT, "clusters", [[0.0, 0.0, 0.0], [0.0, 0.0, 2.0]]),
        (GPT, "clusters", [[0.0, 0.0, 0.0], [0.0, 0.0, "x" * 5000]]),
        (GPT, "clusters", [[0, 0, 0]] * 65536),
        (GPT, "num_channels", 2),
        (GPT, "num_channels", [1]),
        (GPT, "do_color_quantize", False),
        (GPT, "do_normalize", False),
        (GPT, "image_mean", [0.4] * 3),
        (GPT, "image_std", [0.5, 0.5, 0.4]),
    ],
)
def test_a_field_that_cannot_be_done_is_named(base, field, value, tmp_path):
    found = problem(write(tmp_path, base | {field: value}))
    assert found.startswith(f"'{tmp_path}/{FILE}' cannot be used: ")
    assert field in found


def test_the_crop_that_a_file_does_not_mention_is_seen(tmp_path):
    DeiTImageProcessorPil().save_pretrained(tmp_path)
    assert "do_center_crop is True, and only False can be done; take another model" in problem(tmp_path)
    assert "do_center_crop" in problem(write(tmp_path, {"image_processor_type": "DeiTImageProcessor"}))


def test_means_and_deviations_of_different_lengths(tmp_path):
    found = problem(write(tmp_path, VIT | {"image_mean": [0.5], "image_std": [0.5] * 3}))
    assert "1 channels need as many means and stds" in found


NO_JSON = [
    "",
    "{",
    "[]",
    "7",
    '"ViT"',
    "null",
    b"\xff\xfe",
    b"\0" * 10,
    "[" * 100_000,
    "9" * 5000,
    json.dumps(VIT)[:-1],
]
NO_NUMBERS = ['{"size": NaN}', '{"size": 1e999}', '{"image_mean": [NaN, 0, 0]}', '{"image_std": [Infinity, 1, 1]}']


@pytest.mark.parametrize("content", [*NO_JSON, *NO_NUMBERS])
def test_what_is_no_sound_json_is_one_line(content, tmp_path):
    assert "cannot be used: " in problem(write(tmp_path, content))


def test_a_value_of_any_depth_is_one_line(tmp_path):
    for depth in (10, 300, 900):
        for field in ("size", "image_mean", "clusters", "resample", "image_processor_type"):
            text = json.dumps(GPT | {field: 0}).replace(f'"{field}": 0', f'"{field}": {"[" * depth}{"]" * depth}')
            assert "cannot be used: " in problem(write(tmp_path, text))


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    with open(tmp_path / FILE, "wb") as file:
        file.truncate((8 << 20) + 1)
    monkeypatch.setattr(Path, "read_bytes", lambda *_: pytest.fail("it was read"))
    assert "is larger than 8 MiB" in problem(tmp_path)


def test_the_largest_palette_fits(tmp_path):
    rng = np.random.default_rng(0)
    palette = Palette(size=1, colours=tuple(map(tuple, rng.uniform(-1, 1, (65535, 3)).tolist())))
    palette.save(tmp_path)
    assert len(load_processor(tmp_path).colours) == 65535


def test_a_folder_without_the_file(tmp_path):
    assert f"'{tmp_path}/{FILE}' is missing" in problem(tmp_path)
    assert "is missing" in problem(tmp_path / "nowhere")
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / FILE).symlink_to(write(outside, VIT) / FILE)
    assert "is a link that leaves its folder" in problem(tmp_path / "in")
