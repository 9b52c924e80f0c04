"""Local rules of the simplifier: what can be said of one node without knowing ranges.

In: an expression whose operands are simplified. Out: a smaller equal one. Floats: only what is exact in every bit
(no `x * 0`, no `x + 0.0`); sums and products of scalar integers are normalised in `simplify_expr.py` instead.
"""
from __future__ import annotations

import math
from typing import Any

from tilewright.core.dtype import boolean
from tilewright.core.rules import Rules
from tilewright.loop.fold import fold_binary, fold_cast
from tilewright.loop.ir import (
    FALSE,
    TRUE,
    Add,
    And,
    Binary,
    Broadcast,
    Cast,
    Const,
    Div,
    Eq,
    Expr,
    FloorDiv,
    FloorMod,
    Guard,
    Le,
    Load,
    Lt,
    Max,
    Min,
    Mul,
    Ne,
    Not,
    Or,
    Ramp,
    Select,
    Sub,
    const,
)

rules = Rules("simplify")


def _value(e: Expr) -> Any:
    """The number of a constant or of a broadcast constant, else None."""
    if isinstance(e, Broadcast):
        e = e.a
    return e.value if isinstance(e, Const) else None


def _negative_zero(x: Any) -> bool:
    return isinstance(x, float) and x == 0 and math.copysign(1, x) < 0


@rules.on(Binary)
def fold(e: Binary) -> Expr | None:
    if isinstance(e.a, Const) and isinstance(e.b, Const) and not isinstance(e, And | Or):
        return fold_binary(type(e), e.a, e.b)
    return None


@rules.on(Add, Sub, Mul, Div, FloorDiv, FloorMod, Min, Max, And, Or, Eq, Ne, Lt, Le)
def of_broadcasts(e: Binary) -> Expr | None:
    """Broadcast(a) op Broadcast(b) → Broadcast(a op b)"""
    if isinstance(e.a, Broadcast) and isinstance(e.b, Broadcast):
        return Broadcast(type(e)(e.a.a, e.b.a), e.a.lanes)
    return None


@rules.on(Add, Sub)
def of_ramps(e: Binary) -> Expr | None:
    """Ramp(a, s) + Ramp(b, t) → Ramp(a + b, s + t), where a broadcast is a ramp of stride 0; likewise for -."""
    a, b, op = e.a, e.b, type(e)
    if isinstance(a, Ramp) and isinstance(b, Broadcast):
        return Ramp(op(a.base, b.a), a.stride, a.lanes)
    if isinstance(a, Broadcast) and isinstance(b, Ramp):
        return Ramp(op(a.a, b.base), b.stride if op is Add else Sub(const(0, b.stride), b.stride), b.lanes)
    if isinstance(a, Ramp) and isinstance(b, Ramp):
        return Ramp(op(a.base, b.base), op(a.stride, b.stride), a.lanes)
    return None


@rules.on(Mul)
def ramp_times(e: Mul) -> Expr | None:
    """Ramp(a, s) * Broadcast(c) → Ramp(a * c, s * c)"""
    for r, c in ((e.a, e.b), (e.b, e.a)):
        if isinstance(r, Ramp) and isinstance(c, Broadcast):
            return Ramp(Mul(r.base, c.a), Mul(r.stride, c.a), r.lanes)
    return None


@rules.on(Ramp)
def flat_ramp(e: Ramp) -> Expr | None:
    """Ramp(a, 0, n) → Broadcast(a, n)"""
    if e.lanes == 1:
        return e.base
    return Broadcast(e.base, e.lanes) if _value(e.stride) == 0 else None


@rules.on(Broadcast)
def broadcast_of_broadcast(e: Broadcast) -> Expr | None:
    if e.lanes == 1:
        return e.a
    return Broadcast(e.a.a, e.lanes * e.a.lanes) if isinstance(e.a, Broadcast) else None


@rules.on(Add)
def add_nothing(e: Add) -> Expr | None:
    """x + 0 → x; for floats x + -0.0 → x, since x + 0.0 would turn -0.0 into 0.0."""
    for x, y in ((e.a, e.b), (e.b, e.a)):
        v = _value(y)
        if v is not None and (_negative_zero(v) if e.dtype.is_float else v == 0):
            return x
    return None


@rules.on(Sub)
def sub_nothing(e: Sub) -> Expr | None:
    """x - 0 → x; for floats x - 0.0 → x. For integers x - x → 0."""
    v = _value(e.b)
    if v is not None and v == 0 and not _negative_zero(v):
        return e.a
    return const(0, e) if e.dtype.is_int and e.a == e.b else None


