"""Schedule rule for devices: programs of reductions and elementwise stages over rows, a block of threads per row.

In: a Schedule of several blocks. Out: one kernel; the stages of a row follow each other within its block, what they keep
between them lies in shared memory. A reduction is partial sums, one per thread, then a tree over the threads.

    row blockIdx.x | t threadIdx.x: part[t] = Σ x[…*T + t] | t < 16: part2[t] = Σ part[…] | t == 0: sum = Σ part2[…]
"""
from __future__ import annotations

import math

from tilewright.loop.ir import Block, Store, Var, as_int
from tilewright.target.target import Target
from tilewright.tensor.classify import classify
from tilewright.tensor.combiner import reduction_of
from tilewright.tensor.regions import outputs
from tilewright.tensor.rules.rows import axes_of, is_reduction, kept_axes
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef

MIN_ROW = 32
"""Shorter rows are reduced by one thread each."""
MAX_RESULTS = 1 << 15
"""With more rows than that, and one reduction only, a thread per row keeps a device busy."""
TREE = 16
"""Partial results that one thread adds up."""


def fits_rows(sch: Schedule, target: Target) -> bool:
    """Whether all reductions of a program keep some axes, along which it can be cut into rows that are worth a block."""
    blocks = state.blocks(sch.program)
    reductions = [b for b in blocks if is_reduction(b)]
    if not reductions or any(reduction_of(b) is None for b in reductions):
        return False
    lengths = [_product(b, "reduce") for b in reductions]
    rows = [_product(b, "spatial") for b in reductions]
    if any(classify(b).kind == "contraction" and classify(b).n for b in reductions):
        return False
    if 0 in lengths or 0 in rows or max(lengths) < MIN_ROW or min(lengths) < MIN_ROW:
        return False
    last = blocks[-1]
    axes = axes_of(sch, blocks, last)
    kept = {it.var: as_int(it.extent) or 0 for it in last.iters if it.var in kept_axes(blocks, axes, last)}
    if math.prod(kept.values()) != min(rows) or min(rows) != max(rows):
        return False
    if is_reduction(last) and not isinstance(last.body, Store):
        return False
    wanted = {v for v, n in kept.items() if n != 1}
    if not all(wanted <= set(axes[b.name].values()) for b in blocks):
        return False
    return len(reductions) > 1 or rows[0] <= MAX_RESULTS


def _product(b: Block, kind: str) -> int:
    return math.prod([as_int(it.extent) or 0 for it in b.iters if it.kind == kind])


def schedule_block_rows(sch: Schedule, target: Target) -> None:
    """Schedule all blocks of the program as one kernel."""
    last = state.blocks(sch.program)[-1]
    if is_reduction(last):
        copy = sch.cache_write(sch.block(last.name), 0, "shared")
        last = state.find_block(sch.program, copy)
    blocks = state.blocks(sch.program)
    kept = kept_axes(blocks, axes_of(sch, blocks, last), last)
    loops = dict(zip([it.var for it in last.iters], sch.loops(sch.block(last.name)), strict=True))
    rows, rest = [loops[v] for v in kept], [v for k, v in loops.items() if k not in kept]
    length = max(_product(b, "reduce") for b in blocks)
    threads = target.warp
    while threads * 2 <= min(256, target.max_threads) and threads < length:
        threads *= 2
    home: Var | None = None
    if rows:
        if rest:
            sch.reorder(*rows, *rest)
        for b in reversed(blocks):
            if b is not last:
                sch.compute_at(sch.block(b.name), rows[-1])
        home = sch.fuse(*rows) if len(rows) > 1 else rows[0]
        sch.bind(home, "blockIdx.x")
    for b in blocks:
        _stage(sch, sch.block(b.name), home, threads, target)


def _stage(sch: Schedule, ref: BlockRef, home: Var | None, threads: int, target: Target) -> None:
    block = state.find_block(sch.program, ref)
    _keep(sch, ref, target)
    around = sch.loops(ref)
    loops = around if home is None else around[around.index(home) + 1:]
    if not is_reduction(block):
        _to_threads(sch, loops, threads)
        return
    reduced = len([it for it in block.iters if it.kind == "reduce"])
    reduce = loops[len(loops) - reduced:]
    lanes = threads
    while lanes >= TREE:
        loop = sch.fuse(*reduce) if len(reduce) > 1 else reduce[0]
        _partial_sums(sch, ref, loop, lanes, target)
        reduce = sch.loops(ref)[-1:]
        lanes = TREE if lanes > TREE else 0


def _partial_sums(sch: Schedule, ref: BlockRef, loop: Var, lanes: int, target: Target) -> None:
    """Reduce over all steps of a loop but every `lanes`-th first, a thread for each of those."""
    lane, step = loop, None
    if (as_int(sch.loop(loop).extent) or lanes + 1) > lanes:
        step, lane = sch.split(loop, [None, lanes])
    partial = sch.rfactor(ref, lane)
    _keep(sch, partial, target)
    if step is not None:
        sch.reorder(lane, step)
    sch.bind(lane, "threadIdx.x")


def _keep(sch: Schedule, ref: BlockRef, target: Target) -> None:
    """Put what a stage makes into shared memory, if a row of it is small."""
    block = state.find_block(sch.program, ref)
    for k, buffer in enumerate(outputs(block)):
        points = math.prod([as_int(it.extent) or 1 for it in block.iters if it.kind == "spatial"])
        whole = math.prod([as_int(f.extent) or 1 for f in state.loops_around(sch.program, block)
                           if f.kind == "serial"]) if points else 0
        if not state.is_parameter(sch.program, buffer) and min(points, whole) * buffer.dtype.nbytes <= target.shared_memory:
            sch.set_scope(ref, k, "shared")


def _to_threads(sch: Schedule, loops: list[Var], threads: int) -> None:
    if loops:
        fused = sch.fuse(*loops) if len(loops) > 1 else loops[0]
        n = as_int(sch.loop(fused).extent) or threads
        lane = fused
        if n > threads:
            step, lane = sch.split(fused, [None, threads])
            sch.reorder(lane, step)
        sch.bind(lane, "threadIdx.x")
