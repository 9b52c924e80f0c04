"""Schedule rule of attention on a CPU: a product, stages over its rows, and a second product that sums over those rows.

In: a Schedule whose blocks are scores = Q Kᵀ, elementwise stages and a softmax of each row, and the product of the rows
with V; any number of batch axes, any layout. Out: the schedule applied: a few rows of scores at a time, from the first
product to the last, stay in the first-level cache.

    parallel (batch, heads, chunks of rows):  pack K and V | row tiles: Q Kᵀ, masks | softmax of each row | times V, store
"""
from __future__ import annotations

import math
from dataclasses import dataclass

from tilewright.core.node import walk
from tilewright.loop.ir import Block, Buffer, IterVar, Load, Program, Store, Var, as_int
from tilewright.target.target import Target
from tilewright.tensor.classify import BlockInfo, classify
from tilewright.tensor.regions import consumers, outputs, producers
from tilewright.tensor.rules.contraction import Axes, pack_map, register_tile
from tilewright.tensor.rules.epilogue import is_view, merge_chain
from tilewright.tensor.rules.rows import vectorize_stage
from tilewright.tensor.rules.tiles import Tile, cost_per_element, fits, tail_pieces
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef

MAX_ROWS = 12
"""Most rows of a tile: they are unrolled."""

NEARLY = 1.03
"""Costs that differ by less are taken for equal: the tile with more rows reads K and V less often."""

CHUNK_ROWS = 64
"""Fewest rows for which it pays to pack K and V again."""


@dataclass(frozen=True)
class Attention:
    """The two products of an attention program, each with the view that holds its second operand (or None), and the blocks
    between them in program order."""
    scores: BlockInfo
    stages: tuple[str, ...]
    output: BlockInfo
    views: tuple[str | None, str | None]


def operand_views(program: Program) -> tuple[str | None, str | None] | None:
    """Of a program of two products: the names of the views that make their second operands (None: there is no view). They
    are to be filled rather than inlined: a tile then reads the operand in the order in which it lies."""
    products = [i for i in map(classify, state.blocks(program)) if i.kind == "contraction"]
    if len(products) != 2:
        return None
    names: list[str | None] = []
    for p in products:
        made = [w for w in producers(program, p.block) if p.b is not None and p.b.buffer in outputs(w)]
        alone = len(made) == 1 and is_view(classify(made[0])) and len(consumers(program, made[0])) == 1
        names.append(made[0].name if alone else None)
    return names[0], names[1]


def find_attention(program: Program, views: tuple[str | None, str | None]) -> Attention | None:
    """The attention that a program (its other views inlined) consists of, or None if it computes something else."""
    blocks = [b for b in state.blocks(program) if b.name not in views]
    infos = {b.name: classify(b) for b in blocks}
    products = [i for i in infos.values() if i.kind == "contraction"]
    if len(products) != 2 or not all(_is_product(p) for p in products):
        return None
    first, second = products
    order = list(infos)
    at, to = order.index(first.block.name), order.index(second.block.name)
    made = {first.out.buffer} if first.out is not None else set()
    for name in order[at + 1:to]:
        info = infos[name]
        if info.out is None or info.kind not in ("elementwise", "injective", "reduction") or state.is_parameter(program, info.out.buffer):
            return None
        made.add(info.out.buffer)
    if at != 0 or to < 2 or second.a is None or second.b is None or second.a.buffer not in made or second.b.buffer in made:
        return None
    if any(_reads(blocks[k], made) for k in range(to + 1, len(blocks))) or len(blocks) > to + 2:
        return None
    return Attention(first, tuple(order[at + 1:to]), second, views)


def _is_product(p: BlockInfo) -> bool:
    """One row, one column and one summed axis of known sizes, nothing sliding; the result's dimensions are its axes."""
    if p.out is None or p.windows or None in p.extents.values():
        return False
    return len(_wide(p, p.m)) == len(_wide(p, p.n)) == len(_wide(p, p.k)) == 1 and p.out.indices[-1] is _wide(p, p.n)[0].var


