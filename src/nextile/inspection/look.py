"""Looking at what a model makes of one input: every number of it, computed when it is asked for.

What differs by model is in the subclasses: of texts (`look_texts.py`), pairs (`look_pairs.py`), pictures
(`look_pictures.py`) and words (`look_words.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from html import escape
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from nextile.base.errors import UsageError
from nextile.base.files import atomic_write
from nextile.checkpoint.pretrained import Pretrained
from nextile.generation.decode import evaluating
from nextile.inspection import attention, lens, neurons, stack
from nextile.inspection.attention import Attention, Head
from nextile.inspection.beams import BeamTree
from nextile.inspection.lens import Lens
from nextile.inspection.named import NamedArray, named
from nextile.inspection.neighbours import Found, near
from nextile.inspection.neurons import Neurons
from nextile.inspection.pieces import Piece
from nextile.inspection.stack import Embedding, Stack, positive, within
from nextile.inspection.steps import Choice, Step, next_choices, sampled, surprises
from nextile.inspection.vectors import displays, word_vectors

Result = TypeVar("Result")
Draw = Callable[["Inspection"], str]


class Inspection:
    """What a model makes of one input. Each question is answered once, by a pass with only what is asked captured.

    which: "self" is the attention of the only stack, or of the decoder, "encoder" that of the encoder, "cross" that of
    the decoder to the encoder. Layers and heads are counted from 0.
    """

    kind: ClassVar[str]
    which: ClassVar[tuple[str, ...]] = ("self",)
    silent: ClassVar[str]  # why it has no next token

    def __init__(self, pretrained: Pretrained, draw: Draw | None = None):
        """draw: makes the page."""
        self.pretrained, self._draw = pretrained, draw
        self.spec: Any = pretrained.spec  # of the kind of model that the subclass is for
        self._answers: dict[tuple[Any, ...], Any] = {}

    def __repr__(self) -> str:
        return f"Inspection({self.kind}, {len(self.pieces)} pieces, attentions: {', '.join(self.which) or 'none'})"

    # --- what is looked at ------------------------------------------------------------------------------------------

    @property
    def pieces(self) -> list[Piece]:
        """What the model reads, vector by vector."""
        raise NotImplementedError

    @property
    def target_pieces(self) -> list[Piece]:
        """What a decoder reads beside that, the token first that every target begins with; else none."""
        return []

    @property
    def classes(self) -> list[tuple[str, float]]:
        """The classes with their probabilities, likeliest first. Errors: UsageError for a model that has none."""
        raise UsageError(f"{self.pretrained.called} is no classifier: it has no classes")

    def token_text(self, index: int) -> str:
        """How what the model predicts is shown: a token, a class."""
        raise NotImplementedError

    def depth(self, which: str = "self") -> int:
        """How many layers the stack has."""
        return self._stack(which).depth

    def heads(self, which: str = "self") -> int:
        """How many heads each layer has."""
        return self._attention(which).heads

    @property
    def width(self) -> int:
        """The length of the stream's vectors."""
        return self._stack("self").module.spec.width

    def parts(self, which: str = "self") -> tuple[str, ...]:
        """What adds to the stream in each block, in the order of `added`."""
        return self._stack(which).parts

    def norm_place(self, which: str = "self") -> str:
        """Where the norms of a block stand: "before", "after" the sum, "inside" or "around" what is added."""
        return self._stack(which).module.spec.norm_place

    # --- embedding --------------------------------------------------------------------------------------------------

    def embedding(self, which: str = "self") -> Embedding:
        """The vectors of the tokens, of their positions, and their sum, which comes into the stack."""
        return self._once(("embedding", self._of(which)), lambda: stack.embedding(self._stack(which)))

    @property
    def token_vectors(self) -> NamedArray:
        """(position, width)."""
        return self._first_embedding().tokens

    @property
    def position_vectors(self) -> NamedArray | None:
        """(position, width); None where positions are no vectors."""
        return self._first_embedding().positions

    @property
    def embedded(self) -> NamedArray:
        """(position, width): what comes into the first block."""
        return self._first_embedding().entered

    def _first_embedding(self) -> Embedding:
        """That of `pieces`."""
        return self.embedding()

    # --- attention --------------------------------------------------------------------------------------------------

    def weights(self, which: str = "self", *, layer: int | None = None, head: int | None = None) -> NamedArray:
        """(layer, head, query, key), or of one layer, of one head, without that axis; the others are not captured."""
        return self._once(
            ("weights", which, layer, head), lambda: attention.weights(self._attention(which), layer, head)
        )

    def head(self, layer: int, head: int, which: str = "self") -> Head:
        """Queries, keys, values, scores, mask, weights and result of one head; no other is captured."""
        return self._once(("head", which, layer, head), lambda: attention.one_head(self._attention(which), layer, head))

    def rollout(self, which: str = "self") -> NamedArray:
        """(query, key): how much of each input is in each output, through all layers (Abnar and Zuidema 2020).

        Errors: UsageError for "cross".
        """
        return self._once(("rollout", which), lambda: attention.rollout(self._attention(which)))

    def attended(
        self, query: int, which: str = "self", *, layer: int | None = None, head: int | None = None
    ) -> np.ndarray:  # fmt: skip
        """(rows, columns): what a query takes of each place of the picture; None: the mean over layers, over heads.

        Errors: UsageError for a model that reads no pictures, and for a query that there is not.
        """
        raise UsageError(f"{self.pretrained.called} reads text, not pictures: ask for weights")

    # --- the stream -------------------------------------------------------------------------------------------------

    def stream(self, which: str = "self") -> NamedArray:
        """(layer, position, width): layer 0 is what comes into the stack, layer n what the n-th block passes on."""
        return named(self._stream(which), "layer", "position", "width")

    def added(self, which: str = "self") -> NamedArray:
        """(layer, part, position): the lengths of what each part of each block adds; `parts` names them."""
        return self._once(("added", self._of(which)), lambda: stack.added(self._stack(which)))

    def lens(self, top: int = 5, which: str = "self") -> Lens:
        """What each layer would have said: the model's last norm and head on its stream (nostalgebraist 2020).

        Of classifiers the classes, at one position. Errors: UsageError for "encoder", which says nothing.
        """
        self._refuse_mute(which)
        return self._once(
            ("lens", top), lambda: lens.look(self._stream(which), self._say, self._truth(), positive(top, "top"))
        )

    def neurons(self, top: int = 8, which: str = "self") -> Neurons:
        """The strongest neurons of each feed-forward net. Errors: UsageError where the nets are chosen experts."""
        return self._once(
            ("neurons", top, self._of(which)),
            lambda: neurons.strongest(self._stack(which), positive(top, "top"), partial(self._promoted, which)),
        )

    # --- predictions ------------------------------------------------------------------------------------------------

    @cached_property
    def logits(self) -> NamedArray:
        """(position, token): what the model says at each position; of classifiers (class,)."""
        return named(self._logits, *self._said)

    @property
    def surprise(self) -> NamedArray:
        """(position,): nats of each piece (of a pair, of each of the target) given those before; the first has NaN.

        Errors: UsageError for a model that does not predict what comes next.
        """
        raise self._refused("surprise")

    def next(
        self, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None,
        min_p: float | None = None, position: int | None = None, top: int | None = 50,
    ) -> list[Choice]:  # fmt: skip
        """What is drawn from: (id, text, probability), likeliest first, after temperature and cuts, as in `generate`.

        position: None is the last, of a masked model the first mask. top: how many are told; None: all that are left.
        Errors: UsageError for a model that predicts no tokens and for settings out of bounds.
        """
        raise self._refused("next token")

    def steps(
        self, max_tokens: int = 16, temperature: float = 0.0, seed: int | None = None, *, top: int = 5
    ) -> list[Step]:  # fmt: skip
        """The decoding step by step, of each the likeliest `top`. Errors: UsageError for what does not write."""
        raise self._refused("steps")

    def beam(self, width: int = 4, max_tokens: int = 16) -> BeamTree:
        """The tree of beams. Errors: UsageError for a model that does not write."""
        raise self._refused("beams")

    def neighbours(self, n: int = 10) -> list[tuple[str, Found]]:
        """Of each piece the n words whose vectors point most nearly where its own does, with their cosines.

        Those of pieces that are no text by themselves are none. Errors: UsageError for a model without word vectors.
        """
        return self._once(("neighbours", n), lambda: self._neighbours(n))

    # --- the page ---------------------------------------------------------------------------------------------------

    def html(self) -> str:
        """All of it as one page that asks nothing of any network."""
        if self._draw is None:
            raise UsageError("this inspection has no page: open it by nextile.load(MODEL).inspect(...)")
        return self._draw(self)

    def _repr_html_(self) -> str:
        """In a notebook: the page in a frame of its own, where it can disturb nothing."""
        page = escape(self.html())
        return f'<iframe srcdoc="{page}" sandbox="allow-scripts" width="100%" height="800" title="Inspection"></iframe>'

    def save(self, path: str | Path) -> None:
        """Write the page."""
        atomic_write(Path(path), self.html())

    # --- what subclasses fill in ------------------------------------------------------------------------------------

    _said: ClassVar[tuple[str, ...]] = ("position", "token")

    def _made(self, which: str) -> Stack:
        """The stack of an attention that there is."""
        raise NotImplementedError

    def _say(self, x: Tensor) -> Tensor:
        """What the head says of a stream (1, T, D): (T, V), or of classes (1, K)."""
        raise NotImplementedError

    def _truth(self) -> list[int]:
        """What was really there for the head to say, at each position; -1 where nothing is known."""
        raise NotImplementedError

    @cached_property
    def _logits(self) -> Tensor:
        """Of the model itself."""
        raise NotImplementedError

    def _speak(self, direction: Tensor) -> Tensor:
        """What the head makes of one vector (D,), without the last norm: (V,)."""
        return self._head(direction[None, None])[0]

    def _head(self, x: Tensor) -> Tensor:
        """(1, T, D) -> (T, V) by the head alone."""
        return self.model.head(x)[0]

    # --- helpers ----------------------------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """The torch module."""
        return self.pretrained.model

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _once(self, question: tuple[Any, ...], answer: Callable[[], Result]) -> Result:
        if question not in self._answers:
            self._answers[question] = answer()
        return self._answers[question]

    def _of(self, which: str) -> str:
        """The path of the stack."""
        return self._stack(which).path

    def _stack(self, which: str) -> Stack:
        if which not in self.which:
            there = " or ".join(map(repr, self.which)) or "none"
            raise UsageError(f"there is no attention {which!r} in {self.pretrained.called}: ask for {there}")
        return self._once(("stack", which), lambda: self._made(which))

    def _attention(self, which: str) -> Attention:
        return Attention(self._stack(which), "cross_attention" if which == "cross" else "self_attention")

    def _stream(self, which: str) -> Tensor:
        return self._once(("stream", self._of(which)), lambda: stack.stream(self._stack(which)))

    def _refused(self, what: str) -> UsageError:
        return UsageError(f"{self.pretrained.called} {self.silent}: there is no {what} of it")

    def _refuse_mute(self, which: str) -> None:
        self._stack(which)
        if which == "encoder":
            raise UsageError("an encoder says nothing by the head: ask for 'self'")

    def _promoted(self, which: str, layer: int, neuron: int, top: int) -> list[Choice]:
        self._refuse_mute(which)
        direction = neurons.direction(self._stack(which), layer, neuron)
        with evaluating(self.model), torch.no_grad():
            nothing = self._once(("nothing",), lambda: self._speak(torch.zeros_like(direction)))  # of the bias alone
            scores = self._speak(direction) - nothing
        best: Any = scores.topk(min(positive(top, "top"), len(scores)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(index, self.token_text(index), score) for index, score in pairs]

    def _neighbours(self, n: int) -> list[tuple[str, Found]]:
        lookup, shown = word_vectors(self.pretrained), displays(self.pretrained.tokenizer)
        names = [(piece.text, shown(piece.id)) for piece in self.pieces]
        return [(text, near(lookup, name, n) if name in lookup.table.rows else []) for text, name in names]


class OneStack(Inspection):
    """embed -> stack -> head, read in one go."""

    @property
    def _inputs(self) -> Tensor:
        """What the model is given, a batch of one."""
        raise NotImplementedError

    def _made(self, which: str) -> Stack:
        return Stack(self.model, "stack", "embed", self.model.features, lambda: (self._inputs,))

    def _say(self, x: Tensor) -> Tensor:
        with evaluating(self.model), torch.no_grad():
            return self._head(self.model.stack.norm(x))

    @cached_property
    def _logits(self) -> Tensor:
        with evaluating(self.model), torch.no_grad():
            return self.model(self._inputs)[0]


class Predicting(Inspection):
    """A model that says at each position what comes next."""

    @property
    def surprise(self) -> NamedArray:
        return surprises(self._logits[:-1], self._truth()[:-1])

    def next(
        self, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None,
        min_p: float | None = None, position: int | None = None, top: int | None = 50,
    ) -> list[Choice]:  # fmt: skip
        place = within(-1 if position is None else position, len(self._logits), "position")
        return next_choices(self._logits[place], sampled(temperature, top_k, top_p, min_p), self.token_text, top)


def refuse_target(pretrained: Pretrained, target: object) -> None:
    """Errors: UsageError for a target beside what is no pair."""
    if target is not None:
        raise UsageError(f"{pretrained.called} reads no pairs: leave out the target")


def ids_of(pretrained: Pretrained, what: object) -> list[int] | None:
    """The token ids that were given; None for a text. Errors: UsageError for a picture, and for nothing at all."""
    if isinstance(what, (bytes, Path)) or not isinstance(what, (str, Sequence)):
        raise UsageError(f"{pretrained.called} reads text, not pictures: give a text")
    if isinstance(what, str):
        if not what:
            raise UsageError("the text is empty: give at least one token of it")
        return None
    if not all(isinstance(each, Integral) and not isinstance(each, bool) for each in what):
        raise UsageError("a text is a string, or the ids of its tokens as whole numbers: give one of these")
    if not what:
        raise UsageError("the text is empty: give at least one token of it")
    return [int(each) for each in what]
