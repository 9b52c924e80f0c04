"""vectorize: loops of kind "vectorized" with constant bounds become vector expressions.

In: flat loops. Out: no loop of kind "vectorized". What does not depend on the loop's variable stays scalar and is
broadcast where it meets a vector; an index that is linear in the variable becomes a Ramp. Loops inside stay loops
around vector statements; buffers allocated inside get a trailing dimension of one element per lane. A sum, maximum or
minimum over the lanes becomes a horizontal reduction. A statement without a vector form (a branch on the variable,
another store to one place from all lanes, an effectful call) stays a serial loop.

    for v in vectorized 0..8:  C[i, v] = A[i] * B[v*2]
    →  C[i, ramp(0, 1, 8)] = broadcast(A[i], 8) * B[ramp(0, 2, 8)]

    for v in vectorized 0..8:  S[i] = S[i] + A[v]      →      S[i] = S[i] + reduce_add(A[ramp(0, 1, 8)])

That lanes do not depend on each other, or only as a declared reduction, is the promise of the schedule's `vectorize`,
which checked it.
"""
from __future__ import annotations

from tilewright.core.node import Node, walk
from tilewright.loop.intrinsics import INTRINSICS
from tilewright.loop.ir import (
    ZERO,
    Add,
    Address,
    Allocate,
    Assert,
    Binary,
    Broadcast,
    Buffer,
    Call,
    Cast,
    Compare,
    Const,
    Div,
    Evaluate,
    Expr,
    FloorDiv,
    FloorMod,
    For,
    Guard,
    If,
    Let,
    Load,
    Max,
    Min,
    Not,
    Program,
    Ramp,
    Select,
    Seq,
    Stmt,
    Store,
    Var,
    as_int,
    const,
    seq,
)
from tilewright.loop.lower.linear import from_linear, is_scalar_int, linear
from tilewright.loop.substitute import fresh_copy, substitute

_IDEMPOTENT = frozenset({"prefetch"})
"""Effectful calls for which once is as good as once per lane."""

_HORIZONTAL: dict[type[Expr], str] = {Add: "reduce_add", Max: "reduce_max", Min: "reduce_min"}


def vectorize(program: Program) -> Program:
    """Every loop of kind "vectorized" replaced by vector statements (or, where there are none, made serial)."""
    return program.replace(body=_visit(program.body))


def _visit(s: Node) -> Stmt:
    """Inner loops first: a vectorized loop around another one stays serial."""
    if not isinstance(s, Stmt):
        return s  # type: ignore[return-value]
    s = s.map(_visit)
    if isinstance(s, For) and s.kind == "vectorized":
        lanes = as_int(s.extent)
        if lanes == 1:
            return substitute(s.body, {s.var: s.start})
        if lanes is None or any(isinstance(n, Ramp | Broadcast) for n in walk(s.body)):
            return s.replace(kind="serial")
        return _Vectorizer(s, lanes).stmt(s.body)
    if isinstance(s, Seq):
        return seq(s.stmts)
    return s


class _NotVector(Exception):
    """A statement or expression without a vector form."""


