"""Pictures changed so that their class stays: flipped, moved, recoloured, erased, mixed; all drawn from one generator.

Shapes: B pictures, C channels (1 or 3), H x W pixels, K classes, N operations.
Pixels are uint8 until pictures are mixed. What happens to a picture is drawn; what others show has no part in it, but
where they are mixed with it. A level is the share of an operation's reach, from -1 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from nextile.base.config import Settings
from nextile.base.errors import NextileError

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Alpha = Annotated[float, Field(ge=0.0, le=1000.0)]  # both parameters of a Beta; 0: off


class RandAugment(Settings):
    """Operations drawn from 14 for each picture, all of one magnitude (Cubuk et al. 2020)."""

    operations: Annotated[int, Field(ge=1, le=8)] = 2
    magnitude: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5  # the level of every operation, up to its sign


class Augment(Settings):
    """How pictures are changed before they are learned from; nothing is by default."""

    flip: Probability = 0.0  # of the pictures, left to right
    crop: Annotated[int, Field(ge=0, le=1 << 12)] = 0  # pixels added on every side, before as many are cut off
    randaugment: RandAugment | None = None
    erase: Probability = 0.0  # of the pictures, a box each (Zhong et al. 2020)
    mixup: Alpha = 0.0  # two pictures averaged (Zhang et al. 2018)
    cutmix: Alpha = 0.0  # a box is another's (Yun et al. 2019); where both are on, a coin chooses for each batch


# --- flips and crops -----------------------------------------------------------------------------------------------


def _chance(share: float, count: int, random: torch.Generator) -> Tensor:
    """(count,) bool, true with that probability."""
    return torch.rand(count, generator=random) < share


def _reflected(places: Tensor, size: int) -> Tensor:
    """Places on an axis, some of them outside, mirrored into it; none is further than size - 1."""
    return size - 1 - (size - 1 - places.abs()).abs()


def _repeated(places: Tensor, size: int) -> Tensor:
    """Places on an axis, those outside it moved to the outermost pixel."""
    return places.clamp(0, size - 1)


def _windows(count: int, size: int, crop: int, random: torch.Generator) -> Tensor:
    """Which places of an axis each of `count` pictures shows, (count, size); up to `crop` of them outside."""
    return torch.randint(-crop, crop + 1, (count, 1), generator=random) + torch.arange(size)


def flip_and_crop(pixels: Tensor, spec: Augment, random: torch.Generator) -> Tensor:
    """Pictures (B, C, H, W) mirrored by chance and moved by up to `spec.crop` pixels; the edge is reflected.

    It is repeated instead where the padding is as large as the picture.
    """
    count, channels, height, width = pixels.shape
    pad = _reflected if spec.crop < min(height, width) else _repeated
    rows = pad(_windows(count, height, spec.crop, random), height)
    columns = pad(_windows(count, width, spec.crop, random), width)
    if spec.flip:
        flipped = _chance(spec.flip, count, random)
        columns = torch.where(flipped[:, None], columns.flip(1), columns)
    places = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, height * width)
    return pixels.flatten(2).gather(2, places.expand(-1, channels, -1)).view_as(pixels)


# --- operations on colours -----------------------------------------------------------------------------------------
# Each takes and gives (B, C, H, W) uint8, and a number for each picture, (B,). They agree with Pillow's.


def _each(numbers: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return numbers[:, None, None, None]


def _grey(pixels: Tensor) -> Tensor:
    """The brightness (B, 1, H, W), int32: Pillow's fixed-point weights of ITU-R BT.601."""
    if pixels.shape[1] == 1:
        return pixels.int()
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32)[:, None, None]
    return ((pixels * weights).sum(1, keepdim=True, dtype=torch.int32) + (1 << 15)) >> 16


def _blend(dull: Tensor, pixels: Tensor, factors: Tensor) -> Tensor:
    """From the dull picture at 0 through the own one at 1, and beyond."""
    return (dull + _each(factors) * (pixels - dull)).clamp(0, 255).to(torch.uint8)


