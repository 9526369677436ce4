"""Exercise: the nearest words, and analogies.

Two vectors are alike when they point the same way: their cosine, the product of both at length 1, is near 1. And
directions have meaning: b - a + c leads to what is to c as b is to a (Mikolov et al. 2013).

Complete both functions; give back the words, the nearest first. Then run this file:

    python exercises/model_embeddings.py
"""

import numpy as np
from checking import case, main, require, same

from nextile.checkpoint.word2vec import WordTable
from nextile.inspection import neighbours
from nextile.inspection.vectors import Lookup

WORDS = ("king", "queen", "man", "woman", "prince", "princess", "boy", "girl", "apple", "pear")


def near(words: tuple[str, ...], vectors: np.ndarray, word: str, n: int) -> list[str]:
    """The n words whose vectors (V, D) have the highest cosine to that of a word, which is itself left out."""
    raise NotImplementedError("complete `near` in exercises/model_embeddings.py")


def analogy(words: tuple[str, ...], vectors: np.ndarray, a: str, b: str, c: str, n: int) -> list[str]:
    """The n words nearest to b - a + c, the three left out; before that each vector is brought to length 1."""
    raise NotImplementedError("complete `analogy` in exercises/model_embeddings.py")


def check() -> None:
    """Compare with the library, on vectors of very different lengths."""
    generator = np.random.default_rng(1)
    vectors = generator.normal(size=(len(WORDS), 4)) * generator.uniform(0.1, 10, size=(len(WORDS), 1))
    lookup = Lookup(WordTable(WORDS, vectors.astype(np.float32)))
    with case("near of the words east (1, 0), far (9, 9), north-east (1, 0.9)"):
        same(
            near(("east", "far", "north-east"), np.array([[1, 0], [9, 9], [1, 0.9]]), "east", 2), ["north-east", "far"]
        )
    for word in WORDS[:3]:
        with case(f"near '{word}', 4 words of 10, random vectors"):
            found = near(WORDS, vectors, word, 4)
            require(word not in found, "the word itself is among them")
            same(found, [other for other, _ in neighbours.near(lookup, word, 4)])
    with case("analogy man king woman, 3 words of 10, random vectors"):
        found = analogy(WORDS, vectors, "man", "king", "woman", 3)
        require(not {"man", "king", "woman"} & set(found), "one of the three is among them")
        same(found, [other for other, _ in neighbours.analogy(lookup, "man", "king", "woman", 3)])


if __name__ == "__main__":
    main(check)
