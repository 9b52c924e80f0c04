"""LLVM code generation, the vocabulary: how element types and constants of the loop IR are written as LLVM text.

A value has a register type (`register_type`: what computing uses) and a memory type (`memory_type`: what a buffer holds).
They differ for bool (i1 and i8) and for sub-byte types (i4 and i8). Floats below 32 bits are carried as their bit
patterns in integers; arithmetic on them goes through float (see convert.py), so every x86-64 level gives the same bits.
"""
from __future__ import annotations

import struct
from typing import Any

import numpy as np

from tilewright.core.dtype import DType
from tilewright.core.errors import InternalError


def is_small_float(t: DType) -> bool:
    """Carried as a bit pattern and computed as float."""
    return t.kind == "float" and t.bits < 32


def scalar_type(t: DType) -> str:
    """The register type of one lane of `t`."""
    if t.kind == "float":
        return {64: "double", 32: "float"}.get(t.bits, f"i{t.bits}")
    if t.kind == "bool":
        return "i1"
    return "ptr" if t.kind == "handle" else f"i{t.bits}"


def register_type(t: DType) -> str:
    one = scalar_type(t)
    return one if t.lanes == 1 else f"<{t.lanes} x {one}>"


def memory_scalar(t: DType) -> str:
    """The type of one unpacked element in memory, and of a scalar at the boundary of a function."""
    one = scalar_type(t)
    return "i8" if one in ("i1", "i2", "i4") else one


def memory_type(t: DType) -> str:
    one = memory_scalar(t)
    return one if t.lanes == 1 else f"<{t.lanes} x {one}>"


def vector_of(scalar: str, lanes: int) -> str:
    return scalar if lanes == 1 else f"<{lanes} x {scalar}>"


def literal(value: Any, t: DType) -> str:
    """A constant of one lane: decimal for integers, the bits of a double for f32 and f64 (as LLVM wants both)."""
    if t.kind == "bool":
        return "true" if value else "false"
    if t.kind == "float":
        if t.bits >= 32:
            with np.errstate(over="ignore"):
                exact = float(np.float32(value)) if t.bits == 32 else float(value)
            return f"0x{struct.unpack('<Q', struct.pack('<d', exact))[0]:016X}"
        bits = np.array(value).astype(t.numpy()).view(np.uint8 if t.bits <= 8 else np.uint16)
        return str(int(bits) & ((1 << t.bits) - 1))
    if t.kind == "handle":
        if value == 0:
            return "null"
        raise InternalError("a handle's only constant is 0")
    return str(int(value))


def splat(scalar_literal: str, t: DType) -> str:
    """An operand (without its type) of dtype `t` whose lanes all are the literal."""
    return scalar_literal if t.lanes == 1 else f"splat ({scalar_type(t)} {scalar_literal})"
