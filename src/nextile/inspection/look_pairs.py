"""Looking at encoder-decoders: a source, and the target that is written beside it.

Shapes: M source length, T target length, D width, V vocabulary.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nextile.base.config import resolve
from nextile.base.errors import UsageError
from nextile.checkpoint.pretrained import Pretrained
from nextile.generation.beam import Beams, Hypothesis, beam_rounds, beam_search, last
from nextile.generation.decode import Ending, SourceReader, check_ids, decode_by, evaluating
from nextile.generation.fill import span_rules, span_source
from nextile.generation.pool import refuse_longer
from nextile.generation.translate import not_written, source_ids, translation_limit
from nextile.inspection.beams import BeamTree, Tree, growing
from nextile.inspection.look import Draw, Predicting, ids_of
from nextile.inspection.pieces import Piece, shower, text_pieces
from nextile.inspection.stack import Embedding, Stack, positive
from nextile.inspection.steps import Step, sampled, steps
from nextile.text.masks import sentinels_of

FORBIDDEN = -100.0  # added to the logits of tokens that are never written: the most that a bias can be


class PairLook(Predicting):
    """A translator: what the encoder reads, and a target that is given or that the model writes by beams itself."""

    kind = "translate"
    which = ("encoder", "self", "cross")

    def __init__(
        self, pretrained: Pretrained, what: object, target: object = None, draw: Draw | None = None, *,
        max_tokens: int | None = None, beams: int = 4,
    ):  # fmt: skip
        """Errors: UsageError for no text; NextileError for one longer than the model reads."""
        super().__init__(pretrained, draw)
        given = ids_of(pretrained, what)
        self.source_ids = self._source(str(what)) if given is None else given
        check_ids([self.source_ids], self.spec.source.vocab, "text")
        refuse_longer(self.source_ids, self.spec.context)
        self._max_tokens, self._width = max_tokens, resolve(Beams, {"width": beams}).width
        self._given = None if target is None else self._target(target)
        self._shown = shower(pretrained.tokenizer)

    def _source(self, text: str) -> list[int]:
        return source_ids(self.pretrained.tokenizer, text)

    def _target(self, target: object) -> list[int]:
        """The tokens of a target without the one that it begins with."""
        ids = ids_of(self.pretrained, target)
        ids = self._encoded(str(target)) if ids is None else ids
        check_ids([ids], self.spec.target_vocab, "target")
        refuse_longer([self._start, *ids], self.spec.context)
        return ids

    def _encoded(self, target: str) -> list[int]:
        return self.pretrained.tokenizer.encode(target)

    def _rules(self) -> tuple[set[int], set[int]]:
        """The tokens that end a target, and those that it never has."""
        tokenizer = self.pretrained.tokenizer
        return {tokenizer.end_id}, not_written(tokenizer, self.spec)

    # --- what is looked at ------------------------------------------------------------------------------------------

    @cached_property
    def pieces(self) -> list[Piece]:
        return text_pieces(self.pretrained.tokenizer, self.source_ids, self._shown)

    @cached_property
    def target_pieces(self) -> list[Piece]:
        return text_pieces(self.pretrained.tokenizer, self.ids, self._shown)

    @cached_property
    def ids(self) -> list[int]:
        """What the decoder reads."""
        return [self._start, *(self._written.tokens if self._given is None else self._given)]

    @cached_property
    def target_text(self) -> str:
        """The target as it reads."""
        return self.pretrained.tokenizer.decode(self.ids[1:])

    @property
    def most_ids(self) -> int:
        """How many tokens the decoder reads; at most, where the model is still to write them."""
        return 1 + (self._limit(self._max_tokens) if self._given is None else len(self._given))

    def token_text(self, index: int) -> str:
        return self._shown(index)

    def _first_embedding(self) -> Embedding:
        return self.embedding("encoder")

    # --- predictions ------------------------------------------------------------------------------------------------

    def steps(
        self, max_tokens: int = 16, temperature: float = 0.0, seed: int | None = None, *, top: int = 5
    ) -> list[Step]:  # fmt: skip
        positive(max_tokens, "max_tokens")
        (ends, never), limit = self._rules(), self._limit(max_tokens)
        sampling = sampled(temperature, seed=seed).model_copy(update={"logit_bias": dict.fromkeys(never, FORBIDDEN)})
        with evaluating(self.model):
            events = decode_by(
                self._reader(limit), [self._start], sampling, Ending(limit, frozenset(ends)),
                context=self.spec.context, alternatives=self.spec.target_vocab,
            )  # fmt: skip
            return list(steps(events, self._shown, top))

    def beam(self, width: int = 4, max_tokens: int = 16) -> BeamTree:
        return self._once(("beam", width, max_tokens), lambda: self._beamed(width, max_tokens))

    def _beamed(self, width: int, max_tokens: int) -> BeamTree:
        positive(max_tokens, "max_tokens")
        with evaluating(self.model):
            rounds = beam_rounds(**self._sought(width, max_tokens), n=width)
            return last(growing(Tree(self._shown), rounds, self.pretrained.tokenizer.decode))

    def _sought(self, width: int, max_tokens: int | None) -> dict[str, Any]:
        """What beams are told."""
        (ends, never), limit = self._rules(), self._limit(max_tokens)
        return {
            "reader": self._reader(limit), "prompts": [[self._start]], "beams": resolve(Beams, {"width": width}),
            "limits": [limit], "end_ids": ends, "never": never,
        }  # fmt: skip

    @cached_property
    def _written(self) -> Hypothesis:
        """What the model writes by itself."""
        with evaluating(self.model):
            return beam_search(**self._sought(self._width, self._max_tokens))[0][0]

    def _limit(self, max_tokens: int | None) -> int:
        return translation_limit(len(self.source_ids), self.spec.context, max_tokens)

    def _reader(self, limit: int) -> SourceReader:
        return SourceReader(self.model, [self.source_ids], capacity=limit)

    # --- the model --------------------------------------------------------------------------------------------------

    @property
    def _start(self) -> int:
        return self.spec.start

    @cached_property
    def _source_input(self) -> Tensor:
        return torch.tensor([self.source_ids], device=self._device)  # (1, M)

    @cached_property
    def _target_input(self) -> Tensor:
        return torch.tensor([self.ids], device=self._device)  # (1, T)

    @cached_property
    def _memory(self) -> Any:
        with evaluating(self.model), torch.no_grad():
            return self.model.encode(self._source_input)

    def _made(self, which: str) -> Stack:
        if which == "encoder":
            return Stack(self.model, "encoder", "source", self.model.encode, lambda: (self._source_input,))
        embed = "target" if self.spec.target else "source"
        return Stack(self.model, "decoder", embed, self.model.features, lambda: (self._target_input, self._memory))

    def _say(self, x: Tensor) -> Tensor:
        with evaluating(self.model), torch.no_grad():
            return self._head(self.model.decoder.norm(x))

    def _truth(self) -> list[int]:
        ended = self._given is not None or self._written.finished == "end"
        return [*self.ids[1:], self.pretrained.tokenizer.end_id if ended else -1]

    @cached_property
    def _logits(self) -> Tensor:
        with evaluating(self.model), torch.no_grad():
            return self.model(self._source_input, self._target_input)[0]


class DenoiserLook(PairLook):
    """A model that writes what was cut out of a text; a gap is written [MASK], and one without has it at its end."""

    kind = "denoise"
    _gaps = 0

    def _source(self, text: str) -> list[int]:
        ids, self._gaps = span_source(self.pretrained, text)
        return ids

    def _encoded(self, target: str) -> list[int]:
        raise UsageError("the target of a denoiser has marks of its gaps: give the ids of its tokens, or leave it out")

    def _rules(self) -> tuple[set[int], set[int]]:
        marks = set(self.source_ids) & set(sentinels_of(self.pretrained.tokenizer))
        return span_rules(self.pretrained, self._gaps or max(1, len(marks)))

    def _limit(self, max_tokens: int | None) -> int:
        return max(1, min(64 if max_tokens is None else max_tokens, self.spec.context - 1))
