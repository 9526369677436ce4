"""Tuning by adapters beside PEFT: tokens a second and losses of the same steps from the same numbers.

    python bench/bench_lora.py [--precision bf16] [--rows 4] [--length 256] [--steps 50] [--threads 2] [--sides A B ...]

GPT-2's shape, 124M random numbers, rank 8 on queries, keys and values (c_attn), AdamW 1e-3, no dropout. PEFT writes its
adapter, nextile reads it, and all sides learn from the same batches, step by step in turn, at one precision:

fp32   all in float32
bf16   products in bfloat16, the adapters kept in float32. PEFT over a base that is loaded in bfloat16, and over one in
       float32 under autocast

nextile compiles its step, as `nextile train` does; transformers runs as it is, and compiled. What is reached of the
machine's peak is by the products' FLOPs alone: 4 a number of the matrices that a token meets, since frozen ones have no
gradient, and what attention adds; the peak is one large product of the same dtype, measured at the end.
"""

import argparse
import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from nextile.base.device import set_threads
from nextile.checkpoint.adapters import attach
from nextile.checkpoint.store import load_model
from nextile.data.batches import Batch
from nextile.nn.lora import narrow
from nextile.training.learner import GradientLearner
from nextile.training.objectives import next_token
from nextile.training.optim import AdamW, Optimizer

RATE = 1e-3
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MATRICES = 12 * 12 * 768**2 + 50_257 * 768  # the blocks', and the head's
Step = Callable[[Tensor], float]


def theirs(folder: str, *, compiled: bool, dtype: torch.dtype = torch.float32, autocast: bool = False) -> Step:
    """A step of transformers and PEFT from the adapter in the folder; its loss."""
    import peft
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/base", dtype=dtype)
    model = peft.PeftModel.from_pretrained(base, f"{folder}/adapter", is_trainable=True).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    rule = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)

    def loss_of(ids: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(input_ids=ids[:, :-1]).logits
            return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

    forward = torch.compile(loss_of) if compiled else loss_of

    def step(ids: Tensor) -> float:
        rule.zero_grad()
        loss = forward(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        rule.step()
        return loss.item()

    return step


def ours(folder: str, *, dtype: torch.dtype) -> Step:
    """A step of nextile from the same adapter; its loss."""
    model, _ = load_model(f"{folder}/base")
    attach(model, f"{folder}/adapter")
    narrow(model, dtype)
    optimizer = Optimizer(model, AdamW(lr=RATE, betas=(0.9, 0.95), weight_decay=0.0), compiled=True)
    learner = GradientLearner(model, next_token, optimizer, precision=dtype, compiled=True)

    def step(ids: Tensor) -> float:
        return learner.learn([Batch.of(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())], 0, 1.0).loss.item()

    return step


def all_sides(precision: str) -> dict[str, Callable[[str], Step]]:
    """What is measured, by name: from a folder to a step."""
    dtype = DTYPES[precision]
    found: dict[str, Callable[[str], Step]] = {"nextile": partial(ours, dtype=dtype)}
    for end, compiled in (("", False), ("-compiled", True)):
        found[f"peft{end}"] = partial(theirs, compiled=compiled, dtype=dtype)
        if precision == "bf16":
            found[f"peft-autocast{end}"] = partial(theirs, compiled=compiled, autocast=True)
    return found


def written(folder: str) -> None:
    """A random GPT-2 and a fresh adapter of PEFT's."""
    import peft
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    base = transformers.GPT2LMHeadModel(config)
    base.save_pretrained(f"{folder}/base")
    chosen = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    peft.get_peft_model(base, chosen).save_pretrained(f"{folder}/adapter")


def peak(dtype: torch.dtype, size: int = 1024) -> float:
    """FLOPs a second of one product of squares, the best of several."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    times = []
    for _ in range(20):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def batch(rows: int, length: int, number: int) -> Tensor:
    """One of a few batches, so that there is something to learn."""
    generator = torch.Generator().manual_seed(number % 5)
    return torch.randint(0, 50_257, (rows, length + 1), generator=generator)


def flops(length: int) -> float:
    """Of a token in a step: forward, and backward to what comes in alone."""
    attention = 12 * 2 * 768 * (length + 1)  # queries meet half of the keys, on average
    return 4 * MATRICES + 3 * attention


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--sides", nargs="+", help="some of those that there are")
    for name, value in (("rows", 2), ("length", 128), ("steps", 50), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    set_threads(args.threads)
    known = all_sides(args.precision)
    with tempfile.TemporaryDirectory() as folder:
        written(folder)
        sides = {name: known[name](folder) for name in args.sides or known}
        losses: dict[str, list[float]] = {name: [] for name in sides}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(args.steps):
            ids = batch(args.rows, args.length, number)
            for name, step in sides.items():
                began = time.perf_counter()
                losses[name].append(step(ids))
                seconds[name].append(time.perf_counter() - began)
    report(losses, seconds, args)


def report(losses: dict[str, list[float]], seconds: dict[str, list[float]], args: argparse.Namespace) -> None:
    """Print what was measured."""
    most, tokens = peak(DTYPES[args.precision]), args.rows * args.length
    print(f"{args.precision}, {args.rows} x {args.length} tokens; one product reaches {most / 1e9:.0f} GFLOP/s")
    speed = {name: tokens / statistics.median(times[3:]) for name, times in seconds.items()}
    for name, found in speed.items():
        share = found * flops(args.length) / most
        print(f"{name}: {found:,.0f} tokens/s, {share:.0%} of it, loss {losses[name][0]:.4f} -> {losses[name][-1]:.4f}")
    others = {name: found for name, found in speed.items() if name != "nextile"}
    if "nextile" in speed and others:
        best = max(others, key=others.__getitem__)
        print(f"nextile beside the fastest of the others, {best}: {speed['nextile'] / speed[best]:.2f}x")
    for one, other in itertools.combinations(losses, 2):
        apart = max(abs(a - b) for a, b in zip(losses[one], losses[other], strict=True))
        print(f"losses of {one} and {other} differ by at most {apart:.1e} over {args.steps} steps")


if __name__ == "__main__":
    main()
