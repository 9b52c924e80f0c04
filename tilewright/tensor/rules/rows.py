"""Schedule rule of programs of reductions and elementwise stages over rows: softmax, norms, means, arg-reductions.

In: a Schedule of several blocks. Out: all stages of a row computed one after another while the row is in the first-level
cache; rows in parallel; everything in vectors. Where a reduction runs along the contiguous axis, a row's vectors are
reduced lane by lane into several accumulators, and these in the end horizontally; where it runs along another axis, a
"row" is a strip of a few vectors of the contiguous axis, each lane of which is reduced by itself.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

from tilewright.core.node import walk
from tilewright.loop.bounds import bounds
from tilewright.loop.ir import Block, Load, Store, Var, as_int, estimate
from tilewright.target.target import Target
from tilewright.tensor.classify import vars_of
from tilewright.tensor.combiner import folds_lanes, reduction_of
from tilewright.tensor.regions import consumers, outputs
from tilewright.tensor.rules.elementwise import PARALLEL_ELEMENTS
from tilewright.tensor.rules.threads import parallelize_outer
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef, ScheduleError

ACCUMULATORS = 4
"""Vectors that a reduction adds to in turn: the latency of an addition is 2-4 cycles, two start per cycle."""

STRIP_BYTES = 32768
"""What the stages of a strip may keep between them: about the first-level cache."""

GROUP, GROUPED_ELEMENTS = 4, 512
"""Rows of up to so many elements go through the stages in groups: one row's horizontal reductions wait for each other,
those of several rows overlap."""

FEW_ROWS, LONG_ROW = 8, 65536
"""So many rows of at least so many elements are reduced in blocks: these run in parallel, and a sum of blocks' sums loses
less than one long sum. Their size depends on the row alone, so results do not depend on the number of threads."""

SHORT_BLOCK, LONG_BLOCK = 2048, 16384
"""Elements of such a block: a part of the row without remainder, whole vectors if there is such a part."""

UNKNOWN_EXTENT = 1024
"""What a symbolic extent is taken for where the form of a loop depends on it."""


def schedule_rows(sch: Schedule, target: Target) -> None:
    """Schedule every block of the program around the axes that all reductions keep."""
    early = _reduce_in_blocks(sch, target)
    last = state.blocks(sch.program)[-1]
    if is_reduction(last) and isinstance(last.body, Store):  # so that it accumulates in registers
        copy = sch.cache_write(sch.block(last.name), 0, "local")
        last = state.find_block(sch.program, copy)
    blocks = [b for b in state.blocks(sch.program) if b.name not in early]
    axes = axes_of(sch, blocks, last)
    kept = kept_axes(blocks, axes, last)
    loops = dict(zip([it.var for it in last.iters], sch.loops(sch.block(last.name)), strict=True))
    rows = [loops[v] for v in kept]
    rest = [v for v in loops.values() if v not in rows]
    strip = _strip_axis(blocks, axes)
    if strip in kept:
        size = _strip_size(sch, last, loops[strip], rest, target)
        rows.remove(loops[strip])
        if (as_int(sch.loop(loops[strip]).extent) or size + 1) > size:
            outer, loops[strip] = sch.split(loops[strip], [None, size])
            rows.append(outer)
        rest.append(loops[strip])
    elif rows and (as_int(sch.loop(rows[-1]).extent) or 0) % GROUP == 0 and _steps(sch, rest) <= GROUPED_ELEMENTS:
        rows[-1], row = sch.split(rows[-1], [None, GROUP])
        rest.insert(0, row)
    if rows and rest:
        sch.reorder(*rows, *rest)
    home = rows[-1] if rows else None
    placed = _place(sch, blocks, axes, last, set(kept), home)
    for b in blocks:
        vectorize_stage(sch, sch.block(b.name), home if b.name in placed else None, target)
    work = max(_points(b) for b in blocks) * len(blocks)
    if rows and work >= PARALLEL_ELEMENTS and target.cores > 1 and not early:
        parallelize_outer(sch, rows, target)


def _reduce_in_blocks(sch: Schedule, target: Target) -> set[str]:
    """Split the only reduction of a program, over few long rows, into partial results of blocks, computed before everything
    else, in parallel. Returns the names of the blocks that make them."""
    early: set[str] = set()
    reductions = [b for b in state.blocks(sch.program) if is_reduction(b)]
    for block in reductions if len(reductions) == 1 else ():
        reduced = [it for it in block.iters if it.kind == "reduce" and as_int(it.extent) != 1]
        if len(reduced) != 1 or not isinstance(block.body, Store) or reduction_of(block) is None:
            continue
        long = (as_int(reduced[0].extent) or 0) >= LONG_ROW and reduced[0].var in _contiguous(block)
        rows = math.prod([as_int(it.extent) or UNKNOWN_EXTENT for it in block.iters if it.kind == "spatial"])
        reads = {n.buffer for n in walk(block.body) if isinstance(n, Load)} - set(outputs(block))
        size = _block_of(as_int(reduced[0].extent) or 0) if long else None
        if size is None or rows > FEW_ROWS or not all(state.is_parameter(sch.program, b) for b in reads):
            continue
        before = {b.name for b in state.blocks(sch.program)}
        ref = sch.block(block.name)
        loop = dict(zip([it.var for it in block.iters], sch.loops(ref), strict=True))[reduced[0].var]
        outer, _ = sch.split(loop, [None, size])
        partial = sch.rfactor(ref, outer, -1)
        copy = sch.cache_write(partial, 0, "local")
        home = sch.loops(copy)[-1]
        sch.compute_at(partial, home)
        vectorize_stage(sch, partial, home, target)
        if target.cores > 1:
            sch.parallel(home)  # the loops around it also hold what follows
        early |= {b.name for b in state.blocks(sch.program)} - before
    return early


def _block_of(n: int) -> int | None:
    """The size of the blocks of a row of `n` elements, None if it has no part of a fitting size."""
    parts = [k for k in range(SHORT_BLOCK, LONG_BLOCK + 1) if n % k == 0]
    return max(parts, key=lambda k: (k & -k >= 16, k), default=None)


# ---- which axes are rows ---------------------------------------------------------------------------------------------
def is_reduction(block: Block) -> bool:
    return any(it.kind == "reduce" for it in block.iters)


def _lanes(block: Block, target: Target) -> int:
    """Lanes of the vectors of a stage: of its values; the indices beside them, in an arg-reduction, take several."""
    return target.lanes(min(max(8, b.dtype.bits) for b in outputs(block)))


def _points(block: Block) -> int:
    return math.prod([estimate(it.extent) for it in block.iters])


def _steps(sch: Schedule, loops: Sequence[Var]) -> int:
    return math.prod([estimate(sch.loop(v).extent) for v in loops])


def axes_of(sch: Schedule, blocks: Sequence[Block], last: Block) -> dict[str, dict[Var, Var]]:
    """Per block, which of its spatial variables is which of the last block's: they index what one writes and the other
    reads, through the stages between them."""
    out: dict[str, dict[Var, Var]] = {last.name: {it.var: it.var for it in last.iters if it.kind == "spatial"}}
    for p in reversed(blocks):
        if p is last:
            continue
        stores = [n for n in walk(p.body) if isinstance(n, Store)]
        found: dict[Var, set[Var | None]] = {}
        for c in consumers(sch.program, p):
            known = out.get(c.name, {})
            for n in walk(c.body):
                if isinstance(n, Load) and n.buffer is stores[0].buffer:
                    for own, read in zip(stores[0].indices, n.indices, strict=True):
                        if isinstance(own, Var):
                            found.setdefault(own, set()).add(known.get(read) if isinstance(read, Var) else None)
        extents = {it.var: it.extent for it in (*p.iters, *last.iters)}
        out[p.name] = {v: a for v, s in found.items() if len(s) == 1 and (a := next(iter(s))) is not None
                       and extents.get(v) == extents[a]}
    return out


def kept_axes(blocks: Sequence[Block], axes: dict[str, dict[Var, Var]], last: Block) -> list[Var]:
    """The last block's variables that every reduction has as its own, and those of one value."""
    kept = [it.var for it in last.iters if it.kind == "spatial"]
    for b in blocks:
        if is_reduction(b):
            has = set(axes[b.name].values())
            kept = [v for v in kept if v in has]
    return kept


