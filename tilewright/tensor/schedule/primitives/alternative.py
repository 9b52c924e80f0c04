"""alternative: two schedules of one program in one kernel, of which a condition on its sizes chooses.

    alternative(n >= 16, trace)
                                       if n >= 16:
    for i in 0..n: block C …     →         for io in 0..(n + 7) // 8: for ii in 0..8: block C_1 …     (what the trace does)
                                       else:
                                           for i in 0..n: block C …

It comes last: both branches use the same parameters, and no primitive looks across them.
"""
from __future__ import annotations

import itertools
from typing import Any

from tilewright.core.node import transform
from tilewright.loop.ir import Block, Buffer, Expr, If, Program, Var
from tilewright.loop.printer import print_program
from tilewright.loop.substitute import fresh_copy
from tilewright.tensor.schedule.schedule import Schedule, replay
from tilewright.tensor.schedule.state import ScheduleError, blocks
from tilewright.tensor.schedule.trace import Trace, primitive
from tilewright.tensor.span import vars_of

NAME = "alternative"


@primitive
def alternative(sch: Schedule, condition: Expr, trace: Trace) -> None:
    """Where `condition` holds, run the unscheduled program under the schedule of `trace`; elsewhere, what there is.

    Raises ScheduleError: a condition on anything but the program's sizes, or one that is no condition; a trace that lays
    parameters out otherwise than this schedule does; what the trace's primitives raise.
    """
    program = sch.program
    stray = vars_of(condition) - {p for p in program.params if isinstance(p, Var)}
    if stray or not condition.dtype.is_bool:
        raise ScheduleError(NAME, f"{condition} is no condition on the program's sizes", program,
                            hint="compare sizes that are parameters of the program")
    other = replay(trace, sch.unscheduled)
    for name in sorted({*sch.prepacks, *other.prepacks}):
        if _text(sch.prepacks.get(name)) != _text(other.prepacks.get(name)):
            raise ScheduleError(NAME, f"the two schedules lay {name} out differently", program)
    if [p.dtype for p in program.params] != [p.dtype for p in other.program.params] or any(
            getattr(p, "shape", ()) != getattr(q, "shape", ())
            for p, q in zip(program.params, other.program.params, strict=True)):
        raise ScheduleError(NAME, "the two schedules give parameters different shapes", program)
    sch.program = program.replace(body=If(condition, _branch(program, other.program), program.body))


def _text(prepack: Program | None) -> str:
    return "" if prepack is None else print_program(prepack, canonical=True)


def _branch(program: Program, other: Program) -> Any:
    """The other program's body over this one's parameters; its blocks have names of their own."""
    params = {q: p for p, q in zip(program.params, other.params, strict=True) if p is not q}
    taken = {b.name for b in blocks(program)}
    names: dict[str, str] = {}
    for b in blocks(other):
        names[b.name] = next(n for k in itertools.count() if (n := f"{b.name}_{k}" if k else b.name) not in taken)
        taken.add(names[b.name])
    def moved(n: Any) -> Any:
        if isinstance(n, Block):
            return n.replace(name=names[n.name])
        return params[n] if isinstance(n, Buffer | Var) and n in params else n
    return transform(fresh_copy(other.body), moved)
