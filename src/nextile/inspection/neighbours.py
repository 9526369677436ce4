"""The words around a word, and what is to a word as another is to a third.

Shapes: V words, D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from nextile.inspection.vectors import Lookup, unit

Found = list[tuple[str, float]]


def near(lookup: Lookup, word: str, n: int = 10) -> Found:
    """The n words whose vectors point most nearly where a word's does, itself left out, with their cosines.

    Errors: NextileError for a word without a vector.
    """
    return _best(lookup, unit(lookup.vector(word)), n, without=[word])


def analogy(lookup: Lookup, a: str, b: str, c: str, n: int = 10) -> Found:
    """What is to c as b is to a: the n words nearest to b - a + c, the three left out, with their cosines.

    The three count alike, each at length 1 (Mikolov et al. 2013; "3CosAdd" in Levy and Goldberg 2014).
    Errors: NextileError for a word without a vector.
    """
    of_a, of_b, of_c = (unit(lookup.vector(word)) for word in (a, b, c))
    return _best(lookup, unit(of_b - of_a + of_c), n, without=[a, b, c])


def _best(lookup: Lookup, target: np.ndarray, n: int, without: Iterable[str]) -> Found:
    """The words with the highest cosines to a target (D,) of length 1; of equal ones the first of the table."""
    table = lookup.table
    cosines = lookup.units @ target  # (V,)
    left_out = {lookup.row(word) for word in without} - {None}
    order = np.argsort(-cosines, kind="stable")[: n + len(left_out)].tolist()
    rows = [row for row in order if row not in left_out][:n]
    return [(table.words[row], float(cosines[row])) for row in rows]
