"""A solution of exercises/model_embeddings.py."""

import numpy as np


def near(words, vectors, word, n):
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    order = np.argsort(-(units @ units[words.index(word)]))
    return [words[row] for row in order if words[row] != word][:n]


def analogy(words, vectors, a, b, c, n):
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    goal = units[words.index(b)] - units[words.index(a)] + units[words.index(c)]
    order = np.argsort(-(units @ goal))
    return [words[row] for row in order if words[row] not in (a, b, c)][:n]
