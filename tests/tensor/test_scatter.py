"""Scatter and programs that no rule fits: interpreted and compiled results beside NumPy's."""
from __future__ import annotations

import numpy as np
import pytest

from tilewright.core.dtype import i64
from tilewright.loop.interpret import run
from tilewright.loop.ir import Program
from tilewright.loop.verify import verify
from tilewright.target.presets import get_target
from tilewright.tensor.compute import compute, create_program, placeholder, reduce_axis
from tilewright.tensor.compute import sum as sum_over
from tilewright.tensor.rules import dispatch
from tilewright.tensor.scatter import scatter
from tilewright.tensor.schedule.state import ScheduleError, blocks


def added() -> Program:
    x, at, u = placeholder((5,), "f32", "x"), placeholder((4,), "i64", "at"), placeholder((4,), "f32", "u")
    y = scatter(x, (4,), lambda j: ((at[j].cast(i64),), u[j]), lambda old, new: old + new, [at, u], "y")
    return create_program("added", [x, at, u], [y])


def test_updates_that_meet_are_all_made() -> None:
    x, at, u = np.arange(5, dtype=np.float32), np.array([1, 1, 4, 1]), np.float32([10, 20, 30, 40])
    y = np.zeros(5, np.float32)
    run(added(), [x, at, u, y])
    want = x.copy()
    np.add.at(want, at, u)
    np.testing.assert_array_equal(y, want)


def test_updates_stay_in_order() -> None:
    sch = dispatch.schedule_program(added(), get_target("x86-64-v4"))
    assert not sch.fallback and not sch.trace.instructions
    assert [b.name for b in blocks(sch.program)] == ["y", "y_update"]
    verify(sch.program)


def test_a_program_that_a_rule_refuses_keeps_its_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    x, r = placeholder((8, 32), "f32", "x"), reduce_axis(32)
    p = create_program("rows", [x], [compute((8,), lambda i: sum_over(x[i, r], axis=[r]), name="y")])

    def refuse(sch: object, target: object) -> None:
        raise ScheduleError("split", "not here", p)
    target = get_target("x86-64-v4")
    assert not dispatch.schedule_program(p, target).fallback
    monkeypatch.setattr(dispatch, "schedule_rows", refuse)
    sch = dispatch.schedule_program(p, target)
    assert "not here" in sch.fallback and sch.program == p
