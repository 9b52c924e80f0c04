"""Random small programs give the interpreter's result before and after simplification."""
from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.loop.test_simplify import integers_of
from tilewright.core.dtype import i64
from tilewright.loop.interpret import run
from tilewright.loop.ir import (
    Add,
    Buffer,
    Expr,
    FloorMod,
    For,
    Guard,
    If,
    Let,
    Lt,
    Max,
    Min,
    Mul,
    Program,
    Stmt,
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

n = Var("n")
SIZE = 16
A, B = Buffer("A", i64, (expr(SIZE),)), Buffer("B", i64, (expr(SIZE),))


@st.composite
def statements(draw: st.DrawFn, names: tuple[Var, ...], depth: int) -> Stmt:
    """Stores to B at wrapped indices, under loops, conditions and lets that mention what is in scope."""
    def value() -> Expr:
        return draw(integers_of(i64, list(names), False, 4, (Add, Sub, Mul, Min, Max)))  # divisors are constants: no faults

    kind = draw(st.sampled_from(("for", "for", "if", "let", "seq"))) if depth else "store"
    if kind == "store":
        at = value()
        inside = (at >= 0) & (at < SIZE)
        wrapped = FloorMod(at, expr(SIZE))
        loaded = draw(st.sampled_from((Guard(inside, A[at], const(7)), A[wrapped], B[wrapped])))
        return Store(B, (FloorMod(value(), expr(SIZE)),), loaded + value())
    if kind == "for":
        v = Var(f"i{depth}")
        extent = draw(st.sampled_from((expr(0), expr(1), expr(3), n, minimum(expr(4), maximum(n - names[-1] * 2, 0)))))
        return For(v, draw(st.sampled_from((expr(0), expr(2), names[-1]))), extent, draw(statements((*names, v), depth - 1)))
    if kind == "if":
        cond = Lt(value(), value()) if draw(st.booleans()) else Lt(B[FloorMod(value(), expr(SIZE))], value())
        return If(cond, draw(statements(names, depth - 1)), draw(st.none() | statements(names, depth - 1)))
    if kind == "let":
        v = Var(f"x{depth}")
        bound = draw(st.sampled_from((value(), B[FloorMod(value(), expr(SIZE))])))
        return Let(v, bound, draw(statements((*names, v), depth - 1)))
    return seq(draw(statements(names, depth - 1)), draw(statements(names, depth - 1)))


def result(p: Program, size: int) -> Any:
    b = np.arange(SIZE, dtype=np.int64) % 5
    run(p, [size, np.arange(3, SIZE + 3, dtype=np.int64), b])
    return b


@settings(max_examples=150, deadline=None)
@given(statements((n,), 3), st.integers(1, 6))
def test_programs_compute_the_same(body: Stmt, size: int) -> None:
    before = Program("f", (n, A, B), body)
    want = result(before, size)
    np.testing.assert_array_equal(result(simplify(before, {n: (1, 6)}), size), want)
    np.testing.assert_array_equal(result(simplify(before), size), want)
