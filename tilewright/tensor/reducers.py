"""Commutative reducers of the compute language: how two partial results combine, and the element that changes nothing.

A reducer works on tuples of state (one buffer each): sums have one, argmax has (index, value), online softmax (max, sum).
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tilewright.core.dtype import DType, boolean
from tilewright.loop.ir import Call, Expr, Max, Min, Select, const

State = tuple[Expr, ...]


@dataclass(frozen=True)
class Reducer:
    """`combine(state, term) -> state` must be associative and commutative up to rounding; `identity(dtypes)` neutral."""
    name: str
    combine: Callable[[State, State], State]
    identity: Callable[[Sequence[DType]], State]


def lowest(t: DType) -> Expr:
    """The identity of max: -inf, or the smallest integer."""
    return const(-math.inf if t.is_float else 0 if t.is_bool else t.range()[0], t)


def highest(t: DType) -> Expr:
    return const(math.inf if t.is_float else 1 if t.is_bool else t.range()[1], t)


SUM = Reducer("sum", lambda s, t: (s[0] + t[0],), lambda d: (const(0, d[0]),))
PROD = Reducer("prod", lambda s, t: (s[0] * t[0],), lambda d: (const(1, d[0]),))
MAX = Reducer("max", lambda s, t: (Max(s[0], t[0]),), lambda d: (lowest(d[0]),))
MIN = Reducer("min", lambda s, t: (Min(s[0], t[0]),), lambda d: (highest(d[0]),))


def _pick(better: Callable[[Expr, Expr], Expr]) -> Callable[[State, State], State]:
    """(index, value) pairs: the better value wins; among equals the smaller index, so that order does not matter. NaN beats
    every number, as in NumPy."""
    def combine(s: State, t: State) -> State:
        first = s[0] <= t[0]
        keep = better(s[1], t[1]) | (s[1].eq(t[1]) & first)
        if s[1].dtype.is_float:
            keep = Select(_is_nan(t[1]), _is_nan(s[1]) & first, keep | _is_nan(s[1]))
        return Select(keep, s[0], t[0]), Select(keep, s[1], t[1])
    return combine


def _is_nan(x: Expr) -> Expr:
    return Call("isnan", (x,), boolean.with_lanes(x.dtype.lanes))


ARGMAX = Reducer("argmax", _pick(lambda a, b: b < a), lambda d: (highest(d[0]), lowest(d[1])))
ARGMIN = Reducer("argmin", _pick(lambda a, b: a < b), lambda d: (highest(d[0]), highest(d[1])))
