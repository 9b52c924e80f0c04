"""Boxes that blocks read and write, and who depends on whom."""
from __future__ import annotations

from tests.tensor.schedule.schedule_operators import conv2d, matmul_relu, reshapes
from tilewright.core.dtype import i32, i64
from tilewright.loop.ir import (
    TRUE,
    ZERO,
    Block,
    Buffer,
    Const,
    For,
    IterVar,
    Load,
    Program,
    Store,
    Var,
    as_int,
    const,
    expr,
)
from tilewright.tensor import regions
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import find_block, loops_around
from tilewright.tensor.span import Algebra


def box_under(program: Program, block: str, depth: int, buffer: str,
              written: bool = False) -> tuple[list[str], list[int | None], bool]:
    """Starts (as text), extents and exactness of a block's box under its first `depth` loops."""
    b = next(x for x in regions.blocks(program) if x.name == block)
    around = loops_around(program, b)
    found = regions.block_boxes(regions.accesses(b)[written], b, around[depth:], Algebra(around))
    box = next(v for k, v in found.items() if k.name == buffer)
    algebra = Algebra(around[:depth])
    return [str(algebra.simplify(s)) for s in box.start], [as_int(algebra.simplify(e)) for e in box.extent], box.exact


def test_window_reads() -> None:
    p = conv2d(5, 2, 3, 3, 2, 1)
    _, extent, _ = box_under(p, "conv", 4, "pad")
    assert extent == [1, 2, 3, 3]
    start, extent, _ = box_under(p, "conv", 2, "pad")
    assert extent == [1, 2, 7, 7] and start[2] == "0"


def test_written_boxes_are_exact_and_cut_overshoot() -> None:
    sch = Schedule(matmul_relu(6, 8, 4))
    _i, j = sch.loops(sch.block("D"))
    sch.split(j, [None, 3])
    _, extent, exact = box_under(sch.program, "D", 2, "D", written=True)
    assert extent == [1, 3] and exact


def test_fused_loops() -> None:
    """Aligned parts of a fused loop are boxes; others are hulls."""
    sch = Schedule(matmul_relu(6, 8, 4))
    f = sch.fuse(*sch.loops(sch.block("D")))
    _fo, _fi = sch.split(f, [None, 4])
    _, extent, exact = box_under(sch.program, "D", 1, "D", written=True)
    assert extent == [1, 4] and exact
    sch = Schedule(matmul_relu(6, 9, 4))
    f = sch.fuse(*sch.loops(sch.block("D")))
    sch.split(f, [None, 4])
    _, extent, exact = box_under(sch.program, "D", 1, "D", written=True)
    assert extent == [2, 9] and not exact


def test_data_dependent_index_takes_the_dimension() -> None:
    a, at, c = (Buffer(n, t, (expr(7),)) for n, t in (("A", i32), ("at", i64), ("C", i32)))
    v, i = Var("v"), Var("i")
    b = Block("gather", (IterVar(v, expr(7)),), (i,), TRUE, Store(c, (v,), Load(a, (at[v],))))
    p = Program("gather", (a, at, c), For(i, ZERO, expr(7), b))
    start, extent, exact = box_under(p, "gather", 1, "A")
    assert start == ["0"] and extent == [7] and not exact


def test_dependences() -> None:
    p = matmul_relu()
    c, d = regions.blocks(p)
    assert regions.consumers(p, c) == [d] and regions.producers(p, d) == [c]
    assert not regions.consumers(p, d) and not regions.producers(p, c)
    assert [x.name for x in regions.inputs(c)] == ["A", "B"] and [x.name for x in regions.outputs(c)] == ["C"]


def test_union_contains_disjoint() -> None:
    buffer = Buffer("A", i32, (expr(10),))
    algebra = Algebra([])
    a = regions.Box(buffer, (const(1),), (const(3),), True)
    b = regions.Box(buffer, (const(5),), (const(2),), True)
    hull = regions.union(a, b, algebra)
    assert (as_int(hull.start[0]), as_int(hull.extent[0]), hull.exact) == (1, 6, False)
    assert regions.contains(hull, a, algebra) and not regions.contains(a, hull, algebra)
    assert regions.disjoint(a, b, algebra) and not regions.disjoint(a, hull, algebra)
    over = regions.Box(buffer, (const(-1),), (const(12),), True)
    full = regions.Box(buffer, (ZERO,), (const(10),), True)
    assert regions.contains(full, over, algebra) and not regions.contains(full, over, algebra, clip=False)


def test_exact_union_needs_no_gap() -> None:
    """Reads of A[i] and A[i + 1]: their hull is known, its exactness not claimed."""
    a, c = Buffer("A", i32, (expr(8),)), Buffer("C", i32, (expr(7),))
    v, i = Var("v"), Var("i")
    b = Block("d", (IterVar(v, expr(7)),), (i,), TRUE, Store(c, (v,), a[v] + a[v + 1] + Const(0, i32)))
    p = Program("d", (a, c), For(i, ZERO, expr(7), b))
    start, extent, exact = box_under(p, "d", 1, "A")
    assert start == ["i"] and extent == [2] and not exact


def test_reshape_reads() -> None:
    p = reshapes()
    assert find_block(p, Schedule(p).block("y")).name == "y"
    _start, extent, exact = box_under(p, "y", 1, "flat")
    assert extent == [10] and exact
