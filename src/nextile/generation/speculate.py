"""Tokens that something quick proposes, and that the model confirms several at a time: the texts are the model's own.

Shapes: N proposed tokens, V vocabulary.

A model reads several tokens in little more time than one, so what a draft guesses right costs less than what the model
writes itself (Leviathan et al. 2023; Chen et al. 2023). What it guesses wrong changes nothing but the time.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from nextile.base.errors import UsageError
from nextile.generation.decode import (
    Emitted,
    Ending,
    LanguageModel,
    Row,
    check_ids,
    evaluating,
    log_probabilities,
    most_probable,
    seen_tokens,
    token_counts,
    withhold,
)
from nextile.generation.sample import Sampling, draw, penalized, point, random_stream, warp
from nextile.nn.linear import Packed

FIRST = 4  # tokens that are proposed at first; more after proposals that were right, fewer after others
MOST = 16
SMALL = 256  # tokens that a cache has room for at first


class Proposal(NamedTuple):
    """The next tokens of a text as a draft has them."""

    tokens: list[int]
    shares: list[Tensor] | None = None  # the distributions (V,) that each was drawn from; None: nothing was drawn


class Draft(Protocol):
    """What guesses the next tokens of one text after the other."""

    def check(self, vocab: int) -> None:
        """Errors: UsageError for a draft of another vocabulary."""
        ...

    def proposer(self, sampling: Sampling, random: torch.Generator) -> Callable[[list[int], int], Proposal]:
        """For one text: (its tokens, how many at most) -> what may come next."""
        ...


# --- drafts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lookup:
    """What followed when the text had the same last tokens before: for texts that say things twice (Saxena 2023)."""

    longest: int = 3
    shortest: int = 2

    def check(self, vocab: int) -> None:
        """Nothing to check."""

    def proposer(self, sampling: Sampling, random: torch.Generator) -> Callable[[list[int], int], Proposal]:
        return self.propose

    def propose(self, text: list[int], count: int) -> Proposal:
        """What followed the latest place that ends like the text, by as many tokens as can be."""
        data = array("q", text).tobytes()
        for length in range(min(self.longest, len(text) - 1), self.shortest - 1, -1):
            place = _latest(data, 8 * length)
            if place is not None:
                return Proposal(text[place + length : place + length + count])
        return Proposal([])


def _latest(data: bytes, size: int) -> int | None:
    """Which of the 8-byte numbers the latest earlier occurrence of the last `size` bytes begins with."""
    tail, end = data[-size:], len(data) - 8
    while (place := data.rfind(tail, 0, end)) >= 0:
        if place % 8 == 0:
            return place // 8
        end = place + size - 1
    return None


def _end(text: list[int], count: int, context: int) -> list[int]:
    """What of a text a draft reads to propose so many tokens; by halves, so that it is seldom read anew."""
    half, beyond = max(1, context // 2), max(0, len(text) + count - context - 1)
    return text[min(-(-beyond // half) * half, len(text) - 1) :]


@dataclass(frozen=True)
class ModelDraft:
    """A smaller model of the same tokens."""

    model: LanguageModel

    def check(self, vocab: int) -> None:
        own = self.model.spec.embed.vocab
        if own != vocab:
            raise UsageError(f"the draft knows {own} tokens and the model {vocab}: draft by a model of the same tokens")

    def proposer(self, sampling: Sampling, random: torch.Generator) -> Callable[[list[int], int], Proposal]:
        reading = Reading(self.model)

        def propose(text: list[int], count: int) -> Proposal:
            window = _end(text, count, self.model.spec.context)
            tokens: list[int] = []
            shares: list[Tensor] = []
            with evaluating(self.model):
                for _ in range(count):
                    logits = reading.last([*window, *tokens], 1)
                    if sampling.temperature == 0.0:
                        tokens.append(int(logits.argmax()))
                        continue
                    warped = warp(logits, sampling)
                    tokens.append(int(draw(warped, [random])))
                    shares.append(warped[0].double().softmax(-1))
            return Proposal(tokens, shares or None)

        return propose


# --- reading ----------------------------------------------------------------------------------------------------------


class Reading:
    """A model that has read one text, and reads another by its new end alone where both begin alike."""

    def __init__(self, model: LanguageModel):
        self.model, self.device = model, next(model.parameters()).device
        self.read: list[int] = []
        self.cache = model.new_cache(1, min(SMALL, model.spec.context))
        self._packed = Packed(cast(nn.Module, model))

    def last(self, text: list[int], count: int) -> Tensor:
        """Logits (count, V) fp32 of what follows each of the last tokens of a text."""
        if len(text) > self.cache.capacity:
            self.cache = self.model.new_cache(1, min(self.model.spec.context, 2 * len(text)))
            self.read = []
        common = self._common(text, len(text) - count)
        self.cache.forget(len(self.read) - common)
        ids = torch.tensor([text[common:]], device=self.device)
        x = self.model.features(ids, cache=self.cache)
        self.cache.advance(ids.shape[1])
        self.read = list(text)
        return self.model.head(x[:, -count:])[0].float()

    def _common(self, text: list[int], most: int) -> int:
        """How many tokens of the text are read already, of those that need not be read for their logits."""
        most = min(most, len(self.read))
        if self.read[:most] == text[:most]:
            return most
        return next(i for i in range(most) if self.read[i] != text[i])


# --- the rule ---------------------------------------------------------------------------------------------------------


def confirmed(logits: Tensor, sampling: Sampling, token: int, share: Tensor | None, random: torch.Generator) -> int:
    """The next token by penalized logits (1, V), and the proposed one as often as that may be.

    share (V,): the distribution that `token` was drawn from. It is kept with the probability p / q, and else one is
    drawn from what p has more than q, so that all that is drawn follows p (Leviathan et al. 2023, theorem 1). When
    None, the model draws as it would alone: it meets the one proposed token with just its probability p.
    """
    if sampling.temperature == 0.0:
        return int(logits.argmax())
    warped = warp(logits, sampling)
    if share is None:
        return int(draw(warped, [random]))
    own = warped[0].double().softmax(-1)
    share = share.to(own.device)
    if point(random) * share[token] < own[token]:
        return token
    more = (own - share).clamp_min(0.0)
    return int(draw(more.log()[None] if more.sum() > 0 else warped, [random]))


# --- the text ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def speculate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    draft: Draft,
    *,
    max_tokens: int,
    end_ids: Collection[int] = (),
    stop: Callable[[int, int], bool] | None = None,
    alternatives: int = 0,
    streams: Sequence[int] | None = None,
    min_tokens: int = 0,
) -> Iterator[Emitted]:
    """What `decode` writes, one row after the other: the same tokens where nothing is drawn, and with a `Lookup`.

    With a `ModelDraft` drawn tokens are others than those of `decode` for a seed, of the same distribution.
    Errors: those of `decode`, and UsageError for a draft of another vocabulary.
    """
    vocab = model.spec.embed.vocab
    ending = Ending(max_tokens, frozenset(end_ids), stop, min_tokens)
    ending.check(vocab)
    draft.check(vocab)
    check_ids(prompts, vocab)
    seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
    with evaluating(model):
        for number, prompt in enumerate(prompts):
            stream = number if streams is None else streams[number]
            row = Row(number, list(prompt), model.spec.context)
            propose = draft.proposer(sampling, random_stream(seed, -1 - stream))
            writer = _Writer(model, row, sampling, ending, random_stream(seed, stream), alternatives)
            yield from writer.write(propose)


class _Writer:
    """One text, and all that its tokens hang on."""

    def __init__(
        self, model: LanguageModel, row: Row, sampling: Sampling, ending: Ending, random: torch.Generator,
        alternatives: int,
    ):  # fmt: skip
        self.reading, self.row, self.sampling, self.ending = Reading(model), row, sampling, ending
        self.random, self.alternatives = random, alternatives

    def write(self, propose: Callable[[list[int], int], Proposal]) -> Iterator[Emitted]:
        """Propose, read all that is proposed, take it as far as it is right and one token more."""
        row, count = self.row, FIRST
        while True:
            room = min(row.context - len(row.window), self.ending.max_tokens - row.count - 1)
            proposal = propose(row.window, min(count, room)) if room > 0 else Proposal([])
            written = 0
            for event in self._round(proposal):
                written += 1
                yield event
                if event.finished is not None:
                    return
            count = min(MOST, count + 2) if written > len(proposal.tokens) else max(1, written)
            row.slide()

    def _round(self, proposal: Proposal) -> Iterator[Emitted]:
        """The proposed tokens that are right, and the first that was not, or that follows them."""
        tokens = proposal.tokens
        logits = self.reading.last([*self.row.window, *tokens], len(tokens) + 1)
        for i in range(len(tokens) + 1):
            guess = tokens[i] if i < len(tokens) else None
            share = proposal.shares[i] if guess is not None and proposal.shares is not None else None
            event = self._next(logits[i : i + 1], guess, share)
            yield event
            if event.token != guess:
                return

    def _next(self, logits: Tensor, guess: int | None, share: Tensor | None) -> Emitted:
        """One token of logits (1, V); its row has it afterwards."""
        row, sampling = self.row, self.sampling
        logprobs = log_probabilities(logits)
        held = withhold(logits, [row.count < self.ending.min_tokens], self.ending.end_ids)
        own = penalized(held, sampling, seen_tokens([row], logits, sampling), token_counts([row], logits, sampling))
        token = confirmed(own, sampling, -1 if guess is None else guess, share, self.random)
        row.add(token)
        best = most_probable(logprobs, self.alternatives)[0]
        return Emitted(row.number, token, float(logprobs[0, token]), best, self.ending.reason(row, token))
