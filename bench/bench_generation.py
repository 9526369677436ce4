"""Generation side by side with transformers: GPT-2's 124M shape, random weights, tokens a second after a prompt of 32.

    python bench/bench_generation.py [--rounds 5] [--tokens 128] [--dtypes float32 bfloat16]

Both run the same weights in one process and take turns, so that what else the machine does falls on both; both decode
greedily with a cache. In float32 their tokens must be the same. A table in Markdown goes to standard output.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
import transformers

from nextile.checkpoint.convert import write
from nextile.generation.decode import decode
from nextile.generation.sample import Sampling
from nextile.models.build import build
from nextile.models.families import gpt2

PROMPT = 32
GREEDY = Sampling(temperature=0.0)
Generate = Callable[[list[int], int], list[int]]


def pair(dtype: torch.dtype) -> tuple[torch.nn.Module, transformers.GPT2LMHeadModel]:
    """Our model and theirs with the same random weights, spread so that greedy tokens do not hang on rounding."""
    spec = gpt2.spec()
    ours = build(spec, seed=0).eval()
    config = transformers.GPT2Config(**gpt2.to_config(spec), bos_token_id=0, eos_token_id=None, pad_token_id=0)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if parameter.dim() > 1 and not name.startswith("embed"):
                parameter.mul_(3.0)
    missing, unexpected = theirs.load_state_dict(write(gpt2.key_map(spec), dict(ours.state_dict())), strict=False)
    assert missing == ["lm_head.weight"], missing  # tied
    assert not unexpected, unexpected
    theirs.tie_weights()
    return ours.to(dtype), theirs.to(dtype)


def ours_by(model: torch.nn.Module, compiled: bool) -> Generate:
    """`nextile.generation.decode`."""

    def generate(prompt: list[int], tokens: int) -> list[int]:
        return [event.token for event in decode(model, [prompt], GREEDY, max_tokens=tokens, compiled=compiled)]

    return generate


def theirs_by(model: transformers.GPT2LMHeadModel) -> Generate:
    """`generate` of transformers with its default cache."""

    @torch.no_grad()
    def generate(prompt: list[int], tokens: int) -> list[int]:
        ids = torch.tensor([prompt])
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
        )
        return found[0, len(prompt) :].tolist()

    return generate


def seconds(generate: Generate, prompt: list[int], tokens: int) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    assert len(generate(prompt, tokens)) == tokens
    return time.perf_counter() - start


def measure(dtype: torch.dtype, rounds: int, tokens: int) -> dict[str, list[float]]:
    """Tokens a second of each, one number a round."""
    ours, theirs = pair(dtype)
    ways = {
        "transformers": theirs_by(theirs),
        "nextile": ours_by(ours, False),
        "nextile, compiled": ours_by(ours, True),
    }
    prompt = torch.randint(0, 50_257, (PROMPT,), generator=torch.Generator().manual_seed(1)).tolist()
    for name, generate in ways.items():
        first = seconds(generate, prompt, 2)
        print(f"{dtype} {name}: {first:.1f} s for the first two tokens", file=sys.stderr)
    if dtype == torch.float32:
        texts = {name: generate(prompt, tokens) for name, generate in ways.items()}
        assert len(set(map(tuple, texts.values()))) == 1, texts
        assert len(set(texts["nextile"])) > tokens // 4, "a text that repeats itself proves little"
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, generate in ways.items():
            speeds[name].append(tokens / seconds(generate, prompt, tokens))
    return speeds


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    asked = parser.parse_args()
    print(
        f"GPT-2 124M shape, {asked.tokens} tokens after {PROMPT}, one row, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, medians of {asked.rounds} rounds\n"
    )
    print("| dtype | | tokens/s | best | against transformers |\n|---|---|---|---|---|")
    for name in asked.dtypes:
        speeds = measure(getattr(torch, name), asked.rounds, asked.tokens)
        for way, values in speeds.items():
            ratios = [value / base for value, base in zip(values, speeds["transformers"], strict=True)]
            median, ratio = statistics.median(values), statistics.median(ratios)
            print(f"| {name} | {way} | {median:.1f} | {max(values):.1f} | {ratio:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
