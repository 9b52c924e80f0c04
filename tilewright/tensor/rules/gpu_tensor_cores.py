"""Schedule rule for devices with tensor cores: products and convolutions whose tiles are multiplied by whole warps.

In: a Schedule and its contraction block, of 16-bit floats that are summed in f32 (or of f32, where rounding to TF32 is asked
for), and the facts of a target that has the instructions. Out: one kernel; or a refusal, and a simpler rule takes the block.

    blocks | k outer: tiles of A, B into shared memory | warps z (M), y (N) | k in steps of an instruction:
             fragments of A, B from there | fragments of the result: mma
           | each thread stores the results that it holds, through what follows the product

Axes that are no multiples of the tile are padded (`pad_einsum`): rows and columns beyond the end read the first ones again,
which takes no condition, and are not stored; terms beyond the end of the sum are zero. Where neighbours lie at multiples of
16 bytes, copies are asynchronous. The loop over k loads one step ahead or more. A convolution is a product for each place of
its window (implicit GEMM): rows are channels of the result, columns places of a row of the image, and what is copied into
shared memory is gathered on the way (`reindex`).

How large tiles are, how deep a step and how many steps are on their way are decisions of the schedule; their defaults are
those of least cost by `_cost`, which knows the target's facts. Its constants come from data sheets: nothing was measured.
"""
from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, replace

from tilewright.core.dtype import f32
from tilewright.core.node import walk
from tilewright.loop.instructions import nvidia
from tilewright.loop.ir import Add, Block, Buffer, Cast, FloorMod, IterVar, Load, Mul, Store, Var, as_int
from tilewright.loop.tensor_intrinsics import TensorIntrinsic
from tilewright.target.target import Target
from tilewright.tensor.classify import Access, BlockInfo, classify
from tilewright.tensor.regions import consumers, outputs, producers
from tilewright.tensor.rules.epilogue import is_view, merge_chain, writes_border
from tilewright.tensor.rules.gpu_contraction import bind_blocks, loops_of, operand_tile, to_the_end
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef, ScheduleError

ROWS, COLUMNS = nvidia.C.shape
"""Of the results of one instruction."""
WARPS = (1, 2, 4)
"""Warps of a block along an axis."""
FRAGMENTS = ((1, 2, 4), (1, 2, 4, 8))
"""Results of a warp along M and N, in instructions."""
DEPTHS = (4, 2, 1)
"""Instructions deep a step along k: rows of 128, 64 or 32 bytes."""
STAGES = (2, 3, 4)
"""Steps that have a place in shared memory."""
HELD = 176
"""Registers of a thread for sums and operands; the rest of its 255 are addresses and what is on its way."""
MULTIPLY, READ_A, READ_B, COPIED = 2.0, 4.0, 2.0, 32.0
"""Cycles of a multiprocessor for an instruction's product and for its operands' reads from shared memory (128 bytes per
cycle), and bytes that it copies from the second-level cache per cycle (NVIDIA A100 Tensor Core GPU Architecture, 2020)."""
APART = 0.25
"""How much of these three does not overlap."""
LONG = 64
"""Columns that are enough for a tile."""
BUSY = 256
"""Threads that hide each other's latencies on a core."""
WIDEST = 16
"""Bytes that one instruction copies."""


@dataclass(frozen=True)
class Tile:
    """What a block computes: warps, and fragments of each warp, along M and N; instructions deep a step along k; steps that
    have a place in shared memory (1: no loads ahead)."""
    warps: tuple[int, int]
    fragments: tuple[int, int]
    depth: int
    stages: int = 1

    @property
    def rows(self) -> int:
        return self.warps[0] * self.fragments[0] * ROWS

    @property
    def columns(self) -> int:
        return self.warps[1] * self.fragments[1] * COLUMNS

    @property
    def threads(self) -> int:
        return 32 * math.prod(self.warps)


def product_of(block: Block, target: Target, numerics: str) -> nvidia.MatrixProduct | None:
    """The instructions for a block, if there are some: a sum in f32 of products of two operands of one type, which the
    tensor cores multiply. They add up f32, but do not round each sum to the nearest, so not where `numerics` is "strict";
    f32 is rounded to TF32 only where it is "tf32". None also for a product that would leave more than half of an instruction
    idle."""
    info = classify(block)
    axes = _axes(info)
    if numerics == "strict" or not target.has("mma") or axes is None or info.a is None or info.b is None:
        return None
    if info.a.buffer is info.b.buffer:  # tiles of one would be tiles of the other
        return None
    types = {x.buffer.dtype for x in (info.a, info.b)}
    if outputs(block)[0].dtype is not f32 or len(types) != 1 or not _is_plain(block):
        return None
    (t,) = types
    found = nvidia.PRODUCTS.get(t.name if t is not f32 else numerics)
    small = found is None or any(2 * (as_int(it.extent) or 0) < n for it, n in zip(axes, (ROWS, COLUMNS, found.depth),
                                                                                 strict=True))
    return None if small else found


