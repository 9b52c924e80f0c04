"""Equivalent substitution of single operations: identities of arithmetic, logic and selection; cheaper forms of the same.

In: any Graph. Out: the same graph where x·1, x+0, casts to the same type, selections by a constant, … are gone, and where
powers, quotients and clips have their cheapest form. `exact` keeps rounding as written: a quotient by a constant becomes
a product only where the reciprocal is exact, sums and products of constants are not put together, and factors stay at the
operand that they scale.
NaN and infinities are respected (x·0 stays); the sign of zero is not (x + 0 is x).
"""
from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from tilewright.core.dtype import f32, f64
from tilewright.graph.infer import constant_of
from tilewright.graph.ir import Graph, Operation, Value
from tilewright.graph.passes.match import Result, Rule, Walk, apply, same_shape, splat, with_constant


def simplify_operations(graph: Graph, exact: bool = False) -> Graph:
    """Replace operations by equal, cheaper ones."""
    return apply(graph, _RULES if exact else _RULES_ROUNDING)


# ---- results ---------------------------------------------------------------------------------------------------------
def _instead(x: Value | None, op: Operation, w: Walk) -> Result:
    """`x` in place of the operation's result: repeated if the result is larger; None if the types differ."""
    if x is None or x.dtype is not op.output.dtype:
        return None
    if same_shape(x, op.output):
        return x
    return w.b.add("expand", [x], {"shape": op.output.shape}, name=op.output.name)


def _number(op: Operation, w: Walk, value: float | int | bool) -> Value:
    """The operation's result as one number everywhere."""
    return w.b.add("full", [], {"shape": op.output.shape, "value": value, "dtype": op.output.dtype}, name=op.output.name)


def _scalar(w: Walk, value: float, like: Value) -> Value:
    return w.b.constant(np.asarray(value), "const", like.dtype)


# ---- arithmetic ------------------------------------------------------------------------------------------------------
def _add(op: Operation, w: Walk) -> Result:
    a, b = op.inputs
    return _instead(a, op, w) if splat(b) == 0 else _instead(b, op, w) if splat(a) == 0 else None


def _sub(op: Operation, w: Walk) -> Result:
    return _instead(op.inputs[0], op, w) if splat(op.inputs[1]) == 0 else None


def _mul(op: Operation, w: Walk) -> Result:
    a, b = op.inputs
    return _instead(a, op, w) if splat(b) == 1 else _instead(b, op, w) if splat(a) == 1 else None


def _div(op: Operation, w: Walk, exact: bool) -> Result:
    """x / c → x * (1/c), of half floats where that is exact: 1/c would lose what they keep; 1 / x → reciprocal."""
    x, by = op.inputs
    assert x is not None and by is not None
    if splat(by) == 1:
        return _instead(x, op, w)
    if not op.output.dtype.is_float:
        return None
    c = constant_of(by)
    if c is not None and bool(np.all(np.isfinite(c.astype(np.float64)) & (c != 0))):
        wide = c.astype(np.float64)
        with np.errstate(over="ignore"):
            inverse = (1 / wide).astype(c.dtype)
        powers = np.abs(np.frexp(wide)[0]) == 0.5
        normal = bool(np.all(np.isfinite(inverse.astype(np.float64)) & (np.abs(inverse.astype(np.float64)) >= _tiny(by))))
        if normal and (not exact and by.dtype.nbytes > 2 or bool(np.all(powers))):
            return w.b.add("mul", [x, w.b.constant(inverse, f"{by.name}_inverse")], name=op.output.name)
    if splat(x) == 1 and same_shape(by, op.output):
        return w.b.add("reciprocal", [by], name=op.output.name)
    return None


def _tiny(v: Value) -> float:
    """The least normal number of a type."""
    return {2: 2.0**-14, 4: 2.0**-126}.get(v.dtype.nbytes, 2.0**-1022)


def _pow(op: Operation, w: Walk) -> Result:
    x, e = op.inputs
    n = splat(e)
    assert x is not None
    if n is None or not op.output.dtype.is_float or not same_shape(x, op.output):
        return None
    one = {0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}.get(n)
    if one is not None:
        return w.b.add(one, [x], name=op.output.name)
    if n == 1:
        return x
    if n not in (2, 3, 4):
        return None
    square = w.b.add("mul", [x, x], name=op.output.name)
    if n == 2:
        return square
    return w.b.add("mul", [square, x if n == 3 else square], name=op.output.name)


def _reassociate(op: Operation, w: Walk) -> Result:
    """(x + c) + d → x + (c + d), likewise for products, where x + c has no other reader and keeps its shape."""
    outer = with_constant(op)
    inner = None if outer is None else w.producer(outer[0], op.op)
    if outer is None or inner is None or not op.output.dtype.is_float or not w.lone(outer[0]):
        return None
    found = with_constant(inner)
    if found is None or not same_shape(found[0], op.output) or found[1].data is None or outer[1].data is None:
        return None
    both = found[1].data + outer[1].data if op.op == "add" else found[1].data * outer[1].data
    return w.b.add(op.op, [found[0], w.b.constant(both.astype(outer[1].data.dtype), outer[1].name)], name=op.output.name)


