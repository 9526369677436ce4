"""Exercise: hide, and ask for what is hidden.

Two ways to make questions of a text, which no human has to answer:

masks   some tokens are replaced by [MASK], and exactly these are asked (BERT: Devlin et al. 2019);
spans   runs of tokens are cut out, a sentinel stands for each, and the answer is every sentinel followed by what it
        stands for (T5: Raffel et al. 2020).

Complete both functions; tokens are numbers, and -100 marks a place that is not asked. Then run this file:

    python exercises/self_supervision.py
"""

from itertools import groupby

import numpy as np
from checking import case, main, same

from nextile.data.batches import IGNORE
from nextile.data.masking import Masker
from nextile.data.spans import Spans

MASK, END, SENTINELS = 90, 1, (99, 98, 97, 96)


def masks(tokens: list[int], hidden: set[int]) -> tuple[list[int], list[int]]:
    """Inputs and targets, as many as tokens: MASK at the hidden places, and -100 where nothing is asked."""
    raise NotImplementedError("complete `masks` in exercises/self_supervision.py")


def spans(tokens: list[int], cut: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Source and target: of the i-th span, tokens[start:stop], stands SENTINELS[i] in the source.

    The target is each sentinel followed by its span. Both end with END.
    """
    raise NotImplementedError("complete `spans` in exercises/self_supervision.py")


def check() -> None:
    """Compare with what the library makes of random rows."""
    with case("masks of 5, 6, 7 at place 1"):
        same(masks([5, 6, 7], {1}), ([5, MASK, 7], [-100, 6, -100]))
    with case("masks at no place"):
        same(masks([5, 6], set()), ([5, 6], [-100, -100]))
    generator = np.random.default_rng(0)
    row = np.arange(10, 50)[None]
    inputs, targets = Masker(MASK, row[0], masked_share=1.0, random_share=0.0).masked(row, generator)
    hidden = set(np.flatnonzero(targets[0] != IGNORE).tolist())
    with case(f"masks of 10, 11, ... 49 at {sorted(hidden)}"):
        same(masks(row[0].tolist(), hidden), (inputs[0].tolist(), targets[0].tolist()))
    with case("spans of 5, 6, 7, 8, of which 6, 7 is cut out"):
        same(spans([5, 6, 7, 8], [(1, 3)]), ([5, 99, 8, END], [99, 6, 7, END]))
    batch = Spans(SENTINELS, END, start=0, share=0.3).corrupted(row, generator)
    source, target = batch.inputs[0].tolist(), batch.targets[0].tolist()
    cut = _missing(row[0].tolist(), source)
    with case(f"spans of 10, 11, ... 49, of which {cut} are cut out"):
        same(spans(row[0].tolist(), cut), (source, target))


def _missing(tokens: list[int], source: list[int]) -> list[tuple[int, int]]:
    """The runs of tokens that a source lacks."""
    runs = [list(run) for gone, run in groupby(tokens, lambda token: token not in source) if gone]
    return [(tokens.index(run[0]), tokens.index(run[-1]) + 1) for run in runs]


if __name__ == "__main__":
    main(check)
