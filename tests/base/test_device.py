"""Devices: what is asked for is here or the error says what is; limits of containers count."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nextile.base import device
from nextile.base.errors import UsageError

CPU = torch.device("cpu")
GB = 2**30


def test_a_device_by_name_and_by_default():
    assert device.choose_device("cpu") == CPU
    assert device.choose_device(None).type in ("cpu", "cuda", "mps", "xpu")


def test_devices_that_are_not_here(monkeypatch):
    monkeypatch.setattr(device, "_devices", lambda: ["cpu"])
    assert device.choose_device(None) == CPU
    with pytest.raises(UsageError, match="unknown device 'gpuu': use cpu"):
        device.choose_device("gpuu")
    for absent in ("cuda", "cuda:3", "cpu:7", "meta"):
        with pytest.raises(UsageError, match=f"device '{absent}' is not available here: use cpu"):
            device.choose_device(absent)


def test_an_accelerator_is_preferred_and_its_number_checked(monkeypatch):
    monkeypatch.setattr(device, "_devices", lambda: ["cuda", "cpu"])
    monkeypatch.setattr(device, "_count", lambda kind: 2)
    assert device.choose_device(None).type == "cuda"
    assert device.choose_device("cuda:1").index == 1
    with pytest.raises(UsageError, match="device 'cuda:2' is not available here: use cuda or cpu"):
        device.choose_device("cuda:2")


# --- precision -----------------------------------------------------------------------------------------------------


def test_precision_follows_the_hardware(monkeypatch):
    for fast, auto in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(device, "has_fast_bf16", lambda _, fast=fast: fast)
        assert device.choose_precision("auto", CPU) == auto
        assert device.choose_precision("fp32", CPU) == torch.float32
    with pytest.raises(UsageError, match="precision 'bf16': this cpu has no bf16 in hardware; use fp32 or auto"):
        device.choose_precision("bf16", CPU)
    with pytest.raises(UsageError, match="precision 'fp16' is unknown: use auto, fp32, bf16 or fp8"):
        device.choose_precision("fp16", CPU)


def test_fp8_is_for_devices_that_have_it_and_says_what_others_have(monkeypatch):
    for fast, remedy in ((True, "bf16, fp32 or auto"), (False, "fp32 or auto")):
        monkeypatch.setattr(device, "has_fast_bf16", lambda _, fast=fast: fast)
        with pytest.raises(UsageError, match=f"^precision 'fp8': this cpu has no fp8 in hardware; use {remedy}$"):
            device.choose_precision("fp8", CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100-SXM4-80GB")
    with pytest.raises(UsageError, match="precision 'fp8': this NVIDIA A100-SXM4-80GB has no fp8 in hardware; use"):
        device.choose_precision("fp8", torch.device("cuda"))
    monkeypatch.setattr(device, "has_fp8", lambda _: True)
    assert device.choose_precision("fp8", CPU) == torch.bfloat16
    assert device.choose_precision("auto", CPU) == torch.float32  # whatever there is, only who asks for it gets it


def test_bf16_of_x86_is_asked_of_torch(monkeypatch, tmp_path):
    monkeypatch.setattr(device, "PROC", tmp_path)
    for avx512, amx in ((True, False), (False, True), (False, False)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda a=avx512: a, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda a=amx: a, raising=False)
        assert device.has_fast_bf16(CPU) == (avx512 or amx)


def test_bf16_survives_a_torch_without_the_questions(monkeypatch, tmp_path):
    monkeypatch.setattr(device, "PROC", tmp_path)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert not device.has_fast_bf16(CPU)
    (tmp_path / "cpuinfo").write_text("processor: 0\nFeatures\t: fp asimd i8mm bf16 dgh\n")
    assert device.has_fast_bf16(CPU)
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx512f bf16\nFeatures\t: fp asimd\n")
    assert not device.has_fast_bf16(CPU)


def test_bf16_agrees_with_the_kernel_about_this_machine():
    flags = device._read(Path("/proc/cpuinfo"))
    if "avx512_bf16" not in flags:
        pytest.skip("this CPU is not known to have AVX512-BF16")
    assert device.has_fast_bf16(CPU)


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bf16_of_cuda_follows_the_capability(monkeypatch, capability, fast):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert device.has_fast_bf16(torch.device("cuda")) == fast


@pytest.mark.parametrize(
    ("capability", "hip", "has"),
    [((8, 6), None, False), ((8, 9), None, True), ((9, 0), None, True), ((12, 0), None, True), ((9, 4), "6.2", False)],
)
def test_fp8_of_cuda_follows_the_capability(monkeypatch, capability, hip, has):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert device.has_fp8(torch.device("cuda")) == has
    assert not device.has_fp8(CPU)


# --- compiler, threads, seed ---------------------------------------------------------------------------------------


def test_a_compiler_needs_the_program_and_the_headers(monkeypatch, tmp_path):
    compiler = tmp_path / "my++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    (tmp_path / "Python.h").write_text("")
    monkeypatch.setattr(device.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("CXX", str(compiler))
    assert device.has_compiler()
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert not device.has_compiler()
    monkeypatch.setenv("CXX", str(compiler))
    (tmp_path / "Python.h").unlink()
    assert not device.has_compiler()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_threads_are_set_and_cut_to_the_quota(threads, monkeypatch):
    assert device.set_threads(3) == torch.get_num_threads() == 3
    monkeypatch.setattr(device, "_cpu_share", lambda: 2)
    assert device.set_threads(None) == 2
    with pytest.raises(UsageError, match="0 threads: use at least 1"):
        device.set_threads(0)


FAULTS = """
import resource, torch
from nextile.base.device import keep_memory
if {kept}:
    assert keep_memory()
