"""Augmentation: Pillow's operations to the level, changes that keep class, share and range, settings with bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from nextile.base.config import resolve
from nextile.base.errors import NextileError, UsageError
from nextile.images import augment
from nextile.images.augment import Augment, RandAugment, augmented

EVERYTHING = {"flip": 0.5, "crop": 4, "erase": 0.5, "mixup": 0.4, "cutmix": 1.0, "randaugment": {"operations": 3}}
NOISE = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_hot(count: int, classes: int = 10) -> torch.Tensor:
    return torch.eye(classes)[torch.arange(count) % classes]


def change(pixels: np.ndarray, seed: int = 0, **settings) -> torch.Tensor:
    """The pixels alone."""
    return augmented(pixels, one_hot(len(pixels)), Augment.model_validate(settings), generator(seed))[0]


def planes(pixels: np.ndarray) -> torch.Tensor:
    """(B, H, W, C) -> (B, C, H, W)."""
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


# --- parity with Pillow --------------------------------------------------------------------------------------------


def pictures(channels: int) -> np.ndarray:
    """(B, 24, 40, channels): noise, pale noise, a ramp, one colour, and two levels only."""
    random = np.random.default_rng(1)
    noise = random.integers(0, 256, (24, 40, channels))
    ramp = np.add.outer(np.arange(24) * 3, np.arange(40) * 4)[..., None] + np.arange(channels) * 9
    pale, even = 90 + noise // 5, np.full_like(noise, 77)
    return np.stack([noise, pale, ramp.clip(0, 255), even, 10 + 150 * (noise > 200)]).astype(np.uint8)


def by_pillow(pixels: np.ndarray, operation) -> np.ndarray:
    """Each picture of (B, H, W, C) alone, as (B, C, H, W), int64."""
    images = [Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture) for picture in pixels]
    changed = np.stack([np.asarray(operation(image)).reshape(pixels.shape[1:]) for image in images])
    return changed.transpose(0, 3, 1, 2).astype(np.int64)


def apart(ours: torch.Tensor, theirs: np.ndarray) -> int:
    """By how many levels the worst pixel differs."""
    assert ours.dtype == torch.uint8
    return int(np.abs(ours.numpy().astype(np.int64) - theirs).max())


ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
    "sharpness": ImageEnhance.Sharpness,
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ENHANCERS)
def test_enhancing_is_pillows(name, channels):
    pixels, ours, theirs = pictures(channels), getattr(augment, name), ENHANCERS[name]
    for factor in (0.0, 0.1, 0.55, 1.0, 1.45, 1.9):
        reference = by_pillow(pixels, lambda image, factor=factor: theirs(image).enhance(factor))
        allowed = 0 if factor in (0, 1) else 1
        assert apart(ours(planes(pixels), torch.full((len(pixels),), factor)), reference) <= allowed, factor
        if (name, channels) != ("saturation", 1):  # the negative control: another factor shows
            assert apart(ours(planes(pixels), torch.full((len(pixels),), factor + 0.2)), reference) > 1


@pytest.mark.parametrize("channels", [1, 3])
def test_bits_and_thresholds_are_pillows(channels):
    pixels = pictures(channels)
    for bits in range(1, 9):
        ours = augment.posterize(planes(pixels), torch.full((len(pixels),), bits))
        assert apart(ours, by_pillow(pixels, lambda image, bits=bits: ImageOps.posterize(image, bits))) == 0
    for threshold in (0, 1, 100, 255, 256):
        ours = augment.solarize(planes(pixels), torch.full((len(pixels),), float(threshold)))
        assert apart(ours, by_pillow(pixels, lambda image, at=threshold: ImageOps.solarize(image, at))) == 0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_stretching_and_equalizing_are_pillows(name, channels):
    pixels = pictures(channels)
    reference = by_pillow(pixels, getattr(ImageOps, name))
    allowed = 1 if name == "autocontrast" else 0  # Pillow's stretching is in floats, and cuts them off
    assert apart(getattr(augment, name)(planes(pixels)), reference) <= allowed
    assert apart(planes(pixels), reference) > 20


def test_every_picture_has_a_factor_of_its_own():
    pixels = planes(np.repeat(NOISE[:1], 3, axis=0))
    half, same, black = augment.brightness(pixels, torch.tensor([0.5, 1.0, 0.0]))
    assert torch.equal(half, pixels[0] // 2)
    assert torch.equal(same, pixels[0])
    assert not black.any()


def smooth(height: int = 33, width: int = 47) -> np.ndarray:
    """(1, height, width, 3): waves, which a sample between pixels hardly depends on."""
    y, x = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin((y * a + x * b) / 9) for a, b in ((1, 0.3), (0.2, 1), (0.7, -0.7))]
    return np.stack(waves, axis=-1).round().astype(np.uint8)[None]


def matrix_of(name: str, level: float, width: int, height: int) -> tuple[float, ...]:
    """What Pillow takes for an operation: the paper's code."""
    return {
        "shear_x": (1, 0.3 * level, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * level, 1, 0),
        "translate_x": (1, 0, 0.45 * level * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, 0.45 * level * height),
    }[name]


