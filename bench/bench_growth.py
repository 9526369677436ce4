"""How the cost of a training step grows, predicted from the spec and measured: time, peak memory, fitted exponents.

    python bench/bench_growth.py [--axes context batch depth width vocab threads processes] [--seconds 1.5]
    python bench/bench_growth.py --axes threads processes --base depth=6 width=384 context=256 batch=16

One axis varies at a time around a GPT-2 shape of 4 layers of width 256, context 128, 8 rows, vocabulary 4,096, which
--base moves; fp32, not compiled, AdamW. Each point is a process of its own, which measures its own peak; memory counts
from before the model is built. Time is the fastest step. An exponent is the slope of the least squares line in log-log;
the gap is the largest factor by which measured departs from predicted, each relative to its geometric mean along the
axis.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from itertools import islice
from math import exp, log

import numpy as np
import torch

from nextile.base.device import keep_memory
from nextile.data.batches import Batch
from nextile.models import count
from nextile.models.build import build
from nextile.models.families import gpt2
from nextile.training.loop import learn, train
from nextile.training.objectives import next_token
from nextile.training.optim import AdamW, Optimizer
from nextile.training.schedule import Constant

BASE = {"context": 128, "batch": 8, "depth": 4, "width": 256, "vocab": 4096, "threads": 2, "processes": 1}
CORES = os.cpu_count() or 1
AXES = {
    "context": (64, 128, 256, 512, 1024),
    "batch": (2, 4, 8, 16, 32),
    "depth": (2, 4, 8, 16),
    "width": (128, 256, 512, 1024),
    "vocab": (1024, 4096, 16_384, 65_536),
    "threads": tuple(n for n in (1, 2, 4, 8) if n <= CORES),
    "processes": tuple(n for n in (1, 2, 4) if n <= CORES),  # of one thread each, the batch divided among them
}


def spec_of(point: dict):
    """The shape of a point."""
    sizes = {name: point[name] for name in ("vocab", "context", "width", "depth")}
    return gpt2.spec(**sizes, heads=max(1, point["width"] // 64))


def predicted(point: dict) -> tuple[float, float]:
    """FLOPs of a step on each thread or process, and bytes at its peak."""
    spec, length = spec_of(point), point["context"]
    rows = point["batch"] // point["processes"]
    flops = count.training_flops(spec, length) * rows * length / point["threads"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return flops, float(count.training_memory(spec, rows=rows, length=length, device=device, scores="fused"))


# --- one point, in a process of its own ------------------------------------------------------------------------------


def resident(name: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at the most."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(name))


def steps_of(point: dict, device: torch.device):
    """Steps without end of the model of a point, alone or with the others that torchrun started."""
    model = build(spec_of(point), device=device)
    ids = torch.randint(0, point["vocab"], (point["batch"], point["context"] + 1), device=device)
    if point["processes"] == 1:
        batch, optimizer = Batch.of(ids[:, :-1], ids[:, 1:]), Optimizer(model, AdamW())
        return train(model, lambda _: [batch], next_token, optimizer, Constant(), steps=1 << 40)
    return spread_steps(point, model, ids)


def spread_steps(point: dict, model: torch.nn.Module, ids: torch.Tensor):
    """The same on several processes, each with its rows."""
    from nextile.training.parallel import Parallel, Rows, joined
    from nextile.training.spread import spread
    from nextile.training.spread_learner import SpreadLearner

    whole = Batch.of(ids[:, :-1], ids[:, 1:])
    with joined() as alike:
        world = alike.meshed(Parallel(), ids.device)
        spread(model, world)
        mine = Rows(lambda _: [whole], world)
        yield from learn(SpreadLearner(model, next_token, AdamW(), world), mine, Constant(), steps=1 << 40)


def measure(point: dict, seconds: float) -> dict[str, float]:
    """Seconds of the fastest of a few steps, and bytes at the peak."""
    torch.set_num_threads(point["threads"])
    keep_memory()  # as the command does
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = 0 if device.type == "cuda" else resident("VmRSS")
    steps, times = steps_of(point, device), []
    for step in islice(steps, 2):
        _ = float(step.loss)
    while len(times) < 2 or (sum(times) < seconds and len(times) < 50):
        began = time.perf_counter()
        _ = float(next(steps).loss)
        times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident("VmHWM")
    return {"seconds": min(times), "bytes": peak - before}


# --- all points ------------------------------------------------------------------------------------------------------


def asked_for(point: dict, seconds: float) -> dict[str, float]:
    """What the process of a point measures; the first's, where there are several."""
    command = [sys.executable, __file__, "--point", json.dumps(point), "--seconds", str(seconds)]
    if point["processes"] > 1:
        run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={point['processes']}"]
        command[1:1] = run
    env = {**os.environ, "OMP_NUM_THREADS": str(point["threads"])}
    found = subprocess.run(command, capture_output=True, text=True, env=env)
    lines = [line for line in found.stdout.splitlines() if line.startswith('{"seconds"')]
    if not lines:
        raise SystemExit(f"{point}: {found.stderr}")
    return json.loads(lines[0])


