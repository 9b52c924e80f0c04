"""Schedule rule of blocks in which each element depends on the one before it along an axis: running sums.

In: a Schedule and such a block. Out: the loop along the axis around a strip in vectors or, if the axis is the contiguous
one, around a few rows, whose chains of additions overlap; everything else outside, in parallel.
"""
from __future__ import annotations

from tilewright.loop.ir import Store, Var, as_int, estimate
from tilewright.target.target import Target
from tilewright.tensor.rules.elementwise import PARALLEL_ELEMENTS, lanes_of
from tilewright.tensor.rules.threads import parallelize_outer
from tilewright.tensor.running import running_axis
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef

CHAINS = 4
"""Rows that go along the axis together: an addition takes about 4 cycles, and each waits for the last."""

STRIP = 4096
"""Most elements of a strip: the step before is still in the first-level cache."""


def schedule_running(sch: Schedule, ref: BlockRef, target: Target) -> None:
    """Schedule one block along whose `running_axis` the order of instances must stay."""
    block = state.find_block(sch.program, ref)
    axis = running_axis(block)
    assert axis is not None and isinstance(block.body, Store)
    loops = dict(zip([it.var for it in block.iters], sch.loops(ref), strict=True))
    time = loops.pop(axis)
    total = estimate(sch.loop(time).extent)
    for v in loops.values():
        total *= estimate(sch.loop(v).extent)
    outer = list(loops.values())
    moving = [e for e, d in zip(block.body.indices, block.body.buffer.shape, strict=True) if as_int(d) != 1]
    along_rows = bool(moving) and moving[-1] is axis
    if outer and along_rows:
        _rows_together(sch, outer, time)
    elif outer:
        _strips(sch, outer, time, lanes_of(block, target), target)
    if outer and total >= PARALLEL_ELEMENTS and target.cores > 1:
        parallelize_outer(sch, outer, target)


def _rows_together(sch: Schedule, outer: list[Var], time: Var) -> None:
    """A few rows in each step along the axis, unrolled."""
    together = min(CHAINS, as_int(sch.loop(outer[-1]).extent) or CHAINS)
    outer[-1], row = sch.split(outer[-1], [None, together])
    sch.reorder(*outer, time, row)
    sch.unroll(row)


def _strips(sch: Schedule, outer: list[Var], time: Var, lanes: int, target: Target) -> None:
    """In each step along the axis a strip of the contiguous one, in vectors: as long as leaves every core one, since short
    ones would touch a page per step."""
    n = estimate(sch.loop(outer[-1]).extent)
    wide = min(-(-n // (lanes * target.cores)) * lanes, STRIP)
    outer[-1], inner = sch.split(outer[-1], [None, wide])
    sch.reorder(*outer, time, inner)
    if wide > lanes:
        _, inner = sch.split(inner, [None, lanes])
    sch.vectorize(inner)
