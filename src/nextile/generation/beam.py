"""Beam search: the most probable whole texts, sought by going on from the few most probable beginnings.

Shapes: S sources, W width, V vocabulary, C candidates. A row is one beginning; those of a source stand on end.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from nextile.base.config import Settings
from nextile.base.errors import UsageError
from nextile.generation.decode import Reader, Reason, log_totals

Result = TypeVar("Result")
NEVER = float("-inf")  # the log-probability of what cannot be


class Beams(Settings):
    """How wide is sought, how lengths are weighed, and how long a source goes on; as in transformers."""

    width: Annotated[int, Field(ge=1, le=1 << 16)] = 5
    length_penalty: Annotated[float, Field(ge=-16.0, le=16.0)] = 1.0  # the score: log-probability / length ** penalty
    patience: Literal["likely", "certain"] = "likely"  # done when no beginning would, or none can, be among the best


@dataclass(frozen=True)
class Hypothesis:
    """A whole text."""

    tokens: list[int]  # without the end token
    score: float  # logprob / length ** length_penalty; the end token counts
    logprob: float  # nats, the end token's included
    finished: Reason  # "end" or "length"


class _Beginning(NamedTuple):
    """A text so far: one token more than an earlier one had."""

    logprob: float
    row: int = 0  # where among its source's rows the earlier one was
    token: int = 0
    earlier: _Beginning | None = None

    def tokens(self) -> list[int]:
        """From the first to the last."""
        tokens, at = [], self
        while at.earlier is not None:
            tokens.append(at.token)
            at = at.earlier
        return tokens[::-1]


Fate = Literal["on", "ended", "left"]  # of a beginning that was looked at: it goes on, it has ended, it is forgotten


class Looked(NamedTuple):
    """A beginning that was looked at: `token` after what went on as number `row` of its source's round before."""

    logprob: float  # nats, of the whole beginning
    row: int
    token: int
    fate: Fate


DEAD = _Beginning(NEVER)  # fills the rows of a source that has fewer beginnings, as a small vocabulary has at first


class _Source:
    """What was found for one source: the best texts that have ended, and the beginnings that go on."""

    def __init__(self, beams: Beams, limit: int):
        self.beams, self.limit = beams, limit
        self.ended: list[Hypothesis] = []  # at most `width`, best first
        self.going = [_Beginning(0.0)]  # as many, most probable first
        self.length = 0

    def grow(self, candidates: Iterable[tuple[float, int, int]], end_ids: Collection[int]) -> list[Fate]:
        """Take the candidates (log-probability, row, token), most probable first, each to where it belongs.

        Only the `width` best may end here, so that what ends is as good as what goes on; the others go on in the
        stead of those that ended. Returns what became of the first ones; all after them are left.
        """
        width, earlier, fates = self.beams.width, self.going, list[Fate]()
        self.going, self.length = [], self.length + 1
        for rank, (logprob, row, token) in enumerate(candidates):
            if logprob == NEVER or len(self.going) == width:
                break
            beginning = _Beginning(logprob, row, token, earlier[row])
            fate: Fate = "left"
            if token not in end_ids and self.length < self.limit:
                self.going.append(beginning)
                fate = "on"
            elif rank < width:
                self.ended.append(self._whole(beginning, "end" if token in end_ids else "length"))
                fate = "ended"
            fates.append(fate)
        self.ended = sorted(self.ended, key=lambda text: -text.score)[:width]
        return fates

    def done(self) -> bool:
        """Whether nothing that goes on would (or can, as patience has it) be among the best."""
        if not self.going:
            return True
        if len(self.ended) < self.beams.width:
            return False
        longer = self.beams.patience == "certain" and self.beams.length_penalty > 0  # is better, at the same logprob
        length = self.limit if longer else self.length
        return self._score(self.going[0].logprob, length) <= self.ended[-1].score

    def rows(self) -> list[_Beginning]:
        """What goes on, filled up to the width."""
        return self.going + [DEAD] * (self.beams.width - len(self.going))

    def _score(self, logprob: float, length: int) -> float:
        return logprob / length**self.beams.length_penalty

    def _whole(self, text: _Beginning, reason: Reason) -> Hypothesis:
        tokens = text.tokens()
        score = self._score(text.logprob, len(tokens))
        return Hypothesis(tokens[:-1] if reason == "end" else tokens, score, text.logprob, reason)


PIECE = 20  # numbers whose highest is taken first: the search among the rest is then as short


