"""Translating speed: the same weights, beams and sentences by nextile and by transformers' Marian.

    python bench/bench_beams.py [--model RUN] [--sources FILE] [--beams 5] [--batch 32] [--rounds 5] [--dtype float32]

RUN is a folder of the preset marian; without it a fresh model of marian-tiny's shape learns the built-in numbers for a
minute, so that translations end as they do in use. Both sides encode, search and decode the same batches, and their
texts must be the same before a time counts (in bfloat16 all but a few: ties fall otherwise). A last line has all
sentences in one call of nextile, which itself puts those of like lengths into batches, of 32.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers

import nextile

Translate = Callable[[list[str]], list[str]]
ONE_CALL = "nextile, one call"


def theirs_by(folder: Path, dtype: torch.dtype, beams: int) -> Translate:
    """transformers' generate, its tokenizer included."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def translate(sources: list[str]) -> list[str]:
        given = tokenizer(sources, return_tensors="pt", padding=True, return_token_type_ids=False)
        found = model.generate(**given, num_beams=beams, bad_words_ids=[[tokenizer.pad_token_id]])
        return tokenizer.batch_decode(found, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    return translate


def ours_by(folder: Path, dtype: torch.dtype, beams: int) -> Translate:
    """`Model.translate`."""
    model = nextile.load(folder, dtype=dtype)
    return lambda sources: model.translate(sources, beams=beams)


def measure(ways: dict[str, Translate], batches: list[list[str]], rounds: int) -> dict[str, list[float]]:
    """Sentences a second of each, in turn, one number a round."""
    whole = [[source for batch in batches for source in batch]]
    calls = {name: whole if name == ONE_CALL else batches for name in ways}
    texts = {name: [text for batch in calls[name] for text in ways[name](batch)] for name in ways}
    for name, ours in texts.items():
        same = sum(a == b for a, b in zip(ours, texts["transformers"], strict=True))
        print(f"{name}: {same} of {len(ours)} translations are those of transformers")
    count, speeds = len(whole[0]), {name: [] for name in ways}
    for _ in range(rounds):
        for name, translate in ways.items():
            began = time.perf_counter()
            for batch in calls[name]:
                translate(batch)
            speeds[name].append(count / (time.perf_counter() - began))
    return speeds


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--sources", type=Path)
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = args.model or Path(temporary, "numbers")
        if args.model is None:
            nextile.train("numbers-en-de", preset="marian-tiny", minutes=1, out=folder)
        if args.sources:
            sources = args.sources.read_text(encoding="utf-8").removesuffix("\n").split("\n")[: 10 * args.batch]
        else:
            from nextile.data.pairs import open_pairs

            sources = [source for source, _ in itertools.islice(open_pairs(["numbers-en-de"]).pairs, 10 * args.batch)]
        batches = [sources[start : start + args.batch] for start in range(0, len(sources), args.batch)]
        dtype = getattr(torch, args.dtype)
        ours = ours_by(folder, dtype, args.beams)
        ways = {"transformers": theirs_by(folder, dtype, args.beams), "nextile": ours, ONE_CALL: ours}
        speeds = measure(ways, batches, args.rounds)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, transformers {transformers.__version__}\n")
    print("| dtype | | sentences/s | against transformers |\n|---|---|---|---|")
    for name, found in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(found, speeds["transformers"], strict=True))
        print(f"| {args.dtype} | {name} | {statistics.median(found):.1f} | {ratio:.2f}x |")


if __name__ == "__main__":
    main()