def _contiguous(block: Block) -> frozenset[Var]:
    """The variables that index the innermost dimension of the largest buffer that a reduction reads."""
    reads = [n for n in walk(block.body) if isinstance(n, Load) and n.buffer not in outputs(block)]
    best: frozenset[Var] = frozenset()
    size = 0
    for n in reads:
        elements = math.prod([estimate(d) for d in n.buffer.shape])
        inner = [vars_of(e) for e, d in zip(n.indices, n.buffer.shape, strict=True) if as_int(d) != 1]
        if elements > size and inner:
            best, size = inner[-1], elements
    return best


def _strip_axis(blocks: Sequence[Block], axes: dict[str, dict[Var, Var]]) -> Var | None:
    """The last block's variable along which all reductions have their contiguous data, if none of them reduces that."""
    found: set[Var | None] = set()
    for b in blocks:
        if is_reduction(b):
            inner = _contiguous(b)
            spatial = [it.var for it in b.iters if it.kind == "spatial" and it.var in inner]
            found.add(axes[b.name].get(spatial[0]) if spatial else None)
    return next(iter(found)) if len(found) == 1 else None


def _strip_size(sch: Schedule, last: Block, loop: Var, rest: Sequence[Var], target: Target) -> int:
    """Elements of a strip: as many vectors as accumulators, fewer where the stages' buffers would not fit the cache."""
    lanes = _lanes(last, target)
    row = outputs(last)[0].dtype.nbytes * _steps(sch, rest)
    vectors = ACCUMULATORS
    while vectors > 1 and row * lanes * vectors > STRIP_BYTES:
        vectors //= 2
    n = as_int(sch.loop(loop).extent) or UNKNOWN_EXTENT
    while vectors > 1 and lanes * vectors // 2 >= n:
        vectors //= 2
    return lanes * vectors


