"""The default schedule of any program on a CPU: finds the heaviest block, merges what surrounds it, applies its rule.
(Devices of threads have rules of their own: gpu.py.)

In: an unscheduled Program and a target. Out: a Schedule with its trace. The rules know blocks (`tensor/classify.py`) and
facts of the target; no operator, model or shape is known by name.
"""
from __future__ import annotations

import math
from collections.abc import Iterable

from tilewright.loop.externs import refuse_on_device
from tilewright.loop.ir import FALSE, TRUE, Block, Expr, Program, const
from tilewright.target.target import Target
from tilewright.tensor.classify import BlockInfo, classify
from tilewright.tensor.rules.attention import find_attention, operand_views, schedule_attention
from tilewright.tensor.rules.attention_few_rows import few_rows, find_few_rows, schedule_few_rows
from tilewright.tensor.rules.bands import find_bands, schedule_bands
from tilewright.tensor.rules.contraction import schedule_contraction
from tilewright.tensor.rules.depthwise import schedule_depthwise
from tilewright.tensor.rules.elementwise import near_producers, schedule_elementwise
from tilewright.tensor.rules.empty import start_before_loops
from tilewright.tensor.rules.epilogue import merge_chain
from tilewright.tensor.rules.expanded import find_expansion, many_rows
from tilewright.tensor.rules.gpu import schedule_for_gpu
from tilewright.tensor.rules.prologues import inline_prologues
from tilewright.tensor.rules.recurrence import schedule_recurrence, time_loops
from tilewright.tensor.rules.rows import schedule_rows
from tilewright.tensor.rules.running import schedule_running
from tilewright.tensor.running import running_axis
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.opaque import symbol_of
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef, ScheduleError


def schedule_program(program: Program, target: Target, numerics: str = "default") -> Schedule:
    """Schedule a program by rules. `numerics` "strict": they reorder only the sums of declared reductions, and
    formulas are the graph's choice.

    Any program gets a schedule: where a rule meets one that it was not written for, and a primitive refuses, the loops
    stay as they are written, serial; `fallback` of the schedule then says why.
    """
    if target.is_gpu:
        refuse_on_device([program], target.name)
    quiet = state.explaining.set(False)  # rules try what primitives may refuse
    try:
        return schedule_for_gpu(program, target, numerics) if target.is_gpu else schedule_for_cpu(program, target)
    finally:
        state.explaining.reset(quiet)


def schedule_for_cpu(program: Program, target: Target) -> Schedule:
    """The rules' schedule, or the loops as they are written."""
    try:
        sch = by_rules(program, target)
        start_before_loops(sch)
    except ScheduleError as refused:
        sch = Schedule(program)
        sch.fallback = f"{refused.primitive}: {refused.message}"
        start_before_loops(sch)
    return sch


def by_rules(program: Program, target: Target) -> Schedule:
    """The schedule of the rule that fits a program. Raises ScheduleError where the rule does not fit after all."""
    opaque = [b.name for b in state.blocks(program) if symbol_of(b)]
    if any(dict(b.attrs).get("ordered") for b in state.blocks(program) if b.name not in opaque):
        return Schedule(program)
    if opaque:
        sch = Schedule(program)
        schedule_spatial_blocks(sch, target, skip=opaque)
        return sch
    recurrent = Schedule(program)
    times = time_loops(recurrent)
    if times:
        done: set[str] = set()
        for t in times:
            done |= schedule_recurrence(recurrent, t.var, target)
        return recurrent
    chains = [b.name for b in state.blocks(program) if running_axis(b) is not None]
    if chains:
        sch = Schedule(program)
        inline_prologues(sch, keep=chains)
        for name in chains:
            schedule_running(sch, sch.block(name), target)
        schedule_spatial_blocks(sch, target, skip=chains)
        return sch
    attended = around_attention(program, target)
    if attended is not None:
        return attended
    sch = Schedule(program)
    inline_prologues(sch)
    infos = {b.name: classify(b) for b in state.blocks(sch.program)}
    anchors = [i for i in infos.values() if (i.kind == "contraction" and i.n) or i.windows]
    if len(anchors) == 1:
        banded = in_bands(program, anchors[0], target) if anchors[0].n else None
        if banded is not None:
            return banded
        return around_anchor(sch, anchors[0], target)
    if any(i.kind in ("reduction", "window", "contraction") for i in infos.values()):
        schedule_rows(sch, target)
        return sch
    schedule_spatial_blocks(sch, target)
    return sch


