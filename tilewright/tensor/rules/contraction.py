"""Schedule rule of contractions on a CPU: matrix products and direct convolutions of any layout.

In: a Schedule and its contraction block. Out: the schedule applied: weights packed in streaming order, one register tile of
outputs per innermost nest, the epilogue in the tile's store, outer tiles in parallel.

    parallel (batch, N panel, outer M) | M tiles | reductions (windows outer, channels inner) | tile: rows, columns, vectors

Weight panels are outer and M tiles inner, so that a panel is read from memory once and then from the cache; the reduction
runs inside one tile, so that partial sums never leave the registers. While a panel is used, the next one is prefetched.
Where the first operand does not stay in the second-level cache, the reduction is cut into chunks (chunks.py).

Products of small integers for which the target has an instruction are done by it, so many steps of the reduction at a time;
those steps are the innermost axis of the packed weights.
"""
from __future__ import annotations

from dataclasses import dataclass

from tilewright.core.dtype import i32
from tilewright.loop.instructions import dot_products
from tilewright.loop.ir import Expr, IntoExpr, IterVar, Var, as_int, estimate
from tilewright.loop.tensor_intrinsics import TensorIntrinsic
from tilewright.target.target import Target
from tilewright.tensor.classify import Access, BlockInfo, classify, linear_coefficients
from tilewright.tensor.rules.chunks import add_chunks, chunk_length, cut_reduction
from tilewright.tensor.rules.epilogue import attach_epilogue, attach_rolled, finish_store, is_heavy
from tilewright.tensor.rules.expanded import divides, expand_panels, find_expansion, lay_out
from tilewright.tensor.rules.threads import PARALLEL_FLOPS, parallelize_outer, rows_per_part
from tilewright.tensor.rules.tiles import Tile, choose_tile, most_apart, tail_pieces
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef

UNROLL_K = 4
"""Most reduction steps per turn of the innermost loop: enough to hide its overhead, small enough for the code cache."""

USUAL_ROWS = 64
"""Rows for which the tile of a product of symbolic size is chosen if its weights are expanded: one width of panels serves
few rows and many, and what few rows cost is the expansion."""

STEPS_AHEAD = 2
"""Turns of the innermost loop by which weights are asked for before they are used."""


@dataclass
class Axes:
    """The axes of a contraction as the tile sees them, each with its loop.

    `vector` is the output's innermost axis (split into lanes), `panel` the N axis outside it in a blocked layout (None in
    a plain one), `row` and `column` the two innermost M axes, `outer` the other spatial ones, `reduce` the reductions in
    loop order: windows outside, channels inside."""
    vector: Var
    panel: Var | None
    row: Var | None
    column: Var | None
    outer: list[Var]
    reduce: list[Var]


