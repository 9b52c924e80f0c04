"""compute_at: a producer moves to where its values are used, and computes just those.

    for i in 0..16: for j in 0..16:                 for i in 0..16:
        block B(vi = i, vj = j): B = A + 1              for vi in 0..1: for vj in 0..16:
    for i in 0..16: for j in 0..16:          →              block B(vi = i + vi, vj = vj): B = A + 1
        block C(vi = i, vj = j): C = B * 2              for j in 0..16:
                                                            block C(vi = i, vj = j): C = B * 2
"""
from __future__ import annotations

from tilewright.core.errors import InternalError
from tilewright.loop.ir import ZERO, Block, Buffer, For, Program, Stmt, Var
from tilewright.tensor.regions import (
    Box,
    accesses,
    block_boxes,
    consumers,
    loops_between,
    outputs,
    union,
    writers,
)
from tilewright.tensor.schedule.nest import Part, build_nest, insert, invert, whole
from tilewright.tensor.schedule.proofs import (
    missing_input,
    moved_update,
    reads_elsewhere,
    restarted,
    runs_whole_domain,
    shared_writer,
    updates_only,
)
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import (
    BlockRef,
    ScheduleError,
    blocks_under,
    edit,
    find_block,
    find_loop,
    is_nowhere,
    is_parameter,
    loops_around,
    refuse,
)
from tilewright.tensor.schedule.trace import primitive
from tilewright.tensor.span import Algebra

NAME = "compute_at"


@primitive
def compute_at(sch: Schedule, block: BlockRef, loop: Var) -> None:
    """Move `block` into the body of `loop`, before its first consumer there, computing in each step of `loop` the box that
    the consumers below it read.

    The new loops are one per iteration variable, in their order, serial and perfectly nested; those of one step are
    kept, reductions run whole. Where the box may leave the block's domain, its predicate cuts it. What several steps
    read is computed in each of them.

    Legal if a consumer is under `loop` and all consumers find what they read (an output of the program is read as a whole),
    nobody else writes what the block writes, and what it reads is finished at the new place. Raises ScheduleError.
    `loop` may be what `sample_compute_location` gives for no loop: then nothing happens.
    """
    if is_nowhere(loop):
        return
    program = sch.program
    b, target = find_block(program, block), find_loop(program, loop)
    _check(program, b, target, block)
    users = [c for c in consumers(program, b) if c in blocks_under(target)]
    part = needed_part(program, b, target, users)
    new = move(program, b, target, part, before=users)
    moved = find_block(new, block)
    why = (missing_input(new, moved) or moved_update(new, moved) or _restarts(new, moved)
           or _not_enough(new, moved, find_loop(new, loop)))
    if why is not None:
        refuse(NAME, why, program, block)
    sch.program = new


def _check(program: Program, b: Block, target: For, block: BlockRef) -> None:
    users = consumers(program, b)
    under = blocks_under(target)
    if not any(u in under for u in users):
        what = "no block reads what it computes" if not users else f"no consumer of it is under loop {target.var.name}"
        raise ScheduleError(NAME, what, program, block)
    why = reads_elsewhere(b) or (None if updates_only(b) else shared_writer(program, b, updates_only))
    if why is not None:
        refuse(NAME, why, program, block)


def _restarts(program: Program, b: Block) -> str | None:
    """Why `b`, if it initialises what another block updates, may do so again after an update, or None."""
    if updates_only(b):
        return None
    for buffer in outputs(b):
        for q in writers(program, buffer):
            if q is not b and updates_only(q):
                why = restarted(program, b, q, buffer)
                if why is not None:
                    return why
    return None


def _not_enough(program: Program, b: Block, target: For) -> str | None:
    """Why somebody who is not under `target` may miss a part of what `b` now computes, or None."""
    under = blocks_under(target)
    for u in consumers(program, b):
        if u not in under:
            why = missing_input(program, u, b)
            if why is not None:
                return f"block {u.name} reads what it computes and is not under loop {target.var.name}: {why}"
    for buffer in outputs(b):
        if is_parameter(program, buffer) and not runs_whole_domain(program, b):
            return f"{buffer.name} is an output of the program: all of it must be computed"
    return None


def needed_part(program: Program, b: Block, target: For, users: list[Block]) -> Part:
    """The part of `b` that blocks under one step of `target` read."""
    outer = [*loops_around(program, target), target]
    algebra = Algebra(outer)
    writes = {a.buffer: a for a in reversed(accesses(b)[1])}
    stores = {buffer: sum(a.buffer is buffer for a in accesses(b)[1]) for buffer in writes}
    boxes: dict[Buffer, Box] = {}
    for u in users:
        inner = loops_between(target.body, u)
        here = Algebra([*outer, *inner])
        found = [a for a in accesses(u)[0] if a.buffer in writes]
        for buffer, box in block_boxes(found, u, inner, here).items():
            boxes[buffer] = union(boxes[buffer], box, here) if buffer in boxes else box
    parts = [invert(writes[buffer], b, boxes[buffer], algebra) if stores[buffer] == 1 else whole(b)
             for buffer in writes if buffer in boxes]
    if not parts:
        raise InternalError(f"no consumer of {b.name} below loop {target.var.name}")
    part = parts[0]
    for other in parts[1:]:
        part = [p if algebra.equal(p[0], q[0]) and algebra.equal(p[1], q[1]) else (ZERO, i.extent)
                for p, q, i in zip(part, other, b.iters, strict=True)]
    return part


def move(program: Program, b: Block, target: For, part: Part, *, before: list[Block]) -> Program:
    """The program with `b` taken out and its `part` run in the body of `target`, before the statement that holds the first
    of some blocks."""
    nest, _ = build_nest(b, part, [*loops_around(program, target), target])
    without = edit(program, b, None)
    home = find_loop(without, target.var)

    def place(stmts: tuple[Stmt, ...]) -> int:
        wanted = {u.name for u in before}
        return next(k for k, s in enumerate(stmts) if any(x.name in wanted for x in blocks_under(s)))

    return insert(without, home, place, nest)
