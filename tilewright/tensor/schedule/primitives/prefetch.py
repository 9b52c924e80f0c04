"""prefetch: ask for the memory that a later step of a loop will read, while this one computes.

    for n in 0..8:                                     for n in 0..8:
        for k in 0..64:                                    for k in 0..64:
            block C: … W[n, k, 0..32] …       →                block prefetch_W: prefetch(&W[n + 1, k, 0]), (…, 16])
                                                               block C: … W[n, k, 0..32] …

prefetch_next shares out all that the next step of an outer loop will read over the steps inside the current one:

    for n in 0..8:                                     for n in 0..8:
        for m in 0..4:                                     for m in 0..4:
            for k in 0..64:                                    for k in 0..64:
                block C: … W[n, k, 0..32] …       →                prefetch(&W[n + 1, 0, (m * 64 + k) // 2 * 16])
                                                                   block C: … W[n, k, 0..32] …

A prefetch is a hint: it changes no result, and its address may lie outside of the buffer.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

from tilewright.core.dtype import i32
from tilewright.loop.ir import (
    TRUE,
    ZERO,
    Address,
    Block,
    Buffer,
    Call,
    Evaluate,
    Expr,
    For,
    IterVar,
    Stmt,
    Var,
    as_int,
    const,
)
from tilewright.loop.substitute import substitute
from tilewright.tensor.regions import accesses, block_boxes, inputs, loops_between
from tilewright.tensor.schedule.nest import insert
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import (
    BlockRef,
    ScheduleError,
    find_block,
    find_loop,
    fresh_name,
    loops_around,
    path_to,
)
from tilewright.tensor.schedule.trace import primitive
from tilewright.tensor.span import Algebra

LINE = 64
"""Bytes that one prefetch brings."""

SHIFT_AND_ADD = (1, 3, 5, 9)
"""Odd factors that processors apply to an address in one instruction."""

BEYOND = 1 << 20
"""How far outside of the buffer an address may lie: the domains of the block's variables allow for it."""


