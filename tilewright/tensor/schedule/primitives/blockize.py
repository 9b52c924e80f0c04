"""blockize: a nest of loops around one block becomes a block by itself, whose instances are tiles.

    for io in 0..8: for ko in 0..4:                       for io in 0..8: for ko in 0..4:
      for ii in 0..16: for ki in 0..4:                      block C(vio = io, vko: reduce = ko):
        block C(vi = io*16 + ii,                   →          init: for ii in 0..16: C[vio*16 + ii] = 0
                vk: reduce = ko*4 + ki):                      for ii in 0..16: for ki in 0..4:
          init: C[vi] = 0                                       C[vio*16 + ii] += A[vio*16 + ii, vko*4 + ki]
          C[vi] += A[vi, vk]

The loops inside are fixed from now on; primitives move and proofs regard whole tiles.
"""
from __future__ import annotations

from typing import Any

from tilewright.core.node import transform, walk
from tilewright.loop.affine import affine_of
from tilewright.loop.ir import ZERO, Block, Expr, For, IterVar, Load, Stmt, Store, Var, as_int, const
from tilewright.loop.substitute import substitute
from tilewright.tensor.regions import conjuncts, domain_loops
from tilewright.tensor.schedule.order import PRIVATE
from tilewright.tensor.schedule.proofs import reads_elsewhere
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef, ScheduleError, edit, find_loop, loops_around, refuse
from tilewright.tensor.schedule.trace import primitive
from tilewright.tensor.span import Algebra, vars_of

NAME = "blockize"


@primitive
def blockize(sch: Schedule, loop: Var) -> BlockRef:
    """Make all that `loop` does, one block in perfectly nested loops (serial, unrolled or vectorized) of constant extents
    from 0, a single instance of the block. Returns the block, which keeps its name.

    Legal if the loops run whole tiles of the block's domain: each of its variables is outside + inside, the inside part
    takes each of 0 … n-1 once while the loops run, the outside part is a multiple of n, and n divides the domain; no
    condition depends on the loops. Raises ScheduleError.
    """
    target = find_loop(sch.program, loop)
    inner, block = _nest(sch, target)
    around = loops_around(sch.program, target)
    own = {f.var: f for f in inner}
    algebra = Algebra([*around, *inner])
    why = reads_elsewhere(block)
    if why is not None:
        refuse(NAME, why, sch.program, BlockRef(block.name))
    iters: list[IterVar] = []
    bindings: list[Expr] = []
    values: dict[Var, Expr] = {}
    seen: set[Var] = set()
    for it, e in zip(block.iters, block.bindings, strict=True):
        e = algebra.simplify(e)
        used = {v for v in vars_of(e) if v in own}
        if not used:
            iters.append(it)
            bindings.append(e)
            continue
        if used & seen:
            raise ScheduleError(NAME, f"two variables of the block depend on loop {(used & seen).pop().name}", sch.program,
                                loop)
        seen |= used
        outside, inside = _parts(sch, e, own, algebra, loop)
        span = algebra.span(inside, own)
        size = None if span is None or not span.exact or as_int(span.lo) != 0 else as_int(span.width)
        if span is None or size is None:
            raise ScheduleError(NAME, f"the loops do not run each of 0 … n of {it.var.name} = {e}", sch.program, loop)
        size += 1
        tiles = _tiles(outside, size, it, algebra)
        if tiles is None:
            raise ScheduleError(NAME, f"tiles of {size} of {it.var.name} = {e} do not fit its domain of {it.extent}",
                                sch.program, loop, hint="split by a factor that divides the extent, or pad it")
        start, count = tiles
        if as_int(count) == 1:
            values[it.var] = inside
            continue
        v = Var(f"{it.var.name}o", it.var.type)
        iters.append(IterVar(v, count, it.kind))
        bindings.append(start)
        values[it.var] = v * size + inside
    _check_conditions(sch, block, own, values, loop)
    if block.init is not None and any(it.kind == "reduce" for it in block.iters) is False:
        raise ScheduleError(NAME, "the block has an initialisation without a reduction", sch.program, BlockRef(block.name))
    tile = block.replace(iters=tuple(iters), bindings=tuple(bindings), body=_loops(inner, substitute(block.body, values)),
                         init=None if block.init is None else _init(block, inner, values))
    sch.program = edit(sch.program, target, simplified(tile))
    return BlockRef(block.name)


