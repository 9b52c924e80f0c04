"""double_buffer: a buffer that each step of a loop fills and uses gets two places, which the steps use in turn.

    for k in 0..n:                              for k in 0..n:
        S[k*16 … k*16 + 15] = A[…]        →         S[k % 2, 0 … 15] = A[…]
        C += S[k*16 … k*16 + 15]                    C += S[k % 2, 0 … 15]

Threads that are behind may still read what one step left while others fill the place of the next: one barrier per step is
enough. In what is stored nothing changes: a step reads only what it wrote itself.
"""
from __future__ import annotations

from collections.abc import Sequence

from tilewright.loop.affine import affine_of
from tilewright.loop.ir import Block, Buffer, Expr, For, Program, Var, as_int, const
from tilewright.loop.lower.compact_storage import IN_TURN
from tilewright.tensor.regions import (
    Box,
    accesses,
    block_boxes,
    loops_between,
    outputs,
    readers,
    union,
    writers,
)
from tilewright.tensor.schedule.index_map import IndexMap
from tilewright.tensor.schedule.order import private
from tilewright.tensor.schedule.primitives.storage_align import ALIGN
from tilewright.tensor.schedule.primitives.transform_layout import relaid
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import (
    BlockRef,
    ScheduleError,
    blocks_under,
    find_block,
    find_loop,
    is_parameter,
    loops_around,
    path_to,
    refuse,
)
from tilewright.tensor.schedule.trace import primitive
from tilewright.tensor.span import Algebra, vars_of


@primitive
def double_buffer(sch: Schedule, block: BlockRef, loop: Var | None = None, index: int = 0) -> None:
    """Let the steps of `loop`, a serial loop around `block` (if not given, the innermost one that all users of the buffer
    share), use two places of the block's `index`-th output in turn.

    Legal if the buffer is no parameter, all its users are under `loop`, each step reads only what it wrote itself, and one
    dimension moves with the loop, tile by tile, the others not at all. Raises ScheduleError.
    """
    program = sch.program
    b = find_block(program, block)
    made = outputs(b)
    if not 0 <= index < len(made):
        raise ScheduleError("double_buffer", f"the block has no output {index}", program, block)
    target = _shared_loop(program, b, made[index]) if loop is None else find_loop(program, loop)
    if target is None:
        raise ScheduleError("double_buffer", f"no serial loop holds all users of {made[index].name}", program, block)
    if not path_to(target, b) or target.kind != "serial":
        raise ScheduleError("double_buffer", f"loop {target.var.name} is no serial loop around block {b.name}", program,
                            target.var)
    in_turn(sch, "double_buffer", target, made[index], 2, _all_have_places(sch, target, made[index], 2))


def _all_have_places(sch: Schedule, loop: For, buffer: Buffer, places: int) -> bool:
    """Whether so many places are all of the buffer, so that no two elements share one."""
    try:
        dim, tile = _moving(sch, "double_buffer", loop, buffer)
    except ScheduleError:
        return False
    size = as_int(buffer.shape[dim])
    return size is not None and size <= places * tile


def _shared_loop(program: Program, block: Block, buffer: Buffer) -> For | None:
    """The innermost serial loop around all users of a buffer."""
    users = [*readers(program, buffer), *writers(program, buffer)]
    for f in reversed(loops_around(program, block)):
        if f.kind == "serial" and all(path_to(f, q) for q in users):
            return f
    return None


def in_turn(sch: Schedule, name: str, loop: For, buffer: Buffer, places: int, enough: bool = False) -> None:
    """Give a buffer so many places, which the steps of a loop use one after another: element v of the dimension that moves
    with the loop, T elements a step, goes to place v // T % places, there to v % T. `enough`: that is a place for each."""
    program = sch.program
    users = [q for q in blocks_under(loop) if any(a.buffer is buffer for part in accesses(q) for a in part)]
    if is_parameter(program, buffer):
        raise ScheduleError(name, f"{buffer.name} is a parameter of the program: the caller decides how it lies", program,
                            BlockRef(users[0].name))
    if not enough and not private(program, users, buffer):
        refuse(name, f"a step of loop {loop.var.name} may read elements of {buffer.name} that it did not write itself, or "
               "others use it, too", program, loop.var)
    dim, tile = _moving(sch, name, loop, buffer)

    def rolled(*i: Expr) -> Sequence[Expr]:
        return (i[dim] // tile % places, *i[:dim], i[dim] % tile, *i[dim + 1:])

    shape = (const(places), *[const(tile) if d == dim else n for d, n in enumerate(buffer.shape)])
    new = buffer.replace(shape=shape, strides=None)
    aligned = [(b, d + (b == buffer.name), *rest) for b, d, *rest in program.attr(ALIGN, ())]
    attrs = tuple([(k, tuple(aligned) if k == ALIGN else v) for k, v in program.attrs if k != IN_TURN])
    attrs = (*attrs, (IN_TURN, (*program.attr(IN_TURN, ()), buffer.name)))
    sch.program = relaid(program, buffer, new, IndexMap.of(rolled, buffer.rank)).replace(attrs=attrs)


def _moving(sch: Schedule, name: str, loop: For, buffer: Buffer) -> tuple[int, int]:
    """The dimension of a buffer that moves with a loop, and by how much in each step."""
    program = sch.program
    outer = [*loops_around(program, loop), loop]
    box: Box | None = None
    for q in blocks_under(loop):
        found = [a for part in accesses(q) for a in part if a.buffer is buffer]
        if not found:
            continue
        inner = loops_between(loop.body, q)
        new = block_boxes(found, q, inner, Algebra([*outer, *inner]))[buffer]
        box = new if box is None else union(box, new, Algebra(outer))
    algebra = Algebra(outer)
    assert box is not None
    out: list[tuple[int, int]] = []
    for d, (start, extent) in enumerate(zip(box.start, box.extent, strict=True)):
        terms = affine_of(algebra.simplify(start), algebra.known.forms).terms
        if any(loop.var in vars_of(a) for m in terms for a in m):
            step, size = terms.pop((loop.var,), 0), as_int(algebra.simplify(extent))
            aligned = step == size and all(c % step == 0 for c in terms.values()) and not any(
                loop.var in vars_of(a) for m in terms for a in m)
            if not aligned or size is None or as_int(algebra.simplify(loop.start)) is None:
                raise ScheduleError(name, f"in dimension {d} the steps of loop {loop.var.name} do not use one tile of "
                                    f"{buffer.name} after another, but {extent} elements from {start} on", program, loop.var)
            out.append((d, size))
    if len(out) != 1:
        raise ScheduleError(name, f"{len(out)} dimensions of {buffer.name} move with loop {loop.var.name}, not one", program,
                            loop.var)
    return out[0]
