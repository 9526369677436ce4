"""What a new run begins from: nothing, a whole model, or word vectors that its tokens begin with.

Shapes: V tokens, W words of a table, D numbers of a vector, N tokens that are words of the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.pretrained import Pretrained, load
from nextile.checkpoint.tuned import plain
from nextile.checkpoint.word2vec import SUFFIXES, WordTable, read_vectors
from nextile.data.corpora import missing
from nextile.models.build import AnyModel, build
from nextile.models.encoder_decoder import EncoderDecoder
from nextile.models.transformer import Transformer
from nextile.models.words import WordVectors
from nextile.nn import specs
from nextile.tasks.report import Report
from nextile.text.lexicon import lexicon_of
from nextile.text.tokenizer import Tokenizer

FEW = 0.5  # of the tokens: below, the user is told of a better choice


@dataclass(frozen=True)
class WordStart:
    """Word vectors, from a file or from a model of them; `called` is how an error names them."""

    table: WordTable
    called: str
    model: Pretrained | None = None

    def begin(self, model: AnyModel, tokenizer: Tokenizer, report: Report) -> None:
        """Fill, and say how much was. Errors: as in `fill`."""
        found = self.fill(model, tokenizer)
        report.say(f"{found:,} of {tokenizer.vocab_size:,} tokens begin with the vectors of words in {self.called}")
        if found < FEW * tokenizer.vocab_size and tokenizer.kind != "word":
            report.warn("few tokens are words that have vectors: tokenizer.kind=word makes each word a token")

    def fill(self, model: AnyModel, tokenizer: Tokenizer) -> int:
        """Give all tokens that are words of the table their vectors, in place; returns how many those are.

        Vectors are scaled, all by the same, to the root mean square of the rows that they replace.
        Errors: NextileError where no token is a word of the table, or the vectors of those that are hold only zeros.
        """
        tokens, words = self._matches(tokenizer)
        vectors = self.table.vectors[words].astype(np.float64)  # (N, D)
        size = float(np.sqrt(np.mean(vectors**2))) if words else 0.0
        if not size:
            what = "only zeros for those tokens that have vectors" if words else "no word that is a token of the text"
            raise NextileError(f"{self.called} has {what}: take other vectors, or leave out --init")
        for embedding in _embeddings(model):
            rows = embedding.weight.detach()
            usual = rows[tokens].double().square().mean().sqrt().item()
            rows[tokens] = torch.from_numpy(vectors * (usual / size)).to(rows)
        return len(tokens)

    def _matches(self, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
        """The tokens that are words, without the space before them, and their rows of the table: N each."""
        texts = ((index, _word(tokenizer.bytes_of(index))) for index in range(tokenizer.vocab_size))
        rows = ((index, self.table.rows.get(word.lower() if self._is_small else word)) for index, word in texts)
        found = [(index, row) for index, row in rows if row is not None]
        return [index for index, _ in found], [row for _, row in found]

    @cached_property
    def _is_small(self) -> bool:
        return all(word == word.lower() for word in self.table.words)


def _word(data: bytes | None) -> str:
    return (data or b"").decode(errors="replace").removeprefix(" ")


def _embeddings(model: AnyModel) -> list[nn.Embedding]:
    """Where the model keeps its tokens' vectors; of an encoder-decoder those of both sides, which may be the same."""
    if isinstance(model, EncoderDecoder):
        return list(dict.fromkeys((model.source.token, model.target.token)))
    assert isinstance(model, Transformer)
    return [model.embed.token]


# --- a start from what is named -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """At most one of them."""

    model: Pretrained | None = None
    words: WordStart | None = None
    name: str | None = None  # as it was asked for

    @property
    def width(self) -> int | None:
        """What the model must have, if anything: as many numbers as the vectors."""
        return self.words.table.dim if self.words else None


def open_start(init: str | Path) -> Start:
    """A model folder or a hub name; word vectors, where it is a .txt, a .bin or another file, or a model of those.

    Errors: NextileError for what is missing or broken.
    """
    path = Path(init).expanduser()
    if not path.is_dir() and (path.is_file() or path.suffix.lower() in (*SUFFIXES, ".gz")):
        if not path.exists():
            raise NextileError(missing(path, (), "name a model folder, or a .txt or .bin of word vectors"))
        return Start(words=WordStart(read_vectors(path), f"'{path}'"))
    model = load(init, device="cpu")
    plain(model.model)
    return Start(words=_of_model(model)) if isinstance(model.model, WordVectors) else Start(model)


def _of_model(pretrained: Pretrained) -> WordStart:
    """The words of a model, without its special tokens."""
    assert isinstance(pretrained.model, WordVectors)
    tokenizer = pretrained.tokenizer
    ids = [index for index in range(tokenizer.vocab_size) if index not in tokenizer.special_ids]
    vectors = pretrained.model.words_in.weight.detach().float().numpy()[ids]
    return WordStart(WordTable(tuple(map(tokenizer.token, ids)), vectors), pretrained.called, pretrained)


# --- a model of nothing but words -----------------------------------------------------------------------------------


def word_model(words: WordStart, shape: type[specs.CBOW] | type[specs.SkipGram], window: int, negatives: int) -> Start:
    """A model of just these words: its input vectors are theirs, its output vectors 0, as word2vec begins."""
    tokenizer, dim = lexicon_of(words.table.words), words.table.dim
    spec = shape(vocab=tokenizer.vocab_size, width=dim, window=window, negatives=negatives)
    model = build(spec)
    assert isinstance(model, WordVectors)
    rows = {tokenizer.core.token_to_id(word): row for row, word in enumerate(words.table.words)}
    ids = [index for index in rows if index not in tokenizer.special_ids]
    model.words_in.weight.detach()[ids] = torch.from_numpy(words.table.vectors[[rows[index] for index in ids]])
    return Start(Pretrained(model, tokenizer, spec, "nextile"))


def refuse_words(words: WordStart, task: str) -> Start:
    """Errors: UsageError, for a task whose models do not begin so."""
    raise UsageError(f"a run of the task '{task}' begins from a model, not from word vectors as in {words.called}")
