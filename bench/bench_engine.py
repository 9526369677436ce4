"""Many requests side by side with transformers: the engine's rounds against static batches of the same weights.

    python bench/bench_engine.py [--sizes 6x384 124M] [--dtypes float32 bfloat16] [--requests 64] [--batch 8]

Prompts are 8 to 256 tokens (log-uniform); of eight texts seven are 8 to 32 tokens and one is 64 to 256, drawn anew for
each request. Both decode greedily, to the same lengths, in one process; GPT-2's vocabulary, random weights.

The engine has 32 rows; all requests are given to it at once. transformers gets them 32 at a time: padded on the left,
`generate` until the longest of the batch is done, its default cache. The second way of transformers is tuned: requests
are sorted by the length of their prompts, which a server knows (it does not know the length of the answers), and run
`--batch` at a time: 8 are quicker than 32, as fewer wait for the longest. Useful tokens are those that were asked for.

Every text must be that of its solo run by `decode`; in float32 it is compared with that of transformers too, and how
many differ is shown: rounding may decide between two tokens of equal probability.
Then the same requests arrive one by one, at random, as often as the engine can take at seven tenths of its speed:
seconds from a request to its first token. At last 200 texts at once, each compared with its solo run.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import transformers
from bench_generation import pair

from nextile.generation.decode import decode
from nextile.generation.sample import Sampling
from nextile.models.families import gpt2
from nextile.serving.engine import Engine, Request

GREEDY = Sampling(temperature=0.0)
SIZES = {
    "6x384": lambda: gpt2.spec(width=384, depth=6, heads=6),
    "124M": gpt2.spec,
}
ROWS = 32


@dataclass(frozen=True)
class Asked:
    """A prompt, and how many tokens are to follow it."""

    prompt: list[int]
    tokens: int


def workload(count: int, seed: int = 0) -> list[Asked]:
    """Requests as the file's docstring has them."""
    drawn = random.Random(seed)

    def one() -> Asked:
        length = round(math.exp(drawn.uniform(math.log(8), math.log(256))))
        tokens = drawn.randint(64, 256) if drawn.random() < 1 / 8 else drawn.randint(8, 32)
        return Asked([drawn.randrange(50_257) for _ in range(length)], tokens)

    return [one() for _ in range(count)]


# --- the two ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def static_batch(model: transformers.GPT2LMHeadModel, batch: Sequence[Asked]) -> list[list[int]]:
    """One call of `generate` for all of them."""
    longest, most = max(len(asked.prompt) for asked in batch), max(asked.tokens for asked in batch)
    ids = torch.tensor([[0] * (longest - len(asked.prompt)) + asked.prompt for asked in batch])
    mask = torch.tensor([[0] * (longest - len(asked.prompt)) + [1] * len(asked.prompt) for asked in batch])
    found = model.generate(ids, attention_mask=mask, max_new_tokens=most, min_new_tokens=most, do_sample=False)
    return [row[: asked.tokens] for row, asked in zip(found[:, longest:].tolist(), batch, strict=True)]


def static(model: transformers.GPT2LMHeadModel, work: Sequence[Asked], batch: int) -> list[list[int]]:
    """Batches in the given order."""
    return [text for start in range(0, len(work), batch) for text in static_batch(model, work[start : start + batch])]


class Told:
    """What comes of a request, and when."""

    def __init__(self):
        self.began, self.first = time.perf_counter(), 0.0
        self.tokens: list[int] = []
        self.over = threading.Event()

    def __call__(self, event) -> None:
        if isinstance(event, BaseException):
            print(f"a request failed: {event}", file=sys.stderr)
            self.over.set()
            return
        self.first = self.first or time.perf_counter()
        self.tokens.append(event.token)
        if event.finished is not None:
            self.over.set()


def ask(engine: Engine, asked: Asked) -> Told:
    """Give the engine a request."""
    told = Told()
    engine.submit(Request(asked.prompt, GREEDY, asked.tokens), told)
    return told


def engine_of(model: torch.nn.Module, rows: int = ROWS) -> Engine:
    """A fresh one, which has read nothing before."""
    return Engine(model, rows=rows, queue=1 << 12)


