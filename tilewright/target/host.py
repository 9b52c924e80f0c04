"""The running machine as a Target: what Linux says of its CPU, its caches, and how much of it this process may use.

Anything that cannot be read falls back to a modest guess, so detection never fails.
"""
from __future__ import annotations

import functools
import math
import os
import platform
from pathlib import Path
from typing import Any

from tilewright.target import x86
from tilewright.target.target import Target

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_CGROUP = Path("/sys/fs/cgroup/cpu.max")
ARM_INTRINSICS = ("f16c", "fma", "prefetch", "round")
"""What every 64-bit ARM has: NEON is part of it."""


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """The flags of the first processor in the text of /proc/cpuinfo ("Features" on ARM)."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def usable_cores() -> int:
    """Processors that affinity and the cgroup's quota leave to this process, at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read(_CGROUP).partition(" ")
    if quota.isdigit() and period.strip().isdigit() and int(period) > 0:
        count = min(count, math.ceil(int(quota) / int(period)))
    return max(1, count)


def cache_sizes(root: Path = _CACHES) -> dict[str, int]:
    """Bytes of "l1d", "l2", "l3" and of a "line", as far as sysfs tells."""
    out: dict[str, int] = {}
    for index in sorted(root.glob("index*")):
        level, kind, size = (_read(index / f) for f in ("level", "type", "size"))
        if kind != "Instruction" and level.isdigit() and size[-1:] in ("K", "M") and size[:-1].isdigit():
            out["l1d" if level == "1" else f"l{level}"] = int(size[:-1]) << (10 if size[-1] == "K" else 20)
            line = _read(index / "coherency_line_size")
            if line.isdigit():
                out["line"] = int(line)
    return out


@functools.cache
def native() -> Target:
    """This machine. The CPU's name for LLVM is the level (a model's own tuning is asked of llvmlite by the code
    generator): code depends on the features alone."""
    caches = cache_sizes()
    facts: dict[str, Any] = {"cores": usable_cores(), "l1d": caches.get("l1d", 32 << 10), "l2": caches.get("l2", 256 << 10),
             "l3": caches.get("l3", 0), "cache_line": caches.get("line", 64)}
    if platform.machine() in ("aarch64", "arm64"):
        return Target("native", f"aarch64-unknown-{_system()}", "generic", ("neon",), 128, 32,
                      intrinsics=ARM_INTRINSICS, **facts)
    features = x86.features_of(cpu_flags(_read(Path("/proc/cpuinfo")))) or x86.BASELINE
    bits = x86.vector_bits(features)
    return Target("native", f"x86_64-unknown-{_system()}", x86.level_of(features), features, bits,
                  32 if bits == 512 else 16, intrinsics=x86.intrinsics_of(features), memory_operands=True, **facts)


def is_kind_of_host(target: Target) -> bool:
    """Whether this machine has the target's kind of processor and its system; features are another question."""
    here = native()
    return target.arch == here.arch and target.triple.split("-", 2)[2:] == here.triple.split("-", 2)[2:]


def _system() -> str:
    return {"Linux": "linux-gnu", "Darwin": "darwin"}.get(platform.system(), "linux-gnu")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