def exponent(sizes, costs) -> float:
    """The slope of the line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def gap(measured, expected) -> float:
    """The largest factor between the two, each relative to its geometric mean."""
    ratios = [log(found / wanted) for found, wanted in zip(measured, expected, strict=True)]
    middle = sum(ratios) / len(ratios)
    return exp(max(abs(ratio - middle) for ratio in ratios))


def axis_rows(name: str, base: dict, seconds: float) -> tuple[list[str], str]:
    """A line for each point of an axis through the base, and one that sums it up."""
    base = base | ({"threads": 1} if name == "processes" else {})
    points = [base | {name: size} for size in AXES[name]]
    found = [asked_for(point, seconds) for point in points]
    times, peaks = ([each[part] for each in found] for part in ("seconds", "bytes"))
    flops, memory = zip(*map(predicted, points), strict=True)
    lines = [
        f"| {name} | {size:,} | {work / 1e9:.2f} | {1000 * took:.1f} | {work / took / 1e9:.0f} "
        f"| {need / 2**20:.0f} | {peak / 2**20:.0f} |"
        for size, work, took, need, peak in zip(AXES[name], flops, times, memory, peaks, strict=True)
    ]
    slopes = [f"{exponent(AXES[name], costs):.2f}" for costs in (flops, times, memory, peaks)]
    gaps = gap(times, flops), gap(peaks, memory)
    return (
        lines,
        f"| {name} | {slopes[0]} | {slopes[1]} | {gaps[0]:.2f}x | {slopes[2]} | {slopes[3]} | {gaps[1]:.2f}x |",
    )


def sized(text: str) -> tuple[str, int]:
    """ "width=384" -> the size's name and its number."""
    name, _, number = text.partition("=")
    if name not in BASE or not number.isdigit() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is none of {', '.join(f'{each}=N' for each in BASE)}")
    return name, int(number)


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--base", nargs="+", type=sized, default=[])
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.point:
        print(json.dumps(measure(asked.point, asked.seconds)), flush=True)
        os._exit(0)  # the generators of several processes would wait for each other
    began, sums = time.perf_counter(), []
    print(f"torch {torch.__version__}, {CORES} cores; GFLOPs and their rate are of each thread or process\n")
    print("| axis | size | GFLOPs | ms | GFLOP/s | MiB predicted | MiB measured |\n|---|---|---|---|---|---|---|")
    for name in asked.axes:
        if len(AXES[name]) > 1:
            lines, total = axis_rows(name, BASE | dict(asked.base), asked.seconds)
            sums.append(total)
            print("\n".join(lines), flush=True)
    print("\n| axis | time, predicted exponent | measured | gap | memory, predicted exponent | measured | gap |")
    print("|---|---|---|---|---|---|---|", *sums, sep="\n")
    print(f"\n{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
