"""Schedule rule for devices: reductions and elementwise stages over rows, the threads of a block share a row's reductions.

In: a Schedule and some of its blocks, each reading what those before it made. Out: one kernel; the stages of a row follow
each other within a block of threads, what they keep between them lies in shared memory. A reduction is partial sums, one
per thread, then a tree over the threads.

    row blockIdx.x | t threadIdx.x: part[t] = Σ x[…*T + t] | t < 16: part2[t] = Σ part[…] | t == 0: sum = Σ part2[…]

Where rows lie across memory (what is reduced is not the contiguous axis), a block takes neighbouring rows, one per thread
along x, and shares each row out along y; of short rows it takes several, each shared out along x.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.loop.ir import Block, Store, Var, as_int
from tilewright.target.target import Target
from tilewright.tensor.classify import classify, vars_of
from tilewright.tensor.combiner import reduction_of
from tilewright.tensor.regions import consumers, outputs
from tilewright.tensor.rules.rows import axes_of, is_reduction, kept_axes
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef

MIN_ROW = 32
"""Shorter rows are reduced by one thread each."""
MAX_RESULTS = 1 << 15
"""With more rows than that across memory, and one reduction only, a thread per row keeps a device busy."""
THREADS = 256
"""Threads of a block."""
TREE = 16
"""Partial results that one thread adds up."""
LONG, PARTS = 1 << 13, 64
"""Of so many elements a single reduction is cut into at most so many parts, if there are fewer rows than cores."""


@dataclass(frozen=True)
class Form:
    """How a block of threads goes over rows: the last block's axis of which it takes `width` at once, along the thread axis
    `across` (None: one row); `lanes` threads along `along` share a row."""
    axis: Var | None
    width: int
    across: str
    lanes: int
    along: str


def fits_rows(sch: Schedule, blocks: Sequence[Block]) -> bool:
    """Whether all reductions of some blocks keep some axes, along which they can be cut into rows that are worth it."""
    reductions = [b for b in blocks if is_reduction(b)]
    if not reductions or any(reduction_of(b) is None for b in reductions):
        return False
    lengths = [_product(b, "reduce") for b in reductions]
    rows = [_product(b, "spatial") for b in reductions]
    if any(_is_product(b) for b in reductions):
        return False
    if 0 in lengths or 0 in rows or max(lengths) < MIN_ROW or min(lengths) < MIN_ROW:
        return False
    last = blocks[-1]
    if not all(any(c is d for c in consumers(sch.program, b) for d in blocks) for b in blocks[:-1]):
        return False
    axes = axes_of(sch, blocks, last)
    kept = {it.var: as_int(it.extent) or 0 for it in last.iters if it.var in kept_axes(blocks, axes, last)}
    if math.prod(kept.values()) != min(rows) or min(rows) != max(rows):
        return False
    if not isinstance(last.body, Store) and len(blocks) > 1:
        return False
    wanted = {v for v, n in kept.items() if n != 1}
    if not all(wanted <= set(axes[b.name].values()) for b in blocks):
        return False
    return len(reductions) > 1 or rows[0] <= MAX_RESULTS or _contiguous(reductions[0]) not in axes[reductions[0].name]


def _is_product(b: Block) -> bool:
    """Whether a reduction is a product of matrices (of a matrix and a vector it is not: each element counts once)."""
    info = classify(b)
    return info.kind == "contraction" and (bool(info.windows) or min(info.extent(info.m), info.extent(info.n)) > 1)


def _product(b: Block, kind: str) -> int:
    return math.prod([as_int(it.extent) or 0 for it in b.iters if it.kind == kind])


def _contiguous(b: Block) -> Var | None:
    """The variable along which a reduction reads the largest of its operands; None if it is not one of its own."""
    extents = {it.var: as_int(it.extent) for it in b.iters}
    own = outputs(b)
    reads = [x for x in classify(b).reads if x.buffer not in own]
    if not reads:
        return None
    most = max(reads, key=lambda x: math.prod([extents[v] or 1 for v in x.all_vars]))
    for index, used in zip(reversed(most.indices), reversed(most.vars), strict=True):
        moving = [v for v in used if extents[v] != 1]
        if moving:
            return moving[0] if len(moving) == 1 and index == moving[0] else None
    return None


def choose_form(blocks: Sequence[Block], axes: dict[str, dict[Var, Var]], kept: Sequence[Var], target: Target) -> Form:
    """Neighbouring rows where memory runs across them, else as many rows as give a block its threads."""
    last = blocks[-1]
    extents = {it.var: as_int(it.extent) or 1 for it in last.iters}
    length = max(_product(b, "reduce") for b in blocks)
    most = min(THREADS, target.max_threads)
    first = next(b for b in blocks if is_reduction(b))
    beside = _contiguous(first)
    own = axes[first.name].get(beside) if beside is not None else None
    if own in kept and own is not None and extents[own] > 1:
        width = _power_of_two(extents[own], target.warp)
        return Form(own, width, "threadIdx.x", _power_of_two(length, max(1, most // width)), "threadIdx.y")
    lanes = max(target.warp, _power_of_two(length, most))
    while lanes > target.warp and lanes * 2 > length:
        lanes //= 2
    row = next((v for v in reversed(kept) if extents[v] > 1), None)
    width = _power_of_two(extents[row], most // lanes) if row is not None else 1
    rows = math.prod([extents[v] for v in kept])
    while width > 1 and rows // width < 4 * target.cores:
        width //= 2
    return Form(row if width > 1 else None, width, "threadIdx.y", lanes, "threadIdx.x")


def _power_of_two(n: int, limit: int) -> int:
    """The least power of two that is n or more, up to a limit."""
    p = 1
    while p < n and p * 2 <= limit:
        p *= 2
    return p


def cut_reduction(sch: Schedule, ref: BlockRef, target: Target) -> BlockRef | None:
    """Of a long reduction with few results: the block that reduces parts of it, a kernel of its own. None where a block of
    threads per row keeps the device busy, or no length of a part serves."""
    block = state.find_block(sch.program, ref)
    spatial = [it for it in block.iters if it.kind == "spatial"]
    rows, length = _product(block, "spatial"), _product(block, "reduce")
    if length < LONG or rows >= target.cores or reduction_of(block) is None:
        return None
    loops = dict(zip([it.var for it in block.iters], sch.loops(ref), strict=True))
    reduce = [it for it in block.iters if it.kind == "reduce"]
    parts = max((p for p in range(2, PARTS + 1) if (as_int(reduce[0].extent) or 0) % p == 0), default=0)
    if parts * rows < target.cores // 4 or parts < 2:
        return None
    part, rest = sch.split(loops[reduce[0].var], [parts, None])
    sch.reorder(part, *[loops[it.var] for it in spatial], rest, *[loops[it.var] for it in reduce[1:]])
    return sch.rfactor(ref, part)


def schedule_block_rows(sch: Schedule, blocks: Sequence[Block], target: Target) -> set[str]:
    """Schedule some blocks as one kernel; the names of all that have their schedule now."""
    last = blocks[-1]
    names = [b.name for b in blocks]
    if is_reduction(last) and isinstance(last.body, Store):
        names.append(sch.cache_write(sch.block(last.name), 0, "shared").name)
    blocks = [state.find_block(sch.program, BlockRef(n)) for n in names]
    last = blocks[-1]
    axes = axes_of(sch, blocks, last)
    kept = kept_axes(blocks, axes, last)
    form = choose_form(blocks, axes, kept, target)
    ref = sch.block(last.name)
    loops = dict(zip([it.var for it in last.iters], sch.loops(ref), strict=True))
    rest = [v for k, v in loops.items() if k not in kept]
    rows = [loops[v] for v in kept]
    if form.axis is not None:
        outer, inner = sch.split(loops[form.axis], [None, form.width])
        rows[kept.index(form.axis)] = outer
        rest.insert(0, inner)
    if rows:
        sch.reorder(*rows, *rest)
    else:
        rows = [sch.add_unit_loop(ref)]
    for b in reversed(blocks):
        if b is not last:
            sch.compute_at(sch.block(b.name), rows[-1])
    home = sch.fuse(*rows) if len(rows) > 1 else rows[0]
    sch.bind(home, "blockIdx.x")
    for b in blocks:
        own = next((v for v, a in axes[b.name].items() if a is form.axis), None)
        _stage(sch, sch.block(b.name), home, own, form, target)
    return set(names)


def _stage(sch: Schedule, ref: BlockRef, home: Var, own: Var | None, form: Form, target: Target) -> None:
    """Share out a stage: the rows that a block takes at once along one thread axis, each row along the other."""
    block = state.find_block(sch.program, ref)
    _keep(sch, ref, target)
    around = sch.loops(ref)
    loops = around[around.index(home) + 1:]
    if form.axis is not None and own is not None:
        place = next(k for k, it in enumerate(block.iters) if it.var is own)
        row = next(v for v in loops if v in _vars_in(block, place))
        loops.remove(row)
        if loops:
            sch.reorder(row, *loops)
        sch.bind(row, form.across)
    if not is_reduction(block):
        _to_threads(sch, loops, form)
        return
    reduced = len([it for it in block.iters if it.kind == "reduce"])
    reduce = loops[len(loops) - reduced:]
    lanes = form.lanes
    while lanes >= min(TREE, form.lanes) and lanes > 1:
        loop = sch.fuse(*reduce) if len(reduce) > 1 else reduce[0]
        _partial_sums(sch, ref, loop, lanes, form, target)
        reduce = sch.loops(ref)[-1:]
        lanes = TREE if lanes > TREE else 0


def _vars_in(block: Block, place: int) -> set[Var]:
    """The loops that a block's iteration variable follows."""
    return set(vars_of(block.bindings[place]))