def _place(sch: Schedule, blocks: Sequence[Block], axes: dict[str, dict[Var, Var]], last: Block, kept: set[Var],
           home: Var | None) -> set[str]:
    """Compute the stages at the row loops, what they keep private to a row. Stages that do not differ between rows, or
    that must be complete before, stay where they are."""
    placed = {last.name}
    many = {it.var for it in last.iters if it.var in kept and as_int(it.extent) != 1}
    for b in reversed(blocks):
        if b is last or home is None or not many <= set(axes[b.name].values()):
            continue
        ref = sch.block(b.name)
        try:
            sch.compute_at(ref, home)
        except ScheduleError:
            continue
        placed.add(b.name)
        for k, buffer in enumerate(outputs(state.find_block(sch.program, ref))):
            if not state.is_parameter(sch.program, buffer):
                sch.set_scope(ref, k, "local")
    return placed


# ---- one stage -------------------------------------------------------------------------------------------------------
def vectorize_stage(sch: Schedule, ref: BlockRef, home: Var | None, target: Target) -> None:
    """Vectors for one stage within its row (or, without one, within its own loops)."""
    block = state.find_block(sch.program, ref)
    loops = sch.loops(ref)
    if home is not None:
        loops = loops[loops.index(home) + 1:]
    of = {it.var: [v for v in loops if v in vars_of(e)] for it, e in zip(block.iters, block.bindings, strict=True)}
    reduced = [v for it in block.iters if it.kind == "reduce" for v in of[it.var]]
    spatial = [v for v in loops if v not in reduced]
    lanes = _lanes(block, target)
    if not reduced:
        if isinstance(block.body, Store) and spatial:
            _spatial_stage(sch, block, spatial, of, lanes)
        return
    if reduction_of(block) is None:
        return
    inner = [v for it in block.iters if it.var in _contiguous(block) for v in of[it.var]]
    vector = inner[-1] if inner else loops[-1]
    if vector in reduced:
        sch.reorder(*spatial, *[v for v in reduced if v is not vector], vector)
        _horizontal_stage(sch, ref, vector, lanes, alone=len(reduced) == 1)
    else:
        _strip_stage(sch, ref, [v for v in spatial if v is not vector], reduced, vector, lanes)


