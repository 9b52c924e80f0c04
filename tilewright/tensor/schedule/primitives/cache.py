"""cache_read, cache_write, set_scope: copies of a buffer in another memory, made and read back by blocks of their own.

cache_read(C, "A", "local"):                        cache_write(C, 0, "local"):
    block A_local: A_local[v] = A[v]                    block C: C_local[v] = A[v] * 2
    block C: C[v] = A_local[v] * 2                      block C_store: C[v] = C_local[v]

The copies run over everything at first; compute_at and reverse_compute_at then narrow them to a tile.
"""
from __future__ import annotations

from collections.abc import Sequence

from tilewright.loop.ir import TRUE, Block, Buffer, For, IterVar, Load, Program, Stmt, Store, Var
from tilewright.loop.substitute import substitute
from tilewright.tensor.regions import (
    accesses,
    block_boxes,
    conjunction,
    inputs,
    loops_between,
    outputs,
    own_conditions,
    readers,
    writers,
)
from tilewright.tensor.schedule.nest import Part, build_nest, fitted, insert, part_below, whole
from tilewright.tensor.schedule.proofs import missing_input, not_repeatable, reduces_over, shared_loops, shared_writer
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import (
    BlockRef,
    ScheduleError,
    allocate,
    blocks_under,
    deallocate,
    edit,
    find_block,
    find_loop,
    fresh_buffer_name,
    fresh_name,
    is_parameter,
    loops_around,
    refuse,
)
from tilewright.tensor.schedule.trace import primitive
from tilewright.tensor.span import Algebra, vars_of

SCOPES = ("global", "local", "shared", "warp")


@primitive
def cache_read(sch: Schedule, block: BlockRef, buffer: int | str, scope: str = "local",
               others: Sequence[BlockRef] = ()) -> BlockRef:
    """Let `block` (and `others`) read a copy of one of its inputs (by name, or by position among them) in memory `scope`.

    The copy is made by a new block, which is returned: of the whole buffer, at the outermost place; or, where producer and
    consumer of the buffer share loops, inside those, of what `block` reads there. Other readers keep the original.
    Raises ScheduleError if a block does not read the buffer, or writes it, and for `others` in loops that the producer
    shares.
    """
    program = sch.program
    b = find_block(program, block)
    readers = [b, *[find_block(program, other) for other in others]]
    _check_scope("cache_read", program, block, scope)
    source = _pick("cache_read", program, block, inputs(b), buffer, "reads")
    for other in others:
        _pick("cache_read", program, other, inputs(find_block(program, other)), source.name, "reads")
    cache = source.replace(name=fresh_buffer_name(program, f"{source.name}_{scope}"), scope=scope, strides=None, data=None)
    v = tuple([Var(f"v{k}") for k in range(source.rank)])
    name = fresh_name(program, f"{source.name}_{scope}")
    copy = Block(name, tuple([IterVar(x, n) for x, n in zip(v, source.shape, strict=True)]), v, TRUE,
                 Store(cache, v, Load(source, v)))
    home = _deepest([shared_loops(program, q, r) for q in writers(program, source) for r in readers])
    if home is not None and others:
        raise ScheduleError("cache_read", f"a reader shares loop {home.var.name} with a block that makes {source.name}: one "
                            "reader at a time", program, block)
    part = whole(copy) if home is None else _part_read(program, b, source, copy, home)
    nest, _ = build_nest(copy, part, [] if home is None else [*loops_around(program, home), home])
    new = program
    for r in readers:
        new = edit(new, r, r.replace(body=substitute(r.body, {source: cache}),
                                     init=None if r.init is None else substitute(r.init, {source: cache})))
    new = insert(new, _same_loop(new, home), lambda stmts: min(_position(stmts, r.name) for r in readers), nest)
    new = allocate(new, cache)
    why = missing_input(new, find_block(new, BlockRef(name)))
    if why is not None:
        refuse("cache_read", why, program, block)
    sch.program = new
    return BlockRef(name)


def _part_read(program: Program, b: Block, source: Buffer, copy: Block, home: For) -> Part:
    inner = loops_between(home.body, b)
    outer = [*loops_around(program, home), home]
    found = [a for a in accesses(b)[0] if a.buffer is source]
    box = block_boxes(found, b, inner, Algebra([*outer, *inner]))[source]
    return [fitted((s, e), i, Algebra(outer)) for s, e, i in zip(box.start, box.extent, copy.iters, strict=True)]


