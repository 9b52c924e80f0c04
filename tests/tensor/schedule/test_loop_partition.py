"""loop_partition: pieces of a loop, what is decided in each, and that blocks keep their meaning wherever they go."""
from __future__ import annotations

from tests.tensor.schedule.refusals import body, check, check_sizes, refused
from tests.tensor.schedule.schedule_operators import conv2d, matmul
from tilewright.loop.ir import Program, Span, Var, as_int
from tilewright.tensor import compute as te
from tilewright.tensor.schedule.schedule import Schedule


def pads(n: int = 6) -> Program:
    """A row with a zero on both sides."""
    x = te.placeholder((1, n), "i32", "X")
    return te.create_program("f", [x], [te.compute((1, n + 2), lambda i, j: te.if_then_else(
        (j >= 1) & (j < n + 1), x[i, j - 1], 0), "P")])


def test_borders_are_peeled() -> None:
    sch = Schedule(pads())
    j = sch.loops(sch.block("P"))[1]
    first, middle, last = sch.loop_partition(j, [1, -1])
    assert middle is j and [as_int(sch.loop(v).extent) for v in (first, middle, last)] == [1, 6, 1]
    assert body(sch) == """\
for i0 in 0..1:
    for j1 in 0..1:
        block P_1(i0_1: spatial 1 = i0, j1_1: spatial 8 = j1) if j1_1 < 1:
            P[i0_1, j1_1] = 0:i32
    for j1_2 in 1..+6:
        block P(i0_2: spatial 1 = i0, j1_3: spatial 8 = j1_2) if 1 <= j1_3 and j1_3 < 7:
            P[i0_2, j1_3] = X[i0_2, j1_3 - 1]
    for j1_4 in 7..+1:
        block P_2(i0_3: spatial 1 = i0, j1_5: spatial 8 = j1_4) if 7 <= j1_5:
            P[i0_3, j1_5] = 0:i32"""
    check(sch, pads())


def test_the_remainder_of_a_split() -> None:
    sch = Schedule(matmul(5, 7, 6))
    i, *_ = sch.loops(sch.block("C"))
    outer, _ = sch.split(i, [None, 2])
    sch.loop_partition(outer, [2])
    check(sch, matmul(5, 7, 6))
    assert body(sch).count("< 5") == 1, "the whole tiles ask no more whether they are in range"


def test_the_first_step_of_a_sum() -> None:
    sch = Schedule(matmul(5, 7, 6))
    k = sch.loops(sch.block("C"))[2]
    sch.loop_partition(k, [1])
    check(sch, matmul(5, 7, 6))
    first, rest = body(sch).split("block C(")
    assert "init" in first and "init" not in rest


def test_a_piece_means_its_instances_wherever_it_goes() -> None:
    program = conv2d()
    sch = Schedule(program)
    h = sch.loops(sch.block("pad"))[2]
    sch.loop_partition(h, [1, -1])
    rows = sch.loops(sch.block("conv"))[2]
    with refused(sch, "pad"):
        sch.compute_inline(sch.block("pad"))
    sch.compute_at(sch.block("pad"), rows)  # three rows at a time, but never those of the border
    check(sch, program)


def test_symbolic_sizes() -> None:
    n = Var("n", span=Span(least=4))
    a = te.placeholder((n,), "i32", "A")
    original = te.create_program("f", [a], [te.compute((n,), lambda i: a[i] + 1, name="B")])
    sch = Schedule(original)
    (i,) = sch.loops(sch.block("B"))
    with refused(sch, "n may not be beyond 4"):
        sch.loop_partition(i, [4])
    sch.loop_partition(i, [n // 2])
    for size in (4, 5, 9):
        check_sizes(sch, original, {"n": size})


def test_it_refuses() -> None:
    sch = Schedule(matmul(5, 7, 6))
    i, j, _ = sch.loops(sch.block("C"))
    for points, why in (([], "a point at least"), ([5], "5 may not be beyond 5"),
                        ([3, 2], "2 may not be beyond 3"), ([-6], "-1 may not be beyond 0"),
                        ([j], "uses j1, which is no size")):
        with refused(sch, why, "for i0"):
            sch.loop_partition(i, points)
    _, inner = sch.split(i, [None, 2])
    with refused(sch, "from 0 to 1 are not shown to be a range of a variable of block C", "for i0_1"):
        sch.loop_partition(inner, [1])
    i = sch.loops(sch.block("C"))[0]
    sch.parallel(i)
    with refused(sch, "is parallel: partition before", "for i0_0"):
        sch.loop_partition(i, [1])
