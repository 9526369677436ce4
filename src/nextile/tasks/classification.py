"""Classification: the corpus is pictures of known classes, the model is asked for the class of a picture.

Shapes: N pictures, B batch, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nextile.base.device import choose_precision
from nextile.base.errors import UsageError
from nextile.checkpoint.pretrained import Pretrained
from nextile.checkpoint.store import Processor, Spec
from nextile.data.batches import Batch, Steps
from nextile.data.imageset import ImageBatches, ImageSet, open_images
from nextile.data.pictures import are_pictures, open_pictures
from nextile.generation.decode import evaluating
from nextile.images.augment import Augment
from nextile.images.pixels import save_png
from nextile.images.processor import ImageProcessor, Normaliser, Palette, normaliser_for
from nextile.models.build import AnyModel, build
from nextile.models.families import compact, imagegpt, vit
from nextile.nn import specs
from nextile.nn.embed import resized_places
from nextile.tasks.imagery import evaluated, images_only, picture_facts, read_parts
from nextile.tasks.report import Report, counted
from nextile.tasks.settings import RunSettings
from nextile.tasks.shapes import preset_of, with_heads
from nextile.tasks.sheets import confusion, mistakes
from nextile.tasks.task import GradientTask, all_but
from nextile.training.loop import evaluate
from nextile.training.metrics import class_measures

PRESETS = {"compact": compact, "vit": vit}
USUAL = 64  # pixels: the largest side that is taken unasked; more is for a machine with a GPU
ANY = 1 << 24  # vectors; the longest context that a spec can have
EPOCHS = 10  # how often pictures are to be seen before a larger model learns more of them
PATCHES = 8  # of a small picture's side
LARGE, VIT_PATCH = 128, 16  # pixels: from this side on ViT's patches are what they are in the paper
ROWS = 128  # pictures of a step
MEASURED = 256  # pictures of a batch that is measured
SHOWN, WORST = 6, 64  # pictures of a preview, and of the sheet of mistakes
SETTINGS: Mapping[str, Any] = {"label_smoothing": 0.1}


def usual_patch(side: int) -> int:
    """ViT's own 16 for a large picture; else what divides a picture of this side into nearly PATCHES x PATCHES."""
    if side >= LARGE and side % VIT_PATCH == 0:
        return VIT_PATCH
    return min(
        (patch for patch in range(1, side + 1) if side % patch == 0), key=lambda patch: abs(side / patch - PATCHES)
    )


class Answers:
    """An objective that keeps what was answered: of each picture the log-probabilities of its classes."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        self._kept.append(model(*batch.given).float().log_softmax(-1))
        return -(batch.targets * self._kept[-1]).sum()

    @property
    def logprobs(self) -> Tensor:
        """(N, K), on the CPU."""
        return torch.cat(self._kept).cpu()


def reads_floats(processor: Normaliser | Palette) -> Callable[[Tensor], Tensor]:
    """What makes a model's inputs of pictures (B, C, H, W) from 0 to 255 that augmentation has left between levels."""
    if isinstance(processor, Palette):
        return lambda pixels: processor.inputs(pixels.round().byte().permute(0, 2, 3, 1).numpy())
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.mean, processor.std))
    return lambda pixels: (pixels / 255 - mean) / std


