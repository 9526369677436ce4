"""A generator of tokens: greedy or drawn, many rows at once, each as if it were alone.

Shapes: B rows, T time, D width, V vocabulary.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from nextile.base.device import has_compiler
from nextile.base.errors import NextileError, UsageError
from nextile.generation.sample import Sampling, next_token, random_stream
from nextile.models.encoder_decoder import EncoderDecoder
from nextile.nn.cache import Cache, Memory
from nextile.nn.linear import lay_in_rows
from nextile.training.graph import one_graph

Reason = Literal["end", "stop", "length"]


@dataclass(frozen=True)
class Emitted:
    """One new token of one row."""

    row: int
    token: int
    logprob: float  # nats, of the model's own distribution: temperature 1, nothing cut, no penalty
    alternatives: tuple[tuple[int, float], ...] = ()  # the most probable tokens and their logprobs, in the same sense
    finished: Reason | None = None  # why this token is the row's last: an end token, its owner, or max_tokens


class LanguageModel(Protocol):
    """What is asked of a model; `nextile.models.transformer.Transformer` is one."""

    spec: Any  # with context and embed.vocab
    head: Any  # (B, T, D) -> (B, T, V)
    training: bool

    def features(self, ids: Tensor, /, *, cache: Cache) -> Tensor:
        """(B, T) -> (B, T, D)."""
        ...

    def new_cache(self, batch: int, capacity: int, *, static: bool = False) -> Cache:
        """An empty cache."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights."""
        ...

    def train(self, mode: bool) -> Any:
        """With dropout, or without."""
        ...


class Reader(Protocol):
    """A model in the midst of B rows. That of an encoder-decoder holds a memory as well; the decoding is the same."""

    def start(self, rows: list[list[int]]) -> Tensor:
        """Forget what was read, read these tokens -> what follows each row's last, logits (B, V) fp32."""
        ...

    def read(self, tokens: list[int]) -> Tensor:
        """Read one more token of each row -> logits (B, V) fp32."""
        ...

    def select(self, rows: list[int], each: int = 1) -> None:
        """Go on with these rows only. For beams a row may come several times, `each` rows on end share a source."""
        ...


# --- readers ------------------------------------------------------------------------------------------------------


