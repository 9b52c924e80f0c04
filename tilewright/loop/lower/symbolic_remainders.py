"""symbolic_remainders: loops whose trip count is only known at run time get whole tiles and a ladder of smaller ones.

In: flat loops with the predicates of splits of symbolic extents. Out: the loop over whole tiles without these predicates,
then what is left in tiles of constant sizes, so that accumulators stay in registers whatever the size is.

    for o in 0..(n + 7) // 8:                       for o in 0..n // 8:
        for i in unrolled 0..8:                         for i in unrolled 0..8: S(o * 8 + i)
            if o * 8 + i < n: S(o * 8 + i)     →    let r = n % 8
                                                    if r >= 4: for i in unrolled 0..4: S(n // 8 * 8 + i)
                                                    if r % 4 >= 2: for i in unrolled 0..2: S(n - r % 4 + i)
                                                    if r % 2 >= 1: S(n - 1)

A parallel loop stays one loop: its body is versioned by a test of the variable (or of `f // n`, `f % n` of it). Where the
pieces of the ladder would be too much code, rows are done one by one. Other conditions that hold from the first to some
symbolic step leave the loop without them and a rest with them. Programs whose extents are constants are not touched:
partition_loops, which follows, is for these.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tilewright.core.node import Node, transform, walk
from tilewright.loop.bounds import prove
from tilewright.loop.ir import (
    TRUE,
    ZERO,
    And,
    Call,
    Compare,
    Expr,
    FloorDiv,
    FloorMod,
    For,
    Guard,
    If,
    Le,
    Let,
    Load,
    Lt,
    Or,
    Program,
    Select,
    Stmt,
    Store,
    Var,
    as_int,
    const,
    maximum,
    minimum,
    seq,
)
from tilewright.loop.lower.linear import comparisons, from_linear, is_scalar_int, linear
from tilewright.loop.simplify import simplify
from tilewright.loop.substitute import fresh_copy, substitute

GROWTH_LIMIT = 1024
"""Innermost statements, counted after unrolling, that ladders may add to a program."""


def symbolic_remainders(program: Program) -> Program:
    """Loops of symbolic extent split so that affine conditions are decided in their hot part."""
    if not any(isinstance(n, For) and as_int(n.extent) is None for n in walk(program.body)):
        return program
    return program.replace(body=_Remainders(GROWTH_LIMIT).stmt(program.body))


@dataclass(frozen=True)
class _Condition:
    """`step * v + sum(coefficient * variable) < limit`, the variables those of loops inside, outermost digit first."""
    compare: Compare
    step: int
    digits: tuple[tuple[int, For], ...]
    limit: Expr

    @property
    def shape(self) -> tuple[tuple[int, int], ...]:
        """(coefficient, extent) of the digits."""
        return tuple([(c, as_int(f.extent) or 0) for c, f in self.digits])

    @property
    def whole(self) -> Expr:
        """The first value of v for which the condition does not hold for all inner values."""
        most = sum([c * (n - 1) for c, n in self.shape if c > 0])
        return simplify((self.limit - most + (self.step - 1)) // self.step)

    @property
    def is_split(self) -> bool:
        """Whether the digits are those of 0 … step-1, each once."""
        size = self.step
        for c, n in self.shape:
            if c <= 0 or c * n != size:
                return False
            size = c
        return size == 1


class _Remainders:
    """One walk, outside in; `budget` is what copies may still add."""

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def stmt(self, s: Stmt) -> Stmt:
        if isinstance(s, For) and s.kind in ("serial", "parallel") and as_int(s.extent) is None and as_int(s.start) == 0:
            return self.loop(s)
        return s.map(lambda c: self.stmt(c) if isinstance(c, Stmt) else c)

    def loop(self, s: For) -> Stmt:
        if s.kind == "parallel":
            return s.replace(body=self.version(s))
        found = _conditions(s.var, s.body)
        if not found:
            return s.replace(body=self.stmt(s.body))
        first = found[0]
        end = simplify((first.limit + (first.step - 1)) // first.step)
        if _one_split(found) and end == simplify(s.extent):
            left = self.ladder(s.var, s.body, found)
            if left is not None:
                return seq(s.replace(extent=first.whole, body=self.stmt(_holding(s.body, found))), left)
        whole: Expr = first.whole
        for c in found[1:]:
            if c.whole != first.whole:
                whole = minimum(whole, c.whole)
        if not prove(Le(ZERO, whole)):
            whole = maximum(whole, ZERO)
        if not prove(Le(whole, s.extent)):
            whole = minimum(whole, s.extent)
        whole = simplify(whole)
        hot = s.replace(extent=whole, body=self.stmt(_holding(s.body, found)))
        self.budget -= _size(s.body)
        rest = fresh_copy(s)
        inner = _Remainders(0)  # small: no ladders in it
        return seq(hot, rest.replace(start=whole, extent=simplify(s.extent - whole), body=inner.stmt(rest.body)))

    def version(self, s: For) -> Stmt:
        """The body of a parallel loop, behind tests of its variable or of a quotient or remainder of it."""
        body = self.tested(s.var, s.extent, s.body)
        if body is not None:
            return body
        inside = {n.var for n in walk(s.body) if isinstance(n, For | Let)}
        for atom in _quotients(s.body, s.var):
            if {n for n in walk(atom) if isinstance(n, Var)} & inside:
                continue
            name = Var(s.var.name, atom.dtype)
            extent = atom.b if isinstance(atom, FloorMod) else simplify((s.extent + (atom.b - 1)) // atom.b)
            renamed = transform(s.body, lambda n, atom=atom, name=name: name if n == atom else n)  # type: ignore[misc]
            body = self.tested(name, extent, renamed)
            if body is not None:
                return Let(name, atom, body)
        return self.stmt(s.body)

    def tested(self, v: Var, extent: Expr, body: Stmt) -> Stmt | None:
        """`body` in two versions by whether `v`, below `extent`, has a whole tile; None where that cannot be told."""
        found = _conditions(v, body)
        if not found or not _one_split(found):
            return None
        first = found[0]
        if simplify((first.limit + (first.step - 1)) // first.step) != simplify(extent):
            return None
        left = self.ladder(v, body, found)
        return None if left is None else If(v < first.whole, self.stmt(_holding(body, found)), left)

    def ladder(self, v: Var, body: Stmt, found: list[_Condition]) -> Stmt | None:
        """What the whole tiles leave: tiles of half the size, a quarter, … each at most once. None if `v` is used otherwise
        than as the number of a tile."""
        first = found[0]
        step, body = first.step, _holding(body, found)
        if not _Rebase(v, found, Var("begin"), body).possible(body):
            return None
        left = Var("left")
        sizes = _sizes(first)
        if self.budget < sum([_size(self.piece(body, v, found, ZERO, n)) for n in sizes]):
            row = Var("row")
            sizes = []
            one = self.piece(body, v, found, first.limit - left + row, 1)
            out: list[Stmt] = [For(row, ZERO, left, self.stmt(one))]
        else:
            out = []
        for n in sizes:
            new = self.piece(body, v, found, first.limit - left % (2 * n), n)
            self.budget -= _size(new)
            out.append(If(const(n) <= left % (2 * n), self.stmt(new)))
        return Let(left, simplify(first.limit % step), seq(out))

    def piece(self, body: Stmt, v: Var, found: list[_Condition], base: Expr, size: int) -> Stmt:
        """`body` for the places base … base + size - 1: the loops over the digits become shorter."""
        extents: dict[Var, int] = {}
        for c in found:
            for k, f in c.digits:
                n = as_int(f.extent) or 0
                extents[f.var] = min(n, max(1, size // k))
        begin = Var("begin")
        short = _shortened(_Rebase(v, found, begin, body).stmt(body), extents)
        return Let(begin, base, fresh_copy(short))


def _sizes(c: _Condition) -> list[int]:
    """The powers of two below the tile's size, down to 1, of which every digit takes a whole part."""
    n = 1 << ((c.step - 1).bit_length() - 1) if c.step > 1 else 0
    out = []
    while n >= 1:
        out.append(n)
        n //= 2
    return out


