"""Replacing variables and buffers in loop IR, copying with fresh definitions, and asking what a program mentions.

In: any loop IR node. Out: a node of the same kind, or an ordered set (a dict's keys) of variables or buffers.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

from tilewright.core.node import Node
from tilewright.loop.ir import (
    Address,
    Allocate,
    Block,
    Buffer,
    Expr,
    For,
    IterVar,
    Let,
    Program,
    Stmt,
    Store,
    Var,
)

N = TypeVar("N", bound=Node)
Definition = Var | Buffer


def substitute(root: N, mapping: Mapping[Any, Any]) -> N:
    """`root` with each use of a variable replaced by an expression and each use of a buffer by a buffer.

    Definitions keep their identity, with one exception: an allocated buffer (or a parameter) whose shape or strides mention
    a replaced variable is itself replaced, since a buffer's shape is part of it. Returns the very same object where nothing
    changed. Variables that replace must not be captured: definitions are unique objects, so they never are.
    """
    return _Substitution(dict(mapping)).visit(root) if mapping else root


class _Substitution:
    """One substitution: the mapping, and what it has already rebuilt (shared nodes are rebuilt once).

    `rename`, when given, makes the new object of each definition met.
    """

    def __init__(self, mapping: dict[Any, Any], rename: Callable[[Any], Any] | None = None) -> None:
        self.mapping, self.rename = mapping, rename
        self.done: dict[int, Any] = {}

    def visit(self, root: Any) -> Any:
        if isinstance(root, Expr | Buffer):
            return self.expr(root)
        if isinstance(root, Stmt):
            return self.stmt(root)
        if isinstance(root, Program):
            params = tuple([self.definition(p) for p in root.params])
            body = self.stmt(root.body)
            same = body is root.body and all(p is q for p, q in zip(params, root.params, strict=True))
            return root if same else root.replace(params=params, body=body)
        return root.map(self.visit)

    def stmt(self, s: Stmt) -> Any:
        """Statements nest as deep as loops do, so this recursion is shallow."""
        t = type(s)
        if t is For or t is Let:
            f = cast("For | Let", s)
            var = self.definition(f.var)
            new = f.map(self.visit)
            return new if var is f.var else new.replace(var=var)
        if t is Allocate:
            a = cast(Allocate, s)
            buffer = self.definition(a.buffer)
            new_a = a.map(self.visit)
            return new_a if buffer is a.buffer else new_a.replace(buffer=buffer)
        if t is Block:
            b = cast(Block, s)
            iters = tuple([self.iter_var(i) for i in b.iters])
            new_b = b.map(self.visit)
            return new_b if all(i is j for i, j in zip(iters, b.iters, strict=True)) else new_b.replace(iters=iters)
        return s.map(self.visit)

    def iter_var(self, i: IterVar) -> IterVar:
        var, extent = self.definition(i.var), self.expr(i.extent)
        return i if var is i.var and extent is i.extent else i.replace(var=var, extent=extent)

    def definition(self, d: Definition) -> Definition:
        """What a definition becomes; from here on its uses become the same."""
        if isinstance(d, Buffer):
            shape = tuple([self.expr(x) for x in d.shape])
            strides = d.strides and tuple([self.expr(x) for x in d.strides])
            if self.rename is None and all(x is y for x, y in zip(shape + (strides or ()), d.shape + (d.strides or ()),
                                                                  strict=True)):
                return d
            new: Definition = d.replace(name=self.rename(d.name) if self.rename else d.name, shape=shape, strides=strides)
        elif self.rename is None:
            return d
        else:
            new = Var(self.rename(d.name), d.type, d.span)
        if d in self.mapping:  # defined a second time (a main and a remainder loop): what was built before is another's
            self.done.clear()
        self.mapping[d] = new
        self.done[id(d)] = new
        return new

    def expr(self, root: Any) -> Any:
        """Iterative, since unrolled sums are deep."""
        done, mapping = self.done, self.mapping
        found = done.get(id(root))
        if found is not None:
            return found
        stack: list[Any] = [root]
        while stack:
            n = stack[-1]
            if id(n) in done:
                stack.pop()
                continue
            if n.by_identity:
                done[id(n)] = mapping.get(n, n)
                stack.pop()
                continue
            waiting = [c for c in n.children() if id(c) not in done]
            if waiting:
                stack.extend(waiting)
                continue
            stack.pop()
            done[id(n)] = n.map(lambda c: done[id(c)])
        return done[id(root)]


def fresh_copy(root: N, names: Callable[[str], str] | None = None) -> N:
    """A copy in which every definition inside (loop and let variables, allocated buffers, block iterators) is a new object.

    `names` gives the new name from the old one (default: the same name). What is defined outside stays shared.
    """
    return cast(N, _Substitution({}, names or (lambda name: name)).visit(root))


def _mentions(root: Node) -> Iterator[tuple[Node, bool]]:
    """Every node under `root` in order, shared nodes once; the flag marks definitions, which are apart from uses."""
    seen: set[int] = set()
    stack: list[tuple[Node, bool]] = [(root, False)]
    while stack:
        n, defines = stack.pop()
        if defines:
            yield n, True
            if isinstance(n, Buffer):
                stack.extend((x, False) for x in reversed(_buffer_exprs(n)))
            continue
        if id(n) in seen:
            continue
        seen.add(id(n))
        yield n, False
        after: list[tuple[Node, bool]] = [(c, False) for c in n.children()]
        if isinstance(n, For | Let):
            after.append((n.var, True))
        elif isinstance(n, Allocate):
            after.append((n.buffer, True))
        elif isinstance(n, Block):
            after += [(i.var, True) for i in n.iters] + [(i.extent, False) for i in n.iters]
        elif isinstance(n, Program):
            after += [(p, True) for p in n.params]
        stack.extend(reversed(after))


def _buffer_exprs(b: Buffer) -> tuple[Expr, ...]:
    return b.shape + (b.strides or ())


def free_vars(root: Node) -> dict[Var, None]:
    """Variables used but not defined inside, in order of first use. (Shapes of buffers defined elsewhere do not count.)"""
    used: dict[Var, None] = {}
    bound: set[Var] = set()
    for n, defines in _mentions(root):
        if isinstance(n, Var):
            if defines:
                bound.add(n)
            else:
                used[n] = None
    return {v: None for v in used if v not in bound}


def free_buffers(root: Node) -> dict[Buffer, None]:
    """Buffers read, written or addressed inside but not allocated there, in order of first use."""
    used: dict[Buffer, None] = {}
    bound: set[Buffer] = set()
    for n, defines in _mentions(root):
        if isinstance(n, Buffer):
            if defines:
                bound.add(n)
            else:
                used[n] = None
    return {b: None for b in used if b not in bound}


def buffers_written(root: Node) -> dict[Buffer, None]:
    """Buffers that a Store writes, in order. An Address counts: what it is passed to may write there."""
    return {n.buffer: None for n, _ in _mentions(root) if isinstance(n, Store | Address)}
