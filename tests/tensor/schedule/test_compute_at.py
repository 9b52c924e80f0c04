"""compute_at: the region that is computed, and what is refused."""
from __future__ import annotations

import pytest

from tests.tensor.schedule.refusals import refused
from tests.tensor.schedule.schedule_operators import (
    batched_matmul,
    conv2d,
    max_pool,
    reshapes,
    same_results,
    softmax,
    two_layers,
)
from tilewright.core.dtype import i32
from tilewright.loop.ir import Const, Program, as_int
from tilewright.tensor.compute import compute, create_program, placeholder
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import find_block, loops_around


def extents(sch: Schedule, name: str) -> list[int | None]:
    return [as_int(f.extent) for f in loops_around(sch.program, find_block(sch.program, sch.block(name)))]


def chain() -> Program:
    a = placeholder((16, 12), "i32", "A")
    b = compute((16, 12), lambda i, j: a[i, j] + Const(1, i32), name="B")
    c = compute((16, 12), lambda i, j: b[i, j] * Const(2, i32), name="C")
    return create_program("chain", [a], [c])


def test_elementwise() -> None:
    sch = Schedule(chain())
    i, _ = sch.loops(sch.block("C"))
    sch.compute_at(sch.block("B"), i)
    assert extents(sch, "B") == [16, 1, 12]
    assert same_results(chain(), sch.program)


@pytest.mark.parametrize("factor", [4, 5])
def test_tiles_that_divide_or_not(factor: int) -> None:
    sch = Schedule(chain())
    i, j = sch.loops(sch.block("C"))
    io, _, _, _ = sch.tile(i, j, factor, factor)
    sch.compute_at(sch.block("B"), io)
    assert extents(sch, "B")[1:] == [factor, 12]
    assert same_results(chain(), sch.program)
    assert ("< 16" in str(sch.program)) == (16 % factor != 0)


@pytest.mark.parametrize("depth", range(7))
def test_padding_at_every_loop_of_a_convolution(depth: int) -> None:
    p = conv2d(5, 2, 3, 3, 2, 1)
    sch = Schedule(p)
    at = sch.loops(sch.block("conv"))[depth]
    sch.compute_at(sch.block("pad"), at)
    assert same_results(p, sch.program)
    if depth == 2:  # below one row of outputs: three rows of inputs
        assert extents(sch, "pad")[3:] == [1, 2, 3, 7]  # 3 windows of 3, stride 2, in a row of 8


def test_reductions_run_whole() -> None:
    p = two_layers()
    sch = Schedule(p)
    i, _, _ = sch.loops(sch.block("y"))
    sch.compute_at(sch.block("hidden"), sch.loops(sch.block("act"))[0])
    assert extents(sch, "hidden") == [5, 1, 6, 4]
    sch.compute_at(sch.block("act"), i)
    assert same_results(p, sch.program)


def test_several_consumers_below_the_loop() -> None:
    p = softmax()
    sch = Schedule(p)
    i, _ = sch.loops(sch.block("y"))
    sch.compute_at(sch.block("rowsum"), i)
    sch.compute_at(sch.block("e"), i)
    sch.compute_at(sch.block("rowmax"), i)
    assert extents(sch, "e") == [4, 1, 6]
    assert same_results(p, sch.program)


def test_through_divisions() -> None:
    """flat[f] reads transposed[f // 15, f // 5 % 3, f % 5]: one step needs one element."""
    p = reshapes()
    sch = Schedule(p)
    f, = sch.loops(sch.block("flat"))
    sch.compute_at(sch.block("transposed"), f)
    assert extents(sch, "transposed") == [60, 1, 1, 1]
    assert same_results(p, sch.program)


def test_initialisation_and_update_each_move() -> None:
    p = batched_matmul()
    sch = Schedule(p)
    c = sch.block("C")
    init = sch.decompose_reduction(c, sch.loops(c)[0])
    sch.compute_at(init, sch.loops(c)[1])
    assert extents(sch, init.name) == [2, 3, 1, 1, 5]
    assert same_results(p, sch.program)


def test_refused() -> None:
    sch = Schedule(chain())
    b, c = sch.block("B"), sch.block("C")
    i, j = sch.loops(b)
    with refused(sch, "no block reads what it computes", "block C"):
        sch.compute_at(c, i)
    with refused(sch, "no consumer of it is under loop", "block B"):
        sch.compute_at(b, j)


def test_refused_consumer_outside_the_loop() -> None:
    sch = Schedule(softmax())
    with refused(sch, "only after block rowsum reads it", "block e"):
        sch.compute_at(sch.block("e"), sch.loops(sch.block("y"))[0])


def test_refused_output_that_is_read() -> None:
    a = placeholder((6,), "i32", "A")
    b = compute((6,), lambda i: a[i] + Const(1, i32), name="B")
    c = compute((3,), lambda i: b[i] * Const(2, i32), name="C")
    sch = Schedule(create_program("two_outputs", [a], [b, c]))
    with refused(sch, "B is an output of the program", "block B"):
        sch.compute_at(sch.block("B"), sch.loops(sch.block("C"))[0])


def test_refused_init_inside_its_reduction() -> None:
    sch = Schedule(batched_matmul())
    c = sch.block("C")
    loops = sch.loops(c)
    init = sch.decompose_reduction(c, loops[0])
    with refused(sch, "would initialise C again", "block C_init"):
        sch.compute_at(init, loops[3])


def test_windows_of_a_pool() -> None:
    p = max_pool()
    for depth in range(6):
        sch = Schedule(p)
        sch.compute_at(sch.block("shift"), sch.loops(sch.block("pool"))[depth])
        assert same_results(p, sch.program)
