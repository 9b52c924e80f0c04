"""Schedule rule of attention for devices: one kernel, a block of threads for some rows of queries.

In: a Schedule whose blocks are scores = Q Kᵀ, elementwise stages, the softmax of each row and its product with V. Out: the
blocks of `online_softmax` in threads: tiles of K and V go through shared memory one after another, the scores of a tile are
there only while it is; the running maximum and sum of each row are in shared memory, the results in registers.

    blocks (batch, rows) | load Q | key tiles | load K | scores y, x | row maxima | exponentials y, x | row sums | load V |
    results y, x += exponentials * V          | results / sums
"""
from __future__ import annotations

import math
from collections.abc import Sequence

from tilewright.core.node import walk
from tilewright.loop.ir import Buffer, Load, Store, Var, as_int
from tilewright.target.target import Target
from tilewright.tensor.classify import classify
from tilewright.tensor.regions import consumers, outputs, producers
from tilewright.tensor.rules.attention import Attention, find_attention
from tilewright.tensor.rules.epilogue import is_view, merge_chain
from tilewright.tensor.rules.gpu_contraction import Axis, align_rows, load_together, loops_of, wide_lanes
from tilewright.tensor.rules.rows import is_reduction
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef, ScheduleError

TILES = ((32, 32), (16, 32), (16, 16), (8, 16))
"""Rows of queries and keys of a tile: the first for which there are blocks for all cores and shared memory suffices."""
ACROSS = 16
"""Threads along keys, and along the columns of the result."""
DOWN = 16
"""Threads along rows, as far as there are rows."""


def attention_of(sch: Schedule, views: Sequence[str]) -> Attention | None:
    """The attention that a program computes, if it is one of known sizes with enough rows for a tile; of the first product's
    operands `views` made one."""
    if len(views) > 1:
        return None
    found = find_attention(sch.program, (views[0] if views else None, None))
    if found is None or any(as_int(it.extent) is None for p in (found.scores, found.output) for it in p.info.block.iters):
        return None
    wide = found.output.size(found.output.column) > 1 and found.output.size(found.output.row) >= TILES[-1][0]
    return found if wide else None


def tiles_of(found: Attention, target: Target) -> list[tuple[int, int]]:
    """The tiles worth trying, the best first."""
    rows, tasks = found.output.size(found.output.row), found.output.tasks
    fitting = [t for t in TILES if t[0] <= max(rows, TILES[-1][0])]
    busy = [t for t in fitting if tasks * math.ceil(rows / t[0]) >= target.cores]
    return busy or fitting[-1:]


