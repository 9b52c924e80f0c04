"""split, fuse, reorder, tile: the same instances of the blocks below, visited by other loops or in another order.

    split(i, [None, 4])     for i in 0..n:   →   for i0 in 0..ceil(n/4): for i1 in 0..4:  [i0*4 + i1 < n]
    fuse(i, j)              for i in 0..n: for j in 0..m:   →   for f in 0..n*m:    (i = f // m, j = f % m)
    reorder(j, i)           for i: for j:   →   for j: for i:
"""
from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from tilewright.loop.bounds import prove
from tilewright.loop.ir import (
    ONE,
    TRUE,
    ZERO,
    Allocate,
    Block,
    Expr,
    For,
    IntoExpr,
    Le,
    Stmt,
    Var,
    as_int,
    expr,
)
from tilewright.loop.lower.split_pipelines import PIPELINED
from tilewright.loop.substitute import substitute
from tilewright.tensor.regions import conjunction, conjuncts
from tilewright.tensor.schedule.dependences import order_violation
from tilewright.tensor.schedule.order import made_in_each_step, reorder_hazard
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import (
    ScheduleError,
    edit,
    find_loop,
    loops_around,
    path_to,
    refuse,
    sub_statements,
)
from tilewright.tensor.schedule.trace import primitive
from tilewright.tensor.span import Algebra, vars_of