def brightness(pixels: Tensor, factors: Tensor) -> Tensor:
    """Black at 0, unchanged at 1."""
    return _blend(torch.zeros(()), pixels, factors)


def contrast(pixels: Tensor, factors: Tensor) -> Tensor:
    """The mean grey at 0, unchanged at 1."""
    mean = _grey(pixels).double().mean((1, 2, 3), keepdim=True)
    return _blend((mean + 0.5).floor().float(), pixels, factors)


def saturation(pixels: Tensor, factors: Tensor) -> Tensor:
    """Without colour at 0, unchanged at 1; grey pictures stay as they are."""
    return _blend(_grey(pixels).float(), pixels, factors)


def sharpness(pixels: Tensor, factors: Tensor) -> Tensor:
    """Smoothed by a kernel of 3 x 3 at 0, unchanged at 1; the outermost pixels always are."""
    smooth = pixels.float()
    total = F.avg_pool2d(smooth, 3, stride=1, padding=1, divisor_override=1) + 4 * smooth
    inside = (..., slice(1, -1), slice(1, -1))
    smooth[inside] = (total[inside] / 13).round()
    return _blend(smooth, pixels, factors)


def posterize(pixels: Tensor, bits: Tensor) -> Tensor:
    """Only the highest bits kept, 0 to 8 of them."""
    return pixels & _each((0xFF << (8 - bits.long())) & 0xFF).to(torch.uint8)


def solarize(pixels: Tensor, thresholds: Tensor) -> Tensor:
    """All that is not below the threshold, 0 to 256, made negative."""
    return torch.where(pixels < _each(thresholds), pixels, 255 - pixels)


def autocontrast(pixels: Tensor) -> Tensor:
    """Each channel stretched from 0 to 255; one that is even stays as it is."""
    low, high = (find(pixels, (2, 3), keepdim=True).int() for find in (torch.amin, torch.amax))
    stretched = (pixels - low) * 255 // (high - low).clamp(min=1)
    return torch.where(low < high, stretched.to(torch.uint8), pixels)


def equalize(pixels: Tensor) -> Tensor:
    """Each channel such that every brightness is as frequent, by Pillow's rule; one that is almost even stays."""
    values = pixels.flatten(2).long()  # (B, C, H * W)
    counts = values.new_zeros(*values.shape[:2], 256).scatter_add_(2, values, torch.ones_like(values))
    step = (values.shape[2] - counts.gather(2, values.amax(2, keepdim=True))) // 255  # (B, C, 1)
    below = counts.cumsum(2) - counts
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    equal = table.gather(2, values).to(torch.uint8).view_as(pixels)
    return torch.where(step[..., None] > 0, equal, pixels)


# --- operations on places ------------------------------------------------------------------------------------------

GREY = 128  # what stands where there was no picture
GEOMETRIC = {  # reach: an angle, shares of the size
    "rotate": math.radians(30),
    "shear_x": 0.3,
    "shear_y": 0.3,
    "translate_x": 0.45,
    "translate_y": 0.45,
}


def _matrices(kinds: Tensor, levels: Tensor, ratio: float) -> Tensor:
    """(B, 2, 3): places of the result, from -1 to 1 on both axes -> places of the picture; ratio: height / width.

    A picture has one kind, the reach of all others is 0 to it, and so they are added. A shear keeps the first row or
    column, as in the paper's code; a rotation keeps the middle, and goes against the clock where the level is positive.
    """
    reaches = (levels * reach * (kinds == number) for number, reach in enumerate(GEOMETRIC.values()))
    angle, shear_x, shear_y, shift_x, shift_y = reaches
    cosine, sine = angle.cos(), angle.sin()
    xs = [cosine, (shear_x - sine) * ratio, shear_x * ratio + 2 * shift_x]
    ys = [(shear_y + sine) / ratio, cosine, shear_y / ratio + 2 * shift_y]
    return torch.stack([*xs, *ys], dim=1).view(-1, 2, 3)


