"""Schedule rule of spatial blocks on a CPU: elementwise chains, copies, borders, transposes, gathers, small transforms.

In: a Schedule and a block without reductions. Out: the innermost axis in vectors, the outer ones in parallel when there is
enough to do for a parallel region to pay; borders written by loops of their own.

A block whose expression differs by the value of an index (a constant matrix times a vector, as in Winograd's transforms)
has that index unrolled, so that each copy keeps its own case only; a block that it reads in several places is computed
next to it, in registers. Where a load runs along another axis than the store, both axes are tiled (transpose.py).
"""
from __future__ import annotations

from collections.abc import Sequence

from tilewright.core.node import walk
from tilewright.loop.ir import Block, Eq, FloorMod, Load, Select, Store, Var, as_int, estimate
from tilewright.target.target import Target
from tilewright.tensor.classify import vars_of
from tilewright.tensor.regions import consumers, producers
from tilewright.tensor.rules.epilogue import is_padding
from tilewright.tensor.rules.threads import parallelize_outer
from tilewright.tensor.rules.transpose import find_crossing, tile_crossing
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef

PARALLEL_ELEMENTS = 16384
"""Elements below which one thread is as fast: about 4 µs of work against 0.2 µs to start a region and cache traffic."""

SMALL_AXIS = 8
"""Largest extent of an axis that is unrolled because its cases differ."""


def schedule_elementwise(sch: Schedule, ref: BlockRef, target: Target, home: Var | None = None) -> None:
    """Schedule one spatial block over the loops that are its alone, and the producers that only it reads. With `home`, a
    loop that others share, it has been placed in that one's body and stays there, on one core."""
    if is_padding(state.find_block(sch.program, ref)):
        ref, *fills = sch.decompose_padding(ref)
        for f in fills:
            schedule_elementwise(sch, f, target)
    block = state.find_block(sch.program, ref)
    around = sch.loops(ref)
    own = around[around.index(home) + 1:] if home is not None else around
    loops = dict(zip([it.var for it in block.iters], own, strict=True))
    if not loops:
        return
    lanes = lanes_of(block, target)
    work = 1 + _gathers(block)
    for v in loops.values():
        work *= estimate(sch.loop(v).extent)
    near = [sch.block(p.name) for p in near_producers(sch, block)]
    inner = _case_loops(sch, block, loops, near)
    *outer, last = [v for v in loops.values() if v not in inner]
    crossing = None if inner or near else find_crossing(block)
    if crossing is not None and home is None and last is loops[crossing.last] and loops[crossing.along] in outer:
        outer = tile_crossing(sch, ref, crossing, [*outer, last], loops[crossing.along], lanes, target)
        _share(sch, outer, work, target)
        return
    vector = _vector_loop(sch, last, lanes, outer)
    if inner:
        sch.reorder(*outer, *inner, *([vector] if vector is not None else []))
    for p in near:
        _compute_near(sch, p, outer[-1] if outer else home, lanes)
    for v in inner:
        sch.unroll(v)
    if vector is not None:
        sch.vectorize(vector)
    if home is None:
        _share(sch, outer, work, target)


def _share(sch: Schedule, outer: list[Var], work: int, target: Target) -> None:
    """Run the outer loops in parallel if that pays for so many elements."""
    if work >= PARALLEL_ELEMENTS and outer and target.cores > 1:
        parallelize_outer(sch, outer, target)


def _gathers(block: Block) -> int:
    """Loads for each element from a place that another load of its own says: each is about the work of an element."""
    last = block.iters[-1].var if block.iters else None
    return len({n for n in walk(block.body) if isinstance(n, Load) and any(
        isinstance(m, Load) and last in vars_of(m) for e in n.indices for m in walk(e))})


def _vector_loop(sch: Schedule, last: Var, lanes: int, outer: list[Var]) -> Var | None:
    """The loop that becomes vectors: the innermost, or its part of `lanes` (the rest joins `outer`)."""
    n = as_int(sch.loop(last).extent)
    if n is None or n > lanes:
        o, i = sch.split(last, [None, lanes])
        outer.append(o)
        return i
    if n > 1:
        return last
    outer.append(last)
    return None


