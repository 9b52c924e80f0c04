"""Bounds and proofs: sound on random expressions, and strong enough for the loops that lowering makes."""
from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.loop.evaluate import UndefinedError, evaluate
from tests.loop.test_simplify import RANGES, integers_of
from tilewright.core.dtype import DType, i8, i32, i64, u8
from tilewright.loop.bounds import Knowledge, bounds, prove
from tilewright.loop.ir import (
    Broadcast,
    Buffer,
    Eq,
    Expr,
    Le,
    Load,
    Lt,
    Ne,
    Ramp,
    Span,
    Var,
    const,
    estimate,
    expr,
    maximum,
    minimum,
)

n, m, i, j, k = (Var(s) for s in "nmijk")


def _inside(e: Expr, got: Any, env: dict[Var, int]) -> None:
    try:
        v = evaluate(e, env)
    except UndefinedError:
        return
    lo, hi = got
    assert (lo is None or lo <= v) and (hi is None or v <= hi), f"{e!r} = {v} not in {got}"


@settings(max_examples=300, deadline=None)
@given(integers_of(i64, [i, j, n], False), RANGES, RANGES, st.data())
def test_bounds_are_sound(e: Expr, ri: Any, rj: Any, data: st.DataObject) -> None:
    got = bounds(e, {i: ri, j: rj})
    for _ in range(4):
        _inside(e, got, {i: data.draw(st.integers(*ri)), j: data.draw(st.integers(*rj)), n: data.draw(st.integers(-40, 40))})


@pytest.mark.parametrize("t", [i8, u8, i32], ids=str)
def test_bounds_of_narrow_integers_are_sound(t: DType) -> None:
    a, b = Var("a", t), Var("b", t)

    @settings(max_examples=150, deadline=None)
    @given(integers_of(t, [a, b], True), st.tuples(st.integers(*t.range()), st.integers(*t.range())).map(sorted), st.data())
    def check(e: Expr, ra: list[int], data: st.DataObject) -> None:
        got = bounds(e, {a: (ra[0], ra[1])})
        for _ in range(4):
            _inside(e, got, {a: data.draw(st.integers(*ra)), b: data.draw(st.integers(*t.range()))})
    check()


@settings(max_examples=500, deadline=None)
@given(st.sampled_from((Lt, Le, Eq, Ne)), integers_of(i64, [i, j, n], False), integers_of(i64, [i, j, n], False), st.data())
def test_proofs_are_sound(op: Any, a: Expr, b: Expr, data: st.DataObject) -> None:
    cond = op(a, b)
    value = Knowledge({n: (1, None), i: (0, n - 1), j: (i, minimum(n * 2, i + 15))}).decide(cond)
    if value is None:
        return
    for _ in range(5):
        size = data.draw(st.integers(1, 30))
        first = data.draw(st.integers(0, size - 1))
        try:
            got = evaluate(cond, {n: size, i: first, j: data.draw(st.integers(first, min(2 * size, first + 15)))})
        except UndefinedError:
            continue
        assert got == value, f"{cond!r} is {got}"


@settings(max_examples=300, deadline=None)
@given(integers_of(i64, [i, j], False), integers_of(i64, [i, j], False), integers_of(i64, [i, j], False), st.booleans(),
       st.data())
def test_facts_are_used_soundly(a: Expr, b: Expr, c: Expr, holds: bool, data: st.DataObject) -> None:
    known = Knowledge({i: (0, 20), j: (-5, 9)}).assuming(Lt(a, b), holds)
    value = known.decide(Le(b, c))
    for _ in range(6):
        env = {i: data.draw(st.integers(0, 20)), j: data.draw(st.integers(-5, 9))}
        try:
            if value is not None and evaluate(Lt(a, b), env) == holds:
                assert evaluate(Le(b, c), env) == value
        except UndefinedError:
            continue


