"""blockize: nests become blocks whose instances are tiles; what is proved about them, and what is refused."""
from __future__ import annotations

import pytest

from tests.tensor.schedule.refusals import body, check, check_sizes, refused
from tests.tensor.schedule.schedule_operators import OPERATORS, conv2d, matmul, matmul_relu
from tilewright.loop.ir import Program, Var
from tilewright.tensor import compute as te
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import blocks, find_block


def tiled(program: Program, m: int = 2, n: int = 4, k: int = 3) -> tuple[Schedule, list[Var]]:
    """A product in tiles, the loops of a tile innermost: they are returned."""
    sch = Schedule(program)
    i, j, r = sch.loops(sch.block("C"))
    (i0, i1), (j0, j1), (k0, k1) = sch.split(i, [None, m]), sch.split(j, [None, n]), sch.split(r, [None, k])
    sch.reorder(i0, j0, k0, i1, j1, k1)
    return sch, [i0, j0, k0, i1, j1, k1]


def test_a_tile_with_its_initialisation() -> None:
    program = matmul(4, 8, 6)
    sch, loops = tiled(program)
    block = sch.blockize(loops[3])
    assert sch.loops(block) == loops[:3]
    check(sch, program)
    tile = find_block(sch.program, block)
    assert [(it.kind, str(it.extent)) for it in tile.iters] == [("spatial", "2"), ("spatial", "2"), ("reduce", "2")]
    assert """                init:
                    for i0_1 in 0..2:
                        for j1_1 in 0..4:
                            C[i0o * 2 + i0_1, j1o * 4 + j1_1] = 0:i32
                body:
""" in body(sch)


def test_primitives_move_tiles() -> None:
    """A stage computed at the tile's loops, operands copied for it, its initialisation apart, loops bound and reordered."""
    program = matmul_relu(4, 8, 4)
    sch, (i0, j0, k0, i1, *_) = tiled(program, 2, 4, 2)
    block = sch.blockize(i1)
    sch.decompose_reduction(block, k0)
    copy = sch.cache_read(block, "A", "local")
    sch.compute_at(copy, k0)
    sch.reverse_compute_at(sch.block("D"), j0)
    sch.reorder(j0, i0)
    sch.parallel(j0)
    check(sch, program)


def test_whole_axes_and_windows() -> None:
    program = conv2d(4, 2, 4, 3, 1, 1)
    sch = Schedule(program)
    block = sch.block("conv")
    n, o, h, w, ic, kh, kw = sch.loops(block)
    sch.reorder(n, o, h, ic, kh, w, kw)
    sch.blockize(w)
    sch.compute_at(sch.block("pad"), h)
    check(sch, program)


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_the_innermost_loop_of_everything(name: str) -> None:
    program = OPERATORS[name]()
    sch = Schedule(program)
    for b in blocks(program):
        sch.blockize(sch.loops(sch.block(b.name))[-1])
    check(sch, program)


def test_symbolic_outside() -> None:
    n = Var("n")
    a = te.placeholder((n, 4), "i32", "A")
    program = te.create_program("f", [n, a], [te.compute((n, 4), lambda i, j: a[i, j] * a[i, j], name="B")])
    sch = Schedule(program)
    i, j = sch.loops(sch.block("B"))
    with refused(sch, "no constant extent"):
        sch.blockize(i)
    sch.blockize(j)
    check_sizes(sch, program, {"n": 5})


def test_refusals() -> None:
    sch, (_, _, _, i1, j1, _) = tiled(matmul(5, 8, 6))
    with refused(sch, "do not fit its domain of 5"):
        sch.blockize(i1)
    sch.blockize(j1)
    with refused(sch, "in several places"):
        sch.cache_write(sch.block("C"), 0, "local")

    sch = Schedule(matmul(4, 4, 4))
    i, j, k = sch.loops(sch.block("C"))
    sch.decompose_reduction(sch.block("C"), k)
    with refused(sch, "does not hold one block in perfectly nested loops"):
        sch.blockize(j)

    sch = Schedule(matmul(4, 4, 4))
    i, j, k = sch.loops(sch.block("C"))
    sch.parallel(j)
    with refused(sch, "is parallel"):
        sch.blockize(i)

    sch = Schedule(matmul(4, 6, 4))
    i, j, k = sch.loops(sch.block("C"))
    j0, j1 = sch.split(j, [2, None])
    sch.reorder(i, j1, k, j0)
    with refused(sch, "do not run each of 0 … n"):  # every third column
        sch.blockize(j0)

    sch = Schedule(matmul(4, 6, 4))
    i, j, k = sch.loops(sch.block("C"))
    sch.reorder(k, i, j)
    f = sch.fuse(i, j)
    with refused(sch, "two variables of the block depend on loop"):
        sch.blockize(f)
