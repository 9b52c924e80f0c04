"""Schedule rule of programs of reductions and elementwise stages over rows: softmax, norms, means, arg-reductions.

In: a Schedule of several blocks. Out: all stages of a row computed one after another while the row is in the first-level
cache; rows in parallel; within a row, vectors along the contiguous axis.
"""
from __future__ import annotations

from tilewright.loop.ir import Block, Var, as_int
from tilewright.target.target import Target
from tilewright.tensor.classify import BlockInfo, classify
from tilewright.tensor.rules.elementwise import PARALLEL_ELEMENTS, lanes_of, parallelize_outer
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef


def schedule_rows(sch: Schedule, target: Target) -> None:
    """Schedule every block of the program around the axes that all reductions keep."""
    blocks = state.blocks(sch.program)
    last = blocks[-1]
    row_axes = _row_axes(blocks)
    loops = dict(zip([it.var for it in last.iters], sch.loops(sch.block(last.name)), strict=True))
    rows = [loops[it.var] for k, it in enumerate(last.iters) if it.kind == "spatial" and k in row_axes]
    rest = [v for v in loops.values() if v not in rows]
    if rows and rest:
        sch.reorder(*rows, *rest)
    names = [b.name for b in blocks]
    if rows:
        for name in reversed(names[:-1]):
            sch.compute_at(sch.block(name), rows[-1])
            sch.set_scope(sch.block(name), 0, "local")
    for name in names:
        _vectorize_stage(sch, sch.block(name), rows[-1] if rows else None, target)
    work = 1
    for b in blocks[-1:]:
        for it in b.iters:
            work *= as_int(it.extent) or 1
    if rows and work * len(blocks) >= PARALLEL_ELEMENTS and target.cores > 1:
        parallelize_outer(sch, rows, target)


def _row_axes(blocks: list[Block]) -> set[int]:
    """Dimensions of the last block's output that no reduction of the program runs over."""
    last = classify(blocks[-1])
    rank = len([it for it in blocks[-1].iters if it.kind == "spatial"])
    keep = set(range(rank))
    for b in blocks:
        info = classify(b)
        if any(it.kind == "reduce" for it in b.iters) and b is not blocks[-1]:
            keep &= _kept(info, rank, last)
    return keep


def _kept(info: BlockInfo, rank: int, last: BlockInfo) -> set[int]:
    """Dimensions that a reduction's output still has with more than one element, or that are 1 in the result too."""
    assert info.out is not None and last.out is not None
    if len(info.out.buffer.shape) != rank:
        return set(range(min(rank, len(info.out.buffer.shape))))
    out = set()
    for d, (a, b) in enumerate(zip(info.out.buffer.shape, last.out.buffer.shape, strict=True)):
        if as_int(a) == as_int(b):
            out.add(d)
    return out


def _vectorize_stage(sch: Schedule, ref: BlockRef, row: Var | None, target: Target) -> None:
    """Vectors along the innermost loop of a stage: spatial directly, a reduction through partial results per lane."""
    loops = sch.loops(ref)
    if row is not None and row in loops:
        loops = loops[loops.index(row) + 1:]
    if not loops:
        return
    block = state.find_block(sch.program, ref)
    lanes = lanes_of(block, target)
    inner = loops[-1]
    n = as_int(sch.loop(inner).extent) or 1
    if n < lanes or lanes == 1:
        return
    reduce_loop = any(it.kind == "reduce" for it in block.iters)
    if not reduce_loop:
        _, v = sch.split(inner, [None, lanes])
        sch.vectorize(v)
        return
    if n % lanes:
        return
    _, v = sch.split(inner, [None, lanes])
    partial = sch.rfactor(ref, v, 0)
    sch.set_scope(partial, 0, "local")