def highest(x: Tensor, less: Tensor, more: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of each source's x - less + more, and where they are among its W*V, as topk has it.

    x (S, W, V); less, more (S, W, 1): of each row. They lie in the `count` pieces whose own highest are highest; a
    piece is every (V / PIECE)-th number of a row. So x is read once and the sum never written.
    """
    sources, width, vocab = x.shape
    pieces = vocab // PIECE
    if width * pieces <= count:
        best = (x - less + more).flatten(1).topk(min(count, width * vocab))
        return best.values, best.indices
    tops = x[..., : pieces * PIECE].unflatten(2, (PIECE, pieces)).amax(2) - less + more  # (S, W, pieces)
    piece = tops.flatten(1).topk(count).indices  # (S, C)
    first = piece // pieces * vocab + piece % pieces  # where each piece begins
    inside = torch.arange(0, pieces * PIECE, pieces, device=x.device)
    rest = torch.arange(width * vocab, device=x.device).view(width, vocab)[:, pieces * PIECE :]  # they fill no piece
    places = torch.cat(((first[..., None] + inside).flatten(1), rest.reshape(1, -1).expand(sources, -1)), 1)
    rows = places // vocab
    few = x.flatten(1).gather(1, places) - less.flatten(1).gather(1, rows) + more.flatten(1).gather(1, rows)
    best = few.topk(count)
    return best.values, places.gather(1, best.indices)


def best_candidates(logits: Tensor, before: Tensor, count: int, never: Tensor) -> list[list[tuple[float, int, int]]]:
    """Of each source's rows the `count` best next tokens, as (log-probability of the text, row, token), best first.

    logits (S*W, V), of which nothing is left; before (S, W): each row's log-probability so far; never: token ids that
    do not come.
    """
    vocab, totals = logits.shape[-1], log_totals(logits)
    logits[:, never] = NEVER
    sums, places = highest(  # (S, C)
        logits.view(*before.shape, vocab), totals.view(*before.shape, 1), before[..., None], count
    )
    return [
        [(logprob, place // vocab, place % vocab) for logprob, place in zip(*source, strict=True)]
        for source in zip(sums.tolist(), places.tolist(), strict=True)
    ]


def closed_up(going: list[int]) -> list[int]:
    """The same places, in the order in which the fewest move: those below their number stay, the others fill up."""
    stay = set(going)
    later = iter([place for place in going if place >= len(going)])
    return [place if place in stay else next(later) for place in range(len(going))]


def beam_search(
    reader: Reader,
    prompts: Sequence[Sequence[int]],
    beams: Beams,
    *,
    limits: Sequence[int],
    end_ids: Collection[int],
    never: Collection[int] = (),
    n: int = 1,
) -> list[list[Hypothesis]]:
    """The n best texts after each prompt, best first; fewer where there are not so many.

    limits: the most new tokens of each prompt, the end token included. never: tokens that are not written.
    A source depends on nothing beside it, and leaves the batch when it is done.
    Errors: UsageError for counts out of bounds; NextileError when the model predicts NaN.
    """
    return last(beam_rounds(reader, prompts, beams, limits=limits, end_ids=end_ids, never=never, n=n))


def last(work: Generator[Any, None, Result]) -> Result:
    """What a generator returns when it is done."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


@torch.no_grad()
def beam_rounds(
    reader: Reader,
    prompts: Sequence[Sequence[int]],
    beams: Beams,
    *,
    limits: Sequence[int],
    end_ids: Collection[int],
    never: Collection[int] = (),
    n: int = 1,
) -> Generator[list[list[Looked]], None, list[list[Hypothesis]]]:
    """`beam_search` round by round: yields what was looked at for each source that was still sought, most probable
    first, before its successors are read; returns the best texts. So others may have their turn between the rounds.
    """
    _check(len(prompts), beams, limits, n)
    if not prompts:
        return []
    end_ids, width = frozenset(end_ids), beams.width
    count = width * (1 + max(1, len(end_ids)))  # of so many `width` go on, even if every row would rather end
    found = [_Source(beams, limit) for limit in limits]
    sources, each = found, 1  # each prompt is read once: its first tokens come from one row
    logits = reader.start([list(prompt) for prompt in prompts])  # (S*each, V)
    banned = torch.tensor(sorted(never), dtype=torch.long, device=logits.device)
    before = logits.new_zeros(len(sources), each)  # (S, W)
    while True:
        candidates = best_candidates(logits, before, count, banned)
        yield [_looked(some, source.grow(some, end_ids)) for source, some in zip(sources, candidates, strict=True)]
        going = closed_up([number for number, source in enumerate(sources) if not source.done()])
        if not going:
            return [source.ended[:n] for source in found]
        sources = [sources[number] for number in going]
        rows = [
            [(number * each + row.row, row) for row in source.rows()]
            for number, source in zip(going, sources, strict=True)
        ]
        reader.select([place for source in rows for place, _ in source], each=width)
        logits = reader.read([row.token for source in rows for _, row in source])
        before, each = logits.new_tensor([[row.logprob for _, row in source] for source in rows]), width


def _looked(candidates: Sequence[tuple[float, int, int]], fates: Sequence[Fate]) -> list[Looked]:
    """The candidates that are any, with what became of them."""
    pairs = zip_longest(candidates, fates, fillvalue="left")
    return [Looked(*candidate, fate) for candidate, fate in pairs if candidate[0] != NEVER]  # type: ignore[misc]


def _check(prompts: int, beams: Beams, limits: Sequence[int], n: int) -> None:
    if not 1 <= n <= beams.width:
        raise UsageError(f"n is {n} and the beams are {beams.width} wide: ask for 1 to {beams.width}, or widen them")
    if len(limits) != prompts:
        raise UsageError(f"there are {prompts} prompts and {len(limits)} limits: give one to each")
    if min(limits, default=1) < 1:
        raise UsageError(f"a limit is {min(limits)}: allow at least 1 new token")