def _axes(info: BlockInfo) -> tuple[IterVar, IterVar, IterVar] | None:
    """The axes of a tile: the largest of M, N and K, where each is an index of the result, and of the operands but for
    windows, by itself. Of the axes of N that are long enough it is the innermost."""
    if info.kind != "contraction" or not info.m or not info.n or not info.k or info.out is None:
        return None
    m, k = (max(axes, key=lambda it: as_int(it.extent) or 0) for axes in (info.m, info.k))
    order = [v for dim in info.out.vars for v in dim]
    n = max(info.n, key=lambda it: (min(as_int(it.extent) or 0, LONG), order.index(it.var)))
    operands = [x for x in (info.a, info.b) if x is not None and not (info.windows and _gathered(x, info))]
    own = {m.var, n.var, k.var}
    if all(isinstance(i, Var) for x in (*operands, info.out) for i, used in zip(x.indices, x.vars, strict=True)
           if used & own):
        return m, n, k
    return None


def _gathered(x: Access, info: BlockInfo) -> bool:
    """Whether an operand is read through windows."""
    return any({w.spatial, w.reduce} <= used for w in info.windows for used in x.vars)


def _is_plain(block: Block) -> bool:
    """Whether a block adds the product of two elements, converted to f32, without conditions."""
    body = block.body
    if not isinstance(body, Store) or not isinstance(body.value, Add):
        return False
    term = body.value.b if isinstance(body.value.a, Load) and body.value.a.buffer is body.buffer else body.value.a
    return isinstance(term, Mul) and all(isinstance(f.a if isinstance(f, Cast) else f, Load) for f in (term.a, term.b))


def schedule_tensor_cores(sch: Schedule, ref: BlockRef, target: Target, product: nvidia.MatrixProduct) -> set[str]:
    """Schedule a product and the elementwise blocks behind it; the names of those that have their schedule now. Raises
    ScheduleError."""
    info = classify(state.find_block(sch.program, ref))
    axes = _axes(info)
    assert axes is not None
    default = choose_tile(info, axes, target, product)
    loops = dict(zip([it.var for it in info.block.iters], sch.loops(ref), strict=True))
    m, n, k = (loops[it.var] for it in axes)
    warps = sch.sample_tile(m, WARPS, default.warps[0]), sch.sample_tile(n, WARPS, default.warps[1])
    fragments = (sch.sample_tile(m, FRAGMENTS[0], default.fragments[0]),
                 sch.sample_tile(n, FRAGMENTS[1], default.fragments[1]))
    depth = sch.sample_tile(k, DEPTHS, default.depth)
    stages = sch.sample_tile(k, STAGES, default.stages) if default.stages > 1 else 1
    return multiply_fragments(sch, ref, product, Tile(warps, fragments, depth, stages))


# ---- how large -----------------------------------------------------------------------------------------------------------
def choose_tile(info: BlockInfo, axes: tuple[IterVar, IterVar, IterVar], target: Target,
                product: nvidia.MatrixProduct) -> Tile:
    """The tile of least cost that the device has room for; as many steps ahead as there is room for then."""
    m, n, k = (as_int(it.extent) or 0 for it in axes)
    others = info.extent((*info.batch, *info.m, *info.n)) // (m * n)
    best = min((t for t in _tiles(k, product) if _fits(t, target, product) and not _idle(t, m, n)),
               key=lambda t: _cost(t, (m, n, info.extent(info.k)), others, target, product))
    deeper = replace(best, stages=STAGES[1])
    return deeper if k > 2 * best.depth * product.depth and _fits(deeper, target, product) else best


def _tiles(k: int, product: nvidia.MatrixProduct) -> list[Tile]:
    """The tiles to choose from; a step does not reach beyond the end of the sum, if the sum is no longer."""
    depth = next((d for d in DEPTHS[1:] if k % (d * product.depth) == 0), DEPTHS[-1])
    stages = STAGES[0] if k > depth * product.depth else 1
    return [Tile(warps, fragments, depth, stages) for warps in itertools.product(WARPS, WARPS)
            for fragments in itertools.product(*FRAGMENTS)]