def _one_split(found: list[_Condition]) -> bool:
    """Whether all conditions are the predicate of one split into a tile whose digits can be halved."""
    first = found[0]
    if any((c.step, c.shape, c.limit) != (first.step, first.shape, first.limit) for c in found) or not first.is_split:
        return False
    lower = [c for c, _ in first.shape]
    return first.step > 1 and all(c & (c - 1) == 0 for c in lower)


def _conditions(v: Var, body: Stmt) -> list[_Condition]:
    """The comparisons in `body` that hold for small `v` and cease to hold at a symbolic value."""
    loops = {n.var: n for n in walk(body) if isinstance(n, For)}
    inside = {*loops, *[n.var for n in walk(body) if isinstance(n, Let)]}
    out: dict[Compare, _Condition] = {}
    for c in _comparisons(body):
        if c not in out and isinstance(c, Lt | Le):
            found = _condition(c, v, loops, inside)
            if found is not None:
                out[c] = found
    return list(out.values())


def _condition(c: Lt | Le, v: Var, loops: dict[Var, For], inside: set[Var]) -> _Condition | None:
    terms, constant = linear(c.a - c.b)
    step = terms.pop(v, 0)
    if step <= 0:
        return None
    digits: list[tuple[int, For]] = []
    outer: list[tuple[Expr, int]] = []
    for atom, k in terms.items():
        names = {n for n in walk(atom) if isinstance(n, Var)}
        if not names & inside:
            if v in names:
                return None
            outer.append((atom, k))
        elif isinstance(atom, Var) and atom in loops and as_int(loops[atom].start) == 0 and as_int(loops[atom].extent):
            digits.append((k, loops[atom]))
        else:
            return None
    if not any(isinstance(n, Var) for atom, _ in outer for n in walk(atom)):
        return None
    limit = simplify(from_linear([(a, -k) for a, k in outer], 0, c.a) - constant + (isinstance(c, Le)))
    digits.sort(key=lambda d: -d[0])
    return _Condition(c, step, tuple(digits), limit)