@dataclass(frozen=True)
class PictureData:
    """Pictures of known classes, decoded."""

    processor: Normaliser | Palette
    train: ImageSet
    held_out: ImageSet
    augment: Augment

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names."""
        return self.train.classes

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What the user is told of it."""
        return [*picture_facts(self.processor, self.train, self.held_out), ("classes", _few(self.classes))]

    @property
    def train_tokens(self) -> int:
        """Vectors to learn from, as many of each picture as a small model makes."""
        return len(self.train) * min(PATCHES, self.processor.size) ** 2

    @property
    def validation_tokens(self) -> int:
        """Vectors that are held out."""
        return len(self.held_out) * min(PATCHES, self.processor.size) ** 2

    def context(self, usual: int) -> int:
        """No limit: as many vectors as the model makes of a picture."""
        return ANY

    def enough(self, rows: float) -> bool:
        """EPOCHS of them: few pictures make few examples, and what is seen once is hardly learned."""
        return rows >= EPOCHS * len(self.train)

    def check(self, context: int) -> str | None:
        """Which classes nothing is held out of."""
        seen = set(self.held_out.labels.tolist())
        unseen = [name for number, name in enumerate(self.classes) if number not in seen]
        return f"nothing is held out of {_few(unseen)}: its accuracy is not measured" if unseen else None

    def batches(self, *, context: int, batch: int, accumulate: int, seed: int) -> Steps:
        """Pictures, each once an epoch, changed in ways that leave their class."""
        rows = ImageBatches(self.train, reads_floats(self.processor), batch=batch, seed=seed, augment=self.augment)
        return Steps(rows, accumulate)

    def once(self) -> Iterable[Batch]:
        """All that are held out, as they are."""
        return ImageBatches(self.held_out, reads_floats(self.processor), batch=1, seed=0, augment=None).once(MEASURED)

    def measure(self, model: AnyModel, *, context: int, precision: torch.dtype) -> dict[str, float]:
        """Nats per picture, and how many are right."""
        return self.measured(model, self.once(), precision)

    def measured(self, model: nn.Module, batches: Iterable[Batch], precision: torch.dtype) -> dict[str, float]:
        """The same by batches that are `once`, or are counted while they are."""
        answers = Answers()
        nats, asked = evaluate(model, batches, answers, precision=precision)
        right = int((answers.logprobs.argmax(-1).numpy() == self.held_out.labels).sum())
        return class_measures(nats, right, asked)

    def preview(self, pretrained: Pretrained, seed: int) -> tuple[str, str]:
        """What the first held-out pictures are taken for; the confusion matrix and the worst mistakes as pictures."""
        answers = Answers()
        evaluate(pretrained.model, self.once(), answers)
        probabilities = answers.logprobs.exp()
        chosen, shares = probabilities.argmax(-1).numpy(), probabilities.amax(-1).numpy()
        truth = self.held_out.labels
        lines = [
            f"{self.classes[truth[i]]}: {self.classes[chosen[i]]} {shares[i]:.0%}"
            for i in range(min(SHOWN, len(truth)))
        ]
        if pretrained.folder is not None:
            self._draw(pretrained.folder, chosen, shares)
            lines.append("confusion.png and mistakes.png show all of them, and the worst mistakes if there are any")
        return "held-out pictures, and what they are taken for", "\n".join(lines)

    def _draw(self, folder: Path, chosen: np.ndarray, shares: np.ndarray) -> None:
        truth = self.held_out.labels
        save_png(folder / "confusion.png", confusion(_counts(truth, chosen, self.classes), self.classes))
        (folder / "mistakes.png").unlink(missing_ok=True)  # an earlier validation's
        if (chosen != truth).any():
            save_png(folder / "mistakes.png", self._mistakes(chosen, shares))

    def _mistakes(self, chosen: np.ndarray, shares: np.ndarray) -> Any:
        """Those of which the model is most certain, first."""
        wrong = np.flatnonzero(chosen != self.held_out.labels)
        worst = wrong[np.argsort(-shares[wrong], kind="stable")][:WORST]
        named = [(self.classes[chosen[i]], self.classes[self.held_out.labels[i]]) for i in worst]
        captions = [
            (f"{taken}, {100 * shares[i]:.0f} %", f"is {true}") for i, (taken, true) in zip(worst, named, strict=True)
        ]
        title = f"{len(wrong):,} of {len(chosen):,} held-out pictures are taken for something else"
        return mistakes(np.asarray(self.held_out.pixels[worst]), captions, title)


def _counts(truth: np.ndarray, chosen: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """(K, K): of the pictures of each class, how many were taken for which."""
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (truth, chosen), 1)
    return counts


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more


class Classifying(GradientTask):
    """`--task classify`."""

    name = "classify"
    preset = "compact"
    dropout = 0.1
    counts = "pictures"
    rows: int | None = ROWS
    unread: Collection[str] = ("attention", "tokenizer", "context", "images.colours", *all_but("images", "augment"))
    settings: Mapping[str, Any] = SETTINGS

    def suits(self, sources: Sequence[str]) -> bool:
        """Pictures, by what is there."""
        return are_pictures(sources)

    def prepare(
        self, sources: Sequence[str], settings: RunSettings, folder: Path, report: Report, base: Pretrained | None
    ) -> PictureData:
        """Read, split and decode pictures. Errors: NextileError for what cannot be learned from."""
        corpus = open_pictures(sources, labelled=True)
        known = _read_by(base)
        plain = known or ImageProcessor(size=min(corpus.side, USUAL), channels=1 if corpus.grey else 3)
        plain = plain.model_copy(update={"size": settings.images.size or plain.size})
        train, held_out = read_parts(corpus, settings, folder, plain, report, labelled=True)
        processor = plain if isinstance(plain, (Normaliser, Palette)) else normaliser_for(train.pixels)
        return PictureData(processor, train, held_out, settings.augment.chosen(plain.size, plain.channels))

    def open(self, folder: Path, settings: RunSettings, processor: Processor) -> PictureData:
        """What `prepare` stored."""
        reads = images_only(processor, folder)
        train, held_out = (open_images(folder / name) for name in ("train", "validation"))
        return PictureData(reads, train, held_out, settings.augment.chosen(reads.size, reads.channels))

    def spec(
        self, preset: str, size: Mapping[str, int], asked: Mapping[str, int], *, data: PictureData, context: int,
        dropout: float,
    ) -> Spec:  # fmt: skip
        """A compact transformer or a ViT in this size; "vit-small" and others bring their own. What is asked wins."""
        family, own = preset_of(preset, PRESETS)
        side = data.processor.size
        patch = {"patch": usual_patch(side)} if family is vit else {}
        return family.spec(
            classes=data.classes, image=side, channels=data.processor.channels, dropout=dropout, **patch,
            **with_heads({**(own or size), **asked}),
        )  # fmt: skip

    def adapt(self, base: Pretrained, data: PictureData) -> AnyModel:
        """The model with these classes, for pictures of this size: what has another shape begins anew or is resized."""
        spec = _with_classes(base.spec, data.classes, data.processor.size)
        model = build(spec)
        old, new = base.model.state_dict(), model.state_dict()
        same_classes = isinstance(base.spec, specs.VisionTransformer) and base.spec.head.classes == data.classes
        for name, tensor in new.items():
            if name.startswith("head.") and not same_classes:
                continue
            found = old[name]
            if name == "embed.position.weight" and len(found) != len(tensor):
                found = resized_places(found, spec.context - spec.summaries, spec.summaries)
            tensor.copy_(found)
        return model

    def trial(self, folder: Path) -> str:
        """The command that shows what the model does."""
        return f"nextile classify {folder} picture.png"


