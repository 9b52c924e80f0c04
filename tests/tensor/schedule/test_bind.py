"""bind, storage_align: what is legal, what is refused, and that bound programs mean what they meant."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.core.errors import UserError
from tilewright.loop.interpret import run
from tilewright.loop.ir import Program
from tilewright.tensor import compute as te
from tilewright.tensor.schedule.schedule import Schedule, replay


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
