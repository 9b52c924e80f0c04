"""unguarded_sums: what a thread keeps for itself is computed without asking whether anybody wants it.

In: a kernel with its threads joined, storage compacted; tiles that do not divide what they cover are guarded everywhere.
Out: no condition around stores into a local buffer if all its stores have that condition, about the same element: where it
does not hold, the element has no value that anything could read. Shared tiles that are read there grow to what their
indices may reach. A warp then runs the same instructions for all its threads, and a driver that turns threads into loops
finds no branch that spans barriers (PoCL 3.1 aborts where an optimizer has threaded one through them).

    for k: barrier; S[t] = …; barrier                       for k: barrier; S[t] = …; barrier
      for r: if (b*64 + t + r*16 < n): acc[r] += S[…]   →     for r: acc[r] += S[…]
    for r: if (b*64 + t + r*16 < n): C[…] = acc[r]          for r: if (b*64 + t + r*16 < n): C[…] = acc[r]
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tilewright.core.node import Node, walk
from tilewright.loop.bounds import bounds
from tilewright.loop.intrinsics import is_pure
from tilewright.loop.ir import (
    Allocate,
    And,
    Buffer,
    Call,
    Compare,
    Div,
    Evaluate,
    Expr,
    FloorDiv,
    FloorMod,
    For,
    If,
    Let,
    Load,
    Program,
    Seq,
    Stmt,
    Store,
    Var,
    as_int,
    const,
)
from tilewright.loop.lower.linear import linear, loop_range
from tilewright.loop.substitute import free_vars, substitute

GROWTH = 2
"""A shared tile may become so many times larger along an axis."""


def unguarded_sums(program: Program) -> Program:
    """Conditions around the private work of threads taken away."""
    seen = _Seen()
    seen.stmt(program.body, (), ())
    free = _Free(seen, {b: seen.common(b) for b in seen.stores})
    body = free.stmt(program.body)
    return program.replace(body=_with(body, free.grown) if free.grown else body)


@dataclass
class _Seen:
    """The local buffers: the variables defined around each, the conditions and indices of each store; ranges of all
    variables."""
    outside: dict[Buffer, frozenset[Var]] = field(default_factory=dict)
    stores: dict[Buffer, list[tuple[tuple[Expr, ...], tuple[Expr, ...]]]] = field(default_factory=dict)
    ranges: dict[Var, Any] = field(default_factory=dict)

    def stmt(self, s: Stmt, around: tuple[Var, ...], conds: tuple[Expr, ...]) -> None:
        match s:
            case Allocate(buffer, body):
                if buffer.scope == "local" and buffer.data is None:
                    self.outside[buffer] = frozenset(around)
                    self.stores[buffer] = []
                self.stmt(body, around, conds)
            case For(var, _, _, body):
                r = loop_range(s, self.ranges)
                if r is not None:
                    self.ranges[var] = r
                self.stmt(body, (*around, var), conds)
            case Let(var, value, body):
                lo, hi = bounds(value, self.ranges)
                if isinstance(lo, int) and isinstance(hi, int):
                    self.ranges[var] = (lo, hi)
                self.stmt(body, (*around, var), conds)
            case If(cond, then, otherwise):
                self.stmt(then, around, (*conds, *_parts(cond)))
                if otherwise is not None:
                    self.stmt(otherwise, around, (*conds, ~cond))
            case Seq(stmts):
                for t in stmts:
                    self.stmt(t, around, conds)
            case Store() if s.buffer in self.stores:
                self.stores[s.buffer].append((conds, s.indices))

    def common(self, b: Buffer) -> set[Any]:
        """The conditions that all stores into a buffer have, as statements about the element that is written."""
        keys = [{self.about(c, b, indices) for c in conds} - {None} for conds, indices in self.stores[b]]
        return set.intersection(*keys) if keys else set()

    def about(self, cond: Expr, b: Buffer, indices: tuple[Expr, ...]) -> Any:
        """A condition as a form of the element's indices and of what is fixed while the buffer lives; None if it is not."""
        if not isinstance(cond, Compare):
            return None
        places = {i: d for d, i in enumerate(indices) if isinstance(i, Var) and i not in self.outside[b]}
        if not set(free_vars(cond)) <= self.outside[b] | set(places):
            return None
        names = {v: const(d) for v, d in places.items()}
        terms, constant = linear(cond.a - cond.b)
        form = frozenset((("axis", places[a]) if isinstance(a, Var) and a in places else substitute(a, names) if
                          set(free_vars(a)) & set(places) else a, c) for a, c in terms.items())
        return type(cond), form, constant


class _Free:
    """The rewriting; `grown` are the shared buffers that must be larger."""

    def __init__(self, seen: _Seen, common: dict[Buffer, set[Any]]) -> None:
        self.seen, self.common = seen, common
        self.grown: dict[Buffer, Buffer] = {}

    def stmt(self, s: Stmt) -> Stmt:
        if isinstance(s, If) and s.otherwise is None:
            kept = self.kept(s)
            then = self.stmt(s.then)
            if not kept:
                return then
            cond = kept[0]
            for c in kept[1:]:
                cond = And(cond, c)
            return s.replace(cond=cond, then=then)
        return s.map(lambda n: self.stmt(n) if isinstance(n, Stmt) else n)

    def kept(self, s: If) -> list[Expr]:
        """The parts of a condition that must stay."""
        parts = _parts(s.cond)
        stores = [n for n in walk(s.then) if isinstance(n, Store)]
        effects = any(n.buffer not in self.common for n in stores) or any(isinstance(n, Evaluate) for n in walk(s.then))
        if effects or not stores:
            return parts
        kept = [c for c in parts
                if not all(self.seen.about(c, n.buffer, n.indices) in self.common[n.buffer] for n in stores)]
        return kept if len(kept) == len(parts) or self.is_safe(s.then) else parts

    def is_safe(self, s: Stmt) -> bool:
        """Whether a statement may run where nobody wants it: what it reads exists, or can be made to."""
        wanted: dict[tuple[Buffer, int], int] = {}
        for n in walk(s):
            if isinstance(n, Div | FloorDiv | FloorMod) and n.dtype.is_int and not as_int(n.b):
                return False
            if isinstance(n, Call) and not is_pure(n.name):
                return False
            if isinstance(n, Load | Store) and n.buffer.data is None:
                for d, i in enumerate(n.indices):
                    lo, hi = bounds(i, self.seen.ranges)
                    extent = as_int(self.grown.get(n.buffer, n.buffer).shape[d])
                    if lo is None or hi is None or extent is None or lo < 0:
                        return False
                    if hi >= extent:
                        if n.buffer.scope != "shared" or hi >= GROWTH * extent:
                            return False
                        wanted[n.buffer, d] = max(hi + 1, wanted.get((n.buffer, d), 0))
        for (b, d), size in wanted.items():
            now = self.grown.get(b, b)
            shape = tuple([const(size) if k == d else e for k, e in enumerate(now.shape)])
            self.grown[b] = b.replace(shape=shape)
        return True


def _with(body: Stmt, new: dict[Buffer, Buffer]) -> Stmt:
    """A statement with other buffers, also where they are allocated."""
    def visit(n: Node) -> Node:
        m = n.map(visit) if not n.by_identity else n
        return m.replace(buffer=new[m.buffer]) if isinstance(m, Allocate) and m.buffer in new else m

    return substitute(visit(body), dict(new))  # type: ignore[return-value]


def _parts(cond: Expr) -> list[Expr]:
    return [p for side in (cond.a, cond.b) for p in _parts(side)] if isinstance(cond, And) else [cond]
