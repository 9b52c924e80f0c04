"""loop_partition: a loop's range is cut into pieces, so that conditions hold in all of a piece, or in none of it.

    loop_partition(i, [1, -1])
                                                             for i in 0..1: block P_1(v = i) if v < 1: P[v] = 0
    for i in 0..10:                                          for i in 1..9:
        block P(v = i):                                 →        block P(v = i) if 1 <= v and v < 9: P[v] = A[v - 1]
            P[v] = guard(1 <= v and v < 9, A[v - 1], 0)      for i in 9..10: block P_2(v = i) if 9 <= v: P[v] = 0

The predicates say which instances a block has kept, so that it keeps its meaning wherever it moves; where it is now, they
hold, and lowering leaves them out.
"""
from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from tilewright.core.node import transform
from tilewright.loop.ir import (
    FALSE,
    TRUE,
    Block,
    Expr,
    For,
    Guard,
    If,
    IntoExpr,
    Le,
    Lt,
    Program,
    Select,
    Seq,
    Stmt,
    Var,
    as_int,
    const,
    expr,
    seq,
)
from tilewright.loop.substitute import fresh_copy, substitute
from tilewright.tensor.regions import conjunction, conjuncts, loops_between
from tilewright.tensor.schedule.proofs import rebound
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import ScheduleError, blocks, blocks_under, edit, find_loop, loops_around
from tilewright.tensor.schedule.trace import primitive
from tilewright.tensor.span import Algebra, Span, vars_of

NAME = "loop_partition"


@primitive
def loop_partition(sch: Schedule, loop: Var, points: Sequence[IntoExpr]) -> list[Var]:
    """Cut the range of a serial loop at some values of its variable, in increasing order; negative numbers count from its
    end. Returns the loops, one more than points.

    The longest piece keeps the loop's variable and the names of its blocks. Each piece is simplified: conditions that hold
    in all of it are gone. Legal for points between which there surely is a step, where a piece is a range of a variable of
    each block (or the block does the same in all steps). Raises ScheduleError.
    """
    program = sch.program
    f = find_loop(program, loop)
    if f.kind != "serial":
        raise ScheduleError(NAME, f"loop {loop.name} is {f.kind}: partition before", program, loop)
    if not points:
        raise ScheduleError(NAME, "give a point at least at which to cut", program, loop)
    around = loops_around(program, f)
    sizes = {p for p in program.params if isinstance(p, Var)}
    algebra = Algebra(around)
    end = f.start + f.extent
    ends = [f.start, *[_point(p, end) for p in points], end]
    visible = {*[g.var for g in around], *sizes}
    for e in ends[1:-1]:
        stray = vars_of(e) - visible
        if stray:
            raise ScheduleError(NAME, f"the point {e} uses {stray.pop().name}, which is no size of the program and no loop "
                                "around it", program, loop)
    for a, b in pairwise(ends):
        if not algebra.at_most(a + 1, b):
            raise ScheduleError(NAME, f"the points are not in order within {f.start} .. {end}: {algebra.simplify(b)} may "
                                f"not be beyond {algebra.simplify(a)}", program, loop)
    extents = [algebra.simplify(b - a) for a, b in pairwise(ends)]
    rests = [(For(f.var, f.start, a - f.start, f.body), For(f.var, b, end - b, f.body)) for a, b in pairwise(ends)]
    for part, others in zip(pairwise(ends), rests, strict=True):
        for block in blocks_under(f):
            _require_range(program, f, part, others, block, around)
    main = max(range(len(extents)), key=lambda k: (as_int(extents[k]) is None, as_int(extents[k]) or 0, -k))
    taken = {b.name for b in blocks(program)}
    made: list[For] = []
    for k, (start, extent) in enumerate(zip(ends, extents, strict=False)):
        piece = f.replace(start=algebra.simplify(start), extent=extent)
        if k != main:
            piece = fresh_copy(piece)
            piece = _renamed(piece, taken)
        made.append(_specialised(piece, around))
    sch.program = edit(program, f, seq(*made))
    return [g.var for g in made]