def geometric(pixels: Tensor, kinds: Tensor, levels: Tensor) -> Tensor:
    """Pictures (B, C, H, W) uint8, each moved by its kind (B,), a place in GEOMETRIC, and its level (B,); bilinear."""
    if not len(pixels):  # affine_grid refuses none
        return pixels
    matrices = _matrices(kinds, levels, pixels.shape[2] / pixels.shape[3])
    grid = F.affine_grid(matrices, list(pixels.shape), align_corners=False)  # (B, H, W, 2)
    moved = F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    inside = (grid.abs() <= 1).all(3)[:, None]
    return torch.where(inside, moved.round().clamp(0, 255), GREY).to(torch.uint8)


# --- RandAugment ---------------------------------------------------------------------------------------------------

COLOURS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # (pixels, levels) -> pixels
    "identity": lambda pixels, levels: pixels,
    "autocontrast": lambda pixels, levels: autocontrast(pixels),
    "equalize": lambda pixels, levels: equalize(pixels),
    "posterize": lambda pixels, levels: posterize(pixels, 8 - (4 * levels.abs()).round()),
    "solarize": lambda pixels, levels: solarize(pixels, 256 * (1 - levels.abs())),
    "brightness": lambda pixels, levels: brightness(pixels, 1 + 0.9 * levels),
    "contrast": lambda pixels, levels: contrast(pixels, 1 + 0.9 * levels),
    "saturation": lambda pixels, levels: saturation(pixels, 1 + 0.9 * levels),
    "sharpness": lambda pixels, levels: sharpness(pixels, 1 + 0.9 * levels),
}


def operate(pixels: Tensor, drawn: Tensor, levels: Tensor) -> Tensor:
    """Pictures (B, C, H, W) uint8 after an operation (B,) each, a place in COLOURS or, after them, GEOMETRIC."""
    changed = pixels.clone()
    for number, operation in enumerate(COLOURS.values()):
        chosen = (drawn == number).nonzero()[:, 0]
        changed[chosen] = operation(pixels[chosen], levels[chosen])
    chosen = (drawn >= len(COLOURS)).nonzero()[:, 0]
    changed[chosen] = geometric(pixels[chosen], drawn[chosen] - len(COLOURS), levels[chosen])
    return changed


def rand_augment(pixels: Tensor, spec: RandAugment, random: torch.Generator) -> Tensor:
    """Pictures (B, C, H, W) uint8 after N operations each, every one with a sign of its own."""
    drawn = torch.randint(len(COLOURS) + len(GEOMETRIC), (spec.operations, len(pixels)), generator=random)
    signs = 2 * torch.randint(2, drawn.shape, generator=random) - 1
    for operations, levels in zip(drawn, spec.magnitude * signs, strict=True):
        pixels = operate(pixels, operations, levels)
    return pixels


# --- erasing -------------------------------------------------------------------------------------------------------

AREA = (0.02, 0.33)  # of a box, as a share of the picture
LOG_ASPECT = (math.log(0.3), -math.log(0.3))  # of its height / width


def _between(bounds: tuple[float, float], count: int, random: torch.Generator) -> Tensor:
    """(count,) uniform."""
    low, high = bounds
    return low + (high - low) * torch.rand(count, generator=random)


def _spans(lengths: Tensor, size: int, random: torch.Generator) -> Tensor:
    """Which of an axis' pixels stand in a random span of the length, (B,) -> (B, size) bool; one at least does."""
    lengths = lengths.round().clamp(1, size)
    starts = (torch.rand(len(lengths), generator=random) * (size - lengths + 1)).floor()
    places = torch.arange(size) - starts[:, None]
    return (places >= 0) & (places < lengths[:, None])


