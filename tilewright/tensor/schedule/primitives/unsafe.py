"""unsafe_parallel, unsafe_bind: what parallel and bind do, where nobody can prove that it is right.

    unsafe_parallel(i)      for i in 0..n: Y[index[i]] = X[i]    →    for i in 0..n parallel {unsafe=True}: …

Whether iterations are independent may depend on data: here on whether all of `index` differ. The schedule then answers for
it; trace and program say so. Where the proof succeeds, or the loop could not run so in any case, they are refused.
"""
from __future__ import annotations

from tilewright.loop.ir import Var
from tilewright.tensor.schedule.order import UNSAFE, carried
from tilewright.tensor.schedule.primitives.bind import bind
from tilewright.tensor.schedule.primitives.kinds import parallel
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import ScheduleError, edit, find_loop
from tilewright.tensor.schedule.trace import primitive


@primitive
def unsafe_parallel(sch: Schedule, loop: Var) -> None:
    """As `parallel`, without the proof that iterations are independent. Raises ScheduleError where there is one."""
    _answer_for(sch, "unsafe_parallel", loop, "parallel")
    parallel(sch, loop)


@primitive
def unsafe_bind(sch: Schedule, loop: Var, axis: str) -> None:
    """As `bind`, without the proof that iterations are independent. Raises ScheduleError where there is one."""
    _answer_for(sch, "unsafe_bind", loop, axis)
    bind(sch, loop, axis)


def _answer_for(sch: Schedule, name: str, loop: Var, kind: str) -> None:
    f = find_loop(sch.program, loop)
    if f.kind == "serial" and carried(sch.program, f, kind) is None:
        raise ScheduleError(name, f"the iterations of loop {loop.name} are proved to be independent", sch.program, loop,
                            hint=f"use {name.removeprefix('unsafe_')}")
    sch.program = edit(sch.program, f, f.replace(attrs=(*f.attrs, (UNSAFE, True))))
