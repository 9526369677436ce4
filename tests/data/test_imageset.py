"""Pictures on disk: what is written is read, or the error says what is wrong; batches depend on (seed, step) alone."""

from __future__ import annotations

import errno
import io
import json
import os
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nextile.base import files
from nextile.base.errors import NextileError, UsageError
from nextile.data import imageset
from nextile.data.batches import Batch
from nextile.data.imageset import ImageBatches, ImageSet, PixelBatches, open_images, write_images
from nextile.data.pictures import PictureCorpus, open_pictures
from nextile.images.augment import Augment
from nextile.images.processor import ImageProcessor

OPENED = ImageProcessor(size=2, channels=3).open


def corpus(count: int = 10, classes: int = 3) -> PictureCorpus:
    """The i-th picture is of the colour (i, i, i) and of the class i % classes."""

    def source(index: int) -> tuple[bytes, str]:
        file = io.BytesIO()
        Image.new("RGB", (3, 3), (index,) * 3).save(file, "PNG")
        return file.getvalue(), f"picture {index}"

    labels = np.arange(count) % classes if classes else np.full(count, -1)
    return PictureCorpus("many", tuple("abcdefgh"[:classes]), labels, source, 3, False)


def write(folder: Path, pictures: PictureCorpus | None = None, indices=None, opened=OPENED, **changes):
    pictures = pictures or corpus()
    indices = np.arange(len(pictures)) if indices is None else indices
    arguments = {"progress": lambda done: None, "meta": {"made": "here"}} | changes
    return write_images(folder, pictures, indices, opened, **arguments)


def shades(images: ImageSet) -> list[int]:
    """What was in each picture, after a look at whether it is of one colour."""
    assert (images.pixels == images.pixels[:, :1, :1, :1]).all()
    return images.pixels[:, 0, 0, 0].tolist()


# --- writing -------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    for images in (write(tmp_path / "s")[0], open_images(tmp_path / "s", verify=True)):
        assert shades(images) == images.indices.tolist() == list(range(10))
        assert images.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
        assert (images.pixels.shape, images.pixels.dtype) == ((10, 2, 2, 3), np.uint8)
        assert images.labels.dtype == images.indices.dtype == np.int64
        assert (len(images), images.classes, images.meta) == (10, ("a", "b", "c"), {"made": "here"})
        assert isinstance(images.pixels, np.memmap)


def test_some_of_the_pictures_in_an_order_of_their_own(tmp_path):
    images, problems = write(tmp_path / "s", indices=[7, 2, 2, 9])
    assert shades(images) == images.indices.tolist() == [7, 2, 2, 9]
    assert images.labels.tolist() == [1, 2, 2, 0]
    assert problems == []


def test_pictures_of_real_files_in_every_size_and_colour(tmp_path):
    for name, size, mode, kind in [("a", (1, 1), "RGB", "png"), ("a", (9, 4), "L", "jpeg"), ("b", (4, 9), "P", "gif")]:
        (tmp_path / "t" / name).mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, 5).save(tmp_path / "t" / name / f"x.{kind}")
    pictures = open_pictures([str(tmp_path / "t")], labelled=True)
    for channels in (1, 3):
        images, problems = write(tmp_path / "s", pictures, opened=ImageProcessor(size=4, channels=channels).open)
        assert (images.pixels.shape, images.labels.tolist(), problems) == ((3, 4, 4, channels), [0, 0, 1], [])


def test_a_picture_that_cannot_be_read_is_left_out_and_said(tmp_path):
    good, noise = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(good, "JPEG")
    for name, data in [("a/0.jpg", good), ("a/1.png", b"text"), ("b/0.jpg", None), ("b/1.jpg", good), ("b/2.png", b"")]:
        path = tmp_path / "t" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = data.getvalue() if isinstance(data, io.BytesIO) else data
        path.write_bytes(good.getvalue()[:-900] if data is None else data)
    images, problems = write(tmp_path / "s", open_pictures([str(tmp_path / "t")], labelled=True))
    assert (images.indices.tolist(), images.labels.tolist()) == ([0, 3], [0, 1])
    assert len(problems) == 3
    for name, line in zip(["a/1.png", "b/0.jpg", "b/2.png"], problems, strict=True):
        assert f"{tmp_path}/t/{name}" in line
        assert "\n" not in line


def test_pictures_of_which_none_can_be_read(tmp_path):
    def refused(source, name):
        raise NextileError(f"{name} is broken")

    with pytest.raises(
        NextileError, match=r"^none of 10 pictures of 'many' can be read; the first: picture 0 is broken$"
    ):
        write(tmp_path / "s", opened=refused)
    with pytest.raises(NextileError, match=r"^none of 0 pictures of 'many' can be read: give some$"):
        write(tmp_path / "s", indices=[])
    assert not list(tmp_path.iterdir())


