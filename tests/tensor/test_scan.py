"""Recurrences over time: against NumPy, under schedules, and wrong definitions."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.core.errors import UserError
from tilewright.loop.interpret import run
from tilewright.loop.ir import For, Program, Var
from tilewright.loop.parser import parse_program
from tilewright.loop.printer import print_program
from tilewright.loop.verify import verify
from tilewright.tensor import compute as te
from tilewright.tensor.compute import compute, create_program, placeholder, reduce_axis
from tilewright.tensor.scan import scan
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import ScheduleError, iterate

RNG = np.random.default_rng(5)


def ints(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.integers(-3, 4, shape).astype(np.int32)


def recurrent() -> Program:
    """Two states, a product with the state before in every step, and a stage that time has nothing to do with."""
    x, w = placeholder((5, 3), "i32", "X"), placeholder((3, 3), "i32", "W")
    h0, c0 = placeholder((3,), "i32", "h0"), placeholder((3,), "i32", "c0")
    turned = compute((3, 3), lambda i, j: w[j, i], name="turned")

    def step(t: Any, h: Any, c: Any) -> Any:
        k = reduce_axis(3, "k")
        gate = compute((3,), lambda i: te.sum(h[k] * turned[k, i], axis=[k]), name="gate")
        c1 = compute((3,), lambda i: c[i] + gate[i], name="c")
        return compute((3,), lambda i: c1[i] - x[t, i], name="h"), c1

    hs, cs = scan(5, [h0, c0], step)
    return create_program("recurrent", [x, w, h0, c0], [hs, cs])


def expected(x: Any, w: Any, h: Any, c: Any) -> tuple[Any, Any]:
    hs, cs = [], []
    for xt in x:
        c = c + h @ w.T
        h = c - xt
        hs.append(h)
        cs.append(c)
    return np.array(hs), np.array(cs)


def check(program: Program) -> None:
    given = ints(5, 3), ints(3, 3), ints(3), ints(3)
    got = [np.zeros((5, 3), np.int32), np.zeros((5, 3), np.int32)]
    run(program, [*given, *got])
    for a, b in zip(got, expected(*given), strict=True):
        assert (a == b).all()


def test_two_states_and_a_reduction_in_the_step() -> None:
    program = recurrent()
    assert verify(program) == []
    assert print_program(parse_program(print_program(program))) == print_program(program)
    check(program)


def test_what_does_not_depend_on_time_is_outside_of_the_loop() -> None:
    program = recurrent()
    times = [s for s in iterate(program.body) if isinstance(s, For) and s.var.name == "t"]
    assert len(times) == 1
    assert "turned" not in [getattr(s, "name", "") for s in iterate(times[0])]


def test_running_sum_with_a_symbolic_number_of_steps() -> None:
    n = Var("n")
    x, zero = placeholder((n, 2), "i32", "X"), placeholder((2,), "i32", "zero")
    s = scan(n, [zero], lambda t, s: compute((2,), lambda i: s[i] + x[t, i], name="s"), name="S")
    program = create_program("cumsum", [x, zero], [s])
    v, got = ints(7, 2), np.zeros((7, 2), np.int32)
    run(program, {"X": v, "zero": np.zeros(2, np.int32), "S": got})
    assert (got == v.cumsum(0)).all()


def test_states_that_are_passed_on_or_changed_places() -> None:
    a0, b0 = placeholder((2,), "i32", "a0"), placeholder((2,), "i32", "b0")
    a, b = scan(4, [a0, b0], lambda t, a, b: (b, a))
    u, v = ints(2), ints(2)
    got = [np.zeros((4, 2), np.int32), np.zeros((4, 2), np.int32)]
    run(create_program("swap", [a0, b0], [a, b]), [u, v, *got])
    assert (got[0] == [v, u, v, u]).all() and (got[1] == [u, v, u, v]).all()


def test_a_scan_in_a_stage_after_it_and_in_a_step() -> None:
    x, zero = placeholder((3, 4), "i32", "X"), placeholder((), "i32", "zero")

    def row(t: Any, total: Any) -> Any:
        inner = scan(4, [total], lambda u, s: compute((), lambda: s[()] + x[t, u], name="add"), name="inner")
        return compute((), lambda: inner[3], name="row")

    s = scan(3, [zero], row, name="S")
    y = compute((3,), lambda i: s[i] * 2, name="Y")
    v, got = ints(3, 4), np.zeros(3, np.int32)
    program = create_program("nested", [x, zero], [y])
    assert verify(program) == []
    run(program, [v, np.zeros((), np.int32), got])
    assert (got == 2 * v.sum(1).cumsum()).all()


def test_schedules_within_a_step_compute_the_same() -> None:
    sch = Schedule(recurrent())
    _, i, k = sch.loops(sch.block("gate"))
    sch.reorder(k, i)
    sch.vectorize(i)
    c = sch.loops(sch.block("c"))[1]
    sch.split(c, [None, 2])
    check(sch.program)


def test_time_can_be_split_but_not_run_in_another_order() -> None:
    x, zero = placeholder((6, 4), "i32", "X"), placeholder((4,), "i32", "zero")
    s = scan(6, [zero], lambda t, s: compute((4,), lambda i: s[i] * 3 + x[t, i], name="s"), name="S")
    program = create_program("horner", [x, zero], [s])
    sch = Schedule(program)
    t, i = sch.loops(sch.block("s"))
    for wrong in (sch.parallel, sch.vectorize):
        with pytest.raises(ScheduleError):
            wrong(t)
    sch.reorder(i, t)
    t0, t1 = sch.split(t, [None, 4])
    with pytest.raises(ScheduleError, match="other instances"):
        sch.reorder(t1, t0)
    sch.parallel(i)
    v, got = ints(6, 4), np.zeros((6, 4), np.int32)
    run(sch.program, [v, np.zeros(4, np.int32), got])
    h = np.zeros(4, np.int32)
    for k in range(6):
        h = h * 3 + v[k]
        assert (got[k] == h).all()


def test_wrong_states() -> None:
    a = placeholder((2,), "i32", "a")
    for step, why in ((lambda t, s: (s, s), "2 tensors for 1 states"),
                      (lambda t, s: compute((3,), lambda i: s[0], name="s"), "i32\\[2\\]"),
                      (lambda t, s: compute((2,), lambda i: s[i].cast("i64"), name="s"), "i64")):
        with pytest.raises(UserError, match=why):
            scan(3, [a], step)
    with pytest.raises(UserError, match="0 states"):
        scan(3, [], lambda t: ())
