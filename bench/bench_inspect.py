"""What capturing costs: a forward pass with nothing, one head, one layer, everything, and the stream recorded.

    python bench/bench_inspect.py [--rounds 15] [--tokens 256] [--threads 2]

Two shapes: 6 layers of 6 heads and a width of 384, and GPT-2's 124M, both with random weights in float32. The ways take
turns; a number is the median, over the rounds, of a way's time over that of the plain pass of the same round. "one
head" is weights, scores, queries, keys, values and result of head 3 of a middle layer, as `Inspection.head` asks.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from nextile.models.build import build
from nextile.models.families import gpt2
from nextile.nn.tap import record

SHAPES: dict[str, dict[str, Any]] = {
    "6 x 6 x 384": {"vocab": 1024, "context": 1024, "width": 384, "depth": 6, "heads": 6},
    "GPT-2 124M": {},
}
PARTS = ("queries", "keys", "values", "compared", "hidden", "weights", "heads")


def ways_of(model: Any, ids: torch.Tensor) -> dict[str, Callable[[], object]]:
    """The passes by what they record."""
    middle = f"stack.blocks.{len(model.stack.blocks) // 2}.self_attention.inner"
    asked: dict[str, tuple[tuple[str, ...], list[int] | None]] = {
        "one head's weights": ((f"{middle}.weights",), [3]),
        "one head": (tuple(f"{middle}.{part}" for part in PARTS), [3]),
        "that head in each layer": (("stack.blocks.*.self_attention.inner.weights",), [3]),
        "all heads of a layer": ((f"{middle}.weights",), None),
        "all weights": (("stack.blocks.*.self_attention.inner.weights",), None),
        "the stream": (("stack.entered", "stack.blocks.*.stream"), None),
        "everything": (("*",), None),
    }

    def recorded(names: tuple[str, ...], heads: list[int] | None) -> Callable[[], object]:
        def run() -> None:
            with record(model, *names, heads=heads):
                model(ids)

        return run

    return {"nothing": lambda: model(ids), **{name: recorded(*what) for name, what in asked.items()}}


def measure(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, in turn, one number a round; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, run in ways.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: found[1:] for name, found in seconds.items()}


@torch.no_grad()
def main() -> None:
    """A table for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    for shape, sizes in SHAPES.items():
        spec = gpt2.spec(**sizes)
        model = build(spec).eval()
        ids = torch.randint(0, spec.embed.vocab, (1, asked.tokens))
        found = measure(ways_of(model, ids), asked.rounds)
        plain = found["nothing"]
        print(f"{shape}, {asked.tokens} tokens: {1000 * statistics.median(plain):.1f} ms")
        for name, seconds in found.items():
            share = statistics.median(mine / base for mine, base in zip(seconds, plain, strict=True))
            print(f"  {name:26} {100 * (share - 1):+6.1f} %")


if __name__ == "__main__":
    main()
