"""bind, storage_align: what is legal, what is refused, and that bound programs mean what they meant."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.core.errors import UserError
from tilewright.core.node import walk
from tilewright.loop.interpret import run
from tilewright.loop.ir import Program, Store
from tilewright.loop.lower.device_pipeline import device_kernels, lower_for_device
from tilewright.target.presets import get_target
from tilewright.tensor import compute as te
from tilewright.tensor.schedule.schedule import Schedule, replay
from tilewright.tensor.schedule.state import blocks
from tilewright.tensor.script import i32, i64, kernel


def scaled() -> Program:
    a = te.placeholder((8, 16), name="A")
    return te.create_program("scaled", [a], [te.compute((8, 16), lambda i, j: a[i, j] * 2.0, name="B")])


def sums() -> Program:
    a, k = te.placeholder((8, 16), name="A"), te.reduce_axis(16, "k")
    return te.create_program("sums", [a], [te.compute((8,), lambda i: te.sum(a[i, k], axis=[k]), name="B")])


def bound() -> Schedule:
    sch = Schedule(scaled())
    i, j = sch.loops(sch.block("B"))
    sch.bind(i, "blockIdx.x")
    sch.bind(j, "threadIdx.x")
    return sch


def test_a_bound_program_means_the_same() -> None:
    a, b = np.arange(128, dtype=np.float32).reshape(8, 16), np.zeros((8, 16), np.float32)
    sch = bound()
    run(sch.program, [a, b], order="random", seed=1)
    np.testing.assert_array_equal(b, 2 * a)
    assert [f.kind for f in map(sch.loop, sch.loops(sch.block("B")))] == ["blockIdx.x", "threadIdx.x"]
    assert str(replay(sch.trace, scaled()).program) == str(sch.program)


def refused(sch: Schedule, name: str, *args: Any) -> str:
    with pytest.raises(UserError, match="schedule-illegal") as error:
        sch.apply(name, *args)
    return str(error.value)


def test_bind_refuses() -> None:
    sch = Schedule(scaled())
    i, j = sch.loops(sch.block("B"))
    assert "no thread axis" in refused(sch, "bind", i, "threadIdx.w")
    assert "is around them" in refused(sch, "bind", j, "blockIdx.x")
    sch.bind(i, "blockIdx.x")
    assert "is blockIdx.x already" in refused(sch, "bind", i, "blockIdx.y")
    assert "bound to blockIdx.x already" in refused(sch, "bind", j, "blockIdx.x")

    sch = Schedule(scaled())
    i, j = sch.loops(sch.block("B"))
    sch.unroll(i)
    assert "inside the unrolled loop" in refused(sch, "bind", j, "threadIdx.x")

    sch = Schedule(scaled())
    i, j = sch.loops(sch.block("B"))
    sch.parallel(j)
    assert "inside it is parallel" in refused(sch, "bind", i, "threadIdx.x")


def test_iterations_that_depend_on_each_other_are_no_threads() -> None:
    for axis in ("threadIdx.x", "vthread"):
        sch = Schedule(sums())
        assert "reduces over loop k" in refused(sch, "bind", sch.loops(sch.block("B"))[1], axis)


def test_edits_keep_the_promise() -> None:
    """A row's sum is read by all threads of the row: it cannot move into one of them."""
    a, k = te.placeholder((8, 16), name="A"), te.reduce_axis(16, "k")
    s = te.compute((8,), lambda i: te.sum(a[i, k], axis=[k]), name="S")
    sch = Schedule(te.create_program("f", [a], [te.compute((8, 16), lambda i, j: a[i, j] / s[i], name="B")]))
    i, j = sch.loops(sch.block("B"))
    sch.bind(j, "threadIdx.x")
    assert "same elements of S" in refused(sch, "compute_at", sch.block("S"), j)
    sch.compute_at(sch.block("S"), i)


def test_storage_align_refuses() -> None:
    sch = Schedule(scaled())
    copy = sch.cache_read(sch.block("B"), "A", "shared")
    assert "is a parameter" in refused(sch, "storage_align", sch.block("B"), 0, 0, 32, 1)
    assert "no output 1" in refused(sch, "storage_align", copy, 1, 0, 32, 1)
    assert "stays dense" in refused(sch, "storage_align", copy, 0, 1, 32, 1)
    assert "modulo 32" in refused(sch, "storage_align", copy, 0, 0, 32, 32)
    sch.storage_align(copy, 0, 0, 32, 1)
    assert sch.program.attr("storage_align") == (("A_shared", 0, 32, 1),)