def schedule_contraction(sch: Schedule, ref: BlockRef, epilogue: BlockRef | None, target: Target,
                         band: int = 0, groups: IterVar | None = None, panels: bool = False) -> Var | None:
    """Schedule a contraction with an N axis; `epilogue` is the block that consumes it, or None. `panels`: weights that are
    expanded (`expanded.py`) are so once per panel.

    With `band`, so many steps of the innermost M axis go through everything before the next ones do: the loop over bands,
    outermost but for that over `groups`, is returned for the caller to place other blocks in and to share among cores."""
    info = classify(state.find_block(sch.program, ref))
    dot = _dot_product(sch, info, target)
    if dot is not None:
        ref, epilogue = _whole_vectors(sch, ref, epilogue, dot)
        info = classify(state.find_block(sch.program, ref))
    expansion = find_expansion(sch, info)
    loop_of = _loops_by_axis(sch, ref, info)
    axes = _axes(info, loop_of)
    extent = {v: estimate(sch.loop(v).extent) for v in loop_of.values()}
    if expansion is not None and axes.column is not None and as_int(sch.loop(axes.column).extent) is None:
        extent[axes.column] = max(extent[axes.column], USUAL_ROWS)
    if band and axes.column is not None:
        extent[axes.column] = band
    lanes = _lanes(info, extent[axes.vector], target)
    if axes.panel is not None and as_int(sch.loop(axes.vector).extent) is None:
        whole, axes.vector = sch.split(axes.vector, [None, lanes])
        axes.outer.append(whole)
        extent[axes.vector] = lanes
    share = 0
    if axes.row is not None and axes.panel is not None and not band:
        share = rows_per_part(sch.loop(axes.row).extent, target)
        extent[axes.row] = share or extent[axes.row]
    chosen, chunk = _tile(info, axes, loop_of, extent, lanes, target, band, share)
    tile = _decided(sch, axes, chosen, band, share)
    if expansion is not None:
        chunk = 0
        lay_out(sch, expansion, tile.vectors * lanes)
    packed = _pack(sch, ref, info, tile, lanes, dot)
    complete, after = ref, epilogue
    if packed is not None and chunk:
        at = next(k for k, v in enumerate(axes.reduce) if extent[v] > 1)
        ref, chunks, axes.reduce[at] = cut_reduction(sch, ref, axes.reduce[at], chunk)
        axes.outer.insert(0, chunks)
        epilogue = None
    heavy = epilogue is not None and is_heavy(state.find_block(sch.program, epilogue))
    if epilogue is not None and not heavy:
        sch.set_scope(ref, 0, "local")
        store = epilogue
    else:
        store = sch.cache_write(ref, 0, "local")

    bands: Var | None = None
    if band and axes.column is not None:
        bands, axes.column = sch.split(axes.column, [None, band])
        axes.outer.insert(0, bands)
        if groups is not None:
            axes.outer.sort(key=lambda v: v is not loop_of[groups.var])
    if share and not chunk and axes.row is not None:
        part, axes.row = sch.split(axes.row, [None, share])
        axes.outer.insert(0, part)
    if expansion is not None and divides(expansion.shared, sch.loop(axes.reduce[-1]).extent):
        axes.reduce[-1:] = sch.split(axes.reduce[-1], [None, expansion.shared])
    nest = register_tile(sch, ref, store, axes, tile, lanes, 1 if dot is None else dot_products.steps(dot))
    if expansion is not None and panels and nest.panels is not None:
        expand_panels(sch, ref, expansion, nest.panels, tile.vectors * lanes, lanes)
    elif expansion is not None:
        sch.compute_inline(expansion.ref)
    if epilogue is not None and heavy:
        sch.set_scope(store, 0, "local")
        attach_rolled(sch, epilogue, nest.outside[-1] if nest.outside else None, lanes)
    if packed is not None:
        _prefetch_weights(sch, ref, packed, nest, target, held=bool(band))
    if dot is not None:
        sch.tensorize(nest.lanes, dot)
    if nest.outside and bands is None and info.flops >= PARALLEL_FLOPS:
        outside = nest.outside
        if expansion is not None and panels and nest.panels is not None:
            outside = outside[:outside.index(nest.panels) + 1]
        parallelize_outer(sch, outside, target)
    if ref is not complete:
        spatial = [loop_of[it.var] for it in info.block.iters if it.kind == "spatial"]
        add_chunks(sch, complete, after, spatial.index(axes.vector), lanes, target)
    return bands


@dataclass
class TileNest:
    """The loops around a register tile: `outside` (the last one completes a tile; `panels`, one of them, goes through the
    vectors), `reduce`, `unrolled`, the innermost part of the reduction, and `lanes`, the loop of a vector."""
    outside: list[Var]
    panels: Var | None
    reduce: list[Var]
    unrolled: list[Var]
    lanes: Var