def test_a_broken_corpus_ends_the_writing(tmp_path):
    def source(index: int):
        raise NextileError("the file is cut")

    broken = PictureCorpus("x", (), np.full(3, -1), source, 8, True)
    with pytest.raises(NextileError, match="the file is cut"):
        write(tmp_path / "s", broken)
    assert not list(tmp_path.iterdir())


def test_the_order_stays_whichever_picture_is_decoded_first(tmp_path):
    def slow(source, name):
        time.sleep(0.01 if int(name.split()[1]) % 4 == 0 else 0)
        return OPENED(source, name)

    assert shades(write(tmp_path / "s", corpus(40), opened=slow)[0]) == list(range(40))


def test_few_pictures_are_decoded_ahead(tmp_path):
    begun, ahead, threads = [], [], set()

    def counted(source, name):
        begun.append(name)
        threads.add(threading.get_ident())
        return OPENED(source, name)

    write(tmp_path / "s", corpus(100), opened=counted, progress=lambda done: ahead.append(len(begun) - done))
    assert len(ahead) == 100
    assert max(ahead) <= 2 * imageset.THREADS
    assert len(threads) <= imageset.THREADS


def test_progress_counts_what_was_left_out_too(tmp_path):
    def odd(source, name):
        if int(name.split()[1]) % 2:
            raise NextileError(name)
        return OPENED(source, name)

    done: list[int] = []
    assert len(write(tmp_path / "s", opened=odd, progress=done.append)[0]) == 5
    assert done == list(range(1, 11))


def test_a_killed_write_leaves_nothing_and_the_old_set_whole(tmp_path):
    def killed(done: int):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "s", progress=killed)
    assert not list(tmp_path.iterdir())
    write(tmp_path / "s")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "s", indices=range(7), progress=killed)
    assert len(open_images(tmp_path / "s", verify=True)) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_full_disk_keeps_the_old_set(tmp_path, monkeypatch):
    write(tmp_path / "s")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(NextileError, match=r"No space left on device.*free some space"):
        write(tmp_path / "s", indices=[1, 2])
    assert len(open_images(tmp_path / "s", verify=True)) == 10


def test_pictures_of_two_shapes_are_a_mistake_of_ours(tmp_path):
    sizes = iter([2, 3, *[2] * 20])
    with pytest.raises(ValueError, match=r"a picture is uint8 \(\d, \d, 1\), not uint8"):
        write(tmp_path / "s", opened=lambda source, name: np.zeros((size := next(sizes), size, 1), np.uint8))
    assert not list(tmp_path.iterdir())


def test_the_filters_of_warnings_are_left_as_they_were(tmp_path):
    def warns(source, name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            time.sleep(0.001)
        warnings.warn("another thread has ended the silence", stacklevel=1)
        return OPENED(source, name)

    before = list(warnings.filters)
    assert write(tmp_path / "s", opened=warns)[1] == []
    assert warnings.filters == before


# --- broken sets ---------------------------------------------------------------------------------------------------


def problem(folder: Path, **options) -> str:
    with pytest.raises(NextileError) as caught:
        open_images(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_that_is_none(tmp_path):
    assert "is not a folder of pixels (it has no readable index.json)" in problem(tmp_path)
    assert "is not a folder of pixels" in problem(tmp_path / "none")


@pytest.mark.parametrize(("name", "size"), [("pixels.bin", 120), ("labels.bin", 80), ("indices.bin", 80)])
def test_a_file_that_is_cut_missing_linked_or_changed(tmp_path, name, size):
    write(tmp_path / "s")
    path = tmp_path / "s" / name
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    open_images(tmp_path / "s")
    assert problem(tmp_path / "s", verify=True).startswith(f"'{path}' is not what was written (its checksum differs)")
    path.write_bytes(data[:-1])
    assert problem(tmp_path / "s") == f"'{path}' has {size - 1} bytes instead of {size}: prepare the pictures again"
    path.unlink()
    assert f"'{path}' is missing" in problem(tmp_path / "s")
    (tmp_path / "other").write_bytes(data)
    path.symlink_to(tmp_path / "other")
    assert f"'{path}' is a link that leaves its folder" in problem(tmp_path / "s")


@pytest.mark.parametrize("wrong", [3, -2, 2**40])
def test_a_label_of_no_class(tmp_path, wrong):
    write(tmp_path / "s")
    labels = np.zeros(10, np.int64)
    labels[4] = wrong
    (tmp_path / "s" / "labels.bin").write_bytes(labels.tobytes())
    assert f"has the label {wrong} of 3 classes: prepare the pictures again" in problem(tmp_path / "s")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "other\n2"}, "is of another format ('other\\n2'): prepare the pictures again"),
        ({"pictures": 2**39}, "has 120 bytes instead of 6,597,069,766,656"),
        ({"pictures": 0}, "is broken ('pictures': Input should be greater"),
        ({"pictures": 2**70}, "is broken ('pictures': "),
        ({"height": -2, "width": -2}, "is broken ('height': "),
        ({"channels": "many"}, "is broken ('channels': Input should be a valid integer"),
        ({"classes": [1, None]}, "is broken ('classes.1': "),
        ({"checksums": {}}, "is broken (it lacks the checksum of a file)"),
        ({"new\nkey": 1}, "is broken ('new\\nkey': Extra inputs"),
    ],
)
def test_a_foreign_index(tmp_path, values, message):
    write(tmp_path / "s")
    path = tmp_path / "s" / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    assert message in problem(tmp_path / "s")


