"""Tuning by adapters beside PEFT: tokens a second and losses of the same steps from the same numbers.

    python bench/bench_lora.py [--rows 2] [--length 128] [--steps 50] [--threads 2]

GPT-2's shape, 124M random numbers, rank 8 on queries, keys and values (c_attn), AdamW 1e-3, no dropout, float32. PEFT
writes its adapter, nextile reads it, and both learn from the same batches, step by step in turn. nextile compiles its
step, as `nextile train` does; transformers runs as it is, and compiled.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from nextile.base.device import set_threads
from nextile.checkpoint.adapters import attach
from nextile.checkpoint.store import load_model
from nextile.data.batches import Batch
from nextile.training.learner import GradientLearner
from nextile.training.objectives import next_token
from nextile.training.optim import AdamW, Optimizer

RATE = 1e-3
Step = Callable[[Tensor], float]


def theirs(folder: str, *, compiled: bool) -> Step:
    """A step of transformers and PEFT from the adapter in the folder; its loss."""
    import peft
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/base")
    model = peft.PeftModel.from_pretrained(base, f"{folder}/adapter", is_trainable=True).train()
    rule = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0
    )

    def loss_of(ids: Tensor) -> Tensor:
        logits = model(input_ids=ids[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    forward = torch.compile(loss_of) if compiled else loss_of

    def step(ids: Tensor) -> float:
        rule.zero_grad()
        loss = forward(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rule.step()
        return loss.item()

    return step


def ours(folder: str) -> Step:
    """A step of nextile from the same adapter; its loss."""
    model, _ = load_model(f"{folder}/base")
    attach(model, f"{folder}/adapter")
    optimizer = Optimizer(model, AdamW(lr=RATE, betas=(0.9, 0.95), weight_decay=0.0), compiled=True)
    learner = GradientLearner(model, next_token, optimizer, compiled=True)

    def step(ids: Tensor) -> float:
        return learner.learn([Batch.of(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())], 0, 1.0).loss.item()

    return step


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 2), ("length", 128), ("steps", 50), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    set_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        written(folder)
        sides = {
            "nextile": ours(folder),
            "peft": theirs(folder, compiled=False),
            "peft compiled": theirs(folder, compiled=True),
        }
        losses: dict[str, list[float]] = {name: [] for name in sides}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(args.steps):
            generator = torch.Generator().manual_seed(number % 5)  # a few batches, so that there is something to learn
            ids = torch.randint(0, 50_257, (args.rows, args.length + 1), generator=generator)
            for name, step in sides.items():
                began = time.perf_counter()
                losses[name].append(step(ids))
                seconds[name].append(time.perf_counter() - began)
    tokens = args.rows * args.length
    for name in sides:
        speed = tokens / statistics.median(seconds[name][3:])
        print(f"{name}: {speed:,.0f} tokens/s, loss {losses[name][0]:.4f} -> {losses[name][-1]:.4f}")
    best = min(statistics.median(seconds[name][3:]) for name in sides if name != "nextile")
    apart = max(abs(a - b) for a, b in zip(losses["nextile"], losses["peft"], strict=True))
    print(f"nextile beside the faster of the two: {best / statistics.median(seconds['nextile'][3:]):.2f}x")
    print(f"losses differ by at most {apart:.1e} over {args.steps} steps")


if __name__ == "__main__":
    main()
