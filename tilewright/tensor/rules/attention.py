"""Schedule rule of attention on a CPU: a product, stages over its rows, and a second product that sums over those rows.

In: a Schedule whose blocks are scores = Q Kᵀ, elementwise stages and a softmax of each row, and the product of the rows
with V; any number of batch axes, any layout. Out: the schedule applied: a few rows of scores at a time, from the first
product to the last, stay in the first-level cache.

    parallel (batch, heads, chunks of rows):  pack K and V | row tiles: Q Kᵀ, masks | softmax of each row | times V, store
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tilewright.core.node import walk
from tilewright.loop.ir import Block, Buffer, Expr, IterVar, Load, Program, Store, Var, as_int, estimate
from tilewright.target.target import Target
from tilewright.tensor.classify import BlockInfo, classify
from tilewright.tensor.regions import consumers, outputs, producers
from tilewright.tensor.rules.contraction import Axes, pack_map, register_tile
from tilewright.tensor.rules.epilogue import is_view, merge_chain, reads_at_one_place
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
class Product:
    """A matrix product of known sizes: its row and column (the two innermost axes of the result), the axis that is summed,
    and the name of the view that makes its second operand (None: it is in memory). All other axes are batch."""
    info: BlockInfo
    row: IterVar
    column: IterVar
    summed: IterVar
    view: str | None

    @property
    def name(self) -> str:
        return self.info.block.name

    def size(self, axis: IterVar) -> int:
        """Elements along an axis, as usual where that is symbolic."""
        return estimate(axis.extent)

    @property
    def tasks(self) -> int:
        """How many matrices the product makes."""
        own = math.prod(self.size(axis) for axis in (self.row, self.column, self.summed))
        return self.info.extent(self.info.block.iters) // own

    @property
    def out(self) -> Buffer:
        assert self.info.out is not None
        return self.info.out.buffer


@dataclass(frozen=True)
class Attention:
    """The two products of an attention program and the blocks between them, in program order."""
    scores: Product
    stages: tuple[str, ...]
    output: Product


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
    contractions = [i for i in infos.values() if i.kind == "contraction"]
    if len(contractions) != 2:
        return None
    first, second = (_product(i, view) for i, view in zip(contractions, views, strict=True))
    if first is None or second is None:
        return None
    order = list(infos)
    at, to = order.index(first.name), order.index(second.name)
    between = order[at + 1:to]
    made = {i.out.buffer for i in [first.info, *[infos[name] for name in between]] if i.out is not None}
    stages = all(infos[name].kind in ("elementwise", "injective", "reduction") for name in between)
    private = len(made) == len(between) + 1 and not any(state.is_parameter(program, x) for x in made)
    a, b = second.info.a, second.info.b
    if at != 0 or not stages or not private or a is None or a.buffer not in made or b is None or b.buffer in made:
        return None
    if len(between) < 2 or any(_reads(x, made) for x in blocks[to + 1:]) or not _is_chain(program, blocks[to:]):
        return None
    return Attention(first, tuple(between), second)


def _product(info: BlockInfo, view: str | None) -> Product | None:
    """A contraction as a matrix product, or None if it is none."""
    iters = {it.var: it for it in info.block.iters}
    summed = [it for it in info.k if info.extents[it.var] != 1]
    if info.out is None or info.windows or len(summed) != 1 or len(info.out.indices) < 2:
        return None
    row, column = (iters.get(i) if isinstance(i, Var) else None for i in info.out.indices[-2:])
    if row is None and as_int(info.out.buffer.shape[-2]) == 1:  # its index may have been simplified to 0
        row = next((it for it in info.m if as_int(it.extent) == 1 and it.var not in info.out.all_vars), None)
    if row is None or column is None or row not in info.m or column not in info.n:
        return None
    return Product(info, row, column, summed[0], view)


def _is_chain(program: Program, blocks: list[Block]) -> bool:
    """Whether each block is read by the next one alone, at its own place (`merge_chain` makes one of all but the first)."""
    return all(consumers(program, a) == [b] and classify(b).kind in ("elementwise", "injective") and reads_at_one_place(b, a)
               for a, b in pairwise(blocks))


def _reads(b: Block, buffers: set[Buffer]) -> bool:
    return any(isinstance(n, Load) and n.buffer in buffers for n in walk(b.body))


def schedule_attention(sch: Schedule, found: Attention, target: Target) -> None:
    """Schedule an attention program around its rows."""
    scores, output = sch.block(found.scores.name), sch.block(found.output.name)
    masked, _ = merge_chain(sch, scores)
    if masked is None:
        masked = sch.cache_write(scores, 0, "local")
    stored, _ = merge_chain(sch, output)
    if stored is None:
        stored = sch.cache_write(output, 0, "local")
    lanes = target.lanes(found.output.out.dtype.bits)
    first, second = _tiles(found, lanes, target)
    heads, row, rest = _result_loops(sch, found, stored)
    outer = list(heads)
    chunk = _chunk_rows(found, first.columns, target)
    if heads and chunk >= found.output.size(found.output.row):
        tiles, rows = sch.split(row, [None, first.columns])
    else:
        chunks, tiles, rows = sch.split(row, [None, chunk // first.columns, first.columns])
        outer.append(chunks)
    sch.reorder(*outer, tiles, rows, *rest)
    alone = len(outer) == len(heads)
    packed = [_pack(sch, p, lanes * tile.vectors, alone) for p, tile in ((found.scores, first), (found.output, second))]

    left = {b.name for b in state.blocks(sch.program)} - {masked.name}
    stages = [name for name in found.stages if name in left]
    _tile_product(sch, found.output, stored, tiles, second, lanes)
    home = place_stages(sch, stages, tiles)
    sch.compute_at(masked, tiles)
    sch.set_scope(masked, 0, "local")
    _tile_product(sch, found.scores, masked, tiles, first, lanes)
    for name in stages:
        vectorize_stage(sch, sch.block(name), home, target)
    for p in packed:
        if p is not None:
            _place_copy(sch, p, outer[-1], lanes)
    sch.parallel(sch.fuse(*outer) if len(outer) > 1 else outer[0])


def place_stages(sch: Schedule, stages: Sequence[str], tiles: Var) -> Var:
    """Compute the stages of the softmax at a tile of rows; returns the loop over its rows, in which they are."""
    home = tiles
    for name in reversed(stages):
        sch.compute_at(sch.block(name), home)
        sch.set_scope(sch.block(name), 0, "local")
        if home is tiles:
            home = sch.loops(sch.block(name))[-2]  # the rows of the tile, one after another
    return home


def _tiles(found: Attention, lanes: int, target: Target) -> tuple[Tile, Tile]:
    """Register tiles of the two products with the same rows: the cheapest pair."""
    def cheapest(p: Product, rows: int) -> tuple[float, Tile]:
        columns = p.size(p.column)
        vectors, tail = -(-columns // lanes), tail_pieces(columns, lanes)
        known = as_int(p.column.extent) is not None
        tiles = [Tile(1, rows, v) for v in range(1, min(vectors, 8) + 1) if known or _is_power(v)]
        costs = [(cost_per_element(t, 1, p.size(p.row), vectors, target, tail=tail) * vectors * p.size(p.summed), t)
                 for t in tiles if fits(t, vectors, target, tail=tail) or t.accumulators == 1]
        return min(costs, key=lambda c: c[0], default=(math.inf, Tile(1, rows, 1)))

    most = min(MAX_ROWS, found.output.size(found.output.row), max(1, target.l2 // 4 // _row_bytes(found)))
    known = as_int(found.output.row.extent) is not None  # else the ladder below a power of two has the fewest steps
    pairs = [(cheapest(found.scores, r), cheapest(found.output, r)) for r in range(1, most + 1) if known or _is_power(r)]
    least = min(a + b for (a, _), (b, _) in pairs)
    (_, first), (_, second) = [p for p in pairs if p[0][0] + p[1][0] <= least * NEARLY][-1]
    return first, second


def _is_power(n: int) -> bool:
    """Whether a number is a power of two: what such a tile leaves of a symbolic size needs the fewest smaller ones."""
    return n & (n - 1) == 0


def _row_bytes(found: Attention) -> int:
    """Bytes of a row of scores, before and after its softmax."""
    return 2 * found.scores.size(found.scores.column) * found.scores.out.dtype.nbytes


def _result_loops(sch: Schedule, found: Attention, stored: BlockRef) -> tuple[list[Var], Var, list[Var]]:
    """Loops of the block that stores the result: over the batch axes, over rows, the others."""
    role = loops_by_axis(sch, found, stored)
    column, loops = role.pop(found.output.column.var), sch.loops(stored)
    single = [v for v in loops if v not in (*role.values(), column) and as_int(sch.loop(v).extent) == 1]
    row = role.pop(found.output.row.var) if found.output.row.var in role else single[0]
    batch = [v for v in loops if v in role.values()]
    return batch, row, [v for v in loops if v not in (*batch, row, column)] + [column]


def loops_by_axis(sch: Schedule, found: Attention, stored: BlockRef) -> dict[Expr, Var]:
    """Of the block that stores the result, still as it was written: its loop over each axis of the second product (of axes
    of one step there may be none)."""
    block = state.find_block(sch.program, stored)
    loops = dict(zip([it.var for it in block.iters], sch.loops(stored), strict=True))
    out = classify(state.find_block(sch.program, BlockRef(found.output.name))).out
    assert out is not None
    load = next(n for n in walk(block.body) if isinstance(n, Load) and n.buffer is out.buffer)
    return {i: loops[at] for i, at in zip(out.indices, load.indices, strict=True) if isinstance(at, Var)}


def _chunk_rows(found: Attention, rows: int, target: Target) -> int:
    """Rows for which K and V are packed once, a multiple of `rows`: all, unless there are too few matrices for the cores
    (of a symbolic number of rows, fewer than cores: where chunks end is then a condition on each row)."""
    total, tasks = found.output.size(found.output.row), found.output.tasks
    enough = 4 * target.cores if as_int(found.output.row.extent) is not None else target.cores
    pieces = 1
    while tasks * pieces < enough and total // (pieces + 1) >= CHUNK_ROWS:
        pieces += 1
    return -(-total // pieces // rows) * rows


def _tile_product(sch: Schedule, product: Product, epilogue: BlockRef, home: Var, tile: Tile, lanes: int) -> None:
    """Compute a product at its row tile, in register tiles."""
    ref = BlockRef(product.name)
    sch.compute_at(ref, home)
    sch.set_scope(ref, 0, "local")
    loops = loops_below(sch, ref, home)
    row, column, summed = (loops[it.var] for it in (product.row, product.column, product.summed))
    rest = [v for v in loops.values() if v not in (row, column, summed)]
    register_tile(sch, ref, epilogue, Axes(column, None, None, row, rest, [summed]), tile, lanes)


def loops_below(sch: Schedule, ref: BlockRef, home: Var) -> dict[Var, Var]:
    """Iteration variable → its loop, of a block that has just been moved into `home`."""
    loops = sch.loops(ref)
    block = state.find_block(sch.program, ref)
    return dict(zip([it.var for it in block.iters], loops[loops.index(home) + 1:], strict=True))


@dataclass(frozen=True)
class Copy:
    """The block that packs an operand and its variables along the product's column and summed axis."""
    ref: BlockRef
    column: Var
    summed: Var