def near_producers(sch: Schedule, block: Block) -> list[BlockRef]:
    """Spatial blocks that only `block` reads, in several places: to be computed beside it, with their own such ones."""
    out: list[BlockRef] = []
    for p in producers(sch.program, block):
        alone = [c.name for c in consumers(sch.program, p)] == [block.name]
        spatial = p.init is None and all(it.kind == "spatial" for it in p.iters) and isinstance(p.body, Store)
        if alone and spatial and not _is_parameter_writer(sch, p):
            out.append(BlockRef(p.name))
    return out


def _is_parameter_writer(sch: Schedule, p: Block) -> bool:
    return isinstance(p.body, Store) and state.is_parameter(sch.program, p.body.buffer)


def _case_loops(sch: Schedule, block: Block, loops: dict[Var, Var], near: Sequence[BlockRef]) -> list[Var]:
    """Loops to unroll: those whose value chooses a case of the expression, here or in a near producer, small ones only;
    an index taken modulo a small number is split by it first, and replaced by its outer part in `loops`."""
    inner: list[Var] = []
    moduli = _moduli(block)
    for v, m in moduli.items():
        if v in loops and (as_int(sch.loop(loops[v]).extent) or 0) > m:
            o, i = sch.split(loops[v], [None, m])
            loops[v] = o
            inner.append(i)
    cases = _case_vars(block)
    if near or cases:
        for v, loop in list(loops.items())[:-1]:
            small = (as_int(sch.loop(loop).extent) or SMALL_AXIS + 1) <= SMALL_AXIS
            wanted = v in cases or (near and _indexes_near(block, near, v, sch))
            if small and v not in moduli and wanted and loop not in inner:
                inner.append(loop)
    return inner


def _indexes_near(block: Block, near: Sequence[BlockRef], v: Var, sch: Schedule) -> bool:
    """Whether `v` chooses a case in a near producer: it is an index of it where that one's cases differ."""
    for ref in near:
        p = state.find_block(sch.program, ref)
        assert isinstance(p.body, Store)
        cases = _case_vars(p)
        dims = [d for d, e in enumerate(p.body.indices) if isinstance(e, Var) and e in cases]
        for n in walk(block.body):
            if isinstance(n, Load) and n.buffer is p.body.buffer and any(v in vars_of(n.indices[d]) for d in dims):
                return True
    return False


def _moduli(block: Block) -> dict[Var, int]:
    """Iteration variables that the body takes modulo a small constant in a case or an index."""
    own = {it.var for it in block.iters}
    out: dict[Var, int] = {}
    if not _case_vars(block):
        return out
    for n in walk(block.body):
        if isinstance(n, FloorMod) and isinstance(n.a, Var) and n.a in own:
            m = as_int(n.b)
            if m is not None and 1 < m <= SMALL_AXIS:
                out[n.a] = m
    return out


def _case_vars(block: Block) -> set[Var]:
    """Variables that Select conditions of the form index == constant test."""
    out: set[Var] = set()
    for n in walk(block.body):
        if isinstance(n, Select) and isinstance(n.cond, Eq) and as_int(n.cond.b) is not None:
            if isinstance(n.cond.a, Var):
                out.add(n.cond.a)
            elif isinstance(n.cond.a, FloorMod) and isinstance(n.cond.a.a, Var):
                out.add(n.cond.a.a)
    return out


def _compute_near(sch: Schedule, ref: BlockRef, home: Var | None, lanes: int) -> None:
    """Compute a producer where its reader's tile is, in registers: all its loops unrolled, the innermost in vectors."""
    if home is None:
        return
    sch.compute_at(ref, home)
    sch.set_scope(ref, 0, "local")
    loops = sch.loops(ref)
    loops = loops[loops.index(home) + 1:]
    for v in loops[:-1]:
        sch.unroll(v)
    if loops:
        n = as_int(sch.loop(loops[-1]).extent) or 0
        if 1 < n <= lanes:
            sch.vectorize(loops[-1])


def lanes_of(block: Block, target: Target) -> int:
    """Vector lanes for the element type that a block stores."""
    body = block.body
    return target.lanes(body.buffer.dtype.bits) if isinstance(body, Store) else 1
