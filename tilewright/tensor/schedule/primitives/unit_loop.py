"""add_unit_loop: a loop of one turn around a nest, where a schedule needs a loop and the computation has none.

    block S(vk: reduce 64 = k)         for u in 0..1:
                                →        block S(vk: reduce 64 = k)
"""
from __future__ import annotations

from tilewright.loop.ir import ONE, ZERO, For, Var
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef, edit, find_block, loops_around
from tilewright.tensor.schedule.trace import primitive


@primitive
def add_unit_loop(sch: Schedule, block: BlockRef) -> Var:
    """Put a loop of one turn around the outermost loop of a block (around the block, if it has none); its handle. Raises
    ScheduleError if there is no such block."""
    found = find_block(sch.program, block)
    around = loops_around(sch.program, found)
    inner = around[0] if around else found
    loop = For(Var("u"), ZERO, ONE, inner)
    sch.program = edit(sch.program, inner, loop)
    return loop.var
