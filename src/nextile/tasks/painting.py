"""Painting: the corpus is pictures as colours in raster order, the model is asked for the next pixel (image-GPT).

Shapes: N pictures, B batch, T pixels of a picture, H x W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from nextile.base.device import choose_precision
from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.pretrained import Pretrained
from nextile.checkpoint.store import Processor, Spec
from nextile.data.batches import Batch, Steps
from nextile.data.imageset import ImageSet, PixelBatches, open_images
from nextile.data.pictures import PictureCorpus, open_pictures
from nextile.generation.beam import Beams
from nextile.generation.paint import paint, paint_by_beams, palette_of
from nextile.generation.sample import Sampling
from nextile.images.augment import Augment
from nextile.images.pixels import save_png
from nextile.images.processor import ImageProcessor, Palette, palette_for
from nextile.models.build import AnyModel
from nextile.models.families import imagegpt
from nextile.nn import specs
from nextile.tasks.imagery import evaluated, images_only, picture_facts, read_parts
from nextile.tasks.report import Report, counted
from nextile.tasks.settings import RunSettings
from nextile.tasks.shapes import preset_of, with_heads
from nextile.tasks.sheets import completions, sheet
from nextile.tasks.task import GradientTask, all_but
from nextile.training.loop import evaluate
from nextile.training.metrics import pixel_measures
from nextile.training.objectives import next_token

PRESETS = {"imagegpt": imagegpt}
USUAL = 16  # pixels: the largest side that is taken unasked; a side twice as long has four times the tokens
BATCH_PIXELS = 8192  # of a batch that is measured
DRAWN, COMPLETED, TRIES = 16, 4, 3  # pictures of a preview: from nothing, and completed, so often each
# Changes of pictures that a painter would learn to paint.
PAINTED = tuple(f"augment.{name}" for name in Augment.model_fields if name != "flip")


@dataclass(frozen=True)
class PaintData:
    """Pictures, decoded, and the palette that makes tokens of them."""

    processor: Palette
    train: ImageSet
    held_out: ImageSet
    flip: float

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What the user is told of it."""
        colours = len(self.processor.colours)
        return [*picture_facts(self.processor, self.train, self.held_out), ("palette", f"{colours} colours")]

    @property
    def train_tokens(self) -> int:
        """Pixels to learn from."""
        return len(self.train) * self.processor.size**2

    @property
    def validation_tokens(self) -> int:
        """Pixels that are held out."""
        return len(self.held_out) * self.processor.size**2

    def context(self, usual: int) -> int:
        """The pixels of a picture."""
        return self.processor.size**2

    def enough(self, rows: float) -> bool:
        """Always: a larger model learns more from what is seen once."""
        return True

    def check(self, context: int) -> str | None:
        """Nothing to tell. Errors: UsageError for a context that is no picture."""
        if context != self.processor.size**2:
            raise UsageError(f"a row is a picture of {self.processor.size**2} pixels, not {context}: set images.size")
        return None

    def batches(self, *, context: int, batch: int, accumulate: int, seed: int) -> Steps:
        """Pictures, each once an epoch, some turned left to right."""
        return Steps(self._rows(self.train, batch, seed, self.flip), accumulate)

    def once(self) -> Iterable[Batch]:
        """All that are held out, as they are."""
        batch = max(1, BATCH_PIXELS // self.processor.size**2)
        return self._rows(self.held_out, batch, 0, 0.0).once(batch)

    def _rows(self, images: ImageSet, batch: int, seed: int, flip: float) -> PixelBatches:
        palette = self.processor
        return PixelBatches(images, palette.inputs, start=palette.start_id, batch=batch, seed=seed, flip=flip)

    def measure(self, model: AnyModel, *, context: int, precision: torch.dtype) -> dict[str, float]:
        """Nats per pixel, perplexity, bits per dimension of the pictures in the palette's colours."""
        nats, asked = evaluate(model, self.once(), next_token, precision=precision)
        return pixel_measures(nats, asked, self.processor.channels)

    def preview(self, pretrained: Pretrained, seed: int) -> tuple[str, str]:
        """Pictures from nothing, and held-out ones completed from their upper half, as samples and completions."""
        sampling = Sampling(temperature=1.0, seed=seed)
        drawn = paint(pretrained, [[]] * DRAWN, sampling)
        given = np.asarray(self.held_out.pixels[:COMPLETED])
        painted = complete_halves(pretrained, given, sampling, TRIES)
        if pretrained.folder is None:
            return "painted", f"{DRAWN} pictures"
        save_png(pretrained.folder / "samples.png", sheet(drawn))
        whole = completions(given, self.processor.size // 2, painted, given)
        save_png(pretrained.folder / "completions.png", whole)
        told = f"{pretrained.folder / 'samples.png'}: {DRAWN} pictures; completions.png: upper halves completed"
        return "painted", told


def complete_halves(
    pretrained: Pretrained, pixels: np.ndarray, sampling: Sampling, n: int,
    progress: Callable[[int], object] | None = None,
) -> np.ndarray:  # fmt: skip
    """n completions of the upper half of each picture, uint8 (N, H, W, C) -> (N, n, H, W, C)."""
    palette = palette_of(pretrained)
    given = palette.inputs(pixels)[:, : palette.size // 2 * palette.size].tolist()
    wanted = [beginning for beginning in given for _ in range(n)]
    painted = paint(pretrained, wanted, sampling, progress=progress)
    return painted.reshape(len(pixels), n, *pixels.shape[1:])


class Painting(GradientTask):
    """`--task paint`."""

    name = "paint"
    preset = "imagegpt"
    dropout = 0.1
    counts = "pixels"
    unread: Collection[str] = ("tokenizer", "context", *all_but("images", "augment"), *PAINTED)

    def suits(self, sources: Sequence[str]) -> bool:
        """Never unasked: pictures are classified."""
        return False

    def prepare(
        self, sources: Sequence[str], settings: RunSettings, folder: Path, report: Report, base: Pretrained | None
    ) -> PaintData:
        """Read, split and decode pictures, and learn their palette. Errors: NextileError for what are none."""
        palette = None if base is None else _palette_of(base, settings)
        corpus = open_pictures(sources, labelled=False)
        plain = palette or _plain(corpus, settings)
        train, held_out = read_parts(corpus, settings, folder, plain, report, labelled=False)
        if palette is None:
            with report.bar("learning the palette", 1, "palette") as bar:
                palette = palette_for(np.asarray(train.pixels), settings.images.colours, settings.seed)
                bar.update(1)
        return PaintData(palette, train, held_out, _flip(settings, palette))

    def open(self, folder: Path, settings: RunSettings, processor: Processor) -> PaintData:
        """What `prepare` stored."""
        palette = images_only(processor, folder)
        if not isinstance(palette, Palette):
            raise NextileError(f"'{folder}' is of a painter and its model has no palette: train anew")
        train, held_out = (open_images(folder / name) for name in ("train", "validation"))
        return PaintData(palette, train, held_out, _flip(settings, palette))

    def spec(
        self, preset: str, size: Mapping[str, int], asked: Mapping[str, int], *, data: PaintData, context: int,
        dropout: float,
    ) -> Spec:  # fmt: skip
        """Image-GPT's shape in this size; a preset such as "imagegpt-small" brings its own. What is asked wins."""
        family, own = preset_of(preset, PRESETS)
        return family.spec(
            vocab=data.processor.vocab_size, context=context, dropout=dropout, **with_heads({**(own or size), **asked})
        )

    def trial(self, folder: Path) -> str:
        """The command that shows what the model does."""
        return f"nextile paint {folder} --n 16 --out sheet.png"


def _palette_of(base: Pretrained, settings: RunSettings) -> Palette:
    """That of the model to begin from. Errors: UsageError when it is no painter, or one of another size."""
    palette, size = base.processor, settings.images.size
    if not isinstance(palette, Palette) or not isinstance(base.spec, specs.Transformer):
        raise UsageError(f"a run of the task 'paint' cannot begin from {base.called}, a model of another kind")
    if size not in (None, palette.size):
        raise UsageError(f"images.size {size}: {base.called} paints {palette.size}: leave it out")
    return palette


def _plain(corpus: PictureCorpus, settings: RunSettings) -> ImageProcessor:
    size = settings.images.size or min(corpus.side, USUAL)
    return ImageProcessor(size=size, channels=1 if corpus.grey else 3)


def _flip(settings: RunSettings, palette: Palette) -> float:
    """How often a picture is turned left to right."""
    return settings.augment.chosen(palette.size, palette.channels).flip


# --- using a painter ------------------------------------------------------------------------------------------------


def painted(
    pretrained: Pretrained, sampling: Sampling, n: int, start: str | Path | bytes | None, report: Report
) -> np.ndarray:
    """n pictures from nothing, or from the upper half of a picture: uint8 (n, H, W, C)."""
    beginning, palette = _beginning(pretrained, start, n), palette_of(pretrained)
    with report.bar("painting", n * (palette.size**2 - len(beginning)), "pixels") as bar:
        return paint(pretrained, [beginning] * n, sampling, progress=bar.advance)


def likeliest(pretrained: Pretrained, beams: Beams, n: int, start: str | Path | bytes | None) -> np.ndarray:
    """The n most probable pictures that beams find, from nothing, or from the upper half of a picture."""
    return paint_by_beams(pretrained, [_beginning(pretrained, start, n)], beams, n)


def _beginning(pretrained: Pretrained, start: str | Path | bytes | None, n: int) -> list[int]:
    """The colours of the upper half of a picture. Errors: UsageError for no picture asked for."""
    palette = palette_of(pretrained)
    if n < 1:
        raise UsageError(f"n is {n}: ask for at least 1 picture")
    if start is None:
        return []
    pixels = palette.open(start if isinstance(start, bytes) else Path(start))
    return palette.inputs(pixels[None])[0, : palette.size // 2 * palette.size].tolist()


# --- how well a model paints ----------------------------------------------------------------------------------------


def evaluate_painter(pretrained: Pretrained, sources: Sequence[str], report: Report) -> dict[str, float]:
    """Nats per pixel and bits per dimension of pictures; none: of those held out of the run that the model is from.

    Bits per dimension are those of the pictures in the palette's colours, which are fewer than all there are.
    Errors: NextileError for what are no pictures; UsageError for a model that is no painter.
    """
    palette = palette_of(pretrained)
    with TemporaryDirectory(prefix="nextile-evaluate-") as folder:
        images = evaluated(pretrained, sources, Path(folder), report)
        data = PaintData(palette, images, images, 0.0)
        precision = choose_precision("auto", next(pretrained.model.parameters()).device)
        with report.bar("evaluating", data.validation_tokens, "pixels") as bar:
            nats, asked = evaluate(pretrained.model, counted(data.once(), bar), next_token, precision=precision)
        return pixel_measures(nats, asked, palette.channels)
