"""The default schedule of any program on a device of blocks and threads.

In: an unscheduled Program and a target of kind "gpu". Out: a Schedule in which every nest is a kernel: products in tiles of
shared memory and registers, stages over rows with a block per row, everything else with a thread per result. Like the rules
for CPUs (dispatch.py) these know blocks and facts, no operator, model or shape.
"""
from __future__ import annotations

from tilewright.core.errors import UserError
from tilewright.core.node import walk
from tilewright.loop.ir import Allocate, Block, Program, as_int
from tilewright.loop.lower.device_pipeline import lower_for_device
from tilewright.target.target import Target
from tilewright.tensor.classify import classify
from tilewright.tensor.regions import outputs
from tilewright.tensor.rules.gpu_contraction import STEPS, schedule_tiles
from tilewright.tensor.rules.gpu_results import schedule_results
from tilewright.tensor.rules.gpu_rows import fits_rows, schedule_block_rows
from tilewright.tensor.rules.prologues import inline_prologues
from tilewright.tensor.rules.rows import is_reduction
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import ScheduleError

TILED_FLOPS = 1 << 14
"""Products of fewer operations gain nothing from tiles."""


class _Refused(Exception):
    """The rule of a block met a program that it was not written for."""

    def __init__(self, block: str, why: ScheduleError) -> None:
        self.block, self.why = block, why


def schedule_for_gpu(program: Program, target: Target) -> Schedule:
    """Schedule a program by rules. Where a rule refuses a block, the next simpler one takes it: tiles, a thread per result,
    one thread for all; `fallback` of the schedule then says why."""
    if any(dict(b.attrs).get("ordered") for b in state.blocks(program)):
        return Schedule(program)
    level: dict[str, int] = {}
    reasons: list[str] = []
    while True:
        sch = Schedule(program)
        try:
            ruled = _by_rules(sch, target, level)
            _check_limits(sch, target, ruled)
        except _Refused as refused:
            level[refused.block] = level.get(refused.block, 0) + 1
            if refused.block == "rows" or level[refused.block] >= len(STEPS):  # a smaller step is as good a rule
                reasons.append(f"{refused.block}: {refused.why.primitive}: {refused.why.message}")
            continue
        sch.fallback = "; ".join(reasons)
        return sch


def _check_limits(sch: Schedule, target: Target, ruled: list[str]) -> None:
    """Lower the program: what a kernel takes of shared memory is known when storage has its final shape."""
    try:
        lower_for_device(sch.program, target)
    except UserError as over:
        if not ruled or not over.code.startswith("kernel-"):
            raise
        why = ScheduleError("lower", over.message, sch.program)
        raise _Refused(ruled[0], why) from over


def _by_rules(sch: Schedule, target: Target, level: dict[str, int]) -> list[str]:
    """Apply the rules; the names (those with the most to lose first) of what a simpler rule could do with less memory."""
    inline_prologues(sch)
    names = [b.name for b in state.blocks(sch.program)]
    if fits_rows(sch, target) and not level.get("rows"):
        try:
            schedule_block_rows(sch, target)
        except ScheduleError as why:
            raise _Refused("rows", why) from why
        return ["rows"]
    done: set[str] = set()
    for name in sorted(names, key=lambda n: not is_reduction(state.find_block(sch.program, state.BlockRef(n)))):
        if name in done or name not in {b.name for b in state.blocks(sch.program)}:
            continue
        before = {b.name for b in state.blocks(sch.program)}
        block = state.find_block(sch.program, state.BlockRef(name))
        if not _is_whole_nest(sch, block):
            continue
        try:
            done |= _schedule_block(sch, block, target, level.get(name, 0))
        except ScheduleError as why:
            raise _Refused(name, why) from why
        done |= {b.name for b in state.blocks(sch.program)} - before | {name}
    shared = {n.buffer for n in walk(sch.program.body) if isinstance(n, Allocate) and n.buffer.scope == "shared"}
    return sorted([n for n in names if shared and level.get(n, 0) < len(STEPS)
                   and n in {b.name for b in state.blocks(sch.program) if is_reduction(b)}], key=lambda n: level.get(n, 0))


def _is_whole_nest(sch: Schedule, block: Block) -> bool:
    """Whether a block still has its loops to itself, as written."""
    loops = state.loops_around(sch.program, block)
    return bool(loops) and len(state.blocks_under(loops[0])) == 1 and all(f.kind == "serial" for f in loops)


def _schedule_block(sch: Schedule, block: Block, target: Target, level: int) -> set[str]:
    """Schedule a block by the rule for its kind and level; the names of all blocks that have their schedule now."""
    info = classify(block)
    if level > len(STEPS) + 1:
        return {block.name}
    big = info.flops >= TILED_FLOPS and min(info.extent(info.m), info.extent(info.n)) > 1
    plain = all(as_int(it.extent) is not None for it in block.iters)
    if plain and info.kind == "contraction" and info.m and info.n and big and len(outputs(block)) == 1:
        if level < len(STEPS):
            return schedule_tiles(sch, sch.block(block.name), target, STEPS[level])
        level -= len(STEPS)
    return schedule_results(sch, sch.block(block.name), target, merge=level == 0)
