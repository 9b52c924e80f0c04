"""What the tests of schedule primitives share: a refused primitive raises, shows the program, and changes nothing."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from tests.tensor.schedule.schedule_operators import arguments, results
from tilewright.core.node import alpha_equal
from tilewright.loop.interpret import Interpreter
from tilewright.loop.ir import Buffer, Program, Var
from tilewright.loop.printer import print_stmt
from tilewright.loop.verify import verify
from tilewright.tensor.schedule.schedule import Schedule, replay
from tilewright.tensor.schedule.state import ScheduleError
from tilewright.tensor.schedule.trace import Instruction


@contextmanager
def refused(sch: Schedule, why: str, mark: str | None = None) -> Iterator[None]:
    """The block raises a ScheduleError with `why` in it that shows the program, with a line that holds `mark` underlined;
    program and trace stay."""
    program, steps, prepacks = sch.program, applied(sch), dict(sch.prepacks)
    with pytest.raises(ScheduleError) as caught:
        yield
    error = caught.value
    assert error.code == "schedule-illegal"
    assert why in error.message, error.message
    assert f"program {program.name}(" in error.where
    if mark is not None:
        lines = error.where.split("\n")
        under = [k for k, line in enumerate(lines) if line.strip() and not line.strip("^ ")]
        assert under, f"nothing is underlined in\n{error.where}"
        assert any(mark in lines[k - 1] for k in under), f"{mark} is not in {[lines[k - 1] for k in under]}"
    assert sch.program is program
    assert applied(sch) == steps
    assert sch.prepacks == prepacks


def applied(sch: Schedule) -> list[Instruction]:
    """What the trace has recorded, looks aside."""
    return [i for i in sch.trace.instructions if i.name not in ("block", "loops")]


def body(sch: Schedule) -> str:
    """The text of the program's body."""
    return print_stmt(sch.program.body).strip("\n")


def check(sch: Schedule, original: Program) -> None:
    """The scheduled program is well formed, computes what the original does (in any order of parallel iterations), and its
    trace gives it again."""
    assert verify(sch.program) == []
    given = arguments(original)
    expected = results(original, given)
    for order in ("forward", "reverse"):
        got = results(sch.program, given, order)
        assert all(np.array_equal(x, y) for x, y in zip(got, expected, strict=True)), f"{order}\n{sch.program}"
    assert alpha_equal(replay(sch.trace, original).program, sch.program)


def check_sizes(sch: Schedule, original: Program, sizes: dict[str, int]) -> None:
    """As `check`, for a program with symbolic sizes, at some sizes."""
    assert verify(sch.program) == []
    rng = np.random.default_rng(0)
    given = []
    for p in original.params:
        if isinstance(p, Var):
            given.append(sizes[p.name])
        else:
            assert isinstance(p, Buffer)
            shape = [sizes[d.name] if isinstance(d, Var) else d.value for d in p.shape]  # type: ignore[attr-defined]
            given.append(rng.integers(-4, 5, shape).astype(p.dtype.numpy()))
    runs = []
    for program in (original, sch.program, replay(sch.trace, original).program):
        args = [x.copy() if isinstance(x, np.ndarray) else x for x in given]
        Interpreter(program).run(args)
        runs.append([x for x in args if isinstance(x, np.ndarray)])
    for got in runs[1:]:
        assert all(np.array_equal(x, y) for x, y in zip(got, runs[0], strict=True)), f"{sizes}\n{sch.program}"
