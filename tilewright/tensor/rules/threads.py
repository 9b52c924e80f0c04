"""How outer loops are shared among cores: as many are fused into one parallel loop as give balanced work.

In: a Schedule and the loops outside a tile, outermost first. Out: one parallel loop. The runtime gives every thread a
contiguous range of its iterations, so the outermost axis (weight panels) should still be the slowest.
"""
from __future__ import annotations

from tilewright.loop.ir import Var, estimate
from tilewright.target.target import Target
from tilewright.tensor.schedule.schedule import Schedule

TASKS_PER_CORE = 8
"""Iterations per core from which stealing evens out what the split does not."""

IMBALANCE = 1.03
"""Largest accepted ratio of the busiest core's iterations to the mean."""


def parallelize_outer(sch: Schedule, loops: list[Var], target: Target) -> None:
    """Fuse the outermost loops until every core has enough iterations and about equally many; run them in parallel."""
    work, keep = 1, 0
    for v in loops:
        keep += 1
        work *= estimate(sch.loop(v).extent)
        busiest = -(-work // target.cores) * target.cores / work
        if work >= TASKS_PER_CORE * target.cores and busiest <= IMBALANCE:
            break
    sch.parallel(sch.fuse(*loops[:keep]) if keep > 1 else loops[0])
