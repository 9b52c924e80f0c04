"""Integer expressions as sums `Σ coefficient · atom + constant`: how lowering looks at indices and conditions.

In: scalar integer expressions. Out: linear forms, and expressions rebuilt from them. An atom is whatever is not a sum
or a product with a constant: a variable, or a FloorDiv, FloorMod, Min, Load, … taken as opaque.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tilewright.loop.bounds import bounds
from tilewright.loop.ir import Add, Broadcast, Cast, Const, Expr, For, Mul, Ramp, Sub, Var, as_int, const

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


def loop_range(s: For, ranges: Mapping[Var, Range]) -> Range | None:
    """The inclusive range of a loop's variable, (x, x-1) if it is known to run no iteration."""
    first, last = interval(s.start, ranges), interval(s.start + s.extent - 1, ranges)
    return None if first is None or last is None else (first[0], max(last[1], first[0] - 1))
