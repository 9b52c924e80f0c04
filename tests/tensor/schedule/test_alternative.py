"""alternative: two schedules in one program, of which a condition on its sizes chooses."""
from __future__ import annotations

import numpy as np
import pytest

from tests.tensor.schedule.refusals import refused
from tilewright import te
from tilewright.core.dtype import i64
from tilewright.loop.interpret import Interpreter
from tilewright.loop.ir import Le, Program, Span, Var, const
from tilewright.loop.lower.pipeline import lower
from tilewright.loop.verify import verify
from tilewright.tensor.schedule.schedule import Schedule, replay

N = Var("n", i64, Span(0))


def product() -> Program:
    a, w, k = te.placeholder((N, 6), name="A"), te.placeholder((6, 10), name="W"), te.reduce_axis(6, "k")
    c = te.compute((N, 10), lambda i, j: te.sum(a[i, k] * w[k, j], axis=[k]), "C")
    d = te.compute((N, 10), lambda i, j: c[i, j] + 1.0, "D")
    return te.create_program("product", [a, w], [d], weights={"W"}, sizes=[N])


def tiled(program: Program, rows: int) -> Schedule:
    sch = Schedule(program)
    c, d = sch.block("C"), sch.block("D")
    rows_loop = sch.loops(c)[0]
    sch.transform_layout(c, "W", lambda k, j: [j // 4, k, j % 4], pad_value=0)
    outer = sch.split(rows_loop, [None, rows])[0]
    sch.reverse_compute_at(d, outer)
    return sch


def both() -> Schedule:
    program = product()
    few, many = tiled(program, 1), tiled(program, 4)
    (size,) = [p for p in program.params if isinstance(p, Var)]
    few.alternative(Le(const(5), size), many.trace)
    return few


@pytest.mark.parametrize("n", (0, 1, 4, 5, 9))
def test_either_branch_computes_the_program(n: int) -> None:
    sch = both()
    verify(sch.program)
    rng = np.random.default_rng(n)
    a, w = rng.integers(-4, 5, (n, 6)).astype(np.float32), rng.integers(-4, 5, (6, 10)).astype(np.float32)
    packed = np.zeros((3, 6, 4), np.float32)
    Interpreter(sch.prepacks["W"]).run([w, packed])
    out = np.full((n, 10), np.nan, np.float32)
    Interpreter(sch.program).run([a, packed, out, n])
    np.testing.assert_array_equal(out, a @ w + 1)
    flat = np.full((n, 10), np.nan, np.float32)
    lowered = lower(sch.program).programs[0]
    Interpreter(lowered).run([a, packed, flat, n, *[np.empty_like(out) for _ in range(lowered.attr("workspaces", 0))]])
    np.testing.assert_array_equal(flat, out)


def test_replays_and_prints() -> None:
    """The trace holds the other one, whole, and replays to the same text; blocks have names of their own."""
    sch = both()
    again = replay(sch.trace, product())
    assert str(again.trace) == str(sch.trace)
    assert str(again.program) == str(sch.program)
    assert "alternative(5 <= n, {h0 = block('C');" in str(sch.trace)
    text = str(sch.program)
    assert all(f"block {name}(" in text for name in ("C", "C_1", "D", "D_1"))


def test_nothing_follows() -> None:
    sch = both()
    loop = sch.loops(sch.block("C"))[0]
    with refused(sch, "comes last"):
        sch.unroll(loop)
