"""Simplifying loop IR: statements, with the ranges of the loops and the conditions around them.

In: any expression, statement, program or module. Out: an equal one: loops that run once or never, conditions with a known
answer and statements without effect are gone; integer expressions are in canonical form.

    for i in 0..4: if i*14 + 13 < 56: B[(i*14 + 3) // 14] = A[i + 0]      →      for i in 0..4: B[i] = A[i]
"""
from __future__ import annotations

from typing import Any, TypeVar

from tilewright.core.node import Node
from tilewright.loop.bounds import Knowledge, Ranges
from tilewright.loop.ir import (
    Allocate,
    Assert,
    Block,
    Buffer,
    Const,
    Evaluate,
    Expr,
    For,
    If,
    IterVar,
    Let,
    Load,
    Module,
    Not,
    Program,
    Seq,
    Stmt,
    Var,
    While,
    seq,
)
from tilewright.loop.simplify_expr import ExprSimplifier, Order

N = TypeVar("N", bound=Node)
_NOTHING = Seq(())


def simplify(root: N, ranges: Ranges | None = None) -> N:
    """An equal program or expression, smaller and canonical; the very same object where nothing changed.

    `ranges` are inclusive ranges of free variables (see `loop/bounds.py`, also for what is assumed of overflow).
    Loops bound to a device's threads stay, since they say how many there are.
    """
    known = Knowledge(ranges)
    order = Order()
    for v in known.ranges:
        order.depth[v] = len(order.depth)
    result: Any
    if isinstance(root, Module):
        result = root.map(lambda p: simplify(p, ranges))
    elif isinstance(root, Program):
        for p in root.params:
            for d in p.shape if isinstance(p, Buffer) else ():
                if isinstance(d, Var) and d not in known.ranges:
                    known = known.with_range(d, 0, None)
        result = root.map(_Place(known, order, {}, {}).stmt)
    elif isinstance(root, Stmt):
        result = _Place(known, order, {}, {}).stmt(root)
    elif isinstance(root, Expr):
        result = ExprSimplifier(known, order, {}, {}).expr(root)
    else:
        result = root
    return result  # type: ignore[no-any-return]


def is_nothing(s: Stmt) -> bool:
    """Whether a statement is the empty sequence."""
    return isinstance(s, Seq) and not s.stmts