@rules.on(Mul)
def mul_one(e: Mul) -> Expr | None:
    """x * 1 → x; for integers x * 0 → 0."""
    for x, y in ((e.a, e.b), (e.b, e.a)):
        v = _value(y)
        if v is not None:
            if v == 1:
                return x
            if v == 0 and e.dtype.is_int:
                return const(0, e)
    return None


@rules.on(Div, FloorDiv)
def div_one(e: Binary) -> Expr | None:
    return e.a if _value(e.b) == 1 and (isinstance(e, Div) or e.dtype.is_int) else None


@rules.on(FloorMod)
def mod_one(e: FloorMod) -> Expr | None:
    return const(0, e) if _value(e.b) == 1 and e.dtype.is_int else None


@rules.on(Min, Max)
def same_twice(e: Binary) -> Expr | None:
    return e.a if e.a == e.b else None


@rules.on(Eq, Le)
def equal_itself(e: Binary) -> Expr | None:
    return const(True, e) if e.a == e.b and not e.a.dtype.is_float else None


@rules.on(Ne, Lt)
def unequal_itself(e: Binary) -> Expr | None:
    return const(False, e) if e.a == e.b and (not e.a.dtype.is_float or isinstance(e, Lt)) else None


@rules.on(And, Or)
def known_side(e: Binary) -> Expr | None:
    """True & x → x, False & x → False, x & x → x; dually for |."""
    if not e.dtype.is_bool:
        return None
    neutral = isinstance(e, And)
    for x, y in ((e.a, e.b), (e.b, e.a)):
        v = _value(y)
        if v is not None:
            return x if v is neutral else y
    return e.a if e.a == e.b else None


@rules.on(Not)
def negation(e: Not) -> Expr | None:
    """Not of a constant, a negation, or a comparison of integers."""
    a = e.a
    if not a.dtype.is_bool:
        return None
    v = _value(a)
    if v is not None:
        return const(not v, a)
    if isinstance(a, Not):
        return a.a
    if isinstance(a, Eq):
        return Ne(a.a, a.b)
    if isinstance(a, Ne):
        return Eq(a.a, a.b)
    if isinstance(a, Lt | Le) and a.a.dtype.is_int:
        return Le(a.b, a.a) if isinstance(a, Lt) else Lt(a.b, a.a)
    return None


@rules.on(Select, Guard)
def chosen(e: Select | Guard) -> Expr | None:
    """A known condition, or both sides the same."""
    v = _value(e.cond)
    if v is not None:
        return e.a if v else e.b
    if e.a == e.b:
        return e.a
    if e.dtype is boolean and e.cond.dtype is boolean and e.a == TRUE and e.b == FALSE:
        return e.cond
    return None


@rules.on(Select)
def select_of_broadcasts(e: Select) -> Expr | None:
    """Select(Broadcast(c), Broadcast(a), Broadcast(b)) → Broadcast(Select(c, a, b))"""
    c, a, b = e.cond, e.a, e.b
    if isinstance(c, Broadcast) and isinstance(a, Broadcast) and isinstance(b, Broadcast):
        return Broadcast(Select(c.a, a.a, b.a), c.lanes)
    return None


@rules.on(Cast)
def cast_known(e: Cast) -> Expr | None:
    """Casts of constants and broadcasts, to the same type, and of integers that were only widened before."""
    a, to = e.a, e.type
    if a.dtype is to:
        return a
    if isinstance(a, Const):
        return fold_cast(to, a)
    if isinstance(a, Broadcast):
        return Broadcast(Cast(to.element, a.a), a.lanes)
    if isinstance(a, Cast) and to.is_int and a.type.is_int and a.a.dtype.is_int:
        inner, (low, high) = a.a.dtype.range(), a.type.range()
        if low <= inner[0] and inner[1] <= high or to.bits <= a.type.bits:
            return a.a if a.a.dtype is to else Cast(to, a.a)
    return None


@rules.on(Load)
def load_of_broadcasts(e: Load) -> Expr | None:
    """A vector load whose lanes all read one element → a broadcast of a scalar load"""
    lanes = e.dtype.lanes
    if lanes == 1 or not all(i.dtype.lanes == 1 or isinstance(i, Broadcast) for i in e.indices):
        return None
    return Broadcast(Load(e.buffer, tuple([i.a if isinstance(i, Broadcast) else i for i in e.indices])), lanes)


@rules.on(Load)
def load_of_table(e: Load) -> Expr | None:
    """An element of a compile-time table at constant indices."""
    data = e.buffer.data
    if data is None or not all(isinstance(i, Const) for i in e.indices):
        return None
    at = 0
    for i, extent in zip(e.indices, e.buffer.shape, strict=True):
        if not isinstance(extent, Const) or not 0 <= i.value < extent.value:  # type: ignore[attr-defined]
            return None
        at = at * extent.value + i.value  # type: ignore[attr-defined]
    return const(data[at], e.buffer.dtype)
