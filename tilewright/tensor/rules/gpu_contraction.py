"""Schedule rule for devices: products and convolutions, tiles of both operands in shared memory, of the result in registers.

In: a Schedule and its contraction block. Out: one kernel. A block of threads computes a tile of results; it walks over the
reduction in steps, in each of which all threads together load the operands' tiles; a thread computes a few results whose
sums stay in its registers, and stores them through what follows the product.

    blocks | k outer | load A, load B | threads y (M), z (N outer), x (N) | k inner | results of a thread

Along x the results of a thread lie as far apart as there are threads, so that a warp reads and writes neighbours.
"""
from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tilewright.core.node import walk
from tilewright.loop.ir import Block, Expr, FloorDiv, Load, Store, Var, as_int
from tilewright.target.target import Target
from tilewright.tensor.classify import BlockInfo, classify, vars_of
from tilewright.tensor.regions import consumers, outputs, producers
from tilewright.tensor.rules.epilogue import is_view, merge_chain, writes_border
from tilewright.tensor.rules.gpu_results import schedule_results
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef, ScheduleError

THREADS = (32, 64, 128, 256)
"""Threads of a block: whole warps, and few enough for any device."""
RESULTS = 64
"""Most results of a thread: their sums, and the operands of a step, are in registers."""
SIDES = (1, 2, 4, 8)
"""Results of a thread along an axis."""
STEPS = (16, 4, 1)
"""Elements of the reduction per step: the first for which the tiles fit into shared memory."""
READS = 4
"""What reading a number from shared memory costs, in multiply-adds: a core reads one per lane of a warp while it computes
four (CUDA programming guide, "Arithmetic Instructions" and "Shared Memory", of every generation so far)."""
COPIES = 8
"""What bringing a number from global into shared memory costs, in multiply-adds."""
LAUNCH = 400_000
"""What another kernel costs: two or three microseconds of a core that does a hundred multiply-adds at once."""
PARTS, LEAST = (1, 2, 4, 8, 16, 32), 64
"""Into how many parts a reduction may be cut, and the fewest elements of one."""
WIDE = 4
"""Elements of f32 that one instruction moves: 16 bytes."""
UNROLLED = 16
"""Loads of a thread that are written out."""
BUSY = 256
"""Threads with work that hide each other's latencies on a core."""
ALONG = 16
"""Threads along the contiguous axis, if it is long enough: 64 bytes of f32 are read or written at once."""


@dataclass(frozen=True)
class Axis:
    """An axis of the tile: its thread axis, how many threads, how many results of each, and whether those lie apart."""
    var: Var
    thread: str
    threads: int
    results: int
    strided: bool


@dataclass(frozen=True)
class Plan:
    """The axes of a tile, and into how many parts the loop over `cut` is split, each summed up by blocks of its own."""
    axes: list[Axis]
    parts: int
    cut: Var | None


def schedule_tiles(sch: Schedule, ref: BlockRef, target: Target, step: int, most: int = RESULTS) -> set[str]:
    """Schedule a contraction, `step` elements of the reduction at a time, `most` results of a thread at most, and the
    elementwise blocks behind it; the names of those that have their schedule now. Raises ScheduleError, also where the tiles
    are too large for shared memory."""
    if group_size(state.find_block(sch.program, ref)) is not None:
        separate_groups(sch, ref)
    info = classify(state.find_block(sch.program, ref))
    plan = choose_plan(info, target, most)
    if plan.parts == 1:
        return schedule_tile(sch, ref, plan.axes, target, step)
    assert plan.cut is not None
    loops = dict(zip([it.var for it in info.block.iters], sch.loops(ref), strict=True))
    part, rest = sch.split(loops[plan.cut], [plan.parts, None])
    spatial = [loops[it.var] for it in info.block.iters if it.kind == "spatial"]
    sch.reorder(part, *spatial, *[rest if it.var is plan.cut else loops[it.var] for it in info.k])
    partial = sch.rfactor(ref, part)
    kept = [it.var for it in state.find_block(sch.program, partial).iters if it.kind == "spatial"]
    moved = dict(zip([it.var for it in info.block.iters if it.kind == "spatial"], kept, strict=False))
    axes = [replace(a, var=moved[a.var]) for a in plan.axes]
    return schedule_tile(sch, partial, axes, target, step) | schedule_results(sch, ref, target, merge=True)


