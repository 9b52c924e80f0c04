"""Which instances of a nest must keep their order: dependences as systems of linear inequalities.

In: a program, a perfect nest of its loops, and the order in which its steps shall run, as expressions of its variables. Out:
None if every two steps that depend on each other keep their order, else what goes wrong, with two steps where there are
such. A dependence is violated if for some l and r these have a point: two steps x, x' equal before loop l with x[l] < x'[l],
that touch one element, and whose places in the new order are equal before row r, and turned round in row r.

Divisions and remainders by constants, minima and maxima in bounds are exact; whatever else an index holds is taken to
have any value, so that too much is refused, never too little.
"""
from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from tilewright.loop.affine import affine_of
from tilewright.loop.ir import (
    ZERO,
    Block,
    Buffer,
    Expr,
    FloorDiv,
    FloorMod,
    For,
    Le,
    Lt,
    Max,
    Min,
    Program,
    Span,
    Var,
    as_int,
)
from tilewright.loop.substitute import substitute
from tilewright.tensor.regions import Access, accesses, conjuncts, effective, loops_between, loops_inside, outputs
from tilewright.tensor.schedule.inequalities import ONE, Row, plus, solve
from tilewright.tensor.schedule.proofs import reads_elsewhere
from tilewright.tensor.schedule.state import blocks_under, loops_around
from tilewright.tensor.span import Algebra


@dataclass
class Violation:
    """Why an order is not legal; `steps`: two that would change places, as text ("" where none are known)."""
    why: str
    steps: str = ""

    def __str__(self) -> str:
        return f"{self.why}: {self.steps}" if self.steps else self.why


def order_violation(program: Program, nest: Sequence[For], order: Sequence[Expr],
                    excused: Callable[[Buffer], bool] = lambda _: False) -> Violation | None:
    """What is wrong with running the steps of a nest by increasing `order` (expressions of the nest's variables, compared
    from the first on), or None. Different blocks may touch elements of an `excused` buffer in any order."""
    below = blocks_under(nest[-1])
    for b in below:
        found = _reduction_violation(program, b, nest, order)
        if found is not None:
            return found
    for b in below:
        for c in below:
            found = _violation(program, b, c, nest, order, excused)
            if found is not None:
                return found
    return None


def carried_dependence(program: Program, loop: For, users: Sequence[Block], buffer: Buffer) -> str | None:
    """How different steps of a loop (within one step of those around it) touch the same element of a buffer, one of them
    to write it: two such steps, or "" where none is known; None if none do."""
    for b in users:
        for c in users:
            mine, theirs = ([(a, k) for k, part in enumerate(accesses(x)) for a in part if a.buffer is buffer]
                            for x in (b, c))
            for a, writes in mine:
                for o, also in theirs:
                    if not writes and not also:
                        continue
                    pair = _Pair(program, [loop], (b, c))
                    pair.same_element(a, o)
                    point = pair.turned([ZERO - loop.var])
                    if point is not None:
                        return _shared(b, c, bool(writes), bool(also), point, loop)
    return None


def comes_earlier(program: Program, loop: For, first: Block, later: Block, buffer: Buffer) -> bool:
    """Whether, in some step of a loop, `later` touches an element of a buffer that `first` touches in a later step, one of
    them to write it."""
    mine, theirs = ([(a, k) for k, part in enumerate(accesses(x)) for a in part if a.buffer is buffer]
                    for x in (later, first))
    for a, writes in mine:
        for o, also in theirs:
            if writes or also:
                pair = _Pair(program, [loop], (later, first))
                pair.same_element(a, o)
                if pair.turned([ZERO - loop.var]) is not None:
                    return True
    return False


def _shared(b: Block, c: Block, writes: bool, also: bool, point: dict[Hashable, int] | bool, loop: For) -> str:
    """Two steps that touch one element, as text; "" where they are not known."""
    if isinstance(point, bool):
        return ""
    first, second = (f"{loop.var.name} = {point.get((loop.var, k), 0)}" for k in (0, 1))
    if b is c and writes and also:
        return f"written by block {b.name} when {first} and when {second}"
    return f"block {b.name} {_DOES[writes]} it when {first}, block {c.name} {_DOES[also]} it when {second}"


