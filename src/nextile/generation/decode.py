"""A generator of tokens: greedy or drawn, many rows at once, each as if it were alone.

Shapes: B rows, T time, D width, V vocabulary.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from nextile.base.device import has_compiler
from nextile.base.errors import NextileError, UsageError
from nextile.generation.sample import Sampling, next_token, point, random_stream
from nextile.generation.step import SMALL, Inputs, Told, compile_beside, compiled_step, is_compiled
from nextile.models.encoder_decoder import EncoderDecoder
from nextile.nn.cache import Cache, Memory, StaticCache
from nextile.nn.linear import FEW, Packed

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

    def buffers(self) -> Iterator[Tensor]:
        """What is held beside them, such as weights in codes."""
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
        self._packed: Packed | None = None

    def start(self, rows: list[list[int]]) -> Tensor:
        ids, counts = padded(rows)
        self.cache = self.model.new_cache(len(rows), self.capacity)
        self.cache.memory = self.memory
        return following(self.model, ids.to(self.device), self.cache, counts.to(self.device))

    def read(self, tokens: list[int]) -> Tensor:
        if 1 < len(tokens) <= FEW and self._packed is None:
            self._packed = Packed(cast(nn.Module, self.model))
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
        step = compiled_step(model, batch, capacity)
        self.inputs = Inputs(cast(StaticCache, model.new_cache(batch, capacity, static=True)))
        self.cache = self.inputs.cache
        self.step = step.on(self.inputs)
        self.rows = torch.arange(batch, device=self.device)  # those that go on
        self.longest = 0

    def start(self, rows: list[list[int]]) -> Tensor:
        everyone = [[0]] * len(self.inputs.ids)
        for row, tokens in zip(self.rows.tolist(), rows, strict=True):
            everyone[row] = tokens
        ids, counts = padded(everyone)
        self.longest = self.cache.span = ids.shape[1]
        self.cache.lengths.zero_()
        return following(self.model, ids.to(self.device), self.cache, counts.to(self.device))[self.rows]

    def read(self, tokens: list[int]) -> Tensor:
        self.inputs.ids[self.rows, 0] = torch.tensor(tokens, device=self.device)
        logits, _ = self._step()
        self.cache.lengths[self.rows] += 1
        return logits[self.rows]

    def follow(self, token: int, point: float = 0.0) -> tuple[Tensor, Told]:
        """Read one more token of the only row -> logits (1, V), and what to make of them at a point of 0..1."""
        self.inputs.ids.fill_(token)
        self.inputs.point.fill_(point)
        logits, told = self._step()
        self.cache.lengths += 1
        best, best_logprob, drawn, drawn_logprob, total = told[0].tolist()
        return logits, Told(int(best), best_logprob, int(drawn), drawn_logprob, total)

    def select(self, rows: list[int], each: int = 1) -> None:
        if each > 1:
            raise ValueError("the rows of a compiled reader stay where they are: give beams an EagerReader")
        self.rows = self.rows[torch.tensor(rows, device=self.device)]

    def _step(self) -> Sequence[Tensor]:
        self.longest += 1
        return self.step(min(self.inputs.capacity, max(SMALL, self.longest)))


def _roomy(tokens: int, context: int) -> int:
    """A capacity for `tokens`: one of few sizes, so that a graph once compiled serves most calls."""
    return min(context, max(1024, 1 << (tokens - 1).bit_length()))


COMPILING = 15.0  # seconds that it may take, here with room to spare
READING = 20e9  # bytes of weights a second that an eager step reads on CPU
CALLING = 15e-6  # seconds that each of its tensors costs beside that
SAVED = 0.6  # of an eager step's time


def compiling_pays(model: LanguageModel, rows: int, tokens: int) -> bool:
    """Whether a compiled step wins back the time that compiling takes: for one row on CPU, where there is a compiler.

    With more rows the weights are read once for all of them, and the library's matrix product is as good.
    """
    weights = list(model.parameters())
    if rows != 1 or weights[0].device.type != "cpu" or not has_compiler():
        return False
    return tokens * eager_seconds(model) * SAVED > COMPILING


def _made_beside(model: LanguageModel, room: int, rows: int, tokens: int) -> Callable[[], CompiledReader | None] | None:
    """Have a step compiled, where that pays, while others are read: gives a reader as soon as it is there."""
    if not compiling_pays(model, rows, tokens):
        return None
    ready = compile_beside(model, 1, room)
    return lambda: CompiledReader(model, room, 1) if ready() else None


def eager_seconds(model: LanguageModel) -> float:
    """What an eager step takes on CPU, roughly."""
    held = [*model.parameters(), *model.buffers()]
    return sum(weight.nbytes for weight in held) / READING + len(held) * CALLING


# --- decoding -----------------------------------------------------------------------------------------------------


class Row:
    """One text as it grows."""

    def __init__(self, number: int, prompt: list[int], context: int):
        self.number, self.context = number, context
        self.seen = set(prompt)
        self.window = prompt[-context:]  # what the model looks at
        self.count = 0
        self.written = Counter[int]()

    def add(self, token: int) -> None:
        self.seen.add(token)
        self.written[token] += 1
        self.window.append(token)
        self.count += 1

    def slide(self) -> bool:
        """Whether the window was full and now holds its later half; half, so that it is read anew only seldom."""
        full = len(self.window) > self.context
        if full:
            self.window = self.window[-max(1, self.context // 2) :]
        return full


@dataclass(frozen=True)
class Ending:
    """When a text is over."""

    max_tokens: int
    end_ids: frozenset[int] = frozenset()
    stop: Callable[[int, int], bool] | None = None
    min_tokens: int = 0  # end tokens are impossible before

    def check(self, vocab: int) -> None:
        """Errors: UsageError for counts out of bounds, and where a text could neither end nor go on."""
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}: ask for at least 1")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise UsageError(f"min_tokens is {self.min_tokens}: ask for 0 to max_tokens, which is {self.max_tokens}")
        if self.min_tokens and len({token for token in self.end_ids if 0 <= token < vocab}) == vocab:
            raise UsageError(f"all tokens end the text and min_tokens is {self.min_tokens}: take fewer end tokens")

    def reason(self, row: Row, token: int) -> Reason | None:
        """Why this token, just added, is the row's last."""
        if token in self.end_ids:
            return "end"
        if self.stop is not None and self.stop(row.number, token):
            return "stop"
        return "length" if row.count == self.max_tokens else None


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
    min_tokens: int = 0,
    compiled: bool | Literal["auto"] = "auto",
) -> Iterator[Emitted]:
    """Up to max_tokens tokens after each prompt, row by row in each round, as they come.

    end_ids end a row. stop(row, token) is told every other token and ends the row when it says so. alternatives: how
    many of the most probable tokens to report. streams: which stream of the seed each row draws from, its number when
    None. min_tokens: end tokens are impossible before. compiled: one graph for each new token; auto where it saves
    more than compiling costs.

    A row depends on nothing but its prompt, the seed and its stream. Of a prompt longer than the model's context only
    the end is read; when a text outgrows the context, its later half is read anew and it goes on.
    Errors: UsageError for max_tokens below 1 and min_tokens above it; NextileError for an empty prompt, for an id that
    the model does not know, and when the model predicts NaN.
    """
    ending = Ending(max_tokens, frozenset(end_ids), stop, min_tokens)
    ending.check(model.spec.embed.vocab)
    check_ids(prompts, model.spec.embed.vocab)
    if not prompts:
        return
    context = model.spec.context
    rows = [Row(number, list(prompt), context) for number, prompt in enumerate(prompts)]
    needed = min(context, max(len(row.window) for row in rows) + max_tokens)
    room = _roomy(needed, context)
    quicker = None
    if compiled == "auto":
        compiled = len(rows) == 1 and is_compiled(model, 1, room)
        quicker = None if compiled or model.training else _made_beside(model, room, len(rows), max_tokens)
    seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
    random = [random_stream(seed, number) for number in streams or range(len(rows))]
    with evaluating(model):
        if compiled and len(rows) == 1:
            reader = CompiledReader(model, room, 1)
            yield from _alone(reader, rows[0], sampling, random[0], ending, alternatives)
            return
        reader = CompiledReader(model, room, len(rows)) if compiled else EagerReader(model, needed)
        yield from _rounds(reader, rows, sampling, random, ending, alternatives, quicker)


