"""bind: a loop's iterations become the blocks of a kernel's grid, the threads of a block, or a thread's virtual threads.

    for i0 in 0..64:                        for i0 in 0..64 blockIdx.x:
      for i1 in 0..256:                →      for i1 in 0..256 threadIdx.x:
        block C(vi = i0*256 + i1)               block C(vi = i0*256 + i1)

The meaning does not change: a program with bound loops means what its loops mean one after another. Loops over threads are
the innermost phases of a block: several nests in a block may be bound, each to its own loops over the same threads, and
what one nest writes the next one reads; lowering joins them to one set of threads and places the barriers between them.
A virtual thread is one of several interleaved parts of a thread's work: its loop goes innermost and is unrolled.
"""
from __future__ import annotations

from tilewright.loop.ir import For, Var, as_int
from tilewright.tensor.schedule.order import carried
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import ScheduleError, edit, find_loop, iterate, loops_around, refuse
from tilewright.tensor.schedule.trace import primitive

AXES = (*[f"blockIdx.{x}" for x in "xyz"], *[f"threadIdx.{x}" for x in "xyz"], "vthread")
MAX_VIRTUAL = 64


@primitive
def bind(sch: Schedule, loop: Var, axis: str) -> None:
    """Run the loop's iterations on the threads `axis`: blockIdx.x/y/z, threadIdx.x/y/z or vthread.

    The iterations must be independent. Blocks are outermost (only other blockIdx loops around them); threads are within
    blocks or by themselves, not in loops of another kind than serial; an axis is bound once in a nest; the extents of
    threads and virtual threads are constants. Raises ScheduleError.
    """
    f = find_loop(sch.program, loop)
    if axis not in AXES:
        raise ScheduleError("bind", f"there is no thread axis {axis!r} (only {', '.join(AXES)})", sch.program, loop)
    if f.kind != "serial":
        raise ScheduleError("bind", f"loop {loop.name} is {f.kind} already", sch.program, loop)
    around = loops_around(sch.program, f)
    inside = [s for s in iterate(f.body) if isinstance(s, For)]
    if axis != "vthread":
        twice = next((o for o in (*around, *inside) if o.kind == axis), None)
        if twice is not None:
            raise ScheduleError("bind", f"loop {twice.var.name} of the same nest is bound to {axis} already", sch.program,
                                twice.var)
    if axis.startswith("blockIdx"):
        other = next((o for o in around if not o.kind.startswith("blockIdx")), None)
        if other is not None:
            raise ScheduleError("bind", f"blocks start together: the {other.kind} loop {other.var.name} is around them",
                                sch.program, other.var, hint="reorder the loop inside, or bind it too")
    else:
        _check_thread(sch, f, axis, around, inside)
    why = carried(sch.program, f, axis)
    if why is not None:
        refuse("bind", why, sch.program, loop)
    sch.program = edit(sch.program, f, f.replace(kind=axis))


def _check_thread(sch: Schedule, f: For, axis: str, around: list[For], inside: list[For]) -> None:
    n = as_int(f.extent)
    if n is None or axis == "vthread" and n > MAX_VIRTUAL:
        limit = f" up to {MAX_VIRTUAL}" if axis == "vthread" else ""
        raise ScheduleError("bind", f"the extent {f.extent} is no constant{limit}", sch.program, f.var)
    wrong = next((o for o in around if o.kind in ("parallel", "vectorized", "unrolled")), None)
    if wrong is not None:
        raise ScheduleError("bind", f"loop {f.var.name} is inside the {wrong.kind} loop {wrong.var.name}", sch.program,
                            wrong.var)
    blocks = next((o for o in inside if o.kind.startswith("blockIdx") or o.kind == "parallel"), None)
    if blocks is not None:
        raise ScheduleError("bind", f"loop {blocks.var.name} inside it is {blocks.kind}", sch.program, blocks.var)
