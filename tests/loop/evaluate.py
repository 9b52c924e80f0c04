"""A direct evaluator of scalar and vector expressions, for property tests: Python integers, wrapped; lanes as tuples."""
from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from tilewright.loop.affine import wrap
from tilewright.loop.ir import (
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
    Var,
)

_OPERATIONS: dict[Any, Any] = {
    Add: operator.add, Sub: operator.sub, Mul: operator.mul, FloorDiv: operator.floordiv, FloorMod: operator.mod,
    Div: lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1), Min: min, Max: max, Eq: operator.eq,
    Ne: operator.ne, Lt: operator.lt, Le: operator.le, And: operator.and_, Or: operator.or_}


class UndefinedError(Exception):
    """The expression divides by zero."""


def evaluate(e: Expr, env: Mapping[Var, int]) -> Any:
    """The value: an int or bool, or a tuple of them for a vector."""
    if e.dtype.lanes > 1:
        return tuple([_lane(e, env, k) for k in range(e.dtype.lanes)])
    return _lane(e, env, 0)


def _lane(e: Expr, env: Mapping[Var, int], k: int) -> Any:
    t = e.dtype
    match e:
        case Const(value, _):
            return value
        case Var():
            return env[e]
        case Binary(a, b):
            x, y = _lane(a, env, k), _lane(b, env, k)
            if isinstance(e, FloorDiv | FloorMod | Div) and y == 0:
                raise UndefinedError
            got = _OPERATIONS[type(e)](x, y)
            return wrap(got, t) if t.is_int else got
        case Not(a):
            return not _lane(a, env, k)
        case Select(c, a, b):
            x, y = _lane(a, env, k), _lane(b, env, k)
            return x if _lane(c, env, k) else y
        case Guard(c, a, b):
            return _lane(a if _lane(c, env, 0) else b, env, k)
        case Cast(to, a):
            return wrap(int(_lane(a, env, k)), to) if to.is_int else bool(_lane(a, env, k))
        case Ramp(base, stride, _):
            return wrap(_lane(base, env, 0) + k * _lane(stride, env, 0), t)
        case Broadcast(a, _):
            return _lane(a, env, k % a.dtype.lanes)
    raise AssertionError(f"no meaning here for {e!r}")