def test_intervals() -> None:
    r = {i: (0, 3), j: (0, 13)}
    assert bounds(i * 14 + j, r) == (0, 55)
    assert bounds(i - i, r) == (0, 0)
    assert bounds(j - i * 2, r) == (-6, 13)
    assert bounds((j - 20) // 4, r) == (-5, -2)
    assert bounds(j % 4, r) == (0, 3) and bounds(i % 4, r) == (0, 3) and bounds((i + 8) % 16, r) == (8, 11)
    assert bounds(n % 4) == (0, 3) and bounds(n) == (None, None) and bounds(n, {n: (1, None)}) == (1, None)
    assert bounds(minimum(n, 7)) == (None, 7) and bounds(maximum(n, 7)) == (7, None)
    assert bounds(Ramp(i * 16, expr(1), 16), r) == (0, 63) and bounds(Broadcast(j, 4), r) == (0, 13)
    assert bounds(Var("b", u8)) == (0, 255)
    assert bounds(Buffer("t", i64, (expr(3),), "const", data=(4, -2, 9))[i]) == (-2, 9)
    data = Load(Buffer("d", i32, (n,)), (i,))
    assert bounds(data + 1) == i32.range()  # it wraps


@pytest.mark.parametrize("cond, ranges", [
    (i < n, {n: (1, None), i: (0, n - 1)}),
    (i >= 0, {n: (1, None), i: (0, n - 1)}),
    (i * 14 + j < n * 14, {n: (1, None), i: (0, n - 1), j: (0, 13)}),
    (i * m + j < n * m, {n: (1, None), m: (1, None), i: (0, n - 1), j: (0, m - 1)}),
    (j < n, {n: (1, None), i: (0, None), j: (i * 16, minimum(n, i * 16 + 16) - 1)}),
    (i * 16 + j < n, {n: (1, None), i: (0, (n + 15) // 16 - 1), j: (0, minimum(expr(16), n - i * 16) - 1)}),
    (i * 16 + j < n, {n: (1, None), i: (0, n // 16 - 1), j: (0, 15)}),
    (i * 4 + j < n * 4 + 8, {n: (1, None), i: (0, n + 1), j: (0, 3)}),
    (i // 4 * 4 <= i, {}), (i - 3 <= i // 4 * 4, {}), (i % 4 <= i, {i: (0, None)}), (i % n < n, {n: (1, None)}),
    (minimum(i, j) <= i, {}), (maximum(i, j) >= j, {}), ((i * 2 + 1).ne(j * 2), {}), ((i - i).eq(0), {}),
    (i // 14 < n, {n: (1, None), i: (0, n * 14 - 1)}),
], ids=repr)
def test_proofs(cond: Expr, ranges: Any) -> None:
    assert prove(cond, ranges)


@pytest.mark.parametrize("cond, ranges", [
    (i < n, {}), (i < n, {n: (1, None), i: (0, n)}), (i * 14 + j < 55, {i: (0, 3), j: (0, 13)}),
    (i * m < n * m, {i: (0, n - 1)}),
    (i.ne(j), {}), (i // 4 * 4 < i, {}),
], ids=repr)
def test_what_is_not_so_is_not_proved(cond: Expr, ranges: Any) -> None:
    assert not prove(cond, ranges)


def test_facts() -> None:
    known = Knowledge({}).assuming((i < n) & (j <= i))
    assert known.decide(j < n) is True
    assert known.decide(i < n + 1) is True and known.decide(n <= i) is False and known.decide(i < m) is None
    assert Knowledge({}).assuming(i < 5, False).decide(expr(4) < i) is True
    assert Knowledge({}).assuming((i < 0) | (j < 0), False).decide(i * 2 + j >= 0) is True
    assert Knowledge({i: (0, 9)}).assuming(i * 16 + 15 < n).decide(i * 16 + 3 < n) is True


def test_vectors_are_decided_lane_by_lane() -> None:
    lanes = Ramp(i * 16, expr(1), 16)
    four = i64.with_lanes(16)
    assert Knowledge({i: (0, 3)}).decide(Lt(lanes, const(64, four))) is True
    assert Knowledge({i: (0, 3)}).decide(Lt(lanes, const(63, four))) is None
    assert Knowledge({i: (4, 5)}).decide(Lt(lanes, const(64, four))) is False
    assert Knowledge({i: (0, 3)}).decide(Eq(Ramp(expr(0), expr(1), 3), Ramp(expr(0), expr(1), 3))) is True
    assert Knowledge().decide(Eq(Ramp(expr(0), expr(2), 3), Broadcast(expr(2), 3))) is None


def test_a_size_brings_its_own_range() -> None:
    n, m = Var("n", span=Span(1, 512)), Var("m", span=Span(2))
    assert bounds(n * 3) == (3, 1536)
    assert bounds(m) == (2, None)
    assert prove(n <= n * m)
    assert bounds(n, {n: (4, 5)}) == (4, 5)


def test_the_typical_value_of_an_expression() -> None:
    n = Var("n", span=Span(hint=100))
    assert estimate((n + 15) // 16 * 2) == 14
    assert estimate(n * Var("i"), 3) == 300
