"""Schedule rule of contractions without an N axis on a CPU: depthwise convolution, and dot products of rows.

In: a Schedule and its block. Out: channels in vectors, a small tile of pixels in registers with all window positions
unrolled, so that each input is loaded once per tile and the weights stay in registers.
"""
from __future__ import annotations

from dataclasses import dataclass

from tilewright.loop.ir import Var, as_int, estimate
from tilewright.target.target import Target
from tilewright.tensor.classify import classify
from tilewright.tensor.rules.epilogue import attach_epilogue, finish_store
from tilewright.tensor.rules.threads import PARALLEL_FLOPS, parallelize_outer, rows_per_part
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef

UNROLLED = 256
"""Multiply-adds in one unrolled tile: beyond this LLVM's time grows faster than the code."""


@dataclass(frozen=True)
class MovingAxis:
    """An axis of pixels: how many, the window's positions along it, and its stride."""
    extent: int
    window: int
    stride: int


def schedule_depthwise(sch: Schedule, ref: BlockRef, epilogue: BlockRef | None, target: Target) -> None:
    """Schedule a window contraction whose innermost output axis indexes both operands; or pooling over a window."""
    info = classify(state.find_block(sch.program, ref))
    loops = dict(zip([it.var for it in info.block.iters], sch.loops(ref), strict=True))
    assert info.out is not None
    spatial = [loops[v] for dim in info.out.vars for v in dim if v in loops]
    reduce = [loops[it.var] for it in info.block.iters if it.kind == "reduce"]
    lanes = target.lanes(info.out.buffer.dtype.bits)
    *outer, last = spatial
    outer = [v for v in loops.values() if v not in spatial and v not in reduce] + outer  # of one turn: in no index
    extent = {v: estimate(sch.loop(v).extent) for v in loops.values()}
    if epilogue is None:
        epilogue = sch.cache_write(ref, 0, "local")
    else:
        sch.set_scope(ref, 0, "local")
    if extent[last] > lanes or as_int(sch.loop(last).extent) is None:
        vo, last = sch.split(last, [None, lanes])
        outer.append(vo)
    window = 1
    for v in reduce:
        window *= extent[v]
    windows = [w for w in info.windows if loops[w.spatial] is not spatial[-1]]
    moving = [loops[w.spatial] for w in windows]
    part: Var | None = None
    if len(moving) > 1 and (share := rows_per_part(sch.loop(moving[-2]).extent, target)):
        at = outer.index(moving[-2])
        part, moving[-2] = sch.split(moving[-2], [None, share])
        outer[at] = moving[-2]
        outer.insert(0, part)
        extent[moving[-2]] = share
    axes = [MovingAxis(extent[v], extent[loops[w.reduce]], w.stride) for v, w in zip(moving, windows, strict=True)]
    rows, columns = tile_shape(axes, window, target, whole_rows=part is not None)
    tiled: list[Var] = []
    for v, size in zip(moving[-2:], (rows, columns)[2 - len(moving[-2:]):], strict=True):
        o, i = sch.split(v, [None, size])
        outer[outer.index(v)] = o
        tiled.append(i)
    sch.reorder(*outer, *reduce, *tiled, last)
    if outer:
        attach_epilogue(sch, epilogue, outer[-1])
    if reduce:
        init = sch.decompose_reduction(ref, reduce[0])
        around = sch.loops(init)
        own = around[around.index(outer[-1]) + 1:] if outer else around  # without those of a single turn
        for v in own[:-1]:
            sch.unroll(v)
        if own:
            sch.vectorize(own[-1])
    if window * rows * columns <= UNROLLED:
        for v in reduce:
            sch.unroll(v)
    for v in tiled:
        sch.unroll(v)
    sch.vectorize(last)
    finish_store(sch, epilogue, outer[-1] if outer else None, lanes)
    if outer and info.flops >= PARALLEL_FLOPS:
        parallelize_outer(sch, outer, target)


def tile_shape(axes: list[MovingAxis], window: int, target: Target, whole_rows: bool = False) -> tuple[int, int]:
    """Rows and columns of pixels per tile: as many accumulators as the vector registers hold besides the inputs that wait
    for their next use, up to 2 x 7, within the bound on unrolled code. `whole_rows`: a tile's rows divide all."""
    if not axes:
        return 1, 1
    x, y = axes[-1], axes[-2] if len(axes) > 1 else MovingAxis(1, 1, 1)
    best, best_key = (1, 1), (0.0, 0)
    for rows in (1, 2):
        for columns in range(1, 15):
            if rows > y.extent or columns > x.extent or rows * columns * window > UNROLLED or rows * columns > 14:
                continue
            if whole_rows and y.extent % rows:
                continue
            if rows * columns > 1 and live_registers(rows, columns, y, x) > target.vector_registers:
                continue
            waste = (-(-y.extent // rows) * rows * -(-x.extent // columns) * columns) / (y.extent * x.extent)
            if (key := (rows * columns / waste, rows)) > best_key:
                best, best_key = (rows, columns), key
    return best


def live_registers(rows: int, columns: int, y: MovingAxis, x: MovingAxis) -> int:
    """Vectors that an unrolled tile keeps at once. Equal inputs are loaded once: of the current row those that the next
    columns' windows share, and all of a row that the next row of pixels meets again at another position of the window;
    then the accumulators, one weight and the input just loaded."""
    again = (rows - 1) * ((columns - 1) * x.stride + x.window) if y.window > y.stride else 0
    shared = columns - 1 if x.window > x.stride else 0
    return rows * columns + again + shared + 2