@pytest.mark.parametrize("level", [-1.0, -0.33, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", augment.GEOMETRIC)
def test_moving_is_pillows(name, level):
    pixels, bilinear, grey = smooth(), Image.Resampling.BILINEAR, (128, 128, 128)

    def theirs(image: Image.Image) -> Image.Image:
        if name == "rotate":
            return image.rotate(30 * level, bilinear, fillcolor=grey)
        matrix = matrix_of(name, level, *image.size)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, bilinear, fillcolor=grey)

    kind = torch.tensor([list(augment.GEOMETRIC).index(name)])
    ours = augment.geometric(planes(pixels), kind, torch.tensor([level]))
    reference = by_pillow(pixels, theirs)
    differences = np.abs(ours.numpy().astype(np.int64) - reference)
    assert (differences > 1).mean() < 0.01  # a place on the very border may fall on either side
    if level:
        turned = augment.geometric(planes(pixels), kind, torch.tensor([-level])).numpy()
        assert (np.abs(turned.astype(np.int64) - reference) > 1).mean() > 0.2
    else:
        assert torch.equal(ours, planes(pixels))


# --- parity with numpy ---------------------------------------------------------------------------------------------


def test_a_flip_turns_left_to_right():
    assert torch.equal(change(NOISE, flip=1.0), planes(NOISE[:, :, ::-1]).float())
    many = np.repeat(NOISE[:1], 400, axis=0)
    flipped = (change(many, flip=0.3) == planes(many[:, :, ::-1]).float()).all(dim=(1, 2, 3))
    kept = (change(many, flip=0.3) == planes(many).float()).all(dim=(1, 2, 3))
    assert torch.equal(flipped, ~kept)
    assert abs(int(flipped.sum()) - 120) < 37  # four standard deviations


def windows(picture: np.ndarray, crop: int, mode: str) -> dict[bytes, tuple[int, int]]:
    """Every window of the padded picture and where it begins."""
    padded, (height, width) = np.pad(picture, ((crop, crop), (crop, crop), (0, 0)), mode=mode), picture.shape[:2]
    starts = [(y, x) for y in range(2 * crop + 1) for x in range(2 * crop + 1)]
    return {padded[y : y + height, x : x + width].tobytes(): (y, x) for y, x in starts}


@pytest.mark.parametrize(("shape", "crop", "mode"), [((9, 7, 3), 3, "reflect"), ((5, 3, 1), 3, "edge")])
def test_a_crop_is_a_window_of_the_padded_picture(shape, crop, mode):
    picture = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    changed = change(np.repeat(picture[None], 600, axis=0), crop=crop).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    allowed = windows(picture, crop, mode)
    found = {allowed[each.tobytes()] for each in changed}  # a KeyError: no window at all
    assert found == set(allowed.values())  # every place is drawn
    other = windows(picture, crop, "constant")
    assert any(each.tobytes() not in other for each in changed)


def test_flip_and_crop_together():
    allowed = {**windows(NOISE[0], 2, "reflect"), **windows(NOISE[0][:, ::-1], 2, "reflect")}
    changed = change(np.repeat(NOISE[:1], 300, axis=0), flip=0.5, crop=2).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert {each.tobytes() for each in changed} == set(allowed)


# --- all of it -----------------------------------------------------------------------------------------------------


def test_off_changes_nothing():
    targets = one_hot(6)
    random, state = generator(), generator().get_state()
    pixels, same = augmented(NOISE, targets, Augment(), random)
    assert torch.equal(pixels, planes(NOISE).float())
    assert torch.equal(same, targets)
    assert torch.equal(random.get_state(), state)
    assert not torch.equal(change(NOISE, randaugment={}), pixels)


@pytest.mark.parametrize(
    "shape", [(8, 32, 32, 3), (8, 20, 12, 1), (3, 1, 1, 1), (2, 2, 5, 3), (1, 8, 8, 3), (0, 8, 8, 3)]
)
def test_everything_at_once_keeps_shape_range_and_sums(shape):
    before = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    before.flags.writeable = False
    for seed in range(12):
        pixels, targets = augmented(before, one_hot(len(before)), Augment.model_validate(EVERYTHING), generator(seed))
        assert pixels.shape == (shape[0], shape[3], shape[1], shape[2])
        assert (pixels.dtype, targets.dtype) == (torch.float32, torch.float32)
        assert ((pixels >= 0) & (pixels <= 255)).all()
        assert targets.shape == (shape[0], 10)
        assert torch.allclose(targets.sum(1), torch.ones(len(before)))


def test_the_generator_decides_and_nothing_else():
    spec, targets = Augment.model_validate(EVERYTHING), one_hot(6)
    torch.manual_seed(1)
    first = augmented(NOISE, targets, spec, generator(4))
    torch.manual_seed(2)
    np.random.seed(2)
    again = augmented(NOISE, targets, spec, generator(4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(augmented(NOISE, targets, spec, generator(5))[0], first[0])
    random = generator(4)
    augmented(NOISE, targets, spec, random)
    assert not torch.equal(augmented(NOISE, targets, spec, random)[0], first[0])  # the generator goes on


def test_a_picture_does_not_depend_on_what_the_others_show():
    alone = {name: value for name, value in EVERYTHING.items() if name not in ("mixup", "cutmix")}
    others = NOISE.copy()
    others[1:] = 255 - others[1:] // 2
    assert torch.equal(change(NOISE, **alone)[0], change(others, **alone)[0])
    assert not torch.equal(change(NOISE, **alone)[1], change(others, **alone)[1])


def test_the_pictures_given_stay_as_they_are():
    before, targets = NOISE.copy(), one_hot(6)
    augmented(before, targets, Augment.model_validate({**EVERYTHING, "erase": 1.0}), generator())
    assert np.array_equal(before, NOISE)
    assert torch.equal(targets, one_hot(6))


# --- RandAugment ---------------------------------------------------------------------------------------------------


def test_each_picture_draws_its_own_operations_and_signs():
    many = np.repeat(pictures(3)[1:2], 300, axis=0)
    kinds = torch.unique(change(many, randaugment={"operations": 1, "magnitude": 0.7}), dim=0)
    # identity, autocontrast, equalize, posterize, solarize, and nine with two signs
    assert len(kinds) == 5 + 2 * 9
    assert len(torch.unique(change(many, randaugment={"operations": 2, "magnitude": 0.7}), dim=0)) > 100


def test_no_magnitude_leaves_only_the_operations_that_have_none():
    many = np.repeat(pictures(3)[1:2], 200, axis=0)
    assert len(torch.unique(change(many, randaugment={"operations": 1, "magnitude": 0.0}), dim=0)) == 3


def test_the_sign_matters_where_there_are_two_directions_only():
    pixels, level = planes(pictures(3)[1:2]), torch.tensor([0.6])
    same = {
        name for name, change in augment.COLOURS.items() if torch.equal(change(pixels, level), change(pixels, -level))
    }
    assert same == {"identity", "autocontrast", "equalize", "posterize", "solarize"}
    assert torch.equal(augment.COLOURS["solarize"](pixels, level), torch.where(pixels < 103, pixels, 255 - pixels))
    assert torch.equal(augment.COLOURS["posterize"](pixels, level), pixels // 4 * 4)
    for name in ENHANCERS:  # from 0.1 to 1.9
        expected = getattr(augment, name)(pixels, 1 + 0.9 * level)
        assert torch.equal(augment.COLOURS[name](pixels, level), expected), name


def test_every_operation_is_at_its_place():
    pixels, count = planes(pictures(3)[1:2]), len(augment.COLOURS)
    for number, (name, operation) in enumerate(augment.COLOURS.items()):
        level = torch.tensor([0.6])
        changed = augment.operate(pixels, torch.tensor([number]), level)
        assert torch.equal(changed, operation(pixels, level)), name
        assert torch.equal(changed, pixels) == (name == "identity"), name
    for number in range(len(augment.GEOMETRIC)):
        changed = augment.operate(pixels, torch.tensor([count + number]), torch.tensor([0.6]))
        assert torch.equal(changed, augment.geometric(pixels, torch.tensor([number]), torch.tensor([0.6])))


def test_what_leaves_the_picture_leaves_grey():
    shift = torch.tensor([list(augment.GEOMETRIC).index("translate_x")])
    moved = augment.geometric(torch.full((1, 3, 20, 20), 7, dtype=torch.uint8), shift, torch.tensor([1.0]))
    assert (moved[..., :11] == 7).all()
    assert (moved[..., 11:] == augment.GREY).all()  # 45 % of 20 pixels


# --- erasing -------------------------------------------------------------------------------------------------------


def boxes(changed: torch.Tensor) -> list[tuple[int, int, int]]:
    """Of each picture (B, H, W) bool: height and width of the smallest box around what changed, and its count."""
    found = []
    for each in changed[changed.any(dim=(1, 2))]:
        rows, columns = each.any(1).nonzero()[:, 0], each.any(0).nonzero()[:, 0]
        found.append((int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1, int(each.sum())))
    return found


def test_erasing_changes_one_box_and_nothing_else():
    even = np.full((300, 40, 40, 3), 50, dtype=np.uint8)
    pixels = change(even, erase=0.5)
    found = boxes((pixels != 50).any(1))
    assert abs(len(found) - 150) < 35  # four standard deviations
    for height, width, count in found:
        assert count == height * width  # a box of noise, without a hole: three channels hardly ever are all 50
        assert 0.01 < count / 1600 < 0.36
        assert 0.2 < height / width < 5
    assert min(count for *_, count in found) / 1600 < 0.06 < 0.28 < max(count for *_, count in found) / 1600
    assert abs(np.log([height / width for height, width, _ in found]).mean()) < 0.25  # as many flat as tall
    noise = pixels[pixels != 50]
    assert abs(noise.mean().item() - 127.5) < 2
    assert (noise.min(), noise.max()) == (0, 255)


def test_boxes_are_everywhere_and_at_one_are_on_every_picture():
    even = np.full((2000, 16, 16, 1), 50, dtype=np.uint8)
    hit = (change(even, erase=1.0) != 50)[:, 0]
    assert hit.any(dim=(1, 2)).all()
    assert hit.float().mean(0).min() > 0.005  # the corners too
    assert not torch.equal(hit[0], hit[1])


# --- mixing --------------------------------------------------------------------------------------------------------


def levels(count: int = 5) -> np.ndarray:
    """(count, 8, 8, 1): picture i is i * 50 all over."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None] * 50, (count, 8, 8, 1))


def test_mixup_weighs_pixels_and_targets_alike():
    weights = []
    for seed in range(60):
        pixels, targets = augmented(levels(), torch.eye(5), Augment(mixup=1.0), generator(seed))
        shade = targets @ (torch.arange(5.0) * 50)
        assert (pixels - shade[:, None, None, None]).abs().max() < 1e-3
        weights.append(targets.diagonal().min().item())  # of a picture's own, where it met another
    assert len(set(weights)) > 50
    assert abs(np.mean(weights) - 0.5) < 0.15  # Beta(1, 1) is uniform
    assert min(weights) < 0.1
    assert max(weights) > 0.9


def test_a_small_alpha_hardly_mixes():
    def ambiguous(alpha: float) -> float:
        mixed = [augmented(levels(), torch.eye(5), Augment(mixup=alpha), generator(seed))[1] for seed in range(60)]
        return np.mean([((each > 0.1) & (each < 0.9)).any().item() for each in mixed])

    assert ambiguous(0.02) < 0.2 < 0.7 < ambiguous(2.0)
    assert ambiguous(5e-324) == 0


def test_the_share_of_a_cutmix_box_is_that_of_its_target():
    shares = []
    for seed in range(60):
        pixels, targets = augmented(levels(), torch.eye(5), Augment(cutmix=1.0), generator(seed))
        own = torch.arange(5.0)[:, None, None] * 50
        other = pixels[:, 0] != own
        assert torch.allclose(1 - targets.diagonal(), other.float().mean(dim=(1, 2)), atol=1e-6)
        assert all(count == height * width for height, width, count in boxes(other))
        assert set(pixels.unique().tolist()) <= {0, 50, 100, 150, 200}  # nothing is averaged
        shares.append(other.float().mean(dim=(1, 2)).max().item())
    assert len(set(shares)) > 15
    assert min(shares) < 0.1 < 0.6 < max(shares)


def test_a_cutmix_box_is_as_large_as_its_draw_unless_the_border_cuts_it():
    black = torch.zeros(2, 1, 64, 64)
    black[1] = 1
    drawn = [augment.cutmix(black, torch.eye(2), 1000.0, generator(seed))[0][0].mean().item() for seed in range(80)]
    assert 0.45 < max(drawn) < 0.58  # Beta(1000, 1000) is about a half
    assert black[0].max() == 0  # what was given stays


def test_a_coin_chooses_where_both_are_on():
    spec, averaged = Augment(mixup=1.0, cutmix=1.0), 0
    for seed in range(100):
        pixels, targets = augmented(levels(), torch.eye(5), spec, generator(seed))
        averaged += not set(pixels.unique().tolist()) <= {0, 50, 100, 150, 200}
        assert torch.allclose(pixels.mean(dim=(1, 2, 3)), targets @ (torch.arange(5.0) * 50), atol=1e-3)
    assert 30 < averaged < 70


def test_soft_targets_keep_their_sum():
    soft = torch.full((6, 4), 0.25)
    for seed in range(10):
        mixed = augmented(NOISE, soft, Augment(mixup=0.5, cutmix=0.5), generator(seed))[1]
        assert torch.equal(mixed, soft)


# --- hostile -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flip", "crop", "erase", "mixup", "cutmix"])
@pytest.mark.parametrize("value", [-1, -0.01, math.nan, math.inf, 1e9, "many", None])
def test_a_setting_out_of_bounds_is_refused(name, value):
    with pytest.raises(UsageError, match=name) as caught:
        resolve(Augment, {name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("operations", 0), ("operations", 9), ("magnitude", -0.1), ("magnitude", 1.1), ("magnitude", math.nan)],
)
def test_randaugment_has_bounds_too(name, value):
    with pytest.raises(UsageError, match=name):
        resolve(Augment, {"randaugment": {name: value}})


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="erase"):
        resolve(Augment, {"erased": 0.1})
    with pytest.raises(UsageError, match="magnitude"):
        resolve(Augment, {"randaugment.magnitud": 0.1})
    assert resolve(Augment, {"randaugment.magnitude": 0.1}).randaugment == RandAugment(magnitude=0.1)


@pytest.mark.parametrize(
    "pixels", [NOISE.astype(np.float32), NOISE[0], NOISE[..., :2], NOISE.transpose(0, 3, 1, 2), NOISE.astype(np.int8)]
)
def test_other_arrays_are_an_error_in_one_line(pixels):
    with pytest.raises(NextileError, match=r"pictures are uint8 .*: convert them") as caught:
        augmented(pixels, one_hot(len(pixels)), Augment(), generator())
    assert "\n" not in str(caught.value)


def test_targets_of_another_number_are_an_error():
    with pytest.raises(NextileError, match="6 pictures have 5 targets"):
        augmented(NOISE, one_hot(5), Augment(), generator())
