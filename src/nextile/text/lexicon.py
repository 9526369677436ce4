"""Words in small letters, with nothing of what stands between them: the tokens of word vectors.

A word is a run of letters, digits and apostrophes that begins and ends with a letter or a digit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from operator import itemgetter

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from nextile.base.errors import NextileError, UsageError
from nextile.text.bulk import words_of
from nextile.text.tokenizer import END, LOWER_WORD, UNKNOWN, Tokenizer, assemble


def train_lexicon(texts: Iterable[str], least: int = 5, size: int | None = None) -> Tokenizer:
    """The words that occur at least so often, frequent first, equally frequent by spelling; at most `size` tokens.

    The end token is 0, the unknown token 1. Errors: NextileError where no word is that frequent; UsageError for a
    size that leaves no room for a word.
    """
    if size is not None and size < 3:
        raise UsageError(f"tokenizer.size {size} is too small for words: the end token, the unknown token and one word")
    untrained, pieces = _core((END, UNKNOWN)), Counter[str]()
    for text in texts:
        pieces.update(words_of(untrained, text))
    words = Counter[str]()
    for piece, count in pieces.items():
        words[piece.strip("'")] += count
    del words[""]
    kept = sorted(((-count, word) for word, count in words.items() if count >= least))
    if not kept:
        raise NextileError(f"no word occurs {least} times: give more text, or lower words.min_count")
    return _lexicon((END, UNKNOWN, *map(itemgetter(1), kept))[:size])


def lexicon_of(words: Iterable[str]) -> Tokenizer:
    """The tokenizer of just these words, each once, in this order.

    The end token is 0, the unknown token 1. A word that is no run of small letters, digits and apostrophes has an id,
    and is found in no text.
    """
    return _lexicon(dict.fromkeys((END, UNKNOWN, *words)))


def _lexicon(tokens: Iterable[str]) -> Tokenizer:
    return assemble(_core(tokens), eos_token=END, unk_token=UNKNOWN)


def _core(tokens: Iterable[str]) -> tokenizers.Tokenizer:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    core = tokenizers.Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNKNOWN))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Split(Regex(LOWER_WORD), "removed", invert=True)
    return core