@torch.no_grad()
def decode_by(
    reader: Reader, prompt: Sequence[int], sampling: Sampling, ending: Ending, *, context: int, alternatives: int = 0
) -> Iterator[Emitted]:  # fmt: skip
    """As `decode`, one text by a reader that may hold a memory: what a decoder writes beside a source, token by token.

    The prompt and what is written fit into the context.
    """
    seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
    row, stream = Row(0, list(prompt), context), random_stream(seed, 0)
    yield from _rounds(reader, [row], sampling, [stream], ending, alternatives)


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
    rows: list[Row],
    sampling: Sampling,
    random: list[torch.Generator],
    ending: Ending,
    alternatives: int,
    quicker: Callable[[], CompiledReader | None] | None = None,
) -> Iterator[Emitted]:
    """Choose a token for each row, tell, let the rows go that are done, read on; the only row by a quicker reader."""
    logits = reader.start([row.window for row in rows])
    while True:
        logprobs = log_probabilities(logits)
        streams, counts = [random[row.number] for row in rows], token_counts(rows, logits, sampling)
        allowed = withhold(logits, [row.count < ending.min_tokens for row in rows], ending.end_ids)
        chosen = next_token(allowed, sampling, streams, seen_tokens(rows, logits, sampling), counts)
        tokens, own = chosen.tolist(), logprobs.gather(-1, chosen[:, None])[:, 0].tolist()
        best = most_probable(logprobs, alternatives)
        going = []
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            row.add(token)
            reason = ending.reason(row, token)
            going += [i] if reason is None else []
            yield Emitted(row.number, token, own[i], best[i], reason)
        if not going:
            return
        if len(going) < len(rows):
            reader.select(going)
            rows = [rows[i] for i in going]
        if quicker is not None and (found := quicker()) is not None:
            rows[0].slide()
            yield from _alone(found, rows[0], sampling, random[0], ending, alternatives)
            return
        slid = [row.slide() for row in rows]  # every row is asked
        windows = [row.window for row in rows]
        logits = reader.start(windows) if any(slid) else reader.read([window[-1] for window in windows])