def continuous(model: torch.nn.Module, work: Sequence[Asked]) -> list[list[int]]:
    """All at once to a fresh engine."""
    engine = engine_of(model)
    told = [ask(engine, asked) for asked in work]
    for each in told:
        each.over.wait()
    engine.close()
    return [each.tokens for each in told]


def alone(model: torch.nn.Module, asked: Asked) -> list[int]:
    """By `decode`."""
    events = decode(model, [asked.prompt], GREEDY, max_tokens=asked.tokens, compiled=False)
    return [event.token for event in events]


# --- measuring --------------------------------------------------------------------------------------------------------


def timed(way: Callable[[], list[list[int]]]) -> tuple[float, list[list[int]]]:
    """Seconds, and what it gives."""
    start = time.perf_counter()
    found = way()
    return time.perf_counter() - start, found


def first_tokens(model: torch.nn.Module, work: Sequence[Asked], every: float) -> list[float]:
    """Seconds to each first token, when requests arrive at random, one in `every` seconds on average."""
    engine, drawn, told = engine_of(model), random.Random(1), []
    for asked in work:
        time.sleep(drawn.expovariate(1 / every))
        told.append(ask(engine, asked))
    for each in told:
        each.over.wait()
    engine.close()
    return [each.first - each.began for each in told]


def compare(name: str, dtype: torch.dtype, count: int, batch: int) -> None:
    """The rows of the table of one size and dtype."""
    ours, theirs = (model.to(dtype) for model in pair(SIZES[name]()))
    work = workload(count)
    useful = sum(asked.tokens for asked in work)
    static_batch(theirs, work[:2])
    continuous(ours, work[:2])
    kind = f"{name} | {str(dtype).removeprefix('torch.')}"

    base, texts = timed(lambda: static(theirs, work, ROWS))
    print(f"| {kind} | transformers, {ROWS} as they come | {useful / base:.0f} | 1.00x | |", flush=True)
    by_length = sorted(work, key=lambda asked: len(asked.prompt))
    tuned, _ = timed(lambda: static(theirs, by_length, batch))
    print(
        f"| {kind} | transformers, {batch} of like prompts | {useful / tuned:.0f} | {base / tuned:.2f}x | |", flush=True
    )
    runs = [timed(lambda: continuous(ours, work)) for _ in range(3)]
    taken, found = statistics.median(seconds for seconds, _ in runs), runs[0][1]
    different = sum(text != other for text, other in zip(found, texts, strict=True))
    solo = [number for number, asked in enumerate(work) if alone(ours, asked) != found[number]]
    note = f"{len(work) - len(solo)} of {len(work)} as alone, {len(work) - different} as transformers'"
    print(f"| {kind} | nextile | {useful / taken:.0f} | {base / taken:.2f}x | {note} |", flush=True)
    first = sorted(first_tokens(ours, work, taken / len(work) / 0.7))
    print(
        f"{kind}: {len(work)} requests, one in {taken / len(work) / 0.7 * 1000:.0f} ms: first token after "
        f"{statistics.median(first) * 1000:.0f} ms (p50), {first[int(0.99 * (len(first) - 1))] * 1000:.0f} ms (p99)",
        file=sys.stderr, flush=True,
    )  # fmt: skip


def two_hundred() -> None:
    """200 at once, of the smaller model."""
    model, _ = pair(SIZES["6x384"]())
    work = [Asked(asked.prompt[:64], min(asked.tokens, 24)) for asked in workload(200, seed=2)]
    engine = engine_of(model, rows=200)
    seconds, told = time.perf_counter(), [ask(engine, asked) for asked in work]
    for each in told:
        each.over.wait()
    seconds = time.perf_counter() - seconds
    engine.close()
    right = sum(each.tokens == alone(model, asked) for each, asked in zip(told, work, strict=True))
    print(f"\n200 streams at once: {right} of 200 as alone, {seconds:.1f} s", flush=True)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()
    print(
        f"{asked.requests} requests, {ROWS} at a time, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}\n\n"
        "| size | dtype | | useful tokens/s | against transformers | texts |\n|---|---|---|---|---|---|"
    )
    for name in asked.sizes:
        for dtype in asked.dtypes:
            compare(name, getattr(torch, dtype), asked.requests, asked.batch)
    two_hundred()


if __name__ == "__main__":
    main()