def _require_range(program: Program, f: For, piece: tuple[Expr, Expr], others: tuple[For, For], b: Block,
                   around: Sequence[For]) -> None:
    """The instances of a block in a piece must be a range of one of its variables, which no step outside of it has."""
    using = [e for e in b.bindings if f.var in vars_of(e)]
    if not using:
        return
    inner = loops_between(f.body, b)
    algebra = Algebra(around)

    def spans(loop: For) -> list[Span | None]:
        inside = [*around, loop, *inner]
        here = Algebra(inside)
        return [here.span(e, {g.var: g for g in inside}) for e in using]

    own = f.replace(start=piece[0], extent=piece[1] - piece[0])
    for other, before in zip(others, (True, False), strict=True):
        if as_int(algebra.simplify(other.extent)) == 0:
            continue
        pairs = zip(spans(other), spans(own), strict=True) if before else zip(spans(own), spans(other), strict=True)
        if not any(a is not None and b is not None and algebra.at_most(a.lo + a.width + 1, b.lo) for a, b in pairs):
            raise ScheduleError(NAME, f"the steps of loop {f.var.name} from {piece[0]} to {piece[1]} are not shown to be a "
                                f"range of a variable of block {b.name}", program, f.var)


def _point(p: IntoExpr, end: Expr) -> Expr:
    return end + p if isinstance(p, int) and p < 0 else expr(p)


def _renamed(piece: For, taken: set[str]) -> For:
    """A copy whose blocks have names of their own."""
    for b in blocks_under(piece):
        name, k = b.name, 0
        while name in taken:
            k += 1
            name = f"{b.name}_{k}"
        taken.add(name)
        new = _with(piece, b, b.replace(name=name))
        assert isinstance(new, For)
        piece = new
    return piece


def _with(s: Stmt, old: Block, new: Block) -> Stmt:
    if s is old:
        return new
    if isinstance(s, Block):
        return s
    return s.map(lambda c: _with(c, old, new) if isinstance(c, Stmt) else c)


def _specialised(piece: For, around: Sequence[For]) -> For:
    """A piece whose blocks know which of their instances it runs."""
    inside: list[For] = []

    def visit(s: Stmt) -> Stmt:
        if isinstance(s, For):
            inside.append(s)
            new = s.replace(body=visit(s.body))
            inside.pop()
            return new
        if isinstance(s, Block):
            return _block(s, Algebra([*around, *inside]))
        return s.map(lambda c: visit(c) if isinstance(c, Stmt) else c)

    new = visit(piece)
    assert isinstance(new, For)
    return new


def _block(b: Block, algebra: Algebra) -> Block:
    """A block that keeps the instances of one place; its conditions decided as far as they are there."""
    domain: list[For] = []
    kept: list[Expr] = []
    init = b.init
    for i, e in zip(b.iters, b.bindings, strict=True):
        low, high = algebra.known.interval(algebra.simplify(e))
        n = as_int(i.extent)
        low = 0 if low is None else max(low, 0)
        if low > 0:
            kept.append(Le(const(low), i.var))
            if i.kind == "reduce":
                init = None
        if high is not None and (n is None or high < n - 1):
            kept.append(Lt(i.var, const(high + 1)))
        size = i.extent - low if high is None or (n is not None and high >= n) else const(high - low + 1)
        domain.append(For(i.var, const(low), size, Seq(())))
    own = Algebra(domain)
    bound = rebound(b)
    predicate = [c for c in conjuncts(b.predicate) if not algebra.proves(substitute(c, bound))]
    return b.replace(predicate=conjunction([*kept, *predicate]), body=_simplified(b.body, own),
                     init=None if init is None else _simplified(init, own))


def _simplified(s: Stmt, own: Algebra) -> Stmt:
    """A body without the conditions that are decided for all its instances. Indices stay as they are, so that the load of a
    sum still looks like its store."""
    def decide(n: Any) -> Any:
        if not isinstance(n, Guard | Select | If):
            return n
        cond = own.simplify(n.cond)
        if cond not in (TRUE, FALSE):
            return n.replace(cond=cond)
        if isinstance(n, If):
            chosen = n.then if cond == TRUE else n.otherwise
            return Seq(()) if chosen is None else chosen
        return n.a if cond == TRUE else n.b
    return transform(s, decide)
