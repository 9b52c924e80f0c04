"""The loops that run a part of a block's domain, and which part touches a box: shared by primitives that move blocks.

A *part* gives, for each iteration variable of a block, (start, extent) of the values to run.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.loop.affine import affine_of
from tilewright.loop.ir import (
    ONE,
    ZERO,
    Allocate,
    Block,
    Expr,
    FloorDiv,
    FloorMod,
    For,
    IterVar,
    Le,
    Let,
    Lt,
    Program,
    Seq,
    Stmt,
    Var,
    as_int,
    seq,
)
from tilewright.tensor.regions import (
    Access,
    Box,
    conjunction,
    domain_loops,
    effective,
    kept_domain,
    own_conditions,
    statements,
)
from tilewright.tensor.schedule.state import path_to
from tilewright.tensor.span import Algebra, vars_of

Part = list[tuple[Expr, Expr]]


def whole(block: Block) -> Part:
    """The part that is the whole domain, as far as the block's own conditions leave it."""
    return kept_domain(block)


def build_nest(block: Block, part: Part, outer: Sequence[For]) -> tuple[Stmt, list[Var]]:
    """Perfectly nested serial loops, one per iteration variable in their order (those of one step included), that run a
    part of `block`; the part is cut to the domain by the predicate where it may go beyond. Returns the new loops, too."""
    algebra = Algebra(outer)
    loops: list[tuple[Var, Expr]] = []
    bindings: list[Expr] = []
    cuts: list[Expr] = []
    for i, (start, extent) in zip(block.iters, part, strict=True):
        start, extent = _clipped(algebra.simplify(start), algebra.simplify(extent), i)
        v = Var(i.var.name)
        binding = v + start if as_int(start) == 0 else start + v
        loops.append((v, extent))
        bindings.append(binding)
        if not algebra.at_most(ZERO, start):
            cuts.append(Le(ZERO, binding))
        if not algebra.at_most(start + extent, i.extent):
            cuts.append(Lt(binding, i.extent))
    predicate = conjunction([*own_conditions(block), *cuts])
    nest: Stmt = block.replace(bindings=tuple(bindings), predicate=predicate)
    for v, extent in reversed(loops):
        nest = For(v, ZERO, extent, nest)
    return nest, [v for v, _ in loops]


def _clipped(start: Expr, extent: Expr, i: IterVar) -> tuple[Expr, Expr]:
    """A constant range without what lies outside of the domain."""
    s, e, n = as_int(start), as_int(extent), as_int(i.extent)
    if s is None or e is None or n is None:
        return start, extent
    low, high = max(s, 0), min(s + e, n)
    return (ZERO + low, ZERO + (high - low)) if low < high else (start, extent)


def part_below(block: Block, inner: Sequence[For], algebra: Algebra) -> Part:
    """The part of its domain that a block runs while the loops `inner` do (reductions and unknown spans: whole)."""
    running = {f.var: f for f in effective(block, inner, algebra)}
    part: Part = []
    for i, e in zip(block.iters, block.bindings, strict=True):
        s = algebra.span(e, running)
        part.append((ZERO, i.extent) if s is None or i.kind == "reduce"
                    else fitted((s.lo, algebra.simplify(s.width + ONE)), i, algebra))
    return part


def fitted(range_: tuple[Expr, Expr], i: IterVar, algebra: Algebra) -> tuple[Expr, Expr]:
    """A range of an iteration variable: whole where it starts at 0 and does not end before the domain does, or where
    its extent would depend on a loop."""
    start, extent = algebra.simplify(range_[0]), algebra.simplify(range_[1])
    if any(v in algebra.ranges for v in vars_of(extent)):
        return ZERO, i.extent
    if as_int(start) == 0 and algebra.at_most(i.extent, extent):
        return ZERO, i.extent
    return start, extent


def invert(access: Access, block: Block, box: Box, algebra: Algebra) -> Part:
    """The part of the block's domain whose instances may touch `box` through `access`: a superset, the whole domain of a
    variable about which the index says nothing. Reductions are whole."""
    part = whole(block)
    if access.indices is None:
        return part
    domain = Algebra(domain_loops(block))
    found = _Constraints(domain, algebra, {i.var for i in block.iters})
    for index, start, extent in zip(access.indices, box.start, box.extent, strict=True):
        found.constrain(index, start, extent)
    found.join_divisions()
    for k, i in enumerate(block.iters):
        if i.kind == "spatial" and i.var in found.ranges:
            part[k] = fitted(found.ranges[i.var], i, algebra)
    return part