def _alone(
    reader: CompiledReader,
    row: Row,
    sampling: Sampling,
    random: torch.Generator,
    ending: Ending,
    alternatives: int,
) -> Iterator[Emitted]:
    """The same for one row, whose token the compiled step has chosen already where nothing else is asked of it."""
    logits, told = reader.start([row.window]), None
    greedy, plain = sampling.temperature == 0.0, is_plain(sampling)
    reader.inputs.degree.fill_(sampling.temperature)
    while True:
        if told is None or not plain or row.count < ending.min_tokens:
            token, logprob = _chosen(logits, row, sampling, random, ending)
        else:
            check_finite(told.total)
            token, logprob = (told.best, told.best_logprob) if greedy else (told.drawn, told.drawn_logprob)
        best = most_probable(logits.log_softmax(-1), alternatives)[0] if alternatives else ()
        row.add(token)
        reason = ending.reason(row, token)
        yield Emitted(row.number, token, logprob, best, reason)
        if reason is not None:
            return
        if row.slide():
            logits, told = reader.start([row.window]), None
        else:
            drawing = plain and not greedy and row.count >= ending.min_tokens
            logits, told = reader.follow(token, point(random) if drawing else 0.0)


def _chosen(logits: Tensor, row: Row, sampling: Sampling, random: torch.Generator, ending: Ending) -> tuple[int, float]:
    """The next token of one row's logits (1, V), and its log-probability."""
    logprobs = log_probabilities(logits)
    allowed = withhold(logits, [row.count < ending.min_tokens], ending.end_ids)
    seen, counts = seen_tokens([row], logits, sampling), token_counts([row], logits, sampling)
    token = int(next_token(allowed, sampling, [random], seen, counts))
    return token, float(logprobs[0, token])


def is_plain(sampling: Sampling) -> bool:
    """Whether a token hangs on nothing but the distribution and the temperature."""
    cut = (sampling.top_k, sampling.top_p, sampling.min_p) != (None, None, None) and sampling.temperature > 0.0
    moved = sampling.logit_bias or sampling.frequency_penalty or sampling.presence_penalty
    return not (cut or moved or sampling.repetition_penalty != 1.0)


def seen_tokens(rows: list[Row], logits: Tensor, sampling: Sampling) -> Tensor | None:
    """(B, V): which tokens each row's text has; None when nobody asks."""
    if sampling.repetition_penalty == 1.0:
        return None
    pairs = torch.tensor([(i, token) for i, row in enumerate(rows) for token in row.seen], device=logits.device)
    seen = torch.zeros_like(logits, dtype=torch.bool)
    seen[pairs[:, 0], pairs[:, 1]] = True
    return seen


def token_counts(rows: list[Row], logits: Tensor, sampling: Sampling) -> Tensor | None:
    """(B, V): how often each row's text after its prompt has each token; None when nobody asks."""
    if not (sampling.frequency_penalty or sampling.presence_penalty):
        return None
    found = [(i, *pair) for i, row in enumerate(rows) for pair in row.written.items()]
    triples = torch.tensor(found, dtype=torch.long, device=logits.device).view(-1, 3)
    counts = torch.zeros_like(logits)
    counts[triples[:, 0], triples[:, 1]] = triples[:, 2].to(logits.dtype)
    return counts


def withhold(logits: Tensor, held: list[bool], end_ids: Collection[int]) -> Tensor:
    """Logits (B, V) in which the rows that are `held` do not end."""
    ends = [token for token in end_ids if 0 <= token < logits.shape[-1]]
    if not ends or not any(held):
        return logits
    rows = torch.tensor(held).nonzero().to(logits.device)  # (any, 1)
    return logits.index_put((rows, torch.tensor(ends, device=logits.device)), logits.new_tensor(-torch.inf))


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
    check_finite(0.0 if bool(x.isfinite().all()) else math.nan)


def check_finite(number: float) -> None:
    """Errors: NextileError when a sum over a model's predictions is no number."""
    if not math.isfinite(number):
        raise NextileError("the model predicts NaN or infinity: its weights are broken, take an earlier state of it")


def most_probable(logprobs: Tensor, count: int) -> list[tuple[tuple[int, float], ...]]:
    """Of each row of (B, V) the `count` highest, as (token, log-probability)."""
    if not count:
        return [()] * len(logprobs)
    top = logprobs.topk(min(count, logprobs.shape[-1]))
    return [tuple(zip(*row, strict=True)) for row in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
