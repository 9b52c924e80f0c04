"""partition_loops: conditions leave the hot loop; remainders and borders become loops of their own.

In: flat loops with the predicates of split remainders and the guards of borders (If, Guard, Select whose conditions
compare integers that are affine in loop variables). Out: loops split where the truth of such a condition changes,
each piece with the conditions that are decided in it gone.

    for owo in 0..4:                              for owo in 0..3:
      for owi in unrolled 0..14:           →        for owi in unrolled 0..14: S
        if owo*14 + owi < 52: S                   for owi in unrolled 0..10: S[owo := 3]

A condition over several variables is decided outside in: the outer loop is split into where it holds for all values of
the inner ones, where it fails for all, and the mixed rest, in which the inner loop is split in turn. A parallel loop
stays one loop: its body is versioned, the hot version chosen by a test of the variable (or of `f // n`, `f % n` of it; that
of a quotient by a symbolic n too, where two loops of which one is symbolic have been fused).
A remainder of a vectorized loop becomes vectors of powers of two. Growth is limited by `GROWTH_LIMIT`.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tilewright.core.node import Node, transform, walk
from tilewright.loop.ir import (
    FALSE,
    TRUE,
    Allocate,
    And,
    Compare,
    Const,
    Eq,
    Expr,
    FloorDiv,
    FloorMod,
    For,
    Guard,
    If,
    Le,
    Let,
    Lt,
    Ne,
    Not,
    Or,
    Program,
    Select,
    Seq,
    Stmt,
    Var,
    as_int,
    const,
    seq,
)
from tilewright.loop.lower.linear import Range, comparisons, from_linear, interval, is_scalar_int, linear, loop_range
from tilewright.loop.substitute import fresh_copy, substitute

GROWTH_LIMIT = 1024
"""Innermost statements, counted after unrolling, that partitioning may add to a program."""

RARE = 4
"""How many times larger than its statements with changing conditions a loop's body is, if it is not to be split for them."""

_SPLITTABLE = ("serial", "unrolled", "vectorized")


def partition_loops(program: Program) -> Program:
    """Loops split so that affine conditions are decided outside the hot part."""
    if not any(isinstance(n, If | Guard | Select) for n in walk(program.body)):
        return program
    return program.replace(body=_Partitioner(GROWTH_LIMIT).stmt(program.body))


