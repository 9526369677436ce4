"""Attention in a compiled training step on CPU: the library's way, the textbook's in one piece, and PyTorch's kernel.

    python bench/bench_attention.py [--shapes 16x4x128x32 16x6x256x64 4x6x512x64 2x12x1024x64] [--rounds 20]

A shape is rows x heads x tokens x width of a head. Causal, bfloat16, forward and backward, in one graph each;
contenders take turns, medians. What is freed is kept, as the command keeps it.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from nextile.base.device import keep_memory
from nextile.nn.attention import explicit_attention, piece_by_piece
from nextile.training.graph import one_graph

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
SHAPES = ("16x4x128x32", "16x6x256x64", "4x6x512x64", "2x12x1024x64")


def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """In pieces."""
    return piece_by_piece(q, k, v, bias=None, causal=True, scale=q.shape[-1] ** -0.5, share=0.0)


def textbook(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax of all scores."""
    return explicit_attention(q, k, v, bias=None, causal=True, scale=q.shape[-1] ** -0.5)[0]


def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's flash attention."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def prepared(attention: Attention, shape: tuple[int, int, int, int]) -> Callable[[], float]:
    """A function that attends once, forward and backward, and says how many seconds it took."""
    rows, heads, tokens, width = shape
    draw = torch.Generator().manual_seed(0)
    joined = torch.randn(rows, tokens, 3 * heads * width, generator=draw).bfloat16().requires_grad_()
    worth = torch.randn(rows, tokens, heads * width, generator=draw).bfloat16()

    def step(joined: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (heads, width)).transpose(1, 2) for part in joined.chunk(3, dim=-1))
        return attention(q, k, v).transpose(1, 2).flatten(2)

    graph = one_graph(step)

    def run() -> float:
        began = time.perf_counter()
        torch.autograd.grad(graph(joined), joined, worth)
        return time.perf_counter() - began

    run(), run()
    return run


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    keep_memory()
    print("| rows x heads x tokens x width | in pieces, ms | textbook, ms | PyTorch's kernel, ms |\n|---|---|---|---|")
    for text in asked.shapes:
        rows, heads, tokens, width = map(int, text.split("x"))
        runs = [prepared(attention, (rows, heads, tokens, width)) for attention in (ours, textbook, kernel)]
        took = [[run() for run in runs] for _ in range(asked.rounds)]
        medians = [statistics.median(each) * 1e3 for each in zip(*took, strict=True)]
        print(f"| {text} | {' | '.join(f'{median:.2f}' for median in medians)} |", flush=True)


if __name__ == "__main__":
    main()