def register_tile(sch: Schedule, ref: BlockRef, epilogue: BlockRef, axes: Axes, tile: Tile, lanes: int,
                  steps: int = 1) -> TileNest:
    """Split the axes of a contraction by a tile, keep the tile in registers while it is summed and store it through
    `epilogue`. With `steps`, so many of the reduction stay a loop within that of a vector, for an instruction to do both."""
    vo, vp, vl = _split_vector(sch, axes, tile, lanes)
    row_o, row_i = sch.split(axes.row, [None, tile.rows]) if axes.row is not None else (None, None)
    col_o, col_i = sch.split(axes.column, [None, tile.columns]) if axes.column is not None else (None, None)
    together: list[Var] = []
    if steps > 1:
        axes.reduce[-1], k_together = sch.split(axes.reduce[-1], [None, steps])
        together = [k_together]
    k_loops, k_unrolled = _split_reduction(sch, axes)
    inside = [v for v in (row_i, col_i, vp) if v is not None] + [vl]
    outside = [v for v in (*axes.outer, vo, row_o, col_o) if v is not None]
    sch.reorder(*outside, *k_loops, *k_unrolled, *inside, *together)

    home = outside[-1] if outside else None
    if home is not None:
        attach_epilogue(sch, epilogue, home)
    if k_loops + k_unrolled:
        init = sch.decompose_reduction(ref, (k_loops + k_unrolled)[0])
        around = sch.loops(init)
        _unroll_tile(sch, around[around.index(home) + 1:] if home is not None else around)
    for v in k_unrolled:
        sch.unroll(v)
    _unroll_tile(sch, inside, vectorize=not together)
    finish_store(sch, epilogue, home, lanes)
    return TileNest(outside, vo, k_loops, k_unrolled, vl)


def _whole_vectors(sch: Schedule, ref: BlockRef, epilogue: BlockRef | None,
                   dot: TensorIntrinsic) -> tuple[BlockRef, BlockRef | None]:
    """Pad the innermost axis of the output to whole vectors of an instruction: what is beyond the end is summed and not
    stored. Returns the contraction and what follows it."""
    info = classify(state.find_block(sch.program, ref))
    assert info.out is not None
    last = next((it for it in info.block.iters if it.var in info.out.vars[-1]), None)
    n = None if last is None else as_int(last.extent)
    lanes = dot_products.lanes(dot)
    if n is None or n % lanes == 0:
        return ref, epilogue
    *operands, store = sch.pad_einsum(ref, [lanes if it is last else 1 for it in info.block.iters])
    for block in operands:
        sch.compute_inline(block)
    if epilogue is None:
        return ref, store
    sch.compute_inline(store)
    return ref, epilogue


def _loops_by_axis(sch: Schedule, ref: BlockRef, info: BlockInfo) -> dict[Var, Var]:
    """Iteration variable → its loop, in an unscheduled block (whose bindings are the loops themselves)."""
    return dict(zip([it.var for it in info.block.iters], sch.loops(ref), strict=True))


def _axes(info: BlockInfo, loop_of: dict[Var, Var]) -> Axes:
    assert info.out is not None
    by_dim = [[it for it in (*info.batch, *info.m, *info.n) if it.var in dim] for dim in info.out.vars]
    order = [it for dim in by_dim for it in dim]
    n = {it.var for it in info.n}
    vector = order[-1]
    panel = next((it for it in reversed(order[:-1]) if it.var in n), None)
    m = [it for it in order if it in info.m]
    rest = [it for it in order[:-1] if it is not panel and it not in m[-2:]]
    windows = {w.reduce for w in info.windows}
    single = [loop_of[it.var] for it in info.block.iters if it.kind == "spatial" and it not in order]  # of one turn, unused
    reduce = sorted(info.k, key=lambda it: (it.var not in windows,))
    inner_first = _reduction_order(info, reduce)

    def loop(it: IterVar | None) -> Var | None:
        return None if it is None else loop_of[it.var]

    return Axes(loop_of[vector.var], loop(panel), loop(m[-2]) if len(m) > 1 else None, loop(m[-1]) if m else None,
                [*single, *[loop_of[it.var] for it in rest]], [loop_of[v] for v in inner_first])


