"""What fewer bits cost: the perplexity of a text under a language model as it is, and with its blocks in int8 and int4.

    python bench/bench_quantize.py MODEL TEXT

MODEL is a folder or a hub name, TEXT a file that it has not learned from. Embedding, head and norms stay as they are.
"""

import argparse

import nextile
from nextile.nn.quantize import Int4, Int8, quantize
from nextile.tasks.report import choose

KINDS = {"as it is": None, "int8": Int8(), "int4, groups of 32": Int4(), "int4, groups of 64": Int4(group=64)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    args = parser.parse_args()
    first = None
    for name, kind in KINDS.items():
        found = nextile.load(args.model, device="cpu", dtype="float32")
        if kind is not None:
            quantize(found.model, kind)
        perplexity = found.evaluate(args.text, report=choose(quiet=True))["perplexity"]
        first = first or perplexity
        print(f"{name}: perplexity {perplexity:.4f}, {perplexity / first - 1:+.3%}", flush=True)


if __name__ == "__main__":
    main()
