"""unroll, vectorize, parallel, annotate, and the promise that parallel and vectorized loops keep under later primitives."""
from __future__ import annotations

import pytest

from tests.tensor.schedule.refusals import body, check, refused
from tests.tensor.schedule.schedule_operators import argmax, conv2d, matmul, max_pool, reshapes
from tilewright.core.dtype import i32
from tilewright.loop.ir import Program, Var, const
from tilewright.loop.parser import parse_program
from tilewright.tensor.compute import compute, create_program, placeholder
from tilewright.tensor.scan import scan
from tilewright.tensor.schedule.schedule import Schedule, replay
from tilewright.tensor.schedule.state import find_block


def start(program: Program, block: str = "C") -> tuple[Schedule, list[Var]]:
    sch = Schedule(program)
    return sch, sch.loops(sch.block(block))


def kinds(sch: Schedule, block: str = "C") -> list[str]:
    return [sch.loop(v).kind for v in sch.loops(sch.block(block))]


# ---- unroll, annotate --------------------------------------------------------------------------------
def test_unroll_marks_any_loop_of_constant_extent() -> None:
    sch, (_, _, k) = start(matmul())
    sch.unroll(k)
    assert kinds(sch) == ["serial", "serial", "unrolled"]
    check(sch, matmul())


def test_unroll_refuses() -> None:
    sch, (i, j, _) = start(matmul(5, 2000, 3))
    with refused(sch, "2000 is no constant up to 1024", "j1"):
        sch.unroll(j)
    sch.unroll(i)
    with refused(sch, "is unrolled already", "i0"):
        sch.unroll(i)
    n = Var("n")
    x = placeholder((n,), "i32", "X")
    sch, (i,) = start(create_program("f", [x], [compute((n,), lambda i: x[i] + 1, name="C")]))
    with refused(sch, "no constant"):
        sch.unroll(i)


def test_annotations_of_loops_and_blocks_replace_and_replay() -> None:
    sch, (i, _, _) = start(matmul())
    b = sch.block("C")
    sch.annotate(i, "prefetch", 1)
    sch.annotate(i, "prefetch", 4)
    sch.annotate(b, "algorithm", "direct")
    assert dict(sch.loop(i).attrs) == {"prefetch": 4}
    assert dict(find_block(sch.program, b).attrs) == {"algorithm": "direct"}
    again = replay(sch.trace, matmul())
    assert dict(find_block(again.program, b).attrs) == {"algorithm": "direct"}


# ---- independent iterations --------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [
    lambda s, i, j, k: i, lambda s, i, j, k: j, lambda s, i, j, k: s.split(i, [None, 2])[1],
    lambda s, i, j, k: s.split(i, [None, 2])[0], lambda s, i, j, k: s.fuse(i, j),
    lambda s, i, j, k: s.split(s.fuse(i, j), [None, 3])[0], lambda s, i, j, k: s.split(s.fuse(i, j), [None, 3])[1],
    lambda s, i, j, k: s.split(s.split(j, [None, 4])[0], [2, None])[1]])
def test_spatial_loops_however_split_and_fused_are_independent(make) -> None:  # type: ignore[no-untyped-def]
    for kind in ("parallel", "vectorize"):
        sch, loops = start(matmul(5, 7, 3))
        sch.apply(kind, make(sch, *loops))
        check(sch, matmul(5, 7, 3))


def test_a_reduction_loop_carries_its_sum() -> None:
    sch, (i, j, k) = start(matmul())
    for step in (sch.parallel, sch.vectorize):
        with refused(sch, "block C reduces over loop k", "for k"):
            step(k)
    f = sch.fuse(j, k)
    with refused(sch, "reduces over loop", f.name):
        sch.parallel(f)
    sch.parallel(i)


def test_a_reduction_within_vector_lanes_is_fine_when_the_loop_outside_is_spatial() -> None:
    sch, (i, j, k) = start(matmul())
    sch.reorder(i, k, j)
    sch.vectorize(j)
    check(sch, matmul())


def test_decomposed_updates_are_independent_along_their_elements_only() -> None:
    sch, (i, _, k) = start(matmul())
    sch.decompose_reduction(sch.block("C"), k)
    with refused(sch, "reduces over loop k"):
        sch.parallel(k)
    sch.parallel(i)
    check(sch, matmul())


