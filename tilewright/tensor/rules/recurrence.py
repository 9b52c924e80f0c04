"""Schedule rule of recurrences on a CPU: products and elementwise stages in a loop over time.

In: a Schedule of a program with a loop over time around several blocks (`tensor/scan.py`), or that loop's part of one.
Out: per step, each product in register tiles that hold all gates of a few units, over packed weights; what reads only a
tile's own elements (gates, states) is computed where the tile is complete; tiles in parallel, if there is enough to do.

    time | parallel (direction, panel of units) | rows | reduction | tile: rows, gates, vectors of units | gates' stages

Threads keep their panels over all steps, so that what fits their second-level caches stays there.
"""
from __future__ import annotations

import math
from collections.abc import Iterable

from tilewright.loop.ir import Block, Expr, For, Var, as_int
from tilewright.target.target import Target
from tilewright.tensor.classify import BlockInfo, classify, vars_of
from tilewright.tensor.regions import consumers, outputs
from tilewright.tensor.rules.tiles import Tile, cost_per_element
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef, ScheduleError

UNROLL_K = 4
"""Steps of the reduction per turn of its loop."""

PARALLEL_PRODUCTS = 16384
"""Multiply-adds of a step below which one thread is as fast as several: about a microsecond."""


def time_loops(sch: Schedule) -> list[For]:
    """Loops of an unscheduled program that hold several blocks: those over time."""
    found: dict[Var, For] = {}
    for b in state.blocks(sch.program):
        around = state.loops_around(sch.program, b)
        if around and len(state.blocks_under(around[0])) > 1:
            found[around[0].var] = around[0]
    return list(found.values())


def schedule_recurrence(sch: Schedule, time: Var, target: Target) -> set[str]:
    """Schedule the blocks under a loop over time; returns their names."""
    names = [b.name for b in state.blocks_under(sch.loop(time))]
    done: set[str] = set()
    for name in names:
        info = classify(state.find_block(sch.program, BlockRef(name)))
        if info.kind == "contraction" and info.n and not info.windows:
            done |= _product(sch, info, time, target)
    for name in names:
        if name not in done:
            ref = sch.block(name)
            if not state.is_parameter(sch.program, outputs(state.find_block(sch.program, ref))[0]):
                sch.set_scope(ref, 0, "local")  # one step's worth
            _vectors(sch, ref, sch.loops(ref)[1:], target)
    return set(names)