def around_anchor(sch: Schedule, anchor: BlockInfo, target: Target) -> Schedule:
    """The schedule of a contraction or window and of what stands around it. Weights that are expanded for the product are so
    by panels or not, as its rows ask, at run time where they are symbolic."""
    expanded = bool(anchor.n) and find_expansion(sch, anchor) is not None
    many = many_rows(math.prod([it.extent for it in anchor.m], start=const(1))) if expanded else FALSE
    if many in (TRUE, FALSE):
        return _around_anchor(sch, anchor, target, panels=many == TRUE)
    other = Schedule(sch.unscheduled)
    inline_prologues(other)
    _around_anchor(other, anchor, target, panels=True)
    _around_anchor(sch, anchor, target)
    sch.alternative(many, other.trace)
    return sch


def _around_anchor(sch: Schedule, info: BlockInfo, target: Target, panels: bool = False) -> Schedule:
    anchor = sch.block(info.block.name)
    epilogue, fills = merge_chain(sch, anchor)
    done = {anchor.name, *([epilogue.name] if epilogue else []), *[f.name for f in fills]}
    if info.n:
        schedule_contraction(sch, anchor, epilogue, target, panels=panels)
    else:
        schedule_depthwise(sch, anchor, epilogue, target)
    schedule_spatial_blocks(sch, target, skip=done)
    for f in fills:
        schedule_elementwise(sch, f, target)
    return sch


def around_attention(program: Program, target: Target) -> Schedule | None:
    """The schedule of an attention, None if the program is none: by the rule for few rows where that fits, as a run decides
    if their number is symbolic."""
    views = operand_views(program)
    if views is None:
        return None
    few, condition = by_few_rows(program, target)
    if few is not None and condition == TRUE:
        return few
    sch = Schedule(program)
    inline_prologues(sch, keep=views)
    attention = find_attention(sch.program, views)
    if attention is None:
        return None
    schedule_attention(sch, attention, target)
    if few is not None and condition != FALSE:
        sch.alternative(condition, few.trace)
    return sch


def by_few_rows(program: Program, target: Target) -> tuple[Schedule | None, Expr]:
    """The schedule by the rule for attention of few rows (None: it does not fit), and whether there are so few."""
    sch = Schedule(program)
    inline_prologues(sch)
    attention = find_attention(sch.program, (None, None))
    condition = FALSE if attention is None else few_rows(attention)
    few = None if attention is None or condition == FALSE else find_few_rows(attention, target)
    if few is None:
        return None, FALSE
    try:
        schedule_few_rows(sch, few, target)
    except ScheduleError:
        return None, FALSE
    return sch, condition


def in_bands(program: Program, anchor: BlockInfo, target: Target) -> Schedule | None:
    """The schedule in bands with the largest bands that what follows the contraction can be computed from; None if the
    contraction stands alone or no size serves."""
    sizes = [0]
    while sizes:
        sch = Schedule(program)
        inline_prologues(sch)
        found = find_bands(sch, classify(state.find_block(sch.program, BlockRef(anchor.block.name))), target)
        if found is None:
            return None
        sizes = list(found.sizes) if sizes == [0] else sizes[1:]
        if not sizes:
            return None
        try:
            schedule_bands(sch, found, sizes[0], target)
        except ScheduleError:
            continue
        return sch
    return None


def schedule_spatial_blocks(sch: Schedule, target: Target, skip: Iterable[str] = ()) -> None:
    """Schedule the blocks without reductions, readers before the producers that they draw to themselves."""
    seen = set(skip)
    while True:
        left = [b for b in state.blocks(sch.program) if b.name not in seen and b.init is None
                and all(it.kind == "spatial" for it in b.iters) and not in_scheduled_nest(sch, b)]
        if not left:
            return
        block = left[-1]
        seen.add(block.name)
        seen |= {p.name for p in near_producers(sch, block)}
        before = {b.name for b in state.blocks(sch.program)}
        schedule_elementwise(sch, sch.block(block.name), target)
        seen |= {b.name for b in state.blocks(sch.program)} - before


def in_scheduled_nest(sch: Schedule, block: Block) -> bool:
    """Whether a rule has already given the loops around a block their kinds, or put it beside another block."""
    loops = state.loops_around(sch.program, block)
    return any(f.kind != "serial" for f in loops) or (bool(loops) and len(state.blocks_under(loops[0])) > 1)