_DOES = {True: "writes", False: "reads"}


def _violation(program: Program, b: Block, c: Block, nest: Sequence[For], order: Sequence[Expr],
               excused: Callable[[Buffer], bool]) -> Violation | None:
    """A step's `b` must run before a later step's `c`, and does not."""
    if b is c and reads_elsewhere(b) is None:
        return None  # each element is stored by one instance, or by the steps of a reduction, which commute
    for buffer in dict.fromkeys([*outputs(b), *outputs(c)]):
        mine, theirs = ([(a, k) for k, part in enumerate(accesses(x)) for a in part if a.buffer is buffer] for x in (b, c))
        for a, writes in mine:
            for o, also in theirs:
                if not writes and not also:
                    continue
                pair = _Pair(program, nest, (b, c))
                pair.same_element(a, o)
                point = pair.turned(order)
                if point is not None and b is not c and excused(buffer):
                    continue
                if point is not None:
                    return Violation(f"block {b.name} {_DOES[bool(writes)]} elements of {buffer.name} before block {c.name} "
                                     f"{_DOES[bool(also)]} them, and would come second", pair.steps(point, nest))
    return None


def _reduction_violation(program: Program, b: Block, nest: Sequence[For], order: Sequence[Expr]) -> Violation | None:
    """The step that starts a reduction must stay the first of its element."""
    if b.init is None:
        return None
    around = loops_around(program, b)
    inside = around[next(k for k, f in enumerate(around) if f.var is nest[0].var):]
    algebra = Algebra(around)
    running = effective(b, inside, algebra)
    if not algebra.determine(list(b.bindings), {f.var: f for f in running}):
        return Violation(f"block {b.name} may run an instance more than once: its sums would be started in between")
    for a in accesses(b)[1]:
        pair = _Pair(program, nest, (b, b))
        pair.same_element(a, a)
        pair.starts()
        point = pair.turned(order)
        if point is not None:
            return Violation(f"the first step of the reduction of block {b.name} would no longer come first",
                             pair.steps(point, nest))
    return None