def test_the_innermost_loop_of_decomposed_sums_may_be_lanes() -> None:
    sch, (_, j, k) = start(matmul())
    with refused(sch, "reduces over loop k"):  # its initialisation is still there
        sch.vectorize(k)
    sch.decompose_reduction(sch.block("C"), k)
    sch.vectorize(k)
    check(sch, matmul())
    sch, (_, j, k) = start(matmul())
    sch.decompose_reduction(sch.block("C"), j)
    sch.reorder(k, j)
    with refused(sch, "reduces over loop k"):  # around another loop it is no horizontal sum
        sch.vectorize(k)


def test_pairs_are_not_reduced_over_lanes() -> None:
    sch, loops = start(argmax(), "best")
    sch.decompose_reduction(sch.block("best"), loops[-1])
    with refused(sch, "reduces over loop"):
        sch.vectorize(loops[-1])


def recurrence() -> Program:
    return parse_program("""program scan(A: i32[8], B: i32[9]):
    for i in 0..8:
        block B(v: spatial 8 = i):
            B[v + 1] = B[v] + A[v]
""")


def test_a_recurrence_is_not_independent_whatever_its_variable_is_called() -> None:
    sch, (i,) = start(recurrence(), "B")
    with refused(sch, "may touch the same elements of B", "for i"):
        sch.parallel(i)
    with refused(sch, "may touch the same elements of B", "for i"):
        sch.vectorize(i)


def test_overlapping_writes_are_not_independent() -> None:
    sch, (i, j) = start(parse_program("""program overlap(A: i32[8], B: i32[8]):
    for i in 0..4:
        for j in 0..5:
            block B(v: spatial 8 = i + j):
                B[v] = A[v]
"""), "B")
    with refused(sch, "may touch the same elements of B"):
        sch.parallel(i)
    sch.parallel(j)  # for each i, the js differ


def test_symbolic_extents() -> None:
    n, m = Var("n"), Var("m")
    x = placeholder((n, m), "i32", "X")
    sch, (i, j) = start(create_program("f", [x], [compute((n, m), lambda i, j: x[i, j] + 1, name="C")]))
    f = sch.fuse(i, j)
    f0, f1 = sch.split(f, [None, 16])
    sch.parallel(f0)
    sch.vectorize(f1)
    assert kinds(sch) == ["parallel", "vectorized"]


def test_what_an_iteration_makes_for_itself_may_be_its_own() -> None:
    """A window of the padded input is made in each row anew: fine with a buffer per thread, not with a shared one."""
    program = conv2d()
    sch, loops = start(program, "conv")
    pad = sch.block("pad")
    sch.compute_at(pad, loops[2])
    with refused(sch, "may touch the same elements of pad"):
        sch.parallel(loops[2])
    sch.set_scope(pad, 0, "local")
    sch.parallel(loops[2])
    check(sch, program)


# ---- nesting and promises --------------------------------------------------------------------------------
def test_loops_that_run_at_once_and_their_nests() -> None:
    sch, (i, j, _) = start(matmul())
    sch.vectorize(j)
    with refused(sch, "loop j1 inside it is vectorized", "j1"):
        sch.vectorize(i)
    sch.parallel(i)
    sch, (i, j, _) = start(matmul())
    sch.vectorize(i)
    with refused(sch, "inside a vectorized loop", "j1"):
        sch.parallel(j)
    with refused(sch, "is vectorized already", "i0"):
        sch.parallel(i)


def test_marked_loops_are_not_split_or_fused() -> None:
    sch, (i, j, _) = start(matmul())
    sch.parallel(i)
    with refused(sch, "parallel", "i0"):
        sch.split(i, [None, 2])
    with refused(sch, "parallel", "i0"):
        sch.fuse(i, j)


def test_a_parallel_loop_stays_independent_when_others_move_into_it() -> None:
    program = conv2d()
    sch, loops = start(program, "conv")
    sch.parallel(loops[2])
    with refused(sch, "pad (block pad): written by block pad when k2 = 0 and when k2 = 1, but the loop is parallel",
                 "for k2"):
        sch.compute_at(sch.block("pad"), loops[2])
    sch.set_scope(sch.block("pad"), 0, "local")
    sch.compute_at(sch.block("pad"), loops[2])
    check(sch, program)


