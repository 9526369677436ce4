"""Looking at word vectors: words, and those whose vectors lie near."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from nextile.base.errors import UsageError
from nextile.checkpoint.pretrained import Pretrained
from nextile.inspection.look import Draw, Inspection, ids_of
from nextile.inspection.named import NamedArray
from nextile.inspection.neighbours import Found, near
from nextile.inspection.pieces import Piece
from nextile.inspection.stack import Embedding, Stack
from nextile.inspection.vectors import Lookup, word_vectors


class WordLook(Inspection):
    """A word, or several with spaces between."""

    kind = "words"
    which = ()
    silent = "is one of word vectors and predicts no text"

    def __init__(self, pretrained: Pretrained, what: object, draw: Draw | None = None):
        """Errors: UsageError for no word; NextileError for one that the model has not, with those spelled alike."""
        super().__init__(pretrained, draw)
        if ids_of(pretrained, what) is not None:
            raise UsageError(f"{pretrained.called} is one of word vectors: give a word")
        self.words = str(what).split()
        if not self.words:
            raise UsageError("the text is empty: give a word")
        for word in self.words:
            self.lookup.vector(word)

    @cached_property
    def lookup(self) -> Lookup:
        """The words and their vectors."""
        return word_vectors(self.pretrained)

    @cached_property
    def pieces(self) -> list[Piece]:
        rows = [self.lookup.row(word) for word in self.words]
        ids = [self.pretrained.tokenizer.encode(word) for word in self.words]
        return [
            Piece(found[0] if len(found) == 1 else -1, word if row is None else self.lookup.table.words[row])
            for word, row, found in zip(self.words, rows, ids, strict=True)
        ]

    @property
    def width(self) -> int:
        return self.lookup.table.vectors.shape[1]

    @property
    def token_vectors(self) -> NamedArray:
        """(position, width): the words' own."""
        return NamedArray(np.stack([self.lookup.vector(word) for word in self.words]), ("position", "width"))

    @property
    def position_vectors(self) -> None:
        return None

    @property
    def embedded(self) -> NamedArray:
        return self.token_vectors

    def embedding(self, which: str = "self") -> Embedding:
        vectors = self.token_vectors
        return Embedding(vectors, None, vectors, vectors)

    def token_text(self, index: int) -> str:
        return self.pretrained.tokenizer.token(index)

    @property
    def logits(self) -> NamedArray:  # type: ignore[override]
        raise self._refused("prediction")

    def _stack(self, which: str) -> Stack:
        raise UsageError(f"{self.pretrained.called} is one of word vectors and has no layers: ask for neighbours")

    def _neighbours(self, n: int) -> list[tuple[str, Found]]:
        return [(word, near(self.lookup, word, n)) for word in self.words]
