"""Proofs about blocks at their places: inputs finished, consumers fed, writers in order, updates started once.

In: a program (mostly one that was just edited) and a block in it. Out: None, or why the property could not be shown – a
sentence for the ScheduleError of the primitive that made the edit. Nothing here changes a program.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.loop.ir import (
    ONE,
    TRUE,
    ZERO,
    Block,
    Buffer,
    Expr,
    FloorDiv,
    FloorMod,
    For,
    Program,
    Seq,
    Stmt,
    Var,
    as_int,
)
from tilewright.loop.substitute import substitute
from tilewright.tensor.regions import (
    Access,
    Box,
    accesses,
    block_boxes,
    conjuncts,
    consumers,
    contains,
    cuts_only_overshoot,
    disjoint,
    effective,
    inputs,
    kept_domain,
    loops_between,
    outputs,
    writers,
)
from tilewright.tensor.schedule.nest import invert
from tilewright.tensor.schedule.state import blocks, loops_around
from tilewright.tensor.span import Algebra, vars_of


def shared_loops(program: Program, a: Stmt, b: Stmt) -> list[For]:
    """The loops around both statements, outermost first."""
    around = {id(f) for f in loops_around(program, b)}
    return [f for f in loops_around(program, a) if id(f) in around]


def reduces_over(block: Block, loops: Sequence[For]) -> For | None:
    """A loop of more than one step among `loops` over which the block reduces, or None."""
    used = {v for i, e in zip(block.iters, block.bindings, strict=True) if i.kind == "reduce" for v in vars_of(e)}
    return next((f for f in loops if f.var in used and as_int(f.extent) != 1), None)


def runs_whole_domain(program: Program, block: Block, below: Stmt | None = None) -> bool:
    """Whether the loops around a block surely run its whole domain; with `below` those under this statement by themselves,
    whatever the ones around it."""
    around = loops_around(program, block)
    loops = around if below is None else loops_between(below, block)
    algebra = Algebra(around)
    running = {f.var: f for f in effective(block, loops, algebra)}
    seen: set[Var] = set()
    for i, e in zip(block.iters, block.bindings, strict=True):
        s = algebra.span(e, running)
        if s is None or not s.exact or s.vars & seen or as_int(s.lo) != 0 or not algebra.at_most(i.extent, s.width + 1):
            if not _is_digit_of_whole(e, block, algebra, {f.var for f in loops}):
                return False
        else:
            seen |= s.vars
    return cuts_only_overshoot(block, algebra, loops)


def _is_digit_of_whole(e: Expr, block: Block, algebra: Algebra, moving: set[Var]) -> bool:
    """Whether `e` and the other bindings are the digits f // E, f % E of a fused number of loops `moving` that runs over all
    of them."""
    e = algebra.simplify(e)
    if not isinstance(e, FloorDiv | FloorMod):
        return False
    root = e.a
    while isinstance(root, FloorDiv | FloorMod):
        root = root.a
    if not vars_of(root) <= moving:
        return False
    digits = []
    size: Expr = ONE
    for i, b in zip(block.iters, block.bindings, strict=True):
        if vars_of(b) & vars_of(root):
            digits.append(b)
            size = size * i.extent
    running = {f: f for f in vars_of(root)}
    whole_span = algebra.span(root, {v: For(v, ZERO, _extent(v, algebra), Seq(())) for v in running})
    if whole_span is None or not whole_span.exact or as_int(whole_span.lo) != 0:
        return False
    if not algebra.at_most(size, whole_span.width + 1):
        return False
    f = Var("f")
    one = For(f, ZERO, whole_span.width + 1, Seq(()))
    inner = Algebra([one])
    return inner.determine([_replace(algebra.simplify(d), root, f) for d in digits], {f: one})


def _extent(v: Var, algebra: Algebra) -> Expr:
    hi = algebra.ranges[v][1]
    return (ZERO + hi if isinstance(hi, int) else hi) + 1 if hi is not None else ZERO


def _replace(e: Expr, old: Expr, new: Expr) -> Expr:
    if e == old:
        return new
    return e.map(lambda c: _replace(c, old, new) if isinstance(c, Expr) else c)


def missing_input(program: Program, block: Block, only: Block | None = None) -> str | None:
    """Why `block` may not find its inputs finished at its place, or None if it surely does.

    Every writer of an input must come before it; under the loops that both share, the writer must have finished (none of
    its reductions runs over them) exactly a box that contains what the block reads there, or have made it in earlier steps
    of a loop (a recurrence). `only`: look at this writer only.
    """
    order = {id(b): k for k, b in enumerate(blocks(program))}
    reads = accesses(block)[0]
    for buffer in inputs(block):
        for q in writers(program, buffer) if only is None else [only] if buffer in outputs(only) else []:
            behind = order[id(q)] < order[id(block)]
            if _made_in_earlier_steps(program, q, block, buffer, reads, behind):
                continue
            if not behind:
                return f"block {q.name} writes {buffer.name} only after block {block.name} reads it"
            shared = shared_loops(program, q, block)
            if not shared:
                if not runs_whole_domain(program, q) and not _covers(program, q, block, buffer, reads, []):
                    return f"block {q.name} may not have computed all of {buffer.name} that block {block.name} reads"
                continue
            carried = reduces_over(q, shared)
            if carried is not None:
                return f"block {q.name} is still reducing {buffer.name} over loop {carried.var.name}"
            if not (_covers(program, q, block, buffer, reads, shared) or runs_whole_domain(program, q, shared[-1].body)
                    or _runs_what_is_read(program, q, block, buffer, reads, shared[-1])):
                return (f"in one step of loop {shared[-1].var.name}, block {q.name} may not have computed all of "
                        f"{buffer.name} that block {block.name} reads")
    return None


def _covers(program: Program, q: Block, block: Block, buffer: Buffer, reads: Sequence[Access], shared: list[For]) -> bool:
    root: Stmt = shared[-1].body if shared else program.body
    qi, bi = loops_between(root, q), loops_between(root, block)
    outside = {f.var for f in shared}
    bound = rebound(block)
    holds = [c for c in (substitute(c, bound) for c in conjuncts(block.predicate)) if vars_of(c) <= outside]
    algebra = Algebra([*shared, *qi]).assuming(holds)
    written = block_boxes([a for a in accesses(q)[1] if a.buffer is buffer], q, qi, algebra)[buffer]
    read = block_boxes([a for a in reads if a.buffer is buffer], block, bi, Algebra([*shared, *bi]))[buffer]
    return written.exact and contains(written, read, Algebra(shared).assuming(holds))


def _runs_what_is_read(program: Program, q: Block, block: Block, buffer: Buffer, reads: Sequence[Access], loop: For) -> bool:
    """Whether `q` runs, in a step of `loop`, all instances that may store something of the box that `block` reads in it: for
    layouts that leave places free, so that no box of elements is all written."""
    found = [a for a in accesses(q)[1] if a.buffer is buffer]
    if len(found) != 1:
        return False
    around = [*loops_around(program, loop), loop]
    qi, bi = loops_between(loop.body, q), loops_between(loop.body, block)
    read = block_boxes([a for a in reads if a.buffer is buffer], block, bi, Algebra([*around, *bi]))[buffer]
    algebra = Algebra([*around, *qi])
    running = {f.var: f for f in effective(q, qi, algebra)}
    seen: set[Var] = set()
    for i, e, (start, extent) in zip(q.iters, q.bindings, invert(found[0], q, read, Algebra(around)), strict=True):
        s = algebra.span(e, running)
        if s is None or not s.exact or s.vars & seen:
            return False
        seen |= s.vars
        end = s.lo + s.width + 1
        if not (algebra.at_most(s.lo, start) or algebra.at_most(s.lo, ZERO)):
            return False
        if not (algebra.at_most(start + extent, end) or algebra.at_most(i.extent, end)):
            return False
    return cuts_only_overshoot(q, algebra, qi)


def _made_in_earlier_steps(program: Program, q: Block, block: Block, buffer: Buffer, reads: Sequence[Access],
                           behind: bool) -> bool:
    """Whether `q`, the only writer of a buffer, makes one row of it in each step of a serial loop around both blocks, all
    that is read of a row, and `block` reads rows of earlier steps only: then their order within a step does not matter.
    If `block` comes `behind` it, it may read the row of its own step, too, where no loop inside is around both.
    (What is before the first row is never made; a block that names it does so behind a guard.)"""
    if [w.name for w in writers(program, buffer)] != [q.name]:
        return False
    shared = shared_loops(program, q, block)
    for k, loop in enumerate(shared):
        around = shared[:k + 1]
        if loop.kind != "serial" or reduces_over(q, around) is not None:
            continue
        qi, bi = loops_between(loop.body, q), loops_between(loop.body, block)
        made = block_boxes([a for a in accesses(q)[1] if a.buffer is buffer], q, qi, Algebra([*around, *qi]))[buffer]
        read = block_boxes([a for a in reads if a.buffer is buffer], block, bi, Algebra([*around, *bi]))[buffer]
        algebra = Algebra(around)
        own = 1 if behind and loop is shared[-1] else 0
        for d in range(buffer.rank):
            row = made.start[d]
            if not vars_of(algebra.simplify(row - loop.var)) and (
                    as_int(algebra.simplify(made.extent[d])) == 1 and made.exact
                    and algebra.at_most(read.start[d] + read.extent[d], row + own)):
                rest = [e for e in range(buffer.rank) if e != d]
                if contains(_part(made, rest), _part(read, rest), algebra, clip=False):
                    return True
    return False


def _part(box: Box, dims: Sequence[int]) -> Box:
    """A box in some of its dimensions."""
    shape = tuple([box.buffer.shape[d] for d in dims])
    return Box(box.buffer.replace(shape=shape, strides=None), tuple([box.start[d] for d in dims]),
               tuple([box.extent[d] for d in dims]), box.exact)


def starved_consumer(program: Program, block: Block) -> str | None:
    """Why a consumer of `block` may not find it finished, or None."""
    for c in consumers(program, block):
        why = missing_input(program, c, block)
        if why is not None:
            return why
    return None


def shared_writer(program: Program, block: Block, but: Callable[[Block], bool] = lambda _: False) -> str | None:
    """Why the order of `block` and another writer of its outputs may matter, or None if their boxes are disjoint. Writers
    for which `but` holds do not count."""
    for buffer in outputs(block):
        for q in writers(program, buffer):
            if q is block or but(q):
                continue
            mine, other = (box_of_domain(b, [a for a in accesses(b)[1] if a.buffer is buffer]) for b in (block, q))
            if not disjoint(mine, other, Algebra([])):
                return f"block {q.name} writes {buffer.name}, too"
    return None


def box_of_domain(block: Block, found: Sequence[Access]) -> Box:
    """The box of some accesses of one buffer over the whole domain of their block."""
    fresh = [For(Var(i.var.name), low, extent, Seq(())) for i, (low, extent) in zip(
        block.iters, kept_domain(block), strict=True)]
    over_all = block.replace(bindings=tuple([f.var for f in fresh]), predicate=TRUE)
    return block_boxes(found, over_all, fresh, Algebra(fresh))[found[0].buffer]


def not_repeatable(block: Block) -> str | None:
    """Why running an instance of `block` twice may differ, or None."""
    if updates_only(block):
        return f"it updates {outputs(block)[0].name}, which another block initialises"
    return reads_elsewhere(block)


def updates_only(block: Block) -> bool:
    """Whether a block updates what another block initialises."""
    return block.init is None and bool(set(outputs(block)) & {a.buffer for a in accesses(block)[0]})


def moved_update(program: Program, block: Block) -> str | None:
    """Why a block that only updates may, at its place, update an element more than once or before it was initialised, or
    None."""
    if not updates_only(block):
        return None
    around = loops_around(program, block)
    algebra = Algebra(around)
    if not algebra.determine(block.bindings, {f.var: f for f in effective(block, around, algebra)}):
        return "an update may be run in several steps of the loops around it"
    for buffer in outputs(block):
        for q in writers(program, buffer):
            if q is block:
                continue
            why = restarted(program, q, block, buffer)
            if why is not None:
                return why
    return None


def restarted(program: Program, init: Block, update: Block, buffer: Buffer) -> str | None:
    """Why `init` may initialise an element after an update of it, or None: it must come first and, in each step of the loops
    that both share, initialise only what the update makes then and in no other step."""
    for b in blocks(program):
        if b is init:
            break
        if b is update:
            return f"block {init.name} would initialise {buffer.name} only after block {update.name} has updated it"
    shared = shared_loops(program, init, update)
    if not shared:
        return None
    carried = reduces_over(update, shared)
    if carried is not None:
        return f"block {init.name} would initialise {buffer.name} again in each step of loop {carried.var.name}"
    again = f"block {init.name} may initialise {buffer.name} in between"
    inner, first = loops_between(shared[-1].body, update), loops_between(shared[-1].body, init)
    around = [*shared, *inner]
    algebra = Algebra(around)
    mine = effective(init, [*shared, *first], Algebra([*shared, *first]))
    for f, g, h in zip(shared, effective(update, around, algebra), mine, strict=False):
        if g.extent != f.extent and g.extent != h.extent:
            return again  # in steps that the update leaves out, too
    spatial = [e for i, e in zip(update.iters, update.bindings, strict=True) if i.kind == "spatial"]
    used = {v for e in spatial for v in vars_of(e)}
    moving = {f.var: f for f in effective(update, around, algebra) if f.var in used or any(f.var is g.var for g in shared)}
    if not algebra.determine(spatial, moving):
        return again
    made = block_boxes([a for a in accesses(update)[1] if a.buffer is buffer], update, inner, algebra)[buffer]
    started = block_boxes([a for a in accesses(init)[1] if a.buffer is buffer], init, first, Algebra([*shared, *first]))
    return None if made.exact and contains(made, started[buffer], Algebra(shared)) else again


def reads_elsewhere(block: Block) -> str | None:
    """Why the order of a block's instances may matter, or None: it reads elements that other instances write. (Updates of
    one element by a reduction commute.)"""
    reads, writes = accesses(block)
    stored = {(a.buffer, a.indices) for a in writes}
    for a in reads:
        if any(a.buffer is w.buffer for w in writes) and (a.buffer, a.indices) not in stored:
            return f"it reads {a.buffer.name}, which it writes itself"
    return None


def rebound(block: Block) -> dict[Var, Expr]:
    """The bindings of a block as a substitution."""
    return dict(zip([i.var for i in block.iters], block.bindings, strict=True))
