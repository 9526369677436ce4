"""A linear probe: what each layer of a painter knows of classes that it was never told of (Chen et al. 2020, 4.2).

Shapes: N pictures, B batch, T pixels of a picture, D width.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from nextile.base.errors import NextileError
from nextile.checkpoint.pretrained import Pretrained
from nextile.data.imageset import ImageSet
from nextile.data.pictures import open_pictures, split_pictures
from nextile.generation.decode import evaluating
from nextile.generation.paint import palette_of
from nextile.images.processor import Palette
from nextile.models.build import build
from nextile.nn.tap import record
from nextile.tasks.imagery import read_pictures, renumbered
from nextile.tasks.report import Report

BATCH_PIXELS = 16_384
ITERATIONS = 300  # of the logistic regression


def probe(
    pretrained: Pretrained, sources: Sequence[str], test: Sequence[str] = (), *, limit: int = 10_000,
    fraction: float = 0.2, seed: int = 0, report: Report,
) -> dict[str, Any]:  # fmt: skip
    """Accuracies of a logistic regression on the mean over pixels of what each layer gives.

    sources, test: labelled pictures to learn the regression from and to measure it on; without `test` a fraction of
    the sources. limit: pictures of each at most. Returns {"layers": {"embedding": a, "layer 1": b, ...}, "pixels":
    that on the raw pixels, "untrained": the best layer of the same network with random weights}.
    Errors: UsageError for a model that is no painter; NextileError for what are no labelled pictures.
    """
    palette = palette_of(pretrained)
    with TemporaryDirectory(prefix="nextile-probe-") as folder:
        train, held_out = _parts(pretrained, sources, test, limit, fraction, seed, Path(folder), report)
        labels = train.labels, held_out.labels
        random = build(pretrained.spec, seed=seed, device=next(pretrained.model.parameters()).device)
        found = []
        for title, model in (("reading the layers", pretrained.model), ("reading untrained layers", random)):
            features = [_features(model, palette, part, title, report) for part in (train, held_out)]
            with report.bar("fitting", len(features[0]), "layers") as bar:
                shares = {}
                for name in features[0]:
                    shares[name] = accuracy(features[0][name], labels[0], features[1][name], labels[1])
                    bar.advance()
            found.append(shares)
        flat = [np.asarray(part.pixels).reshape(len(part), -1) / 255 for part in (train, held_out)]
        return {
            "layers": found[0],
            "pixels": accuracy(flat[0], labels[0], flat[1], labels[1]),
            "untrained": max(found[1].values()),
        }


def _parts(
    pretrained: Pretrained, sources: Sequence[str], test: Sequence[str], limit: int, fraction: float, seed: int,
    folder: Path, report: Report,
) -> tuple[ImageSet, ImageSet]:  # fmt: skip
    corpus = open_pictures(sources, labelled=True)
    if test:
        other = renumbered(open_pictures(test, labelled=True), corpus.classes)
        random = np.random.default_rng(seed)
        parts = [(one, random.permutation(len(one))) for one in (corpus, other)]
    else:
        parts = [(corpus, part) for part in split_pictures(corpus, fraction, seed)]
    train, held_out = (
        read_pictures(source, np.sort(part[:limit]), folder / name, pretrained.images, report)
        for name, (source, part) in zip(("train", "test"), parts, strict=True)
    )
    return train, held_out


@torch.no_grad()
def _features(model: Any, palette: Palette, images: ImageSet, title: str, report: Report) -> dict[str, np.ndarray]:
    """Of each layer the mean over the pixels of what it gives, (N, D)."""
    device, batch = next(model.parameters()).device, max(1, BATCH_PIXELS // palette.size**2)
    kept: dict[str, list[np.ndarray]] = {}
    with evaluating(model), report.bar(title, len(images), "pictures") as bar:
        for start in range(0, len(images), batch):
            ids = palette.inputs(np.asarray(images.pixels[start : start + batch]))
            begin = torch.full((len(ids), 1), palette.start_id)
            with record(model, "embed.tokens", "stack.blocks.*.stream") as seen:
                model.features(torch.cat((begin, ids[:, :-1]), dim=1).to(device))  # (B, T, D)
            for name, values in seen.items():
                kept.setdefault(_named(name), []).append(values.float().mean(1).cpu().numpy())
            bar.advance(len(ids))
    return {name: np.concatenate(parts) for name, parts in kept.items()}


def _named(tap: str) -> str:
    """ "stack.blocks.2.stream" -> "layer 3"."""
    return "embedding" if tap.startswith("embed") else f"layer {int(tap.split('.')[2]) + 1}"


def accuracy(x: np.ndarray, labels: np.ndarray, y: np.ndarray, truth: np.ndarray) -> float:
    """Of a logistic regression of labels on x (N, D), what share of truth it gets right from y; D is standardised."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise NextileError("a probe needs scikit-learn: pip install 'nextile[images]'") from error
    mean, std = x.mean(0), x.std(0) + 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that more iterations would move it a little further
        fitted = LogisticRegression(max_iter=ITERATIONS, C=0.1).fit((x - mean) / std, labels)
    return float((fitted.predict((y - mean) / std) == truth).mean())
