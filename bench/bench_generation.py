"""One stream of tokens beside transformers: GPT-2's 124M shape and a small one, random weights, after a prompt of 32.

    python bench/bench_generation.py [--rounds 3] [--tokens 96] [--sizes 124M small] [--draft]

Both run the same weights in one process and take turns, so that what else the machine does falls on both; all decode
greedily with a cache. In float32 their tokens must be the same. Beside them stands what the machine reads from memory
in the same minute, and what share of that the weights of a step are. int8 and int4 are ours alone, packed from the
same weights: they stand against transformers in bfloat16. --draft compares speculation with plain decoding instead.
Tables in Markdown go to standard output.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import transformers

from nextile.checkpoint.convert import write
from nextile.generation.decode import decode
from nextile.generation.sample import Sampling
from nextile.generation.speculate import Lookup, ModelDraft, speculate
from nextile.models.build import build
from nextile.models.families import gpt2
from nextile.nn.quantize import Int4, Int8, PackedHead, pack_head, quantize

PROMPT = 32
GREEDY = Sampling(temperature=0.0)
SIZES: dict[str, dict[str, int]] = {
    "124M": {},
    "small": {"vocab": 8192, "context": 256, "width": 384, "depth": 6, "heads": 6},  # 13.9M
}
Generate = Callable[[list[int], int], list[int]]


def pair(spec: Any) -> tuple[torch.nn.Module, transformers.GPT2LMHeadModel]:
    """Our model and theirs with the same random weights, spread so that greedy tokens do not hang on rounding."""
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
    return ours, theirs


def ours_by(model: Any, compiled: bool) -> Generate:
    """`nextile.generation.decode`."""

    def generate(prompt: list[int], tokens: int) -> list[int]:
        return [event.token for event in decode(model, [prompt], GREEDY, max_tokens=tokens, compiled=compiled)]

    return generate


def theirs_by(model: Any) -> Generate:
    """`generate` of transformers with its default cache."""

    @torch.no_grad()
    def generate(prompt: list[int], tokens: int) -> list[int]:
        ids = torch.tensor([prompt])
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
        )
        return found[0, len(prompt) :].tolist()

    return generate


def packed(model: torch.nn.Module, kind: Int8 | Int4) -> torch.nn.Module:
    """The same model with its matrices in codes, and the rest in bfloat16."""
    model = deepcopy(model)
    quantize(model, kind)
    return model.to(torch.bfloat16)


def packed_whole(model: torch.nn.Module) -> torch.nn.Module:
    """The same with its head in 8 bits too."""
    model = packed(model, Int8())
    pack_head(model)
    return model


def weighing(model: torch.nn.Module) -> int:
    """The bytes of weights that a step reads: all but the learned positions; a tied head reads the embedding."""
    held = sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
    unread = (
        model.get_submodule("embed.token").weight.nbytes if isinstance(model.get_submodule("head"), PackedHead) else 0
    )
    return held - unread - model.get_submodule("embed.position").weight.nbytes


def seconds(generate: Generate, prompt: list[int], tokens: int) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    assert len(generate(prompt, tokens)) == tokens
    return time.perf_counter() - start


def bandwidth(numbers: torch.Tensor) -> float:
    """Bytes a second that a sum over 256 MB reads; once."""
    start = time.perf_counter()
    numbers.sum()
    return numbers.nbytes / (time.perf_counter() - start)


def in_turn(ways: dict[str, Generate], rounds: int, tokens: int, vocab: int) -> dict[str, list[float]]:
    """Tokens a second of each way, one number a round, and "memory", bytes a second."""
    prompt = torch.randint(0, vocab, (PROMPT,), generator=torch.Generator().manual_seed(1)).tolist()
    for name, generate in ways.items():
        print(f"{name}: {seconds(generate, prompt, 2):.1f} s for the first two tokens", file=sys.stderr)
    found: dict[str, list[float]] = {name: [] for name in (*ways, "memory")}
    numbers = torch.ones(1 << 26)
    for _ in range(rounds):
        for name, generate in ways.items():
            found["memory"].append(bandwidth(numbers))
            found[name].append(tokens / seconds(generate, prompt, tokens))
    return found


def check_same(ways: dict[str, Generate], tokens: int, vocab: int) -> None:
    """That all write the same, and something."""
    prompt = torch.randint(0, vocab, (PROMPT,), generator=torch.Generator().manual_seed(1)).tolist()
    texts = {name: generate(prompt, tokens) for name, generate in ways.items()}
    assert len(set(map(tuple, texts.values()))) == 1, texts
    assert len(set(next(iter(texts.values())))) > tokens // 4, "a text that repeats itself proves little"


def measure(size: str, rounds: int, tokens: int) -> None:
    """The table of a size."""
    ours, theirs = pair(gpt2.spec(**SIZES[size]))
    vocab = SIZES[size].get("vocab", 50_257)
    narrow, theirs_narrow = deepcopy(ours).to(torch.bfloat16), deepcopy(theirs).to(torch.bfloat16)
    models = {
        "nextile fp32, compiled": ours,
        "nextile bf16, compiled": narrow,
        "nextile int8, compiled": packed(ours, Int8()),
        "nextile int8, its head too, compiled": packed_whole(ours),
        "nextile int4, compiled": packed(ours, Int4()),
    }
    ways = {
        "transformers fp32": theirs_by(theirs),
        "transformers bf16": theirs_by(theirs_narrow),
        "nextile fp32, eager": ours_by(ours, False),
        "nextile bf16, eager": ours_by(narrow, False),
        **{name: ours_by(model, True) for name, model in models.items()},
    }
    check_same({name: way for name, way in ways.items() if "fp32" in name}, tokens, vocab)
    found = in_turn(ways, rounds, tokens, vocab)
    memory = max(found["memory"])
    parameters = sum(each.numel() for each in ours.parameters()) / 1e6
    print(f"\n{size}: {parameters:.1f}M parameters; memory is read at {memory / 1e9:.1f} GB/s\n")
    print("| | tokens/s | against transformers, same dtype | against its bf16 | of the memory's speed |")
    print("|---|---|---|---|---|")
    for way in ways:
        base = "transformers fp32" if "fp32" in way else "transformers bf16"
        own, narrowly = (ratio(found[way], found[name]) for name in (base, "transformers bf16"))
        speed = statistics.median(found[way])
        share = f"{weighing(models[way]) * speed / memory:.0%}" if way in models else ""
        print(f"| {way} | {speed:.1f} | {own:.2f}x | {narrowly:.2f}x | {share} |", flush=True)


def ratio(values: list[float], bases: list[float]) -> float:
    """The median of what a way gains, round by round."""
    return statistics.median(value / base for value, base in zip(values, bases, strict=True))


def measure_drafts(rounds: int, tokens: int) -> None:
    """Speculation beside plain decoding: drafts that are right, wrong, and the text itself."""
    ours, _ = pair(gpt2.spec(**SIZES["124M"]))
    vocab = 50_257
    small = build(gpt2.spec(vocab=vocab, width=128, depth=1, heads=2), seed=1).eval()
    repeating = deepcopy(ours)
    with torch.no_grad():  # a model that says what it has said: its blocks add next to nothing to the last token
        for name, parameter in repeating.named_parameters():
            if parameter.dim() > 1 and "blocks" in name:
                parameter.mul_(1e-3)

    def by(model: Any, draft: Any) -> Generate:
        return lambda prompt, tokens: [
            event.token for event in speculate(model, [prompt], GREEDY, draft, max_tokens=tokens)
        ]

    print("\n124M fp32, eager on both sides\n\n| | tokens/s | against plain |\n|---|---|---|")
    for title, model, draft in (
        ("a text that repeats itself, lookup", repeating, Lookup()),
        ("a text that does not, lookup", ours, Lookup()),
        ("a draft that is seldom right", ours, ModelDraft(small)),
        ("a draft that is always right and as large", ours, ModelDraft(deepcopy(ours))),
    ):
        ways = {"plain": ours_by(model, False), title: by(model, draft)}
        check = partial(seconds, prompt=list(range(PROMPT)))
        assert check(ways[title], tokens=tokens) > 0
        found = in_turn(ways, rounds, tokens, vocab)
        speed, gain = statistics.median(found[title]), ratio(found[title], found["plain"])
        print(f"| {title} | {speed:.1f} | {gain:.2f}x |", flush=True)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--draft", action="store_true")
    asked = parser.parse_args()
    print(
        f"{asked.tokens} tokens after {PROMPT}, one row, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, medians of {asked.rounds} rounds"
    )
    if asked.draft:
        measure_drafts(asked.rounds, asked.tokens)
        return
    for size in asked.sizes:
        measure(size, asked.rounds, asked.tokens)


if __name__ == "__main__":
    main()