class _Place:
    """A place of a program: what is known there, and what replaces dropped variables and renewed buffers."""

    def __init__(self, known: Knowledge, order: Order, values: dict[Var, Expr], buffers: dict[Buffer, Buffer]) -> None:
        self.known, self.order, self.values, self.buffers = known, order, values, buffers
        self.expr = ExprSimplifier(known, order, values, buffers).expr

    def inside(self, known: Knowledge | None = None, values: dict[Var, Expr] | None = None,
               buffers: dict[Buffer, Buffer] | None = None) -> _Place:
        return _Place(known or self.known, self.order, {**self.values, **values} if values else self.values,
                      {**self.buffers, **buffers} if buffers else self.buffers)

    def enter(self, v: Var) -> None:
        self.order.depth[v] = len(self.order.depth)

    def stmt(self, s: Stmt) -> Stmt:
        match s:
            case Seq():
                return self._seq(s)
            case For():
                return self._for(s)
            case If():
                return self._if(s)
            case Let():
                return self._let(s)
            case Allocate():
                return self._allocate(s)
            case Block():
                return self._block(s)
            case While(cond, _):
                if self.known.decide(self.expr(cond)) is False:
                    return _NOTHING
                return s.map(self._child)
            case Assert(cond, _, _):
                new = s.map(self._child)
                return _NOTHING if self.known.decide(new.cond) else new
            case Evaluate(value):
                return _NOTHING if isinstance(value, Const | Var | Load) else s.map(self._arguments)
        return s.map(self._child)

    def _child(self, n: Any) -> Any:
        if isinstance(n, Stmt):
            return self.stmt(n)
        return self.expr(n)

    def _arguments(self, n: Any) -> Any:
        """An effectful call stays; only its arguments are simplified."""
        return n.map(self._child)

    def _seq(self, s: Seq) -> Stmt:
        new = [self.stmt(x) for x in s.stmts]
        if all(x is y and not isinstance(x, Seq) for x, y in zip(new, s.stmts, strict=True)) and len(new) != 1:
            return s
        return seq(new)

    def _for(self, s: For) -> Stmt:
        start, extent = self.expr(s.start), self.expr(s.extent)
        lo, hi = self.known.interval(extent)
        if hi is not None and hi <= 0:
            return _NOTHING
        first, _ = self.known.interval(start)
        n = extent.value if isinstance(extent, Const) else None
        bound_to_thread = "Idx" in s.kind
        if n == 1 and not bound_to_thread:
            return self.inside(values={s.var: start}).stmt(s.body)
        self.enter(s.var)
        begin: Any = start.value if isinstance(start, Const) else start
        last = self.expr(start + extent - 1)
        end: Any = last.value if isinstance(last, Const) else last
        known = self.known if lo is not None and lo >= 1 else self.known.assuming(extent > 0)
        if begin is start and not _index_only(start, known):
            begin = first
        if end is last and not _index_only(last, known):
            end = known.interval(last)[1]
        body = self.inside(known.with_range(s.var, begin, end)).stmt(s.body)
        if is_nothing(body):
            return _NOTHING
        if start is s.start and extent is s.extent and body is s.body:
            return s
        return s.replace(start=start, extent=extent, body=body)

    def _if(self, s: If) -> Stmt:
        cond = self.expr(s.cond)
        value = self.known.decide(cond)
        if value is not None:
            chosen = s.then if value else s.otherwise
            return self.stmt(chosen) if chosen is not None else _NOTHING
        then = self.inside(self.known.assuming(cond)).stmt(s.then)
        otherwise = s.otherwise and self.inside(self.known.assuming(cond, False)).stmt(s.otherwise)
        if otherwise is not None and is_nothing(otherwise):
            otherwise = None
        if is_nothing(then):
            return _NOTHING if otherwise is None else If(self.expr(Not(cond)), otherwise).at(s.loc)
        if cond is s.cond and then is s.then and otherwise is s.otherwise:
            return s
        return s.replace(cond=cond, then=then, otherwise=otherwise)

    def _let(self, s: Let) -> Stmt:
        value = self.expr(s.value)
        if isinstance(value, Const | Var):
            return self.inside(values={s.var: value}).stmt(s.body)
        self.enter(s.var)
        known = self.known
        if value.dtype.is_int and value.dtype.lanes == 1:
            same: Any = value if _index_only(value, known) else None
            lo, hi = known.interval(value)
            known = known.with_range(s.var, *((same, same) if same is not None else (lo, hi)))
        body = self.inside(known).stmt(s.body)
        if is_nothing(body):
            return _NOTHING
        return s if value is s.value and body is s.body else s.replace(value=value, body=body)

    def _allocate(self, s: Allocate) -> Stmt:
        b = s.buffer
        shape, strides = tuple([self.expr(x) for x in b.shape]), b.strides and tuple([self.expr(x) for x in b.strides])
        old, new = b.shape + (b.strides or ()), shape + (strides or ())
        offset = None if s.offset is None else self.expr(s.offset)
        place = self
        if any(x is not y for x, y in zip(old, new, strict=True)):
            b = b.replace(shape=shape, strides=strides)
            place = self.inside(buffers={s.buffer: b})
        body = place.stmt(s.body)
        if is_nothing(body):
            return _NOTHING
        return s if b is s.buffer and body is s.body and offset is s.offset else s.replace(
            buffer=b, body=body, offset=offset)

    def _block(self, s: Block) -> Stmt:
        predicate = self.expr(s.predicate)
        if self.known.decide(predicate) is False:
            return _NOTHING
        iters: list[IterVar] = []
        known = self.known
        for i in s.iters:
            extent = self.expr(i.extent)
            self.enter(i.var)
            last = self.expr(extent - 1)
            known = known.with_range(i.var, 0, last.value if isinstance(last, Const) else last)
            iters.append(i if extent is i.extent else i.replace(extent=extent))
        bindings = tuple([self.expr(b) for b in s.bindings])
        inside = self.inside(known.assuming(predicate))
        body, init = inside.stmt(s.body), s.init and inside.stmt(s.init)
        same = (predicate is s.predicate and body is s.body and init is s.init
                and all(x is y for x, y in zip(iters, s.iters, strict=True))
                and all(x is y for x, y in zip(bindings, s.bindings, strict=True)))
        return s if same else s.replace(iters=tuple(iters), bindings=bindings, predicate=predicate, body=body, init=init)


def _index_only(e: Expr, known: Knowledge) -> bool:
    """Whether an expression does not read memory, so that it means the same wherever it is used, and does not wrap."""
    f = known.form(e)
    return not f.data and known.exact(f)
