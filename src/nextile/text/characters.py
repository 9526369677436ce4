"""Characters, words and bytes (ByT5's ids) as tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from nextile.base.errors import UsageError
from nextile.text.bytelevel import utf8
from nextile.text.legacy import BYTE_SPECIALS, byte_core
from nextile.text.tokenizer import EACH_CHARACTER, EACH_WORD, END, UNKNOWN, Tokenizer, assemble


def train_characters(texts: Iterable[str]) -> Tokenizer:
    """One token for every code point that occurs: the end token is 0, the unknown token 1, then by code point."""
    found: set[str] = set()
    for text in _checked(texts):
        found.update(text)
    return _whole_words((END, UNKNOWN, *sorted(found)), EACH_CHARACTER)


def train_words(texts: Iterable[str], size: int) -> Tokenizer:
    """The `size` - 2 most frequent words, runs of white space and signs, frequent first; all others are unknown.

    Errors: UsageError for a size that leaves no room for a word.
    """
    if size < 3:
        raise UsageError(f"tokenizer.size {size} is too small for words: the end token, the unknown token and one word")
    untrained = _whole_words((END, UNKNOWN), EACH_WORD).core
    trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=[END, UNKNOWN], show_progress=False)
    untrained.train_from_iterator(_checked(texts), trainer)
    vocabulary = untrained.get_vocab()
    return _whole_words(sorted(vocabulary, key=vocabulary.__getitem__), EACH_WORD)


def byte_tokenizer() -> Tokenizer:
    """UTF-8 bytes with ByT5's ids (Xue et al. 2021): padding 0, end 1, unknown 2, byte b is b + 3. No training needed.

    Its tokenizer.json is byte-level BPE that has learned no merge.
    """
    return assemble(byte_core(), **BYTE_SPECIALS)


def _whole_words(tokens: Iterable[str], pattern: str) -> Tokenizer:
    """A tokenizer that looks up what `pattern` finds; put side by side, the tokens are the text again."""
    core = tokenizers.Tokenizer(models.WordLevel(vocab=_numbered(tokens), unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    core.decoder = decoders.Fuse()
    return assemble(core, eos_token=END, unk_token=UNKNOWN)


def _numbered(tokens: Iterable[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokens)}


def _checked(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        utf8(text)
        yield text
