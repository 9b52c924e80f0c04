"""split, fuse, reorder, tile: what they make, that it computes the same, what they refuse."""
from __future__ import annotations

import pytest

from tests.tensor.schedule.refusals import body, check, check_sizes, refused
from tests.tensor.schedule.schedule_operators import conv2d, matmul, matmul_relu, two_layers
from tilewright.core.dtype import i32
from tilewright.loop.ir import For, Program, Var, as_int, const
from tilewright.tensor import compute as te
from tilewright.tensor.compute import compute, create_program, placeholder, reduce_axis
from tilewright.tensor.scan import scan
from tilewright.tensor.schedule.schedule import Schedule


def scheduled(program: Program, block: str = "C") -> tuple[Schedule, list[Var]]:
    sch = Schedule(program)
    return sch, sch.loops(sch.block(block))


def copy(n: int = 8) -> Program:
    a = placeholder((n,), "i32", "A")
    return create_program("copy", [a], [compute((n,), lambda i: a[i] * const(2, i32), name="C")])


def symbolic() -> Program:
    """n rows, m columns, reduced over k: all sizes symbolic."""
    m, n, k = Var("m"), Var("n"), Var("k")
    a, b = placeholder((m, k), "i32", "A"), placeholder((k, n), "i32", "B")
    r = reduce_axis(k, "k")
    c = compute((m, n), lambda i, j: te.sum(a[i, r] * b[r, j], axis=[r]), name="C")
    return create_program("symbolic", [a, b], [c])


SIZES = ({"m": 5, "n": 3, "k": 4}, {"m": 1, "n": 7, "k": 1}, {"m": 4, "n": 4, "k": 6})


# ---- split -------------------------------------------------------------------------------------------------------------
def test_split_by_a_divisor() -> None:
    sch, (i,) = scheduled(copy())
    assert body(sch) == """
for i0 in 0..8:
    block C(i0_1: spatial 8 = i0):
        C[i0_1] = A[i0_1] * 2:i32""".strip("\n")
    sch.split(i, [None, 4])
    assert body(sch) == """
for i0_0 in 0..2:
    for i0_1 in 0..4:
        block C(i0: spatial 8 = i0_0 * 4 + i0_1):
            C[i0] = A[i0] * 2:i32""".strip("\n")
    check(sch, copy())


def test_split_that_overshoots_cuts_the_blocks() -> None:
    sch, (i, _, _) = scheduled(matmul(5, 7, 6))
    sch.split(i, [None, 2])
    assert "block C(i0: spatial 5 = i0_0 * 2 + i0_1, j1_1: spatial 7 = j1, k_1: reduce 6 = k) if i0_0 * 2 + i0_1 < 5:" \
        in body(sch)
    check(sch, matmul(5, 7, 6))


@pytest.mark.parametrize("factors", [[None, 3], [3, None], [2, None, 2], [3, 3], [None], [None, 7, 2], [1, None, 1]])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_splits_compute_the_same(factors: list[int | None], which: int) -> None:
    program = matmul(5, 7, 6)
    sch, loops = scheduled(program)
    new = sch.split(loops[which], factors)
    assert len(new) == len(factors)
    check(sch, program)


def test_split_again_and_again() -> None:
    program = matmul(5, 7, 6)
    sch, (i, j, k) = scheduled(program)
    _, inner = sch.split(i, [None, 3])
    sch.split(inner, [2, None])
    outer, _ = sch.split(k, [None, 4])
    sch.split(outer, [None, 3])
    sch.split(j, [2, 2, 2])
    check(sch, program)


@pytest.mark.parametrize("sizes", SIZES)
def test_split_of_a_symbolic_extent(sizes: dict[str, int]) -> None:
    program = symbolic()
    sch, (i, j, k) = scheduled(program)
    outer, _ = sch.split(i, [None, 4])
    sch.split(j, [2, None])
    sch.split(k, [None, 3])
    assert repr(sch.loop(outer).extent) == "(m + 3) // 4"
    check_sizes(sch, program, sizes)


@pytest.mark.parametrize("sizes", SIZES)
def test_split_by_a_symbolic_factor(sizes: dict[str, int]) -> None:
    program = symbolic()
    sch, (i, _, _) = scheduled(program)
    m = next(p for p in program.params if isinstance(p, Var) and p.name == "m")
    sch.split(i, [m, 2])  # more than enough
    check_sizes(sch, program, sizes)


def test_split_of_a_loop_that_does_not_start_at_zero() -> None:
    program = copy(9)
    loop = program.body
    assert isinstance(loop, For)
    shifted = program.replace(body=loop.replace(start=const(2), extent=const(7)))
    sch = Schedule(shifted)
    (i,) = sch.loops(sch.block("C"))
    sch.split(i, [None, 4])
    assert "i0_0 * 4 + i0_1 + 2) if i0_0 * 4 + i0_1 < 7" in body(sch)
    check(sch, shifted)