def _scaled_operand(op: Operation, w: Walk) -> Result:
    """(x * c) y → (x y) * c, where neither operand is a weight (that would take the number itself) and c is at most 1, so
    that nothing becomes too large: what scales queries and keys then stands with what follows their product."""
    if op.output.dtype not in (f32, f64) or any(v is None or v.is_constant or v.dtype is not op.output.dtype
                                                for v in op.inputs):
        return None
    for k, v in enumerate(op.inputs):
        inner = w.producer(v, "mul")
        found = None if inner is None else with_constant(inner)
        number = None if found is None else splat(found[1])
        if v is None or found is None or number is None or abs(number) > 1 or not same_shape(found[0], v) or not w.lone(v):
            continue
        operands = [found[0] if at == k else u for at, u in enumerate(op.inputs)]
        y = w.b.add("matmul", operands, op.attrs, name=op.output.name)
        return w.b.add("mul", [y, _scalar(w, number, v)], name=op.output.name)
    return None


def _negated(op: Operation, w: Walk) -> Result:
    inner = w.producer(op.inputs[0], "neg")
    return None if inner is None else inner.inputs[0]


# ---- bounds ----------------------------------------------------------------------------------------------------------
def _clip(op: Operation, w: Walk) -> Result:
    x, low, high = op.inputs[0], op.attrs["min"], op.attrs["max"]
    assert x is not None
    if low is None and high is None:
        return x
    if low == 0 and high is None:
        return w.b.add("relu", [x], name=op.output.name)
    inner = w.producer(x, "relu", "clip")
    if inner is None:
        return None
    first, last = (0, None) if inner.op == "relu" else (inner.attrs["min"], inner.attrs["max"])
    lows = [v for v in (low, first) if v is not None]
    highs = [v for v in (high, last) if v is not None]
    if lows and highs and max(lows) > min(highs):
        return None
    attrs = {"min": max(lows, default=None), "max": min(highs, default=None)}
    return w.b.add("clip", [inner.inputs[0]], attrs, name=op.output.name)


def _relu(op: Operation, w: Walk) -> Result:
    inner = w.producer(op.inputs[0], "relu", "clip", "sigmoid", "hard_sigmoid", "softplus", "exp", "softmax")
    if inner is None or (inner.op == "clip" and (inner.attrs["min"] is None or inner.attrs["min"] < 0)):
        return None
    return op.inputs[0]


def _bound(op: Operation, w: Walk) -> Result:
    """max(x, number) → clip from below, min(x, number) → clip from above."""
    found = with_constant(op)
    n = None if found is None else splat(found[1])
    if found is None or n is None or n != n or not same_shape(found[0], op.output):
        return None
    if math.isinf(n):
        return found[0] if (n < 0) == (op.op == "max") else None
    return w.b.add("clip", [found[0]], {"min" if op.op == "max" else "max": n}, name=op.output.name)


# ---- logic, selection, types -----------------------------------------------------------------------------------------
def _where(op: Operation, w: Walk) -> Result:
    cond, a, b = op.inputs
    c = splat(cond)
    if c is None:
        return _instead(a, op, w) if a is b else None
    return _instead(a if c else b, op, w)


def _logic(op: Operation, w: Walk) -> Result:
    """x and true, x or false → x; x and false, x or true → a constant."""
    neutral = op.op == "logical_and"
    for x, c in (op.inputs, op.inputs[::-1]):
        n = splat(c)
        if n is not None:
            return _instead(x, op, w) if bool(n) == neutral else _number(op, w, not neutral)
    return _instead(op.inputs[0], op, w) if op.inputs[0] is op.inputs[1] else None


def _cast(op: Operation, w: Walk) -> Result:
    x = op.inputs[0]
    return x if x is not None and x.dtype is op.attrs["to"] else None


def _identity(op: Operation, w: Walk) -> Result:
    return op.inputs[0]


def _twice(op: Operation, w: Walk) -> Result:
    """not(not(x)) → x."""
    inner = w.producer(op.inputs[0], op.op)
    return None if inner is None else inner.inputs[0]


_RULES: dict[str, Sequence[Rule]] = {
    "add": [_add], "sub": [_sub], "mul": [_mul], "div": [functools.partial(_div, exact=True)], "pow": [_pow],
    "neg": [_negated], "clip": [_clip], "relu": [_relu], "max": [_bound], "min": [_bound], "where": [_where],
    "logical_and": [_logic], "logical_or": [_logic], "cast": [_cast], "identity": [_identity], "logical_not": [_twice]}
_RULES_ROUNDING: dict[str, Sequence[Rule]] = {
    **_RULES, "add": [_add, _reassociate], "mul": [_mul, _reassociate], "div": [functools.partial(_div, exact=False)],
    "matmul": [_scaled_operand]}