@dataclass(slots=True)
class _Partitioner:
    """One walk, outside in. `ranges` are inclusive ranges of the variables in scope where they are known constants;
    `extents` those of loops from 0 whose number of turns is symbolic."""

    budget: int
    ranges: dict[Var, Range] = field(default_factory=dict)
    extents: dict[Var, Expr] = field(default_factory=dict)
    conditional: dict[int, tuple[Node, bool]] = field(default_factory=dict)

    # ---- statements ----
    def stmt(self, s: Stmt) -> Stmt:
        if not self.has_condition(s):
            return s
        match s:
            case Seq(stmts):
                return seq([self.stmt(t) for t in stmts])
            case For():
                return self.loop(s)
            case If(cond, then, otherwise):
                c = self.decide(cond)
                if isinstance(c, Const):
                    return self.stmt(then) if c.value else self.stmt(otherwise) if otherwise else Seq(())
                then, otherwise = self.stmt(then), otherwise and self.stmt(otherwise)
                if _empty(then) and (otherwise is None or _empty(otherwise)):
                    return Seq(())
                return s.replace(cond=c, then=then, otherwise=otherwise)
            case Let(var, value, body):
                value = self.expr(value)
                if is_scalar_int(value) and (r := interval(value, self.ranges)) is not None:
                    self.ranges[var] = r
                return s.replace(value=value, body=self.stmt(body))
        return s.map(lambda c: self.stmt(c) if isinstance(c, Stmt) else self.expr(c))

    def loop(self, s: For) -> Stmt:
        span = loop_range(s, self.ranges)
        if span is None:
            if as_int(s.start) == 0 and s.kind in ("parallel", "serial"):
                self.extents[s.var] = s.extent
                return s.replace(body=self.stmt(self.name_atoms(s.var, s.body)))
            return s.replace(body=self.stmt(s.body))
        low, high = span
        if high < low:
            return Seq(())
        constant = as_int(s.start) is not None and as_int(s.extent) is not None
        self.ranges[s.var] = span
        if s.kind == "parallel" or not constant or s.kind not in _SPLITTABLE:
            body = self.version(s.var, s.body, s.var) if constant and s.kind == "parallel" else s.body
            body = self.stmt(self.name_atoms(s.var, body))
            return Seq(()) if _empty(body) else s.replace(body=body)
        pieces = self.pieces(s.var, s.body)
        if s.kind == "serial" and len(pieces) > 1 and self.is_rare(s.var, s.body):
            return s.replace(body=self.each_versioned(s.var, s.body))
        if s.kind == "serial":
            s = s.replace(body=self.name_atoms(s.var, s.body))
        if s.kind != "unrolled":
            pieces = self.afford(pieces, s.body)
        done: dict[Range, Stmt] = {}
        for piece in sorted(pieces, key=_length, reverse=True):  # the hot one first: it may spend the budget
            self.ranges[s.var] = span
            new = self.piece(fresh_copy(s) if done else s, *piece)
            if done and s.kind != "unrolled":
                self.budget -= _size(new)
            done[piece] = new
        return seq([done[p] for p in pieces if not _empty(done[p])])

    def piece(self, s: For, low: int, high: int) -> Stmt:
        """The loop over low..high alone."""
        if low == high:
            return self.stmt(substitute(s.body, {s.var: const(low, s.var)}))
        full = (low, high) == self.ranges.get(s.var)
        self.ranges[s.var] = (low, high)
        body = self.stmt(s.body)
        if _empty(body):
            return body
        if s.kind == "vectorized" and not full:
            return _powers_of_two(s.replace(body=body), low, high)
        return s.replace(start=const(low, s.var), extent=const(high - low + 1, s.extent), body=body)

    def version(self, v: Var, body: Stmt, loop: Var) -> Stmt:
        """`body` behind tests of `v` (`loop`, or a function of it): the largest piece first, then the others."""
        pieces = self.afford(self.pieces(v, body), body)
        if len(pieces) == 1:
            return body
        span = self.ranges[v]
        hot = max(pieces, key=_length)
        hot_body = self.under(v, hot, body, loop)
        out: Stmt | None = None
        for low, high in reversed([p for p in pieces if p is not hot]):
            copy = self.under(v, (low, high), fresh_copy(body), loop)
            self.budget -= _size(copy)
            out = copy if out is None else If(v < const(high + 1, v), copy, out)
        self.ranges[v] = span
        tests = [const(hot[0], v) <= v] * (hot[0] > span[0]) + [v < const(hot[1] + 1, v)] * (hot[1] < span[1])
        return If(And(*tests) if len(tests) == 2 else tests[0], hot_body, out)

    def is_rare(self, v: Var, body: Stmt) -> bool:
        """Whether `body` is a sequence of which only a small part has conditions that change with `v`: the whole is then not
        written several times."""
        parts = _sequence(body)
        return len(parts) > 1 and RARE * sum(_size(p) for p in parts if len(self.pieces(v, p)) > 1) <= _size(body)

    def each_versioned(self, v: Var, body: Stmt) -> Stmt:
        """The statements of a sequence, those whose conditions change with `v` behind tests of it."""
        if isinstance(body, Allocate):
            return body.replace(body=self.each_versioned(v, body.body))
        if isinstance(body, Seq):
            return seq([self.each_versioned(v, t) for t in body.stmts])
        return self.stmt(self.version(v, body, v) if len(self.pieces(v, body)) > 1 else body)

    def under(self, v: Var, piece: Range, body: Stmt, loop: Var) -> Stmt:
        """`body` for the values of one piece; other functions of the loop's variable are tested inside."""
        self.ranges[v] = piece
        if piece[0] == piece[1]:
            body = substitute(body, {v: const(piece[0], v)})
        return self.stmt(self.name_atoms(loop, body))

    def name_atoms(self, v: Var, body: Stmt) -> Stmt:
        """Versions of `body` by the quotients and remainders of `v` that its conditions mention."""
        inner = _defined(body)
        atoms: dict[Expr, None] = {}
        for c in self.conditions(body):
            for atom in _atoms(c):
                if isinstance(atom, FloorDiv | FloorMod):
                    names = {n for n in walk(atom) if isinstance(n, Var)}
                    if v in names and not names & inner and self.range_of(atom) is not None:
                        atoms[atom] = None
        for atom in atoms:
            name = Var(v.name, atom.dtype)
            span = self.range_of(atom)
            if span is None or span[0] == span[1]:
                continue
            self.ranges[name] = span
            renamed = transform(body, lambda n, atom=atom, name=name: name if n == atom else n)  # type: ignore[misc]
            versioned = self.version(name, renamed, v)
            if versioned is not renamed:
                return Let(name, atom, versioned)
        return body

    def range_of(self, e: Expr) -> Range | None:
        """The range of a quotient or remainder; also of `f // n` where f counts to a multiple of the symbolic n."""
        found = interval(e, self.ranges)
        if found is None and isinstance(e, FloorDiv) and isinstance(e.a, Var) and e.a in self.extents:
            whole, rest = linear(self.extents[e.a])
            part, over = linear(e.b)
            times = {whole.get(t, 0) // n for t, n in part.items()}
            if rest == over == 0 and len(times) == 1 and min(times) > 0 and whole == {
                    t: n * min(times) for t, n in part.items()}:
                return 0, min(times) - 1
        return found

    # ---- where a condition changes ----
    def pieces(self, v: Var, body: Stmt) -> list[Range]:
        """The range of `v` cut where a condition in `body` begins or ceases to hold for all inner values."""
        low, high = self.ranges[v]
        inner = self.inner_ranges(body)
        cuts: set[int] = set()
        for c in self.conditions(body):
            for comparison in comparisons(c):
                cuts.update(_changes(comparison, v, inner))
        edges = [low, *sorted(x for x in cuts if low < x <= high), high + 1]
        return [(a, b - 1) for a, b in pairwise(edges)]

    def inner_ranges(self, body: Stmt) -> dict[Var, Range]:
        """Ranges of the variables that loops in `body` define; of outer ones only those of a single value."""
        inner = {x: r for x, r in self.ranges.items() if r[0] == r[1]}
        for n in walk(body):
            if isinstance(n, For) and (r := loop_range(n, inner)) is not None:
                inner[n.var] = r
        return inner

    def conditions(self, s: Node) -> Iterator[Expr]:
        stack = [s]
        while stack:
            n = stack.pop()
            if not self.has_condition(n):
                continue
            if isinstance(n, If | Guard | Select):
                yield n.cond
            stack.extend(n.children())

    def has_condition(self, n: Node) -> bool:
        if n.by_identity:
            return False
        found = self.conditional.get(id(n))
        if found is None:
            yes = isinstance(n, If | Guard | Select) or any(self.has_condition(c) for c in n.children())
            found = self.conditional[id(n)] = (n, yes)
        return found[1]

    # ---- conditions ----
    def expr(self, e: Any) -> Any:
        if not self.has_condition(e):
            return e
        if isinstance(e, Guard | Select):
            c = self.decide(e.cond)
            if isinstance(c, Const):
                return self.expr(e.a if c.value else e.b)
            return e.replace(cond=c, a=self.expr(e.a), b=self.expr(e.b))
        return e.map(self.expr)

    def decide(self, c: Expr) -> Expr:
        """`c` with the comparisons that are decided by the ranges in force taken out."""
        match c:
            case And(a, b):
                a, b = self.decide(a), self.decide(b)
                if a == FALSE or b == FALSE:
                    return FALSE
                return b if a == TRUE else a if b == TRUE else c.replace(a=a, b=b)
            case Or(a, b):
                a, b = self.decide(a), self.decide(b)
                if a == TRUE or b == TRUE:
                    return TRUE
                return b if a == FALSE else a if b == FALSE else c.replace(a=a, b=b)
            case Not(a):
                a = self.decide(a)
                return FALSE if a == TRUE else TRUE if a == FALSE else c.replace(a=a)
            case Compare() if is_scalar_int(c.a):
                r = interval(c.a - c.b, self.ranges)
                if r is not None and (truth := _truth(c, *r)) is not None:
                    return TRUE if truth else FALSE
        return c

    def afford(self, pieces: list[Range], body: Stmt) -> list[Range]:
        """As many pieces as the budget for growth allows; the smallest neighbours are merged first."""
        size = _size(body)
        while len(pieces) > 1 and size * (len(pieces) - 1) > self.budget:
            pieces = _merge_smallest(pieces)
        return pieces


def _sequence(body: Stmt) -> tuple[Stmt, ...]:
    """The statements of a body, through allocations."""
    while isinstance(body, Allocate):
        body = body.body
    return tuple([p for t in body.stmts for p in _sequence(t)]) if isinstance(body, Seq) else (body,)


def _length(piece: Range) -> int:
    return piece[1] - piece[0]


def _truth(c: Compare, low: int, high: int) -> bool | None:
    """The truth of a comparison whose `a - b` lies in low..high."""
    match c:
        case Lt():
            return True if high < 0 else False if low >= 0 else None
        case Le():
            return True if high <= 0 else False if low > 0 else None
        case Eq():
            return True if low == high == 0 else False if low > 0 or high < 0 else None
        case Ne():
            return False if low == high == 0 else True if low > 0 or high < 0 else None
    return None


def _changes(c: Compare, v: Var, inner: dict[Var, Range]) -> list[int]:
    """The values of `v` at which `c` begins or ceases to be true, or false, for all values of the inner variables."""
    terms, constant = linear(c.a - c.b)
    k = terms.pop(v, 0)
    if k == 0:
        return []
    rest = interval(from_linear(terms.items(), constant, c.a), inner)
    if rest is None:
        return []
    low, high = rest
    if isinstance(c, Eq | Ne):
        bounds = [(low, 0), (low, 1), (high, 0), (high, 1)]
    else:
        first = 0 if isinstance(c, Lt) else 1
        bounds = [(low, first), (high, first)]
    # k*v + edge >= limit changes at v = ceil((limit - edge) / k) for k > 0, and one past floor(…) for k < 0
    return [-((edge - limit) // k) if k > 0 else (limit - edge) // k + 1 for edge, limit in bounds]


def _atoms(c: Expr) -> Iterator[Expr]:
    for comparison in comparisons(c):
        yield from linear(comparison.a - comparison.b)[0]


def _defined(body: Stmt) -> set[Var]:
    return {n.var for n in walk(body) if isinstance(n, For | Let)}


def _merge_smallest(pieces: list[Range]) -> list[Range]:
    """Two neighbours become one: the pair with the smallest larger part."""
    def weight(k: int) -> int:
        return max(pieces[k][1] - pieces[k][0], pieces[k + 1][1] - pieces[k + 1][0])

    k = min(range(len(pieces) - 1), key=weight)
    return [*pieces[:k], (pieces[k][0], pieces[k + 1][1]), *pieces[k + 2:]]


def _powers_of_two(s: For, low: int, high: int) -> Stmt:
    out: list[Stmt] = []
    while low <= high:
        lanes = 1 << ((high - low + 1).bit_length() - 1)
        copy = fresh_copy(s) if out else s
        if lanes == 1:
            out.append(substitute(copy.body, {copy.var: const(low, s.var)}))
        else:
            out.append(copy.replace(start=const(low, s.var), extent=const(lanes, s.extent)))
        low += lanes
    return seq(out)


def _size(s: Node) -> int:
    """Innermost statements after unrolling."""
    if not isinstance(s, Stmt):
        return 0
    inner = sum([_size(c) for c in s.children()])
    if isinstance(s, For) and s.kind == "unrolled":
        return inner * (as_int(s.extent) or 1)
    return inner or 1


def _empty(s: Stmt) -> bool:
    return isinstance(s, Seq) and not s.stmts