def _pack(sch: Schedule, product: Product, width: int, alone: bool) -> Copy | None:
    """Put the second operand of a product in the order in which tiles of `width` columns read it (of all columns, if they
    are no multiple, or a symbol unless `alone`, one task for a matrix, packs it: every element of the copy is then
    written, so that it is shown to be a task's own). None if it stays as it is."""
    ref = BlockRef(product.name)
    info = classify(state.find_block(sch.program, ref))
    assert info.b is not None
    columns = product.column.extent
    whole = (as_int(columns) or (0 if alone else 1)) % width
    plan = pack_map(info.b, info, [product.summed.var], columns if whole else width)
    if plan is None:
        if product.view is not None:
            sch.compute_inline(sch.block(product.view))
        return None
    dims = [next(d for d, used in enumerate(info.b.vars) if it.var in used) for it in (product.column, product.summed)]
    copy = sch.block(product.view) if product.view is not None else sch.cache_read(ref, info.b.buffer.name, "local")
    sch.set_scope(copy, 0, "local")
    block = state.find_block(sch.program, copy)
    assert isinstance(block.body, Store)
    sch.transform_layout(ref, block.body.buffer.name, plan)
    return Copy(copy, block.iters[dims[0]].var, block.iters[dims[1]].var)


def _place_copy(sch: Schedule, copy: Copy, home: Var, lanes: int) -> None:
    """Pack an operand once per step of `home`, in vectors along the columns: a few columns at a time over the whole summed
    axis, so that what is read in another order than it lies in memory stays in the cache."""
    sch.compute_at(copy.ref, home)
    loops = loops_below(sch, copy.ref, home)
    column, summed = loops[copy.column], loops[copy.summed]
    if estimate(sch.loop(column).extent) >= lanes:
        column, inner = sch.split(column, [None, lanes])
        sch.reorder(column, summed, inner)
        sch.vectorize(inner)