class _Vectorizer:
    """One loop. `vector_vars`: lets inside that became vectors; `widened`: allocations with one element per lane."""

    def __init__(self, loop: For, lanes: int) -> None:
        self.loop, self.lanes = loop, lanes
        self.ramp = Ramp(loop.start, const(1, loop.var), lanes)
        self.vector_vars: dict[Var, Var] = {}
        self.widened: dict[Buffer, Buffer] = {}
        self.known: dict[int, tuple[Node, bool]] = {}

    # ---- statements ----
    def stmt(self, s: Stmt) -> Stmt:
        vars_before, buffers_before = dict(self.vector_vars), dict(self.widened)
        try:
            return self.vector(s)
        except _NotVector:
            self.vector_vars, self.widened = vars_before, buffers_before
            if vars_before:  # its lanes cannot be taken apart again: the whole Let stays scalar
                raise
            return self.scalar(s)

    def vector(self, s: Stmt) -> Stmt:
        match s:
            case Seq(stmts):
                return seq([self.stmt(t) for t in stmts])
            case Store(buffer, indices, value):
                return self.store(s, buffer, indices, value)
            case For(var, start, extent, body):
                self.needs_scalar(start, extent)
                return s.replace(start=self.expr(start), extent=self.expr(extent), body=self.stmt(body))
            case If(cond, then, otherwise):
                self.needs_scalar(cond)
                arms = self.stmt(then), otherwise and self.stmt(otherwise)
                return s.replace(cond=self.expr(cond), then=arms[0], otherwise=arms[1])
            case Let(var, value, body):
                new = self.expr(value)
                if new.dtype.lanes == 1:
                    return s.replace(value=new, body=self.stmt(body))
                self.vector_vars[var] = wide = Var(var.name, new.dtype)
                return s.replace(var=wide, value=new, body=self.stmt(body))
            case Allocate(buffer, body, None):
                self.needs_scalar(*buffer.shape)
                if buffer.strides is not None:
                    raise _NotVector
                self.widened[buffer] = wide_buffer = buffer.replace(shape=(*buffer.shape, const(self.lanes)))
                return s.replace(buffer=wide_buffer, body=self.stmt(body))
            case Evaluate(Call(name)) if name in _IDEMPOTENT:
                first = substitute(s, {self.loop.var: self.loop.start}) if self.varies(s) else s
                return self.scalar_uses(first)
            case Assert(cond):
                self.needs_scalar(cond)
                return s.replace(cond=self.expr(cond))
        raise _NotVector

    def store(self, s: Store, buffer: Buffer, indices: tuple[Expr, ...], value: Expr) -> Stmt:
        if buffer not in self.widened and not any(self.varies(i) for i in indices):
            if self.varies(value) or any(isinstance(n, Load) and n.buffer is buffer for n in walk(value)):
                return self.horizontal(s)
            return Store(buffer, tuple([self.expr(i) for i in indices]), self.expr(value)).at(s.loc)
        at = tuple([self.expr(i) for i in indices])
        if buffer in self.widened:
            buffer, at = self.widened[buffer], (*at, Ramp(ZERO, const(1), self.lanes))
        return Store(buffer, at, self.wide(value)).at(s.loc)

    def horizontal(self, s: Store) -> Stmt:
        """A reduction over the lanes into one place."""
        value, own = s.value, Load(s.buffer, s.indices)
        fold = _HORIZONTAL.get(type(value))
        if fold is None or not isinstance(value, Binary):
            raise _NotVector
        term = value.b if value.a == own else value.a if value.b == own else None
        if term is None or any(isinstance(n, Load) and n.buffer is s.buffer for n in walk(term)):
            raise _NotVector
        at = tuple([self.expr(i) for i in s.indices])
        total = Call(fold, (self.wide(term),), value.dtype)
        return Store(s.buffer, at, type(value)(Load(s.buffer, at), total)).at(s.loc)

    def scalar(self, s: Stmt) -> Stmt:
        """The loop kept, around `s` alone."""
        lane = Var(self.loop.var.name, self.loop.var.type)
        body = self.scalar_uses(substitute(fresh_copy(s), {self.loop.var: lane}), lane - self.loop.start)
        return self.loop.replace(var=lane, body=body, kind="serial")

    def scalar_uses(self, s: Stmt, lane: Expr = ZERO) -> Stmt:
        """`s` with its accesses to widened buffers at one lane."""
        if not self.widened:
            return s

        def visit(n: Node) -> Node:
            new = n.map(visit)
            if isinstance(new, Store | Load | Address) and new.buffer in self.widened:
                return new.replace(buffer=self.widened[new.buffer], indices=(*new.indices, lane))
            return new

        return visit(s)  # type: ignore[return-value]

    def needs_scalar(self, *es: Expr) -> None:
        if any(self.varies(e) for e in es):
            raise _NotVector

    # ---- expressions ----
    def varies(self, n: Node) -> bool:
        """Whether `n` differs between lanes."""
        found = self.known.get(id(n))
        if found is None:
            yes = n is self.loop.var or n in self.vector_vars if n.by_identity and not isinstance(n, Buffer) else (
                n in self.widened if isinstance(n, Buffer) else any(self.varies(c) for c in n.children()))
            found = self.known[id(n)] = (n, yes)
        return found[1]

    def wide(self, e: Expr) -> Expr:
        new = self.expr(e)
        return Broadcast(new, self.lanes) if new.dtype.lanes == 1 else new

    def expr(self, e: Expr) -> Expr:
        """The vector that `e` takes over the lanes; `e` itself, a scalar, where it takes one value."""
        if not self.varies(e):
            return e
        if is_scalar_int(e) and (index := self.index(e)) is not None:
            return index
        match e:
            case Var():
                return self.ramp if e is self.loop.var else self.vector_vars[e]
            case Load(buffer, indices):
                at = tuple([self.expr(i) for i in indices])
                if buffer in self.widened:
                    return Load(self.widened[buffer], (*at, Ramp(ZERO, const(1), self.lanes)))
                return e.replace(indices=at)
            case Binary() | Compare() | Select() | Not():
                return e.map(self.wide)
            case Guard(cond, a, b):
                if not self.varies(cond):
                    return Guard(self.expr(cond), self.wide(a), self.wide(b))
                evaluated = {n for n in walk(cond) if isinstance(n, Load)}
                if any(_unsafe(n) for n in walk(cond) if n not in evaluated) or any(
                        _unsafe(n) for side in (a, b) for n in walk(side) if n not in evaluated):
                    raise _NotVector
                return Select(self.wide(cond), self.wide(a), self.wide(b))
            case Cast(to, a):
                return Cast(to.with_lanes(self.lanes), self.expr(a))
            case Call(name, args, to):
                if any(isinstance(a, Address) for a in args):
                    raise _NotVector
                return Call(name, tuple([self.wide(a) for a in args]), to.with_lanes(self.lanes))
        raise _NotVector

    def index(self, e: Expr) -> Expr | None:
        """A Ramp for an integer expression that is linear in the loop's variable."""
        terms, constant = linear(e)
        step = terms.pop(self.loop.var, 0)
        if any(self.varies(a) for a in terms):
            return None
        base = from_linear(terms.items(), constant, e)
        start = self.loop.start if step == 1 else self.loop.start * step
        if isinstance(base, Const) and base.value == 0:
            base = start
        elif not (isinstance(start, Const) and start.value == 0):
            base = base + start
        return Ramp(base, const(step, e), self.lanes)


def _unsafe(n: Node) -> bool:
    """Whether `n` must not be evaluated where its value is not asked for."""
    if isinstance(n, Div | FloorDiv | FloorMod):
        return not n.dtype.is_float and not (isinstance(n.b, Const) and n.b.value)
    return isinstance(n, Load) or isinstance(n, Call) and not (n.name in INTRINSICS and INTRINSICS[n.name].pure)