def _idle(t: Tile, m: int, n: int) -> bool:
    """Whether a warp of every block is beyond the end of the result."""
    return any(size <= (warps - 1) * fragments * side for size, warps, fragments, side in zip(
        (m, n), t.warps, t.fragments, nvidia.C.shape, strict=True))


def _fits(t: Tile, target: Target, product: nvidia.MatrixProduct) -> bool:
    """Whether a block's tiles fit into shared memory, and a thread's part into registers."""
    (m, n), size = t.fragments, product.copy.operands[0].dtype.nbytes
    registers = 4 * m * n + (4 * m + 2 * n)
    k = t.depth * product.depth
    shared = t.stages * size * sum(max(rows * _stride(product, k, True), k * _stride(product, rows, False))
                                   for rows in (t.rows, t.columns))
    return registers <= min(HELD, target.registers) and shared <= target.shared_memory and t.threads <= target.max_threads


def _spread(product: nvidia.MatrixProduct, along_k: bool) -> tuple[int, int]:
    """How far rows of a tile lie apart in shared memory, as (factor, remainder), so that what is read at once is in
    different banks: by matrix instructions eight pieces of 16 bytes, an odd number of pieces apart; by the threads of a warp
    a number each, of 8 rows of 4 along k or of 4 rows of 8."""
    return (16, 8) if not product.rounds else (32, 4 if along_k else 8)


def _stride(product: nvidia.MatrixProduct, row: int, along_k: bool) -> int:
    factor, remainder = _spread(product, along_k)
    return row + (remainder - row) % factor


