"""reschedule: affine orders of a nest; their bounds, the dependences that they must keep, and what is refused."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.tensor.schedule.refusals import body, check, check_sizes, refused
from tests.tensor.schedule.schedule_operators import matmul
from tilewright.core.node import transform
from tilewright.loop.interpret import run
from tilewright.loop.ir import Block, Var
from tilewright.tensor import compute as te
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.script import i32, kernel

MAPS: dict[str, Callable[..., Any]] = {
    "wavefront": lambda i, j: (i + j, j), "steep": lambda i, j: (i + 2 * j, j), "back": lambda i, j: (i - j, j),
    "turned": lambda i, j: (j, -i), "shifted": lambda i, j: (i + 3, j - 2), "both": lambda i, j: (2 * i + j, i + j),
    "fused": lambda i, j: (i * 7 + j,), "fused the other way": lambda i, j: (j * 5 + i,),
    "strips": lambda i, j: (i // 2, j, i % 2),
    "tiles": lambda i, j: (i // 2, j // 3, i % 2, j % 3), "numbered tiles": lambda i, j: (i // 2 * 3 + j // 3, i % 2, j % 3),
    "rows of tiles": lambda i, j: (i // 2, j // 3, i % 2 * 3 + j % 3), "skewed tiles": lambda i, j: (i // 2 + j, j, i % 2),
    "digits": lambda i, j: (j, i // 4, i // 2 % 2, i % 2)}


@pytest.mark.parametrize("name", MAPS)
def test_orders_of_independent_steps(name: str) -> None:
    sch = Schedule(matmul(5, 7, 6))
    i, j, _ = sch.loops(sch.block("C"))
    made = sch.reschedule([i, j], MAPS[name])
    assert sch.loops(sch.block("C"))[:-1] == made
    check(sch, matmul(5, 7, 6))
    # without its initialisation, what a step adds is seen as often as the step runs
    program = transform(sch.program, lambda n: n.replace(init=None) if isinstance(n, Block) else n)
    out = np.zeros((5, 7), np.int32)
    run(program, [np.ones((5, 6), np.int32), np.ones((6, 7), np.int32), out])
    assert (out == 6).all()


def test_it_composes() -> None:
    sch = Schedule(matmul(5, 7, 6))
    i, j, _ = sch.loops(sch.block("C"))
    d, j = sch.reschedule([i, j], lambda i, j: (i + j, j))
    d, e = sch.reschedule([d, j], lambda d, j: (d, d - j))
    assert "max" in body(sch)
    check(sch, matmul(5, 7, 6))
    sch.reschedule([d, e], lambda d, e: (e, d - e))
    assert "max" not in body(sch) and "min" not in body(sch)
    check(sch, matmul(5, 7, 6))


def test_symbolic_sizes() -> None:
    m, n = Var("m"), Var("n")
    a = te.placeholder((m, n), "i32", "A")
    original = te.create_program("f", [a], [te.compute((m, n), lambda i, j: a[i, j] * 3, name="B")])
    sch = Schedule(original)
    sch.reschedule(sch.loops(sch.block("B")), lambda i, j: (i + j, j))
    for size in ({"m": 4, "n": 6}, {"m": 1, "n": 3}, {"m": 5, "n": 1}):
        check_sizes(sch, original, size)


@kernel
def relaxed(x: i32[8, 9], y: i32[8, 9]):  # type: ignore[no-untyped-def,valid-type]
    """Each element from its neighbours above and to the left, which were made before it."""
    for i in range(8):
        for j in range(9):
            y[i, j] = x[i, j] + (y[i - 1, j] if i > 0 else 0) * 2 + (y[i, j - 1] if j > 0 else 0)


def test_wavefronts_are_parallel() -> None:
    sch = relaxed.schedule()
    i, j = sch.loops(sch.block("y"))
    for loop in (i, j):
        with refused(sch, "may touch the same elements of y (block y): block y writes it when"):
            sch.parallel(loop)
    _, wave = sch.reschedule([i, j], lambda i, j: (i + j, j))
    sch.parallel(wave)
    check(sch, relaxed.program)


def test_dependent_steps_keep_their_order() -> None:
    sch = relaxed.schedule()
    loops = sch.loops(sch.block("y"))
    for order in (lambda i, j: (i, -j), lambda i, j: (-i, j), lambda i, j: (i - j, j), lambda i, j: (j - i, i),
                  lambda i, j: (-i - j, j)):
        with refused(sch, "of y before block y"):
            sch.reschedule(loops, order)
    sch.reschedule(loops, lambda i, j: (2 * i + j, i))
    check(sch, relaxed.program)
    with refused(sch, "no longer in the program"):
        sch.reschedule(loops, lambda i, j: (i, -j))


def test_the_first_step_of_a_sum_stays_first() -> None:
    sch = Schedule(matmul(5, 7, 6))
    _, j, k = sch.loops(sch.block("C"))
    with refused(sch, "would no longer come first: j1 = 0, k = 0 before j1 = 0, k = 1"):
        sch.reschedule([j, k], lambda j, k: (j, -k))
    sch.reschedule([j, k], lambda j, k: (j + k, k))
    check(sch, matmul(5, 7, 6))
    sch = Schedule(matmul(5, 7, 6))
    c = sch.block("C")
    sch.decompose_reduction(c, sch.loops(c)[2])
    sch.reschedule(sch.loops(c)[2:], lambda k: (-k,))
    check(sch, matmul(5, 7, 6))


def test_it_refuses_maps_that_are_none() -> None:
    sch = Schedule(matmul(6, 8, 6))
    i, j, k = loops = sch.loops(sch.block("C"))
    m = Var("m")
    for order, why in ((lambda i, j: (i,), "does not tell steps of loop j1 apart"),
                       (lambda i, j: (2 * i, j), "not shown to be one-to-one"),
                       (lambda i, j: (i + j, i + j), "not shown to be one-to-one"),
                       (lambda i, j: (i * 7 + j,), "would need the place value 8, not 7"),
                       (lambda i, j: (i * j, j), "is no variable of the nest"),
                       (lambda i, j: (i + m, j), "uses m, which is no size"),
                       (lambda i, j: (i // 2, i // 3, j), "neither divides the other"),
                       (lambda i: (i,), "does not take 2 indices")):
        with refused(sch, why):
            sch.reschedule([i, j], order)
    with refused(sch, "is not directly inside"):
        sch.reschedule([i, k], lambda i, k: (k, i))
    sch.parallel(i)
    with refused(sch, "is parallel: reschedule before"):
        sch.reschedule(loops[:2], lambda i, j: (j, i))


def test_blocks_of_one_step_stay_together() -> None:
    a = te.placeholder((6, 8), "i32", "A")
    b = te.compute((6, 8), lambda i, j: a[i, j] + 1, name="B")
    original = te.create_program("f", [a], [te.compute((6, 7), lambda i, j: b[i, j] + b[i, j + 1], name="C")])
    sch = Schedule(original)
    i, j = sch.loops(sch.block("C"))
    sch.compute_at(sch.block("B"), j)  # two elements in each step, one of which the next step makes again
    sch.reschedule([i, j], lambda i, j: (j - i, i))
    check(sch, original)
