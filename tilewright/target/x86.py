"""x86-64 as data: the levels of the psABI and which features of a CPU give the instructions that code generation uses.

Levels: System V psABI for AMD64, section 3.1.1 (x86-64, -v2, -v3, -v4). Feature names are LLVM's.
"""
from __future__ import annotations

from collections.abc import Iterable

BASELINE = ("cx8", "cmov", "fxsr", "mmx", "sse", "sse2")
V2 = (*BASELINE, "cx16", "sahf", "popcnt", "sse3", "sse4.1", "sse4.2", "ssse3")
V3 = (*V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave")
V4 = (*V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
LEVELS: dict[str, tuple[str, ...]] = {"x86-64": BASELINE, "x86-64-v2": V2, "x86-64-v3": V3, "x86-64-v4": V4}

# What /proc/cpuinfo calls a feature, where LLVM has another word for it.
CPUINFO = {"pni": "sse3", "sse4_1": "sse4.1", "sse4_2": "sse4.2", "lahf_lm": "sahf", "abm": "lzcnt", "bmi1": "bmi",
           "avx512_vnni": "avx512vnni", "avx512_bf16": "avx512bf16", "avx512_fp16": "avx512fp16",
           "avx512_vbmi2": "avx512vbmi2", "avx512_bitalg": "avx512bitalg", "avx512_vpopcntdq": "avx512vpopcntdq",
           "avx_vnni": "avxvnni", "avx_vnni_int8": "avxvnniint8", "amx_tile": "amx-tile", "amx_int8": "amx-int8",
           "amx_bf16": "amx-bf16", "vpclmulqdq": "vpclmulqdq"}
USED = frozenset(V4) | frozenset({
    "avx512vnni", "avx512bf16", "avx512fp16", "avx512vbmi", "avx512vbmi2", "avx512bitalg", "avx512vpopcntdq",
    "avx512ifma", "avxvnni", "avxvnniint8", "amx-tile", "amx-int8", "amx-bf16"})
"""Features whose instructions may be in generated code; others (crypto, system) are never asked for."""

_INTRINSICS = {"fma": ("fma",), "f16c": ("f16c",), "gather": ("avx2",), "masked": ("avx512vl", "avx512bw"),
               "round": ("sse4.1",), "vnni": ("avx512vnni",), "avx_vnni": ("avxvnni",), "bf16_dot": ("avx512bf16",),
               "f16_arith": ("avx512fp16",), "amx_int8": ("amx-tile", "amx-int8"),
               "amx_bf16": ("amx-tile", "amx-bf16"), "scale": ("avx512f", "avx512vl"),
               "byte_permute": ("avx512vbmi",), "madd": ("sse2",), "madd_256": ("avx2",), "madd_512": ("avx512bw",)}


def features_of(cpuinfo_flags: Iterable[str]) -> tuple[str, ...]:
    """LLVM's names for the features among the kernel's flags that generated code may use, sorted."""
    return tuple(sorted({CPUINFO.get(f, f) for f in cpuinfo_flags} & USED))


def level_of(features: Iterable[str]) -> str:
    """The highest level that the features cover."""
    have = set(features)
    return [name for name, needs in LEVELS.items() if have >= set(needs)][-1]


def vector_bits(features: Iterable[str]) -> int:
    have = set(features)
    return 512 if have >= {"avx512f", "avx512vl"} else 256 if have >= {"avx", "avx2"} else 128


def intrinsics_of(features: Iterable[str]) -> tuple[str, ...]:
    have = set(features)
    return tuple(sorted({"prefetch"} | {name for name, needs in _INTRINSICS.items() if have >= set(needs)}))
