"""unroll: loops of kind "unrolled" with constant bounds become copies of their body.

In: flat loops, vector loops already turned into vector expressions. Out: no loop of kind "unrolled"; one whose extent
is not constant becomes serial. Each copy has its own definitions (inner loop variables, lets, allocated buffers).
Indices come out as `base + constant`, the base shared by all copies, so that accumulators are indexed by constants and
a code generator sees equal addresses as one object.

    for u in unrolled 0..2:  acc[u] = acc[u] + A[i*2 + u]     →     acc[0] = acc[0] + A[i*2]
                                                                    acc[1] = acc[1] + A[i*2 + 1]
"""
from __future__ import annotations

from typing import Any

from tilewright.core.node import Node
from tilewright.loop.ir import (
    Address,
    Allocate,
    Buffer,
    Const,
    Expr,
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
    seq,
)
from tilewright.loop.lower.linear import from_linear, is_scalar_int, linear
from tilewright.loop.simplify import simplify


def unroll(program: Program) -> Program:
    """Every loop of kind "unrolled" replaced by copies of its body."""
    return program.replace(body=_Unroller().stmt(program.body))


class _Unroller:
    """One walk that expands loops outside in. `env` holds what the variables of the copy being made stand for.

    An expression is analysed once (which of the variables it mentions, and its linear form over them) and its copies
    are shared by the values of these variables.
    """

    def __init__(self) -> None:
        self.env: dict[Var, Expr] = {}
        self.buffers: dict[Buffer, Buffer] = {}
        self.copying = 0
        self.mentions: dict[int, tuple[Node, tuple[Any, ...]]] = {}
        self.forms: dict[int, tuple[list[tuple[Var, int]], list[tuple[Expr, int]], int] | None] = {}
        self.copies: dict[tuple[Any, ...], Any] = {}
        self.alive: list[Node] = []  # what has been a value of `env`: its id must not be reused

    # ---- statements ----
    def stmt(self, s: Stmt) -> Stmt:
        match s:
            case Seq(stmts):
                return seq([self.stmt(t) for t in stmts])
            case For():
                return self.loop(s)
            case If(cond, then, otherwise):
                c = self.expr(cond)
                if c is not cond:
                    c = simplify(c)
                if isinstance(c, Const):
                    return self.stmt(then) if c.value else self.stmt(otherwise) if otherwise else Seq(())
                return s.replace(cond=c, then=self.stmt(then), otherwise=otherwise and self.stmt(otherwise))
            case Store(buffer, indices, value):
                return Store(self.buffer(buffer), tuple([self.expr(i) for i in indices]), self.expr(value)).at(s.loc)
            case Let(var, value, body):
                return s.replace(value=self.expr(value), var=self.fresh(var), body=self.stmt(body))
            case Allocate(buffer, body, offset):
                shape = tuple([self.expr(e) for e in buffer.shape])
                strides = buffer.strides and tuple([self.expr(e) for e in buffer.strides])
                if self.copying or (shape, strides) != (buffer.shape, buffer.strides):
                    self.buffers[buffer] = new = buffer.replace(shape=shape, strides=strides)
                    self.alive.append(new)
                at = None if offset is None else self.expr(offset)
                return s.replace(buffer=self.buffer(buffer), body=self.stmt(body), offset=at)
        return s.map(lambda c: self.stmt(c) if isinstance(c, Stmt) else self.expr(c))

    def loop(self, s: For) -> Stmt:
        start, extent = self.expr(s.start), self.expr(s.extent)
        n, first = as_int(extent), as_int(start)
        if s.kind != "unrolled" or n is None:
            kind = "serial" if s.kind == "unrolled" else s.kind
            return s.replace(start=start, extent=extent, kind=kind, var=self.fresh(s.var), body=self.stmt(s.body))
        copies = []
        self.copying += n > 1
        for i in range(n):
            self.env[s.var] = value = const(first + i, s.var) if first is not None else simplify(start + i)
            self.alive.append(value)
            copies.append(self.stmt(s.body))
        self.copying -= n > 1
        return seq(copies)

    def fresh(self, v: Var) -> Var:
        """The variable that this copy defines in place of `v`."""
        if self.copying:
            self.env[v] = new = Var(v.name, v.type)
            self.alive.append(new)
            return new
        return v

    def buffer(self, b: Buffer) -> Buffer:
        return self.buffers.get(b, b)

    # ---- expressions ----
    def expr(self, e: Expr) -> Any:
        changing = self._mentions(e)
        if not changing:
            return e
        env = self.env
        if type(e) is Var:
            return env[e]
        key = (id(e), *[_key(env[v]) if type(v) is Var else id(self.buffers[v]) for v in changing])
        found = self.copies.get(key)
        if found is None:
            found = self.copies[key] = self._copy(e)
        return found

    def _mentions(self, e: Node) -> tuple[Any, ...]:
        """Variables and buffers in `e` that differ between copies. `e` is kept alive: its id is a key."""
        known = self.mentions.get(id(e))
        if known is None:
            found: tuple[Any, ...]
            if e.by_identity:
                found = (e,) if e in self.env or e in self.buffers else ()
            else:
                union: dict[Any, None] = {}
                for c in e.children():
                    union.update(dict.fromkeys(self._mentions(c)))
                found = tuple(union)
            known = self.mentions[id(e)] = (e, found)
        return known[1]

    def _copy(self, e: Expr) -> Expr:
        if is_scalar_int(e):
            form = self._form(e)
            if form is not None:
                varying, base, constant = form
                terms = list(base)
                for v, c in varying:
                    value = self.env[v]
                    k = as_int(value)
                    if k is None:
                        terms.append((value, c))
                    else:
                        constant += c * k
                return from_linear(terms, constant, e)
        if isinstance(e, Load | Address):
            return e.replace(buffer=self.buffer(e.buffer), indices=tuple([self.expr(i) for i in e.indices]))
        new = e.map(self.expr)
        return new if new.dtype.is_float else simplify(new)

    def _form(self, e: Expr) -> tuple[list[tuple[Var, int]], list[tuple[Expr, int]], int] | None:
        """`e` as (terms in variables of the copy, terms equal in all copies, constant); None if it is no such sum."""
        if id(e) in self.forms:
            return self.forms[id(e)]
        terms, constant = linear(e)
        varying: list[tuple[Var, int]] = []
        base: list[tuple[Expr, int]] = []
        linear_in_all = True
        for atom, c in terms.items():
            if not self._mentions(atom):
                base.append((atom, c))
            elif type(atom) is Var:
                varying.append((atom, c))
            else:
                linear_in_all = False
        if len(base) > 1 or base and base[0][1] != 1:
            base = [(from_linear(base, 0, e), 1)]
        found = (varying, base, constant) if linear_in_all else None
        self.forms[id(e)] = found
        return found


def _key(value: Expr) -> Any:
    return value.value if type(value) is Const else id(value)
