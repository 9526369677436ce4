"""Exercise: byte-pair encoding.

Begin with single characters. Count the pairs of neighbours, make the most frequent pair one symbol wherever it stands,
and repeat: aaabdaaabac becomes ZabdZabac, ZYdZYac, XdXac (Gage 1994; for language models Sennrich et al. 2016).

Complete the three functions. A symbol is a string, a word a list of symbols. Then run this file:

    python exercises/byte_pair_encoding.py
"""

from collections import Counter
from collections.abc import Mapping
from random import Random

from checking import case, main, same

from nextile.text import bpe


def most_frequent(words: Mapping[tuple[str, ...], int]) -> tuple[str, str]:
    """The pair of neighbours that occurs most often in words, each of which occurs as often as is said.

    Of equally frequent pairs the first by the alphabet, as `min` of Python has them.
    """
    raise NotImplementedError("complete `most_frequent` in exercises/byte_pair_encoding.py")


def join(word: list[str], pair: tuple[str, str]) -> list[str]:
    """The word with the pair as one symbol wherever it stands, found from left to right."""
    raise NotImplementedError("complete `join` in exercises/byte_pair_encoding.py")


def learn(text: str, merges: int) -> list[tuple[str, str]]:
    """The first pairs to join, in order: of the words of a text (split at spaces), by the two functions above.

    Fewer where no pair is left.
    """
    raise NotImplementedError("complete `learn` in exercises/byte_pair_encoding.py")


def check() -> None:
    """Compare with the library's own algorithm."""
    with case("most_frequent of aab three times, ab once"):
        same(most_frequent({("a", "a", "b"): 3, ("a", "b"): 1}), ("a", "b"))
    with case("most_frequent of ba and ab, both once"):
        same(most_frequent({("b", "a"): 1, ("a", "b"): 1}), ("a", "b"))
    with case("join a + a in aaabaa"):
        same(join(list("aaabaa"), ("a", "a")), bpe.join(list("aaabaa"), ("a", "a")))
    with case("join ab + c in ab, c, a, b, c"):
        same(join(["ab", "c", "a", "b", "c"], ("ab", "c")), ["abc", "a", "b", "c"])
    with case("join of a word of one symbol"):
        same(join(["a"], ("a", "a")), ["a"])
    with case("learn 3 merges of aaabdaaabac"):
        same(learn("aaabdaaabac", 3), [("a", "a"), ("a", "b"), ("aa", "ab")])
    with case("learn from 'a b', which has no pair"):
        same(learn("a b", 5), [])
    with case("learn from 'ab ab', whose word is one symbol after one merge"):
        same(learn("ab ab", 5), [("a", "b")])
    draw = Random(0)
    words = ["".join(draw.choices("abc", [5, 3, 1], k=draw.randint(1, 6))) for _ in range(400)]
    with case(f"learn 6 merges of 400 words: {' '.join(words[:3])} ..."):
        same(learn(" ".join(words), 6), bpe.learn(Counter(map(tuple, words)), "abc", 9))


if __name__ == "__main__":
    main(check)