def test_split_keeps_annotations() -> None:
    sch, (i,) = scheduled(copy())
    sch.annotate(i, "note", 3)
    outer, inner = sch.split(i, [None, 4])
    assert dict(sch.loop(outer).attrs) == dict(sch.loop(inner).attrs) == {"note": 3}
    check(sch, copy())


def test_split_where_a_condition_is_already() -> None:
    program = conv2d(5, 2, 3)
    sch = Schedule(program)
    loops = sch.loops(sch.block("conv"))
    sch.compute_at(sch.block("pad"), loops[2])
    inner = sch.loops(sch.block("pad"))
    sch.split(inner[-1], [None, 3])
    sch.split(loops[3], [None, 4])
    check(sch, program)


def test_split_refuses() -> None:
    sch, (i, j, _) = scheduled(matmul(5, 7, 6))
    with refused(sch, "a factor of 0 is not positive", "for j1 in"):
        sch.split(j, [None, 0])
    with refused(sch, "a factor of -2 is not positive"):
        sch.split(j, [-2, None])
    with refused(sch, "at most one of them None"):
        sch.split(j, [None, None])
    with refused(sch, "one factor per new loop"):
        sch.split(j, [])
    with refused(sch, "factors of 6 in all do not cover the extent 7", "for j1 in"):
        sch.split(j, [2, 3])
    with refused(sch, "uses i0, which is no size of the program and no loop around it", "for i0 in"):
        sch.split(i, [None, i + 1])
    sch.parallel(i)
    with refused(sch, "loop i0 is parallel: split before", "for i0 in"):
        sch.split(i, [None, 2])


def test_a_loop_that_is_gone_is_no_handle() -> None:
    sch, (i,) = scheduled(copy())
    sch.split(i, [None, 4])
    with refused(sch, "loop i0 is no longer in the program"):
        sch.split(i, [None, 2])
    with refused(sch, "loop stray is no handle that this schedule has returned"):
        sch.split(Var("stray"), [None, 2])


# ---- fuse --------------------------------------------------------------------------------------------------------------
def test_fuse() -> None:
    sch, (i, j, _) = scheduled(matmul(5, 7, 6))
    sch.fuse(i, j)
    assert body(sch) == """
for i0_j1_f in 0..35:
    for k in 0..6:
        block C(i0: spatial 5 = i0_j1_f // 7, j1: spatial 7 = i0_j1_f % 7, k_1: reduce 6 = k):
            init:
                C[i0, j1] = 0:i32
            body:
                C[i0, j1] = C[i0, j1] + A[i0, k_1] * B[k_1, j1]""".strip("\n")
    check(sch, matmul(5, 7, 6))


def test_fuse_of_all_loops_reduction_included() -> None:
    program = matmul(5, 7, 6)
    sch, loops = scheduled(program)
    f = sch.fuse(*loops)
    sch.split(f, [None, 8])
    check(sch, program)


def test_fuse_of_loops_with_conditions_below() -> None:
    program = matmul(5, 7, 6)
    sch, (i, j, k) = scheduled(program)
    i0, i1 = sch.split(i, [None, 2])
    j0, j1 = sch.split(j, [None, 3])
    sch.reorder(i0, j0, i1, j1, k)
    sch.fuse(i0, j0)
    sch.fuse(i1, j1)
    check(sch, program)


def test_fuse_undoes_split() -> None:
    program = copy(8)
    sch, (i,) = scheduled(program)
    sch.fuse(*sch.split(i, [None, 4]))
    assert "block C(i0: spatial 8 = i0_0_i0_1_f):" in body(sch)
    check(sch, program)


@pytest.mark.parametrize("sizes", SIZES)
def test_fuse_of_symbolic_extents(sizes: dict[str, int]) -> None:
    program = symbolic()
    sch, (i, j, _) = scheduled(program)
    f = sch.fuse(i, j)
    sch.split(f, [None, 4])
    check_sizes(sch, program, sizes)


def test_fuse_refuses() -> None:
    sch, (i, j, k) = scheduled(matmul(5, 7, 6))
    with refused(sch, "loop k is not directly inside loop i0", "for k in"):
        sch.fuse(i, k)
    with refused(sch, "loop i0 is not directly inside loop j1"):
        sch.fuse(j, i)
    with refused(sch, "name at least one loop"):
        sch.fuse()
    sch.unroll(k)
    with refused(sch, "loop k is unrolled: fuse before", "for k in"):
        sch.fuse(j, k)


def test_fuse_refuses_an_extent_that_depends() -> None:
    program = copy(6)
    outer = Var("o")
    loop = program.body
    assert isinstance(loop, For)
    sch = Schedule(program.replace(body=For(outer, const(0), const(6), loop.replace(extent=outer + 1))))
    o, i = sch.loops(sch.block("C"))
    with refused(sch, "the extent of loop i0 depends on loop o", "for i0 in"):
        sch.fuse(o, i)


