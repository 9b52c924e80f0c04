"""Part of the schedule rule of spatial blocks on a CPU: loads that run along another axis than the stores do.

In: a Schedule, a block without reductions and the loops of its axes. Out: both axes tiled, so that a cache line that is
read is used whole while it is in the first-level cache. A transpose, a change between blocked and plain layout and
arithmetic on such operands are the same case: it is read from the index maps.

Where the lines of a tile would fall into the same few sets of the cache and drive each other out (strides of whole pages),
the tile is first copied, line by line, into memory of its own.
"""
from __future__ import annotations

from dataclasses import dataclass

from tilewright.core.node import walk
from tilewright.loop.ir import Block, FloorDiv, FloorMod, Guard, Load, Select, Store, Var, as_int
from tilewright.target.target import Target
from tilewright.tensor.classify import linear_coefficients, vars_of
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef

SET_PERIOD = 4096
"""Bytes after which addresses share a set of a first-level cache: it is indexed by the part of an address within a page."""

COPIED_LINES = 2
"""Cache lines along each side of a copied tile: 32 x 32 elements of 4 bytes took 0.23 ms for a transpose of 1024 x 1024,
16 x 16 took 0.6 ms, loads from where the operand lies 0.4 ms."""


@dataclass(frozen=True)
class Crossing:
    """A load of a block that is contiguous along `along`, over `run` elements (None: all of them), while the store is
    along `last`. `copied`: the lines of a tile share sets of the cache, and a copy of the tile can be made."""
    load: Load
    along: Var
    last: Var
    run: int | None
    copied: bool


def find_crossing(block: Block) -> Crossing | None:
    """The first load of a block that runs along another output axis than the store does."""
    body = block.body
    if not isinstance(body, Store) or not body.indices or not isinstance(body.indices[-1], Var):
        return None
    last = body.indices[-1]
    moving = {it.var for it in block.iters if as_int(it.extent) != 1}
    if last not in moving:
        return None
    loads = [n for n in walk(body.value) if isinstance(n, Load) and n.indices and n.buffer is not body.buffer]
    conditional = any(isinstance(n, Guard | Select) for n in walk(body.value))
    for load in loads:
        *others, inner = load.indices
        if last in vars_of(inner) or not any(last in vars_of(e) for e in others):
            continue
        for v in sorted(vars_of(inner) & moving, key=lambda v: v.name):
            run = _run(load, v)
            if run is None:
                continue
            # a copy holds one box of its operand, and is made whether or not a condition would skip the load
            alone = not any(n.buffer is load.buffer and n.indices != load.indices for n in loads)
            copied = alone and not conditional and run == 0 and _shares_sets(load, last)
            return Crossing(load, v, last, run or None, copied)
    return None


def _run(load: Load, v: Var) -> int | None:
    """Elements over which a load is contiguous along `v`: 0 for all, None if it is not."""
    *others, inner = load.indices
    if isinstance(inner, FloorMod) and inner.a == v:
        within = all(e == FloorDiv(v, inner.b) for e in others if v in vars_of(e))
        return as_int(inner.b) if within else None
    linear = linear_coefficients(inner)
    return 0 if linear is not None and linear.get(v) == 1 and not any(v in vars_of(e) for e in others) else None


def _shares_sets(load: Load, v: Var) -> bool:
    """Whether the elements of a load along `v` lie in the same few sets of the cache. (Unknown places count as no.)"""
    buffer = load.buffer
    if buffer.strides is not None or buffer.packing != 1:
        return False
    stride, step = 0, buffer.dtype.nbytes
    for index, extent in zip(reversed(load.indices), reversed(buffer.shape), strict=True):
        linear, size = linear_coefficients(index), as_int(extent)
        if linear is None or size is None:
            return False
        stride += linear.get(v, 0) * step
        step *= size
    return stride % SET_PERIOD == 0


def tile_crossing(sch: Schedule, ref: BlockRef, crossing: Crossing, loops: list[Var], along: Var, lanes: int,
                  target: Target) -> list[Var]:
    """Tile the loop `along` and the last of `loops`, the latter in vectors. Returns the loops outside of the tile."""
    *outer, last = loops
    at = outer.index(along)
    line = max(1, target.cache_line // crossing.load.buffer.dtype.nbytes)
    copied = crossing.copied
    length = line * COPIED_LINES if copied else min(line, crossing.run or line)
    columns = line * COPIED_LINES if copied else lanes
    outer[at], row = _split(sch, along, length)
    out_column, column = _split(sch, last, columns)
    if copied:
        outer = [*outer[:at], *outer[at + 1:], out_column, outer[at]]  # along the rows that are read
    else:
        outer = [*outer, out_column]
    sch.reorder(*outer, row, column)
    if copied:
        copy = sch.cache_read(ref, crossing.load.buffer.name, "local")
        sch.compute_at(copy, outer[-1])
        _vectorize(sch, sch.loops(copy)[-1], lanes)
    _vectorize(sch, column, lanes)
    return outer


def _split(sch: Schedule, loop: Var, size: int) -> tuple[Var, Var]:
    n = as_int(sch.loop(loop).extent)
    outer, inner = sch.split(loop, [None, size if n is None else min(n, size)])
    return outer, inner


def _vectorize(sch: Schedule, loop: Var, lanes: int) -> None:
    n = as_int(sch.loop(loop).extent)
    sch.vectorize(sch.split(loop, [None, lanes])[1] if n is None or n > lanes else loop)
