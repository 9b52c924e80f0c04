"""Schedule rule of attention of few rows of queries on a CPU: what a language model does for every token.

In: a Schedule whose blocks are an attention (rules/attention.py), all views inlined. Out: the schedule applied: nothing is
packed, a row of queries at a time reads K and V where they lie, once for all the heads of queries that share a head of keys:
these are the rows of the register tiles.

    parallel (batch, groups of heads, rows):  tiles of heads x keys, in vectors along the depth or the keys, as K lies
                                              masks, softmax of each head | sums over keys in vectors of columns, store
"""
from __future__ import annotations

import math
from dataclasses import dataclass

from tilewright.loop.ir import FALSE, Expr, FloorDiv, IterVar, Le, Var, as_int, const
from tilewright.loop.simplify import simplify
from tilewright.target.target import Target
from tilewright.tensor.classify import Access, vars_of
from tilewright.tensor.rules.attention import (
    Attention,
    Product,
    loops_below,
    loops_by_axis,
    place_stages,
)
from tilewright.tensor.rules.contraction import Axes, register_tile
from tilewright.tensor.rules.epilogue import merge_chain
from tilewright.tensor.rules.rows import vectorize_stage
from tilewright.tensor.rules.tiles import Tile, fits
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef

MAX_ROWS = 8
"""Most rows for which K and V are not packed: 16 heads of 64 over 512 keys took 203 and 266 µs for 8 rows, 292 and 307 for
12, with four heads to a head of keys 148 and 201, 210 and 262."""

MAX_HEADS = 8
"""Most heads that read K and V together: they are unrolled."""

MIN_LANES, MAX_STEPS = 4, 16
"""Fewest lanes of the vectors along the depth, and most of these vectors: they are unrolled."""


def few_rows(found: Attention) -> Expr:
    """Whether an attention has few rows: TRUE, FALSE, or a condition on sizes. Where a symbolic number of rows is that of
    the keys, a run of few rows has few keys, and one schedule is enough."""
    rows, keys = found.output.row.extent, found.scores.column.extent
    if as_int(rows) is None and vars_of(keys) <= vars_of(rows):
        return FALSE
    return simplify(Le(rows, const(MAX_ROWS, rows)))


@dataclass(frozen=True)
class FewRows:
    """Attention of few rows: `heads` is the axis of the second product whose neighbours read the same V (None: there is
    none), `together` how many of them a task takes, `depth` the lanes of dot products along the depth (0: the first product
    has vectors of keys)."""
    found: Attention
    heads: IterVar | None
    together: int
    depth: int


