"""Schedule rule for devices: reductions over sliding windows, each channel by itself (depthwise convolution, pooling).

In: a Schedule and its block. Out: one kernel. A block of threads computes a tile of results along the last three axes of
the output; the part of the input that its windows touch, border included, is loaded into shared memory by all threads
together; a thread computes a few results along y, which share rows of their windows, in registers.

    blocks | load the input's tile | threads z, y, x | window | results of a thread
"""
from __future__ import annotations

from tilewright.target.target import Target
from tilewright.tensor.classify import BlockInfo, classify
from tilewright.tensor.rules.gpu_contraction import STEPS, Axis, schedule_tile
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef

THREADS = 256
"""Threads of a block."""
DOWN = (4, 2, 1)
"""Results of a thread along y: the first that leaves two blocks for each core and whose tile fits into shared memory."""


def fits_windows(info: BlockInfo) -> bool:
    """Whether a block reduces over windows only, of one operand or weighted by another."""
    windows = {w.reduce for w in info.windows}
    reduced = {it.var for it in info.block.iters if it.kind == "reduce" and info.extents[it.var] != 1}
    known = all(n is not None for n in info.extents.values())
    return known and bool(windows) and reduced <= windows and (info.kind == "window" or info.is_depthwise)


def schedule_windows(sch: Schedule, ref: BlockRef, target: Target, most: int) -> set[str]:
    """Schedule such a block, `most` results of a thread along y at most, and the elementwise blocks behind it; the names of
    those that have their schedule now. Raises ScheduleError, also where a tile does not fit into shared memory."""
    info = classify(state.find_block(sch.program, ref))
    assert info.out is not None
    data = next(x for x in info.reads if any({w.spatial, w.reduce} <= used for w in info.windows for used in x.vars))
    return schedule_tile(sch, ref, _axes(info, target, most), target, STEPS[0], [data.buffer.name])


def _axes(info: BlockInfo, target: Target, most: int) -> list[Axis]:
    """Threads along the last axes of the output that are longer than one, the innermost along x."""
    assert info.out is not None
    spatial = {it.var for it in info.block.iters if it.kind == "spatial"}
    extents = {v: n or 1 for v, n in info.extents.items()}
    order = [v for used in info.out.vars for v in used if v in spatial]
    long = [v for v in order if extents[v] > 1][-3:] or order[-1:]
    x, *rest = reversed(long)
    left = min(THREADS, target.max_threads)
    results = 1
    for v in order:
        results *= extents[v]
    shape = [(x, "threadIdx.x", _threads(extents[x], min(left, target.warp)), 1)]
    left //= shape[0][2]
    for v, name in zip(rest, ("threadIdx.y", "threadIdx.z"), strict=False):
        down = 1
        if name == "threadIdx.y":
            down = next(r for r in DOWN if r == 1 or r <= most and results // (r * THREADS) >= 2 * target.cores
                        and extents[v] >= 2 * r)
        limit = target.max_block["xyz".index(name[-1])]
        shape.append((v, name, _threads(-(-extents[v] // down), min(left, limit)), down))
        left //= shape[-1][2]
    return [Axis(v, name, threads, down, v is x) for v, name, threads, down in reversed(shape)]


def _threads(n: int, limit: int) -> int:
    """The least power of two that is n or more, up to a limit."""
    p = 1
    while p < n and p * 2 <= limit:
        p *= 2
    return p
