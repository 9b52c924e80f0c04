"""The interpreter's expressions: each becomes a Python closure over an environment, which gives its value.

In: an expression, and the program being compiled (`loop/interpret.py`), which knows slots, elements and how to fail. Out: a
function of the environment. Values are those of `loop/values.py`.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tilewright.core.errors import InternalError
from tilewright.loop import ir
from tilewright.loop.intrinsics import intrinsic
from tilewright.loop.values import (
    convert,
    divide_truncating,
    from_memory,
    maximum,
    minimum,
    round_to,
    vector_kind,
    wrap,
)

Env = list[Any]
Value = Callable[[Env], Any]


def _const(c: Any, e: ir.Const) -> Value:
    t = e.type
    value = e.value if t.is_int or t.kind == "handle" else bool(e.value) if t.is_bool else round_to(t, e.value)
    return lambda env: value


def _var(c: Any, e: ir.Var) -> Value:
    slot = c.slot_of(e)
    return lambda env: env[slot]


def _arithmetic(on_float: Callable[[Any, Any], Any] | None, on_int: Callable[[Any, Any], Any],
                divides: bool = False) -> Callable[[Any, Any], Value]:
    """A binary operation: floats round in their own type, integers wrap."""
    def build(c: Any, e: Any) -> Value:
        a, b, t = c.expr(e.a), c.expr(e.b), e.dtype
        if t.is_float and on_float is not None:
            return lambda env: on_float(a(env), b(env))
        if not t.is_int:
            raise InternalError(f"{type(e).__name__} of {t} in {e!r}")
        if divides:
            def nonzero(env: Env, inner: Value = b) -> Any:
                v = inner(env)
                if not np.all(v):
                    raise c.fail("division by zero", e, env)
                return v
            b = nonzero
        if t.lanes > 1:
            return lambda env: wrap(t, on_int(a(env), b(env)))
        lo, hi = t.range()

        def scalar(env: Env) -> Any:
            v = on_int(a(env), b(env))
            return v if lo <= v <= hi else wrap(t, v)
        return scalar
    return build


def _extreme(f: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Value]:
    def build(c: Any, e: Any) -> Value:
        a, b = c.expr(e.a), c.expr(e.b)
        return lambda env: f(a(env), b(env))
    return build


def _relation(f: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Value]:
    """Comparisons, and `and`/`or`, which evaluate both sides."""
    def build(c: Any, e: Any) -> Value:
        a, b = c.expr(e.a), c.expr(e.b)
        if e.dtype.lanes > 1:
            return lambda env: f(a(env), b(env))
        return lambda env: bool(f(a(env), b(env)))
    return build


def _not(c: Any, e: ir.Not) -> Value:
    a = c.expr(e.a)
    return (lambda env: ~a(env)) if e.dtype.lanes > 1 else (lambda env: not a(env))


def _select(c: Any, e: ir.Select) -> Value:
    cond, a, b = c.expr(e.cond), c.expr(e.a), c.expr(e.b)
    if e.cond.dtype.lanes > 1:
        return lambda env: np.where(cond(env), a(env), b(env))

    def select(env: Env) -> Any:
        x, y = a(env), b(env)
        return x if cond(env) else y
    return select


def _guard(c: Any, e: ir.Guard) -> Value:
    cond, a, b = c.expr(e.cond), c.expr(e.a), c.expr(e.b)
    return lambda env: a(env) if cond(env) else b(env)


def _cast(c: Any, e: ir.Cast) -> Value:
    a, to, frm = c.expr(e.a), e.type, e.a.dtype
    return lambda env: convert(to, frm, a(env))


def _load(c: Any, e: ir.Load) -> Value:
    at, t = c.element(e), e.dtype
    if t.lanes > 1 or t.is_bool:
        return lambda env: from_memory(t, (m := at(env))[0][m[1]])
    if t.is_int:
        def load_int(env: Env) -> Any:
            memory, k = at(env)
            return int(memory[k])
        return load_int

    def load(env: Env) -> Any:
        memory, k = at(env)
        return memory[k]
    return load


def _ramp(c: Any, e: ir.Ramp) -> Value:
    base, stride, t = c.expr(e.base), c.expr(e.stride), e.dtype
    kind = vector_kind(t)

    def ramp(env: Env) -> Any:
        first, step = base(env), stride(env)
        return np.array([wrap(t, first + k * step) for k in range(e.lanes)], kind)
    return ramp


def _broadcast(c: Any, e: ir.Broadcast) -> Value:
    a, n, kind = c.expr(e.a), e.lanes, vector_kind(e.dtype)
    return lambda env: np.full(n, a(env), kind)


def _call(c: Any, e: ir.Call) -> Value:
    record = intrinsic(e.name)
    if len(e.args) != record.arity:
        raise InternalError(f"{e.name} takes {record.arity} operands: {e!r}")
    if e.name == "barrier":
        raise InternalError("a barrier where no threads are: only nested loops over threadIdx have them")
    args = [c.expr(a) for a in e.args]
    meaning, to, frm = record.meaning, e.type, e.args[0].dtype
    if len(args) == 1:
        a = args[0]
        return lambda env: meaning(to, frm, a(env))
    return lambda env: meaning(to, frm, *[a(env) for a in args])


def _address(c: Any, e: ir.Address) -> Value:
    """(memory, position); one past the end is allowed, as for an empty buffer or a prefetch."""
    slot = c.slot_of(e.buffer)
    indices = [c.expr(i) for i in e.indices]

    def address(env: Env) -> Any:
        memory, position, _, strides = env[slot]
        return memory, position + sum([f(env) * s for f, s in zip(indices, strides, strict=True)])
    return address


EXPRESSIONS: dict[type, Callable[[Any, Any], Value]] = {
    ir.Const: _const, ir.Var: _var, ir.Not: _not, ir.Select: _select, ir.Guard: _guard, ir.Cast: _cast, ir.Load: _load,
    ir.Ramp: _ramp, ir.Broadcast: _broadcast, ir.Call: _call, ir.Address: _address,
    ir.Add: _arithmetic(lambda a, b: a + b, lambda a, b: a + b),
    ir.Sub: _arithmetic(lambda a, b: a - b, lambda a, b: a - b),
    ir.Mul: _arithmetic(lambda a, b: a * b, lambda a, b: a * b),
    ir.Div: _arithmetic(lambda a, b: a / b, divide_truncating, divides=True),
    ir.FloorDiv: _arithmetic(None, lambda a, b: a // b, divides=True),
    ir.FloorMod: _arithmetic(None, lambda a, b: a % b, divides=True),
    ir.Min: _extreme(minimum), ir.Max: _extreme(maximum),
    ir.And: _relation(lambda a, b: a & b), ir.Or: _relation(lambda a, b: a | b),
    ir.Eq: _relation(lambda a, b: a == b), ir.Ne: _relation(lambda a, b: a != b),
    ir.Lt: _relation(lambda a, b: a < b), ir.Le: _relation(lambda a, b: a <= b)}
