"""What turns a picture into what a model reads, kept in preprocessor_config.json as transformers has it.

Shapes: N pictures, H = W = size, C channels, T = H * W tokens, a row of pixels after the other.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from reprlib import repr as shown  # short, however long or deep the value is
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError, model_validator

from nextile.base.config import Settings
from nextile.base.errors import NextileError, UsageError
from nextile.base.files import atomic_write, inside
from nextile.base.schema import explain
from nextile.images.palette import colours_of, learn_colours, nearest
from nextile.images.pixels import Resample, pixels_of, read_image

FILE = "preprocessor_config.json"

Side = Annotated[int, Field(ge=1, le=4096)]
Mean = Annotated[float, Field(ge=-1e6, le=1e6)]
Deviation = Annotated[float, Field(ge=1e-6, le=1e6)]
Shade = Annotated[float, Field(ge=-1, le=1)]
Colour = Annotated[tuple[Shade, ...], Field(min_length=1, max_length=3)]

_LONGEST = 1 << 23  # bytes of the file; the most colours there may be need five million
_FILTERS: dict[Resample, int] = {"bilinear": 2, "bicubic": 3}  # PIL's numbers
_PICTURES = 256  # counted at once


# --- what every processor does -------------------------------------------------------------------------------------


class ImageProcessor(Settings):
    """Pictures of any size as squares of pixels."""

    size: Side
    channels: Literal[1, 3] = 3
    resample: Resample = "bilinear"

    def open(self, source: Path | bytes, name: str | None = None) -> np.ndarray:
        """The picture in a file, or in its bytes: uint8 (H, W, C). Errors: NextileError where it cannot be read."""
        return pixels_of(read_image(source, name), self.size, self.channels, self.resample)

    def save(self, folder: str | Path) -> None:
        """Write preprocessor_config.json, as transformers reads it."""
        atomic_write(Path(folder, FILE), json.dumps(self._config(), indent=2, sort_keys=True) + "\n")

    def fingerprint(self) -> str:
        """The SHA-256 of the canonical JSON: other settings have another."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def _config(self) -> dict[str, Any]:
        """The content of the file, of what all processors have in common."""
        return {
            "do_convert_rgb": self.channels == 3,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "resample": _FILTERS[self.resample],
            "rescale_factor": 1 / 255,
            "size": {"height": self.size, "width": self.size},
        }

    def _check(self, pixels: np.ndarray) -> None:
        wanted = (self.size, self.size, self.channels)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != wanted:
            raise UsageError(f"{pixels.dtype} {pixels.shape} are not pictures of uint8 (any number, {wanted})")


# --- numbers -------------------------------------------------------------------------------------------------------


class Normaliser(ImageProcessor):
    """Pixels as numbers around 0: each channel less its mean, over its standard deviation, both of values in 0..1."""

    mean: tuple[Mean, ...]
    std: tuple[Deviation, ...]

    @model_validator(mode="after")
    def _one_of_each(self):
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"{self.channels} channels need as many means and stds: {self.mean} and {self.std} are not"
            )
        return self

    def inputs(self, pixels: np.ndarray) -> torch.Tensor:
        """Pixels uint8 (N, H, W, C) -> float32 (N, C, H, W), bit for bit what transformers makes of them."""
        self._check(pixels)
        levels = (np.arange(256) * (1 / 255)).astype(np.float32)
        result = np.empty((len(pixels), self.channels, self.size, self.size), np.float32)
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            values = (levels - np.float32(mean)) / np.float32(std)  # (256,)
            result[:, channel] = values[pixels[..., channel]]
        return torch.from_numpy(result)

    def _config(self) -> dict[str, Any]:
        own = {"image_mean": list(self.mean), "image_std": list(self.std)}
        return super()._config() | own | {"image_processor_type": "ViTImageProcessor"}