def _reduction_order(info: BlockInfo, reduce: list[IterVar]) -> list[Var]:
    """Blocked channels: channel block, windows, channel in the block. Plain: windows, then channels."""
    windows = {w.reduce for w in info.windows}
    channels = [it for it in reduce if it.var not in windows]
    if len(channels) > 1:
        return [*[it.var for it in channels[:-1]], *[it.var for it in reduce if it.var in windows], channels[-1].var]
    return [*[it.var for it in reduce if it.var in windows], *[it.var for it in channels]]


def _lanes(info: BlockInfo, extent: int, target: Target) -> int:
    assert info.out is not None
    return min(target.lanes(info.out.buffer.dtype.bits), 1 << max(0, extent.bit_length() - 1))


def _tile(info: BlockInfo, axes: Axes, loop_of: dict[Var, Var], extent: dict[Var, int], lanes: int, target: Target,
          band: int, share: int) -> tuple[Tile, int]:
    """The register tile, and the length of a chunk of the reduction (0: it is not cut)."""
    vectors = -(-extent[axes.vector] // lanes)
    if axes.panel is not None:
        vectors *= extent[axes.panel]
    rows = 1 if axes.row is None else extent[axes.row]
    columns = 1 if axes.column is None else extent[axes.column]
    tail = tail_pieces(extent[axes.vector], lanes)
    apart = most_apart(_row_stride(info, axes, loop_of), target)
    most = 1 if share % 2 else 2
    tile = choose_tile(rows, columns, vectors, target, max_rows=most, tail=tail, whole=bool(band), max_columns=apart)
    if band:
        return tile, 0
    chunk = _chunk(info, axes, loop_of, extent, tile, vectors, lanes, target) if lanes > 1 else 0  # added in vectors
    widest = 0 if chunk else _widest(info, tile, vectors, lanes, target)
    if widest > tile.vectors:
        tile = choose_tile(rows, columns, vectors, target, max_rows=most, tail=tail, widest=widest, max_columns=apart)
    return tile, chunk


def _row_stride(info: BlockInfo, axes: Axes, loop_of: dict[Var, Var]) -> int:
    """Bytes between the elements of the first operand that neighbours along the tile's columns read; 0 if unknown."""
    assert info.a is not None
    step = info.a.buffer.dtype.nbytes
    column = next((v for v, loop in loop_of.items() if loop is axes.column), None)
    stride = 0
    for index, size in zip(reversed(info.a.indices), reversed(info.a.buffer.shape), strict=True):
        coefficients = linear_coefficients(index)
        if coefficients is None:
            return 0
        stride += step * (coefficients.get(column) or 0)
        step *= estimate(size)
    return stride


def _chunk(info: BlockInfo, axes: Axes, loop_of: dict[Var, Var], extent: dict[Var, int], tile: Tile, vectors: int,
           lanes: int, target: Target) -> int:
    """Steps of the outermost reduction in a chunk; 0 if it stays whole: that of a window always does."""
    windows = {loop_of[w.reduce] for w in info.windows}
    cut = next((v for v in axes.reduce if extent[v] > 1), None)
    if cut is None or cut in windows:
        return 0
    multiple = UNROLL_K if cut is axes.reduce[-1] and extent[cut] % UNROLL_K == 0 else 1
    return chunk_length(info, extent[cut], multiple, -(-vectors // tile.vectors), tile.vectors * lanes, target)


WIDEST = 4
"""Vectors of the widest panel: beyond it a tile has few positions, and its loads stand in the way."""

L3_BYTES_PER_CYCLE = 16
STREAMING = 0.1
"""Share of a product's arithmetic from which the time to stream the other operand anew for every panel counts."""


def _widest(info: BlockInfo, tile: Tile, vectors: int, lanes: int, target: Target) -> int:
    """Vectors that a panel may have if the other operand does not stay in the second-level cache between panels and its
    streaming takes long; 0 if not. Three fifths of that cache must hold the panel."""
    assert info.a is not None
    a = info.a.buffer
    nbytes = a.dtype.nbytes
    for d in a.shape:
        nbytes *= estimate(d)
    cycles = info.flops / (2 * lanes * target.fma_units)
    if nbytes <= target.l2 // 2 or -(-vectors // tile.vectors) * nbytes / L3_BYTES_PER_CYCLE < STREAMING * cycles:
        return 0
    return min(WIDEST, 3 * target.l2 // 5 // (info.extent(info.k) * lanes * a.dtype.nbytes))


def _decided(sch: Schedule, axes: Axes, tile: Tile, band: int, share: int) -> Tile:
    """The tile as named decisions, which a tuner may take otherwise; the model's choice is the default. Tiles divide a
    band, and the rows of a core's share."""
    widths = [c for c in range(1, 31) if not band or band % c == 0]
    heights = [r for r in range(1, 5) if not share or share % r == 0]
    rows = 1 if axes.row is None else sch.sample_tile(axes.row, heights, tile.rows)
    columns = 1 if axes.column is None else sch.sample_tile(axes.column, widths, tile.columns)
    vectors = sch.sample_tile(axes.vector if axes.panel is None else axes.panel, range(1, 9), tile.vectors)
    return Tile(rows, columns, vectors)


def _split_vector(sch: Schedule, axes: Axes, tile: Tile, lanes: int) -> tuple[Var | None, Var | None, Var]:
    """(panels, vectors of a tile, lanes) of the output's innermost axis, and of the N axis outside it."""
    if axes.panel is None:
        vo, vp, vl = sch.split(axes.vector, [None, tile.vectors, lanes])
        return vo, vp, vl
    po, pi = sch.split(axes.panel, [None, tile.vectors])
    return po, pi, axes.vector


def _split_reduction(sch: Schedule, axes: Axes) -> tuple[list[Var], list[Var]]:
    """Reduction loops, and the innermost one's part that is unrolled."""
    if not axes.reduce:
        return [], []
    *outer, last = axes.reduce
    n = as_int(sch.loop(last).extent)
    if n is not None and n <= UNROLL_K:
        return outer, [last]
    step = UNROLL_K if n is None else max(k for k in range(1, UNROLL_K + 1) if n % k == 0)
    if step == 1:
        return [*outer, last], []
    ko, ki = sch.split(last, [None, step])
    return [*outer, ko], [ki]


def _unroll_tile(sch: Schedule, loops: list[Var], vectorize: bool = True) -> None:
    """The innermost loop in vectors, the others unrolled; loops of a single turn may be gone."""
    for v in loops[:-1]:
        sch.unroll(v)
    if loops and vectorize:
        sch.vectorize(loops[-1])


def _dot_product(sch: Schedule, info: BlockInfo, target: Target) -> TensorIntrinsic | None:
    """The instruction for a product of small integers: if the weights can be packed for it, the other operand has the
    elements of its steps side by side, and the sum has whole steps."""
    if info.out is None or info.a is None or info.b is None or info.out.buffer.dtype is not i32 or not info.k:
        return None
    dot = dot_products.dot_product(target, info.a.buffer.dtype, info.b.buffer.dtype)
    if dot is None or info.b.buffer.name not in sch.program.attr("weights", ()):
        return None
    order = _reduction_order(info, list(info.k))
    last = next(it for it in info.k if it.var is order[-1])
    n, step = as_int(last.extent), linear_coefficients(info.a.indices[-1])
    apart = any(last.var in used for used in info.a.vars[:-1])
    if n is None or n % dot_products.steps(dot) or step is None or step.get(last.var) != 1 or apart:
        return None
    return dot if pack_map(info.b, info, order, dot_products.lanes(dot)) is not None else None


def _pack(sch: Schedule, ref: BlockRef, info: BlockInfo, tile: Tile, lanes: int, dot: TensorIntrinsic | None) -> str | None:
    """Lay constant weights out in the order in which the tile streams them: [panel][reductions...][vectors of the panel],
    and within that the steps of an instruction. Returns the name of the packed operand, None if it stays as it is."""
    b = info.b
    assert b is not None
    if b.buffer.name not in sch.program.attr("weights", ()):
        return None
    steps = 1 if dot is None else dot_products.steps(dot)
    plan = pack_map(b, info, _reduction_order(info, list(info.k)), tile.vectors * lanes, steps)
    if plan is None:
        return None
    sch.transform_layout(ref, b.buffer.name, plan, pad_value=0)
    return b.buffer.name


def _prefetch_weights(sch: Schedule, ref: BlockRef, packed: str, nest: TileNest, target: Target, held: bool) -> None:
    """Prefetch weights a few steps ahead into the first-level cache; and the next panel into the second while this one is
    used, evenly over all its tiles, so that memory is busy all the time: unless two panels leave the other operand no room,
    or the weights are `held` in that cache already."""
    if not nest.reduce or nest.panels is None:
        return
    info = classify(state.find_block(sch.program, ref))
    assert info.b is not None
    loop = (nest.reduce + nest.unrolled)[-1]
    panel = info.extent(info.k) * estimate(info.b.buffer.shape[-1]) * info.b.buffer.dtype.nbytes
    inside = [*nest.outside[nest.outside.index(nest.panels) + 1:], *nest.reduce]
    known = all(as_int(sch.loop(v).extent) for v in inside)  # not 0 either
    if panel <= target.l2 // 4 and known and not held:
        sch.prefetch_next(ref, packed, nest.reduce[-1], nest.panels)
    sch.prefetch(ref, packed, loop, nest.reduce[-1], STEPS_AHEAD)


def pack_map(b: Access, info: BlockInfo, order: list[Var], width: IntoExpr, together: int = 1):  # type: ignore[no-untyped-def]
    """The index map of the packed operand, or None if its indices are not of a form that can be packed; `together` steps
    of the last reduction lie side by side.

    Every dimension must be indexed by N axes only, or by one reduction axis, or by an outer and an inner reduction axis
    (outer * c + inner, which splits the dimension by c)."""
    n_vars = {it.var for it in info.n}
    batch = {it.var for it in info.batch}
    steps: dict[Var, tuple[int, int | None, int | None]] = {}
    n_dim: int | None = None
    batch_dims: list[int] = []
    for d, (index, used) in enumerate(zip(b.indices, b.vars, strict=True)):
        if used and used <= batch:
            batch_dims.append(d)
            continue
        coeff = linear_coefficients(index)
        if coeff is None or (coeff.get(None) or 0) != 0:
            return None
        if used & n_vars:
            if n_dim is not None or used - n_vars:
                return None
            n_dim = d
        elif len(used) == 1:
            steps[next(iter(used))] = (d, None, None)
        elif len(used) == 2:
            outer, inner = sorted(used, key=lambda v: -coeff[v])
            steps[outer], steps[inner] = (d, coeff[outer], None), (d, None, coeff[outer])
        elif used:
            return None
        else:
            batch_dims.append(d)
    if n_dim is None:
        return None
    n_at, reduce = n_dim, [steps[v] for v in order if v in steps]

    def index_map(*i: Expr) -> list[Expr]:
        out: list[Expr] = [i[d] for d in batch_dims]
        out.append(i[n_at] // width)
        for d, divide, modulo in reduce:
            out.append(i[d] // divide if divide is not None else i[d] % modulo if modulo is not None else i[d])
        last = out[-1]
        if together > 1:
            out[-1] = last // together
        out.append(i[n_at] % width)
        return [*out, last % together] if together > 1 else out

    return index_map