@primitive
def split(sch: Schedule, loop: Var, factors: Sequence[IntoExpr | None]) -> list[Var]:
    """Split a loop into len(factors) nested ones; one factor may be None and is inferred.

    Where the factors' product exceeds the extent, the blocks below get a predicate. Only serial loops are split.
    Raises ScheduleError: factors that are not positive, more than one None, a product below the extent.
    """
    f = find_loop(sch.program, loop)
    if f.kind != "serial":
        raise ScheduleError("split", f"loop {loop.name} is {f.kind}: split before", sch.program, loop)
    _not_pipelined(sch, "split", f)
    if not factors or sum(x is None for x in factors) > 1:
        raise ScheduleError("split", "give one factor per new loop, at most one of them None", sch.program, loop)
    sizes = [None if x is None else expr(x) for x in factors]
    around = loops_around(sch.program, f)
    visible = {*[g.var for g in around], *[p for p in sch.program.params if isinstance(p, Var)]}
    known = ONE
    for s in sizes:
        if s is not None:
            size = as_int(s)
            if size is not None and size < 1:
                raise ScheduleError("split", f"a factor of {s} is not positive", sch.program, loop)
            stray = vars_of(s) - visible
            if stray:
                raise ScheduleError("split", f"the factor {s} uses {stray.pop().name}, which is no size of the program and "
                                    "no loop around it", sch.program, loop)
            known = known * s
    outer = Algebra(around).assuming([Le(ONE, f.extent)])  # where the loop runs at all
    if None in sizes:
        inferred = outer.simplify((f.extent + (known - 1)) // known)
        sizes[sizes.index(None)] = inferred
        known = outer.simplify(known * inferred)
    elif not outer.at_most(f.extent, known):
        raise ScheduleError("split", f"factors of {known} in all do not cover the extent {f.extent}", sch.program, loop)
    extents = [s for s in sizes if s is not None]
    names = [Var(f"{loop.name}_{k}", loop.type) for k in range(len(extents))]
    index: Expr = ZERO
    for v, e in zip(names, extents, strict=True):
        index = index * e + v
    inner = For(names[-1], ZERO, extents[-1], f.body, "serial", f.attrs)
    for v, e in zip(reversed(names[:-1]), reversed(extents[:-1]), strict=True):
        inner = For(v, ZERO, e, inner, "serial", f.attrs)
    cut = None if outer.equal(known, f.extent) else index < f.extent
    sch.program = edit(sch.program, f, _rebind(inner, loop, f.start + index, cut, around))
    return names


@primitive
def fuse(sch: Schedule, *loops: Var) -> Var:
    """Fuse perfectly nested loops, outermost first, into one. Raises ScheduleError if they are not nested in that order,
    not serial, or an extent depends on an outer one of them."""
    nest = nested(sch, "fuse", loops)
    for f in nest:
        if f.kind != "serial":
            raise ScheduleError("fuse", f"loop {f.var.name} is {f.kind}: fuse before", sch.program, f.var)
        _not_pipelined(sch, "fuse", f)
    if len(nest) == 1:
        return loops[0]
    total: Expr = ONE
    for f in nest:
        total = total * f.extent
    fused = Var("_".join(f.var.name for f in nest[:3]) + "_f", loops[0].type)
    new: Stmt = For(fused, ZERO, total, nest[-1].body, "serial", nest[0].attrs)
    around = loops_around(sch.program, nest[0])
    rest: Expr = fused
    mapping: dict[Var, Expr] = {}
    for f in reversed(nest[1:]):
        mapping[f.var] = f.start + rest % f.extent
        rest = rest // f.extent
    mapping[nest[0].var] = nest[0].start + rest
    sch.program = edit(sch.program, nest[0], rebind(new, mapping, None, around))
    return fused


@primitive
def reorder(sch: Schedule, *loops: Var) -> None:
    """Nest loops of one chain in the given order; other loops of the chain keep their places.

    Legal if the loops are perfectly nested (each the only statement of the one outside it), no extent depends on a loop
    that would come to stand inside it, and every block below may run its instances in the new order. Raises ScheduleError.
    """
    if len(set(loops)) != len(loops) or not loops:
        raise ScheduleError("reorder", "name each loop once", sch.program)
    found = sorted((find_loop(sch.program, v) for v in loops), key=lambda f: len(loops_around(sch.program, f)))
    chain = _chain(sch, "reorder", found[0], found[-1])
    for f in found:
        if not any(f is c for c in chain):
            raise ScheduleError("reorder", f"loop {f.var.name} is not in one nest with {found[0].var.name}",
                                sch.program, f.var)
    wanted = iter(loops)
    by_var = {f.var: f for f in found}
    order = [by_var[next(wanted)] if any(c is f for f in found) else c for c in chain]
    seen: set[Var] = set()
    inside = {f.var for f in order}
    for f in order:
        late = (vars_of(f.extent) | vars_of(f.start)) & (inside - seen)
        if late:
            refuse("reorder", f"the extent of loop {f.var.name} depends on loop {next(iter(late)).name}, which would come "
                   "inside it", sch.program, f.var)
        seen.add(f.var)
    new: Stmt = chain[-1].body
    for f in reversed(order):
        new = f.replace(body=new)
    changed = edit(sch.program, chain[0], new)
    why = reorder_hazard(sch.program, changed, chain, order)
    if why is not None:  # by the forms of the indices; or, exactly, by the dependences
        top = find_loop(changed, order[0].var)
        wrong = order_violation(sch.program, chain, [f.var for f in order], lambda b: made_in_each_step(changed, top, b))
        if wrong is not None:
            refuse("reorder", why, sch.program, found[0].var, example=lambda: wrong.steps)
    sch.program = changed


@primitive
def tile(sch: Schedule, i: Var, j: Var, size_i: IntoExpr, size_j: IntoExpr) -> list[Var]:
    """split i and j and reorder to (i outer, j outer, i inner, j inner)."""
    io, ii = sch.split(i, [None, size_i])
    jo, ji = sch.split(j, [None, size_j])
    sch.reorder(io, jo, ii, ji)
    return [io, jo, ii, ji]


def _not_pipelined(sch: Schedule, name: str, f: For) -> None:
    if PIPELINED in dict(f.attrs):
        raise ScheduleError(name, f"loop {f.var.name} is pipelined: {name} before", sch.program, f.var)


def nested(sch: Schedule, name: str, loops: Sequence[Var], dependent: bool = False) -> list[For]:
    """The loops, if each is directly inside the one before; bounds of `dependent` ones may depend on those outside."""
    if not loops:
        raise ScheduleError(name, "name at least one loop", sch.program)
    nest = [find_loop(sch.program, v) for v in loops]
    for outer, inner in pairwise(nest):
        if outer.body is not inner:
            raise ScheduleError(name, f"loop {inner.var.name} is not directly inside loop {outer.var.name}",
                                sch.program, inner.var)
        if not dependent and outer.var in vars_of(inner.extent) | vars_of(inner.start):
            raise ScheduleError(name, f"the extent of loop {inner.var.name} depends on loop {outer.var.name}",
                                sch.program, inner.var)
    return nest


def _chain(sch: Schedule, name: str, top: For, bottom: For) -> list[For]:
    """All loops from `top` down to `bottom`, each the only statement of the one above."""
    path = path_to(top, bottom)
    if not path:
        raise ScheduleError(name, f"loop {bottom.var.name} is not inside loop {top.var.name}", sch.program, bottom.var)
    for s in path[:-1]:
        if isinstance(s, Allocate) or len(sub_statements(s)) != 1 or not isinstance(s, For):
            raise ScheduleError(name, f"the loops are not perfectly nested between {top.var.name} and {bottom.var.name}",
                                sch.program, bottom.var)
    return [s for s in path if isinstance(s, For)]


def _rebind(new: Stmt, old: Var, value: Expr, cut: Expr | None, around: list[For]) -> Stmt:
    return rebind(new, {old: value}, cut, around)


def rebind(new: Stmt, mapping: dict[Var, Expr], cut: Expr | None, around: list[For]) -> Stmt:
    """Put values for loop variables into everything below; blocks get the cut as a predicate; bindings are simplified."""
    new = substitute(new, mapping)
    inside: list[For] = []

    def visit(s: Stmt) -> Stmt:
        if isinstance(s, For):
            inside.append(s)
            body = visit(s.body)
            inside.pop()
            return s if body is s.body else s.replace(body=body)
        if isinstance(s, Block):
            algebra = Algebra([*around, *inside])
            bindings = tuple([algebra.simplify(e) for e in s.bindings])
            parts = conjuncts(s.predicate) + ([] if cut is None else [cut])
            kept = [algebra.simplify(p) if _loop_only(p, s) else p for p in parts]
            kept = [c for c in kept if c != TRUE and not (_loop_only(c, s) and prove(c, algebra.ranges))]
            return s.replace(bindings=bindings, predicate=conjunction(kept))
        return s.map(lambda c: visit(c) if isinstance(c, Stmt) else c)

    return visit(new)


def _loop_only(c: Expr, b: Block) -> bool:
    return not vars_of(c) & {i.var for i in b.iters}