def erase(pixels: Tensor, share: float, random: torch.Generator) -> Tensor:
    """Pictures (B, C, H, W) uint8, that share of them with one box of random pixels (Zhong et al. 2020).

    The aspect's logarithm is uniform, so that flat boxes come as often as tall ones. A box that is longer than the
    picture is cut, where the paper draws again.
    """
    chosen = _chance(share, len(pixels), random).nonzero()[:, 0]
    count, (height, width) = len(chosen), pixels.shape[2:]
    area = _between(AREA, count, random) * height * width
    aspect = _between(LOG_ASPECT, count, random).exp()
    rows, columns = _spans((area * aspect).sqrt(), height, random), _spans((area / aspect).sqrt(), width, random)
    box = (rows[:, :, None] & columns[:, None, :])[:, None]  # (count, 1, H, W)
    noise = torch.randint(256, (count, *pixels.shape[1:]), generator=random, dtype=torch.uint8)
    return pixels.index_copy(0, chosen, torch.where(box, noise, pixels[chosen]))


# --- mixing --------------------------------------------------------------------------------------------------------


def _beta(alpha: float, random: torch.Generator) -> float:
    """One number from Beta(alpha, alpha); torch's own takes no generator."""
    seed = int(torch.randint(1 << 62, (), generator=random))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def _cut(middle: float, length: float, size: int) -> slice:
    """The span of an axis around a middle, cut where the axis ends; all are pixels."""
    return slice(max(0, round(middle - length / 2)), min(size, round(middle + length / 2)))


def mixup(pixels: Tensor, targets: Tensor, alpha: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each picture and its target averaged with another's of the batch, by one weight (Zhang et al. 2018)."""
    weight, other = _beta(alpha, random), torch.randperm(len(pixels), generator=random)
    return torch.lerp(pixels[other], pixels, weight), torch.lerp(targets[other], targets, weight)


def cutmix(pixels: Tensor, targets: Tensor, alpha: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """One box of every picture from another's of the batch, targets by the box's true share (Yun et al. 2019)."""
    height, width = pixels.shape[2:]
    side, other = math.sqrt(1 - _beta(alpha, random)), torch.randperm(len(pixels), generator=random)
    y, x = torch.rand(2, generator=random).tolist()
    rows, columns = _cut(y * height, side * height, height), _cut(x * width, side * width, width)
    mixed = pixels.clone()
    mixed[:, :, rows, columns] = pixels[other][:, :, rows, columns]
    share = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    return mixed, torch.lerp(targets, targets[other], share)


def _mixed(pixels: Tensor, targets: Tensor, spec: Augment, random: torch.Generator) -> tuple[Tensor, Tensor]:
    mixings = [(mix, alpha) for mix, alpha in ((mixup, spec.mixup), (cutmix, spec.cutmix)) if alpha]
    if not mixings:
        return pixels, targets
    chosen = int(torch.randint(len(mixings), (), generator=random))
    mix, alpha = mixings[chosen]
    return mix(pixels, targets, alpha, random)


# --- all of it -----------------------------------------------------------------------------------------------------


def _refuse_others(pixels: np.ndarray, targets: Tensor) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
        raise NextileError(f"pictures are uint8 (B, H, W, 1 or 3), not {pixels.dtype} {pixels.shape}: convert them")
    if len(targets) != len(pixels):
        raise NextileError(f"{len(pixels)} pictures have {len(targets)} targets: give each of them one")


def augmented(pixels: np.ndarray, targets: Tensor, spec: Augment, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures (B, H, W, C) uint8 and targets (B, K) float -> pictures (B, C, H, W) float32, 0 to 255, and targets.

    Everything is drawn from `random`, a generator of the CPU, so that equal states give equal results. Targets that
    sum to 1 still do. Errors: NextileError for an array of another kind, and for targets that are not as many.
    """
    _refuse_others(pixels, targets)
    changed = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())  # (B, C, H, W)
    if spec.flip or spec.crop:
        changed = flip_and_crop(changed, spec, random)
    if spec.randaugment:
        changed = rand_augment(changed, spec.randaugment, random)
    if spec.erase:
        changed = erase(changed, spec.erase, random)
    return _mixed(changed.float(), targets, spec, random)
