"""Loading a folder of random weights: `nextile.load`'s way beside transformers', seconds and memory.

    python bench/bench_load.py [--rounds 5] [--shapes gpt2 qwen3]

Each load has a process of its own, with all imports done and one thread, and the two sides take turns. Before each the
file is read once, so that it lies in the system's cache for both: a disk is not what is compared. The memory is by how
much the process's peak (VmHWM, private pages and pages of the file) grew over what it was with the imports alone, once
after loading and once after all weights were used; as a share of the file. Both give the same logits, or it fails.

A folder is written twice: by transformers, as most that people have, and by nextile, whose files hold their own hash,
which nextile verifies when it loads them: the second includes one SHA-256 of the whole file.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

IDS = 16  # tokens that are read to use all weights


def shapes() -> dict[str, Any]:
    """What is loaded: GPT-2's 124 million, and Qwen3's shape with 151 million."""
    from transformers import GPT2Config, Qwen3Config

    return {
        "gpt2": GPT2Config(),
        "qwen3": Qwen3Config(
            vocab_size=32_000, hidden_size=768, intermediate_size=2048, num_hidden_layers=20, num_attention_heads=12,
            num_key_value_heads=4, head_dim=64, max_position_embeddings=2048, tie_word_embeddings=True,
        ),
    }  # fmt: skip


def write(name: str, folder: Path) -> None:
    """The folder of a shape, by transformers, and beside it the same by nextile."""
    import torch
    from transformers import AutoModelForCausalLM

    from nextile.checkpoint.store import load_model, save_model

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(shapes()[name]).save_pretrained(folder / f"{name}, by transformers")
    save_model(folder / f"{name}, by nextile", load_model(folder / f"{name}, by transformers")[0])


# --- one load, in a process of its own --------------------------------------------------------------------------------


def peak() -> int:
    """Bytes that this process had at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def ours() -> Callable[[str], Any]:
    """All that is needed to load, imported."""
    from nextile.checkpoint.store import load_model

    return lambda folder: load_model(folder)[0]


def theirs() -> Callable[[str], Any]:
    """All that is needed to load, imported."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2LMHeadModel, Qwen3ForCausalLM  # noqa: F401 not imported earlier

    return lambda folder: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


SIDES = {"transformers": theirs, "nextile": ours}


def measure(side: str, folder: str) -> dict[str, float]:
    """Seconds, growth after loading and after use, and a sum that tells whether the logits are the same."""
    import torch

    torch.set_num_threads(1)
    load, before = SIDES[side](), peak()
    began = time.perf_counter()
    model = load(folder)
    seconds = time.perf_counter() - began
    loaded = peak() - before
    with torch.inference_mode():
        found = model(torch.arange(IDS)[None])
    logits = found if isinstance(found, torch.Tensor) else found.logits
    return {"seconds": seconds, "loaded": loaded, "used": peak() - before, "logits": logits.double().abs().sum().item()}


# --- all of them ------------------------------------------------------------------------------------------------------


def in_turn(folder: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    """What each side measured, which take turns."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, results in found.items():
            (folder / "model.safetensors").read_bytes()
            command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(run.stdout.splitlines()[-1]))
    return found


def report(folder: Path, rounds: int) -> None:
    """A row for each side."""
    size = (folder / "model.safetensors").stat().st_size
    found = in_turn(folder, rounds)
    sums = [result["logits"] for results in found.values() for result in results]
    assert max(sums) - min(sums) < 1e-5 * max(sums), "the two do not compute the same"
    for side, results in found.items():
        seconds, loaded, used = (statistics.median(r[key] for r in results) for key in ("seconds", "loaded", "used"))
        span = f"{min(r['seconds'] for r in results):.3f} to {max(r['seconds'] for r in results):.3f}"
        print(f"| {folder.name}, {size / 1e6:.0f} MB | {side} | {seconds:.3f} s ({span}) | ", end="")
        print(f"{loaded / size:.2f} x loaded | {used / size:.2f} x used |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", nargs="*", default=["gpt2", "qwen3"])
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        print(json.dumps(measure(asked.side, asked.folder)))
    else:
        with tempfile.TemporaryDirectory() as place:
            for name in asked.shapes:
                write(name, Path(place))
                for folder in sorted(Path(place).glob(f"{name}, *"), reverse=True):
                    report(folder, asked.rounds)