# ---- what all threads load together --------------------------------------------------------------------------------------
def test_a_tile_is_loaded_by_all_threads() -> None:
    sch = Schedule(scaled())
    b = sch.block("B")
    i, _ = sch.loops(b)
    i0, _ = sch.split(i, [None, 4])
    copy = sch.cache_read(b, "A", "shared")
    sch.compute_at(copy, i0)
    sch.bind(i0, "blockIdx.x")
    made = sch.cooperative_fetch(copy, [("threadIdx.y", 2), ("threadIdx.x", 4)], 4)
    assert [(sch.loop(v).kind, str(sch.loop(v).extent)) for v in made] == [
        ("threadIdx.y", "2"), ("threadIdx.x", "4"), ("serial", "2"), ("vectorized", "4")]
    assert [k.name for k in sch.trace.instructions][-1] == "cooperative_fetch"
    a, out = np.arange(128, dtype=np.float32).reshape(8, 16), np.zeros((8, 16), np.float32)
    run(sch.program, [a, out], order="random", seed=1)
    np.testing.assert_array_equal(out, 2 * a)
    assert str(replay(sch.trace, scaled()).program) == str(sch.program)
    (kernel,) = device_kernels(lower_for_device(sch.program, get_target("opencl")))
    assert any(isinstance(n, Store) and n.value.dtype.lanes == 4 for n in walk(kernel))


def test_cooperative_fetch_refuses() -> None:
    sch = Schedule(scaled())
    copy = sch.cache_read(sch.block("B"), "A", "shared")
    assert "no whole number of vectors of 3" in refused(sch, "cooperative_fetch", copy, [("threadIdx.x", 4)], 3)
    assert "no thread axis" in refused(sch, "cooperative_fetch", copy, [("threadIdx.w", 4)], 4)
    assert "no threads to share them out to" in refused(sch, "cooperative_fetch", copy, [])
    sch.bind(sch.loops(copy)[1], "threadIdx.x")
    assert "shares its loops" in refused(sch, "cooperative_fetch", copy, [("threadIdx.x", 4)])


# ---- what nobody can prove -----------------------------------------------------------------------------------------------
@kernel
def scattered(x: i32[8, 4], where: i64[8], y: i32[8, 4]):  # type: ignore[valid-type]
    for i in range(8):
        for j in range(4):
            y[unchecked(where[i]), j] = x[i, j]  # type: ignore[name-defined]  # noqa: F821


def test_unsafe_twins_say_so() -> None:
    """Rows go where data says; that the places differ is known to the caller alone."""
    program = scattered.program
    name = blocks(program)[0].name
    sch = Schedule(program)
    i, j = sch.loops(sch.block(name))
    assert "reduces over loop i" in refused(sch, "parallel", i)
    sch.unsafe_parallel(i)
    assert "unsafe_parallel(" in str(sch.trace) and "parallel {unsafe=True}" in str(sch.program)
    sch.split(j, [None, 2])  # later edits do not ask again
    assert str(replay(sch.trace, program).program) == str(sch.program)
    x, where, y = np.arange(32, dtype=np.int32).reshape(8, 4), np.array([3, 1, 0, 7, 6, 2, 5, 4]), np.zeros((8, 4), np.int32)
    run(sch.program, [x, where, y], order="random", seed=1)
    np.testing.assert_array_equal(y[where], x)

    sch = Schedule(program)
    i, j = sch.loops(sch.block(name))
    assert "no thread axis" in refused(sch, "unsafe_bind", i, "threadIdx.w")
    sch.unsafe_bind(i, "threadIdx.x")
    assert sch.loop(i).kind == "threadIdx.x"


def test_unsafe_twins_are_for_what_cannot_be_proved() -> None:
    sch = Schedule(scaled())
    i, j = sch.loops(sch.block("B"))
    assert "are proved to be independent" in refused(sch, "unsafe_parallel", i)
    assert "are proved to be independent" in refused(sch, "unsafe_bind", j, "threadIdx.x")
