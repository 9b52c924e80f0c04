"""Targets by name. In: "native", a preset's name, or a Target. Out: the Target; UserError if there is none of that name."""
from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

from tilewright.core.errors import UserError
from tilewright.target import host, x86
from tilewright.target.cuda import present_device
from tilewright.target.host import ARM_INTRINSICS
from tilewright.target.target import Target


def _x86(name: str, vector_bits: int, vector_registers: int) -> Target:
    features = x86.LEVELS[name]
    return Target(name, "x86_64-unknown-linux-gnu", name, tuple(sorted(features)), vector_bits, vector_registers, cores=2,
                  l1d=32 << 10, l2=512 << 10 if vector_bits < 512 else 1 << 20, l3=8 << 20,
                  intrinsics=x86.intrinsics_of(features), memory_operands=True)


PRESETS: dict[str, Target] = {t.name: t for t in (
    _x86("x86-64", 128, 16),
    _x86("x86-64-v2", 128, 16),
    _x86("x86-64-v3", 256, 16),
    _x86("x86-64-v4", 512, 32),
    Target("aarch64-neon", "aarch64-unknown-linux-gnu", "generic", ("neon",), 128, 32, cores=4, l1d=64 << 10, l2=512 << 10,
           l3=4 << 20, fma_units=2, intrinsics=ARM_INTRINSICS),
    Target("riscv64", "riscv64-unknown-linux-gnu", "generic-rv64", ("m", "a", "f", "d", "c"), 32, 32, cores=4, l1d=32 << 10,
           l2=512 << 10, fma_units=1, intrinsics=("fma",), abi="lp64d"),
    Target("mips64el", "mips64el-unknown-linux-gnuabi64", "mips64r2", (), 32, 32, cores=2, l1d=32 << 10, l2=256 << 10,
           fma_units=1, abi="n64"),
)}


def _gpu(name: str, language: str, **facts: Any) -> Callable[[], Target]:
    """A device beside this machine: its host program is code for this machine. Kernels work on scalars, one per thread."""
    device = {"kind": "gpu", "intrinsics": (), "language": language, "vector_bits": 32, "memory_operands": False, **facts}
    return lambda: dataclasses.replace(host.native(), name=name, **device)


def _cuda(generation: int, cores: int) -> Callable[[], Target]:
    """Limits of the CUDA programming guide, "Technical specifications per compute capability"."""
    intrinsics = ("mma", "cp_async", "shuffle") if generation >= 80 else ("shuffle",)
    return _gpu(f"sm_{generation}", "cuda", intrinsics=intrinsics, max_threads=1024, max_block=(1024, 1024, 64),
                max_grid=(2**31 - 1, 65535, 65535), shared_memory=48 << 10, registers=255, warp=32, cores=cores,
                arch_name=f"sm_{generation}")


def _hip(generation: str, warp: int, cores: int) -> Callable[[], Target]:
    """Limits of AMD's HIP documentation, "Accelerator and GPU hardware specifications"; cores are compute units."""
    return _gpu(generation or "hip", "hip", intrinsics=("shuffle",), max_threads=1024, max_block=(1024,) * 3,
                max_grid=(2**31 - 1, 65535, 65535), shared_memory=64 << 10, warp=warp, cores=cores, arch_name=generation)


def _present_cuda() -> Target:
    return _cuda(*present_device())()


DEVICES: dict[str, Callable[[], Target]] = {
    # What any OpenCL driver that we met grants; the specification itself asks for less (one thread, 32 KiB).
    "opencl": _gpu("opencl", "opencl", max_threads=256, max_block=(256, 256, 64), max_grid=(2**31 - 1, 65535, 65535),
                   shared_memory=32 << 10, warp=32, cores=16),
    # The default limits of the W3C's WebGPU and WGSL (section "Limits" of each; a function's variables: 8192 bytes).
    "webgpu": _gpu("webgpu", "wgsl", device="webgpu", max_threads=256, max_block=(256, 256, 64), max_grid=(65535,) * 3,
                   shared_memory=16 << 10, local_memory=8 << 10, max_bindings=8, max_binding=128 << 20, warp=32, cores=16),
    "cuda": _present_cuda,
    "sm_75": _cuda(75, 40), "sm_80": _cuda(80, 108), "sm_86": _cuda(86, 82), "sm_89": _cuda(89, 128),
    "sm_90": _cuda(90, 132),
    "hip": _hip("", 32, 64), "gfx90a": _hip("gfx90a", 64, 104), "gfx942": _hip("gfx942", 64, 304),
    "gfx1100": _hip("gfx1100", 32, 96),
    # The "Metal Feature Set Tables" for the families Apple7 and newer; a grid's axes are 32-bit numbers.
    "metal": _gpu("metal", "metal", max_threads=1024, max_block=(1024, 1024, 1024), max_grid=(2**31 - 1,) * 3,
                  shared_memory=32 << 10, warp=32, cores=16, max_parameters=31, absent=("erf", "gelu")),
}


def target_names() -> list[str]:
    return ["native", *PRESETS, *DEVICES]


def host_of(target: Target) -> Target:
    """The machine on which a model for `target` starts: itself, or for a device this one."""
    return host.native() if target.is_gpu else target


def get_target(spec: str | Target = "native", *, cores: int | None = None) -> Target:
    """The target of a name (or itself), with the number of cores changed if given.

    Raises UserError `target-unknown` for another name and `target-cores` for a number below 1.
    """
    if isinstance(spec, Target):
        target = spec
    elif spec == "native":
        target = host.native()
    elif spec in PRESETS:
        target = PRESETS[spec]
    elif spec in DEVICES:
        target = DEVICES[spec]()
    else:
        near = difflib.get_close_matches(str(spec), target_names(), 1)
        raise UserError("target-unknown", f"there is no target {spec!r}",
                        hint=(f"did you mean {near[0]!r}? " if near else "") + "targets: " + ", ".join(target_names()))
    if cores is None:
        return target
    if cores < 1:
        raise UserError("target-cores", f"a target needs at least one core, not {cores}")
    return dataclasses.replace(target, cores=cores)
