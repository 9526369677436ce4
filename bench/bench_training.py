"""Training speed at equal architecture: nextile, transformers' GPT-2 and, from a clone of yours, nanoGPT.

    python bench/bench_training.py [--nanogpt CLONE] [--rounds 5] [--seconds 6]
                                   [--shape 6x6x384] [--context 256] [--batch 16]

Everybody trains GPT-2's shape (tied, learned positions, GELU, vocabulary 65) on the same tokens by AdamW, with gradient
clipping: forward, backward, optimizer. Contenders take turns; the table shows medians over the rounds.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

from nextile.base.device import has_compiler
from nextile.data.batches import Batch
from nextile.models import count
from nextile.models.build import build
from nextile.models.families import gpt2
from nextile.training.loop import train
from nextile.training.objectives import next_token
from nextile.training.optim import AdamW, Optimizer
from nextile.training.schedule import Constant

VOCAB = 65


@dataclass(frozen=True)
class Shape:
    """What everybody trains."""

    depth: int
    heads: int
    width: int
    context: int
    batch: int

    def tokens(self) -> torch.Tensor:
        """(B, T + 1) ids."""
        return torch.randint(0, VOCAB, (self.batch, self.context + 1), generator=torch.Generator().manual_seed(0))

    def spec(self):
        """The shape as a spec of ours."""
        return gpt2.spec(vocab=VOCAB, context=self.context, width=self.width, depth=self.depth, heads=self.heads)


def nextile_steps(shape: Shape, precision: torch.dtype, compiled: bool) -> Iterator[object]:
    """Ours, as the command trains."""
    model = build(shape.spec())
    ids = shape.tokens()
    batch = Batch.of(ids[:, :-1], ids[:, 1:])
    optimizer = Optimizer(model, AdamW(), compiled=compiled)
    options = {"steps": 1 << 40, "precision": precision, "compiled": compiled}
    return (step.loss for step in train(model, lambda _: [batch], next_token, optimizer, Constant(), **options))


def torch_steps(model: torch.nn.Module, loss: Callable, *, bf16: bool) -> Iterator[object]:
    """The usual loop: forward under autocast, backward, clip, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    while True:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            value = loss(model)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield value.item()


def transformers_steps(shape: Shape, *, bf16: bool = False) -> Iterator[object]:
    """transformers' GPT-2, eager."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=shape.context, n_embd=shape.width, n_layer=shape.depth, n_head=shape.heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    ids = shape.tokens()

    def loss(model):
        logits = model(ids[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    return torch_steps(transformers.GPT2LMHeadModel(config), loss, bf16=bf16)


def nanogpt_steps(shape: Shape, clone: Path, *, bf16: bool = False, compiled: bool = False) -> Iterator[object]:
    """nanoGPT's model from somebody's clone."""
    sys.path.insert(0, str(clone))
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    config = GPTConfig(
        block_size=shape.context, vocab_size=VOCAB, n_layer=shape.depth, n_head=shape.heads, n_embd=shape.width,
        dropout=0.0, bias=True,
    )  # fmt: skip
    model, ids = GPT(config), shape.tokens()
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    runs = torch.compile(model) if compiled else model
    return torch_steps(model, lambda _: runs(inputs, targets)[1], bf16=bf16)


def measure(steps: Iterator[object], seconds: float) -> float:
    """Steps per second over about so many seconds."""
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds or done < 2:
        next(steps)
        done += 1
    return done / (time.perf_counter() - began)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--shape", default="6x6x384", help="layers x heads x width")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    asked = parser.parse_args()
    shape = Shape(*map(int, asked.shape.split("x")), context=asked.context, batch=asked.batch)
    contenders: dict[str, Callable[[], Iterator[object]]] = {
        "nextile, bf16, compiled": partial(nextile_steps, shape, torch.bfloat16, True),
        "nextile, fp32, eager": partial(nextile_steps, shape, torch.float32, False),
        "transformers GPT-2, fp32, eager": partial(transformers_steps, shape),
    }
    if not has_compiler():
        contenders.pop("nextile, bf16, compiled")
    if asked.nanogpt:
        contenders["nanoGPT, fp32, eager (its default)"] = partial(nanogpt_steps, shape, asked.nanogpt)
        contenders["nanoGPT, bf16, compiled (its best)"] = partial(
            nanogpt_steps, shape, asked.nanogpt, bf16=True, compiled=True
        )
    ready, cold = {}, {}
    for name, start in contenders.items():
        torch.manual_seed(0)
        began = time.perf_counter()
        ready[name] = start()
        next(ready[name])
        cold[name] = time.perf_counter() - began
    rates: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(asked.rounds):
        for name, steps in ready.items():
            next(steps)
            rates[name].append(measure(steps, asked.seconds) * shape.batch * shape.context)
    spec = shape.spec()
    ours = statistics.median(rates[next(iter(rates))])
    flops = count.training_flops(spec, shape.context)
    parameters, threads = count.parameters(spec).total, torch.get_num_threads()
    print(f"{shape}; {parameters:,} parameters; torch {torch.__version__}, {threads} threads")
    print("\n| contender | tokens/s | first row is faster by | GFLOP/s | first step, s |\n|---|---|---|---|---|")
    for name, found in rates.items():
        rate = statistics.median(found)
        print(f"| {name} | {rate:,.0f} | {ours / rate:.2f}x | {rate * flops / 1e9:,.0f} | {cold[name]:.1f} |")


if __name__ == "__main__":
    main()