def following(model: LanguageModel, ids: Tensor, cache: Cache, counts: Tensor | int) -> Tensor:
    """Read ids (B, T), of each row the first `counts` (B,) real -> logits (B, V) after the last real one."""
    x = model.features(ids, cache=cache)  # (B, T, D)
    cache.advance(counts)
    last = x[:, -1:] if isinstance(counts, int) else x[torch.arange(len(x), device=x.device), counts - 1][:, None]
    return model.head(last)[:, 0].float()


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Rows as ids (B, T), filled up on the right, and their lengths (B,)."""
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows]), torch.tensor([len(row) for row in rows])


def check_ids(rows: Sequence[Sequence[int]], vocab: int, what: str = "prompt") -> None:
    """Errors: NextileError for a row without tokens, which predicts nothing, and for ids outside the vocabulary."""
    for number, row in enumerate(rows):
        if not row:
            raise NextileError(f"{what} {number} has no tokens: give it the end token at least")
        if not 0 <= min(row) <= max(row) < vocab:
            raise NextileError(f"{what} {number} has an id outside 0..{vocab - 1}: its tokenizer is of another model")


WIDEST = 16  # texts that share a row: each looks at the keys of all, and keys that do not move save less than that


class EagerReader:
    """Reads with a cache that looks at no more than there is; rows that are done leave it."""

    memory: Memory | None = None

    def __init__(self, model: LanguageModel, capacity: int):
        self.model, self.capacity = model, capacity
        self.device = next(model.parameters()).device

    def start(self, rows: list[list[int]]) -> Tensor:
        ids, counts = padded(rows)
        self.cache = self.model.new_cache(len(rows), self.capacity)
        self.cache.memory = self.memory
        return following(self.model, ids.to(self.device), self.cache, counts.to(self.device))

    def read(self, tokens: list[int]) -> Tensor:
        ids = torch.tensor(tokens, device=self.device).view(len(self.cache.lengths), -1)  # (B, texts on a row)
        logits = self.model.head(self.model.features(ids, cache=self.cache)).flatten(0, 1)
        self.cache.advance(1)
        return logits.float()

    def select(self, rows: list[int], each: int = 1) -> None:
        share = self.cache.branch if 1 < each <= WIDEST else self.cache.select
        share(torch.tensor(rows, device=self.device), each)


class SourceReader(EagerReader):
    """Reads targets, each beside its source, which was encoded once."""

    def __init__(self, model: EncoderDecoder, sources: list[list[int]], capacity: int):
        """Errors: NextileError for a source without tokens and for ids that the model does not know."""
        super().__init__(model, capacity)
        check_ids(sources, model.spec.source.vocab, "source")
        ids, counts = padded(sources)  # (B, M), (B,)
        real = torch.arange(ids.shape[1]) < counts[:, None]  # (B, M)
        with torch.no_grad():
            self.memory = model.encode(ids.to(self.device), real.to(self.device))


class CompiledReader:
    """Reads each new token by one compiled graph of fixed shapes: rows that are done stay and are not asked."""

    def __init__(self, model: LanguageModel, capacity: int, batch: int):
        self.model, self.device = model, next(model.parameters()).device
        self.cache = model.new_cache(batch, capacity, static=True)
        lay_in_rows(model.parameters())
        self.step = _compiled_step(model, batch, capacity)
        self.ids = torch.zeros(batch, 1, dtype=torch.long, device=self.device)
        self.rows = torch.arange(batch, device=self.device)  # those that go on

    def start(self, rows: list[list[int]]) -> Tensor:
        everyone = [[0]] * len(self.ids)
        for row, tokens in zip(self.rows.tolist(), rows, strict=True):
            everyone[row] = tokens
        ids, counts = padded(everyone)
        self.cache.lengths.zero_()
        return following(self.model, ids.to(self.device), self.cache, counts.to(self.device))[self.rows]

    def read(self, tokens: list[int]) -> Tensor:
        self.ids[self.rows, 0] = torch.tensor(tokens, device=self.device)
        logits = self.step(self.model, self.ids, self.cache)
        self.cache.lengths[self.rows] += 1
        return logits[self.rows]

    def select(self, rows: list[int], each: int = 1) -> None:
        if each > 1:
            raise ValueError("the rows of a compiled reader stay where they are: give beams an EagerReader")
        self.rows = self.rows[torch.tensor(rows, device=self.device)]


_compiled: WeakKeyDictionary[Any, dict[tuple[int, int], Callable]] = WeakKeyDictionary()


def _compiled_step(model: LanguageModel, batch: int, capacity: int) -> Callable[..., Tensor]:
    """The graph of (model, ids (B, 1), static cache) -> logits (B, V), kept as long as the model is."""

    def step(model: LanguageModel, ids: Tensor, cache: Cache) -> Tensor:
        return model.head(model.features(ids, cache=cache))[:, 0].float()

    graphs = _compiled.setdefault(model, {})
    if (batch, capacity) not in graphs:
        graphs[batch, capacity] = one_graph(step)
    return graphs[batch, capacity]


def _roomy(tokens: int, context: int) -> int:
    """A capacity for `tokens`: one of few sizes, so that a graph once compiled serves most calls."""
    return min(context, max(64, 1 << (tokens - 1).bit_length()))


COMPILING = 15.0  # seconds that it may take, here with room to spare
READING = 20e9  # bytes of weights a second that an eager step reads on CPU
SAVED = 0.6  # of an eager step's time


def compiling_pays(model: LanguageModel, rows: int, tokens: int) -> bool:
    """Whether a compiled step wins back the time that compiling takes: for one row on CPU, where there is a compiler.

    With more rows the weights are read once for all of them, and the library's matrix product is as good.
    """
    weights = list(model.parameters())
    seconds = tokens * sum(weight.nbytes for weight in weights) / READING
    return rows == 1 and weights[0].device.type == "cpu" and seconds * SAVED > COMPILING and has_compiler()


# --- decoding -----------------------------------------------------------------------------------------------------


class _Row:
    """One text as it grows."""

    def __init__(self, number: int, prompt: list[int], context: int):
        self.number, self.context = number, context
        self.seen = set(prompt)
        self.window = prompt[-context:]  # what the model looks at
        self.count = 0

    def add(self, token: int) -> None:
        self.seen.add(token)
        self.window.append(token)
        self.count += 1

    def slide(self) -> bool:
        """Whether the window was full and now holds its later half; half, so that it is read anew only seldom."""
        full = len(self.window) > self.context
        if full:
            self.window = self.window[-max(1, self.context // 2) :]
        return full


@torch.no_grad()
def decode(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_tokens: int,
    end_ids: Collection[int] = (),
    stop: Callable[[int, int], bool] | None = None,
    alternatives: int = 0,
    streams: Sequence[int] | None = None,
    compiled: bool | Literal["auto"] = "auto",
) -> Iterator[Emitted]:
    """Up to max_tokens tokens after each prompt, row by row in each round, as they come.

    end_ids end a row. stop(row, token) is told every other token and ends the row when it says so. alternatives: how
    many of the most probable tokens to report. streams: which stream of the seed each row draws from, its number when
    None. compiled: one graph for each new token; auto where it saves more than compiling costs.

    A row depends on nothing but its prompt, the seed and its stream. Of a prompt longer than the model's context only
    the end is read; when a text outgrows the context, its later half is read anew and it goes on.
    Errors: UsageError for max_tokens below 1; NextileError for an empty prompt, for an id that the model does not know,
    and when the model predicts NaN.
    """
    if max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}: ask for at least 1")
    check_ids(prompts, model.spec.embed.vocab)
    if not prompts:
        return
    context = model.spec.context
    rows = [_Row(number, list(prompt), context) for number, prompt in enumerate(prompts)]
    needed = min(context, max(len(row.window) for row in rows) + max_tokens)
    if compiled == "auto":
        compiled = compiling_pays(model, len(rows), max_tokens)
    reader = CompiledReader(model, _roomy(needed, context), len(rows)) if compiled else EagerReader(model, needed)
    seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
    random = [random_stream(seed, number) for number in streams or range(len(rows))]
    ending = partial(_reason, max_tokens=max_tokens, end_ids=frozenset(end_ids), stop=stop)
    with evaluating(model):
        yield from _rounds(reader, rows, sampling, random, ending, alternatives)


@contextmanager
def evaluating(model: LanguageModel) -> Iterator[None]:
    """Without dropout; a model in training goes on training afterwards."""
    training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(training)


def _rounds(
    reader: Reader,
    rows: list[_Row],
    sampling: Sampling,
    random: list[torch.Generator],
    ending: Callable[[_Row, int], Reason | None],
    alternatives: int,
) -> Iterator[Emitted]:
    """Choose a token for each row, tell, let the rows go that are done, read on."""
    logits = reader.start([row.window for row in rows])
    while True:
        logprobs = log_probabilities(logits)
        chosen = next_token(logits, sampling, [random[row.number] for row in rows], _seen(rows, logits, sampling))
        tokens, own = chosen.tolist(), logprobs.gather(-1, chosen[:, None])[:, 0].tolist()
        best = _most_probable(logprobs, alternatives)
        going = []
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            row.add(token)
            reason = ending(row, token)
            going += [i] if reason is None else []
            yield Emitted(row.number, token, own[i], best[i], reason)
        if not going:
            return
        if len(going) < len(rows):
            reader.select(going)
            rows = [rows[i] for i in going]
        slid = [row.slide() for row in rows]  # every row is asked
        windows = [row.window for row in rows]
        logits = reader.start(windows) if any(slid) else reader.read([window[-1] for window in windows])


def _reason(
    row: _Row, token: int, *, max_tokens: int, end_ids: frozenset[int], stop: Callable[[int, int], bool] | None
) -> Reason | None:
    if token in end_ids:
        return "end"
    if stop is not None and stop(row.number, token):
        return "stop"
    return "length" if row.count == max_tokens else None


def _seen(rows: list[_Row], logits: Tensor, sampling: Sampling) -> Tensor | None:
    """(B, V): which tokens each row's text has; None when nobody asks."""
    if sampling.repetition_penalty == 1.0:
        return None
    pairs = torch.tensor([(i, token) for i, row in enumerate(rows) for token in row.seen], device=logits.device)
    seen = torch.zeros_like(logits, dtype=torch.bool)
    seen[pairs[:, 0], pairs[:, 1]] = True
    return seen


def log_totals(logits: Tensor) -> Tensor:
    """What logits (B, V) are above their log-probabilities: (B, 1). Errors: NextileError when they are no numbers."""
    totals = logits.logsumexp(-1, keepdim=True)
    _check_finite(totals)
    return totals


def log_probabilities(logits: Tensor) -> Tensor:
    """Logits (B, V) as log-probabilities. Errors: NextileError when they are no numbers."""
    logprobs = logits.log_softmax(-1)
    _check_finite(logprobs.amax(-1))
    return logprobs


def _check_finite(x: Tensor) -> None:
    if not bool(x.isfinite().all()):
        raise NextileError("the model predicts NaN or infinity: its weights are broken, take an earlier state of it")


def _most_probable(logprobs: Tensor, count: int) -> list[tuple[tuple[int, float], ...]]:
    """Of each row of (B, V) the `count` highest, as (token, log-probability)."""
    if not count:
        return [()] * len(logprobs)
    top = logprobs.topk(min(count, logprobs.shape[-1]))
    return [tuple(zip(*row, strict=True)) for row in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