# ---- reorder -----------------------------------------------------------------------------------------------------------
def test_reorder() -> None:
    sch, (i, j, k) = scheduled(matmul(5, 7, 6))
    sch.reorder(k, i)
    assert body(sch) == """
for k in 0..6:
    for j1 in 0..7:
        for i0 in 0..5:
            block C(i0_1: spatial 5 = i0, j1_1: spatial 7 = j1, k_1: reduce 6 = k):
                init:
                    C[i0_1, j1_1] = 0:i32
                body:
                    C[i0_1, j1_1] = C[i0_1, j1_1] + A[i0_1, k_1] * B[k_1, j1_1]""".strip("\n")
    assert sch.loops(sch.block("C")) == [k, j, i]
    check(sch, matmul(5, 7, 6))


def test_reorder_of_split_reductions() -> None:
    program = matmul(5, 7, 6)
    sch, (i, j, k) = scheduled(program)
    k0, k1 = sch.split(k, [None, 4])
    i0, i1 = sch.split(i, [None, 2])
    sch.reorder(k1, i1, j, k0, i0)
    check(sch, program)


def test_reorder_keeps_kinds_and_annotations_with_their_loops() -> None:
    program = matmul(5, 7, 6)
    sch, (i, j, k) = scheduled(program)
    sch.parallel(i)
    sch.annotate(j, "note", 1)
    sch.reorder(j, i, k)
    assert sch.loop(i).kind == "parallel" and dict(sch.loop(j).attrs) == {"note": 1}
    check(sch, program)


def test_reorder_with_two_blocks_below() -> None:
    program = matmul_relu(6, 8, 4)
    sch, (i, j, _) = scheduled(program)
    sch.reverse_compute_at(sch.block("D"), j)
    sch.reorder(j, i)
    check(sch, program)


def test_reorder_of_a_reduction_inside_which_its_input_is_made() -> None:
    program = two_layers()
    sch = Schedule(program)
    i, _, q = sch.loops(sch.block("y"))
    sch.reorder(q, i)
    sch.compute_at(sch.block("act"), q)
    check(sch, program)


def test_reorder_refuses_a_fused_reduction_whose_first_step_would_come_late() -> None:
    sch, (i, j, k) = scheduled(matmul(5, 7, 6))
    f0, f1 = sch.split(sch.fuse(j, k), [None, 4])
    with refused(sch, "the first step of the reduction of block C may no longer come first", "for i0"):
        sch.reorder(f1, i, f0)


def test_reorder_refuses_a_recurrence() -> None:
    x = placeholder((4, 3), "i32", "X")
    zero = compute((3,), lambda i: const(0, i32), name="zero")
    program = create_program("running", [x], [scan(4, [zero], lambda t, s: compute(
        (3,), lambda i: s[i] + x[t, i], name="s"), name="total")])
    sch, (t, i) = scheduled(program, "s")
    check(sch, program)
    sch.reorder(i, t)  # element by element: time still runs forward
    check(sch, program)


def test_reorder_refuses() -> None:
    sch, (i, j, _) = scheduled(matmul_relu(6, 8, 4))
    d, _ = sch.loops(sch.block("D"))
    with refused(sch, "name each loop once"):
        sch.reorder(i, i)
    with refused(sch, "name each loop once"):
        sch.reorder()
    with refused(sch, "is not inside loop"):
        sch.reorder(i, d)
    sch.reverse_compute_at(sch.block("D"), i)
    with refused(sch, "not perfectly nested between i0 and j1"):
        sch.reorder(j, i)


def test_reorder_refuses_an_extent_that_would_lose_its_variable() -> None:
    program = copy(6)
    outer = Var("o")
    loop = program.body
    assert isinstance(loop, For)
    sch = Schedule(program.replace(body=For(outer, const(0), const(6), loop.replace(extent=outer + 1))))
    o, i = sch.loops(sch.block("C"))
    with refused(sch, "the extent of loop i0 depends on loop o, which would come inside it", "for i0 in"):
        sch.reorder(i, o)


# ---- tile --------------------------------------------------------------------------------------------------------------
def test_tile() -> None:
    program = matmul(5, 7, 6)
    sch, (i, j, k) = scheduled(program)
    io, jo, ii, ji = sch.tile(i, j, 2, 4)
    assert sch.loops(sch.block("C")) == [io, jo, ii, ji, k]
    assert [as_int(sch.loop(v).extent) for v in (io, jo, ii, ji)] == [3, 2, 2, 4]
    assert [s.name for s in sch.trace.instructions] == ["block", "loops", "tile", "block", "loops"]
    check(sch, program)


def test_tile_refuses_as_a_whole() -> None:
    sch, (i, j, _) = scheduled(matmul_relu())
    _, e = sch.loops(sch.block("D"))
    with refused(sch, "a factor of 0 is not positive"):
        sch.tile(i, j, 2, 0)  # i has been split when j cannot be
    with refused(sch, "is not inside loop"):
        sch.tile(i, e, 2, 2)