def find_few_rows(found: Attention, target: Target) -> FewRows | None:
    """The attention as this rule takes it, whatever its number of rows; None if it lies in memory otherwise."""
    scores, output = found.scores, found.output
    k, v = scores.info.b, output.info.b
    if k is None or v is None or not _lies_along(v, output.column.var):
        return None
    lanes = 0
    if not _lies_along(k, scores.column.var):
        size = as_int(scores.summed.extent)
        lanes = math.gcd(size or 1, target.lanes(scores.out.dtype.bits))
        if size is None or not _lies_along(k, scores.summed.var) or lanes < MIN_LANES or size // lanes > MAX_STEPS:
            return None
    shared = [(it, n) for it in (*output.info.batch, *output.info.m) if it is not output.row and (n := _shares(it, v)) > 1]
    if not shared:
        return FewRows(found, None, 1, lanes)
    heads, most = shared[-1]
    enough = [n for n in range(1, min(most, MAX_HEADS) + 1) if most % n == 0 and output.tasks // n >= target.cores]
    return FewRows(found, heads, max(enough, default=1), lanes)


def _lies_along(x: Access, v: Var) -> bool:
    """Whether neighbours along an axis are neighbours in memory."""
    return x.indices[-1] is v and not any(v in used for used in x.vars[:-1])


def _shares(it: IterVar, x: Access) -> int:
    """How many neighbours along an axis read the same elements: of an index `axis // n` it is n, without one all."""
    n = as_int(it.extent)
    if n is None:
        return 1
    counts = [n]
    for index in x.indices:
        if it.var in vars_of(index):
            step = as_int(index.b) if isinstance(index, FloorDiv) and index.a is it.var else None
            counts.append(step if step is not None and n % step == 0 else 1)
    return math.gcd(*counts)


def schedule_few_rows(sch: Schedule, few: FewRows, target: Target) -> None:
    """Schedule an attention around its groups of heads and rows."""
    found = few.found
    scores, output = sch.block(found.scores.name), sch.block(found.output.name)
    masked, _ = merge_chain(sch, scores)
    if masked is None and not few.depth:
        masked = sch.cache_write(scores, 0, "local")
    stored, _ = merge_chain(sch, output)
    if stored is None:
        stored = sch.cache_write(output, 0, "local")
    loops = loops_by_axis(sch, found, stored)
    column = loops.pop(found.output.column.var)
    row = loops.pop(found.output.row.var, None)
    rest = [v for v in sch.loops(stored) if v is not column]
    outer = [v for v in rest if v in loops.values()] + [v for v in rest if v is row] or rest[:1]
    inner = [v for v in rest if v not in outer]
    if few.heads is not None:
        at = outer.index(loops[few.heads.var])
        outer[at], heads = sch.split(outer[at], [None, few.together])
        inner.insert(0, heads)
    sch.reorder(*outer, *inner, column)
    home = outer[-1]

    left = {b.name for b in state.blocks(sch.program)}
    stages = [name for name in found.stages if name in left and (masked is None or name != masked.name)]
    _in_columns(sch, found.output, None if few.heads is None else few.heads.var, few.together, stored, home, target)
    rows = place_stages(sch, stages, home)
    if masked is not None:
        sch.compute_at(masked, home)
        sch.set_scope(masked, 0, "local")
    if masked is not None and not few.depth:
        _in_columns(sch, found.scores, _heads_of_scores(few), few.together, masked, home, target)
    else:
        _dot_products(sch, few, home, target)
        if masked is not None:
            vectorize_stage(sch, masked, home, target)
    for name in stages:
        vectorize_stage(sch, sch.block(name), rows, target)
    sch.parallel(sch.fuse(*outer) if len(outer) > 1 else outer[0])


def _heads_of_scores(few: FewRows) -> Var | None:
    """The axis of the first product that stands where the heads stand in the second one's result."""
    first, second = few.found.scores.info.out, few.found.output.info.out
    assert first is not None and second is not None
    at = None if few.heads is None else first.indices[second.indices.index(few.heads.var)]
    return at if isinstance(at, Var) else None


def _in_columns(sch: Schedule, product: Product, heads: Var | None, together: int, epilogue: BlockRef, home: Var,
                target: Target) -> None:
    """Compute a product in register tiles of heads x vectors of its columns."""
    ref = BlockRef(product.name)
    sch.compute_at(ref, home)
    sch.set_scope(ref, 0, "local")
    loops = loops_below(sch, ref, home)
    row = None if heads is None else loops[heads]
    column, summed = loops[product.column.var], loops[product.summed.var]
    rest = [v for v in loops.values() if v not in (row, column, summed)]
    lanes = target.lanes(product.out.dtype.bits)
    vectors = -(-product.size(product.column) // lanes)
    known = as_int(product.column.extent) is not None
    widths = [v for v in range(1, min(vectors, 8) + 1) if (vectors % v == 0 if known else v & (v - 1) == 0)]
    tiles = [Tile(1, 1 if row is None else together, v) for v in widths]
    tile = max([t for t in tiles if fits(t, vectors, target)], key=lambda t: t.vectors, default=tiles[0])
    register_tile(sch, ref, epilogue, Axes(column, None, None, row, rest, [summed]), tile, lanes)


def _dot_products(sch: Schedule, few: FewRows, home: Var, target: Target) -> None:
    """Compute the first product for heads x keys at a time, in vectors of partial sums along the depth, in the end
    summed horizontally."""
    scores = few.found.scores
    ref = BlockRef(scores.name)
    axis = _heads_of_scores(few)
    sch.compute_at(ref, home)
    sch.set_scope(ref, 0, "local")
    loops = loops_below(sch, ref, home)
    key, heads = loops[scores.column.var], None if axis is None else loops[axis]
    steps, lane = sch.split(loops[scores.summed.var], [None, few.depth])
    keys = 1 << (max(1, target.vector_registers // 2 // few.together).bit_length() - 1)
    rest = [v for it, v in loops.items() if it is not scores.summed.var and v not in (key, heads)]
    key, near = sch.split(key, [None, keys])
    sch.reorder(*rest, key, steps, *([] if heads is None else [heads]), near, lane)
    blocks = [ref]
    if scores.size(scores.summed) > few.depth:
        partial = sch.rfactor(ref, lane, -1)
        sch.set_scope(partial, 0, "local")
        blocks += [partial, sch.decompose_reduction(partial, steps)]
    sch.decompose_reduction(ref, sch.loops(ref)[-1])
    for block in blocks:
        around = sch.loops(block)
        _unroll(sch, around[around.index(key) + 1:])


def _unroll(sch: Schedule, loops: list[Var]) -> None:
    """The innermost loop in vectors, the others unrolled."""
    for v in loops[:-1]:
        sch.unroll(v)
    sch.vectorize(loops[-1])