def _spatial_stage(sch: Schedule, block: Block, loops: list[Var], of: dict[Var, list[Var]], lanes: int) -> None:
    """The loop along the contiguous dimension of what is written in vectors."""
    assert isinstance(block.body, Store)
    inner = [v for e, d in zip(block.body.indices, block.body.buffer.shape, strict=True) if as_int(d) != 1
             for i in vars_of(e) for v in of.get(i, ())]
    vector = inner[-1] if inner else loops[-1]
    if vector is not loops[-1]:
        sch.reorder(*[v for v in loops if v is not vector], vector)
    _vectors(sch, vector, lanes)


def _vectors(sch: Schedule, loop: Var, lanes: int) -> None:
    """A loop in vectors, the vectors of a short one unrolled."""
    n = as_int(sch.loop(loop).extent) or UNKNOWN_EXTENT
    lanes = min(lanes, _power_of_two(n))
    if lanes == 1:
        return
    if n == lanes:
        sch.vectorize(loop)
        return
    outer, loop = sch.split(loop, [None, lanes])
    if n <= lanes * ACCUMULATORS:
        sch.unroll(outer)
    sch.vectorize(loop)


def _power_of_two(n: int) -> int:
    """The largest one up to n."""
    return 1 << (n.bit_length() - 1)


def _strip_stage(sch: Schedule, ref: BlockRef, spatial: list[Var], reduced: list[Var], vector: Var, lanes: int) -> None:
    """Each lane of a few vectors reduced by itself."""
    if (as_int(sch.loop(vector).extent) or UNKNOWN_EXTENT) > lanes * ACCUMULATORS:
        outer, vector = sch.split(vector, [None, lanes * ACCUMULATORS])
        spatial = [*spatial, outer]
    sch.reorder(*spatial, *reduced, vector)
    init = sch.decompose_reduction(ref, reduced[0])
    _vectors(sch, sch.loops(init)[-1], lanes)
    _vectors(sch, vector, lanes)


def _horizontal_stage(sch: Schedule, ref: BlockRef, loop: Var, lanes: int, alone: bool) -> None:
    """The innermost reduction loop (the only one, if `alone`) by lanes of several accumulators, these by lanes of one, and
    that one horizontally."""
    extent = sch.loop(loop).extent
    n = as_int(extent) or UNKNOWN_EXTENT
    lanes = min(lanes, _power_of_two(n))
    wide = lanes * min(ACCUMULATORS, _power_of_two(n // lanes))
    most = bounds(extent)[1]
    if lanes == 1 or as_int(extent) is None and most is not None and most <= wide:  # never more than one turn
        return
    if n > wide:
        _, loop = sch.split(loop, [None, wide])
    if n > wide or not alone:  # else there is nothing to add up before the lanes
        _partial(sch, sch.rfactor(ref, loop, -1), lanes)
    if wide > lanes:
        _, step = sch.split(sch.loops(ref)[-1], [None, lanes])
        _partial(sch, sch.rfactor(ref, step, -1), lanes)
    block = state.find_block(sch.program, ref)
    if isinstance(block.body, Store):
        last = sch.loops(ref)[-1]
        sch.decompose_reduction(ref, last)
        if folds_lanes(state.find_block(sch.program, ref)):
            sch.vectorize(last)


def _partial(sch: Schedule, ref: BlockRef, lanes: int) -> None:
    """Partial results in registers: their initialisation before the loops, their lanes in vectors."""
    for k in range(len(outputs(state.find_block(sch.program, ref)))):
        sch.set_scope(ref, k, "local")
    block = state.find_block(sch.program, ref)
    loops = sch.loops(ref)
    first = next(v for v in loops if any(it.kind == "reduce" and v in vars_of(e)
                                         for it, e in zip(block.iters, block.bindings, strict=True)))
    init = sch.decompose_reduction(ref, first)
    _vectors(sch, sch.loops(init)[-1], lanes)
    if as_int(sch.loop(first).extent) in range(2, ACCUMULATORS + 1) and first is loops[-2]:
        sch.unroll(first)
    _vectors(sch, loops[-1], lanes)
