"""How outer loops are shared among cores: as many are fused into one parallel loop as give balanced work.

In: a Schedule and the loops outside a tile, outermost first. Out: one parallel loop. The runtime gives every thread a
contiguous range of its iterations, so the outermost axis (weight panels) should still be the slowest.
"""
from __future__ import annotations

from tilewright.loop.ir import Expr, Var, as_int, estimate
from tilewright.target.target import Target
from tilewright.tensor.schedule.schedule import Schedule

TASKS_PER_CORE = 8
"""Iterations per core from which stealing evens out what the split does not."""

IMBALANCE = 1.03
"""Largest accepted ratio of the busiest core's iterations to the mean."""


PARALLEL_FLOPS = 1 << 19
"""Operations below which one thread is as fast: about 4 µs on a core of 120 GFLOP/s, against the start of a region and the
lines that then change between caches."""


def parallelize_outer(sch: Schedule, loops: list[Var], target: Target) -> None:
    """Fuse the outermost loops until every core has enough iterations and about equally many; run them in parallel."""
    work, keep = 1, 0
    for v in loops:
        keep += 1
        work *= max(1, estimate(sch.loop(v).extent))
        busiest = -(-work // target.cores) * target.cores / work
        if work >= TASKS_PER_CORE * target.cores and busiest <= IMBALANCE:
            break
    sch.parallel(sch.fuse(*loops[:keep]) if keep > 1 else loops[0])


def rows_per_part(rows: Expr, target: Target) -> int:
    """Rows of pixels in one of the equal parts in which cores share them, at least one part per core and at most two; 0 if
    rows are not shared so.

    With the parts outermost, a core computes from rows that it made itself in the kernels before: lines that are in another
    core's cache cost many times a miss in the own one to read, and more to write again."""
    extent = as_int(rows)
    if extent is None or target.cores == 1:
        return 0
    return next((extent // parts for parts in range(target.cores, 2 * target.cores + 1) if extent % parts == 0), 0)