def _read_by(base: Pretrained | None) -> Normaliser | Palette | None:
    """How the model to begin from reads pictures. Errors: UsageError when it reads none."""
    if base is None:
        return None
    if not isinstance(base.processor, (Normaliser, Palette)):
        raise UsageError(f"a run of the task 'classify' cannot begin from {base.called}, a model of another kind")
    return base.processor


def _with_classes(spec: Spec, classes: tuple[str, ...], size: int) -> specs.VisionTransformer:
    """The spec of a classifier, or of one made of a painter, for these classes and pictures of this size."""
    if isinstance(spec, specs.Transformer):
        spec = imagegpt.classifier(spec, classes)
    assert isinstance(spec, specs.VisionTransformer)
    if isinstance(spec.embed, specs.TokenEmbedding):
        if spec.context != size**2:
            raise UsageError(
                f"images.size {size} does not fit the {spec.context} pixels that the painter knows: leave the size out"
            )
        return spec.model_copy(update={"head": spec.head.model_copy(update={"classes": classes})})
    changed = {
        "embed": {**spec.embed.model_dump(), "image": size},
        "head": {**spec.head.model_dump(), "classes": classes},
    }
    return specs.VisionTransformer.model_validate({**spec.model_dump(), **changed})


# --- using a classifier ---------------------------------------------------------------------------------------------


def classify(pretrained: Pretrained, pictures: Sequence[str | Path | bytes], top: int) -> list[list[tuple[str, float]]]:
    """The `top` most probable classes of each picture, as (class, probability), most probable first.

    Errors: UsageError for a model that is no classifier; NextileError naming what is no picture.
    """
    classes = _classifier(pretrained).spec.head.classes
    if top < 1:
        raise UsageError(f"top is {top}: ask for at least 1 class")
    sources = [picture if isinstance(picture, bytes) else Path(picture) for picture in pictures]
    found = []
    for start in range(0, len(sources), MEASURED):
        pixels = np.stack([pretrained.images.open(source) for source in sources[start : start + MEASURED]])
        best = probabilities(pretrained, pixels).topk(min(top, len(classes)))
        for shares, numbers in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            found.append([(classes[number], share) for number, share in zip(numbers, shares, strict=True)])
    return found


@torch.no_grad()
def probabilities(pretrained: Pretrained, pixels: np.ndarray) -> Tensor:
    """Pictures, uint8 (N, H, W, C) as the model's processor opens them -> (N, K), on the CPU."""
    model = _classifier(pretrained)
    inputs = pretrained.images.inputs(pixels)
    with evaluating(model):
        return model(inputs.to(next(model.parameters()).device)).float().softmax(-1).cpu()


def _classifier(pretrained: Pretrained) -> Any:
    if not isinstance(pretrained.spec, specs.VisionTransformer):
        verb = "generate" if not isinstance(pretrained.processor, Palette) else "paint"
        raise UsageError(f"{pretrained.called} is no classifier of pictures: use nextile {verb}")
    return pretrained.model


def evaluate_classifier(pretrained: Pretrained, sources: Sequence[str], report: Report) -> dict[str, float]:
    """Nats per picture and accuracy; none: on what was held out of the run that the model comes from.

    Errors: NextileError for what are no pictures, and for a class that the model does not know.
    """
    model = _classifier(pretrained)
    with TemporaryDirectory(prefix="nextile-evaluate-") as folder:
        images = evaluated(pretrained, sources, Path(folder), report, model.spec.head.classes)
        data = PictureData(pretrained.images, images, images, Augment())
        precision = choose_precision("auto", next(model.parameters()).device)
        with report.bar("evaluating", len(images), "pictures") as bar:
            return data.measured(model, counted(data.once(), bar), precision)