def _product(sch: Schedule, info: BlockInfo, time: Var, target: Target) -> set[str]:
    """One product of a step, and what is computed where its tiles are complete. Returns the names of the blocks."""
    ref = sch.block(info.block.name)
    loop_of = dict(zip([it.var for it in info.block.iters], sch.loops(ref), strict=True))
    assert info.out is not None
    order = [it for dim in info.out.vars for it in info.block.iters if it.var in dim and it.kind == "spatial"]
    n = {it.var for it in info.n}
    units = order[-1]
    gates = [it for it in order[:-1] if it.var in n]
    rows = [it for it in order[:-1] if it in info.m and loop_of[it.var] is not time]
    outer = [loop_of[it.var] for it in info.block.iters if it.kind == "spatial" and it is not units and it not in gates
             and it not in rows and loop_of[it.var] is not time]
    reduce = [loop_of[it.var] for it in info.k]
    count = math.prod([as_int(g.extent) or 1 for g in gates])
    extent = as_int(units.extent) or target.lanes(32)
    lanes = min(target.lanes(info.out.buffer.dtype.bits), 1 << max(0, extent.bit_length() - 1))
    batch = as_int(rows[-1].extent) if rows else 1
    others = info.extent(info.batch)
    tile = _tile(batch or 1, count, -(-extent // lanes), others, target)
    readers = [b.name for b in consumers(sch.program, info.block) if _is_stage(b)]
    packed = _pack(sch, info, gates, units, tile.vectors // count * lanes)
    jo, jp, jl = sch.split(loop_of[units.var], [None, tile.vectors // count, lanes])
    inside = [loop_of[g.var] for g in gates]
    place = [*outer, *[loop_of[r.var] for r in rows[:-1]], jo]
    if rows:
        last = loop_of[rows[-1].var]
        if tile.columns > 1:
            last, within = sch.split(last, [None, tile.columns])
            inside.insert(0, within)
        place.append(last)
    ko, ki = _split_reduction(sch, reduce)
    sch.reorder(*place, *ko, *ki, *inside, jp, jl)
    sch.set_scope(ref, 0, "local")
    home = place[-1]
    after = _attach(sch, readers, home)
    if not after:
        sch.set_scope(ref, 0, "global")
    init = sch.decompose_reduction(ref, (ko + ki)[0])
    around = sch.loops(init)
    _unrolled(sch, around[around.index(home) + 1:])
    for v in ki:
        sch.unroll(v)
    _unrolled(sch, [*inside, jp, jl])
    for name in after:
        loops = sch.loops(sch.block(name))
        _vectors(sch, sch.block(name), loops[loops.index(home) + 1:], target)
    streamed = info.extent(info.batch) * info.extent(info.n) * info.extent(info.k) * 4 > target.cores * target.l2
    if packed and ko and streamed:
        sch.prefetch(ref, packed, (ko + ki)[-1], ko[-1], 2)
    work = info.extent(info.batch) * info.extent(info.n) * info.extent(info.k) * (batch or 1)
    shared = place[:place.index(jo) + 1]
    if work >= PARALLEL_PRODUCTS and target.cores > 1:
        sch.parallel(sch.fuse(*shared) if len(shared) > 1 else shared[0])
    return {ref.name, init.name, *after}


def _is_stage(b: Block) -> bool:
    return all(it.kind == "spatial" for it in b.iters)


def _tile(rows: int, gates: int, vectors: int, others: int, target: Target) -> Tile:
    """The cheapest tile of all gates of some vectors of units, for some rows; `others` is how often there are as many
    (directions). A tile of more vectors gives fewer tiles to share. If no vector of all gates leaves registers for a row,
    one of them all the same."""
    best, best_key = Tile(1, 1, gates), (math.inf, 0.0)
    for v in range(1, min(vectors, 8) + 1):
        tiles = others * -(-vectors // v)
        uneven = -(-tiles // target.cores) * target.cores * v / (others * vectors)
        for c in range(1, min(rows, 12) + 1):
            tile = Tile(1, c, gates * v)
            if tile.accumulators > target.vector_registers - (4 if target.memory_operands else gates * v):
                continue
            key = (round(uneven * cost_per_element(tile, 1, rows, gates * v, target), 4), c / v)
            if key < best_key:
                best, best_key = tile, key
    return best


def _split_reduction(sch: Schedule, reduce: list[Var]) -> tuple[list[Var], list[Var]]:
    *outer, last = reduce
    n = as_int(sch.loop(last).extent)
    if n is None or n % UNROLL_K:
        return reduce, []
    if n == UNROLL_K:
        return outer, [last]
    ko, ki = sch.split(last, [None, UNROLL_K])
    return [*outer, ko], [ki]


def _attach(sch: Schedule, readers: Iterable[str], home: Var) -> list[str]:
    """Compute the stages that read a product, and those that read only these, at its tile; all or none of the direct
    readers, whose number decides whether the product stays in registers."""
    before = sch.program
    made: list[str] = []
    wanted = list(readers)
    try:
        while wanted:
            name = wanted.pop(0)
            sch.reverse_compute_at(sch.block(name), home)
            made.append(name)
    except ScheduleError:
        if made:
            raise
        sch.program = before
    return made


def _pack(sch: Schedule, info: BlockInfo, gates: list, units, width: int) -> str | None:  # type: ignore[no-untyped-def, type-arg]
    """Constant weights in the order in which tiles stream them: [others][panel][reduction][gates][units of the panel]."""
    b = info.b
    assert b is not None
    if b.buffer.name not in sch.program.attr("weights", ()):
        return None
    place: dict[Var, int] = {}
    for d, index in enumerate(b.indices):
        if not isinstance(index, Var):
            if vars_of(index):
                return None
        else:
            place[index] = d
    u, g, k = place[units.var], [place[x.var] for x in gates if x.var in place], [place[x.var] for x in info.k]
    rest = [d for d in range(len(b.indices)) if d != u and d not in g and d not in k]

    def index_map(*i: Expr) -> list[Expr]:
        lane: Expr = i[u] % width
        stride = width
        for d in reversed(g):
            lane, stride = i[d] * stride + lane, stride * (as_int(b.buffer.shape[d]) or 1)
        return [*[i[d] for d in rest], i[u] // width, *[i[d] for d in k], lane]
    sch.transform_layout(sch.block(info.block.name), b.buffer.name, index_map, pad_value=0)
    return b.buffer.name


def _unrolled(sch: Schedule, loops: list[Var]) -> None:
    for v in loops[:-1]:
        sch.unroll(v)
    if loops:
        sch.vectorize(loops[-1])


def _vectors(sch: Schedule, ref: BlockRef, loops: list[Var], target: Target) -> None:
    """The innermost loop of a stage in vectors."""
    block = state.find_block(sch.program, ref)
    out = classify(block).out
    if not loops or out is None or not _is_stage(block):
        return
    n = as_int(sch.loop(loops[-1]).extent)
    lanes = target.lanes(out.buffer.dtype.bits)
    if n is None or n > lanes:
        _, last = sch.split(loops[-1], [None, lanes])
    else:
        last = loops[-1]
    if n != 1:
        sch.vectorize(last)
