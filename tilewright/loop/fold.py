"""Constant folding with the exact meaning of the loop IR: integers wrap, floats round once per operation.

In: constants. Out: the constant result, or None where folding could differ from what a machine computes (NaN, division
by zero, types without an exact rounding here).
"""
from __future__ import annotations

import math
import operator
import struct
from typing import Any

from tilewright.core.dtype import DType, boolean, f32
from tilewright.loop.affine import wrap
from tilewright.loop.ir import Add, Const, Div, Eq, Expr, FloorDiv, FloorMod, Le, Lt, Max, Min, Mul, Ne, Sub

_COMPARE: dict[Any, Any] = {Eq: operator.eq, Ne: operator.ne, Lt: operator.lt, Le: operator.le}
_INT: dict[Any, Any] = {Add: operator.add, Sub: operator.sub, Mul: operator.mul, Min: min, Max: max}
_INT_DIVIDE: dict[Any, Any] = {FloorDiv: operator.floordiv, FloorMod: operator.mod,
                               Div: lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)}
_FLOAT: dict[Any, Any] = {Add: operator.add, Sub: operator.sub, Mul: operator.mul, Div: operator.truediv}


def fold_binary(cls: type[Expr], a: Const, b: Const) -> Const | None:
    """The value of `cls(a, b)`."""
    x, y, t = a.value, b.value, a.type
    if t.is_float:  # a constant's value may be written with more digits than its type has
        x, y = round_to(x, t), round_to(y, t)
        if x is None or y is None:
            return None
    if cls in _COMPARE:
        return Const(bool(_COMPARE[cls](x, y)), boolean)
    if t.is_int:
        if cls in _INT:
            return Const(wrap(_INT[cls](x, y), t), t)
        return Const(wrap(_INT_DIVIDE[cls](x, y), t), t) if cls in _INT_DIVIDE and y != 0 else None
    if t.is_float:
        if cls in (Min, Max) and x != y:
            return Const(min(x, y) if cls is Min else max(x, y), t)
        if cls in _FLOAT and not (cls is Div and y == 0):
            try:
                value = round_to(_FLOAT[cls](x, y), t)
            except OverflowError:
                return None
            return None if value is None else Const(value, t)
    return None


def fold_cast(to: DType, c: Const) -> Const | None:
    """The value of `Cast(to, c)`."""
    v, t = c.value, c.type
    if t.is_float:
        v = round_to(v, t)
        if v is None:
            return None
        if to.is_int:
            low, high = to.range()
            return Const(math.trunc(v), to) if low <= math.trunc(v) <= high else None
        if to.is_bool:
            return None
    if to.is_int:
        return Const(wrap(int(v), to), to)
    if to.is_bool:
        return Const(bool(v), to)
    if to.is_float and (t.is_float or abs(int(v)) <= 1 << 53):  # else it would round twice
        value = round_to(float(v), to)
        return None if value is None else Const(value, to)
    return None


def round_to(v: float, t: DType) -> float | None:
    """`v` (the exact result of one operation on values of `t`, or that rounded to f64) rounded to `t`; None if not finite.

    Rounding through f64 first is harmless for + - * / and for types of at most 24 significant bits.
    """
    if not math.isfinite(v):
        return None
    if t.name == "f64":
        return v
    if t.name == "f32" or t.name == "f16":
        form = "<f" if t.name == "f32" else "<e"
        try:
            return float(struct.unpack(form, struct.pack(form, v))[0])
        except OverflowError:
            return None
    if t.name == "bf16":
        as_f32 = round_to(v, f32)
        if as_f32 is None or abs(as_f32) < 2.0 ** -126:  # denormals have fewer bits: rounding twice could show
            return as_f32 if as_f32 == 0 and v == 0 else None
        bits = int(struct.unpack("<I", struct.pack("<f", as_f32))[0])
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
        out = float(struct.unpack("<f", struct.pack("<I", bits))[0])
        return out if math.isfinite(out) else None
    return None
