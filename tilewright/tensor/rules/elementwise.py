"""Schedule rule of spatial blocks on a CPU: elementwise chains, copies, borders, transposes, gathers.

In: a Schedule and a block without reductions. Out: the innermost axis in vectors, the outer ones in parallel when there is
enough to do for a parallel region to pay.
"""
from __future__ import annotations

from tilewright.loop.ir import Block, Store, as_int
from tilewright.target.target import Target
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef

PARALLEL_ELEMENTS = 16384
"""Elements below which one thread is as fast: about 4 µs of work against 0.2 µs to start a region and cache traffic."""


def schedule_elementwise(sch: Schedule, ref: BlockRef, target: Target) -> None:
    """Vectorize and parallelize one spatial block, over the loops that are its alone."""
    loops = sch.loops(ref)
    block = state.find_block(sch.program, ref)
    if not loops:
        return
    lanes = lanes_of(block, target)
    total = 1
    for v in loops:
        total *= as_int(sch.loop(v).extent) or 1
    n = as_int(sch.loop(loops[-1]).extent) or 1
    if n > lanes:
        outer, inner = sch.split(loops[-1], [None, lanes])
        sch.vectorize(inner)
        loops = [*loops[:-1], outer]
    elif n > 1:
        sch.vectorize(loops[-1])
        loops = loops[:-1]
    if total >= PARALLEL_ELEMENTS and loops and target.cores > 1:
        parallelize_outer(sch, loops, target)


def parallelize_outer(sch: Schedule, loops: list, target: Target) -> None:  # type: ignore[type-arg]
    """Fuse as many outer loops as give every core some work, and run them in parallel."""
    work, keep = 1, 0
    for v in loops:
        keep += 1
        work *= as_int(sch.loop(v).extent) or 1
        if work >= 8 * target.cores:
            break
    sch.parallel(sch.fuse(*loops[:keep]) if keep > 1 else loops[0])


def lanes_of(block: Block, target: Target) -> int:
    """Vector lanes for the element type that a block stores."""
    body = block.body
    return target.lanes(body.buffer.dtype.bits) if isinstance(body, Store) else 1
