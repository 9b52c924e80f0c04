"""The default schedule of any program on a CPU: finds the heaviest block, merges what surrounds it, applies its rule.

In: an unscheduled Program and a target. Out: a Schedule with its trace. The rules know blocks (`tensor/classify.py`) and
facts of the target; no operator, model or shape is known by name.
"""
from __future__ import annotations

from tilewright.loop.ir import Program
from tilewright.target.target import Target
from tilewright.tensor.classify import BlockInfo, classify
from tilewright.tensor.regions import consumers
from tilewright.tensor.rules.contraction import schedule_contraction
from tilewright.tensor.rules.depthwise import schedule_depthwise
from tilewright.tensor.rules.elementwise import schedule_elementwise
from tilewright.tensor.rules.epilogue import merge_chain
from tilewright.tensor.rules.rows import schedule_rows
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef


def schedule_program(program: Program, target: Target, numerics: str = "default") -> Schedule:
    """Schedule a program by rules. `numerics="strict"` keeps the order of sums as declared."""
    sch = Schedule(program)
    inline_prologues(sch)
    infos = {b.name: classify(b) for b in state.blocks(sch.program)}
    anchors = [i for i in infos.values() if i.kind == "contraction"]
    if len(anchors) == 1:
        anchor = sch.block(anchors[0].block.name)
        epilogue, fills = merge_chain(sch, anchor)
        others = [b for b in state.blocks(sch.program)
                  if b.name not in {anchor.name, *([epilogue.name] if epilogue else []), *[f.name for f in fills]}]
        rule = schedule_depthwise if anchors[0].is_depthwise or not anchors[0].n else schedule_contraction
        for b in others:
            schedule_elementwise(sch, sch.block(b.name), target)
        rule(sch, anchor, epilogue, target)
        for f in fills:
            schedule_elementwise(sch, f, target)
        return sch
    if any(i.kind in ("reduction", "window", "contraction") for i in infos.values()):
        schedule_rows(sch, target)
        return sch
    for b in state.blocks(sch.program):
        schedule_elementwise(sch, sch.block(b.name), target)
    return sch


def inline_prologues(sch: Schedule) -> None:
    """Inline spatial blocks into their readers where that repeats no real work: views anywhere, arithmetic only where one
    spatial block reads it."""
    changed = True
    while changed:
        changed = False
        for block in state.blocks(sch.program):
            info = classify(block)
            readers = consumers(sch.program, block)
            if info.kind not in ("elementwise", "injective") or not readers:
                continue
            kinds = [classify(r).kind for r in readers]
            alone = len(readers) == 1 and kinds[0] in ("elementwise", "injective") and not reads_reduction(sch, block.name)
            if is_view(info) or alone:
                sch.compute_inline(sch.block(block.name))
                changed = True
                break


def is_view(info: BlockInfo) -> bool:
    """A block that only moves elements: its value is one load."""
    from_load = getattr(info.block.body, "value", None)
    return type(from_load).__name__ == "Load"


def reads_reduction(sch: Schedule, name: str) -> bool:
    """Whether a block reads the result of a reduction (it is then an epilogue, merged by the anchor's rule)."""
    block = state.find_block(sch.program, BlockRef(name))
    produced = {classify(b).out.buffer: b for b in state.blocks(sch.program)  # type: ignore[union-attr]
                if classify(b).out is not None and any(it.kind == "reduce" for it in b.iters)}
    return any(r.buffer in produced for r in classify(block).reads)
