"""Training speed at equal architecture: nextile, transformers' GPT-2 and, from a clone of yours, nanoGPT.

    python bench/bench_training.py [--nanogpt CLONE] [--rounds 5] [--seconds 6] [--device cpu] [--peak TFLOPS]
                                   [--shape 6x6x384] [--context 256] [--batch 16] [--vocab 65]

Everybody trains GPT-2's shape (tied, learned positions, GELU) on the same tokens by AdamW, with gradient clipping:
forward, backward, optimizer. Contenders take turns, each in a process of its own, as its command sets it up; the table
shows medians over the rounds. FLOPs are 6 a parameter and token, without the embeddings but with the head, and causal
attention by half; on CPU the peak is the rate of a large product in bfloat16. On a GPU all compute in bfloat16, and we
once more in float8 where the GPU has it, beside the same peak:

    python bench/bench_training.py --shape 12x12x768 --context 1024 --batch 32 --vocab 50304 --peak 989 --nanogpt CLONE
    python bench/bench_training.py --shape 24x16x2048 --context 1024 --batch 8 --vocab 50304 --peak 989 --rounds 3
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch.nn import functional as F

from nextile.base.device import choose_device, has_compiler, has_fp8, keep_memory
from nextile.base.errors import UsageError
from nextile.data.batches import Batch
from nextile.models import count
from nextile.models.build import build
from nextile.models.families import gpt2
from nextile.nn.float8 import use_float8
from nextile.training.loop import train
from nextile.training.objectives import next_token
from nextile.training.optim import AdamW, Optimizer
from nextile.training.schedule import Constant

Contender = Callable[[], Iterator[torch.Tensor]]
AHEAD = 4  # steps between two looks at the loss


@dataclass(frozen=True)
class Shape:
    """What everybody trains."""

    depth: int
    heads: int
    width: int
    context: int
    batch: int
    vocab: int
    device: torch.device

    def tokens(self) -> torch.Tensor:
        """(B, T + 1) ids, on the device."""
        draw = torch.Generator().manual_seed(0)
        return torch.randint(0, self.vocab, (self.batch, self.context + 1), generator=draw).to(self.device)

    def spec(self):
        """The shape as a spec of ours."""
        return gpt2.spec(
            vocab=self.vocab, context=self.context, width=self.width, depth=self.depth, heads=self.heads
        )  # fmt: skip


def nextile_steps(
    shape: Shape, precision: torch.dtype, compiled: bool, *, kept: bool = True, float8: bool = False
) -> Iterator[torch.Tensor]:
    """Ours, as the command trains. kept: the memory that is freed. float8: what the blocks multiply."""
    if kept:
        keep_memory()
    model = build(shape.spec()).to(shape.device)
    if float8:
        use_float8(model)
    ids = shape.tokens()
    batch = Batch.of(ids[:, :-1], ids[:, 1:])
    optimizer = Optimizer(model, AdamW(), compiled=compiled)
    options = {"steps": 1 << 40, "precision": precision, "compiled": compiled}
    return (step.loss_tensor for step in train(model, lambda _: [batch], next_token, optimizer, Constant(), **options))


def torch_steps(model: torch.nn.Module, loss: Callable, *, bf16: bool) -> Iterator[torch.Tensor]:
    """The usual loop: forward under autocast, backward, clip, AdamW."""
    device = next(model.parameters()).device.type
    fused = device == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=fused)
    while True:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            value = loss(model)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield value.detach()


def transformers_steps(shape: Shape, *, bf16: bool = False) -> Iterator[torch.Tensor]:
    """transformers' GPT-2, eager."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=shape.vocab, n_positions=shape.context, n_embd=shape.width, n_layer=shape.depth, n_head=shape.heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    ids = shape.tokens()

    def loss(model):
        logits = model(ids[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    with shape.device:
        model = transformers.GPT2LMHeadModel(config)
    return torch_steps(model, loss, bf16=bf16)


def nanogpt_steps(shape: Shape, clone: Path, *, bf16: bool = False, compiled: bool = False) -> Iterator[torch.Tensor]:
    """nanoGPT's model from somebody's clone."""
    sys.path.insert(0, str(clone))
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    config = GPTConfig(
        block_size=shape.context, vocab_size=shape.vocab, n_layer=shape.depth, n_head=shape.heads, n_embd=shape.width,
        dropout=0.0, bias=True,
    )  # fmt: skip
    model, ids = GPT(config).to(shape.device), shape.tokens()
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    runs = torch.compile(model) if compiled else model
    return torch_steps(model, lambda _: runs(inputs, targets)[1], bf16=bf16)


def measure(steps: Iterator[torch.Tensor], seconds: float) -> float:
    """Steps per second over about so many seconds."""
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds or done < 2:
        for _ in range(AHEAD):  # so that a device is asked for what comes next before it is done
            loss = next(steps)
        loss.item()
        done += AHEAD
    return done / (time.perf_counter() - began)


class Running:
    """A contender in a process of its own, so that none has the other's allocator, threads or caches."""

    def __init__(self, start: Contender):
        processes = multiprocessing.get_context("spawn")
        self._link, theirs = processes.Pipe()
        self._process = processes.Process(target=_run, args=(start, theirs), daemon=True)
        self._process.start()
        theirs.close()  # so that a contender that fails ends this, too
        self.cold: float = self._link.recv()  # seconds until the first step was made

    def rate(self, seconds: float) -> float:
        """Steps per second over about so many seconds."""
        self._link.send(seconds)
        return self._link.recv()

    def end(self) -> None:
        """Let the process end."""
        self._link.send(None)
        self._process.join()


def _run(start: Contender, link: Connection) -> None:
    torch.manual_seed(0)
    began = time.perf_counter()
    steps = start()
    next(steps).item()
    link.send(time.perf_counter() - began)
    while seconds := link.recv():
        next(steps).item()
        link.send(measure(steps, seconds))


def cpu_peak() -> float:
    """TFLOP/s of a product of two matrices of 2,048 in bfloat16, the best of ten."""
    a, b = (torch.randn(2048, 2048).bfloat16() for _ in range(2))
    took = []
    for _ in range(12):
        began = time.perf_counter()
        torch.mm(a, b)
        took.append(time.perf_counter() - began)
    return 2 * 2048**3 / min(took) / 1e12


def three(text: str) -> tuple[int, int, int]:
    """ "6x6x384" -> (6, 6, 384). Errors: ValueError, which argparse tells."""
    depth, heads, width = map(int, text.split("x"))
    return depth, heads, width


def on_cpu(shape: Shape, nanogpt: Path | None) -> dict[str, Contender]:
    """Who is compared there: the usual way of each, and the fastest."""
    found: dict[str, Contender] = {
        "nextile, bf16, compiled": partial(nextile_steps, shape, torch.bfloat16, True),
        "the same, freed memory given back": partial(nextile_steps, shape, torch.bfloat16, True, kept=False),
        "nextile, fp32, eager": partial(nextile_steps, shape, torch.float32, False),
        "transformers GPT-2, fp32, eager": partial(transformers_steps, shape),
    }
    if not has_compiler():
        found = {name: start for name, start in found.items() if "eager" in name}
    if nanogpt:
        found["nanoGPT, fp32, eager (its default)"] = partial(nanogpt_steps, shape, nanogpt)
        found["nanoGPT, bf16, compiled (its best)"] = partial(nanogpt_steps, shape, nanogpt, bf16=True, compiled=True)
    return found


def on_gpu(shape: Shape, nanogpt: Path | None) -> dict[str, Contender]:
    """Who is compared there, all in bfloat16, and ours in float8 where the GPU has it."""
    found: dict[str, Contender] = {
        "nextile, bf16, compiled": partial(nextile_steps, shape, torch.bfloat16, True),
        "nextile, bf16, eager": partial(nextile_steps, shape, torch.bfloat16, False),
        "transformers GPT-2, bf16, eager": partial(transformers_steps, shape, bf16=True),
    }
    if has_fp8(shape.device):
        found["nextile, fp8, compiled"] = partial(nextile_steps, shape, torch.bfloat16, True, float8=True)
    if nanogpt:
        found["nanoGPT, bf16, compiled (its default)"] = partial(
            nanogpt_steps, shape, nanogpt, bf16=True, compiled=True
        )
    return found


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--shape", type=three, default="6x6x384", help="layers x heads x width")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=65)
    parser.add_argument("--device", help="the accelerator if there is one")
    parser.add_argument(
        "--peak", type=float, help="what the device multiplies in bfloat16 at best, in TFLOP/s; on CPU measured"
    )
    asked = parser.parse_args()
    try:
        device = choose_device(asked.device)
    except UsageError as error:
        parser.error(str(error))
    depth, heads, width = asked.shape
    shape = Shape(depth, heads, width, asked.context, asked.batch, asked.vocab, device)
    contenders = on_cpu(shape, asked.nanogpt) if shape.device.type == "cpu" else on_gpu(shape, asked.nanogpt)
    ready = {name: Running(start) for name, start in contenders.items()}
    rates: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(asked.rounds):
        for name, running in ready.items():
            rates[name].append(running.rate(asked.seconds) * shape.batch * shape.context)
    for running in ready.values():
        running.end()
    spec = shape.spec()
    ours = statistics.median(rates[next(iter(rates))])
    flops = count.training_flops(spec, shape.context)
    parameters = count.parameters(spec).total
    where = f"{torch.get_num_threads()} threads" if shape.device.type == "cpu" else torch.cuda.get_device_name()
    print(f"{shape}; {parameters:,} parameters; torch {torch.__version__}, {where}")
    peak = asked.peak or (cpu_peak() if shape.device.type == "cpu" else None)
    of_peak = " of the peak |" if peak else ""
    print(f"\n| contender | tokens/s | first row is faster by | GFLOP/s |{of_peak} first step, s |")
    print("|---|---|---|---|---|" + "---|" * bool(peak))
    for name, found in rates.items():
        rate = statistics.median(found)
        share = f" {rate * flops / peak / 1e12:.1%} |" if peak else ""
        cold = ready[name].cold
        print(f"| {name} | {rate:,.0f} | {ours / rate:.2f}x | {rate * flops / 1e9:,.0f} |{share} {cold:.1f} |")
    if peak:
        print(f"\npeak: {peak * 1e3:,.0f} GFLOP/s")


if __name__ == "__main__":
    main()
