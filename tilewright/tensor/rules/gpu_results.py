"""Schedule rule for devices: a thread per result, which reduces in a register what there is to reduce.

In: a Schedule and any block. Out: its spatial loops fused, shared out to blocks of threads; neighbouring threads have
neighbouring results, so that their stores (and, mostly, their loads) are one access to memory.
"""
from __future__ import annotations

from tilewright.loop.ir import Store, Var, as_int
from tilewright.target.target import Target
from tilewright.tensor.regions import consumers, outputs, producers
from tilewright.tensor.rules.epilogue import merge_chain, writes_border
from tilewright.tensor.rules.rows import is_reduction
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef

THREADS = 256
"""Threads of a block without shared data: enough warps to hide memory, few enough for any device."""


def schedule_results(sch: Schedule, ref: BlockRef, target: Target, merge: bool) -> set[str]:
    """Schedule one block, with the elementwise blocks behind its reduction if `merge`; the names of those scheduled."""
    block = state.find_block(sch.program, ref)
    if is_reduction(block) and merge:
        for p in producers(sch.program, block):
            if writes_border(p) and [c.name for c in consumers(sch.program, p)] == [ref.name]:
                sch.compute_inline(sch.block(p.name))
        block = state.find_block(sch.program, ref)
    loops = dict(zip([it.var for it in block.iters], sch.loops(ref), strict=True))
    spatial = [loops[it.var] for it in block.iters if it.kind == "spatial"]
    reduced = [loops[it.var] for it in block.iters if it.kind == "reduce"]
    done = {ref.name}
    epilogue: BlockRef | None = None
    if merge and is_reduction(block) and len(outputs(block)) == 1 and isinstance(block.body, Store) and spatial:
        epilogue, fills = merge_chain(sch, ref)
        done |= {f.name for f in fills}
        for f in fills:
            schedule_results(sch, f, target, merge=False)
        if epilogue is None:
            epilogue = sch.cache_write(ref, 0, "local")
        else:
            sch.set_scope(ref, 0, "local")
        done.add(epilogue.name)
    if not spatial:
        return done
    if reduced:
        sch.reorder(*spatial, *reduced)
    thread = to_threads(sch, spatial, target)
    if epilogue is not None:
        sch.reverse_compute_at(epilogue, thread)
    around = sch.loops(ref)
    sch.bind(around[around.index(thread) - 1], "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    if epilogue is not None and reduced:
        sch.decompose_reduction(ref, around[around.index(thread) + 1])
    return done


def to_threads(sch: Schedule, loops: list[Var], target: Target) -> Var:
    """Nested loops fused and split into blocks of threads; the inner loop, neither is bound yet."""
    fused = sch.fuse(*loops) if len(loops) > 1 else loops[0]
    n = as_int(sch.loop(fused).extent)
    threads = min(THREADS, target.max_threads)
    while n is not None and threads // 2 >= n and threads > target.warp:
        threads //= 2
    if n is not None and 0 < n < target.warp:
        threads = n
    _, inner = sch.split(fused, [None, threads])
    return inner
