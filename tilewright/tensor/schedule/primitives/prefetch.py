"""prefetch: ask for the memory that a later step of a loop will read, while this one computes.

    for n in 0..8:                                     for n in 0..8:
        for k in 0..64:                                    for k in 0..64:
            block C: … W[n, k, 0..32] …       →                block prefetch_W: prefetch(&W[n + 1, k, 0]), (…, 16])
                                                               block C: … W[n, k, 0..32] …

A prefetch is a hint: it changes no result, and its address may lie outside of the buffer.
"""
from __future__ import annotations

from tilewright.core.dtype import i32
from tilewright.loop.ir import (
    TRUE,
    ZERO,
    Address,
    Block,
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

BEYOND = 1 << 20
"""How far outside of the buffer an address may lie: the domains of the block's variables allow for it."""


@primitive
def prefetch(sch: Schedule, block: BlockRef, buffer: str, loop: Var, along: Var, ahead: int = 1) -> BlockRef:
    """At the start of each step of `loop`, prefetch what `block` would read of `buffer` in it if loop `along` were `ahead`
    steps further. `along` must be `loop` or a loop around it.

    Raises ScheduleError: loops that are not around the block, a buffer that it does not read, a region of which more than
    the last dimension extends (it would need loops of its own).
    """
    program = sch.program
    b, home = find_block(program, block), find_loop(program, loop)
    if not path_to(home, b):
        raise ScheduleError("prefetch", f"loop {loop.name} is not around block {b.name}", program, loop)
    outer = [*loops_around(program, home), home]
    if not any(f.var is along for f in outer):
        raise ScheduleError("prefetch", f"loop {along.name} is not around loop {loop.name}", program, along)
    source = next((x for x in inputs(b) if x.name == buffer), None)
    if source is None:
        raise ScheduleError("prefetch", f"block {b.name} reads no buffer {buffer!r}", program, block)
    inner = loops_between(home.body, b)
    found = [a for a in accesses(b)[0] if a.buffer is source]
    algebra = Algebra([*outer, *inner])
    box = block_boxes(found, b, inner, algebra)[source]
    extents = [as_int(algebra.simplify(e)) for e in box.extent]
    if not extents or any(e != 1 for e in extents[:-1]) or extents[-1] is None:
        raise ScheduleError("prefetch", f"what it reads of {buffer} in one step of loop {loop.name} is no single row",
                            program, block)
    per_line = LINE // source.dtype.nbytes
    lines = -(-extents[-1] // per_line)
    starts: list[Expr] = [algebra.simplify(substitute(s, {along: along + ahead})) for s in box.start]
    dims = [Var(f"d{k}") for k in range(len(starts))]
    line = Var("line")
    before = [0 if algebra.at_most(ZERO, e) else BEYOND // 2 for e in starts]  # a border is read under a condition
    at = [d - k if k else d for d, k in zip(dims, before, strict=True)]
    place = (*at[:-1], at[-1] + line * per_line)
    body = Evaluate(Call("prefetch", (Address(source, place), const(3)), i32))
    iters = [IterVar(v, n + BEYOND) for v, n in zip(dims, source.shape, strict=True)]
    step = Var("line")
    name = fresh_name(program, f"prefetch_{buffer}")
    shifted = [e + k for e, k in zip(starts, before, strict=True)]
    nest: Stmt = Block(name, (*iters, IterVar(line, const(lines))), (*shifted, step), TRUE, body)
    nest = For(step, ZERO, const(lines), nest, "unrolled")
    sch.program = insert(program, home, lambda stmts: 0, nest)
    return BlockRef(name)