def _comparisons(s: Node) -> Iterator[Compare]:
    for n in walk(s):
        if isinstance(n, If | Guard | Select):
            yield from comparisons(n.cond)


def _quotients(body: Stmt, v: Var) -> list[FloorDiv | FloorMod]:
    """The quotients and remainders of `v` that conditions mention."""
    out: dict[FloorDiv | FloorMod, None] = {}
    for c in _comparisons(body):
        for atom in linear(c.a - c.b)[0]:
            if isinstance(atom, FloorDiv | FloorMod) and any(n is v for n in walk(atom)):
                out[atom] = None
    return list(out)


def _holding(body: Stmt, found: list[_Condition]) -> Stmt:
    """`body` where the conditions hold."""
    true = {c.compare for c in found}

    def visit(n: Any) -> Any:
        if isinstance(n, Compare) and n in true:
            return TRUE
        new = n.map(visit)
        match new:
            case If(cond, then, _) if cond == TRUE:
                return then
            case Guard(cond, a, _) | Select(cond, a, _) if cond == TRUE:
                return a
            case And(a, b):
                return b if a == TRUE else a if b == TRUE else new
            case Or(a, b):
                return TRUE if TRUE in (a, b) else new
        return new
    return visit(body)  # type: ignore[no-any-return]


def _shortened(s: Any, extents: dict[Var, int]) -> Any:
    """Loops over some variables with other extents."""
    new = s.map(lambda c: _shortened(c, extents) if isinstance(c, Stmt) else c)
    if isinstance(new, For) and new.var in extents:
        n = extents[new.var]
        return substitute(new.body, {new.var: ZERO}) if n == 1 else new.replace(extent=const(n, new.extent))
    return new


class _NoTile(Exception):
    """A loop's variable is used otherwise than as the number of a tile."""


class _Rebase:
    """A loop's variable `v` replaced by `begin / step`, where `begin` need be no multiple of `step`: `v` and the digits in
    scope must occur as multiples of `v * step + digits` only, the place that they stand for. What was simplified because
    `v * step` is a multiple of `step`, as (8v + i) % 4 to i % 4, does not. Digits alone may be indices of what the tile
    itself stores: its accumulators. The addresses of prefetches may round down."""

    def __init__(self, v: Var, found: list[_Condition], begin: Var, body: Stmt) -> None:
        self.v, self.step, self.begin = v, found[0].step, begin
        self.digits = {f.var: c for condition in found for c, f in condition.digits}
        self.scope: list[Var] = []
        self.own = {n.buffer for n in walk(body) if isinstance(n, Store)}
        self.known: dict[int, tuple[Node, bool]] = {}

    def possible(self, body: Stmt) -> bool:
        try:
            self.stmt(body)
        except _NoTile:
            return False
        return True

    def stmt(self, n: Any) -> Any:
        if not self.mentions(n):
            return n
        if isinstance(n, Call) and n.name == "prefetch":
            return substitute(n, {self.v: self.begin // self.step})
        if isinstance(n, For) and n.var in self.digits:
            self.scope.append(n.var)
            out = n.map(self.stmt)
            self.scope.pop()
            return out
        if isinstance(n, Load | Store) and n.buffer in self.own and self.is_inside(n.indices):
            return n.map(lambda c: c if any(c is i for i in n.indices) else self.stmt(c))
        if isinstance(n, Expr) and is_scalar_int(n):
            terms, constant = linear(n)
            if n not in terms or n is self.v or n in self.digits:
                times, rest = divmod(terms.get(self.v, 0), self.step)
                if rest or any(terms.get(d, 0) != times * self.digits[d] for d in self.scope):
                    raise _NoTile
                return from_linear([(self.begin, times) if a is self.v else (a if a in self.digits else self.stmt(a), k)
                                    for a, k in terms.items()], constant, n)
        return n.map(self.stmt)

    def is_inside(self, indices: Sequence[Expr]) -> bool:
        """Whether indices are places within a tile: arithmetic of its digits, without its number."""
        return not any(n is self.v or isinstance(n, Load | Call) for i in indices for n in walk(i))

    def mentions(self, n: Node) -> bool:
        if n.by_identity:
            return n is self.v or n in self.digits
        found = self.known.get(id(n))
        if found is None:
            found = self.known[id(n)] = (n, any(self.mentions(c) for c in n.children()))
        return found[1]


def _size(s: Node) -> int:
    """Innermost statements after unrolling."""
    if not isinstance(s, Stmt):
        return 0
    inner = sum([_size(c) for c in s.children()])
    if isinstance(s, For) and s.kind == "unrolled":
        return inner * (as_int(s.extent) or 1)
    return inner or 1