def _partial_sums(sch: Schedule, ref: BlockRef, loop: Var, lanes: int, form: Form, target: Target) -> None:
    """Reduce over all steps of a loop but every `lanes`-th first, a thread for each of those."""
    lane, step = loop, None
    if (as_int(sch.loop(loop).extent) or lanes + 1) > lanes:
        step, lane = sch.split(loop, [None, lanes])
    partial = sch.rfactor(ref, lane)
    _keep(sch, partial, target)
    if step is not None:
        sch.reorder(lane, step)
    sch.bind(lane, form.along)


def _keep(sch: Schedule, ref: BlockRef, target: Target) -> None:
    """Put what a stage makes into shared memory, if a row of it is small."""
    block = state.find_block(sch.program, ref)
    for k, buffer in enumerate(outputs(block)):
        points = math.prod([as_int(it.extent) or 1 for it in block.iters if it.kind == "spatial"])
        whole = math.prod([as_int(f.extent) or 1 for f in state.loops_around(sch.program, block)
                           if not f.kind.startswith("blockIdx")]) if points else 0
        if not state.is_parameter(sch.program, buffer) and min(points, whole) * buffer.dtype.nbytes <= target.shared_memory:
            sch.set_scope(ref, k, "shared")


def _to_threads(sch: Schedule, loops: list[Var], form: Form) -> None:
    if loops:
        fused = sch.fuse(*loops) if len(loops) > 1 else loops[0]
        n = as_int(sch.loop(fused).extent) or form.lanes
        lane = fused
        if n > form.lanes:
            step, lane = sch.split(fused, [None, form.lanes])
            sch.reorder(lane, step)
        sch.bind(lane, form.along)