def test_reorder_of_a_vectorized_loop_outwards() -> None:
    x = placeholder((4, 4), "i32", "X")
    program = create_program("f", [x], [compute((4, 4), lambda i, j: x[i, j] + const(1, i32), name="C")])
    sch, (i, j) = start(program)
    sch.vectorize(j)
    sch.reorder(j, i)
    assert kinds(sch) == ["vectorized", "serial"]
    check(sch, program)


# ---- more operators, more refusals ------------------------------------------------------------------------------------
def test_what_the_kinds_print() -> None:
    sch, (i, j, k) = start(matmul(5, 7, 6))
    sch.parallel(i)
    sch.vectorize(j)
    sch.unroll(k)
    assert body(sch).split("\n")[:3] == ["for i0 in 0..5 parallel:", "    for j1 in 0..7 vectorized:",
                                         "        for k in 0..6 unrolled:"]
    check(sch, matmul(5, 7, 6))


def test_annotate_refuses() -> None:
    sch, (i, j, _) = start(matmul())
    with refused(sch, "is no plain data", "for i0 in"):
        sch.annotate(i, "note", [1, 2])
    with refused(sch, "is no plain data", "block C("):
        sch.annotate(sch.block("C"), "note", {"a": 1})
    sch.fuse(i, j)
    with refused(sch, "loop i0 is no longer in the program"):
        sch.annotate(i, "note", 1)


def test_vectorize_needs_a_constant_extent() -> None:
    n = Var("n")
    a = placeholder((n,), "i32", "A")
    sch, (i,) = start(create_program("p", [a], [compute((n,), lambda i: a[i], name="C")]))
    with refused(sch, "the extent n is no constant", "for i0 in"):
        sch.vectorize(i)
    outer, inner = sch.split(i, [None, 4])
    sch.vectorize(inner)
    with refused(sch, "the extent (n + 3) // 4 is no constant", "for i0_0 in"):
        sch.vectorize(outer)


@pytest.mark.parametrize("make", [argmax, max_pool, reshapes, conv2d])
def test_every_spatial_loop_of_an_operator_may_be_parallel(make: object) -> None:
    program = make()  # type: ignore[operator]
    for name in [b for b in ("best", "y", "pool", "shift", "transposed", "flat", "pad", "conv") if f"block {b}(" in
                 str(program)]:
        sch = Schedule(program)
        block = sch.block(name)
        spatial = next(text for text in str(program).split("\n") if f"block {name}(" in text).count("spatial")
        for v in sch.loops(block)[:spatial]:
            sch.parallel(v)
        check(sch, program)


def halo() -> Program:
    a = placeholder((8,), "i32", "A")
    b = compute((8,), lambda i: a[i] * const(3, i32), name="B")
    c = compute((6,), lambda i: b[i] + b[i + 1] + b[i + 2], name="C")
    return create_program("halo", [a], [c])


def test_iterations_that_compute_the_same_elements_need_a_buffer_of_their_own() -> None:
    sch = Schedule(halo())
    outer, _ = sch.split(sch.loops(sch.block("C"))[0], [None, 2])
    sch.compute_at(sch.block("B"), outer)
    with refused(sch, "may touch the same elements of B", "for i0_0"):
        sch.parallel(outer)
    sch.set_scope(sch.block("B"), 0, "local")  # lowering allocates it within the iteration
    sch.parallel(outer)
    check(sch, halo())


def test_a_recurrence_through_two_blocks_is_not_independent() -> None:
    x = placeholder((4, 3), "i32", "X")
    zero = compute((3,), lambda i: const(0, i32), name="zero")

    def step(t: object, s: object) -> object:
        a = compute((3,), lambda i: s[2 - i] * const(2, i32), name="a")  # type: ignore[index]
        return compute((3,), lambda i: a[i] + x[t, i], name="b")

    total = scan(4, [zero], step, name="total")
    y = compute((3,), lambda i: total[3, i], name="y")
    program = create_program("running", [x], [y])
    sch = Schedule(program)
    t = sch.loops(sch.block("b"))[0]
    with refused(sch, "loop t", "for t in"):
        sch.parallel(t)
    check(sch, program)
