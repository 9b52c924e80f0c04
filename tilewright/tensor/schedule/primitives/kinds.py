"""unroll, vectorize, parallel, annotate: how a loop runs, without changing what it does.

    parallel(i)     for i in 0..n:   →   for i in 0..n parallel:
"""
from __future__ import annotations

from typing import Any

from tilewright.loop.ir import For, Var, as_int
from tilewright.tensor.schedule.order import carried
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import (
    BlockRef,
    ScheduleError,
    edit,
    find_block,
    find_loop,
    iterate,
    loops_around,
    refuse,
)
from tilewright.tensor.schedule.trace import primitive

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
    """Run the loop's iterations as lanes of vectors: constant extent, no parallel or vectorized loop inside it or vectorized
    one around it, independent iterations. Raises ScheduleError.

    A loop directly around one block that updates a sum, maximum or minimum (its initialisation decomposed) may also run
    over the reduction: its lanes are then combined by halves, so floating-point sums are rounded in that order."""
    f = find_loop(sch.program, loop)
    if as_int(f.extent) is None:
        raise ScheduleError("vectorize", f"the extent {f.extent} is no constant", sch.program, loop)
    for s in iterate(f.body):
        if isinstance(s, For) and s.kind in ("parallel", "vectorized"):
            raise ScheduleError("vectorize", f"loop {s.var.name} inside it is {s.kind}", sch.program, s.var)
    _require_independent(sch, "vectorize", f, "vectorized")
    _set_kind(sch, "vectorize", f, "vectorized")


@primitive
def parallel(sch: Schedule, loop: Var) -> None:
    """Run the loop's iterations on the threads of the device. They must be independent; a parallel loop inside another one
    runs serially. Raises ScheduleError."""
    f = find_loop(sch.program, loop)
    _require_independent(sch, "parallel", f, "parallel")
    _set_kind(sch, "parallel", f, "parallel")


@primitive
def annotate(sch: Schedule, place: Var | BlockRef, key: str, value: Any) -> None:
    """Attach plain data (numbers, strings, tuples of them) to a loop or a block, for passes and code generators that look
    for it. Raises ScheduleError for anything else."""
    if not _is_plain(value):
        raise ScheduleError("annotate", f"{value!r} is no plain data", sch.program, place,
                            hint="give a number, a string or a tuple of them")
    if isinstance(place, Var):
        f = find_loop(sch.program, place)
        sch.program = edit(sch.program, f, f.replace(attrs=_with(f.attrs, key, value)))
    else:
        b = find_block(sch.program, place)
        sch.program = edit(sch.program, b, b.replace(attrs=_with(b.attrs, key, value)))


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str) or (
        isinstance(value, tuple) and all(map(_is_plain, value)))


def _with(attrs: tuple[tuple[str, Any], ...], key: str, value: Any) -> tuple[tuple[str, Any], ...]:
    return (*[(k, v) for k, v in attrs if k != key], (key, value))


def _set_kind(sch: Schedule, name: str, f: For, kind: str) -> None:
    if f.kind != "serial":
        raise ScheduleError(name, f"loop {f.var.name} is {f.kind} already", sch.program, f.var)
    sch.program = edit(sch.program, f, f.replace(kind=kind))


def _require_independent(sch: Schedule, name: str, f: For, kind: str) -> None:
    if any(o.kind == "vectorized" for o in loops_around(sch.program, f)):
        raise ScheduleError(name, f"loop {f.var.name} is inside a vectorized loop", sch.program, f.var)
    why = carried(sch.program, f, kind)
    if why is not None:
        refuse(name, why, sch.program, f.var)
