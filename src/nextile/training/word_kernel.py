"""Word vectors learned one word after the other, as word2vec does (Mikolov et al. 2013), compiled by numba.

Shapes: B rows of T words, V vocabulary, P numbers of a row of the tables with its padding, K targets.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

STEPS = 1024  # of the usual tables of the logistic function
REACH = 6.0  # beyond it that function counts as 0 or 1, and nothing is learned (word2vec)


def logistic_tables(steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """The logistic function and its negative logarithm from -REACH to REACH, (steps + 1,) float32 each."""
    x = np.linspace(-REACH, REACH, steps + 1)
    return (1 / (1 + np.exp(-x))).astype(np.float32), np.log1p(np.exp(-x)).astype(np.float32)


@cache
def predictor(width: int) -> Callable[..., Any]:
    """The function that tells a right word from wrong ones and learns from it, for rows of P = width numbers.

    predict(hidden (P,), change (P,), targets (K,), scores (K,), output (V, P), rate, sigmoid, surprise) -> nats. The
    first target is right, the others are wrong, and left out where they are the right one. Moves their rows of
    `output`, and leaves in `change` what is to be added to what `hidden` is made of.
    """
    from numba import njit

    reach, one, zero, half = np.float32(REACH), np.float32(1.0), np.float32(0.0), np.float32(0.5)

    @njit(nogil=True, fastmath=True, cache=True, inline="always")
    def predict(hidden, change, targets, scores, output, rate, sigmoid, surprise):
        for k in range(len(targets)):  # all products first, so that they wait for memory together
            score, row = zero, targets[k]
            for d in range(width):
                score += hidden[d] * output[row, d]
            scores[k] = score
        change[:] = zero
        loss, steps = zero, len(sigmoid) - 1
        scale = np.float32(steps) / (reach + reach)
        for k in range(len(targets)):
            row = targets[k]
            if k > 0 and row == targets[0]:
                continue
            score = scores[k] if k == 0 else -scores[k]  # how right it is
            place = min(max(np.int64((score + reach) * scale + half), 0), steps)  # never beyond the tables
            loss += surprise[place]
            if abs(score) >= reach:
                continue
            step = (one - sigmoid[place]) * rate
            step = step if k == 0 else -step
            for d in range(width):
                change[d] += step * output[row, d]
                output[row, d] += step * hidden[d]
        return loss

    return predict


@cache
def kernel(width: int, skip_gram: bool) -> Callable[..., Any]:
    """The function that learns from rows of words, for tables of this padded width; its machine code is kept on disk.

    It returns the summed nats and how many words were predicted. Several threads may call it on the same tables: it
    takes no lock, and now and then one overwrites what another has just learned (Hogwild: Niu et al. 2011).
    """
    from numba import njit

    predict = predictor(width)
    multiplier, increment = np.uint64(6364136223846793005), np.uint64(1442695040888963407)  # Knuth's MMIX generator
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)

    @njit(nogil=True, fastmath=True, cache=True)
    def learn(inputs, output, rows, end, keep, chance, other, rate, window, negatives, state, sigmoid, surprise):
        kept = np.empty(rows.shape[1], np.uint64)
        hidden, change = np.empty(width, np.float32), np.empty(width, np.float32)
        targets, scores = np.empty(negatives + 1, np.uint64), np.empty(negatives + 1, np.float32)
        loss, predicted = 0.0, 0
        for b in range(rows.shape[0]):
            t = 0
            while t < rows.shape[1]:
                n = 0
                while t < rows.shape[1] and rows[b, t] != end:  # frequent words are often left out
                    state = state * multiplier + increment
                    if (state >> half) <= keep[rows[b, t]]:
                        kept[n] = rows[b, t]
                        n += 1
                    t += 1
                t += 1
                for i in range(n):
                    state = state * multiplier + increment
                    reach = window - np.int64(((state >> half) * np.uint64(window)) >> half)
                    first, last = max(0, i - reach), min(n, i + reach + 1)
                    targets[0] = kept[i]
                    if skip_gram:
                        for j in range(first, last):
                            if j == i:
                                continue
                            row = kept[j]
                            for k in range(1, negatives + 1):
                                state = state * multiplier + increment
                                spot = (state >> half) * np.uint64(len(chance))
                                place = spot >> half
                                targets[k] = place if (spot & low) < chance[place] else other[place]
                            for d in range(width):
                                hidden[d] = inputs[row, d]
                            loss += predict(hidden, change, targets, scores, output, rate, sigmoid, surprise)
                            predicted += 1
                            for d in range(width):
                                inputs[row, d] += change[d]
                        continue
                    if last - first < 2:
                        continue
                    for k in range(1, negatives + 1):
                        state = state * multiplier + increment
                        spot = (state >> half) * np.uint64(len(chance))
                        place = spot >> half
                        targets[k] = place if (spot & low) < chance[place] else other[place]
                    hidden[:] = np.float32(0.0)
                    for j in range(first, last):
                        if j != i:
                            row = kept[j]  # named, so that the loop is seen to read one row
                            for d in range(width):
                                hidden[d] += inputs[row, d]
                    share = np.float32(1.0) / np.float32(last - first - 1)
                    for d in range(width):
                        hidden[d] *= share
                    loss += predict(hidden, change, targets, scores, output, rate, sigmoid, surprise)
                    predicted += 1
                    for j in range(first, last):
                        if j != i:
                            row = kept[j]
                            for d in range(width):
                                inputs[row, d] += change[d]
        return loss, predicted

    return learn
