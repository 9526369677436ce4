"""Pictures as a memory-mapped array on disk, and batches of them; the order is a pure function of (seed, step).

Shapes: N pictures, B batch, C channels (1 or 3), H x W pixels, K classes, T tokens.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor
from torch.nn import functional as F

from nextile.base.config import Settings
from nextile.base.errors import NextileError, UsageError
from nextile.base.files import Checksum, atomic_folder, atomic_write, checksum, inside
from nextile.data.batches import Batch, Order, listed
from nextile.data.pictures import PictureCorpus
from nextile.images.augment import Augment, augmented

INDEX = "index.json"
FORMAT = "nextile images 1"
PIXELS, LABELS, INDICES = "pixels.bin", "labels.bin", "indices.bin"
THREADS = 4  # that decode; Pillow lets them run at once
AGAIN = "prepare the pictures again"
INTEGER = np.dtype("<i8")

Open = Callable[[Path | bytes, str], np.ndarray]  # (a picture, what errors call it) -> (H, W, C) uint8


class Index(Settings):
    """What lies in the folder: pixels (N, H, W, C) uint8, labels and indices (N,) int64; `meta` is the writer's."""

    format: str = FORMAT
    pictures: Annotated[int, Field(ge=1, le=1 << 40)]
    height: Annotated[int, Field(ge=1, le=1 << 16)]
    width: Annotated[int, Field(ge=1, le=1 << 16)]
    channels: Annotated[int, Field(ge=1, le=4)]
    classes: tuple[str, ...]
    checksums: dict[str, str]  # of each file
    meta: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the pixels."""
        return self.pictures, self.height, self.width, self.channels

    def sizes(self) -> dict[str, int]:
        """How many bytes each file has."""
        integers = self.pictures * INTEGER.itemsize
        return {PIXELS: self.pictures * self.height * self.width * self.channels, LABELS: integers, INDICES: integers}


class ImageSet:
    """Pictures of one size: `pixels` (N, H, W, C) uint8 on disk, `labels` (N,) int64, -1 for none, and `classes`.

    indices: which picture of its corpus each was, (N,) int64.
    """

    def __init__(self, folder: Path, index: Index):
        self.folder, self.index, self.classes, self.meta = folder, index, index.classes, index.meta
        self.pixels = np.memmap(folder / PIXELS, np.uint8, mode="r", shape=index.shape)
        self.labels, self.indices = (
            np.fromfile(folder / name, INTEGER).astype(np.int64, copy=False) for name in (LABELS, INDICES)
        )

    def __len__(self) -> int:
        return self.index.pictures


# --- writing -------------------------------------------------------------------------------------------------------


def write_images(
    folder: str | Path,
    corpus: PictureCorpus,
    indices: Sequence[int] | np.ndarray,
    opened: Open,
    progress: Callable[[int], object],
    meta: Mapping[str, Any],
) -> tuple[ImageSet, list[str]]:
    """Write these pictures of a corpus, in order, as a set that appears whole or never; and say which were left out.

    opened: makes of a picture and its name its pixels, all of one shape; called by several threads at once. One that
    it refuses by a NextileError is left out, and the error is in the list. progress is told how many are done.
    Errors: NextileError when all are refused, for what is wrong with the corpus itself, and for a full disk.
    """
    places, problems = np.asarray(indices, dtype=INTEGER), []
    with atomic_folder(folder) as temporary, closing(_decoded(corpus, places, opened)) as pictures:
        kept, shape, digest = _write_pixels(temporary / PIXELS, pictures, progress, problems)
        if not kept:
            first = f"; the first: {problems[0]}" if problems else ": give some"
            raise NextileError(f"none of {len(places):,} pictures of '{corpus.name}' can be read{first}")
        chosen = places[kept]
        digests = {
            PIXELS: digest,
            LABELS: _write_integers(temporary / LABELS, corpus.labels[chosen]),
            INDICES: _write_integers(temporary / INDICES, chosen),
        }
        shaped = dict(zip(("height", "width", "channels"), shape, strict=True))
        index = Index(pictures=len(kept), **shaped, classes=corpus.classes, checksums=digests, meta=dict(meta))
        atomic_write(temporary / INDEX, index.model_dump_json(indent=1) + "\n")
    return open_images(folder), problems


def _write_integers(path: Path, array: np.ndarray) -> str:
    """Write integers; the checksum of the file."""
    path.write_bytes(array.astype(INTEGER).tobytes())
    return checksum(path)


Decoded = Generator[np.ndarray | NextileError, None, None]


def _decoded(corpus: PictureCorpus, places: np.ndarray, opened: Open) -> Decoded:
    """The pictures in order, or why one is none; a few are decoded ahead by threads.

    Warnings are off meanwhile: whoever silences them for one picture, in one thread, ends that for all others.
    """
    quiet = warnings.catch_warnings(action="ignore")
    with quiet, ThreadPoolExecutor(THREADS, thread_name_prefix="pictures") as pool:
        ahead = deque()
        try:
            for place in places.tolist():
                if len(ahead) == 2 * THREADS:
                    yield ahead.popleft().result()
                ahead.append(pool.submit(_attempted, opened, *corpus.source(place)))
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _attempted(opened: Open, picture: Path | bytes, name: str) -> np.ndarray | NextileError:
    try:
        return opened(picture, name)
    except NextileError as error:
        return error


def _write_pixels(
    path: Path, pictures: Decoded, progress: Callable[[int], object], problems: list[str]
) -> tuple[list[int], tuple[int, ...], str]:
    """Append what was decoded; which of the pictures those are, their shape, and the checksum of the file."""
    kept, shape, digest = [], (0, 0, 0), Checksum()
    with open(path, "wb") as file:
        for number, pixels in enumerate(pictures):
            if isinstance(pixels, NextileError):
                problems.append(str(pixels))
            else:
                shape = pixels.shape if not kept else shape
                data = _plain(pixels, shape)
                file.write(data)
                digest.update(data)
                kept.append(number)
            progress(number + 1)
    return kept, shape, digest.hexdigest()


def _plain(pixels: np.ndarray, shape: tuple[int, ...]) -> bytes:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape != shape:
        raise ValueError(f"a picture is {pixels.dtype} {pixels.shape}, not uint8 {shape}, and all are of one size")
    return pixels.tobytes()


# --- opening -------------------------------------------------------------------------------------------------------


def open_images(folder: str | Path, verify: bool = False) -> ImageSet:
    """Open a set that `write_images` wrote, checking its sizes, and with `verify` every byte against its checksum.

    Errors: NextileError when it is none, is of another version, or a file is missing, truncated or changed.
    """
    folder = Path(folder)
    index = _read_index(folder)
    for name, size in index.sizes().items():
        _check_file(inside(folder, name), size, index.checksums.get(name) if verify else None)
    images = ImageSet(folder, index)
    wrong = images.labels[(images.labels < -1) | (images.labels >= len(images.classes))]
    if len(wrong):
        raise NextileError(f"'{folder / LABELS}' has the label {wrong[0]} of {len(images.classes)} classes: {AGAIN}")
    return images


def _read_index(folder: Path) -> Index:
    try:
        index = Index.model_validate_json(inside(folder, INDEX).read_bytes())
    except (NextileError, OSError) as error:
        raise NextileError(f"'{folder}' is not a folder of pixels (it has no readable {INDEX}): {AGAIN}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "JSON"
        raise NextileError(f"'{folder / INDEX}' is broken ({place[:100]!a}: {problem['msg']}): {AGAIN}") from error
    if index.format != FORMAT:
        raise NextileError(f"'{folder}' is of another format ({index.format[:40]!a}): {AGAIN}")
    if set(index.checksums) != {PIXELS, LABELS, INDICES}:
        raise NextileError(f"'{folder / INDEX}' is broken (it lacks the checksum of a file): {AGAIN}")
    return index


def _check_file(path: Path, size: int, digest: str | None) -> None:
    found = path.stat().st_size
    if found != size:
        raise NextileError(f"'{path}' has {found:,} bytes instead of {size:,}: {AGAIN}")
    if digest is not None and checksum(path) != digest:
        raise NextileError(f"'{path}' is not what was written (its checksum differs): {AGAIN}")


# --- batches -------------------------------------------------------------------------------------------------------


class _Batches:
    """Pictures in batches, each once an epoch, in an order of its own; a batch may reach into the next epoch."""

    def __init__(self, images: ImageSet, batch: int, seed: int):
        if batch < 1:
            raise UsageError(f"batch {batch} must be at least 1")
        self.images, self.batch, self.seed = images, batch, seed
        self._order = Order(len(images), seed)

    def __len__(self) -> int:
        """The pictures of an epoch."""
        return len(self.images)

    def epoch(self, step: int) -> float:
        """How many times the pictures have been seen before this step."""
        return step * self.batch / len(self)

    def micro(self, step: int, accumulate: int) -> list[Batch]:
        """The batch of a step in equal parts, for accumulation. Errors: UsageError when the rows do not divide."""
        return _parts(self.pictures(step), accumulate)

    def named(self, step: int) -> str:
        """The pictures."""
        return listed("pictures", self.places(step))

    def pictures(self, step: int) -> Batch:
        """The batch of a step."""
        raise NotImplementedError

    def places(self, step: int) -> np.ndarray:
        """Which pictures of the set are in the batch of a step, (B,)."""
        epochs, places = np.divmod(np.arange(step * self.batch, (step + 1) * self.batch), len(self))
        return np.concatenate([self._order(int(e), places[epochs == e]) for e in np.unique(epochs)])

    def _pixels(self, places: np.ndarray) -> np.ndarray:
        """(B, H, W, C), in memory."""
        return np.array(self.images.pixels[places])

    def _random(self, purpose: str, step: int) -> torch.Generator:
        key = hashlib.blake2b(f"{purpose} {self.seed} {step}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(key, "little"))

    def _chunks(self, batch: int) -> Iterator[np.ndarray]:
        """Which pictures stand in batches of all of them, in order."""
        return (np.arange(first, min(first + batch, len(self))) for first in range(0, len(self), batch))


def _parts(batch: Batch, parts: int) -> list[Batch]:
    """The rows in that many equal parts, in order; unlike Batch.split, for targets of any kind."""
    rows = len(batch.inputs)
    if parts < 1 or rows % parts:
        raise UsageError(f"a batch of {rows} pictures does not divide into {parts} equal parts: choose a divisor")
    chunks = zip(batch.inputs.chunk(parts), batch.targets.chunk(parts), strict=True)
    return [Batch(inputs, targets, batch.weight // parts) for inputs, targets in chunks]


class ImageBatches(_Batches):
    """Batches of pictures and their classes: inputs as `normalise` makes them, targets (B, K) float32 that sum to 1.

    normalise: (B, C, H, W) float32, 0 to 255 -> what the model is given. augment: how pictures are changed before they
    are learned from, by a generator of (seed, step). Errors: NextileError for pictures that have no class.
    """

    def __init__(
        self,
        images: ImageSet,
        normalise: Callable[[Tensor], Tensor],
        *,
        batch: int,
        seed: int,
        augment: Augment | None = None,
    ):
        super().__init__(images, batch, seed)
        if (images.labels < 0).any():
            count = int((images.labels < 0).sum())
            raise NextileError(f"{count:,} pictures of '{images.folder}' have no class: put each into a class folder")
        self.normalise, self.augment = normalise, augment

    def pictures(self, step: int) -> Batch:
        """The batch of a step."""
        places = self.places(step)
        if self.augment is None:
            return self._plain(places)
        random = self._random("augment", step)
        pixels, targets = augmented(self._pixels(places), self._targets(places), self.augment, random)
        return Batch(self.normalise(pixels), targets, weight=len(places))

    def once(self, batch: int) -> Iterator[Batch]:
        """All pictures in order as they are, in batches of which the last may be shorter."""
        return map(self._plain, self._chunks(batch))

    def _plain(self, places: np.ndarray) -> Batch:
        pixels = torch.from_numpy(self._pixels(places)).permute(0, 3, 1, 2).float().contiguous()  # (B, C, H, W)
        return Batch(self.normalise(pixels), self._targets(places), weight=len(places))

    def _targets(self, places: np.ndarray) -> Tensor:
        """(B, K), 1 at the class."""
        return F.one_hot(torch.from_numpy(self.images.labels[places]), len(self.images.classes)).float()


class PixelBatches(_Batches):
    """Batches to learn painting from: each picture as tokens (B, T), and the same moved by one behind `start`.

    encode: (B, H, W, C) uint8 -> (B, T) int64. flip: which share of the pictures is mirrored, left to right, before.
    """

    def __init__(
        self,
        images: ImageSet,
        encode: Callable[[np.ndarray], Tensor],
        *,
        start: int,
        batch: int,
        seed: int,
        flip: float = 0.0,
    ):
        super().__init__(images, batch, seed)
        if not 0 <= flip <= 1:
            raise UsageError(f"flip {flip} is not a probability: 0.5 mirrors half of the pictures")
        self.encode, self.start, self.flip = encode, start, flip

    def pictures(self, step: int) -> Batch:
        """The batch of a step."""
        pixels = self._pixels(self.places(step))
        if self.flip:
            mirrored = (torch.rand(len(pixels), generator=self._random("flip", step)) < self.flip).numpy()
            pixels[mirrored] = pixels[mirrored, :, ::-1]
        return self._tokens(pixels)

    def once(self, batch: int) -> Iterator[Batch]:
        """All pictures in order as they are, in batches of which the last may be shorter."""
        return (self._tokens(self._pixels(places)) for places in self._chunks(batch))

    def _tokens(self, pixels: np.ndarray) -> Batch:
        targets = self.encode(pixels)  # (B, T)
        inputs = torch.cat([torch.full_like(targets[:, :1], self.start), targets[:, :-1]], dim=1)
        return Batch(inputs, targets, weight=targets.numel())
