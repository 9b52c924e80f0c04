"""block, loops: handles of what is there. They change nothing, but are recorded: a replay must find the same."""
from __future__ import annotations

from tilewright.loop.ir import Var
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef, find_block, loops_around
from tilewright.tensor.schedule.trace import primitive


@primitive
def block(sch: Schedule, name: str) -> BlockRef:
    """The handle of the block `name`. Raises ScheduleError if there is none."""
    find_block(sch.program, BlockRef(name))
    return BlockRef(name)


@primitive
def loops(sch: Schedule, block: BlockRef) -> list[Var]:
    """The loops around a block, outermost first."""
    return [f.var for f in loops_around(sch.program, find_block(sch.program, block))]