class _Constraints:
    """Ranges of iteration variables that follow from ranges of index expressions."""

    def __init__(self, domain: Algebra, outer: Algebra, own: set[Var]) -> None:
        self.domain, self.outer, self.own = domain, outer, own
        self.ranges: dict[Var, tuple[Expr, Expr]] = {}
        self.quotients: dict[tuple[Expr, int], tuple[Expr, Expr]] = {}
        self.remainders: dict[tuple[Expr, int], tuple[Expr, Expr]] = {}

    def constrain(self, index: Expr, start: Expr, extent: Expr) -> None:
        """`index` lies in start .. start + extent - 1."""
        index = self.domain.simplify(index)
        form = affine_of(index, self.domain.known.forms)
        terms = [(m[0], c) for m, c in form.terms.items() if m and len(m) == 1]
        if len(terms) != sum(1 for m in form.terms if m) or not terms:
            return
        start = start - form.const
        if len(terms) == 1:
            self._one(*terms[0], start, extent)
            return
        terms.sort(key=lambda t: -abs(t[1]))
        (a, k), rest = terms[0], terms[1:]
        lo = sum_ = ZERO
        for b, c in rest:
            sum_ = sum_ + b * c
        least, most = self.domain.known.interval(self.domain.simplify(sum_))
        n = as_int(self.outer.simplify(extent))
        if k <= 0 or least is None or most is None or n is None:
            return
        lo = start - least
        if most - least >= k:  # the digits overlap: a window
            steps = (n - 1 + most - least) // k + 1
            self._one(a, 1, (start - most + (k - 1)) // k, ZERO + steps)
            return
        _first, last = self.outer.modulo(self.outer.simplify(lo), k)
        steps = (last + n - 1) // k + 1
        self._one(a, 1, lo // k, ZERO + steps)
        if steps == 1:
            self.constrain(sum_, lo % k + least, ZERO + n)

    def _one(self, a: Expr, c: int, start: Expr, extent: Expr) -> None:
        """`a * c` lies in the range."""
        if c < 0:
            start, c = ZERO - (start + extent - 1), -c
        if c > 1:
            n = as_int(self.outer.simplify(extent))
            if n is None:
                return
            start, extent = (start + (c - 1)) // c, ZERO + ((n - 1) // c + 1)
        k = as_int(a.b) if isinstance(a, FloorDiv | FloorMod) else None
        if isinstance(a, Var) and a in self.own:
            old = self.ranges.get(a)
            if old is None or (as_int(self.outer.simplify(extent)) or 1 << 60) < (
                    as_int(self.outer.simplify(old[1])) or 1 << 60):
                self.ranges[a] = start, extent
        elif isinstance(a, FloorDiv) and k is not None:
            self.quotients[a.a, k] = start, extent
        elif isinstance(a, FloorMod) and k is not None:
            self.remainders[a.a, k] = start, extent

    def join_divisions(self) -> None:
        """x // k and x % k give x; (x // j) % k and x // (j * k) give x // j first."""
        for (x, k), range_ in list(self.remainders.items()):
            if isinstance(x, FloorDiv) and (j := as_int(x.b)) is not None and (x.a, j * k) in self.quotients:
                self.quotients[x.a, j] = self._joined(self.quotients[x.a, j * k], range_, k)
        best: dict[Expr, tuple[int, tuple[Expr, Expr]]] = {}
        for (x, k), (q, n) in self.quotients.items():
            range_ = self._joined((q, n), self.remainders.get((x, k)), k)
            size = as_int(self.outer.simplify(range_[1])) or 1 << 60
            if x not in best or size < best[x][0]:
                best[x] = size, range_
        self.quotients, self.remainders = {}, {}
        for x, (_, range_) in best.items():
            self.constrain(x, *range_)
        if self.quotients:
            self.join_divisions()

    def _joined(self, quotient: tuple[Expr, Expr], remainder: tuple[Expr, Expr] | None, k: int) -> tuple[Expr, Expr]:
        q, n = quotient
        if remainder is not None and as_int(self.outer.simplify(n)) == 1:
            m, w = remainder
            size = as_int(self.outer.simplify(w))
            if size is not None and size <= k:
                return q * k + m, w
        return q * k, n * k


# ---- places ------------------------------------------------------------------------------------------------------------
def insert(program: Program, parent: Stmt | None, choose: Callable[[tuple[Stmt, ...]], int], new: Stmt) -> Program:
    """The program with `new` among the statements of the body of `parent` (None: of the program), before the statement
    whose position `choose` gives."""
    if parent is None:
        return program.replace(body=_inside(program.body, choose, new))
    assert isinstance(parent, For)
    path = path_to(program.body, parent)
    result: Stmt = parent.replace(body=_inside(parent.body, choose, new))
    for above, child in zip(reversed(path[:-1]), reversed(path[1:]), strict=True):
        result = above.map(lambda c, old=child, now=result: now if c is old else c)  # type: ignore[misc]
    return program.replace(body=result)


def _inside(body: Stmt, choose: Callable[[tuple[Stmt, ...]], int], new: Stmt) -> Stmt:
    if isinstance(body, Allocate | Let):
        return body.replace(body=_inside(body.body, choose, new))
    parts = statements(body) if not (isinstance(body, Seq) and not body.stmts) else ()
    k = choose(parts)
    return seq(*parts[:k], new, *parts[k:])