def normaliser_for(pixels: np.ndarray) -> Normaliser:
    """The normaliser that gives these pictures, uint8 (N, H, W, C), mean 0 and standard deviation 1 per channel.

    Both have 4 digits; a channel that never changes has the deviation 1. Errors: UsageError for no square pictures.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or not pixels.size or pixels.shape[1] != pixels.shape[2]:
        raise UsageError(f"{pixels.dtype} {pixels.shape} are no square pictures: give uint8 (N, size, size, 1 or 3)")
    moments = [_moments(_histogram(pixels[..., channel])) for channel in range(pixels.shape[3])]
    mean, std = ([round(value, 4) for value in each] for each in zip(*moments, strict=True))
    return Normaliser(
        size=pixels.shape[1], channels=pixels.shape[3], mean=tuple(mean), std=tuple(value or 1.0 for value in std)
    )


def _histogram(values: np.ndarray) -> np.ndarray:
    """How often each of the 256 levels occurs in uint8 (N, H, W): exact, where sums of floats would round."""
    pieces = (values[start : start + _PICTURES] for start in range(0, len(values), _PICTURES))
    return sum((np.bincount(piece.reshape(-1), minlength=256) for piece in pieces), np.zeros(256, np.int64))


def _moments(counts: np.ndarray) -> tuple[float, float]:
    levels = np.arange(256) / 255
    mean = (counts * levels).sum() / counts.sum()
    return float(mean), float(math.sqrt((counts * (levels - mean) ** 2).sum() / counts.sum()))


# --- tokens --------------------------------------------------------------------------------------------------------


class Palette(ImageProcessor):
    """Pixels as the numbers of their nearest colours, in -1..1 (Chen et al. 2020, image-GPT)."""

    colours: Annotated[tuple[Colour, ...], Field(min_length=2, max_length=65535)]

    @model_validator(mode="after")
    def _as_many_channels(self):
        wrong = next((colour for colour in self.colours if len(colour) != self.channels), None)
        if wrong is not None:
            raise ValueError(f"a colour of {self.channels} channels cannot be {wrong}")
        return self

    @property
    def start_id(self) -> int:
        """The token before the first pixel: the number after the last colour's."""
        return len(self.colours)

    @property
    def vocab_size(self) -> int:
        """The colours and the start token."""
        return len(self.colours) + 1

    def inputs(self, pixels: np.ndarray) -> torch.Tensor:
        """Pixels uint8 (N, H, W, C) -> tokens int64 (N, T), a row after the other, without the start token."""
        self._check(pixels)
        return torch.from_numpy(nearest(pixels, self._table()).reshape(len(pixels), self.size * self.size))

    def pixels(self, ids: torch.Tensor | np.ndarray) -> np.ndarray:
        """Tokens (N, T) -> pixels uint8 (N, H, W, C). Errors: UsageError for another T, NextileError for no colour."""
        tokens = torch.as_tensor(ids).cpu().numpy()
        if tokens.ndim != 2 or tokens.shape[1] != self.size * self.size:
            raise UsageError(f"{tokens.shape} are no pictures of {self.size} x {self.size} tokens")
        return colours_of(tokens.reshape(len(tokens), self.size, self.size), self._table())

    def _table(self) -> np.ndarray:
        return np.array(self.colours, np.float32)

    def _config(self) -> dict[str, Any]:
        # Their ImageGPT knows three channels only. A grey stands for itself there, so that grey pictures, as RGB, get
        # the same numbers from them as from us; `num_channels` is ours, to tell such a palette.
        clusters = [list(colour) * (3 // self.channels) for colour in self.colours]
        own = {"clusters": clusters, "do_color_quantize": True, "num_channels": self.channels}
        own |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_convert_rgb": True}
        return super()._config() | own | {"image_processor_type": "ImageGPTImageProcessor"}


def palette_for(pixels: np.ndarray, count: int, seed: int) -> Palette:
    """The palette of up to `count` colours that stand for these pictures, uint8 (N, H, W, C), with little error.

    Errors: NextileError without scikit-learn or for pictures of one colour, UsageError for no square pictures.
    """
    if pixels.ndim != 4 or pixels.shape[1] != pixels.shape[2]:
        raise UsageError(f"{pixels.dtype} {pixels.shape} are no square pictures: give uint8 (N, size, size, 1 or 3)")
    colours = learn_colours(pixels, count, seed)
    if len(colours) < 2:
        raise NextileError("the pictures have one colour, and nothing to tell them apart: give others")
    return Palette(size=pixels.shape[1], channels=pixels.shape[3], colours=tuple(map(tuple, colours.tolist())))


AnyProcessor = Normaliser | Palette


# --- reading -------------------------------------------------------------------------------------------------------


class _Unusable(Exception):
    """Why a file makes no processor; `load_processor` adds where it lies."""


_TYPE = re.compile(r"(ViT|DeiT|ImageGPT)(FeatureExtractor|ImageProcessor(Fast|Pil)?)")

# What a field that a file lacks, or has as null, means to transformers.
_COMMON: dict[str, Any] = {
    "do_center_crop": False,
    "do_normalize": True,
    "do_pad": False,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "resample": 2,
    "rescale_factor": 1 / 255,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": _COMMON | {"size": 224},
    "DeiT": _COMMON | {"size": 256, "resample": 3, "do_center_crop": True},
    "ImageGPT": _COMMON | {"size": 256, "do_color_quantize": True, "num_channels": 3},
}

_WORK = {"do_resize": True, "do_rescale": True, "do_center_crop": False, "do_pad": False}  # what ours does

# What the file calls the fields.
_NAMES = {"mean": "image_mean", "std": "image_std", "colours": "clusters", "channels": "num_channels"}


def load_processor(folder: str | Path) -> AnyProcessor:
    """The processor of a model folder, ours or transformers': ViT's or DeiT's is a Normaliser, ImageGPT's a Palette.

    Errors: NextileError where the file is missing or broken, or asks for what ours does not do, such as a crop.
    """
    path = inside(folder, FILE)
    try:
        return _processor(_content(path))
    except _Unusable as error:
        raise NextileError(f"'{path}' cannot be used: {error}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _content(path: Path) -> dict[str, Any]:
    """The object in the file, its nulls left out."""
    try:
        if path.stat().st_size > _LONGEST:
            raise _Unusable(f"it is larger than {_LONGEST >> 20} MiB; get a sound copy of it")
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _Unusable(f"it is no JSON ({_first_line(error)}); get a sound copy of it") from error
    if not isinstance(found, dict):
        raise _Unusable("it holds no JSON object; get a sound copy of it")
    return {name: value for name, value in found.items() if value is not None}


def _processor(content: dict[str, Any]) -> AnyProcessor:
    kind = _kind(content)
    config = _DEFAULTS[kind] | content
    _require(config, _WORK)
    _require_scale(config)
    maker, fields = (Palette, _palette(config)) if kind == "ImageGPT" else (Normaliser, _normaliser(config))
    try:
        return maker(size=_side(config["size"]), resample=_filter(config["resample"]), **fields)
    except ValidationError as error:
        name, message = explain(maker, error)
        field = name.partition(".")[0]
        raise _Unusable(f"{_NAMES.get(field, field)}: {message}" if field else message) from error


def _kind(content: dict[str, Any]) -> str:
    """One of _DEFAULTS. The oldest files have no type, and are ViT's unless they have colours."""
    name = content.get("image_processor_type", content.get("feature_extractor_type"))
    if name is None:
        return "ImageGPT" if "clusters" in content else "ViT"
    found = _TYPE.fullmatch(name) if isinstance(name, str) else None
    if not found:
        raise _Unusable(f"image_processor_type {shown(name)} is none of ViT, DeiT and ImageGPT; take a model of those")
    return found[1]


def _require(config: dict[str, Any], wanted: dict[str, bool]) -> None:
    """Errors: _Unusable with the first field that asks for what ours does not do."""
    for name, value in wanted.items():
        if config[name] is not value:
            raise _Unusable(f"{name} is {shown(config[name])}, and only {value} can be done; take another model")


def _require_scale(config: dict[str, Any]) -> None:
    if not _is_number(factor := config["rescale_factor"]) or not abs(factor * 255 - 1) < 1e-6:
        raise _Unusable(f"rescale_factor is {shown(factor)}, and only 1/255 can be done; take another model")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _side(size: Any) -> int:
    """The side of the square.

    A "shortest_edge" keeps the shape of a picture. Their models read squares alone, and of a square it makes the same.
    """
    sides = [size]
    if isinstance(size, dict) and set(size) in ({"height", "width"}, {"shortest_edge"}):
        sides = list(size.values())
    if type(sides[0]) is not int or sides[-1] != sides[0]:
        raise _Unusable(f"size {shown(size)} is not that of a square; take another model")
    return sides[0]


def _filter(number: Any) -> Resample:
    for name, known in _FILTERS.items():
        if type(number) is int and number == known:
            return name
    raise _Unusable(f"resample {shown(number)} is neither 2 (bilinear) nor 3 (bicubic); take another model")


def _normaliser(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Normaliser."""
    mean, std = _numbers(config, "image_mean"), _numbers(config, "image_std")
    if config["do_normalize"] is False:
        return {"channels": len(mean), "mean": [0.0] * len(mean), "std": [1.0] * len(mean)}
    _require(config, {"do_normalize": True})
    return {"channels": len(mean), "mean": mean, "std": std}


def _palette(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Palette."""
    _require(config, {"do_normalize": True, "do_color_quantize": True})
    for name in ("image_mean", "image_std"):
        if set(_numbers(config, name)) != {0.5}:
            raise _Unusable(
                f"{name} is {shown(config[name])}, and colours are in -1..1 for 0.5 alone; take another model"
            )
    colours = config.get("clusters")
    if not isinstance(colours, list) or not all(isinstance(colour, list) and len(colour) == 3 for colour in colours):
        raise _Unusable("clusters are no list of colours, three numbers each; get a sound copy of it")
    if config["num_channels"] == 1:
        colours = [colour[:1] for colour in colours]
    return {"channels": config["num_channels"], "colours": colours}


def _numbers(config: dict[str, Any], name: str) -> list[float]:
    """A list of numbers, or one number for three channels."""
    values = [config[name]] * 3 if _is_number(config[name]) else config[name]
    if not isinstance(values, list) or len(values) not in (1, 3) or not all(map(_is_number, values)):
        raise _Unusable(
            f"{name} is {shown(config[name])}, not a number for each of 1 or 3 channels; get a sound copy of it"
        )
    return values