def schedule_online(sch: Schedule, found: Attention, tile: tuple[int, int], target: Target) -> set[str]:
    """Schedule an attention program; the names of all its blocks. Raises ScheduleError where a block is another than it was
    taken for."""
    rows, columns = tile
    axes = [Axis(found.output.row.var, "threadIdx.y", min(DOWN, rows, target.max_threads // ACROSS), 1, False),
            Axis(found.output.column.var, "threadIdx.x", ACROSS, 1, True)]
    scores, product = sch.block(found.scores.name), sch.block(found.output.name)
    read = classify(state.find_block(sch.program, scores))
    assert read.a is not None and read.b is not None and read.out is not None
    masked, _ = merge_chain(sch, scores)
    if masked is None:
        masked = sch.cache_write(scores, 0, "local")
        read = classify(state.find_block(sch.program, scores))
    top, power, total = _softmax(sch, found)
    behind, fills = merge_chain(sch, product)
    if fills:
        raise ScheduleError("merge", "borders are filled behind the product", sch.program, product)
    io, t = sch.online_softmax(product, rows, columns)
    stored = sch.block(f"{product.name}_store")
    if behind is not None:
        sch.reverse_compute_inline(behind)
    _scores(sch, scores, masked, t, axes)
    assert read.a is not None and read.b is not None
    for x, home in ((read.a, io), (read.b, t)):
        _stage(sch, scores, x.buffer.name, home, axes, found.scores.column.var)
    for ref in (sch.block(f"{top.name}_tile"), sch.block(f"{total.name}_tile")):
        _reduce_rows(sch, ref, t, axes)
    for ref, home in ((sch.block(f"{top.name}_start"), io), (sch.block(f"{total.name}_start"), io),
                      (sch.block(f"{top.name}_new"), t), (sch.block(f"{top.name}_scale"), t), (top, t), (total, t)):
        lane, _ = sch.split(_inside(sch, ref, home)[0], [axes[0].threads, None])
        sch.bind(lane, "threadIdx.y")
        sch.set_scope(ref, 0, "shared")
    row, column = _inside(sch, power, t)
    _share(sch, row, column, axes, ())
    sch.set_scope(power, 0, "shared")
    made = outputs(state.find_block(sch.program, product))[0]
    values = next(x for x in classify(state.find_block(sch.program, product)).reads
                  if x.buffer not in (made, outputs(state.find_block(sch.program, power))[0]))
    sch.set_scope(product, 0, "local")
    for ref, home in ((sch.block(f"{product.name}_start"), io), (sch.block(f"{product.name}_scale"), t), (product, t)):
        row, column, *summed = _inside(sch, ref, home)
        for v in _share(sch, row, column, axes, summed):
            sch.unroll(v)
    made = outputs(state.find_block(sch.program, product))[0]
    for v in _share(sch, *_row_and_column(sch, stored, made, io), axes, ()):
        sch.unroll(v)
    _stage(sch, product, values.buffer.name, t, axes, None)
    around = sch.loops(product)
    batch = around[:around.index(io)]
    if batch:
        sch.bind(sch.fuse(*batch) if len(batch) > 1 else batch[0], "blockIdx.y")
    sch.bind(io, "blockIdx.x")
    return {b.name for b in state.blocks(sch.program)}


def _softmax(sch: Schedule, found: Attention) -> tuple[BlockRef, BlockRef, BlockRef]:
    """The blocks of the rows' maxima, of the exponentials and of their sums."""
    left = [b for b in state.blocks(sch.program) if b.name in found.stages]
    reductions = [b for b in left if is_reduction(b)]
    if len(reductions) != 2:
        raise ScheduleError("online_softmax", "there are not one maximum and one sum of rows", sch.program)
    top, total = reductions
    for b in consumers(sch.program, total):  # what a row is divided by
        if len(b.iters) == len(total.iters) - 1 and not is_reduction(b):
            sch.compute_inline(sch.block(b.name))
    power = next((b for b in producers(sch.program, total) if b in left), None)
    if power is None:
        raise ScheduleError("online_softmax", "there are no exponentials", sch.program)
    return BlockRef(top.name), BlockRef(power.name), BlockRef(total.name)


def _scores(sch: Schedule, scores: BlockRef, masked: BlockRef, t: Var, axes: list[Axis]) -> None:
    """A tile of scores in shared memory, a few in the registers of each thread while they are added up."""
    sch.compute_at(masked, t)
    sch.set_scope(masked, 0, "shared")
    made = outputs(state.find_block(sch.program, scores))[0]
    rest = _share(sch, *_row_and_column(sch, masked, made, t), axes, ())
    around = sch.loops(masked)
    x = next(v for v in reversed(around) if sch.loop(v).kind == axes[1].thread)
    sch.compute_at(scores, x)
    sch.set_scope(scores, 0, "local")
    block = state.find_block(sch.program, scores)
    inner = _inside(sch, scores, x)
    loops = loops_of(block, inner)
    summed = [loops[it.var] for it in block.iters if it.kind == "reduce"]
    kept = [v for v in inner if v not in summed]
    sch.reorder(*summed, *kept)
    init = sch.decompose_reduction(scores, summed[0])
    for v in [*kept, *_inside(sch, init, x), *rest]:
        sch.unroll(v)


def _inside(sch: Schedule, ref: BlockRef, home: Var) -> list[Var]:
    """The loops of a block inside another one."""
    around = sch.loops(ref)
    return around[around.index(home) + 1:]


def _row_and_column(sch: Schedule, ref: BlockRef, read: Buffer, home: Var) -> tuple[Var, Var]:
    """The loops of a block along the last two axes of a buffer that it reads."""
    block = state.find_block(sch.program, ref)
    loops = loops_of(block, _inside(sch, ref, home))
    at = next(n.indices for n in walk(block.body) if isinstance(n, Load) and n.buffer is read)
    row, column = (loops.get(i) if isinstance(i, Var) else None for i in at[-2:])
    if row is None or column is None:
        raise ScheduleError("bind", f"block {ref.name} does not read {read.name} along its axes", sch.program, ref)
    return row, column


def _share(sch: Schedule, row: Var, column: Var, axes: list[Axis], summed: Sequence[Var]) -> tuple[Var, Var]:
    """Rows and columns of a tile shared out to threads; the loops over those of one thread."""
    y, r = sch.split(row, [axes[0].threads, None])
    c, x = sch.split(column, [None, axes[1].threads])
    sch.reorder(y, x, *summed, r, c)
    sch.bind(y, axes[0].thread)
    sch.bind(x, axes[1].thread)
    return r, c


def _reduce_rows(sch: Schedule, ref: BlockRef, t: Var, axes: list[Axis]) -> None:
    """Reduce the rows of a tile: the threads of a row part of it each, then the first of them what they found."""
    row, column = _inside(sch, ref, t)
    step, lane = sch.split(column, [None, axes[1].threads])
    sch.reorder(lane, row, step)
    made = outputs(state.find_block(sch.program, ref))[0]
    partial = sch.rfactor(ref, lane, made.rank)
    for at in (partial, ref):
        block = state.find_block(sch.program, at)
        assert isinstance(block.body, Store)
        own = block.body.indices[made.rank - 2]
        assert isinstance(own, Var)
        row = loops_of(block, _inside(sch, at, t))[own]
        y, r = sch.split(row, [axes[0].threads, None])
        if at is partial:
            sch.reorder(y, lane, r, step)
            sch.bind(lane, axes[1].thread)
        sch.bind(y, axes[0].thread)
        sch.set_scope(at, 0, "shared")


def _stage(sch: Schedule, ref: BlockRef, name: str, home: Var, axes: list[Axis], column: Var | None) -> None:
    """Bring a tile of an operand into shared memory, in time for what is done inside `home`."""
    made = next((p for p in producers(sch.program, state.find_block(sch.program, ref))
                 if name in [b.name for b in outputs(p)] and is_view(classify(p))), None)
    copy = sch.cache_read(ref, name, "shared") if made is None else sch.block(made.name)
    sch.compute_at(copy, home)
    sch.set_scope(copy, 0, "shared")
    wide = wide_lanes(sch, copy, home)
    if column is not None:
        align_rows(sch, ref, copy, [column], wide)
    load_together(sch, copy, home, axes, wide)