def schedule_tile(sch: Schedule, ref: BlockRef, axes: list[Axis], target: Target, step: int,
                  staged: Sequence[str] = ()) -> set[str]:
    """One kernel for a reduction with these axes of its tile. `staged`: the operands that go through shared memory; both of
    a product, if none are named. The names of the blocks that have their schedule now."""
    done = {ref.name}
    epilogue, fills = merge_chain(sch, ref)
    if fills:
        raise ScheduleError("merge", "borders are filled behind the product", sch.program, ref)
    if epilogue is None:
        epilogue = sch.cache_write(ref, 0, "local")
    else:
        sch.set_scope(ref, 0, "local")
    done.add(epilogue.name)
    if not staged:
        _lay_out_weights(sch, ref, axes)
    block = state.find_block(sch.program, ref)
    loops = loops_of(block, sch.loops(ref))
    tiled = {a.var for a in axes}
    blocks = [loops[it.var] for it in block.iters if it.kind == "spatial" and it.var not in tiled]
    threads, inner = [], []
    for a in axes:
        if a.strided:
            o, r, t = sch.split(loops[a.var], [None, a.results, a.threads])
        else:
            o, t, r = sch.split(loops[a.var], [None, a.threads, a.results])
        blocks.append(o)
        threads.append(t)
        inner.append(r)
    blocks.sort(key=lambda v: as_int(sch.loop(v).extent) == 1)  # the grid's loops outermost
    outer_k, inner_k = _split_reduction(sch, block, loops, step)
    sch.reorder(*blocks, *outer_k, *threads, *inner_k, *inner)
    sch.reverse_compute_at(epilogue, blocks[-1])
    init = sch.decompose_reduction(ref, (outer_k or threads)[0])
    home = outer_k[-1] if outer_k else blocks[-1]
    info = classify(state.find_block(sch.program, ref))
    names = dict.fromkeys(staged or [x.buffer.name for x in (info.a, info.b) if x is not None])
    copies = [operand_tile(sch, ref, name, home) for name in names]
    wanted = sum(_tile_bytes(sch, c, home) for c in copies)
    if wanted > target.shared_memory:
        raise ScheduleError("cache_read", f"the tiles take {wanted} bytes of shared memory", sch.program, ref)
    bind_blocks(sch, blocks)  # before the copies are taken apart: that they fill their tiles is plain to see
    for copy in copies:
        wide = wide_lanes(sch, copy, home)
        align_rows(sch, ref, copy, [a.var for a in axes], wide)
        load_together(sch, copy, home, axes, wide)
    done |= {c.name for c in copies}
    own = sch.loops(init)  # without those of a single turn
    own = own[own.index(blocks[-1]) + 1:]
    for (a, t), first in zip([(a, t) for a, t in zip(axes, threads, strict=True) if a.threads > 1], own, strict=False):
        sch.bind(t, a.thread)
        sch.bind(first, a.thread)
    for v in [*inner, *[v for v in own if sch.loop(v).kind == "serial"]]:  # so that sums are in registers
        sch.unroll(v)
    _store(sch, ref, epilogue, blocks[-1], axes)
    return done


