"""Schedule rule for devices: products and convolutions, tiles of both operands in shared memory, of the result in registers.

In: a Schedule and its contraction block. Out: one kernel. A block of threads computes a tile of results; it walks over the
reduction in steps, in each of which all threads together load the operands' tiles; a thread computes a few results whose
sums stay in its registers, and stores them through what follows the product.

    blocks | k outer | load A, load B | threads y (M), z (N outer), x (N) | k inner | results of a thread

Along x the results of a thread lie as far apart as there are threads, so that a warp reads and writes neighbours.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

from tilewright.core.node import walk
from tilewright.loop.ir import Load, Var, as_int
from tilewright.target.target import Target
from tilewright.tensor.classify import BlockInfo, classify
from tilewright.tensor.regions import consumers, outputs, producers
from tilewright.tensor.rules.epilogue import merge_chain, writes_border
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef, ScheduleError

SIDE = 16
"""Threads along each axis of a tile of a plain product."""
RESULTS = 4
"""Results of a thread along each axis: a tile of 64 by 64."""
STEPS = (16, 4, 1)
"""Elements of the reduction per step: the first for which the tiles fit into shared memory."""


@dataclass
class Axis:
    """An axis of the tile: its thread axis, how many threads, how many results of each, and whether those lie apart."""
    var: Var
    thread: str
    threads: int
    results: int
    strided: bool


def schedule_tiles(sch: Schedule, ref: BlockRef, target: Target, step: int) -> set[str]:
    """Schedule a contraction, `step` elements of the reduction at a time, and the elementwise blocks behind it; the names of
    those that have their schedule now. Raises ScheduleError, also where the tiles are too large for shared memory."""
    info = classify(state.find_block(sch.program, ref))
    axes = choose_axes(info, target)
    done = {ref.name}
    epilogue, fills = merge_chain(sch, ref)
    if fills:
        raise ScheduleError("merge", "borders are filled behind the product", sch.program, ref)
    if epilogue is None:
        epilogue = sch.cache_write(ref, 0, "local")
    else:
        sch.set_scope(ref, 0, "local")
    done.add(epilogue.name)
    block = state.find_block(sch.program, ref)
    loops = dict(zip([it.var for it in block.iters], sch.loops(ref), strict=True))
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
    outer_k, inner_k = _split_reduction(sch, info, loops, step)
    sch.reorder(*blocks, *outer_k, *threads, *inner_k, *inner)
    sch.reverse_compute_at(epilogue, blocks[-1])
    init = sch.decompose_reduction(ref, (outer_k or threads)[0])
    home = outer_k[-1] if outer_k else blocks[-1]
    assert info.a is not None and info.b is not None
    copies = [_operand(sch, ref, name, home) for name in dict.fromkeys(x.buffer.name for x in (info.a, info.b))]
    wanted = sum(_tile_bytes(sch, c, home) for c in copies)
    if wanted > target.shared_memory:
        raise ScheduleError("cache_read", f"the tiles take {wanted} bytes of shared memory", sch.program, ref)
    _bind_blocks(sch, blocks)  # before the copies are taken apart: that they fill their tiles is plain to see
    for copy in copies:
        _load_together(sch, copy, home, axes)
    done |= {c.name for c in copies}
    wide = [(a, t) for a, t in zip(axes, threads, strict=True) if a.threads > 1]
    own = sch.loops(init)  # without those of a single turn
    own = own[own.index(blocks[-1]) + 1:]
    for (a, t), first in zip(wide, own, strict=False):
        sch.bind(t, a.thread)
        sch.bind(first, a.thread)
    _store(sch, ref, epilogue, blocks[-1], axes)
    return done


def choose_axes(info: BlockInfo, target: Target) -> list[Axis]:
    """The axes of the tile: the largest of M along y, the last of N along x and, for windows, another of N along z."""
    extents = {v: n or 1 for v, n in info.extents.items()}
    m = max(info.m, key=lambda it: extents[it.var]).var
    assert info.out is not None
    order = [v for dim in info.out.vars for v in dim]
    ns = sorted([it.var for it in info.n if extents[it.var] > 1] or [info.n[-1].var], key=order.index)
    n = ns[-1]
    side = SIDE
    while side * side > target.max_threads:
        side //= 2
    across = _power_of_two(extents[n], side)
    deep = 1
    rest = max((v for v in ns[:-1]), key=lambda v: extents[v], default=None)
    if rest is not None and across < side:
        deep = _power_of_two(extents[rest], side // across)
    down = _power_of_two(extents[m], side * side // (across * deep))
    results_n = min(RESULTS, -(-extents[n] // across))
    results_m = min(RESULTS, -(-extents[m] // down))
    axes = [Axis(m, "threadIdx.y", down, results_m, False)]
    if rest is not None:
        results = min(max(1, RESULTS // results_n), -(-extents[rest] // deep))
        axes.append(Axis(rest, "threadIdx.z", deep, results, False))
    axes.append(Axis(n, "threadIdx.x", across, results_n, True))
    return axes


def _power_of_two(n: int, limit: int) -> int:
    """The least power of two that is n or more, up to a limit."""
    p = 1
    while p < n and p * 2 <= limit:
        p *= 2
    return p


def _split_reduction(sch: Schedule, info: BlockInfo, loops: dict[Var, Var], step: int) -> tuple[list[Var], list[Var]]:
    """The reduction's loops outside and inside a step: windows are inside, as far as a step has room."""
    windows = {w.reduce for w in info.windows}
    room = step
    outer: list[Var] = []
    inner: list[Var] = []
    for it in reversed(info.k):
        loop = loops[it.var]
        n = info.extents[it.var] or 1
        if n <= max(room, 1) or it.var in windows and n <= STEPS[0]:
            inner.insert(0, loop)
        elif room > 1:
            o, i = sch.split(loop, [None, room])
            outer.insert(0, o)
            inner.insert(0, i)
        else:
            outer.insert(0, loop)
        room //= n
    return outer, inner


