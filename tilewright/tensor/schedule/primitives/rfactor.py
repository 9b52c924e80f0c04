"""rfactor: a reduction is split into partial results, one per step of a loop, and a second block that reduces those.

    for i: for ko: for ki in 0..4:                  for i: for ko: for ki in 0..4:
        block C(vi, vk = ko * 4 + ki):                  block C_rf(vi, vki = ki, vko: reduce = ko):
            init C[vi] = 0                                  init C_rf[vi, vki] = 0
            C[vi] = C[vi] + A[vi, vk]           →           C_rf[vi, vki] += A[vi, vko * 4 + vki]
                                                    for i: for ki in 0..4:
                                                        block C(vi, vki: reduce = ki):
                                                            init C[vi] = 0
                                                            C[vi] = C[vi] + C_rf[vi, vki]

The partial results can then be computed in parallel or in vector lanes.
"""
from __future__ import annotations

from tilewright.loop.ir import (
    TRUE,
    ZERO,
    Block,
    Buffer,
    Expr,
    For,
    Guard,
    IterVar,
    Load,
    Program,
    Seq,
    Var,
    seq,
)
from tilewright.loop.substitute import substitute
from tilewright.tensor.combiner import Reduction, reduction_of
from tilewright.tensor.regions import conjunction, conjuncts, loops_between
from tilewright.tensor.schedule.nest import build_nest, part_below
from tilewright.tensor.schedule.proofs import missing_input, shared_writer
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import (
    BlockRef,
    ScheduleError,
    allocate,
    blocks_under,
    edit,
    find_block,
    find_loop,
    fresh_buffer_name,
    fresh_name,
    loops_around,
    refuse,
)
from tilewright.tensor.schedule.trace import primitive
from tilewright.tensor.span import Algebra, vars_of


@primitive
def rfactor(sch: Schedule, block: BlockRef, loop: Var, axis: int = 0) -> BlockRef:
    """Reduce over all reduction loops of `block` but `loop` first, into a new buffer that has the steps of `loop` as its
    `axis`-th dimension (counted in the new buffer; -1 is the last), then over `loop`.

    Returns the block of partial results, which stays in the loops of `block`; the final block has the name of `block` and
    follows directly after the outermost reduction loop. Any commutative and associative reducer will do, of one value
    or of a tuple; floating-point sums are rounded in another order.
    Legal if `loop` carries nothing but the reduction. Raises ScheduleError.
    """
    program = sch.program
    b, target = find_block(program, block), find_loop(program, loop)
    red = _check(program, b, target, block)
    rank = red.buffers[0].rank
    if not isinstance(axis, int) or not -rank - 1 <= axis <= rank:
        raise ScheduleError("rfactor", f"axis {axis} is not in [{-rank - 1}, {rank}]", program, block)
    axis = axis + rank + 1 if axis < 0 else axis
    around = loops_around(program, b)
    reducing = {v for i, e in zip(b.iters, b.bindings, strict=True) if i.kind == "reduce" for v in vars_of(e)}
    first = next(f for f in around if f.var in reducing)
    partial = [x.replace(name=fresh_buffer_name(program, f"{x.name}_rf"), strides=None, data=None, scope="global",
                         shape=(*x.shape[:axis], target.extent, *x.shape[axis:])) for x in red.buffers]
    rf = _partial_block(program, b, target, around, red, partial, axis)
    outer = loops_around(program, first)
    inner = loops_between(first, b)
    final, part = _final_block(b, target, red, partial, axis, inner, outer)
    nest, _ = build_nest(final, part, outer)
    new = edit(program, b, rf)
    new = edit(new, find_loop(new, first.var), seq(find_loop(new, first.var), nest))
    for buffer in partial:
        new = allocate(new, buffer)
    why = missing_input(new, find_block(new, block))
    if why is not None:
        refuse("rfactor", why, program, loop)
    sch.program = new
    return BlockRef(rf.name)


def _check(program: Program, b: Block, target: For, block: BlockRef) -> Reduction:
    if b.init is None or not any(i.kind == "reduce" for i in b.iters):
        raise ScheduleError("rfactor", "the block is no reduction with its initialisation (was it decomposed?)", program,
                            block)
    if b not in blocks_under(target):
        raise ScheduleError("rfactor", f"loop {target.var.name} is not around block {b.name}", program, target.var)
    red = reduction_of(b)
    if red is None:
        raise ScheduleError("rfactor", "the block's update is not that of a known commutative reducer", program, block)
    used = {i.kind for i, e in zip(b.iters, b.bindings, strict=True) if target.var in vars_of(e)}
    if "reduce" not in used:
        raise ScheduleError("rfactor", f"block {b.name} does not reduce over loop {target.var.name}", program, target.var)
    if "spatial" in used:
        raise ScheduleError("rfactor", f"a spatial variable depends on loop {target.var.name}, too", program, target.var)
    if any(target.var in vars_of(f.extent) | vars_of(f.start) for f in loops_around(program, b)):
        raise ScheduleError("rfactor", f"the extent of another loop depends on loop {target.var.name}", program, target.var)
    why = shared_writer(program, b)
    if why is not None:
        refuse("rfactor", why, program, block)
    return red