@pytest.mark.parametrize("text", ["{", "", "[]", "\x00", "[" * 10**5])
def test_an_index_that_is_no_json(tmp_path, text):
    write(tmp_path / "s")
    (tmp_path / "s" / "index.json").write_text(text)
    assert "index.json' is broken ('JSON': " in problem(tmp_path / "s")


# --- batches of classes --------------------------------------------------------------------------------------------

STRONG = Augment(flip=0.5, crop=1, erase=0.5, mixup=0.4)


def images(folder: Path, count: int = 10, classes: int = 3) -> ImageSet:
    """Pictures of 3 x 4 pixels of 3 colours, each like no other."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 4, 3), np.uint8)
    found = write(folder / "s", corpus(count, classes), opened=lambda source, name: pixels[int(name.split()[1])])[0]
    assert np.array_equal(found.pixels, pixels)
    return found


def scaled(pixels: Tensor) -> Tensor:
    """What was given, after a look at it; divided by 255."""
    assert (pixels.dtype, pixels.shape[1:]) == (torch.float32, (3, 3, 4))
    assert pixels.is_contiguous()
    assert 0 <= pixels.min() <= pixels.max() <= 255
    assert pixels.max() > 2
    return pixels / 255


def batches(folder: Path, augment: Augment | None = None, **changes) -> ImageBatches:
    found = open_images(folder / "s") if (folder / "s").exists() else images(folder)
    return ImageBatches(found, scaled, **{"batch": 4, "seed": 0} | changes, augment=augment)


def equal(one: Batch, other: Batch) -> bool:
    same = torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)
    return same and one.weight == other.weight


@pytest.mark.parametrize("augment", [None, Augment()])
def test_a_batch_is_the_pictures_and_their_classes(tmp_path, augment):
    data = batches(tmp_path, augment)
    places = data.places(3)
    batch = data.pictures(3)
    assert np.array_equal((batch.inputs * 255).round().numpy(), data.images.pixels[places].transpose(0, 3, 1, 2))
    assert batch.targets.dtype == torch.float32
    assert batch.targets.tolist() == [[float(place % 3 == k) for k in range(3)] for place in places]
    assert (batch.weight, batch.beside) == (4, ())


@pytest.mark.parametrize("batch", [1, 3, 4, 10, 25])
def test_every_picture_once_an_epoch_in_an_order_of_its_own(tmp_path, batch):
    data = batches(tmp_path, batch=batch)
    assert len(data) == 10
    seen = np.concatenate([data.places(step) for step in range(-(-40 // batch))])[:40].reshape(4, 10)
    assert (np.sort(seen) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in seen.tolist()}) == 4
    assert [data.epoch(step) for step in (0, 5)] == [0, 5 * batch / 10]


@pytest.mark.parametrize("augment", [None, STRONG])
def test_a_batch_is_a_function_of_seed_and_step(tmp_path, augment):
    data = batches(tmp_path, augment)
    first = [data.pictures(step) for step in range(6)]
    torch.manual_seed(1)
    fresh = batches(tmp_path, augment)  # a run that is resumed
    for step in (5, 2, 2, 4):
        assert equal(fresh.pictures(step), first[step])
    assert not equal(batches(tmp_path, augment, seed=1).pictures(0), first[0])


def test_a_picture_is_changed_anew_every_epoch(tmp_path):
    data = batches(tmp_path, STRONG, batch=10)
    kept = np.argsort(data.places(0)), np.argsort(data.places(1))
    first, second = (data.pictures(step).inputs[places] for step, places in enumerate(kept))
    assert not any(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_mixed_targets_sum_to_one(tmp_path):
    targets = batches(tmp_path, STRONG, batch=50).pictures(0).targets
    assert torch.allclose(targets.sum(1), torch.ones(50))
    assert ((targets > 0.01) & (targets < 0.99)).any()


@pytest.mark.parametrize("augment", [None, STRONG])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_join_to_the_whole_batch(tmp_path, augment, parts):
    data = batches(tmp_path, augment)
    micro, whole = data.micro(2, parts), data.pictures(2)
    assert [(len(part.inputs), part.weight) for part in micro] == [(4 // parts, 4 // parts)] * parts
    assert torch.equal(torch.cat([part.inputs for part in micro]), whole.inputs)
    assert torch.equal(torch.cat([part.targets for part in micro]), whole.targets)


@pytest.mark.parametrize("parts", [0, 3, 8])
def test_rows_that_do_not_divide(tmp_path, parts):
    with pytest.raises(UsageError, match=f"a batch of 4 pictures does not divide into {parts} equal parts"):
        batches(tmp_path).micro(0, parts)


@pytest.mark.parametrize("batch", [1, 4, 10, 99])
def test_all_pictures_once_as_they_are(tmp_path, batch):
    data = batches(tmp_path, STRONG)
    found = list(data.once(batch))
    assert [each.weight for each in found] == [len(each.inputs) for each in found]
    assert [each.weight for each in found[:-1]] == [batch] * (len(found) - 1)
    pixels = torch.cat([each.inputs for each in found]).mul(255).round().numpy()
    assert np.array_equal(pixels, data.images.pixels.transpose(0, 3, 1, 2))
    assert torch.cat([each.targets for each in found]).argmax(1).tolist() == data.images.labels.tolist()


def test_pictures_without_a_class_are_no_batches_of_classes(tmp_path):
    with pytest.raises(NextileError, match=r"10 pictures of '.*s' have no class: put each into a class folder"):
        ImageBatches(images(tmp_path, classes=0), scaled, batch=4, seed=0)


def test_a_batch_of_nothing(tmp_path):
    with pytest.raises(UsageError, match="batch 0 must be at least 1"):
        batches(tmp_path, batch=0)


# --- batches of tokens ---------------------------------------------------------------------------------------------

START = 1000


def encode(pixels: np.ndarray) -> Tensor:
    """The red of each pixel, a row after the other."""
    assert (pixels.dtype, pixels.shape[1:]) == (np.uint8, (3, 4, 3))
    return torch.from_numpy(pixels[..., 0].astype(np.int64)).flatten(1)  # (B, H * W)


def painting(folder: Path, **changes) -> PixelBatches:
    found = open_images(folder / "s") if (folder / "s").exists() else images(folder, classes=0)
    return PixelBatches(found, encode, **{"start": START, "batch": 4, "seed": 0} | changes)


def test_inputs_are_the_targets_moved_behind_the_start(tmp_path):
    data = painting(tmp_path)
    batch = data.pictures(2)
    assert np.array_equal(batch.targets.numpy(), data.images.pixels[data.places(2), ..., 0].reshape(4, 12))
    assert batch.inputs[:, 0].tolist() == [START] * 4
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert batch.weight == 48


def test_a_share_of_the_pictures_is_mirrored(tmp_path):
    plain, mirrored = (painting(tmp_path, flip=flip, batch=400).pictures(0).targets for flip in (0.0, 1.0))
    plain, mirrored = plain.view(-1, 3, 4), mirrored.view(-1, 3, 4)
    assert torch.equal(plain.flip(2), mirrored)
    some = painting(tmp_path, flip=0.25, batch=400).pictures(0).targets.view(-1, 3, 4)
    turned = (some == mirrored).all(2).all(1)
    assert torch.equal(some[~turned], plain[~turned])
    assert 60 < turned.sum() < 140  # 100 and 4.6 standard deviations


@pytest.mark.parametrize("flip", [0.0, 0.5])
def test_tokens_are_a_function_of_seed_and_step_and_parts_join(tmp_path, flip):
    data = painting(tmp_path, flip=flip)
    first = [data.pictures(step) for step in range(5)]
    for step in (4, 0, 3):
        assert equal(painting(tmp_path, flip=flip).pictures(step), first[step])
    micro = data.micro(1, 2)
    assert [part.weight for part in micro] == [24, 24]
    assert torch.equal(torch.cat([part.inputs for part in micro]), first[1].inputs)
    assert not equal(painting(tmp_path, flip=flip, seed=1).pictures(0), first[0])


def test_all_tokens_once_as_they_are(tmp_path):
    data = painting(tmp_path, flip=1.0)
    found = list(data.once(4))
    assert [len(batch.inputs) for batch in found] == [4, 4, 2]
    assert [batch.weight for batch in found] == [48, 48, 24]
    assert np.array_equal(torch.cat([batch.targets for batch in found]).numpy(), encode(data.images.pixels).numpy())


@pytest.mark.parametrize("flip", [-0.1, 1.1, float("nan")])
def test_a_flip_that_is_no_probability(tmp_path, flip):
    with pytest.raises(UsageError, match="is not a probability"):
        painting(tmp_path, flip=flip)
