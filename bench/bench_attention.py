"""Attention in a compiled training step. On CPU: the library's way, the textbook's in one piece, and PyTorch's kernel;
on a GPU what hides keys: a dense mask for PyTorch's kernel, and FlexAttention's blocks (`--set attention=flex`).

    python bench/bench_attention.py [--shapes 16x4x128x32 16x6x256x64 4x6x512x64 2x12x1024x64] [--rounds 20]
    python bench/bench_attention.py [--shapes 8x12x2048x64 2x16x8192x128]  # on a GPU

A shape is rows x heads x tokens x width of a head. Causal, bfloat16, forward and backward, in one graph each;
contenders take turns, medians. What is freed is kept, as the command keeps it. On a GPU rows hold eight texts, or one
of which a window of an eighth is seen, and each step lays its mask anew: a model does so once for all of its blocks.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from nextile.base.device import keep_memory
from nextile.nn.attention import block_attention, explicit_attention, fast_attention, piece_by_piece
from nextile.nn.mask import Sight
from nextile.nn.stack import hide, places
from nextile.training.graph import one_graph

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
Shape = tuple[int, int, int, int]
SHAPES = ("16x4x128x32", "16x6x256x64", "4x6x512x64", "2x12x1024x64")
GPU_SHAPES = ("8x12x2048x64", "2x16x8192x128")
SHARE = 8  # texts of a packed row; of a row a window sees one part in so many


def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """In pieces."""
    return piece_by_piece(q, k, v, bias=None, causal=True, scale=q.shape[-1] ** -0.5, share=0.0)


def textbook(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax of all scores."""
    return explicit_attention(q, k, v, bias=None, causal=True, scale=q.shape[-1] ** -0.5)[0]


def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's flash attention."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def sight_of(hides: str, q: Tensor, segments: Tensor) -> Sight:
    """Whom the queries see, in packed rows or in a window, as a stack lays it."""
    apart = segments if hides == "texts" else None
    stand = places(q[:, 0], apart)
    return Sight(stand, stand, True, None if apart is not None else q.shape[2] // SHARE, apart)


def masked(hides: str, shape: Shape, device: torch.device) -> list[Attention]:
    """The same keys hidden by a dense mask, and by blocks."""
    rows, _, tokens, width = shape
    ends = torch.randint(1, tokens, (rows, SHARE - 1, 1), generator=torch.Generator().manual_seed(0))
    segments = ((torch.arange(tokens) >= ends).sum(1) + 1).to(device)
    scale = width**-0.5

    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bias = hide(sight_of(hides, q, segments).dense()[:, None], 0.0, q.dtype)
        return fast_attention(q, k, v, bias=bias, causal=False, scale=scale)

    def blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return block_attention(q, k, v, sight_of(hides, q, segments).blocks(), scale=scale, cap=None)

    return [dense, blocks]


def prepared(attention: Attention, shape: Shape, device: torch.device) -> Callable[[], float]:
    """A function that attends once, forward and backward, and says how many seconds it took."""
    rows, heads, tokens, width = shape
    draw = torch.Generator().manual_seed(0)
    joined = torch.randn(rows, tokens, 3 * heads * width, generator=draw).bfloat16().to(device).requires_grad_()
    worth = torch.randn(rows, tokens, heads * width, generator=draw).bfloat16().to(device)

    def step(joined: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (heads, width)).transpose(1, 2) for part in joined.chunk(3, dim=-1))
        return attention(q, k, v).transpose(1, 2).flatten(2)

    graph = one_graph(step)

    def run() -> float:
        began = time.perf_counter()
        torch.autograd.grad(graph(joined), joined, worth)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    run(), run()
    return run


def compare(title: str, contenders: list[Attention], shape: Shape, device: torch.device, rounds: int) -> None:
    """Measure and print a row of the table."""
    runs = [prepared(attention, shape, device) for attention in contenders]
    took = [[run() for run in runs] for _ in range(rounds)]
    medians = [statistics.median(each) * 1e3 for each in zip(*took, strict=True)]
    print(f"| {title} | {' | '.join(f'{median:.2f}' for median in medians)} |", flush=True)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+")
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    keep_memory()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    columns = "keys hidden | dense, ms | blocks" if on_gpu else "in pieces, ms | textbook, ms | PyTorch's kernel"
    print(f"| rows x heads x tokens x width | {columns}, ms |\n|---|---|---|---|")
    for text in asked.shapes or (GPU_SHAPES if on_gpu else SHAPES):
        rows, heads, tokens, width = map(int, text.split("x"))
        shape = rows, heads, tokens, width
        if not on_gpu:
            compare(text, [ours, textbook, kernel], shape, device, asked.rounds)
            continue
        for hides in ("texts", "window"):
            compare(f"{text} | {hides}", masked(hides, shape, device), shape, device, asked.rounds)


if __name__ == "__main__":
    main()
