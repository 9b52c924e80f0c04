"""online_softmax, split_axis, add_unit_loop: bit for bit or nearly what was computed before, and what is refused."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.tensor.schedule.refusals import refused
from tilewright.loop.interpret import run
from tilewright.loop.ir import Buffer, Call, Expr, Program, as_int
from tilewright.loop.verify import verify
from tilewright.tensor import compute as te
from tilewright.tensor.schedule.schedule import Schedule, replay
from tilewright.tensor.schedule.state import BlockRef, blocks


def exp(e: Expr) -> Expr:
    return Call("exp", (e,), e.dtype)


def attention(rows: int = 6, columns: int = 10, top: str = "S", also: str = "") -> Program:
    """A softmax of rows of S times V; `top`: what the maximum is of; `also`: a block to return as well."""
    s, v = te.placeholder((2, rows, columns), name="S"), te.placeholder((2, columns, 4), name="V")
    other = te.placeholder((2, rows, columns), name="X")
    j, k, n = (te.reduce_axis(columns, name) for name in "jkn")
    of = s if top == "S" else other
    m = te.compute((2, rows), lambda b, i: te.max(of[b, i, j], axis=[j]), name="M")
    e = te.compute((2, rows, columns), lambda b, i, c: exp(s[b, i, c] - m[b, i]), name="E")
    total = te.compute((2, rows), lambda b, i: te.sum(e[b, i, k], axis=[k]), name="L")
    p = te.compute((2, rows, columns), lambda b, i, c: e[b, i, c] / total[b, i], name="P")
    o = te.compute((2, rows, 4), lambda b, i, d: te.sum(p[b, i, n] * v[b, n, d], axis=[n]), name="O")
    out = [o, *[t for t in (e, p) if t.name == also]]
    return te.create_program("attention", [s, v, *([other] if top != "S" else [])], out)


def run_on(p: Program, *given: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    out = [np.zeros([as_int(d) or 0 for d in b.shape], np.float32) for b in p.params[len(given):] if isinstance(b, Buffer)]
    run(p, [*given, *out])
    return out[0]


@pytest.mark.parametrize("tile", [(6, 10), (2, 5), (4, 3), (1, 1), (8, 16)])
def test_a_running_softmax_is_the_softmax(tile: tuple[int, int]) -> None:
    program = attention()
    sch = Schedule(program)
    rows, columns = sch.online_softmax(sch.block("O"), *tile)
    assert as_int(sch.loop(rows).extent) == -(-6 // tile[0]) and as_int(sch.loop(columns).extent) == -(-10 // tile[1])
    verify(sch.program)
    rng = np.random.default_rng(0)
    s, v = (10 * rng.standard_normal((2, 6, 10))).astype(np.float32), rng.standard_normal((2, 10, 4)).astype(np.float32)
    s[0, 1, :7] = -np.inf  # whole tiles without anything
    s[1, 2, 5:] = -np.inf
    np.testing.assert_allclose(run_on(sch.program, s, v), run_on(program, s, v), rtol=2e-6, atol=1e-6)
    assert [b.name for b in blocks(replay(sch.trace, program).program)] == [b.name for b in blocks(sch.program)]


def test_rows_of_nothing_and_of_nan_are_nan_as_before() -> None:
    program = attention()
    sch = Schedule(program)
    sch.online_softmax(sch.block("O"), 2, 4)
    s, v = np.zeros((2, 6, 10), np.float32), np.ones((2, 10, 4), np.float32)
    s[0, 0] = -np.inf
    s[0, 1, 3] = np.nan
    s[0, 2, 9] = np.inf
    np.testing.assert_array_equal(np.isnan(run_on(sch.program, s, v)), np.isnan(run_on(program, s, v)))


def test_what_is_no_softmax_is_refused() -> None:
    sch = Schedule(attention())
    with refused(sch, "it is no sum of products"):
        sch.online_softmax(sch.block("L"), 2, 2)
    with refused(sch, "no tile has 0 rows"):
        sch.online_softmax(sch.block("O"), 0, 2)
    sch = Schedule(attention(top="X"))
    with refused(sch, "not of a row less its maximum"):
        sch.online_softmax(sch.block("O"), 2, 2)
    for also in "EP":
        sch = Schedule(attention(also=also))
        with refused(sch, f"block {also} makes is read elsewhere"):
            sch.online_softmax(sch.block("O"), 2, 2)


def grouped() -> Program:
    a, b = te.placeholder((2, 5), name="A"), te.placeholder((20, 5), name="B")
    k = te.reduce_axis(5, "k")
    return te.create_program("f", [a, b], [te.compute((20,), lambda i: te.sum(a[i // 10, k] * b[i, k], axis=[k]), name="C")])


def test_an_axis_becomes_two() -> None:
    program = grouped()
    sch = Schedule(program)
    sch.split(sch.loops(sch.block("C"))[0], [None, 10])
    sch.split_axis(sch.block("C"), 0, 10)
    verify(sch.program)
    (block,) = blocks(sch.program)
    assert [as_int(it.extent) for it in block.iters] == [2, 10, 5]
    assert f"A[{block.iters[0].var.name}, " in str(block.body)
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-4, 4, s).astype(np.float32) for s in ((2, 5), (20, 5)))
    np.testing.assert_array_equal(run_on(sch.program, a, b), run_on(program, a, b))


@pytest.mark.parametrize("axis, factor, why", [(0, 3, "3 does not divide the 20 values"), (2, 2, "none is number 2"),
                                               (0, 0, "0 does not divide")])
def test_an_axis_that_does_not_become_two(axis: int, factor: int, why: str) -> None:
    sch = Schedule(grouped())
    with refused(sch, why):
        sch.split_axis(sch.block("C"), axis, factor)


def test_a_loop_of_one_turn() -> None:
    a, k = te.placeholder((7,), name="A"), te.reduce_axis(7, "k")
    program = te.create_program("f", [a], [te.compute((), lambda: te.sum(a[k], axis=[k]), name="S")])
    sch = Schedule(program)
    loop = sch.add_unit_loop(sch.block("S"))
    assert sch.loops(sch.block("S"))[0] is loop and as_int(sch.loop(loop).extent) == 1
    sch.bind(loop, "blockIdx.x")
    x = np.arange(7, dtype=np.float32)
    assert run_on(sch.program, x) == run_on(program, x) == 21
    with refused(sch, "no block"):
        sch.add_unit_loop(BlockRef("T"))