def simplified(tile: Block) -> Block:
    """A tile with the indices in it simplified, in its domain."""
    algebra = Algebra(domain_loops(tile))

    def tidy(n: Any) -> Any:
        return n.replace(indices=tuple([algebra.simplify(i) for i in n.indices])) if isinstance(n, Load | Store) else n

    return transform(tile, tidy)


def _nest(sch: Schedule, target: For) -> tuple[list[For], Block]:
    """The loops from `target` down, and the block in them."""
    inner: list[For] = []
    s: Stmt = target
    while isinstance(s, For):
        if as_int(s.extent) is None or as_int(s.start) != 0:
            raise ScheduleError(NAME, f"loop {s.var.name} has no constant extent from 0", sch.program, s.var)
        if s.kind in PRIVATE and s.kind != "vectorized":
            raise ScheduleError(NAME, f"loop {s.var.name} is {s.kind}", sch.program, s.var)
        inner.append(s)
        s = s.body
    if not isinstance(s, Block):
        raise ScheduleError(NAME, f"loop {target.var.name} does not hold one block in perfectly nested loops", sch.program,
                            target.var, hint="compute_at or decompose the other statements out of it")
    return inner, s


def _parts(sch: Schedule, e: Expr, own: dict[Var, For], algebra: Algebra, loop: Var) -> tuple[Expr, Expr]:
    """A binding as what comes from outside and what from the loops."""
    parts: list[Expr] = [ZERO, ZERO]
    for monomial, c in affine_of(e, algebra.known.forms).terms.items():
        mixed = {v in own for a in monomial for v in vars_of(a)}
        if len(mixed) > 1:
            raise ScheduleError(NAME, f"{e} is no sum of a part from outside and one from the loops", sch.program, loop)
        term: Expr = const(c)
        for a in monomial:
            term = term * a
        k = 1 if True in mixed else 0
        parts[k] = parts[k] + term
    return algebra.simplify(parts[0]), algebra.simplify(parts[1])


def _tiles(outside: Expr, size: int, it: IterVar, algebra: Algebra) -> tuple[Expr, Expr] | None:
    """Which tile of `size` the part from outside begins, and how many there are; None where it begins between two."""
    if as_int(algebra.simplify(outside % size)) != 0 or as_int(algebra.simplify(it.extent % size)) != 0:
        return None
    return algebra.simplify(outside // size), algebra.simplify(it.extent // size)


def _check_conditions(sch: Schedule, block: Block, own: dict[Var, For], values: dict[Var, Expr], loop: Var) -> None:
    for c in conjuncts(block.predicate):
        if vars_of(c) & {*own, *values}:
            refuse(NAME, f"the condition {c} of block {block.name} cuts tiles", sch.program, loop,
                   "split by a factor that divides the extent")


def _loops(inner: list[For], body: Stmt) -> Stmt:
    for f in reversed(inner):
        body = f.replace(body=body)
    return body


def _init(block: Block, inner: list[For], values: dict[Var, Expr]) -> Stmt:
    """The initialisation of a tile, in loops of its own."""
    assert block.init is not None
    spatial = {v for it in block.iters if it.kind == "spatial" for v in vars_of(values.get(it.var, ZERO))}
    fresh = {f.var: Var(f.var.name, f.var.type) for f in inner if f.var in spatial}
    init = substitute(substitute(block.init, values), fresh)
    assert not any(isinstance(n, Load | Store) and {f.var for f in inner} & {v for i in n.indices for v in vars_of(i)}
                   for n in walk(init))
    for f in reversed(inner):
        if f.var in fresh:
            init = f.replace(var=fresh[f.var], body=init)
    return init
