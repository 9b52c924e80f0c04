"""The values of the loop IR in NumPy, for the interpreter and the meanings of intrinsics: wrapping, rounding, conversion.

An integer is a Python int wrapped to its type, a bool a Python bool, a float a NumPy (or ml_dtypes) scalar of its type; a
vector is an array (of int64, or uint64 for u64, if its elements are integers).
"""
from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from tilewright.core.dtype import DType, f32


def wrap(t: DType, v: Any) -> Any:
    """An integer (Python int, or an array of int64 or uint64) reduced to the range of `t`."""
    if isinstance(v, np.ndarray):
        if t.bits == 64:
            return v.astype(np.int64 if t.kind == "int" else np.uint64)
        v = v.astype(np.int64) & ((1 << t.bits) - 1)
        return v - ((v >> (t.bits - 1)) << t.bits) if t.kind == "int" else v
    v = int(v) & ((1 << t.bits) - 1)
    return v - (1 << t.bits) if t.kind == "int" and v >> (t.bits - 1) else v


def round_to(t: DType, v: Any) -> Any:
    """A float64 (scalar or array) rounded once, to nearest even, to the float type `t`."""
    v = np.asarray(v, np.float64)
    if t.name in ("f64", "f32", "f16"):
        return v.astype(t.numpy())[()]
    # Small types are converted from f32; rounding to odd on the way keeps the second rounding exact.
    near = v.astype(np.float32)
    bits = near.view(np.int32)
    fix = np.isfinite(near) & (near.astype(np.float64) != v) & (bits & 1 == 0)
    away = (np.abs(near.astype(np.float64)) < np.abs(v)).astype(np.int32) * 2 - 1
    away = np.where(near == 0, 1, away).astype(np.int32)
    odd = np.where(fix, bits + away, bits).astype(np.int32).view(np.float32)
    return np.where(near == 0, np.copysign(np.abs(odd), v), odd).astype(np.float32).astype(t.numpy())[()]


def widen(v: Any) -> Any:
    """A float value of any type as float64."""
    return v.astype(np.float64) if isinstance(v, np.ndarray) else np.float64(v)


def fused_multiply_add(t: DType, a: Any, b: Any, c: Any) -> Any:
    """a*b + c rounded once. For types narrower than f64 the product is exact in f64 and the sum is rounded to odd first."""
    if isinstance(a, np.ndarray):
        return np.array([fused_multiply_add(t.element, *abc) for abc in zip(a, b, c, strict=True)], t.numpy())
    x, y, z = float(a), float(b), float(c)
    if not (math.isfinite(x) and math.isfinite(y) and math.isfinite(z)):
        return round_to(t, np.float64(x) * np.float64(y) + np.float64(z))
    if t.bits == 64:
        return _fma_f64(x, y, z)
    p = x * y
    s = p + z
    d = s - p
    error = (p - (s - d)) + (z - d)
    if error and not int(math.frexp(s)[0] * 2.0**53) & 1:
        s = math.nextafter(s, math.inf if error > 0 else -math.inf)
    return np.float32(s) if t is f32 else round_to(t, s)


def _fma_f64(x: float, y: float, z: float) -> Any:
    exact = Fraction(x) * Fraction(y) + Fraction(z)
    if exact == 0:
        return np.float64(x) * np.float64(y) + np.float64(z)  # the sign of zero
    try:
        return np.float64(float(exact))
    except OverflowError:
        return np.float64(math.inf if exact > 0 else -math.inf)


def from_memory(t: DType, v: Any) -> Any:
    """An element, or an array of elements, as the value that expressions compute with (see the head of this file)."""
    if t.lanes > 1:
        if t.is_int:
            return v.astype(np.uint64 if t.kind == "uint" and t.bits == 64 else np.int64)
        return v
    if t.is_int:
        return int(v)
    return bool(v) if t.is_bool else v


def maximum(a: Any, b: Any) -> Any:
    """The larger; NaN if either is; the first if they are equal."""
    if isinstance(a, np.ndarray):
        return np.where((a >= b) | np.isnan(a), a, b)
    return a if a >= b or math.isnan(a) else b


def minimum(a: Any, b: Any) -> Any:
    """The smaller; NaN if either is; the first if they are equal."""
    if isinstance(a, np.ndarray):
        return np.where((a <= b) | np.isnan(a), a, b)
    return a if a <= b or math.isnan(a) else b


def convert(to: DType, frm: DType, v: Any) -> Any:
    """A value of one type as another: rounds to nearest even, truncates to an integer (its least value if out of range)."""
    if to.is_bool:
        return v != 0 if to.lanes > 1 else bool(v != 0)
    if to.is_float:
        if frm.is_float:
            return round_to(to, widen(v))
        wide = np.uint64 if frm.kind == "uint" and frm.bits == 64 else np.int64
        exact = np.asarray(v).astype(wide)
        return exact.astype(to.numpy())[()] if to.bits >= 32 else round_to(to, exact.astype(np.float64))
    if not frm.is_float:
        return wrap(to, v if frm.lanes > 1 else int(v))
    lo, hi = to.range()
    if to.lanes == 1:
        x = float(v)
        return int(x) if lo - 1 < x < hi + 1 else lo
    return np.array([convert(to.element, frm.element, x) for x in v], vector_kind(to))


def divide_truncating(a: Any, b: Any) -> Any:
    """Integer division that truncates towards zero."""
    if isinstance(a, np.ndarray):
        return a // b if a.dtype == np.uint64 else np.where((a % b != 0) & ((a < 0) != (b < 0)), a // b + 1, a // b)
    q = abs(a) // abs(b)
    return q if (a < 0) == (b < 0) else -q


def vector_kind(t: DType) -> Any:
    """The NumPy dtype of vector values of elements `t`."""
    if t.is_int:
        return np.dtype(np.uint64 if t.kind == "uint" and t.bits == 64 else np.int64)
    return t.numpy()


def poison(t: DType, n: int) -> Any:
    """`n` elements as undefined memory: NaN, or bytes 0xCD (as much of it as fits; true for bool)."""
    kind = t.numpy()
    if t.kind == "handle":
        return np.empty(n, object)
    if t.is_bool:
        return np.ones(n, kind)
    if t.is_float and t.bits >= 8:
        return np.full(n, np.nan).astype(kind)
    if t.bits < 8:
        return np.full(n, 0xCD & ((1 << t.bits) - 1), np.uint8).view(kind) if t.is_float else \
            np.full(n, wrap(t, 0xCD)).astype(kind)
    return np.full(n * kind.itemsize, 0xCD, np.uint8).view(kind)