def _operand(sch: Schedule, ref: BlockRef, name: str, home: Var) -> BlockRef:
    """The block that brings an operand's tile into shared memory: a copy, or, where borders are added to the operand for
    this product alone, the block that adds them."""
    product = state.find_block(sch.program, ref)
    made = next((p for p in producers(sch.program, product) if name in [b.name for b in outputs(p)]), None)
    if made is not None and writes_border(made) and [c.name for c in consumers(sch.program, made)] == [ref.name]:
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


def _load_together(sch: Schedule, copy: BlockRef, home: Var, axes: list[Axis]) -> None:
    """All threads load a tile, neighbours neighbouring elements."""
    loops = sch.loops(copy)
    loops = loops[loops.index(home) + 1:]
    fused = sch.fuse(*loops) if len(loops) > 1 else loops[0]
    wide = [a for a in axes if a.threads > 1]
    if not wide:
        return
    step, *lanes = sch.split(fused, [None, *[a.threads for a in wide]])
    sch.reorder(*lanes, step)
    for a, lane in zip(wide, lanes, strict=True):
        sch.bind(lane, a.thread)


def _store(sch: Schedule, ref: BlockRef, epilogue: BlockRef, home: Var, axes: list[Axis]) -> None:
    """Each thread stores the results that it computed: the epilogue's loops are shared out as the product's were."""
    block, product = state.find_block(sch.program, epilogue), state.find_block(sch.program, ref)
    info = classify(product)
    assert info.out is not None
    read = next(n for n in walk(block.body) if isinstance(n, Load) and n.buffer is info.out.buffer)
    around = sch.loops(epilogue)
    loops = dict(zip([it.var for it in block.iters], around[around.index(home) + 1:], strict=True))
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
    for a, t in zip(axes, threads, strict=True):
        if a.threads > 1:
            sch.bind(t, a.thread)


def _bind_blocks(sch: Schedule, blocks: list[Var]) -> None:
    """The loops over tiles are the grid: the last two along x and y, those before them along z."""
    many = [v for v in blocks if as_int(sch.loop(v).extent) != 1] or blocks[:1]
    head = many[:-2]
    if head:
        sch.bind(sch.fuse(*head) if len(head) > 1 else head[0], "blockIdx.z")
    for v, axis in zip(many[-2:], ("blockIdx.y", "blockIdx.x")[-len(many[-2:]):], strict=True):  # from the outermost
        sch.bind(v, axis)
