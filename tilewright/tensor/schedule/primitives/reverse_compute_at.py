"""reverse_compute_at: a consumer moves to where its input is made, and computes what can be computed there.

    for i in 0..16: for j in 0..16:                 for i in 0..16:
        block B(vi = i, vj = j): B = A + 1              for j in 0..16:
    for i in 0..16: for j in 0..16:          →              block B(vi = i, vj = j): B = A + 1
        block C(vi = i, vj = j): C = B * 2              for vi in 0..1: for vj in 0..16:
                                                            block C(vi = i + vi, vj = vj): C = B * 2

It is how an epilogue (bias, activation, a store into another layout) gets into the tile loops of a convolution.
"""
from __future__ import annotations

from collections.abc import Iterator

from tilewright.loop.ir import Block, For, Program, Stmt, Var
from tilewright.tensor.regions import (
    Access,
    accesses,
    block_boxes,
    contains,
    inputs,
    loops_between,
    outputs,
    writers,
)
from tilewright.tensor.schedule.nest import Part, build_nest, insert, invert
from tilewright.tensor.schedule.proofs import (
    box_of_domain,
    missing_input,
    moved_update,
    reads_elsewhere,
    reduces_over,
    runs_whole_domain,
    shared_writer,
    starved_consumer,
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
    loops_around,
    refuse,
)
from tilewright.tensor.schedule.trace import primitive
from tilewright.tensor.span import Algebra

NAME = "reverse_compute_at"


@primitive
def reverse_compute_at(sch: Schedule, block: BlockRef, loop: Var) -> None:
    """Move `block` into the body of `loop`, after its last producer there, computing in each step of `loop` the part for
    which the box that the producers write in that step suffices.

    The new loops are one per iteration variable, in their order, serial and perfectly nested; those of one step are
    kept, reductions run whole. Where the part may leave the block's domain, its predicate cuts it.

    Legal if every producer of the block has finished, at the new place, a box that contains what the block reads there
    (none of its reductions runs over `loop` or around it), every instance of the block is run in some step, and
    the order of writers of its outputs does not matter. Raises ScheduleError.
    """
    program = sch.program
    b, target = find_block(program, block), find_loop(program, loop)
    made = [q for q in blocks_under(target) if q is not b and any(x in inputs(b) for x in outputs(q))]
    if not made:
        raise ScheduleError(NAME, f"nothing under loop {loop.name} produces what it reads", program, block)
    why = reads_elsewhere(b) or (None if updates_only(b) else shared_writer(program, b))
    if why is not None:
        refuse(NAME, why, program, block)
    outer = [*loops_around(program, target), target]
    for q in made:
        carried = reduces_over(q, outer)
        if carried is not None:
            refuse(NAME, f"block {q.name} is not finished in one step of loop {loop.name}: it reduces over loop "
                   f"{carried.var.name}", program, carried.var)
    reason: str | None = None
    first: Program | None = None
    for part, covered in _parts(program, b, target, made, outer):
        new = _move(program, b, target, part, made)
        first = first or new
        moved = find_block(new, block)
        why = covered or missing_input(new, moved) or moved_update(new, moved) or starved_consumer(new, moved)
        if why is None:
            sch.program = new
            return
        reason = reason or why
    if first is None:
        raise ScheduleError(NAME, "no single place says which part of it can be computed there", program, block)
    refuse(NAME, str(reason), program, block)
    sch.program = first


def _parts(program: Program, b: Block, target: For, made: list[Block],
           outer: list[For]) -> Iterator[tuple[Part, str | None]]:
    """For each read of something made under `target`: the part of `b` that reads in it what is made in one step, and why it
    may be that not all instances are run in some step (or None)."""
    algebra = Algebra(outer)
    seen: list[Part] = []
    for access in accesses(b)[0]:
        if access.indices is None:
            continue
        sources = [q for q in made if access.buffer in outputs(q)]
        if not sources:
            continue
        q = sources[-1]
        inner = loops_between(target.body, q)
        found = [a for a in accesses(q)[1] if a.buffer is access.buffer]
        box = block_boxes(found, q, inner, Algebra([*outer, *inner]))[access.buffer]
        part = invert(access, b, box, algebra)
        if not any(all(algebra.equal(p[0], r[0]) and algebra.equal(p[1], r[1]) for p, r in zip(part, s, strict=True))
                   for s in seen):
            seen.append(part)
            yield part, _not_all_run(program, b, q, access)


def _not_all_run(program: Program, b: Block, q: Block, access: Access) -> str | None:
    """An instance is run in the step that makes what it reads: so `q` must make all that any instance reads."""
    algebra = Algebra([])
    read = box_of_domain(b, [access])
    around = loops_around(program, q)
    found = [a for a in accesses(q)[1] if a.buffer is access.buffer]
    made = block_boxes(found, q, around, Algebra(around))[access.buffer]
    could = [box_of_domain(q, [a]) for a in found]
    alone = all(w is q or w.name == b.name or accesses(w)[1] == accesses(q)[1] for w in writers(program, access.buffer))
    if not (contains(made, read, algebra, clip=False) and any(contains(c, read, algebra, clip=False) for c in could)
            and (alone or could[0].exact and runs_whole_domain(program, q))):
        return f"block {q.name} may not make all of {access.buffer.name}: the rest of block {b.name} would not be run"
    return None


def _move(program: Program, b: Block, target: For, part: Part, made: list[Block]) -> Program:
    nest, _ = build_nest(b, part, [*loops_around(program, target), target])
    without = edit(program, b, None)
    home = find_loop(without, target.var)
    names = {q.name for q in made}

    def place(stmts: tuple[Stmt, ...]) -> int:
        return 1 + max(k for k, s in enumerate(stmts) if any(x.name in names for x in blocks_under(s)))

    return insert(without, home, place, nest)

