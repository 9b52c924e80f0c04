"""rfactor: partial results along one loop."""
from __future__ import annotations

import pytest

from tests.tensor.schedule.refusals import check, refused
from tests.tensor.schedule.schedule_operators import argmax, conv2d, gemv, matmul, max_pool
from tilewright.core.dtype import i32
from tilewright.loop.ir import Const, as_int
from tilewright.tensor.compute import compute, create_program, placeholder, reduce_axis, reducer
from tilewright.tensor.regions import outputs
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import find_block


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_axis(axis: int) -> None:
    p = matmul()
    sch = Schedule(p)
    c = sch.block("C")
    rf = sch.rfactor(c, sch.loops(c)[2], axis)
    shape = [as_int(d) for d in outputs(find_block(sch.program, rf))[0].shape]
    assert shape.index(6) == axis % 3
    check(sch, p)


@pytest.mark.parametrize("inner", [False, True])
def test_tail(inner: bool) -> None:
    p = gemv()
    sch = Schedule(p)
    y = sch.block("y")
    _, k = sch.loops(y)
    ko, ki = sch.split(k, [None, 4])
    rf = sch.rfactor(y, ki if inner else ko, 0)
    sch.parallel(sch.loops(rf)[0])
    check(sch, p)


def test_steps_without_any_instance() -> None:
    """Factors that cover more than the extent: a step in which nothing is reduced still has the identity."""
    p = gemv()
    sch = Schedule(p)
    y = sch.block("y")
    ko, _ = sch.split(sch.loops(y)[1], [5, 4])
    sch.rfactor(y, ko, 0)
    check(sch, p)


def test_tuples_maxima_and_windows() -> None:
    p = argmax()
    sch = Schedule(p)
    best = sch.block("best")
    _, r = sch.loops(best)
    _, ri = sch.split(r, [None, 3])
    sch.rfactor(best, ri, 0)
    check(sch, p)
    p = max_pool()
    sch = Schedule(p)
    pool = sch.block("pool")
    sch.rfactor(pool, sch.loops(pool)[4], 2)
    check(sch, p)


def test_user_made_reducer() -> None:
    """(sum, sum of squares) as a tuple."""
    both = reducer(lambda a, b: (a[0] + b[0], a[1] + b[1]), lambda d: (Const(0, i32), Const(0, i32)), "moments")
    x = placeholder((3, 10), "i32", "X")
    r = reduce_axis(10, "r")
    s, q = compute((3,), lambda i: both((x[i, r], x[i, r] * x[i, r]), axis=[r]), name="m")
    y = compute((3,), lambda i: q[i] * Const(10, i32) - s[i] * s[i], name="y")
    p = create_program("moments", [x], [y])
    sch = Schedule(p)
    m = sch.block("m")
    _, ri = sch.split(sch.loops(m)[1], [None, 4])
    sch.rfactor(m, ri, 1)
    check(sch, p)


def test_inside_shared_loops() -> None:
    p = conv2d()
    sch = Schedule(p)
    conv = sch.block("conv")
    loops = sch.loops(conv)
    sch.compute_at(sch.block("pad"), loops[4])
    sch.rfactor(conv, loops[4], 0)
    check(sch, p)




def test_refused() -> None:
    sch = Schedule(matmul())
    c = sch.block("C")
    i, j, k = sch.loops(c)
    with refused(sch, "does not reduce over loop i", "for i0"):
        sch.rfactor(c, i)
    with refused(sch, "axis 3 is not in", "block C"):
        sch.rfactor(c, k, 3)
    f = sch.fuse(j, k)
    with refused(sch, "a spatial variable depends on loop", "for j1_k_f"):
        sch.rfactor(c, f)


def test_refused_after_decomposition() -> None:
    sch = Schedule(matmul())
    c = sch.block("C")
    k = sch.loops(c)[2]
    init = sch.decompose_reduction(c, k)
    with refused(sch, "no reduction with its initialisation", "block C"):
        sch.rfactor(c, k)
    with refused(sch, "no reduction with its initialisation", "block C_init"):
        sch.rfactor(init, k)