def _cost(t: Tile, extents: tuple[int, int, int], others: int, target: Target,
          product: nvidia.MatrixProduct) -> tuple[float, int]:
    """Cycles of a core for its share of the blocks; of equals, the larger block."""
    m, n, k = extents
    blocks = others * -(-m // t.rows) * -(-n // t.columns)
    (fm, fn), warps = t.fragments, math.prod(t.warps)
    copied = (t.rows + t.columns) * product.depth * product.copy.operands[0].dtype.nbytes
    parts = MULTIPLY * fm * fn * warps, (READ_A * fm + READ_B * fn) * warps, copied / COPIED
    step = max(parts) + APART * sum(parts)
    turns = -(-blocks // target.cores)
    stored = 4 * t.rows * t.columns / COPIED
    return turns * (-(-k // product.depth) * step + stored) / min(1.0, turns * t.threads / BUSY), -t.threads


# ---- the schedule --------------------------------------------------------------------------------------------------------
def multiply_fragments(sch: Schedule, ref: BlockRef, product: nvidia.MatrixProduct, tile: Tile) -> set[str]:
    """One kernel for a product in these tiles, and for what follows it. The names of the blocks that have their schedule
    now. Raises ScheduleError."""
    axes = _axes(classify(state.find_block(sch.program, ref)))
    if axes is None:
        raise ScheduleError("tensorize", "the tiles of the product are no matrices", sch.program, ref)
    _as_matrices(sch, ref, axes)
    if _idle(tile, as_int(axes[0].extent) or 0, as_int(axes[1].extent) or 0):
        raise ScheduleError("bind", f"{tile.warps} warps of {tile.fragments} fragments are more than the result has",
                            sch.program, ref)
    epilogue = _result_in_warps(sch, ref, axes, tile, product)
    info = classify(state.find_block(sch.program, ref))
    block = info.block
    loops = loops_of(block, sch.loops(ref))
    m, n, k = axes
    blocks = [loops[it.var] for it in block.iters if it.kind == "spatial" and it.var not in (m.var, n.var)]
    outer_k = [loops[it.var] for it in block.iters if it.kind == "reduce" and it.var is not k.var]
    i0, i1, i2, i3 = sch.split(loops[m.var], [None, tile.warps[0], tile.fragments[0], ROWS])
    j0, j1, j2, j3 = sch.split(loops[n.var], [None, tile.warps[1], tile.fragments[1], COLUMNS])
    k0, k1, k2 = sch.split(loops[k.var], [None, tile.depth, product.depth])
    blocks = sorted([*blocks, i0, j0], key=lambda v: as_int(sch.loop(v).extent) == 1)  # the grid's loops outermost
    sch.reorder(*blocks, *outer_k, k0, i1, j1, k1, i2, j2, i3, j3, k2)
    home = blocks[-1]
    sch.reverse_compute_at(epilogue, home)
    init = sch.decompose_reduction(ref, (*outer_k, k0)[0])
    assert info.a is not None and info.b is not None and info.out is not None
    copies = [operand_tile(sch, ref, x.buffer.name, k0) for x in (info.a, info.b)]
    loads = [sch.cache_read(ref, _made(sch, copy).name, "warp") for copy in copies]
    for load in loads:
        sch.compute_at(load, k1)
    bind_blocks(sch, blocks)
    for copy, x in zip(copies, (info.a, info.b), strict=True):
        _copy_together(sch, copy, x, k.var, tile, product)
    allow = {"allow": product.rounds} if product.rounds else {}
    for load, x, kind, own in zip(loads, (info.a, info.b), (product.a, product.b), ((m, k), (k, n)), strict=True):
        place, instruction = _fragments(sch, load, k1, x, kind, (own[0].var, own[1].var))
        sch.tensorize(place, instruction, **allow)
    sch.unroll(i2)
    sch.unroll(j2)
    sch.tensorize(i3, product.multiply)
    fills = _fill(sch, init, home, [v for v in (i1, j1, i2, j2) if as_int(sch.loop(v).extent) != 1])
    for v in (i2, j2):
        if v in fills:
            sch.unroll(fills[v])
    last = _store(sch, epilogue, info.out, home, (m.var, n.var), tile)
    for z, y in ((i1, j1), (fills.get(i1), fills.get(j1)), last):
        for loop, axis in ((z, "threadIdx.z"), (y, "threadIdx.y")):
            if loop is not None:
                sch.bind(loop, axis)
    if tile.stages > 1:
        sch.software_pipeline(k0, tile.stages)
    return {ref.name, epilogue.name, *[b.name for b in (*copies, *loads, init)]}


def _as_matrices(sch: Schedule, ref: BlockRef, axes: tuple[IterVar, IterVar, IterVar]) -> None:
    """What is read through windows is gathered as a matrix (a convolution is a product then; Chetlur et al., "cuDNN", 2014,
    section 3), along the columns; constant weights get their rows as the last axis."""
    m, n, k = axes
    info = classify(state.find_block(sch.program, ref))
    for x, own in ((info.a, m), (info.b, n)):
        assert x is not None
        if info.windows and _gathered(x, info):
            numbers = [i for i, it in enumerate(info.block.iters) if it.var in x.all_vars and it.var is not own.var]
            last = next(i for i, it in enumerate(info.block.iters) if it.var is own.var)
            _inline_views(sch, sch.reindex(ref, x.buffer.name, [*numbers, last]))
        elif x.buffer.name in sch.program.attr("weights", ()) and x.indices[-1] not in (m.var, n.var, k.var):
            at = x.indices.index(own.var)
            sch.transform_layout(ref, x.buffer.name, functools.partial(to_the_end, at))


def _inline_views(sch: Schedule, ref: BlockRef) -> None:
    """Borders and moved elements that a copy alone reads become part of it."""
    for p in producers(sch.program, state.find_block(sch.program, ref)):
        if (writes_border(p) or is_view(classify(p))) and len(consumers(sch.program, p)) == 1:
            sch.compute_inline(sch.block(p.name))


def _result_in_warps(sch: Schedule, ref: BlockRef, axes: tuple[IterVar, IterVar, IterVar], tile: Tile,
                     product: nvidia.MatrixProduct) -> BlockRef:
    """Pad the product to whole tiles and let warps hold its result. The block that stores it, merged of all that follows."""
    epilogue, fills = merge_chain(sch, ref)
    if fills:
        raise ScheduleError("merge", "borders are filled behind the product", sch.program, ref)
    sizes = dict(zip([it.var for it in axes], (tile.rows, tile.columns, tile.depth * product.depth), strict=True))
    if any((as_int(it.extent) or 0) % sizes[it.var] for it in axes):
        block = state.find_block(sch.program, ref)
        *padded, store = sch.pad_einsum(ref, [sizes.get(it.var, 1) for it in block.iters], wrap=True)
        for copy in padded:
            _inline_views(sch, copy)
        if epilogue is not None:
            sch.compute_inline(store)
        else:
            epilogue = store
    elif epilogue is None:
        return sch.cache_write(ref, 0, "warp")
    sch.set_scope(ref, 0, "warp")
    return epilogue


def _made(sch: Schedule, ref: BlockRef) -> Buffer:
    return outputs(state.find_block(sch.program, ref))[0]


def _copy_together(sch: Schedule, copy: BlockRef, x: Access, k: Var, tile: Tile, product: nvidia.MatrixProduct) -> None:
    """All threads of a block copy a tile, as many neighbours each as one instruction moves."""
    made = _made(sch, copy)
    lanes = _neighbours(sch, copy)
    threads = [("threadIdx.z", tile.warps[0]), ("threadIdx.y", tile.warps[1]), ("threadIdx.x", 32)]
    loops = sch.cooperative_fetch(copy, threads, lanes)
    if lanes * made.dtype.nbytes == WIDEST:
        sch.tensorize(loops[-1], product.copy)
    if made.rank > 1:
        sch.storage_align(copy, 0, made.rank - 2, *_spread(product, x.indices[-1] is k))


def _neighbours(sch: Schedule, copy: BlockRef) -> int:
    """How many elements that lie side by side, the first at a multiple of that, a thread can copy at once."""
    body = state.find_block(sch.program, copy).body
    if not isinstance(body, Store) or not isinstance(body.value, Load) or body.value.buffer.strides is not None:
        return 1
    read, row = body.value, as_int(sch.loop(sch.loops(copy)[-1]).extent)
    last = read.indices[-1]
    length = as_int(read.buffer.shape[-1])
    if isinstance(last, FloorMod) and as_int(last.b) == length:
        last = last.a
    if last is not body.indices[-1] or row is None or length is None:
        return 1
    widest = WIDEST // read.buffer.dtype.nbytes
    return next(v for v in (widest, widest // 2, 2, 1) if row % v == length % v == 0)


def _fragments(sch: Schedule, load: BlockRef, home: Var, x: Access, kind: nvidia.Loads,
               own: tuple[Var, Var]) -> tuple[Var, TensorIntrinsic]:
    """The loops of a load fragment by fragment: the outermost of one fragment, and the instruction that loads it."""
    block, loops = state.find_block(sch.program, load), sch.loops(load)
    inner = loops_of(block, loops[loops.index(home) + 1:])
    row, column = [inner[block.iters[x.indices.index(v)].var] for v in own]
    (r0, r1), (c0, c1) = [sch.split(v, [None, n]) for v, n in zip((row, column), kind.any.fragments["f"].shape, strict=True)]
    sch.reorder(r0, c0, r1, c1)
    sch.unroll(r0)
    sch.unroll(c0)
    last = x.indices[-1]
    return r1, kind.rows if last is own[1] else kind.columns if last is own[0] else kind.any


def _fill(sch: Schedule, init: BlockRef, home: Var, loops: list[Var]) -> dict[Var, Var]:
    """Zeros as fragments. The loops of the initialisation by those of the product, which has these of more than one turn."""
    own = sch.loops(init)
    *outer, row, _ = own[own.index(home) + 1:]
    sch.tensorize(row, nvidia.MMA_FILL)
    return dict(zip(loops, outer, strict=True))


def _store(sch: Schedule, epilogue: BlockRef, out: Access, home: Var, own: tuple[Var, Var], tile: Tile) -> tuple[Var, Var]:
    """Each thread stores what it holds: of the rows of a fragment, 2 × 8, one and one again, of the columns, 4 × 2, a pair.
    The loops over warps."""
    block = state.find_block(sch.program, epilogue)
    read = next(n for n in walk(block.body) if isinstance(n, Load) and n.buffer is out.buffer)
    around = sch.loops(epilogue)
    loops = loops_of(block, around[around.index(home) + 1:])
    row, column = [loops.get(i) if isinstance(i, Var) else None for i in (read.indices[out.indices.index(v)] for v in own)]
    if row is None or column is None:
        raise ScheduleError("bind", "what follows the product does not read the tile along its axes", sch.program, epilogue)
    r0, r1, r2, r3 = sch.split(row, [None, tile.fragments[0], 2, 8])
    c0, c1, c2, c3 = sch.split(column, [None, tile.fragments[1], 4, 2])
    sch.reorder(r0, c0, r3, c2, r1, c1, r2, c3)
    sch.bind(sch.fuse(r3, c2), "threadIdx.x")
    for v in (r1, c1, r2, c3):
        sch.unroll(v)
    return r0, c0
