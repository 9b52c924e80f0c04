"""distribute: a loop over several statements becomes a loop over each of them.

    for i in 0..8:                              for i in 0..8:
      for k in 0..4: block C(i, k): C += …        for k in 0..4: block C(i, k): C += …
      block D(i): D[i] = C[i] * 2           →   for i in 0..8:
                                                  block D(i): D[i] = C[i] * 2
"""
from __future__ import annotations

from tilewright.loop.ir import For, Stmt, Var, seq
from tilewright.loop.substitute import substitute
from tilewright.tensor.regions import statements
from tilewright.tensor.schedule.order import distribution_hazard
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import ScheduleError, edit, find_loop, refuse
from tilewright.tensor.schedule.trace import primitive


@primitive
def distribute(sch: Schedule, loop: Var) -> list[Var]:
    """Run each statement of the loop's body in a loop of its own, of the same kind; the last keeps the loop's variable.
    Returns the loops.

    Legal if what a step makes for later statements is still there when they run: steps touch different elements of what
    several statements share, or only earlier ones write it and a step makes all that it reads. Raises ScheduleError.
    """
    program = sch.program
    f = find_loop(program, loop)
    parts = statements(f.body)
    if len(parts) < 2:
        raise ScheduleError("distribute", f"the body of loop {loop.name} is a single statement", program, loop)
    made: list[For] = []
    for part in parts[:-1]:
        v = Var(loop.name, loop.type)
        new: Stmt = substitute(part, {loop: v})
        made.append(f.replace(var=v, body=new))
    made.append(f.replace(body=parts[-1]))
    changed = edit(program, f, seq(*made))
    why = distribution_hazard(program, changed, f, [p.body for p in made])
    if why is not None:
        refuse("distribute", why, program, loop)
    sch.program = changed
    return [p.var for p in made]
