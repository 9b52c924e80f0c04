"""Systems of linear inequalities over integers: projections, emptiness, and a point of those that are not empty.

In: rows Σ c·x >= 0 with integer coefficients over any hashable unknowns; the key ONE is the constant. Out: the rows that
are left without an unknown (Fourier-Motzkin elimination: exact over the rationals, a superset of the integers' projection),
whether no point is left at all, and an integer point where one is found.

Elimination is the textbook's (Schrijver, Theory of Linear and Integer Programming, 12.2); rows are divided by the greatest
common divisor of their coefficients with the constant rounded down, which cuts no integer point off.
"""
from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from math import gcd

ONE = "1"
Row = dict[Hashable, int]
MOST_ROWS = 400
"""Beyond that a system is taken to have points: it is not worth the time to see."""
MOST_TRIES = 400


class TooLarge(Exception):
    """The elimination would take too many rows."""


def row(terms: Mapping[Hashable, int], const: int = 0) -> Row:
    out = {k: c for k, c in terms.items() if c}
    out[ONE] = out.get(ONE, 0) + const
    return out


def plus(a: Row, b: Row, times: int = 1) -> Row:
    """a + times * b."""
    out = dict(a)
    for k, c in b.items():
        n = out.get(k, 0) + times * c
        if n or k == ONE:
            out[k] = n
        else:
            out.pop(k, None)
    return out


def tightened(r: Row) -> Row:
    """The same integer points with the least coefficients."""
    g = gcd(*[c for k, c in r.items() if k != ONE])
    if g > 1:
        return {k: c // g for k, c in r.items()}
    return r


def reduced(rows: Iterable[Row]) -> list[Row] | None:
    """Each direction once, with its tightest constant, and no row that always holds; None where one never does."""
    best: dict[frozenset[tuple[Hashable, int]], int] = {}
    for r in rows:
        r = tightened(r)
        const = r.get(ONE, 0)
        key = frozenset((k, c) for k, c in r.items() if k != ONE)
        if not key:
            if const < 0:
                return None
            continue
        if key not in best or const < best[key]:
            best[key] = const
    for key, const in best.items():
        opposite = frozenset((k, -c) for k, c in key)
        if opposite in best and const + best[opposite] < 0:
            return None
    return [{**dict(key), ONE: const} for key, const in best.items()]


def eliminate(rows: Iterable[Row], unknown: Hashable) -> list[Row]:
    """The rows of the projection along one unknown. Raises TooLarge."""
    lower: list[Row] = []
    upper: list[Row] = []
    out: list[Row] = []
    for r in rows:
        c = r.get(unknown, 0)
        (lower if c > 0 else upper if c < 0 else out).append(r)
    for a in lower:
        for b in upper:
            g = gcd(a[unknown], b[unknown])
            new = {k: c * (-b[unknown] // g) for k, c in a.items()}
            out.append({k: c for k, c in plus(new, b, a[unknown] // g).items() if k != unknown})
    left = reduced(out)
    if left is None:
        return [{ONE: -1}]
    if len(left) > MOST_ROWS:
        raise TooLarge
    return left


def solve(rows: Iterable[Row], equal: Iterable[Row] = ()) -> dict[Hashable, int] | bool:
    """False if rows >= 0, equal == 0 surely have no integer point; one where one was found; True if neither is known."""
    todo, system = [dict(e) for e in equal], [dict(r) for r in rows]
    given: list[tuple[Hashable, Row]] = []
    while todo:
        e = todo.pop()
        const, g = e.get(ONE, 0), gcd(*[c for k, c in e.items() if k != ONE])
        if g == 0 or const % g:
            if const:
                return False
            continue
        e = {k: c // g for k, c in e.items()}
        unit = next((k for k, c in e.items() if k != ONE and abs(c) == 1), None)
        if unit is None:
            system += [e, {k: -c for k, c in e.items()}]
            continue
        value = {k: -c * e[unit] for k, c in e.items() if k != unit}  # unit = value
        given.append((unit, value))
        todo, system = [_put(r, unit, value) for r in todo], [_put(r, unit, value) for r in system]
    start = reduced(system)
    if start is None:
        return False
    left = start
    levels: list[tuple[Hashable, list[Row]]] = []
    try:
        while True:
            unknowns = {k for r in left for k in r if k != ONE}
            if not unknowns:
                break
            chosen = min(unknowns, key=lambda k: (_cost(left, k), str(k)))
            levels.append((chosen, left))
            left = eliminate(left, chosen)
            if any(len(r) == 1 and r.get(ONE, 0) < 0 for r in left):
                return False
    except TooLarge:
        return True
    tries = [MOST_TRIES]
    point = _choose(list(reversed(levels)), {}, tries)
    if point is None:
        return tries[0] <= 0  # all places for a point were tried: there is none
    for k, value in reversed(given):
        point[k] = value.get(ONE, 0) + sum(c * point.get(u, 0) for u, c in value.items() if u != ONE)
    return point


def _put(r: Row, unknown: Hashable, value: Row) -> Row:
    c = r.get(unknown, 0)
    return r if not c else plus({k: n for k, n in r.items() if k != unknown}, value, c)


def _cost(rows: list[Row], unknown: Hashable) -> int:
    up, down = (sum(1 for r in rows if sign * r.get(unknown, 0) > 0) for sign in (1, -1))
    return up * down - up - down


def _choose(levels: list[tuple[Hashable, list[Row]]], point: dict[Hashable, int],
            tries: list[int]) -> dict[Hashable, int] | None:
    """Values for the unknowns, from the one eliminated last; nearest to zero first."""
    if not levels:
        return point
    (unknown, rows), rest = levels[0], levels[1:]
    low: int | None = None
    high: int | None = None
    for r in rows:
        c = r.get(unknown, 0)
        if not c:
            continue
        others = r.get(ONE, 0) + sum(n * point.get(k, 0) for k, n in r.items() if k not in (ONE, unknown))
        if c > 0:
            bound = -(others // c)
            low = bound if low is None else max(low, bound)
        else:
            bound = others // -c
            high = bound if high is None else min(high, bound)
    start = max(low, 0) if low is not None and (high is None or high >= 0) else high if low is None or (
        high is not None and high < 0) else low
    start = 0 if start is None else start
    if low is None and high is None:
        values: Iterable[int] = (0,)
    else:
        first = low if low is not None else start - MOST_TRIES
        last = high if high is not None else max(start, first) + MOST_TRIES
        values = sorted(range(first, min(last, first + MOST_TRIES) + 1), key=abs)
    for v in values:
        tries[0] -= 1
        if tries[0] <= 0:
            return None
        found = _choose(rest, {**point, unknown: v}, tries)
        if found is not None:
            return found
    return None