class _Pair:
    """Two steps of a nest, and an instance of a block in each: the unknowns are the loops' variables of both sides."""

    def __init__(self, program: Program, nest: Sequence[For], pair: tuple[Block, Block]) -> None:
        self.rows: list[Row] = []
        self.equal: list[Row] = []
        self.nest, self.pair = nest, pair
        self.known: set[Hashable] = set()
        self.fresh = 0
        around = loops_around(program, nest[0])
        self.sides: tuple[dict[Var, Hashable], dict[Var, Hashable]] = ({}, {})
        self.feasible = True
        for p in (*[f.var for f in around], *[p for p in program.params if isinstance(p, Var)]):
            for side in self.sides:
                side[p] = p
        for f in around:
            self._range(f, 0)
        for k, block in enumerate(pair):
            for f in [*nest, *loops_between(nest[-1].body, block)]:
                self.sides[k][f.var] = (f.var, k)
                self._range(f, k)
            bound = dict(zip([i.var for i in block.iters], block.bindings, strict=True))
            for f in loops_inside(block):
                self.sides[k][f.var] = (f.var, k)
                self._range(f.replace(start=substitute(f.start, bound), extent=substitute(f.extent, bound)), k)
            for cond in conjuncts(block.predicate):
                self._holds(substitute(cond, bound), k)

    # ---- what is known -----------------------------------------------------------------------------------------------
    def _range(self, f: For, k: int) -> None:
        v: Row = {self.sides[k][f.var]: 1, ONE: 0}
        self._above(v, f.start, k)
        self._below(v, f.start + f.extent - 1, k)

    def _above(self, v: Row, e: Expr, k: int) -> None:
        """v >= e."""
        e = Algebra(()).simplify(e)
        if isinstance(e, Max):
            self._above(v, e.a, k)
            self._above(v, e.b, k)
            return
        r = self.linear(e, k)
        if r is not None:
            self.rows.append(plus(v, r, -1))

    def _below(self, v: Row, e: Expr, k: int) -> None:
        """v <= e."""
        e = Algebra(()).simplify(e)
        if isinstance(e, Min):
            self._below(v, e.a, k)
            self._below(v, e.b, k)
            return
        r = self.linear(e, k)
        if r is not None:
            self.rows.append(plus(r, v, -1))

    def _holds(self, cond: Expr, k: int) -> None:
        if isinstance(cond, Lt | Le):
            r = self.linear(cond.b - cond.a, k)
            if r is not None:
                self.rows.append(plus(r, {ONE: -1}) if isinstance(cond, Lt) else r)

    def linear(self, e: Expr, k: int) -> Row | None:
        """An expression on side `k` as a row; quotients become unknowns with rows that define them. None if it is none."""
        out: Row = {ONE: 0}
        for monomial, c in affine_of(Algebra(()).simplify(e), {}).terms.items():
            part: Row | None = {ONE: 1}
            if len(monomial) == 1:
                part = self._atom(monomial[0], k)
            elif monomial:
                part = None
            if part is None:
                return None
            out = plus(out, part, c)
        return out

    def _atom(self, a: Expr, k: int) -> Row | None:
        if isinstance(a, Var):
            if a not in self.sides[k]:
                return None
            key = self.sides[k][a]
            if key is a and key not in self.known and isinstance(a.span, Span):
                self.known.add(key)
                self.rows.append({key: 1, ONE: -a.span.least})
                if a.span.most is not None:
                    self.rows.append({key: -1, ONE: a.span.most})
            return {key: 1, ONE: 0}
        if isinstance(a, FloorDiv | FloorMod):
            c, inner = as_int(a.b), self.linear(a.a, k)
            if c is None or c <= 0 or inner is None:
                return None
            q: Row = {(a.a, c, k): 1, ONE: 0}
            if (a.a, c, k) not in self.known:
                self.known.add((a.a, c, k))
                self.rows.append(plus(inner, q, -c))
                self.rows.append(plus({kk: -n for kk, n in plus(inner, q, -c).items()}, {ONE: c - 1}))
            return q if isinstance(a, FloorDiv) else plus(inner, q, -c)
        return None

    # ---- questions ---------------------------------------------------------------------------------------------------
    def same_element(self, a: Access, o: Access) -> None:
        """The first side's instance touches by `a` the element that the second's touches by `o`."""
        if a.indices is None or o.indices is None:
            return
        bound = [dict(zip([i.var for i in b.iters], b.bindings, strict=True)) for b in self.pair]
        for x, y in zip(a.indices, o.indices, strict=True):
            left, right = self.linear(substitute(x, bound[0]), 0), self.linear(substitute(y, bound[1]), 1)
            if left is not None and right is not None:
                self.equal.append(plus(left, right, -1))

    def starts(self) -> None:
        """The first side's instance is the first of its reduction, the second's is not."""
        later: Row = {ONE: -1}
        b = self.pair[0]
        for i, e in zip(b.iters, b.bindings, strict=True):
            if i.kind == "reduce":
                first, other = self.linear(e, 0), self.linear(e, 1)
                if first is not None:
                    self.equal.append(first)
                if other is not None:
                    later = plus(later, other)
        self.rows.append(later)

    def turned(self, order: Sequence[Expr]) -> dict[Hashable, int] | bool | None:
        """A point at which the first side's step comes first now, and second in the new order; True where one may be."""
        now: list[Row] = []
        for f in self.nest:
            now.append({(f.var, 1): 1, (f.var, 0): -1, ONE: 0})
        new = []
        for e in order:
            left, right = self.linear(e, 0), self.linear(e, 1)
            if left is None or right is None:
                return True
            new.append(plus(right, left, -1))
        for before in range(len(now)):
            first = plus(now[before], {ONE: -1})
            for after in range(len(new)):
                second = plus({k: -c for k, c in new[after].items()}, {ONE: -1})
                found = solve([*self.rows, first, second], [*self.equal, *now[:before], *new[:after]])
                if found is not False:
                    return found
        return None

    def steps(self, point: dict[Hashable, int] | bool, nest: Sequence[For]) -> str:
        """The two steps of a point, as text."""
        if isinstance(point, bool):
            return ""
        here, there = (", ".join(f"{f.var.name} = {point.get((f.var, k), 0)}" for f in nest) for k in (0, 1))
        return f"{here} before {there}"
