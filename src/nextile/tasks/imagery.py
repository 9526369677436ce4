"""Pictures as arrays on disk: what tasks about pictures have in common, as tasks about text have their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from nextile.base.errors import NextileError
from nextile.checkpoint.pretrained import Pretrained
from nextile.checkpoint.store import Processor
from nextile.data.imageset import ImageSet, open_images, write_images
from nextile.data.pictures import PictureCorpus, open_pictures, split_pictures
from nextile.images.processor import ImageProcessor, Normaliser, Palette
from nextile.tasks.report import Report
from nextile.tasks.settings import RunSettings

NAMED = 3  # broken pictures that are named; the others are counted


def images_only(processor: Processor, folder: Path) -> Normaliser | Palette:
    """The processor, if it is one of pictures. Errors: NextileError where it is one of text."""
    if not isinstance(processor, (Normaliser, Palette)):
        raise NextileError(f"'{folder}' holds pictures and its model reads text: train anew")
    return processor


def picture_facts(processor: ImageProcessor, train: ImageSet, held_out: ImageSet) -> list[tuple[str, str]]:
    """What the user is told of pictures."""
    kind = "grey" if processor.channels == 1 else "in colour"
    return [
        ("pictures", f"{len(train) + len(held_out):,}, {processor.size} x {processor.size} {kind}"),
        ("training", f"{len(train):,} pictures"),
        ("validation", f"{len(held_out):,} pictures, never trained on"),
    ]


def read_parts(
    corpus: PictureCorpus,
    settings: RunSettings,
    folder: Path,
    processor: ImageProcessor,
    report: Report,
    labelled: bool,
) -> tuple[ImageSet, ImageSet]:
    """What to train on and what to validate on, decoded: a corpus of its own for that, or what is held out."""
    if corpus.note:
        report.warn(corpus.note)
    if settings.validation.data:
        other = renumbered(open_pictures(settings.validation.data, labelled=labelled), corpus.classes)
        parts = [(corpus, np.arange(len(corpus))), (other, np.arange(len(other)))]
    else:
        parts = [(corpus, part) for part in split_pictures(corpus, settings.validation.fraction, settings.seed)]
    names = ("train", "validation")
    train, held_out = (
        read_pictures(source, part, folder / name, processor, report)
        for name, (source, part) in zip(names, parts, strict=True)
    )
    return train, held_out


def read_pictures(
    corpus: PictureCorpus, indices: np.ndarray, folder: Path, processor: ImageProcessor, report: Report
) -> ImageSet:
    """These pictures of a corpus, decoded, in `folder`; what is broken is left out and said."""
    with report.bar(f"reading pictures ({folder.name})", len(indices), "pictures") as bar:
        images, broken = write_images(folder, corpus, indices, processor.open, bar.update, {})
    for line in broken[:NAMED]:
        report.warn(f"left out: {line}")
    if len(broken) > NAMED:
        report.warn(f"left out: {len(broken) - NAMED:,} more pictures that cannot be read")
    return images


def evaluated(
    pretrained: Pretrained, sources: Sequence[str], folder: Path, report: Report, classes: Sequence[str] = ()
) -> ImageSet:
    """What a model is measured on, decoded in `folder`: pictures, of these classes where it knows some.

    None: what was held out of the run that it comes from. Errors: NextileError when it comes from none.
    """
    if sources:
        corpus = renumbered(open_pictures(sources, labelled=bool(classes)), classes)
        if corpus.note:
            report.warn(corpus.note)
        return read_pictures(corpus, np.arange(len(corpus)), folder / "all", pretrained.images, report)
    own = (pretrained.folder or Path()) / "data" / "validation"
    if not own.exists():
        raise NextileError(f"{pretrained.called} has no held-out pictures of its own: name pictures to evaluate on")
    return open_images(own)


def renumbered(corpus: PictureCorpus, classes: Sequence[str]) -> PictureCorpus:
    """The corpus with the numbers that its classes have elsewhere. Errors: NextileError for one that is not there."""
    if not classes:
        return corpus
    unknown = [name for name in corpus.classes if name not in classes]
    if unknown:
        raise NextileError(
            f"'{corpus.name}' has the class '{unknown[0]}', which is none of {', '.join(classes[:10])}: "
            "name it as one of them, or leave it out"
        )
    numbers = np.array([classes.index(name) for name in corpus.classes])
    return replace(corpus, classes=tuple(classes), labels=numbers[corpus.labels])