@primitive
def prefetch(sch: Schedule, block: BlockRef, buffer: str, loop: Var, along: Var, ahead: int = 1) -> BlockRef:
    """At the start of each step of `loop`, prefetch what `block` would read of `buffer` in it if loop `along` were `ahead`
    steps further. `along` must be `loop` or a loop around it.

    Raises ScheduleError: loops that are not around the block, a buffer that it does not read, a region that is not one
    piece of memory of known size (it would need loops of its own).
    """
    b, home, outer, source = _checked(sch, "prefetch", block, buffer, loop, along)
    inner = loops_between(home.body, b)
    found = [a for a in accesses(b)[0] if a.buffer is source]
    algebra = Algebra([*outer, *inner])
    box = block_boxes(found, b, inner, algebra)[source]
    extents = [as_int(algebra.simplify(e)) for e in box.extent]
    if not extents or not _one_piece(extents, source):
        raise ScheduleError("prefetch", f"what it reads of {buffer} in one step of loop {loop.name} is no single row",
                            sch.program, block)
    lines = -(-math.prod(e or 0 for e in extents) // (LINE // source.dtype.nbytes))
    starts = [algebra.simplify(substitute(s, {along: along + ahead})) for s in box.start]
    return _insert(sch, home, source, starts, lines, algebra)


@primitive
def prefetch_next(sch: Schedule, block: BlockRef, buffer: str, loop: Var, along: Var) -> BlockRef:
    """At the start of each step of `loop`, prefetch a share of what `block` will read of `buffer` in the next step of
    `along`, a loop around it: the steps of the loops between them bring all of it, each about the same number of lines.

    Raises ScheduleError: as `prefetch`; a region that is not one piece of memory; loops of unknown length.
    """
    b, home, outer, source = _checked(sch, "prefetch_next", block, buffer, loop, along)
    steps = outer[[f.var for f in outer].index(along) + 1:]
    inner = [*steps, *loops_between(home.body, b)]
    found = [a for a in accesses(b)[0] if a.buffer is source]
    algebra = Algebra([*outer, *inner])
    box = block_boxes(found, b, inner, algebra)[source]
    extents = [_within(as_int(algebra.simplify(e)), as_int(n)) for e, n in zip(box.extent, source.shape, strict=True)]
    sizes = [as_int(f.extent) for f in steps]
    if None in sizes or not steps or not _one_piece(extents, source):
        raise ScheduleError("prefetch_next", f"what it reads of {buffer} in one step of loop {along.name} is no piece of "
                            "memory of known size, or the loops inside have no known length", sch.program, block)
    lines = -(-math.prod(e or 0 for e in extents) * source.dtype.nbytes // LINE)
    turns = math.prod(n or 0 for n in sizes)
    if not lines or not turns:
        raise ScheduleError("prefetch_next", f"nothing of {buffer} is read in loop {loop.name}", sch.program, block)
    step: Expr = ZERO
    for f, n in zip(steps, sizes, strict=True):
        step = step * const(n or 0) + f.var
    rate, per = _ratio(lines, turns)
    first = step * rate // per
    *starts, last = [algebra.simplify(substitute(s, {along: along + 1})) for s in box.start]
    starts = [*starts, algebra.simplify(last + first * (LINE // source.dtype.nbytes))]
    return _insert(sch, home, source, starts, -(-rate // per), algebra)


def _one_piece(extents: Sequence[int | None], source: Buffer) -> bool:
    """Whether a box of a buffer is one piece of memory of known size."""
    moving = next((k for k, e in enumerate(extents) if e != 1), len(extents))
    return None not in extents and all(
        e == as_int(n) for e, n in zip(extents[moving + 1:], source.shape[moving + 1:], strict=True))


def _within(extent: int | None, size: int | None) -> int | None:
    """What lies inside of a dimension: reads under a condition may reach further."""
    return extent if extent is None or size is None else min(extent, size)


def _ratio(lines: int, turns: int) -> tuple[int, int]:
    """Lines per turn as a fraction over a power of two (a shift is cheaper than a division), an eighth too many at most, or
    a third where that spares the address a multiplication: what is too much belongs to the step after the next."""
    finest = 1
    while -(-lines * finest // turns) < 8:
        finest *= 2
    candidates = []
    for bits in range(finest.bit_length()):
        rate = -(-lines * (1 << bits) // turns)
        odd = rate // (rate & -rate)
        cheap = odd in SHIFT_AND_ADD and 3 * rate * turns <= 4 * lines << bits
        candidates.append((not cheap, rate / (1 << bits), rate, 1 << bits))
    *_, rate, per = min(candidates)
    shared = math.gcd(rate, per)
    return rate // shared, per // shared


def _checked(sch: Schedule, name: str, block: BlockRef, buffer: str, loop: Var,
             along: Var) -> tuple[Block, For, list[For], Buffer]:
    """The block, the loop, the loops around and including it, and the buffer that is read."""
    program = sch.program
    b, home = find_block(program, block), find_loop(program, loop)
    if not path_to(home, b):
        raise ScheduleError(name, f"loop {loop.name} is not around block {b.name}", program, loop)
    outer = [*loops_around(program, home), home]
    if not any(f.var is along for f in outer):
        raise ScheduleError(name, f"loop {along.name} is not around loop {loop.name}", program, along)
    source = next((x for x in inputs(b) if x.name == buffer), None)
    if source is None:
        raise ScheduleError(name, f"block {b.name} reads no buffer {buffer!r}", program, block)
    return b, home, outer, source


def _insert(sch: Schedule, home: For, source: Buffer, starts: list[Expr], lines: int, algebra: Algebra) -> BlockRef:
    """Prefetch so many lines from a place on, at the start of each step of `home`."""
    per_line = LINE // source.dtype.nbytes
    dims = [Var(f"d{k}") for k in range(len(starts))]
    line = Var("line")
    before = [0 if algebra.at_most(ZERO, e) else BEYOND // 2 for e in starts]  # a border is read under a condition
    at = [d - k if k else d for d, k in zip(dims, before, strict=True)]
    place = (*at[:-1], at[-1] + line * per_line)
    body = Evaluate(Call("prefetch", (Address(source, place), const(3)), i32))
    elements = math.prod(as_int(n) or 1 for n in source.shape)
    iters = [IterVar(v, n + max(BEYOND, 2 * elements)) for v, n in zip(dims, source.shape, strict=True)]
    step = Var("line")
    name = fresh_name(sch.program, f"prefetch_{source.name}")
    shifted = [e + k for e, k in zip(starts, before, strict=True)]
    nest: Stmt = Block(name, (*iters, IterVar(line, const(lines))), (*shifted, step), TRUE, body)
    nest = For(step, ZERO, const(lines), nest, "unrolled")
    sch.program = insert(sch.program, home, lambda stmts: 0, nest)
    return BlockRef(name)