def choose_plan(info: BlockInfo, target: Target, most: int = RESULTS) -> Plan:
    """The axes of the tile: the largest of M along y, the last of N along x and, for windows, another of N along z. Threads
    and results along each, and parts of the reduction, are those of least cost."""
    extents = {v: n or 1 for v, n in info.extents.items()}
    m = max(info.m, key=lambda it: extents[it.var]).var
    assert info.out is not None
    order = [v for dim in info.out.vars for v in dim]
    ns = sorted([it.var for it in info.n if extents[it.var] > 1] or [info.n[-1].var], key=order.index)
    n = ns[-1]
    rest = max((v for v in ns[:-1]), key=lambda v: extents[v], default=None)
    tile = [m, n] if rest is None else [m, rest, n]
    sizes = [extents[v] for v in tile]
    others = math.prod([extents[it.var] for it in (*info.batch, *info.m, *info.n) if it.var not in tile])
    summed = math.prod([extents[it.var] for it in info.k])
    windows = {w.reduce for w in info.windows}
    cut = max([it.var for it in info.k if it.var not in windows], key=lambda v: extents[v], default=None)
    pieces = [p for p in PARTS if p == 1 or cut is not None and extents[cut] % p == 0 and summed // p >= LEAST]
    found, parts = min(((t, p) for t in _tiles(sizes, target, most) for p in pieces),
                       key=lambda c: _cost(c[0], sizes, others, summed, c[1], target))
    names = ["threadIdx.y", "threadIdx.x"] if rest is None else ["threadIdx.y", "threadIdx.z", "threadIdx.x"]
    return Plan([Axis(v, name, threads, results, v is n)
                 for v, name, (threads, results) in zip(tile, names, found, strict=True)], parts, cut)


Sides = tuple[tuple[int, int], ...]
"""Threads and results of each along M, N across (if there is such an axis) and N."""


def _tiles(extents: list[int], target: Target, most: int) -> list[Sides]:
    """Tiles of whole warps, up to `most` results of a thread; no axis has twice the threads or results that it needs."""
    *_, n = extents
    along = _power_of_two(n, ALONG)
    out = []
    for threads in THREADS:
        if threads > target.max_threads:
            continue
        for x in (along, 2 * along):
            for z in (1, 2, 4, 8, 16) if len(extents) == 3 else (1,):
                y, left = divmod(threads, x * z)
                shape = (y, z, x) if len(extents) == 3 else (y, x)
                if left or not y or any(t > 1 and t >= 2 * e for t, e in zip(shape, extents, strict=True)):
                    continue
                sides = [[r for r in SIDES if r == 1 or (r - 1) * t < e] for t, e in zip(shape, extents, strict=True)]
                out += [tuple(zip(shape, results, strict=True)) for results in itertools.product(*sides)
                        if math.prod(results) <= most]
    return out or [tuple([(1, 1)] * len(extents))]


def _cost(tile: Sides, extents: list[int], others: int, summed: int, parts: int, target: Target) -> tuple[float, int]:
    """Time of a product whose reduction is cut into parts, in multiply-adds of a core's lane; of equals the larger block."""
    blocks = parts * others * math.prod([-(-e // (t * r)) for (t, r), e in zip(tile, extents, strict=True)])
    threads, results = (math.prod([side[k] for side in tile]) for k in (0, 1))
    (ym, rm), *columns = tile
    rn = math.prod([r for _, r in columns])
    work = max(results, READS * (rm + rn)) * threads + COPIES * (ym * rm + rn * math.prod([t for t, _ in columns]))
    turns = -(-blocks // target.cores)
    again = 0.0 if parts == 1 else LAUNCH + COPIES * (parts + 1) * others * math.prod(extents) / target.cores
    return turns * work * (summed / parts) / min(1.0, turns * threads / BUSY) + again, -threads


def _power_of_two(n: int, limit: int) -> int:
    """The least power of two that is n or more, up to a limit."""
    p = 1
    while p < n and p * 2 <= limit:
        p *= 2
    return p


def _split_reduction(sch: Schedule, block: Block, loops: dict[Var, Var], step: int) -> tuple[list[Var], list[Var]]:
    """The reduction's loops outside and inside a step: as many elements as a step has room for, and windows that overlap."""
    info = classify(block)
    windows = {w.reduce for w in info.windows if w.stride < w.dilation * (info.extents[w.reduce] or 1)}
    room = step
    outer: list[Var] = []
    inner: list[Var] = []
    for it in reversed([it for it in block.iters if it.kind == "reduce"]):
        loop = loops[it.var]
        n = info.extents[it.var] or 1
        if n <= max(room, 1) or it.var in windows and n <= STEPS[0]:
            inner.insert(0, loop)
        elif room > 1:
            whole = [d for d in range(-(-room // 2), room + 1) if n % d == 0]  # steps that need no condition in them
            o, i = sch.split(loop, [None, max(whole, default=room)])
            outer.insert(0, o)
            inner.insert(0, i)
        else:
            outer.insert(0, loop)
        room //= n
    return outer, inner


def group_size(block: Block) -> int | None:
    """How many results of a grouped product share their part of an operand: its index is a result's index divided by that.
    None if there are no groups."""
    info = classify(block)
    if info.out is None or info.kind != "contraction":
        return None
    plain = {i for i in info.out.indices if isinstance(i, Var)}
    found = {as_int(n.b) for x in info.reads for i in x.indices for n in walk(i) if isinstance(n, FloorDiv) and n.a in plain}
    size = found.pop() if len(found) == 1 else None
    return size if size is not None and size > 1 else None


def separate_groups(sch: Schedule, ref: BlockRef) -> None:
    """Make the group an axis of its own: a batch of products. What follows the product is merged, and has the axis too."""
    block = state.find_block(sch.program, ref)
    size, out = group_size(block), outputs(block)[0]
    assert size is not None
    divided = next(n.a for n in walk(block.body) if isinstance(n, FloorDiv) and as_int(n.b) == size)
    dim = next(d for d, i in enumerate(classify(block).out.indices) if i is divided)  # type: ignore[union-attr]
    epilogue, fills = merge_chain(sch, ref)
    if fills:
        raise ScheduleError("merge", "borders are filled behind the product", sch.program, ref)
    if epilogue is None:
        epilogue, out = sch.cache_write(ref, 0, "local"), outputs(state.find_block(sch.program, ref))[0]
    out = outputs(state.find_block(sch.program, ref))[0]
    for at in (ref, epilogue):
        b = state.find_block(sch.program, at)
        index = next(n.indices[dim] for n in walk(b.body) if isinstance(n, Load | Store) and n.buffer is out)
        axis = next((k for k, it in enumerate(b.iters) if it.var is index), None)
        if axis is None:
            raise ScheduleError("split_axis", "what follows the product does not read the groups along an axis", sch.program,
                                at)
        loop = dict(zip([it.var for it in b.iters], sch.loops(at), strict=True))[b.iters[axis].var]
        sch.split(loop, [None, size])
        sch.split_axis(at, axis, size)
    sch.transform_layout(ref, out.name, functools.partial(_divided, dim, size))


def _divided(dim: int, size: int, *indices: Expr) -> tuple[Expr, ...]:
    return (*indices[:dim], indices[dim] // size, indices[dim] % size, *indices[dim + 1:])


def _lay_out_weights(sch: Schedule, ref: BlockRef, axes: list[Axis]) -> None:
    """The axis of a weight that is tiled becomes its last one: a tile is read, and lies in shared memory, along it."""
    info = classify(state.find_block(sch.program, ref))
    for x in (info.a, info.b):
        assert x is not None
        at = [d for d, i in enumerate(x.indices) if any(i is a.var for a in axes)]
        if x.buffer.name in sch.program.attr("weights", ()) and len(at) == 1 and at[0] != x.buffer.rank - 1:
            sch.transform_layout(ref, x.buffer.name, functools.partial(to_the_end, at[0]))


def to_the_end(at: int, *indices: Expr) -> tuple[Expr, ...]:
    return (*indices[:at], *indices[at + 1:], indices[at])


def operand_tile(sch: Schedule, ref: BlockRef, name: str, home: Var) -> BlockRef:
    """The block that brings an operand's tile into shared memory: a copy, or, where the operand is a view or has borders for
    this product alone, the block that makes it."""
    product = state.find_block(sch.program, ref)
    made = next((p for p in producers(sch.program, product) if name in [b.name for b in outputs(p)]), None)
    whole = made is not None and (writes_border(made) or is_view(classify(made)))
    if made is not None and whole and [c.name for c in consumers(sch.program, made)] == [ref.name]:
        copy = sch.block(made.name)
        sch.compute_at(copy, home)
        sch.set_scope(copy, 0, "shared")
        return copy
    copy = sch.cache_read(ref, name, "shared")
    sch.compute_at(copy, home)
    return copy


def _tile_bytes(sch: Schedule, copy: BlockRef, home: Var) -> int:
    """Bytes that a copy's tile takes, those between the elements included."""
    loops = sch.loops(copy)
    tile = math.prod([as_int(sch.loop(v).extent) or 1 for v in loops[loops.index(home) + 1:]])
    return tile * outputs(state.find_block(sch.program, copy))[0].dtype.nbytes


def wide_lanes(sch: Schedule, copy: BlockRef, home: Var) -> int:
    """How many neighbouring elements a thread can load at once: they lie side by side, the first at a multiple of that."""
    block = state.find_block(sch.program, copy)
    if not isinstance(block.body, Store) or not isinstance(block.body.value, Load):
        return 1
    read, made = block.body.value, block.body
    loops = sch.loops(copy)
    tile = [as_int(sch.loop(v).extent) or 1 for v in loops[loops.index(home) + 1:]]
    whole = as_int(read.buffer.shape[-1]) if read.buffer.rank else None
    if not tile or whole is None or read.indices[-1] != made.indices[-1] or not isinstance(read.indices[-1], Var):
        return 1
    return WIDE if tile[-1] % WIDE == 0 and whole % tile[-1] == 0 and read.buffer.dtype.bits == 32 else 1


def align_rows(sch: Schedule, ref: BlockRef, copy: BlockRef, along: Sequence[Var], wide: int) -> None:
    """Space between the rows of a tile if threads next to each other, which differ in the variables `along`, read different
    rows: they are in other banks then."""
    made = outputs(state.find_block(sch.program, copy))[0]
    info = classify(state.find_block(sch.program, ref))
    x = next(x for x in info.reads if x.buffer is made)
    at = [d for d, used in enumerate(x.vars) if any(v in used for v in along)]
    if at and at[-1] != made.rank - 1:
        sch.storage_align(copy, 0, at[-1], *((2 * wide, wide) if wide > 1 else (2, 1)))


def load_together(sch: Schedule, copy: BlockRef, home: Var, axes: list[Axis], lanes: int) -> None:
    """All threads load a tile, neighbours neighbouring elements (or groups of `lanes` elements)."""
    loops = sch.loops(copy)
    loops = loops[loops.index(home) + 1:]
    fused = sch.fuse(*loops) if len(loops) > 1 else loops[0]
    wide = [a for a in axes if a.threads > 1]
    vector = None
    if lanes > 1:
        fused, vector = sch.split(fused, [None, lanes])
    if wide:
        step, *places = sch.split(fused, [None, *[a.threads for a in wide]])
        sch.reorder(*places, step)
        for a, place in zip(wide, places, strict=True):
            sch.bind(place, a.thread)
        if (as_int(sch.loop(step).extent) or 0) <= UNROLLED:
            sch.unroll(step)
    if vector is not None:
        sch.vectorize(vector)


def _store(sch: Schedule, ref: BlockRef, epilogue: BlockRef, home: Var, axes: list[Axis]) -> None:
    """Each thread stores the results that it computed: the epilogue's loops are shared out as the product's were."""
    block, product = state.find_block(sch.program, epilogue), state.find_block(sch.program, ref)
    info = classify(product)
    assert info.out is not None
    read = next(n for n in walk(block.body) if isinstance(n, Load) and n.buffer is info.out.buffer)
    around = sch.loops(epilogue)
    loops = loops_of(block, around[around.index(home) + 1:])
    threads, rest = [], list(loops.values())
    places = {next(iter(used)): d for d, used in enumerate(info.out.vars) if len(used) == 1}
    made = []
    for a in axes:
        own = read.indices[places[a.var]] if a.var in places else None
        if not isinstance(own, Var) or own not in loops:
            raise ScheduleError("bind", "what follows the product does not read the tile along its axes", sch.program,
                                epilogue)
        loop = loops[own]
        rest.remove(loop)
        if a.strided:
            r, t = sch.split(loop, [None, a.threads])
        else:
            t, r = sch.split(loop, [None, a.results])
        threads.append(t)
        made.append(r)
    sch.reorder(*threads, *rest, *made)
    for v in made:
        sch.unroll(v)
    for a, t in zip(axes, threads, strict=True):
        if a.threads > 1:
            sch.bind(t, a.thread)


def loops_of(block: Block, inner: list[Var]) -> dict[Var, Var]:
    """The loop among `inner` of each iteration variable that has one; those of a single turn are in no binding, but in order
    of the others."""
    found = {it.var: v for it, b in zip(block.iters, block.bindings, strict=True) for v in inner if v in vars_of(b)}
    left = [v for v in inner if v not in found.values()]
    idle = [(it.var, b) for it, b in zip(block.iters, block.bindings, strict=True) if it.var not in found]
    if len(left) != len(idle):
        idle = [(v, b) for v, b in idle if as_int(b) is not None]
    return {**found, **dict(zip([v for v, _ in idle], left, strict=False))}


def bind_blocks(sch: Schedule, blocks: list[Var]) -> None:
    """The loops over tiles are the grid: the last two along x and y, those before them along z."""
    many = [v for v in blocks if as_int(sch.loop(v).extent) != 1] or blocks[:1]
    head = many[:-2]
    if head:
        sch.bind(sch.fuse(*head) if len(head) > 1 else head[0], "blockIdx.z")
    for v, axis in zip(many[-2:], ("blockIdx.y", "blockIdx.x")[-len(many[-2:]):], strict=True):  # from the outermost
        sch.bind(v, axis)
