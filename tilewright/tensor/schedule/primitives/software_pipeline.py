"""software_pipeline: a loop loads what its later steps will use while it computes with what earlier ones have loaded.

    for k in 0..n:                              for k in 0..n + 1:
        S[k*16 …] = A[…]                            if k < n:  S[k % 2, …] = A[…]
        C += S[k*16 …]                    →         if 1 <= k: C += S[(k - 1) % 2, …]

Lowering takes the conditions out: a prologue that only loads, the steady state, and an epilogue that only computes. What is
loaded has as many places as there are stages (see double_buffer), one of them being filled.
"""
from __future__ import annotations

from tilewright.loop.ir import Block, Buffer, Expr, For, Le, Stmt, Var, seq
from tilewright.loop.lower.split_pipelines import PIPELINED
from tilewright.loop.substitute import substitute
from tilewright.tensor.regions import accesses, conjunction, conjuncts, inputs, outputs, readers, statements, writers
from tilewright.tensor.schedule.primitives.double_buffer import in_turn
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import (
    ScheduleError,
    blocks_under,
    edit,
    find_loop,
    is_parameter,
    sub_statements,
)
from tilewright.tensor.schedule.trace import primitive

NAME = "software_pipeline"
MAX_STAGES = 8


@primitive
def software_pipeline(sch: Schedule, loop: Var, stages: int = 2) -> None:
    """Let a serial loop load `stages` - 1 steps ahead. Loads are the statements in it whose blocks read nothing that the
    loop writes, and write buffers that are used in the loop alone.

    Legal if a step reads of these buffers only what it has loaded itself, tile by tile (see double_buffer), so that
    the loads of other steps are independent of it. Raises ScheduleError, also where there is nothing to load or to
    compute, or a statement does both.
    """
    target = find_loop(sch.program, loop)
    if target.kind != "serial" or PIPELINED in dict(target.attrs):
        raise ScheduleError(NAME, f"loop {loop.name} is {'pipelined' if target.kind == 'serial' else target.kind} already",
                            sch.program, loop)
    if not isinstance(stages, int) or not 2 <= stages <= MAX_STAGES:
        raise ScheduleError(NAME, f"{stages!r} stages are not between 2 and {MAX_STAGES}", sch.program, loop)
    loads = _loads(sch, target)
    for buffer in dict.fromkeys(x for b in loads for x in outputs(b)):
        in_turn(sch, NAME, find_loop(sch.program, loop), buffer, stages)
    target = find_loop(sch.program, loop)
    names = {b.name for b in loads}
    early = [s for s in statements(target.body) if {b.name for b in blocks_under(s)} <= names]
    late = [s for s in statements(target.body) if s not in early]
    shift = stages - 1
    behind = loop - shift
    body = [_under(s, loop < target.start + target.extent) for s in early]
    body += [_under(substitute(s, {loop: behind}), Le(target.start, behind)) for s in late]
    sch.program = edit(sch.program, target, target.replace(extent=target.extent + shift, body=seq(body),
                                                           attrs=(*target.attrs, (PIPELINED, stages))))


def _loads(sch: Schedule, target: For) -> list[Block]:
    """The blocks that load."""
    program, below = sch.program, blocks_under(target)
    written = {x for b in below for x in outputs(b)}
    inside = {b.name for b in below}

    def alone(x: Buffer) -> bool:
        users = {b.name for b in (*readers(program, x), *writers(program, x))}
        return not is_parameter(program, x) and users <= inside

    found = [b for b in below if inputs(b) and outputs(b) and not set(inputs(b)) & written
             and not any(a.buffer in outputs(b) for a in accesses(b)[0]) and all(map(alone, outputs(b)))]
    names = {b.name for b in found}
    if not found or len(found) == len(below):
        what = "loads nothing that it uses alone" if not found else "does nothing but load"
        raise ScheduleError(NAME, f"loop {target.var.name} {what}", program, target.var)
    for s in statements(target.body):
        own = {b.name for b in blocks_under(s)}
        if own & names and not own <= names:
            raise ScheduleError(NAME, f"one statement of loop {target.var.name} loads and computes (blocks "
                                f"{', '.join(sorted(own))})", program, target.var)
    loaded = {x for q in found for x in outputs(q)}
    other = next((b for b in below if b.name not in names and set(outputs(b)) & loaded), None)
    if other is not None:
        raise ScheduleError(NAME, f"block {other.name} writes what is loaded, too", program, target.var)
    return found


def _under(s: Stmt, cond: Expr) -> Stmt:
    """A statement whose blocks run under one more condition."""
    if isinstance(s, Block):
        return s.replace(predicate=conjunction([*conjuncts(s.predicate), cond]))
    inner = sub_statements(s)
    return s.map(lambda c: _under(c, cond) if any(c is x for x in inner) else c)
