"""Softmax of rows on a GPU, made fast step by step.

Run it:  python docs/tutorials/softmax.py                    (all devices that are here; programs, sources, times)
         python docs/tutorials/softmax.py --quiet            (only what was measured)
         python docs/tutorials/softmax.py --html steps.html  (the last schedule as a page, primitive by primitive)

y[i, j] = exp(x[i, j] - max x[i]) / Σ exp(x[i, j] - max x[i]): four stages, of which two reduce a row to a number that
the next one needs. There is next to nothing to compute, so the time is that of moving bytes, and the least is 8 for
each element: one read, one write. What keeps a kernel from it is the order: nothing can be written before the row's sum
is known, which cannot be begun before its maximum is known. So a row must stay somewhere near meanwhile, and its
threads must work together.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
from steps import SHOWN, Walk, chosen, options

import tilewright
from tilewright import te
from tilewright.target.presets import get_target
from tilewright.target.target import Target
from tilewright.tensor.schedule.state import BlockRef


# ---- what is computed -------------------------------------------------------------------------------------------------
class Softmax:
    """Four stages: the greatest element of each row, the exponentials, their sum, the quotient."""

    def __init__(self, rows: int, columns: int) -> None:
        self.columns = columns
        self.x = te.placeholder((rows, columns), name="x")
        k, r = te.reduce_axis(columns, "k"), te.reduce_axis(columns, "r")
        self.top = te.compute((rows,), lambda i: te.max(self.x[i, k], axis=[k]), name="top")
        self.power = te.compute((rows, columns), lambda i, j: te.exp(self.x[i, j] - self.top[i]), name="power")
        self.total = te.compute((rows,), lambda i: te.sum(self.power[i, r], axis=[r]), name="total")
        self.y = te.compute((rows, columns), lambda i, j: self.power[i, j] / self.total[i], name="y")
        self.args = [self.x, self.y]


# ---- how: one schedule after another -----------------------------------------------------------------------------------
def threads_of(d: Softmax, target: Target) -> int:
    """Threads of a block: up to 256, as far as the device has them and a row has two elements for each."""
    return min(256, target.max_threads, 1 << (d.columns // 2).bit_length() - 1)


def naive(d: Softmax, target: Target) -> te.StageSchedule:
    """A kernel for each stage.

    A thread for each row that is reduced, and one for each element where all are computed. What limits it: bytes, since x
    is read twice, the exponentials are written and read twice, and y is written: 24 for each element instead of 8. And the
    reductions have as many threads as there are rows, each of which goes along a row: neighbours read what is a row apart.
    """
    s = te.create_schedule(d.y.op)
    for row in (d.top, d.total):
        block, thread = s[row].split(row.op.axis[0], 32)
        s[row].bind(block, "blockIdx.x")
        s[row].bind(thread, "threadIdx.x")
    for every in (d.power, d.y):
        block, thread = s[every].split(every.op.axis[1], threads_of(d, target))
        s[every].bind(every.op.axis[0], "blockIdx.y")
        s[every].bind(block, "blockIdx.x")
        s[every].bind(thread, "threadIdx.x")
    return s


def block_per_row(d: Softmax, target: Target) -> te.StageSchedule:
    """A block for each row.

    One kernel: all stages are computed for one row after another (`compute_at`), and what a row's stages hand to each other
    stays in shared memory. x is read twice, y is written, and nothing else. What limits it now: the two reductions, each of
    which one thread does for its row, while all others of the block wait at a barrier.
    """
    s = te.create_schedule(d.y.op)
    spread(s[d.y], threads_of(d, target))
    for row in (d.top, d.total, d.power):
        s[row].set_scope("shared")
        s[row].compute_at(s[d.y], d.y.op.axis[0])
    together(s[d.power], threads_of(d, target))
    return s


def spread(y: te.Stage, threads: int) -> None:
    """Rows over blocks, the elements of a row over threads."""
    y.bind(y.op.axis[0], "blockIdx.x")
    together(y, threads)


def together(stage: te.Stage, threads: int) -> None:
    """All threads compute a row of a stage, neighbours neighbouring elements."""
    stage.bind(stage.split(stage.op.axis[1], threads)[1], "threadIdx.x")


def cooperative(d: Softmax, target: Target) -> te.Schedule:
    """Reductions by all threads of a block.

    `rfactor` makes two of a reduction: each thread reduces every 256th element of the row, then their results are reduced,
    by 16 threads and at last by one. That is another order of adding up, so it may round differently; it is a rewrite that
    is asked for by name. (Written in the other style of schedules, where each primitive is applied to the program at once.)
    What limits it now: bytes, 12 for each element, since x is read once for the maximum and once for the exponentials.
    """
    return reduced(d, target, copied=False)


def reduced(d: Softmax, target: Target, copied: bool) -> te.Schedule:
    """A block for each row, all of whose threads reduce; `copied`: its elements are kept in shared memory."""
    sch = te.Schedule(te.create_program("softmax", [d.x], [d.y]))
    top, power, total, y = (sch.block(name) for name in ("top", "power", "total", "y"))
    row, column = sch.loops(y)
    stages = [total, power, top]  # each before those that it reads
    if copied:
        stages.append(sch.cache_read(top, "x", "shared", [power]))
    for stage in stages:
        sch.compute_at(stage, row)
        sch.set_scope(stage, 0, "shared")
    sch.bind(row, "blockIdx.x")
    for stage in (y, *stages):
        if stage in (top, total):
            for lanes in (threads_of(d, target), 16):
                add_up(sch, stage, lanes)
        else:
            loop = column if stage is y else sch.loops(stage)[-1]
            sch.bind(sch.split(loop, [None, threads_of(d, target)])[1], "threadIdx.x")
    return sch


def add_up(sch: te.Schedule, stage: BlockRef, lanes: int) -> None:
    """A reduction by so many threads, of whose results the reduction is then made."""
    steps, lane = sch.split(sch.loops(stage)[-1], [None, lanes])
    partial = sch.rfactor(stage, lane)
    sch.set_scope(partial, 0, "shared")
    sch.reorder(lane, steps)
    sch.bind(lane, "threadIdx.x")


def read_once(d: Softmax, target: Target) -> te.Schedule:
    """Every element read once.

    A copy of the row in shared memory, from which maximum and exponentials are computed: 8 bytes for each element, which
    is the least there is. What limits it now: the bandwidth of the memory, if rows are long enough to keep a block's
    threads busy and there are blocks enough to fetch their rows while others reduce theirs.
    """
    return reduced(d, target, copied=True)


# ---- the walk ------------------------------------------------------------------------------------------------------------
def main() -> None:
    given = options(__doc__.partition("\n")[0], rows=1024, columns=1024)
    d = Softmax(given.rows, given.columns)
    x = np.random.default_rng(0).standard_normal((given.rows, given.columns)).astype(np.float32)
    power = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    want = power / power.sum(1, keepdims=True)
    walk = Walk((x,), chosen(given.devices), not given.quiet)
    for step in (naive, block_per_row, cooperative, read_once):
        walk.step(step, lambda t, step=step: step(d, t), d.args, want)
    walk.summary(flops=5 * x.size, nbytes=8 * x.size)
    if given.html:
        Path(given.html).write_text(tilewright.schedule_html(read_once(d, get_target(SHOWN[0]))), "utf-8")


if __name__ == "__main__":
    main()
