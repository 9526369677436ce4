"""A solution of exercises/byte_pair_encoding.py."""

from collections import Counter
from itertools import pairwise


def most_frequent(words):
    counts = Counter()
    for word, times in words.items():
        for pair in pairwise(word):
            counts[pair] += times
    return min(counts, key=lambda pair: (-counts[pair], pair))


def join(word, pair):
    joined = []
    for symbol in word:
        if joined and (joined[-1], symbol) == pair and joined[-1] is not None:
            joined[-1:] = [None, pair[0] + pair[1]]  # the None keeps what is new from being joined again
        else:
            joined.append(symbol)
    return [symbol for symbol in joined if symbol is not None]


def learn(text, merges):
    words = Counter(tuple(word) for word in text.split())
    pairs = []
    while len(pairs) < merges and any(len(word) > 1 for word in words):
        pairs.append(most_frequent(words))
        words = Counter({tuple(join(list(word), pairs[-1])): times for word, times in words.items()})
    return pairs