@primitive
def cache_write(sch: Schedule, block: BlockRef, index: int = 0, scope: str = "local") -> BlockRef:
    """Let `block` write its `index`-th output into a new buffer in memory `scope`, and copy it to the original by a new
    block, which is returned.

    The copy runs over the block's spatial variables, with the same index expressions: directly after the outermost loop
    around the block or, where readers share loops with it, inside those.
    Raises ScheduleError if the block stores the buffer in several places, shares it with another writer, or reduces over a
    loop that a reader shares.
    """
    program = sch.program
    b = find_block(program, block)
    _check_scope("cache_write", program, block, scope)
    target = _pick("cache_write", program, block, outputs(b), index, "writes")
    stores = [a for a in accesses(b)[1] if a.buffer is target]
    if len(stores) != 1 or stores[0].indices is None or stores[0].loops:
        raise ScheduleError("cache_write", f"it stores {target.name} in several places", program, block)
    why = not_repeatable(b) or _interleaved(program, b)
    if why is not None:
        refuse("cache_write", why, program, block)
    cache = target.replace(name=fresh_buffer_name(program, f"{target.name}_{scope}"), scope=scope, strides=None, data=None)
    name = fresh_name(program, f"{b.name}_store")
    spatial = [i for i in b.iters if i.kind == "spatial"]
    fresh = {i.var: Var(i.var.name) for i in spatial}
    at = tuple([substitute(e, fresh) for e in stores[0].indices])
    iters = tuple([IterVar(fresh[i.var], i.extent) for i in spatial])
    reduced = {i.var for i in b.iters if i.kind != "spatial"}
    kept = [substitute(c, fresh) for c in own_conditions(b) if not vars_of(c) & reduced]
    copy = Block(name, iters, tuple([i.var for i in iters]), conjunction(kept), Store(target, at, Load(cache, at)))
    home = _deepest([shared_loops(program, b, q) for q in readers(program, target)])
    outer = [] if home is None else [*loops_around(program, home), home]
    part = whole(copy)
    if home is not None:
        carried = reduces_over(b, outer)
        if carried is not None:
            refuse("cache_write", f"it reduces over loop {carried.var.name}, which a reader shares", program, carried.var)
        inner = loops_between(home.body, b)
        below = part_below(b, inner, Algebra([*outer, *inner]))
        part = [p for p, i in zip(below, b.iters, strict=True) if i.kind == "spatial"]
    nest, _ = build_nest(copy, part, outer)
    new = edit(program, b, b.replace(body=substitute(b.body, {target: cache}),
                                     init=None if b.init is None else substitute(b.init, {target: cache})))
    new = insert(new, _same_loop(new, home), lambda stmts: 1 + _position(stmts, b.name), nest)
    new = allocate(new, cache)
    why = missing_input(new, find_block(new, BlockRef(name)))
    if why is not None:
        refuse("cache_write", why, program, block)
    sch.program = new
    return BlockRef(name)


def _interleaved(program: Program, b: Block) -> str | None:
    """Why the copy might come in between the writes of another block, or None."""
    clash = shared_writer(program, b)
    if clash is not None:
        for buffer in outputs(b):
            for q in writers(program, buffer):
                if q is not b and shared_loops(program, q, b):
                    return clash
    return None


@primitive
def set_scope(sch: Schedule, block: BlockRef, index: int, scope: str) -> None:
    """Put the `index`-th output of `block`, a buffer that the program allocates, into memory `scope`."""
    program = sch.program
    b = find_block(program, block)
    _check_scope("set_scope", program, block, scope)
    buffer = _pick("set_scope", program, block, outputs(b), index, "writes")
    if is_parameter(program, buffer):
        raise ScheduleError("set_scope", f"{buffer.name} is a parameter of the program: the caller decides where it lies",
                            program, block)
    new = buffer.replace(scope=scope)
    moved = deallocate(program, buffer)
    sch.program = allocate(moved.replace(body=substitute(moved.body, {buffer: new})), new)


def _check_scope(name: str, program: Program, block: BlockRef, scope: str) -> None:
    if scope not in SCOPES:
        raise ScheduleError(name, f"there is no memory {scope!r} (only {', '.join(SCOPES)})", program, block)


def _pick(name: str, program: Program, block: BlockRef, choices: list[Buffer], wish: int | str, verb: str) -> Buffer:
    if isinstance(wish, int) and not isinstance(wish, bool) and 0 <= wish < len(choices):
        return choices[wish]
    found = [b for b in choices if b.name == wish]
    if len(found) != 1:
        have = ", ".join(b.name for b in choices) or "nothing"
        raise ScheduleError(name, f"there is no single buffer {wish!r} among those that it {verb} ({have})", program, block)
    return found[0]


def _deepest(chains: list[list[For]]) -> For | None:
    """The innermost of several chains of loops around one statement."""
    longest = max(chains, key=len, default=[])
    return longest[-1] if longest else None


def _same_loop(program: Program, loop: For | None) -> For | None:
    return None if loop is None else find_loop(program, loop.var)


def _position(stmts: tuple[Stmt, ...], name: str) -> int:
    return next(k for k, s in enumerate(stmts) if any(x.name == name for x in blocks_under(s)))

