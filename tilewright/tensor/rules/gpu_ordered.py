"""Schedule rules for devices: blocks whose instances follow each other along an axis, threads along the others.

In: a Schedule and a block that reads what its instance before wrote (running sums), a block whose instances must stay in
order (updates at places that data name), or a loop over time around the stages of a recurrence. Out: one kernel for each.
Running sums have a thread per chain. Updates have a thread per place that their own index tells apart. A recurrence is one
block of threads that share every stage of a step, and wait for each other between them: a step is too short to start
kernels for, and its weights stay near the core that reads them.

    t | lane threadIdx.x: gate[…] = Σ w·h[t-1] | barrier | lane threadIdx.x: h[t] = f(gate)
"""
from __future__ import annotations

from tilewright.loop.ir import Store, Var, as_int
from tilewright.target.target import Target
from tilewright.tensor.regions import outputs
from tilewright.tensor.rules.gpu_results import to_threads
from tilewright.tensor.rules.rows import is_reduction
from tilewright.tensor.running import running_axis
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef

THREADS = 256
"""Threads of the block that computes a recurrence."""
STEP_BYTES = 8 << 10
"""What a stage of a step makes lies in shared memory if it is no larger."""


def schedule_chains(sch: Schedule, ref: BlockRef, target: Target) -> set[str]:
    """Schedule a block along whose `running_axis` the order of instances must stay; its name."""
    block = state.find_block(sch.program, ref)
    loops = dict(zip([it.var for it in block.iters], sch.loops(ref), strict=True))
    axis = running_axis(block)
    assert axis is not None
    time = loops.pop(axis)
    if loops:
        sch.reorder(*loops.values(), time)
        _bind(sch, ref, to_threads(sch, list(loops.values()), target))
    return {ref.name}


def schedule_updates(sch: Schedule, ref: BlockRef, target: Target) -> set[str]:
    """Schedule a block whose instances must stay in order, except along those axes that are indices of what it writes:
    different values of these write different elements. Its name."""
    block = state.find_block(sch.program, ref)
    own = outputs(block)
    stores = [n for n in state.iterate(block.body) if isinstance(n, Store) and n.buffer in own]
    free = [it.var for it in block.iters if stores and all(any(i is it.var for i in s.indices) for s in stores)]
    loops = dict(zip([it.var for it in block.iters], sch.loops(ref), strict=True))
    lanes = [v for k, v in loops.items() if k in free and as_int(sch.loop(v).extent) != 1]
    if lanes:
        sch.reorder(*lanes, *[v for v in loops.values() if v not in lanes])
        _bind(sch, ref, to_threads(sch, lanes, target))
    return {ref.name}


def _bind(sch: Schedule, ref: BlockRef, thread: Var) -> None:
    around = sch.loops(ref)
    sch.bind(around[around.index(thread) - 1], "blockIdx.x")
    sch.bind(thread, "threadIdx.x")


def schedule_steps(sch: Schedule, time: Var, target: Target) -> set[str]:
    """Schedule the blocks under a loop over time; their names."""
    names = [b.name for b in state.blocks_under(sch.loop(time))]
    made = set(names)
    for name in names:
        ref = sch.block(name)
        block = state.find_block(sch.program, ref)
        loops = dict(zip([it.var for it in block.iters], sch.loops(ref), strict=True))
        spatial = [loops[it.var] for it in block.iters if it.kind == "spatial" and loops[it.var] is not time]
        reduced = [loops[it.var] for it in block.iters if it.kind == "reduce"]
        size = 1
        for v in spatial:
            size *= as_int(sch.loop(v).extent) or 1
        for k, b in enumerate(outputs(block)):
            if not state.is_parameter(sch.program, b) and size * b.dtype.nbytes <= STEP_BYTES:
                sch.set_scope(ref, k, "shared")
        if not spatial:
            continue
        store = None
        if is_reduction(block) and isinstance(block.body, Store):
            store = sch.cache_write(ref, 0, "local")
            made.add(store.name)
            loops = dict(zip([it.var for it in block.iters], sch.loops(ref), strict=True))
        sch.reorder(*spatial, *reduced)
        lane = sch.fuse(*spatial) if len(spatial) > 1 else spatial[0]
        inside = lane
        threads = min(THREADS, target.max_threads)
        if size > threads:
            inside, lane = sch.split(lane, [None, threads])
            sch.reorder(lane, inside)
        if store is not None:
            sch.reverse_compute_at(store, inside)
            made.add(sch.decompose_reduction(ref, sch.loops(ref)[sch.loops(ref).index(inside) + 1]).name)
        sch.bind(lane, "threadIdx.x")
    return made
