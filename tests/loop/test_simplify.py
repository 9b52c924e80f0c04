"""The simplifier: the same values as before (property tests), and the forms that later stages count on (examples)."""
from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.loop.evaluate import UndefinedError, evaluate
from tilewright.core.dtype import DType, bf16, boolean, f16, f32, i8, i32, i64, u8, u64
from tilewright.core.node import walk
from tilewright.loop.fold import round_to
from tilewright.loop.ir import (
    FALSE,
    TRUE,
    Add,
    Allocate,
    And,
    Assert,
    Broadcast,
    Buffer,
    Call,
    Cast,
    Const,
    Div,
    Eq,
    Evaluate,
    Expr,
    FloorDiv,
    FloorMod,
    For,
    Guard,
    If,
    Le,
    Let,
    Load,
    Lt,
    Max,
    Min,
    Mul,
    Ne,
    Not,
    Or,
    Program,
    Ramp,
    Select,
    Seq,
    Store,
    Sub,
    Var,
    const,
    expr,
    maximum,
    minimum,
    seq,
)
from tilewright.loop.simplify import simplify

n, m, i, j, k = (Var(s) for s in "nmijk")
A, B = Buffer("A", f32, (n,)), Buffer("B", f32, (n,))
ARITHMETIC = (Add, Sub, Mul, FloorDiv, FloorMod, Min, Max, Div)


