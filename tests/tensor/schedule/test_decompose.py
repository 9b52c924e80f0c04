"""decompose_reduction and decompose_padding."""
from __future__ import annotations

import numpy as np
import pytest

from tests.tensor.schedule.refusals import check, refused
from tests.tensor.schedule.schedule_operators import argmax, conv2d, matmul, matmul_relu
from tilewright.core.dtype import i32
from tilewright.loop.interpret import Interpreter
from tilewright.loop.ir import Const, Program, Span, Var, as_int
from tilewright.tensor import compute as te
from tilewright.tensor.compute import compute, create_program, if_then_else, placeholder, reduce_axis
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import find_block, loops_around


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_initialisation_at_each_loop(depth: int) -> None:
    p = matmul()
    sch = Schedule(p)
    c = sch.block("C")
    init = sch.decompose_reduction(c, sch.loops(c)[depth])
    assert init.name == "C_init" and find_block(sch.program, c).init is None
    assert len(sch.loops(init)) == 2
    check(sch, p)


def test_only_the_loops_it_needs_keep_their_kind() -> None:
    p = matmul()
    sch = Schedule(p)
    c = sch.block("C")
    i, j, k = sch.loops(c)
    jo, ji = sch.split(j, [None, 4])
    sch.reorder(i, jo, k, ji)
    sch.vectorize(ji)
    init = sch.decompose_reduction(c, k)
    kinds = [f.kind for f in loops_around(sch.program, find_block(sch.program, init))]
    assert kinds == ["serial", "serial", "vectorized"]
    check(sch, p)


def test_reduction_tail_and_tuples() -> None:
    p = argmax()
    sch = Schedule(p)
    b = sch.block("best")
    _i, r = sch.loops(b)
    ro, _ = sch.split(r, [None, 4])
    init = sch.decompose_reduction(b, ro)
    assert "if" not in str(find_block(sch.program, init))
    check(sch, p)


@pytest.mark.parametrize("terms", [0, 1, 9])
def test_a_sum_of_nothing_is_initialised(terms: int) -> None:
    n = Var("n", span=Span())
    a, b = placeholder((5, n), "i32", "A"), placeholder((n, 7), "i32", "B")
    r = reduce_axis(n, "k")
    p = create_program("matmul", [a, b], [compute((5, 7), lambda i, j: te.sum(a[i, r] * b[r, j], axis=[r]), name="C")])
    sch = Schedule(p)
    c = sch.block("C")
    w = sch.cache_write(c, 0, "local")
    i, j, k = sch.loops(c)
    i0, i1 = sch.split(i, [None, 2])
    k0, k1 = sch.split(k, [None, 4])
    sch.reorder(i0, k0, k1, i1, j)
    sch.reverse_compute_at(w, i0)
    init = sch.decompose_reduction(c, k0)
    assert "< n" not in str(find_block(sch.program, init))
    given = [np.ones((5, terms), np.int32), np.ones((terms, 7), np.int32), np.full((5, 7), 99, np.int32), terms]
    Interpreter(sch.program).run(given)
    assert (given[2] == terms).all()


def test_decompose_reduction_refused() -> None:
    sch = Schedule(matmul_relu())
    c, d = sch.block("C"), sch.block("D")
    _i, j, k = sch.loops(c)
    with refused(sch, "no initialisation of a reduction", "block D"):
        sch.decompose_reduction(d, sch.loops(d)[0])
    with refused(sch, "is not around block C"):
        sch.decompose_reduction(c, sch.loops(d)[0])
    sch.reorder(k, j)
    with refused(sch, "it would be initialised again", "for k"):
        sch.decompose_reduction(c, j)


def test_decompose_reduction_refused_over_recomputed_elements() -> None:
    """Overlapping windows compute elements twice: each time they must start afresh."""
    sch = Schedule(windows_of_sums())
    s = sch.block("S")
    sch.compute_at(s, sch.loops(sch.block("Y"))[0])
    with refused(sch, "may be computed in several steps"):
        sch.decompose_reduction(s, sch.loops(s)[0])


def windows_of_sums() -> Program:
    a = placeholder((8, 3), "i32", "A")
    r = te.reduce_axis(3, "r")
    s = compute((8,), lambda i: te.sum(a[i, r], axis=[r]), name="S")
    y = compute((7,), lambda i: s[i] + s[i + 1], name="Y")
    return create_program("windows", [a], [y])


def test_padding_boxes() -> None:
    p = conv2d()
    sch = Schedule(p)
    interior, *fills = sch.decompose_padding(sch.block("pad"))
    assert interior.name == "pad" and len(fills) == 4
    sizes = [[as_int(i.extent) for i in find_block(sch.program, b).iters] for b in (interior, *fills)]
    assert sizes == [[1, 2, 5, 6], [1, 2, 1, 8], [1, 2, 1, 8], [1, 2, 5, 1], [1, 2, 5, 1]]
    check(sch, p)


@pytest.mark.parametrize("depth", [0, 2, 3])
def test_padding_in_shared_loops(depth: int) -> None:
    p = conv2d()
    sch = Schedule(p)
    sch.compute_at(sch.block("pad"), sch.loops(sch.block("conv"))[depth])
    sch.decompose_padding(sch.block("pad"))
    check(sch, p)


def test_interior_merges_into_its_producer() -> None:
    a = placeholder((6,), "i32", "A")
    b = compute((6,), lambda i: a[i] * Const(3, i32), name="B")
    p_ = compute((9,), lambda i: if_then_else((i >= 2) & (i < 8), b[i - 2], Const(7, i32)), name="P")
    p = create_program("halo", [a], [p_])
    sch = Schedule(p)
    interior, *fills = sch.decompose_padding(sch.block("P"))
    sch.reverse_compute_inline(interior)
    assert len(fills) == 2
    check(sch, p)


def test_decompose_padding_refused() -> None:
    sch = Schedule(conv2d())
    with refused(sch, "not a single store without reduction", "block conv"):
        sch.decompose_padding(sch.block("conv"))
    sch = Schedule(matmul_relu())
    with refused(sch, "not a choice between a value and a constant", "block D"):
        sch.decompose_padding(sch.block("D"))
    a = placeholder((6, 6), "i32", "A")
    lower = compute((6, 6), lambda i, j: if_then_else(i >= j, a[i, j], Const(0, i32)), name="T")
    sch = Schedule(create_program("triangle", [a], [lower]))
    with refused(sch, "not about one iteration variable", "block T"):
        sch.decompose_padding(sch.block("T"))
