"""Prologues: spatial blocks that go into the blocks that read them, before any rule looks at a program.

In: a Schedule as written. Out: the same without the blocks whose inlining repeats no real work.
"""
from __future__ import annotations

from collections.abc import Collection

from tilewright.core.node import walk
from tilewright.loop.ir import Block, Load
from tilewright.tensor.classify import BlockInfo, classify
from tilewright.tensor.regions import consumers
from tilewright.tensor.rules.epilogue import is_view
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef


def inline_prologues(sch: Schedule, keep: Collection[str | None] = ()) -> None:
    """Inline spatial blocks into their readers where that repeats no real work: views anywhere, arithmetic only where one
    spatial block reads it. Those named in `keep` stay."""
    changed = True
    while changed:
        changed = False
        for block in state.blocks(sch.program):
            info = classify(block)
            readers = consumers(sch.program, block)
            if info.kind not in ("elementwise", "injective") or not readers or block.name in keep:
                continue
            if info.out is not None and any(r.buffer is info.out.buffer for r in info.reads):
                continue  # a running sum is not computed anew by each reader
            kinds = [classify(r).kind for r in readers]
            alone = (len(readers) == 1 and kinds[0] in ("elementwise", "injective") and reads_once(readers[0], info)
                     and not reads_reduction(sch, block.name))
            if is_view(info) or alone:
                sch.compute_inline(sch.block(block.name))
                changed = True
                break


def reads_once(reader: Block, info: BlockInfo) -> bool:
    """Whether each instance of `reader` uses one element of what the block computes: inlining repeats no work then."""
    assert info.out is not None
    return len({n for n in walk(reader.body) if isinstance(n, Load) and n.buffer is info.out.buffer}) == 1


def reads_reduction(sch: Schedule, name: str) -> bool:
    """Whether a block reads the result of a reduction (it is then an epilogue, merged by the anchor's rule)."""
    block = state.find_block(sch.program, BlockRef(name))
    produced = {classify(b).out.buffer: b for b in state.blocks(sch.program)  # type: ignore[union-attr]
                if classify(b).out is not None and any(it.kind == "reduce" for it in b.iters)}
    return any(r.buffer in produced for r in classify(block).reads)