# ---- property tests -----------------------------------------------------------------------------------------------------
def integers_of(t: DType, variables: list[Var], extremes: bool, most: int = 14,
                operations: tuple[Any, ...] = ARITHMETIC) -> st.SearchStrategy[Expr]:
    low, high = t.range()
    numbers = st.sampled_from([x for x in (0, 1, 2, 3, 4, 6, 7, 8, 12, 16, -1, -3) if low <= x <= high])
    if extremes:
        numbers |= st.integers(low, high)
    leaves = st.one_of(st.sampled_from(variables), numbers.map(lambda v: Const(v, t)))

    def grow(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
        condition = st.builds(lambda c, a, b: c(a, b), st.sampled_from((Lt, Le, Eq, Ne)), inner, inner)
        conditions = st.one_of(condition, condition.map(Not), st.builds(And, condition, condition),
                               st.builds(Or, condition, condition))
        return st.one_of(
            st.builds(lambda c, a, b: c(a, b), st.sampled_from(operations), inner, inner),
            st.builds(lambda c, a, b: c(a, b), st.sampled_from((Add, Sub, Mul)), inner, inner),
            st.builds(lambda c, a, v: c(a, Const(v, t)), st.sampled_from((FloorDiv, FloorMod, Mul)), inner,
                      st.sampled_from((1, 2, 3, 4, 6, 8, 12))),
            st.builds(lambda c, s, a, b: s(c, a, b), conditions, st.sampled_from((Select, Guard)), inner, inner),
            st.builds(lambda c: Cast(t, c), conditions))
    return st.recursive(leaves, grow, max_leaves=most)


def same_value(before: Expr, after: Expr, env: dict[Var, int]) -> None:
    try:
        want = evaluate(before, env)
    except UndefinedError:
        return
    got = evaluate(after, env)
    assert got == want and type(got) is type(want), f"{before!r}\n→ {after!r}\nat { {v.name: x for v, x in env.items()} }"


RANGES = st.tuples(st.integers(-9, 9), st.integers(0, 14)).map(lambda x: (x[0], x[0] + x[1]))


@settings(max_examples=600, deadline=None)
@given(integers_of(i64, [i, j, n], False), RANGES, RANGES, st.data())
def test_indices_keep_their_value(e: Expr, ri: Any, rj: Any, data: st.DataObject) -> None:
    after = simplify(e, {i: ri, j: rj})
    for _ in range(4):
        same_value(e, after, {i: data.draw(st.integers(*ri)), j: data.draw(st.integers(*rj)),
                              n: data.draw(st.integers(-40, 40))})


@settings(max_examples=300, deadline=None)
@given(integers_of(i64, [i, j, n], False), st.data())
def test_indices_keep_their_value_under_symbolic_ranges(e: Expr, data: st.DataObject) -> None:
    after = simplify(e, {n: (1, None), i: (0, n - 1), j: (i, minimum(n * 2, i + 15))})
    for _ in range(4):
        size = data.draw(st.integers(1, 30))
        first = data.draw(st.integers(0, size - 1))
        same_value(e, after, {n: size, i: first, j: data.draw(st.integers(first, min(2 * size, first + 15)))})


@pytest.mark.parametrize("t", [i8, u8, i32, u64], ids=str)
def test_narrow_integers_wrap(t: DType) -> None:
    a, b = Var("a", t), Var("b", t)

    @settings(max_examples=250, deadline=None)
    @given(integers_of(t, [a, b], True), st.tuples(st.integers(*t.range()), st.integers(*t.range())).map(sorted), st.data())
    def check(e: Expr, ra: list[int], data: st.DataObject) -> None:
        after = simplify(e, {a: (ra[0], ra[1])})
        for _ in range(4):
            same_value(e, after, {a: data.draw(st.integers(*ra)), b: data.draw(st.integers(*t.range()))})
    check()


def vectors(lanes: int) -> st.SearchStrategy[Expr]:
    scalars = integers_of(i64, [i, j], False)
    number = st.sampled_from((0, 1, 2, 3, 8, -1)).map(lambda v: Const(v, i64))
    leaves = st.one_of(st.builds(lambda a: Broadcast(a, lanes), scalars), st.builds(lambda a, s: Ramp(a, s, lanes),
                                                                                   scalars, number))
    by = st.sampled_from((1, 2, 4, 8, 16)).map(lambda v: const(v, i64.with_lanes(lanes)))
    return st.recursive(leaves, lambda inner: st.one_of(
        st.builds(lambda c, a, b: c(a, b), st.sampled_from((Add, Sub, Mul, Min, Max)), inner, inner),
        st.builds(lambda c, a, b: c(a, b), st.sampled_from((FloorDiv, FloorMod, Mul)), inner, by),
        st.builds(lambda c, x, y, a, b: Select(c(x, y), a, b), st.sampled_from((Lt, Le, Eq, Ne)), inner, inner, inner,
                  inner)), max_leaves=5)


@settings(max_examples=300, deadline=None)
@given(vectors(4), RANGES, RANGES, st.data())
def test_vectors_keep_their_value(e: Expr, ri: Any, rj: Any, data: st.DataObject) -> None:
    after = simplify(e, {i: ri, j: rj})
    for _ in range(3):
        same_value(e, after, {i: data.draw(st.integers(*ri)), j: data.draw(st.integers(*rj))})


@settings(max_examples=200, deadline=None)
@given(integers_of(i64, [i, j, n], False), RANGES, RANGES)
def test_simplifying_twice_changes_nothing_but_what_the_first_uncovered(e: Expr, ri: Any, rj: Any) -> None:
    once = simplify(e, {i: ri, j: rj})
    twice = simplify(once, {i: ri, j: rj})
    assert sum(1 for _ in walk(twice)) <= sum(1 for _ in walk(once)) + 2


# ---- forms --------------------------------------------------------------------------------------------------------------
RANGE = {n: (1, None), m: (1, None), i: (0, 3), j: (0, 13), k: (0, m - 1)}


@pytest.mark.parametrize("before, after", [
    ((i * 14 + j) // 14, i), ((i * 14 + j) % 14, j), ((i * 28 + j) // 28, i), (j * 2 + i * 3 - j - j + 1 - i * 3, expr(1)),
    (i // 2 * 2 + i % 2, i), ((j * 4 + i) // 8, j // 2), ((i * 4 + 5) // 4, i + 1), ((j // 2) // 3, j // 6),
    ((j // 2) % 2 * 2 + j % 2 + j // 4 * 4, j), ((n * 12) % 4, expr(0)), ((n % 12) % 4, n % 4),
    ((n % 12) // 4, (n // 4) % 3), ((n * m + k) // m, n), ((n * m + k) % m, k), (n * m // m, n), (n * m + k - m * n, k),
    (i * 14 + j < 56, TRUE), (i * 14 + j < 28, Lt(i, expr(2))), (n + i + 3 < n + 5, Lt(i, expr(2))),
    (expr(0) <= i, TRUE), (k < m, TRUE), (k >= m, FALSE), ((i * 2).eq(3), FALSE), (Not(i < 2), Le(expr(2), i)),
    (minimum(i, 3), i), (maximum(i + 2, i + 5), i + 5), (minimum(n, n + i), n), (expr(7) % 4, expr(3)),
    (Select(i < 4, n, m), n), (Guard(i < 4, n, m), n), (Select(n < m, k, k), k), ((i < 9) & (n < m), n < m),
    ((i < n) & (i < n + 2), i < n), ((i < n) & (n <= i), FALSE), ((i < n) | (n <= i), TRUE),
    (Cast(i32, const(300, i64)), const(300, i32)), (Cast(i8, const(300, i64)), const(44, i8)),
    (Cast(i64, Cast(i32, Var("b", i8))), None),
], ids=repr)
def test_scalar_forms(before: Expr, after: Expr | None) -> None:
    got = simplify(before, RANGE)
    if after is None:
        assert isinstance(got, Cast) and isinstance(got.a, Var)
    else:
        assert got == after


@pytest.mark.parametrize("before, after", [
    (Add(Broadcast(i, 4), Broadcast(n, 4)), Broadcast(n + i, 4)),
    (Add(Ramp(i, expr(1), 4), Broadcast(n, 4)), Ramp(n + i, expr(1), 4)),
    (Sub(Broadcast(n, 4), Ramp(i, expr(1), 4)), Ramp(n - i, expr(-1), 4)),
    (Mul(Ramp(i, expr(1), 4), Broadcast(expr(8), 4)), Ramp(i * 8, expr(8), 4)),
    (FloorDiv(Ramp(i * 16, expr(1), 16), const(16, i64.with_lanes(16))), Broadcast(i, 16)),
    (FloorMod(Ramp(i * 16, expr(1), 16), const(16, i64.with_lanes(16))), Ramp(expr(0), expr(1), 16)),
    (FloorDiv(Ramp(i, expr(8), 4), const(4, i64.with_lanes(4))), Ramp(i // 4, expr(2), 4)),
    (Ramp(i, expr(0), 4), Broadcast(i, 4)), (Load(A, (Broadcast(i, 4),)), Broadcast(A[i], 4)),
    (Lt(Ramp(i * 16, expr(1), 16), const(64, i64.with_lanes(16))), const(True, boolean.with_lanes(16))),
    (Select(Lt(Ramp(i, expr(1), 4), const(7, i64.with_lanes(4))), Ramp(j, expr(1), 4), Broadcast(n, 4)),
     Ramp(j, expr(1), 4)),
], ids=repr)
def test_vector_forms(before: Expr, after: Expr) -> None:
    assert simplify(before, {i: (0, 3), j: (0, 13)}) in (after, simplify(after, {i: (0, 3), j: (0, 13)}))


def test_floats_change_only_where_every_bit_stays() -> None:
    x = A[i]
    assert simplify(x * 1.0) == x and simplify(x - 0.0) == x and simplify(x + -0.0) == x and simplify(x / 1.0) == x
    for kept in (x * 0.0, x + 0.0, x - x, x - -0.0, x / x, x.eq(x), x <= x, Not(x < 1.0)):
        assert simplify(kept) == kept
    tenth, fifth = np.float32(0.1), np.float32(0.2)
    assert simplify(Const(0.1, f32) + Const(0.2, f32)) == Const(float(tenth + fifth), f32)
    assert simplify(Const(0.1, f32) * Const(0.2, f32)) == Const(float(tenth * fifth), f32)
    assert simplify(Const(0.1, f32) <= Const(0.1 + 1e-12, f32)) == TRUE
    assert simplify(Const(1.0, f32) / Const(0.0, f32)) == Const(1.0, f32) / Const(0.0, f32)
    assert simplify(Const(3e38, f32) * Const(3e38, f32)) == Const(3e38, f32) * Const(3e38, f32)
    nan = Const(math.nan, f32)
    assert simplify(nan < nan) == FALSE and simplify(Min(nan, nan)) == nan


@settings(max_examples=200, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_rounding_agrees_with_numpy(v: float) -> None:
    for t in (f16, bf16):
        with np.errstate(over="ignore"):
            want = float(np.float32(v).astype(t.numpy()))
        got = round_to(v, t)
        assert got is None or (got == want and math.copysign(1, got) == math.copysign(1, want))
        if got is None:
            assert not math.isfinite(want) or abs(v) < 2.0 ** -125


def test_memory_is_not_taken_for_a_constant() -> None:
    C = Buffer("C", i64, (n,))
    s = If(C[0] < 3, seq(Store(C, (expr(0),), expr(7)), If(C[0] < 3, Store(B, (expr(0),), A[0]))))
    assert simplify(s) == s
    assert simplify(C[0] + 1 < C[0] + 2) == Lt(C[0] + 1, C[0] + 2)  # it may wrap
    assert simplify((C[0] * 4 + 1) // 4) == (C[0] * 4 + 1) // 4
    v = Var("v")
    t = Let(v, C[0], seq(Store(C, (expr(0),), expr(7)), If(v < C[0], Store(B, (expr(0),), A[0]))))
    assert simplify(t) == t


def test_loads_of_tables_fold() -> None:
    table = Buffer("t", f32, (expr(2), expr(3)), "const", data=(0.0, 1.0, 2.0, 3.0, 4.0, 5.0))
    assert simplify(table[i // 3, i % 3], {i: (5, 5)}) == Const(5.0, f32)
    assert isinstance(simplify(table[i, 0], {i: (0, 1)}), Load)


# ---- statements ---------------------------------------------------------------------------------------------------------
def put(index: Any, value: Any) -> Store:
    return Store(B, (expr(index),), value)


def test_loops_that_run_once_or_never() -> None:
    s = seq(For(i, expr(0), expr(0), put(i, A[i])), For(i, n, expr(1), put(i, A[i + 1])),
            For(j, expr(0), expr(4), put(j, A[j])))
    assert simplify(s) == seq(put(n, A[n + 1]), For(j, expr(0), expr(4), put(j, A[j])))
    bound = For(i, expr(0), expr(1), put(i, A[i]), "threadIdx.x")
    assert simplify(bound) == bound.replace(body=put(0, A[0]))


def test_conditions_inside_loops() -> None:
    s = For(i, expr(0), expr(4), For(j, expr(0), expr(14), If(i * 14 + j < 56, put((i * 14 + j) // 14, A[j]))))
    assert simplify(s) == For(i, expr(0), expr(4), For(j, expr(0), expr(14), put(i, A[j])))
    tail = For(i, expr(0), (n + 15) // 16, For(
        j, expr(0), minimum(expr(16), n - i * 16), If(i * 16 + j < n, put(i * 16 + j, A[j]))))
    got = simplify(tail)
    assert not any(isinstance(x, If) for x in walk(got))
    nested = If(i < n, seq(If(i < n + 1, put(i, A[i])), If(n <= i, put(0, A[0]))))
    assert simplify(nested) == If(i < n, put(i, A[i]))
    other = If(i < 5, put(0, A[0]), If(i < 3, put(1, A[1]), put(2, A[2])))
    assert simplify(other) == If(i < 5, put(0, A[0]), put(2, A[2]))


def test_guards_know_their_condition() -> None:
    e = Guard((i > 0) & (i < n), Select(i >= 1, A[i], A[0]), const(0.0, f32))
    got = simplify(e)
    assert isinstance(got, Guard) and got.a == A[i]
    both = Select(i > 0, A[maximum(i - 1, 0)], const(0.0, f32))  # evaluated either way: the clamp must stay
    assert isinstance(simplify(both, {i: (0, 9)}).a.indices[0], Max)  # type: ignore[attr-defined]


def test_dead_parts_disappear() -> None:
    T = Buffer("T", f32, (expr(4),), "local")
    call = Evaluate(Call("prefetch", (i + 0 * j,), i64))
    s = seq(Allocate(T, For(i, expr(0), expr(0), Store(T, (i,), A[i]))), Assert(expr(3) < 4, 1, "never"), call)
    assert simplify(s) == Evaluate(Call("prefetch", (i,), i64))
    assert simplify(If(n < m, Seq(()), put(0, A[0]))) == If(Le(m, n), put(0, A[0]))
    assert simplify(If(n < m, Seq(()), Seq(()))) == Seq(())


def test_lets_and_shapes_of_allocations() -> None:
    T, v = Buffer("T", f32, (i + 1,), "local"), Var("v")
    s = For(i, expr(3), expr(1), Allocate(T, Let(v, i * 2, Store(T, (v - 6,), A[v]))))
    got = simplify(s)
    assert isinstance(got, Allocate) and got.buffer.shape == (expr(4),)
    assert got.body == Store(got.buffer, (expr(0),), A[6])
    kept = Let(v, n * 2, seq(put(v // 2, A[v])))
    assert simplify(kept) == kept.replace(body=put(v // 2, A[v]))


def test_program_dimensions_are_not_negative() -> None:
    p = Program("f", (n, A, B), If(n >= 0, For(i, expr(0), n, If(i < n, put(i, A[i])))))
    assert simplify(p).body == For(i, expr(0), n, put(i, A[i]))


def test_unchanged_programs_stay_the_same_object() -> None:
    s = For(i, expr(0), n, If(A[i] < 0.0, put(i, A[i]), put(n * 2 + i // 4 + 1, A[minimum(i * 8 + 1, n)])))
    assert simplify(s) is s


def test_unrolled_kernels_are_fast() -> None:
    stmts = [Store(B, (expr(r * 48 + c) + i * 0,),
                   B[i * 384 + r * 48 + c] + A[(i * 8 + r) * 768 + k] * A[(j * 768 + k) * 48 + c])
             for r in range(8) for c in range(48)]
    s = For(i, expr(0), expr(16), For(j, expr(0), expr(16), For(k, expr(0), expr(768), seq(stmts))))
    start = time.process_time()
    simplify(s)
    assert time.process_time() - start < 2.0


def test_deep_sums() -> None:
    e: Expr = i
    for step in range(5000):
        e = Add(e, Const(step % 3, i64))
    assert simplify(e) == i + 4999
    x: Expr = A[0]
    for _ in range(1500):
        x = Add(x, A[i + 0 * i])
    assert simplify(x).dtype is f32
