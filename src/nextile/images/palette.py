"""Colours as tokens: a palette learned by k-means, and pictures as the numbers of their colours.

Chen et al. 2020 (image-GPT): 512 colours in place of 256 ** 3 leave one token to a pixel.
Shapes: N colours, C channels, 1 or 3; pixels are uint8 (..., C), colours float32 (N, C) in -1..1, which is
value / 127.5 - 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np

from nextile.base.errors import NextileError, UsageError

SAMPLE = 200_000  # pixels that the colours are learned from
ROUNDS = 50  # of k-means at most
DIGITS = 6  # of a colour, so that the order in which threads add up leaves no trace

_PIECE = 1 << 20  # pixels looked at at once
_SCORES = 1 << 17  # pixels x colours compared at once: they fit a processor's cache
_FEW = 1 << 18  # pixels that are sorted sooner than looked up in a table of all colours
_EQUAL = 1e-12  # squared distances nearer than this differ by rounding alone


# --- distinct colours ----------------------------------------------------------------------------------------------


def _rows(pixels: np.ndarray) -> np.ndarray:
    """Uint8 (..., C) -> (n, C). Errors: UsageError for what is no pixels."""
    if pixels.dtype != np.uint8 or pixels.ndim < 1 or pixels.shape[-1] not in (1, 3):
        raise UsageError(f"{pixels.dtype} {pixels.shape} are no pixels: give uint8 (..., 1 or 3)")
    return pixels.reshape(-1, pixels.shape[-1])


def _pieces(count: int, length: int) -> Iterator[slice]:
    """Slices of `length` that cover `count` rows."""
    return (slice(start, start + length) for start in range(0, count, length))


def _codes(rows: np.ndarray) -> np.ndarray:
    """Each pixel as one number, uint8 (n, C) -> int32 (n,): red * 65536 + green * 256 + blue."""
    codes = np.zeros(len(rows), np.int32)
    for channel in range(rows.shape[1]):
        codes = codes << 8 | rows[:, channel]
    return codes


def _pixels(codes: np.ndarray, channels: int) -> np.ndarray:
    """(n,) numbers -> uint8 (n, C): the opposite of `_codes`."""
    shifts = np.arange(channels - 1, -1, -1) * 8
    return (codes[:, None] >> shifts).astype(np.uint8)


def _distinct(rows: np.ndarray) -> np.ndarray:
    """The numbers of the pixels that occur, uint8 (n, C) -> (m,), ascending."""
    if len(rows) < _FEW:
        return np.unique(_codes(rows))
    seen = np.zeros(1 << 8 * rows.shape[1], np.bool_)
    for piece in _pieces(len(rows), _PIECE):
        seen[_codes(rows[piece])] = True
    return np.flatnonzero(seen)


def _scaled(pixels: np.ndarray) -> np.ndarray:
    return pixels / 127.5 - 1


# --- learning ------------------------------------------------------------------------------------------------------


def learn_colours(pixels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` colours that stand for pixels, uint8 (..., C), with little squared error: float32 (count, C) in -1..1.

    They are learned by k-means from a sample of SAMPLE pixels and sorted by brightness, so that near numbers are near
    colours; the same pixels and seed give the same. Pixels of fewer colours give those, and so fewer rows.
    Errors: NextileError without scikit-learn, UsageError for no pixels or no colours.
    """
    rows = _rows(pixels)
    if not len(rows) or count < 1:
        raise UsageError(f"{count} colours cannot be learned from {len(rows)} pixels: give some of both")
    distinct = _distinct(rows)
    if len(distinct) <= count:
        return _sorted(_scaled(_pixels(distinct, rows.shape[1])))
    if len(rows) > SAMPLE:
        rows = rows[np.random.default_rng(seed % 2**32).integers(0, len(rows), SAMPLE)]
    sample, weights = np.unique(_codes(rows), return_counts=True)
    return _sorted(_means(_scaled(_pixels(sample, rows.shape[1])), weights, min(count, len(sample)), seed))


def _means(points: np.ndarray, weights: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The centres of weighted distinct points, (n, C) -> (count, C), for count <= n."""
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise NextileError("learning colours needs scikit-learn: pip install 'nextile[images]'") from error
    means = KMeans(count, max_iter=ROUNDS, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that two of the centres are one is seen to by `_sorted`
        return means.fit(points, sample_weight=weights.astype(np.float64)).cluster_centers_


def _sorted(colours: np.ndarray) -> np.ndarray:
    """Float32 (n, C), each colour once, dark to bright as the eye has it (ITU-R BT.601)."""
    colours = np.unique(colours.round(DIGITS).clip(-1, 1).astype(np.float32), axis=0)
    weights = np.array([0.299, 0.587, 0.114] if colours.shape[1] == 3 else [1.0])
    return colours[np.argsort(colours @ weights, kind="stable")]


# --- pictures as numbers of colours, and back ----------------------------------------------------------------------


def nearest(pixels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """The number of the nearest colour by squared distance, the lowest of equals: uint8 (..., C) -> int64 (...)."""
    rows, channels = _rows(pixels), colours.shape[1]
    if rows.shape[1] != channels:
        raise UsageError(f"pixels of shape {pixels.shape} do not go with colours of {channels} channels")
    distinct = _distinct(rows)
    found = _search(_scaled(_pixels(distinct, channels)), colours)
    return _look_up(rows, distinct, found).reshape(pixels.shape[:-1])


def _look_up(rows: np.ndarray, distinct: np.ndarray, found: np.ndarray) -> np.ndarray:
    """What was found, (m,), for the distinct numbers, (m,), as int64 (n,) for every pixel, uint8 (n, C)."""
    if len(rows) < _FEW:
        return found[np.searchsorted(distinct, _codes(rows))]
    table = np.zeros(1 << 8 * rows.shape[1], np.int32)
    table[distinct] = found
    result = np.empty(len(rows), np.int64)
    for piece in _pieces(len(rows), _PIECE):
        result[piece] = table[_codes(rows[piece])]
    return result


def _search(points: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """The nearest of the colours (N, C) for float64 (n, C): int64 (n,)."""
    colours = colours.astype(np.float64)
    squares, products = (colours**2).sum(1), -2 * colours.T
    found = np.empty(len(points), np.int64)
    for piece in _pieces(len(points), max(1, _SCORES // len(colours))):
        scores = points[piece] @ products  # |p - c|^2 less |p|^2, which is the same for all colours
        scores += squares
        found[piece] = (scores <= scores.min(1, keepdims=True) + _EQUAL).argmax(1)
    return found


def colours_of(ids: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """The pixels that numbers of colours stand for, (...) -> uint8 (..., C). Errors: NextileError for other numbers."""
    ids = np.asarray(ids)
    if ids.size and not 0 <= ids.min() <= ids.max() < len(colours):
        wrong = int(ids.max() if ids.min() >= 0 else ids.min())
        raise NextileError(f"token {wrong} is no colour: the palette has 0 to {len(colours) - 1}")
    return np.rint((colours.astype(np.float64) + 1) * 127.5).clip(0, 255).astype(np.uint8)[ids]