def _wide(info: BlockInfo, axes: tuple[IterVar, ...]) -> list[IterVar]:
    """Axes of more than one element."""
    return [it for it in axes if info.extents[it.var] != 1]


def _reads(b: Block, buffers: set[Buffer]) -> bool:
    return any(isinstance(n, Load) and n.buffer in buffers for n in walk(b.body))


def schedule_attention(sch: Schedule, found: Attention, target: Target) -> None:
    """Schedule an attention program around its rows."""
    scores, output = sch.block(found.scores.block.name), sch.block(found.output.block.name)
    masked, _ = merge_chain(sch, scores)
    if masked is None:
        masked = sch.cache_write(scores, 0, "local")
    stored, _ = merge_chain(sch, output)
    if stored is None:
        stored = sch.cache_write(output, 0, "local")
    lanes = target.lanes(output_bits(found.output))
    first, second = _tiles(found, lanes, target)
    heads, row, rest = _result_loops(sch, found, stored)
    chunk = _chunk_rows(found, first.columns, target)
    chunks, tiles, rows = sch.split(row, [None, chunk // first.columns, first.columns])
    sch.reorder(*heads, chunks, tiles, rows, *rest)
    packed = [_pack(sch, ref, view, lanes * tile.vectors)
              for ref, view, tile in zip((scores, output), found.views, (first, second), strict=True)]

    left = {b.name for b in state.blocks(sch.program)} - {masked.name}
    stages = [name for name in found.stages if name in left]
    _tile_product(sch, output, stored, tiles, second, lanes)
    row_loop: Var | None = None
    for name in reversed(stages):
        ref = sch.block(name)
        if row_loop is None:
            sch.compute_at(ref, tiles)
            sch.set_scope(ref, 0, "local")
            row_loop = _axis_loop(sch, ref, tiles, first.columns)
        else:
            sch.compute_at(ref, row_loop)
            sch.set_scope(ref, 0, "local")
    sch.compute_at(masked, tiles)
    sch.set_scope(masked, 0, "local")
    _tile_product(sch, scores, masked, tiles, first, lanes)
    for name in stages:
        vectorize_stage(sch, sch.block(name), row_loop, target)
    for p in packed:
        if p is not None:
            _place_pack(sch, p, chunks, lanes)
    outer = [*heads, chunks]
    sch.parallel(sch.fuse(*outer) if len(outer) > 1 else outer[0])


def output_bits(info: BlockInfo) -> int:
    assert info.out is not None
    return info.out.buffer.dtype.bits


def _tiles(found: Attention, lanes: int, target: Target) -> tuple[Tile, Tile]:
    """Register tiles of the two products with the same rows: the cheapest pair."""
    def cheapest(info: BlockInfo, rows: int) -> tuple[float, Tile]:
        columns = info.extent(info.n)
        vectors, tail = -(-columns // lanes), tail_pieces(columns, lanes)
        tiles = [Tile(1, rows, v) for v in range(1, min(vectors, 8) + 1)]
        costs = [(cost_per_element(t, 1, info.extent(info.m), vectors, target, tail) * vectors * info.extent(info.k), t)
                 for t in tiles if fits(t, vectors, target, tail) or t.accumulators == 1]
        return min(costs, key=lambda c: c[0], default=(math.inf, Tile(1, rows, 1)))

    most = min(MAX_ROWS, found.output.extent(found.output.m), max(1, target.l2 // 4 // _row_bytes(found)))
    pairs = [(cheapest(found.scores, r), cheapest(found.output, r)) for r in range(1, most + 1)]
    least = min(a + b for (a, _), (b, _) in pairs)
    (_, first), (_, second) = [p for p in pairs if p[0][0] + p[1][0] <= least * NEARLY][-1]
    return first, second


def _row_bytes(found: Attention) -> int:
    """Bytes of a row of scores, before and after its softmax."""
    assert found.scores.out is not None
    return 2 * found.scores.extent(found.scores.n) * found.scores.out.buffer.dtype.nbytes


def _result_loops(sch: Schedule, found: Attention, stored: BlockRef) -> tuple[list[Var], Var, list[Var]]:
    """Loops of the block that stores the result: over the batch axes, over rows, the others."""
    block = state.find_block(sch.program, stored)
    loops = dict(zip([it.var for it in block.iters], sch.loops(stored), strict=True))
    out = classify(state.find_block(sch.program, BlockRef(found.output.block.name))).out
    assert out is not None
    load = next(n for n in walk(block.body) if isinstance(n, Load) and n.buffer is out.buffer)
    role = {i: loops[at] for i, at in zip(out.indices, load.indices, strict=True) if isinstance(at, Var)}
    batch = [role[it.var] for it in found.output.batch if it.var in role]
    row, column = role[_wide(found.output, found.output.m)[0].var], role[_wide(found.output, found.output.n)[0].var]
    return batch, row, [v for v in loops.values() if v not in (*batch, row, column)] + [column]


def _chunk_rows(found: Attention, rows: int, target: Target) -> int:
    total = found.output.extent(found.output.m)
    tasks = found.output.extent(found.output.batch)
    pieces = 1
    while tasks * pieces < 4 * target.cores and total // (pieces + 1) >= CHUNK_ROWS:
        pieces += 1
    per = -(-total // pieces)
    return -(-per // rows) * rows


def _axis_loop(sch: Schedule, ref: BlockRef, home: Var, extent: int) -> Var:
    loops = sch.loops(ref)
    loops = loops[loops.index(home) + 1:]
    return loops[-2]


def _tile_product(sch: Schedule, ref: BlockRef, epilogue: BlockRef, home: Var, tile: Tile, lanes: int) -> None:
    """Compute a product at its row tile, in register tiles."""
    sch.compute_at(ref, home)
    sch.set_scope(ref, 0, "local")
    info = classify(state.find_block(sch.program, ref))
    loops = sch.loops(ref)
    below = loops[loops.index(home) + 1:]
    by_iter = dict(zip([it.var for it in info.block.iters], below, strict=True))
    n, m, k = (by_iter[_wide(info, axes)[0].var] for axes in (info.n, info.m, info.k))
    register_tile(sch, ref, epilogue, Axes(n, None, None, m, [v for v in below if v not in (n, m, k)], [k]), tile, lanes)


def _pack(sch: Schedule, ref: BlockRef, view: str | None, width: int) -> BlockRef | None:
    """Put the second operand of a product in the order in which tiles of `width` columns read it (of all columns, if they
    are no multiple: every element of the copy is then written); returns the block that does so."""
    info = classify(state.find_block(sch.program, ref))
    assert info.b is not None
    columns = info.extent(info.n)
    if columns % width:
        width = columns
    plan = pack_map(info.b, info, [it.var for it in _wide(info, info.k)], width)
    if plan is None:
        return None
    copy = sch.block(view) if view is not None else sch.cache_read(ref, info.b.buffer.name, "local")
    sch.set_scope(copy, 0, "local")
    made = state.find_block(sch.program, copy).body
    assert isinstance(made, Store)
    sch.transform_layout(ref, made.buffer.name, plan)
    return copy


def _place_pack(sch: Schedule, copy: BlockRef, home: Var, lanes: int) -> None:
    """Fill a packed operand once per step of `home`, in vectors along the axis in which tiles read it."""
    sch.compute_at(copy, home)
    loops = sch.loops(copy)
    n = as_int(sch.loop(loops[-1]).extent)
    if n is not None and n >= lanes:
        outer, inner = sch.split(loops[-1], [None, lanes])
        sch.reorder(outer, loops[-2], inner)
        sch.vectorize(inner)
