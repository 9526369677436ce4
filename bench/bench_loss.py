"""The loss over a large vocabulary, in pieces beside whole: peak memory and seconds of forward and backward.

    python bench/bench_loss.py [--rows 4096] [--width 768] [--vocab 50257] [--precision fp32|bf16] [--rounds 3]
                               [--threads 2]

Whole: F.linear, then F.cross_entropy of its scores in float32. Both sum over the same random targets, and give the
gradients of the vectors and of the weight; they take turns, eager and compiled. Memory is what a process holds at its
peak beyond what it held before, gradients included; on a GPU it is what torch has allocated there.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from nextile.base.device import set_threads
from nextile.nn.head_loss import Product, summed
from nextile.training.graph import one_graph

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def whole(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The usual way."""
    return F.cross_entropy(F.linear(x, weight).float(), targets, reduction="sum")


def pieces(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Ours."""
    return summed(Product(x, weight), targets)


class Memory:
    """The peak since it was made, in bytes."""

    def __init__(self, device: torch.device):
        gc.collect()
        self.cuda = device.type == "cuda"
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
            self.before = _status("VmRSS")

    def peak(self) -> int:
        """Beyond what was there."""
        return (torch.cuda.max_memory_allocated() if self.cuda else _status("VmHWM")) - self.before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def once(loss: Loss, given: tuple[Tensor, Tensor, Tensor], precision: torch.dtype) -> tuple[float, int, float]:
    """Seconds, bytes at the peak, and the loss."""
    x, weight, _ = given
    x.grad = weight.grad = None
    memory = Memory(x.device)
    began = time.perf_counter()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
        total = loss(*given)
    (total / len(x)).backward()
    value = total.item()  # waits for the device
    if x.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, memory.peak(), value


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 4096), ("width", 768), ("vocab", 50_257), ("rounds", 3), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    args = parser.parse_args()
    set_threads(args.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(args.rows, args.width, device=device, requires_grad=True)
    weight = (torch.randn(args.vocab, args.width, device=device) * 0.02).requires_grad_()
    given = (x, weight, torch.randint(args.vocab, (args.rows,), device=device))
    sides = {
        "whole": whole,
        "pieces": pieces,
        "whole, compiled": one_graph(whole),
        "pieces, compiled": one_graph(pieces),
    }
    found: dict[str, list[tuple[float, int, float]]] = {name: [] for name in sides}
    for number in range(args.rounds + 1):
        for name, loss in sides.items():
            measured = once(loss, given, PRECISIONS[args.precision])
            if number:  # the first compiles
                found[name].append(measured)
    products = 3 * 2 * args.rows * args.width * args.vocab
    print(
        f"{args.rows} x {args.width}, vocabulary {args.vocab:,}, {args.precision}, {device}, torch {torch.__version__}"
    )
    for name, rows in found.items():
        seconds, peak = statistics.median(row[0] for row in rows), max(row[1] for row in rows)
        print(f"{name:18} {seconds:7.3f} s  {products / seconds / 1e9:6.0f} GFLOP/s  {peak / 2**20:7.0f} MiB  "
              f"loss {rows[0][2] / args.rows:.6f}")  # fmt: skip


if __name__ == "__main__":
    main()