model = torch.nn.Sequential(torch.nn.Linear(128, 2048), torch.nn.GELU(), torch.nn.Linear(2048, 128))
for turn in range(8):
    if turn == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model(torch.ones(6 << 10, 128)).sum().backward()  # results of 48 MiB, which glibc asks of the system each time
    model.zero_grad()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_kept_memory_is_not_asked_of_the_system_again():
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", FAULTS.format(kept=kept)], capture_output=True, check=True).stdout)
        for kept in (True, False)
    )
    assert kept < given_back / 10


def test_memory_is_not_kept_where_the_allocator_is_another(monkeypatch):
    monkeypatch.setattr(device.ctypes, "CDLL", lambda name: object())
    assert device.keep_memory() is False


# --- what the container leaves -------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """An empty /proc and /sys/fs/cgroup to write into."""
    monkeypatch.setattr(device, "PROC", tmp_path / "proc")
    monkeypatch.setattr(device, "CGROUP", tmp_path / "cgroup")

    def write(**texts: str) -> None:
        for name, text in texts.items():
            path = tmp_path / name.replace("__", "/").replace("_DOT_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    write(proc__meminfo=f"MemTotal: {64 * GB // 1024} kB\nMemAvailable: {32 * GB // 1024} kB\n")
    return write


def test_memory_without_limits_is_what_the_kernel_says(machine):
    assert device.memory_available(CPU) == 32 * GB


def test_memory_without_proc_is_what_is_installed(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(device, "PROC", tmp_path / "none")
    assert device.memory_available() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_the_tightest_limit_of_version_2_counts(machine):
    machine(
        proc__self__cgroup="0::/job/step\n",
        cgroup__job__step__memory_DOT_max="max\n",
        cgroup__job__step__memory_DOT_current=f"{GB}\n",
        cgroup__job__memory_DOT_max=f"{4 * GB}\n",
        cgroup__job__memory_DOT_current=f"{3 * GB}\n",
        cgroup__job__memory_DOT_stat=f"anon {GB}\ninactive_file {GB}\n",
    )
    assert device.memory_available(CPU) == 2 * GB


def test_a_container_sees_its_limit_at_the_root(machine):
    machine(
        proc__self__cgroup="0::/../../docker/abc\n",
        cgroup__memory_DOT_max=f"{4 * GB}\n",
        cgroup__memory_DOT_current=f"{5 * GB}\n",
    )
    assert device.memory_available(CPU) == 0


def test_limits_of_version_1(machine):
    machine(
        proc__self__cgroup="5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n",
        cgroup__memory__memory_DOT_limit_in_bytes=f"{4 * GB}\n",
        cgroup__memory__memory_DOT_usage_in_bytes=f"{2 * GB}\n",
        cgroup__memory__memory_DOT_stat=f"inactive_file 1\ntotal_inactive_file {GB}\n",
        cgroup__cpu__cpu_DOT_cfs_quota_us="150000\n",
        cgroup__cpu__cpu_DOT_cfs_period_us="100000\n",
    )
    assert device.memory_available(CPU) == 3 * GB
    assert device._quota(device.CGROUP / "cpu") == 2
    assert device._cpu_share() <= 2


def test_the_quota_of_version_2(machine, monkeypatch):
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    machine(proc__self__cgroup="0::/\n", cgroup__cpu_DOT_max="max 100000\n")
    assert device._cpu_share() == 64
    machine(cgroup__cpu_DOT_max="250000 100000\n")
    assert device._cpu_share() == 3
