"""Word vectors learned one word after the other, as word2vec does (Mikolov et al. 2013), compiled by numba.

Shapes: B rows of T words, V vocabulary, P numbers of a row of the tables with its padding, K targets.
Whoever imports this needs numba.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

STEPS = 1024  # of the usual tables of the logistic function
REACH = np.float32(6.0)  # beyond it that function counts as 0 or 1, and nothing is learned (word2vec)
MULTIPLIER, INCREMENT = np.uint64(6364136223846793005), np.uint64(1442695040888963407)  # Knuth's MMIX generator
HALF, LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


def logistic_tables(steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """The logistic function and its negative logarithm from -REACH to REACH, (steps + 1,) float32 each."""
    x = np.linspace(-REACH, REACH, steps + 1)
    return (1 / (1 + np.exp(-x))).astype(np.float32), np.log1p(np.exp(-x)).astype(np.float32)


@njit(nogil=True, fastmath=True, cache=True, inline="always")
def predict(hidden, change, targets, scores, output, rate, sigmoid, surprise, width):
    """Tell a right word from wrong ones, and learn from it: the nats that it cost.

    hidden, change (P,), targets, scores (K,), output (V, P), the two tables of the logistic function, width = P. The
    first target is right, the others are wrong, and left out where they are the right one. Moves their rows of
    `output`, and leaves in `change` what is to be added to what `hidden` is made of.
    """
    for k in range(len(targets)):  # all products first, so that they wait for memory together
        score, row = np.float32(0.0), targets[k]
        for d in range(width):
            score += hidden[d] * output[row, d]
        scores[k] = score
    change[:] = np.float32(0.0)
    loss, steps = np.float32(0.0), len(sigmoid) - 1
    scale = np.float32(steps) / (REACH + REACH)
    for k in range(len(targets)):
        row = targets[k]
        if k > 0 and row == targets[0]:
            continue
        score = scores[k] if k == 0 else -scores[k]  # how right it is
        place = min(max(np.int64((score + REACH) * scale + np.float32(0.5)), 0), steps)  # never beyond the tables
        loss += surprise[place]
        if abs(score) >= REACH:
            continue
        step = (np.float32(1.0) - sigmoid[place]) * rate
        step = step if k == 0 else -step
        for d in range(width):
            change[d] += step * output[row, d]
            output[row, d] += step * hidden[d]
    return loss


@intrinsic
def fetch(typing_context, address):
    """Ask for the cache line at an address, an integer, before it is needed: half of the time goes into waiting."""

    def generate(context, builder, signature, arguments):
        pointer, number = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer()), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        call = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(call, [pointer, number(1), number(3), number(1)])  # to be written, to stay near, data
        return context.get_dummy_value()

    return types.void(types.uintp), generate


@njit(nogil=True, fastmath=True, cache=True, inline="always")
def fetch_row(table, row, width):
    """The lines of a row of a table (V, P)."""
    start = np.uintp(table.ctypes.data) + np.uintp(row) * np.uintp(4 * width)
    for line in range(0, 4 * width, 64):
        fetch(start + np.uintp(line))  # type: ignore[call-arg] (numba gives the context)


@njit(nogil=True, fastmath=True, cache=True, inline="always")
def next_negatives(targets, ahead, state, chance, other, output, width):
    """Targets take the negatives that were drawn ahead, and others are drawn, and fetched, for the next prediction.

    targets and ahead (K,), without their first; chance and other (V,): an alias table. The generator's new state.
    """
    for k in range(1, len(targets)):
        targets[k] = ahead[k]
        state = state * MULTIPLIER + INCREMENT
        spot = (state >> HALF) * np.uint64(len(chance))  # its upper half is a place, its lower half a chance
        place = spot >> HALF
        ahead[k] = place if (spot & LOW) < chance[place] else other[place]
        fetch_row(output, ahead[k], width)
    return state


@cache
def kernel(width: int, skip_gram: bool) -> Callable[..., Any]:
    """The function that learns from rows of words, for tables of this padded width; its machine code is kept on disk.

    It returns the summed nats and how many words were predicted. Several threads may call it on the same tables: it
    takes no lock, and now and then one overwrites what another has just learned (Hogwild: Niu et al. 2011). It checks
    no bounds: every word must have a row.
    """

    @njit(nogil=True, fastmath=True, cache=True)
    def learn(inputs, output, rows, end, keep, chance, other, rate, window, negatives, state, sigmoid, surprise):
        kept = np.empty(rows.shape[1], np.uint64)
        hidden, change = np.empty(width, np.float32), np.empty(width, np.float32)
        targets, ahead = np.empty(negatives + 1, np.uint64), np.empty(negatives + 1, np.uint64)
        scores = np.empty(negatives + 1, np.float32)
        loss, predicted = 0.0, 0
        state = next_negatives(ahead, ahead, state, chance, other, output, width)
        for b in range(rows.shape[0]):
            t = 0
            while t < rows.shape[1]:
                n = 0
                while t < rows.shape[1] and rows[b, t] != end:  # frequent words are often left out
                    state = state * MULTIPLIER + INCREMENT
                    if (state >> HALF) <= keep[rows[b, t]]:
                        kept[n] = rows[b, t]
                        n += 1
                    t += 1
                t += 1
                for i in range(n):
                    if i + 1 < n:
                        fetch_row(output, kept[i + 1], width)
                    if i + window + 1 < n:
                        fetch_row(inputs, kept[i + window + 1], width)
                    state = state * MULTIPLIER + INCREMENT
                    reach = window - np.int64(((state >> HALF) * np.uint64(window)) >> HALF)
                    first, last = max(0, i - reach), min(n, i + reach + 1)
                    targets[0] = kept[i]
                    if skip_gram:
                        for j in range(first, last):
                            if j == i:
                                continue
                            row = kept[j]
                            state = next_negatives(targets, ahead, state, chance, other, output, width)
                            for d in range(width):
                                hidden[d] = inputs[row, d]
                            loss += predict(hidden, change, targets, scores, output, rate, sigmoid, surprise, width)
                            predicted += 1
                            for d in range(width):
                                inputs[row, d] += change[d]
                        continue
                    if last - first < 2:
                        continue
                    state = next_negatives(targets, ahead, state, chance, other, output, width)
                    hidden[:] = np.float32(0.0)
                    for j in range(first, last):
                        if j != i:
                            row = kept[j]  # named, so that the loop is seen to read one row
                            for d in range(width):
                                hidden[d] += inputs[row, d]
                    share = np.float32(1.0) / np.float32(last - first - 1)
                    for d in range(width):
                        hidden[d] *= share
                    loss += predict(hidden, change, targets, scores, output, rate, sigmoid, surprise, width)
                    predicted += 1
                    for j in range(first, last):
                        if j != i:
                            row = kept[j]
                            for d in range(width):
                                inputs[row, d] += change[d]
        return loss, predicted

    return learn