def _partial_block(program: Program, b: Block, target: For, around: list[For], red: Reduction, partial: list[Buffer],
                   axis: int) -> Block:
    """The block that reduces over all loops but `target`, whose step becomes a spatial variable."""
    spatial = [(i, e) for i, e in zip(b.iters, b.bindings, strict=True) if i.kind == "spatial"]
    reduced = [(i, e) for i, e in zip(b.iters, b.bindings, strict=True) if i.kind == "reduce"]
    kept = [(i, e) for i, e in reduced if target.var not in vars_of(e)]
    split = [(i, e) for i, e in reduced if target.var in vars_of(e)]
    used = {v for _, e in split for v in vars_of(e)}
    own = {i.var: Var(i.var.name) for i, _ in [*spatial, *kept]}
    step = Var(f"v{target.var.name}")
    others = [f for f in around if f.var in used and f is not target]
    if {f.var for f in others} & {v for _, e in [*spatial, *kept] for v in vars_of(e)}:
        raise ScheduleError("rfactor", f"the variable reduced over loop {target.var.name} depends on a loop that another "
                            "variable needs", program, BlockRef(b.name))
    rest = {f.var: Var(f"v{f.var.name}") for f in others}
    value = {target.var: step + target.start, **{f.var: rest[f.var] + f.start for f in others}}
    iters = (*[IterVar(own[i.var], i.extent) for i, _ in spatial], IterVar(step, target.extent),
             *[IterVar(own[i.var], i.extent, "reduce") for i, _ in kept],
             *[IterVar(rest[f.var], f.extent, "reduce") for f in others])
    bindings = (*[e for _, e in spatial], _minus(target.var, target.start), *[e for _, e in kept],
                *[_minus(f.var, f.start) for f in others])
    inside = {**own, **{i.var: substitute(e, value) for i, e in split}}
    algebra = Algebra([For(i.var, ZERO, i.extent, Seq(())) for i in iters])
    at = tuple([substitute(e, own) for e in red.indices])
    at = (*at[:axis], step, *at[axis:])
    values = [algebra.simplify(substitute(v, inside)) for v in red.values]
    predicate, own_cut = _cuts(b, target, others, Algebra(around))
    for c in [*predicate, *own_cut]:
        if vars_of(c) & set(value) and vars_of(c) & {f.var for f in around} - set(value):
            raise ScheduleError("rfactor", f"the condition {c} is about spatial loops and the reduction at once", program,
                                BlockRef(b.name))
    predicate = [substitute(c, value) for c in predicate]
    if own_cut:
        cond = algebra.simplify(conjunction([substitute(c, value) for c in own_cut]))
        values = [Guard(cond, x, nothing) for x, nothing in zip(values, red.neutral, strict=True)]
    return Block(fresh_name(program, f"{b.name}_rf"), iters, bindings, conjunction(predicate),
                 red.update(partial, at, values), red.stores(partial, at, red.neutral), b.attrs)


def _minus(v: Var, start: Expr) -> Expr:
    return v if start == ZERO else v - start


def _cuts(b: Block, target: For, others: list[For], algebra: Algebra) -> tuple[list[Expr], list[Expr]]:
    """The predicate's conditions that may stay, and those that must move into the body: where the first step of the other
    reduction loops may be cut, the partial result would never be initialised."""
    stay, move = [], []
    first = {f.var: f.start for f in others}
    for c in conjuncts(substitute(b.predicate, dict(zip([i.var for i in b.iters], b.bindings, strict=True)))):
        about = vars_of(c) & {target.var, *first}
        if not about or algebra.proves(substitute(c, first)):
            stay.append(c)
        else:
            move.append(c)
    return stay, move


def _final_block(b: Block, target: For, red: Reduction, partial: list[Buffer], axis: int, inner: list[For],
                 outer: list[For]) -> tuple[Block, list[tuple[Expr, Expr]]]:
    """The block that reduces the partial results, and the part of it that one run of the reduction loops makes."""
    spatial = [i for i in b.iters if i.kind == "spatial"]
    own = {i.var: Var(i.var.name) for i in spatial}
    step = Var(f"v{target.var.name}")
    at = tuple([substitute(e, own) for e in red.indices])
    to = (*at[:axis], step, *at[axis:])
    iters = (*[IterVar(own[i.var], i.extent) for i in spatial], IterVar(step, target.extent, "reduce"))
    start = red.stores(red.buffers, at, [substitute(e, own) for e in red.start])
    final = Block(b.name, iters, tuple([i.var for i in iters]), TRUE,
                  red.update(red.buffers, at, [Load(x, to) for x in partial]), start, b.attrs)
    below = part_below(b, inner, Algebra([*outer, *inner]))
    part = [p for p, i in zip(below, b.iters, strict=True) if i.kind == "spatial"]
    return final, [*part, (ZERO, target.extent)]

