"""Integer expressions as sums `Σ coefficient · atom + constant`: how lowering looks at indices and conditions.

In: scalar integer expressions. Out: linear forms, and expressions rebuilt from them. An atom is whatever is not a sum
or a product with a constant: a variable, or a FloorDiv, FloorMod, Min, Load, … taken as opaque.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tilewright.loop.bounds import bounds
from tilewright.loop.ir import (
    ONE,
    ZERO,
    Add,
    And,
    Broadcast,
    Cast,
    Compare,
    Const,
    Expr,
    FloorDiv,
    For,
    Le,
    Load,
    Lt,
    Mul,
    Not,
    Or,
    Ramp,
    Store,
    Sub,
    Var,
    as_int,
    const,
)

Terms = dict[Expr, int]
Range = tuple[int, int]
"""Inclusive ends."""


def linear(e: Expr) -> tuple[Terms, int]:
    """`e` = Σ terms[atom]·atom + constant. Terms with coefficient 0 are left out; their order is that of appearance."""
    terms: Terms = {}
    constant = _collect(e, 1, terms)
    if 0 in terms.values():
        terms = {a: c for a, c in terms.items() if c}
    return terms, constant


def _collect(e: Expr, factor: int, terms: Terms) -> int:
    """Add `factor * e` to the terms; returns the constant part."""
    t = type(e)
    if t is Const:
        return factor * int(e.value)  # type: ignore[attr-defined]
    if t is Add:
        return _collect(e.a, factor, terms) + _collect(e.b, factor, terms)  # type: ignore[attr-defined]
    if t is Sub:
        return _collect(e.a, factor, terms) + _collect(e.b, -factor, terms)  # type: ignore[attr-defined]
    if t is Mul:
        k = as_int(e.b)  # type: ignore[attr-defined]
        if k is not None:
            return _collect(e.a, factor * k, terms)  # type: ignore[attr-defined]
        k = as_int(e.a)  # type: ignore[attr-defined]
        if k is not None:
            return _collect(e.b, factor * k, terms)  # type: ignore[attr-defined]
    terms[e] = terms.get(e, 0) + factor
    return 0


def from_linear(terms: Iterable[tuple[Expr, int]], constant: int, like: Expr) -> Expr:
    """The sum as an expression of the dtype of `like`, constants last (so that equal bases are equal prefixes)."""
    total: Expr | None = None
    for atom, c in terms:
        if c == 0:
            continue
        if total is None:
            total = atom if c == 1 else Mul(atom, const(c, like))
        elif c == -1:
            total = Sub(total, atom)
        else:
            total = Add(total, atom if c == 1 else Mul(atom, const(c, like)))
    if total is None:
        return const(constant, like)
    return total if constant == 0 else Add(total, const(constant, like))


def is_scalar_int(e: Expr) -> bool:
    """Whether `linear` applies: one signed integer (unsigned arithmetic wraps at zero, where indices live)."""
    t = e.dtype
    return t.kind == "int" and t.lanes == 1 and type(e) not in (Ramp, Broadcast, Cast)


def comparisons(cond: Expr) -> Iterator[Compare]:
    """The comparisons of scalar integers that a condition is made of."""
    match cond:
        case And(a, b) | Or(a, b):
            yield from comparisons(a)
            yield from comparisons(b)
        case Not(a):
            yield from comparisons(a)
        case Compare() if is_scalar_int(cond.a):
            yield cond


def interval(e: Expr, ranges: Mapping[Var, Range]) -> Range | None:
    """The inclusive ends of an index's values (as an index, it does not wrap), or None if either is unknown."""
    terms, low = linear(e)
    high = low
    for atom, c in terms.items():
        found: tuple[Any, Any] | None = ranges.get(atom) if type(atom) is Var else bounds(atom, ranges)
        if found is None or found[0] is None or found[1] is None:
            return None
        low, high = low + min(c * found[0], c * found[1]), high + max(c * found[0], c * found[1])
    return low, high


Limit = tuple[Terms, int]
"""Σ terms <= the number."""


def limits_of(cond: Expr) -> list[Limit]:
    """What the comparisons of a condition say of linear forms."""
    match cond:
        case And(a, b):
            return limits_of(a) + limits_of(b)
        case Lt(a, b) | Le(a, b) if is_scalar_int(a) and is_scalar_int(b):
            terms, constant = linear(a - b)
            return [(terms, -constant - isinstance(cond, Lt))] if terms else []
    return []


def highest(terms: Mapping[Expr, int], ranges: Mapping[Var, Range], limits: Iterable[Limit]) -> int | None:
    """The largest value of Σ terms for variables in their ranges that keep the limits; None if unknown."""
    tops: dict[Expr, int] = {}
    for atom, c in terms.items():
        lo, hi = bounds(atom, ranges)
        if not isinstance(lo, int) or not isinstance(hi, int):
            return None
        if isinstance(atom, FloorDiv) and (k := as_int(atom.b)) and k > 0 and c > 0:
            inner, constant = linear(atom.a)
            top = highest(inner, ranges, limits)
            hi = hi if top is None else min(hi, (top + constant) // k)
        tops[atom] = max(c * lo, c * hi)
    best = sum(tops.values())
    for form, limit in limits:
        ratio = {terms.get(a, 0) // c if terms.get(a, 0) % c == 0 else 0 for a, c in form.items()}
        if len(ratio) == 1 and (m := ratio.pop()) > 0:
            best = min(best, m * limit + sum(t for a, t in tops.items() if a not in form))
    return best


def loop_range(s: For, ranges: Mapping[Var, Range]) -> Range | None:
    """The inclusive range of a loop's variable, (x, x-1) if it is known to run no iteration."""
    first, last = interval(s.start, ranges), interval(s.start + s.extent - 1, ranges)
    return None if first is None or last is None else (first[0], max(last[1], first[0] - 1))


def flat_position(access: Load | Store) -> Expr:
    """The number of the element of a buffer's memory that an access means."""
    b = access.buffer
    strides: list[Expr] = list(b.strides or ())
    if b.strides is None:
        step: Expr = ONE
        for extent in reversed(b.shape):
            strides.insert(0, step)
            step = step * extent
    total: Expr | None = None
    for i, s in zip(access.indices, strides, strict=True):
        term = scaled(i, s)
        total = term if total is None else plus(total, term)
    return ZERO if total is None else total


def scaled(i: Expr, s: Expr) -> Expr:
    """i · s, simple where one of them is zero."""
    if as_int(i) == 0 or as_int(s) == 0:
        return const(0, i)
    return i * s


def plus(a: Expr, b: Expr) -> Expr:
    """a + b, simple where one of them is zero."""
    return b if as_int(a) == 0 else a if as_int(b) == 0 else a + b
