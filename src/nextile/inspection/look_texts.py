"""Looking at models of one text: language models, masked models, classifiers of texts.

Shapes: T time, D width, V vocabulary, K classes.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from nextile.base.config import resolve
from nextile.checkpoint.pretrained import Pretrained
from nextile.generation.beam import Beams, beam_rounds, last
from nextile.generation.complete import beam_window
from nextile.generation.decode import EagerReader, check_ids, decode, evaluating
from nextile.generation.fill import masked_ids
from nextile.generation.pool import refuse_longer
from nextile.inspection.beams import BeamTree, Tree, growing
from nextile.inspection.look import Draw, OneStack, Predicting, ids_of
from nextile.inspection.pieces import Piece, shower, text_pieces
from nextile.inspection.stack import positive, within
from nextile.inspection.steps import Choice, Step, next_choices, sampled, steps
from nextile.text.masks import mask_of, ordinary_of


class TextLook(OneStack):
    """One stack that reads one text."""

    def __init__(self, pretrained: Pretrained, what: object, draw: Draw | None = None):
        """Errors: UsageError for no text; NextileError for one longer than the model reads."""
        super().__init__(pretrained, draw)
        given = ids_of(pretrained, what)
        self.ids = self._read(str(what)) if given is None else given
        check_ids([self.ids], self.spec.embed.vocab, "text")
        refuse_longer(self.ids, self.spec.context)
        self._shown = shower(pretrained.tokenizer)

    def _read(self, text: str) -> list[int]:
        """The tokens of a text, as this model is given them."""
        return self.pretrained.tokenizer.encode(text)

    @cached_property
    def pieces(self) -> list[Piece]:
        return text_pieces(self.pretrained.tokenizer, self.ids, self._shown)

    def token_text(self, index: int) -> str:
        return self._shown(index)

    @cached_property
    def _inputs(self) -> Tensor:
        return torch.tensor([self.ids], device=self._device)  # (1, T)


class LanguageLook(Predicting, TextLook):
    """A model that writes from left to right."""

    kind = "lm"

    def _truth(self) -> list[int]:
        return [*self.ids[1:], -1]

    def steps(
        self, max_tokens: int = 16, temperature: float = 0.0, seed: int | None = None, *, top: int = 5
    ) -> list[Step]:  # fmt: skip
        sampling = sampled(temperature, seed=seed)
        events = decode(
            self.model, [self.ids], sampling, max_tokens=max_tokens, end_ids={self.pretrained.tokenizer.end_id},
            alternatives=self.spec.embed.vocab, compiled=False,
        )  # fmt: skip
        return list(steps(events, self._shown, top))

    def beam(self, width: int = 4, max_tokens: int = 16) -> BeamTree:
        return self._once(("beam", width, max_tokens), lambda: self._beamed(width, max_tokens))

    def _beamed(self, width: int, max_tokens: int) -> BeamTree:
        positive(max_tokens, "max_tokens")
        tokenizer, beams = self.pretrained.tokenizer, resolve(Beams, {"width": width})
        window, limit = beam_window(self.ids, self.spec.context, max_tokens)
        reader = EagerReader(self.model, len(window) + limit - 1)
        with evaluating(self.model):
            rounds = beam_rounds(reader, [window], beams, limits=[limit], end_ids={tokenizer.end_id}, n=width)
            return last(growing(Tree(self._shown), rounds, tokenizer.decode))


class MaskedLook(TextLook):
    """A model that fills gaps; a gap is written [MASK]."""

    kind = "masked"
    silent = "fills gaps and does not write from left to right"

    def _read(self, text: str) -> list[int]:
        return masked_ids(self.pretrained.tokenizer, text, self.spec.context)

    def _truth(self) -> list[int]:
        return [-1 if token == self.pretrained.tokenizer.mask_id else token for token in self.ids]

    def next(
        self, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None,
        min_p: float | None = None, position: int | None = None, top: int | None = 50,
    ) -> list[Choice]:  # fmt: skip
        place = within(self._first_mask() if position is None else position, len(self.ids), "position")
        ordinary = torch.from_numpy(ordinary_of(self.pretrained.tokenizer))
        ordinary = ordinary[ordinary < self._logits.shape[-1]]  # those that are put in place of a mask
        sampling = sampled(temperature, top_k, top_p, min_p)
        found = next_choices(self._logits[place].cpu()[ordinary], sampling, lambda number: "", top)
        ids = ordinary.tolist()
        return [(ids[number], self._shown(ids[number]), share) for number, _, share in found]

    def _first_mask(self) -> int:
        mask = mask_of(self.pretrained.tokenizer)
        return self.ids.index(mask) if mask in self.ids else 0


class LabelledLook(TextLook):
    """A classifier of texts."""

    kind = "classify-text"
    silent = "says which class a text has and writes nothing"
    _said = ("class",)

    def _read(self, text: str) -> list[int]:
        frame = self.pretrained.frame
        return [*frame.before, *self.pretrained.tokenizer.encode(text), *frame.after]

    @property
    def classes(self) -> list[tuple[str, float]]:
        return ranked(self._logits, self.spec.head.classes)

    def token_text(self, index: int) -> str:
        return self.spec.head.classes[index]

    def _truth(self) -> list[int]:
        return [-1]

    def _head(self, x: Tensor) -> Tensor:
        there = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return self.model.head.of_texts(x, there)  # (1, K)


def ranked(logits: Tensor, classes: tuple[str, ...]) -> list[tuple[str, float]]:
    """Classes by their probabilities, of logits (K,)."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    shares = wide.softmax(-1).tolist()
    return sorted(zip(classes, shares, strict=True), key=lambda pair: -pair[1])
