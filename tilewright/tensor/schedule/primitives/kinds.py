"""unroll, vectorize, parallel, annotate: how a loop runs, without changing what it does.

    parallel(i)     for i in 0..n:   →   for i in 0..n parallel:
"""
from __future__ import annotations

from typing import Any

from tilewright.loop.ir import Block, For, Var, as_int
from tilewright.tensor.regions import accesses, outputs
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import (
    BlockRef,
    ScheduleError,
    blocks_under,
    edit,
    find_block,
    find_loop,
    loops_around,
    refuse,
)
from tilewright.tensor.schedule.trace import primitive
from tilewright.tensor.span import Algebra, vars_of

MAX_UNROLL = 1024


@primitive
def unroll(sch: Schedule, loop: Var) -> None:
    """Replace the loop by copies of its body when lowering. Its extent must be a constant of at most 1024."""
    f = find_loop(sch.program, loop)
    n = as_int(f.extent)
    if n is None or n > MAX_UNROLL:
        raise ScheduleError("unroll", f"the extent {f.extent} is no constant up to {MAX_UNROLL}", sch.program, loop)
    _set_kind(sch, "unroll", f, "unrolled")


@primitive
def vectorize(sch: Schedule, loop: Var) -> None:
    """Run the loop's iterations as lanes of vectors: constant extent, no loop of another kind inside it, independent
    iterations. Raises ScheduleError."""
    f = find_loop(sch.program, loop)
    if as_int(f.extent) is None:
        raise ScheduleError("vectorize", f"the extent {f.extent} is no constant", sch.program, loop)
    _require_parallel(sch, "vectorize", f)
    _set_kind(sch, "vectorize", f, "vectorized")


@primitive
def parallel(sch: Schedule, loop: Var) -> None:
    """Run the loop's iterations on the threads of the device. They must be independent. Raises ScheduleError."""
    f = find_loop(sch.program, loop)
    if any(o.kind == "vectorized" for o in loops_around(sch.program, f)):
        raise ScheduleError("parallel", "it is inside a vectorized loop", sch.program, loop)
    _require_parallel(sch, "parallel", f)
    _set_kind(sch, "parallel", f, "parallel")


@primitive
def annotate(sch: Schedule, place: Var | BlockRef, key: str, value: Any) -> None:
    """Attach plain data to a loop or a block, for passes and code generators that look for it."""
    if isinstance(place, Var):
        f = find_loop(sch.program, place)
        sch.program = edit(sch.program, f, f.replace(attrs=_with(f.attrs, key, value)))
    else:
        b = find_block(sch.program, place)
        sch.program = edit(sch.program, b, b.replace(attrs=_with(b.attrs, key, value)))


def _with(attrs: tuple[tuple[str, Any], ...], key: str, value: Any) -> tuple[tuple[str, Any], ...]:
    return (*[(k, v) for k, v in attrs if k != key], (key, value))


def _set_kind(sch: Schedule, name: str, f: For, kind: str) -> None:
    if f.kind != "serial":
        raise ScheduleError(name, f"loop {f.var.name} is {f.kind} already", sch.program, f.var)
    sch.program = edit(sch.program, f, f.replace(kind=kind))


def _require_parallel(sch: Schedule, name: str, f: For) -> None:
    """Iterations are independent if each block below writes other elements in each iteration: the loop runs no reduction
    of it, and different values of the loop give different instances."""
    for b in blocks_under(f):
        if _reads_other_instances(b):
            refuse(name, f"block {b.name} reads elements that other instances of it write", sch.program, f.var)
        for it, e in zip(b.iters, b.bindings, strict=True):
            if it.kind == "reduce" and f.var in vars_of(e) and as_int(f.extent) != 1:
                refuse(name, f"block {b.name} reduces over loop {f.var.name}", sch.program, f.var)
        if not _distinct(sch, b, f) and not _private(sch, b, f):
            refuse(name, f"block {b.name} may write the same elements of {outputs(b)[0].name} in different iterations of "
                   f"loop {f.var.name}", sch.program, f.var)


def _reads_other_instances(b: Block) -> bool:
    """Whether a block reads what it writes anywhere but at the element that the same instance stores."""
    reads, writes = accesses(b)
    stored = {(a.buffer, a.indices) for a in writes}
    return any(a.buffer in {w.buffer for w in writes} and (a.buffer, a.indices) not in stored for a in reads)


def _distinct(sch: Schedule, b: Block, f: For) -> bool:
    """Whether the spatial bindings tell different values of the loop apart, whatever the loops inside do."""
    around = loops_around(sch.program, b)
    algebra = Algebra(around)
    inner = around[[g.var for g in around].index(f.var):]
    moving = {g.var: g for g in inner if any(
        g.var in vars_of(e) for it, e in zip(b.iters, b.bindings, strict=True) if it.kind == "spatial")}
    if f.var not in moving:
        return as_int(f.extent) == 1
    spatial = [e for it, e in zip(b.iters, b.bindings, strict=True) if it.kind == "spatial"]
    return algebra.determine(spatial, moving)


def _private(sch: Schedule, b: Block, f: For) -> bool:
    """Whether what the block writes is used under this loop only and is not a parameter: each iteration then has a copy of
    its own, made when storage is placed inside the loop."""
    for buffer in outputs(b):
        if any(p is buffer for p in sch.program.params):
            return False
        users = _blocks_using(sch, buffer)
        below = {id(x) for x in blocks_under(f)}
        if not all(id(x) in below for x in users):
            return False
    return True


def _blocks_using(sch: Schedule, buffer: object) -> list[Block]:
    return [x for x in blocks_under(sch.program.body) if buffer in outputs(x) or buffer in _inputs_of(x)]


def _inputs_of(b: Block) -> list[object]:
    """Everything that a block reads, its own outputs included."""
    from_reads = [a.buffer for a in accesses(b)[0]]
    return list(dict.fromkeys(from_reads))
