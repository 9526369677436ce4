"""Device, precision, threads and memory: chosen or asked by the caller, never at import."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nextile.base.errors import UsageError

if TYPE_CHECKING:
    import torch

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


# --- device and precision -----------------------------------------------------------------------------------------


def choose_device(name: str | None = None) -> torch.device:
    """The device of that name, or for None the accelerator if there is one, else the CPU.

    Errors: UsageError when the name is unknown or the machine has no such device.
    """
    import torch

    here = _devices()
    if name is None:
        return torch.device(here[0])
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device '{name}': use {' or '.join(here)}") from error
    if device.type not in here or (device.index or 0) >= _count(device.type):
        raise UsageError(f"device '{name}' is not available here: use {' or '.join(here)}")
    return device


def _devices() -> list[str]:
    """The kinds of device of this machine, the fastest first."""
    import torch

    available = {"cuda": torch.cuda.is_available, "xpu": torch.xpu.is_available, "mps": torch.backends.mps.is_available}
    return [*(name for name, is_here in available.items() if is_here()), "cpu"]


def _count(kind: str) -> int:
    import torch

    return 1 if kind == "cpu" else torch.get_device_module(kind).device_count()


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The type to compute in: "auto" is bf16 exactly where the hardware is fast at it, else fp32; never fp8.

    With fp8 it is bf16: what is left beside the products of the blocks (nn/float8.py).
    Errors: UsageError for another name, and for bf16 and fp8 where they would only be emulated.
    """
    import torch

    if name not in ("auto", "fp32", "bf16", "fp8"):
        raise UsageError(f"precision '{name}' is unknown: use auto, fp32, bf16 or fp8")
    fast = has_fast_bf16(device)
    if name == "fp8" and not has_fp8(device):
        remedy = "bf16, fp32 or auto" if fast else "fp32 or auto"
        raise UsageError(f"precision 'fp8': this {_called(device)} has no fp8 in hardware; use {remedy}")
    if name == "bf16" and not fast:
        raise UsageError(f"precision 'bf16': this {device.type} has no bf16 in hardware; use fp32 or auto")
    return torch.float32 if name == "fp32" or (name == "auto" and not fast) else torch.bfloat16


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware, rather than emulating them more slowly than fp32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (_x86_bf16() or _arm_bf16())


def has_fp8(device: torch.device) -> bool:
    """Whether the device multiplies float8 matrices in hardware: NVIDIA's from Ada and Hopper on.

    AMD's number their capabilities otherwise, and those of the MI300 series have another float8 than this.
    """
    import torch

    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 9)


def _called(device: torch.device) -> str:
    """What a GPU is called, as "NVIDIA A100-SXM4-80GB"; of other devices the kind."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _x86_bf16() -> bool:
    """AVX512-BF16 or AMX, asked of torch, whose names for the question start with an underscore and may move."""
    import torch

    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, question, bool)() for question in questions)


def _arm_bf16() -> bool:
    """The `bf16` feature of ARM v8.6; x86 kernels list their features under another heading."""
    features = [line for line in _read(PROC / "cpuinfo").splitlines() if line.startswith("Features")]
    return bool(features) and "bf16" in features[0].split()


# --- compiler and threads ------------------------------------------------------------------------------------------


def has_compiler() -> bool:
    """Whether torch.compile can build for the CPU here: it needs a C++ compiler and the headers of this Python."""
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return shutil.which(os.environ.get("CXX", default)) is not None and headers.is_file()


def set_threads(number: int | None) -> int:
    """Let torch compute with that many threads, or for None with its own number cut to the container's share of CPUs.

    Returns the number now set. Errors: UsageError below 1.
    """
    import torch

    if number is not None and number < 1:
        raise UsageError(f"{number} threads: use at least 1")
    torch.set_num_threads(number or min(torch.get_num_threads(), _cpu_share()))
    return torch.get_num_threads()


def keep_memory() -> bool:
    """Let this process keep the memory that it frees for what it needs next, where its allocator is glibc's.

    A training step frees and asks the same hundreds of megabytes each time. Given back to the system they come back as
    fresh pages, which takes a tenth to a fifth of a compiled step on CPU; kept, the process stays as large as it once
    was. Blocks of a gibibyte and more are given back all the same. Returns whether it could be asked.
    """
    mmap_threshold, trim_threshold, no_trim, block = -3, -1, -1, 1 << 30  # <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return False
    return bool(mallopt(mmap_threshold, block) and mallopt(trim_threshold, no_trim))


def _cpu_share() -> int:
    """The CPUs that this process may keep busy at once: its affinity, cut to its control groups' quotas."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [_quota(group) for group in _control_groups("cpu")]
    return max(1, min([cpus, *(quota for quota in quotas if quota)]))


def _quota(group: Path) -> int:
    """A control group's quota in whole CPUs, rounded up; 0 for none."""
    v1 = f"{_read(group / 'cpu.cfs_quota_us').strip()} {_read(group / 'cpu.cfs_period_us').strip()}"
    allowed, period = (*(_read(group / "cpu.max") or v1).split(), "", "")[:2]
    return -(-int(allowed) // int(period)) if allowed.isdigit() and period.isdigit() else 0


# --- memory -------------------------------------------------------------------------------------------------------


def memory_available(device: torch.device | str = "cpu") -> int:
    """The bytes that can still be allocated on a device; on the CPU within the limits of the container."""
    kind = str(device).partition(":")[0]
    if kind == "cpu":
        return max(0, min([_system_memory(), *_group_memory()]))
    import torch

    if kind == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return torch.get_device_module(kind).mem_get_info(torch.device(device))[0]


def _system_memory() -> int:
    """What Linux says is available; elsewhere all that is installed."""
    for line in _read(PROC / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _group_memory() -> Iterator[int]:
    """What every limited control group around this process has left; file cache that can be dropped counts as free."""
    for group in _control_groups("memory"):
        limit = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes")
        used = _read(group / "memory.current") or _read(group / "memory.usage_in_bytes")
        if limit.strip().isdigit() and used.strip().isdigit():
            yield int(limit) - int(used) + _inactive_file(group)


def _inactive_file(group: Path) -> int:
    counts = dict(line.split() for line in _read(group / "memory.stat").splitlines() if len(line.split()) == 2)
    return int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))


def _control_groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control groups, versions 1 and 2, from its own up to the root."""
    for line in _read(PROC / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUP / controllers if controllers else CGROUP
        root = root if root.is_dir() else CGROUP / controller
        own = root / path.lstrip("/")
        yield from (group for group in (own, *own.parents) if group.is_relative_to(root))


def _read(path: Path) -> str:
    """A file of the kernel's, or nothing where this system has none."""
    try:
        return path.read_text()
    except OSError:
        return ""
