"""Of which kind the loops around a store in the kernel language are, and which two stores are one reduction.

In: a store, what is around it, and loops. Out: "spatial", "reduce" or None (in the order in which they are written) per
loop.
"""
from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from tilewright.core.node import walk
from tilewright.loop.ir import (
    Add,
    Block,
    Buffer,
    Const,
    Div,
    Expr,
    For,
    If,
    Load,
    Max,
    Min,
    Mul,
    Stmt,
    Store,
    Sub,
    Var,
)
from tilewright.loop.substitute import substitute


def iteration_kinds(to: Load, body: Stmt, loops: Sequence[Var]) -> list[str | None]:
    """Per loop around a store "spatial", "reduce", or None where the instances must keep their order.

    A loop is spatial if its variable alone (plus a constant) is an index of the store: other turns store elsewhere. It is
    reduced over if no index depends on it and the store combines the old element with something else by one operator
    that may be reordered."""
    alone = set()
    for i in to.indices:
        used = [n for n in walk(i) if isinstance(n, Var) and n in loops]
        plain = isinstance(i, Var) or isinstance(i, Add | Sub) and isinstance(i.a, Var) and isinstance(i.b, Const)
        if len(used) == 1 and plain:
            alone.add(used[0])
    used_at_all = {n for i in to.indices for n in walk(i) if isinstance(n, Var)}
    out: list[str | None] = []
    for v in loops:
        if v in alone:
            out.append("spatial")
        elif v not in used_at_all and combines(to, body):
            out.append("reduce")
        else:
            out.append(None)
    return out


def single_block(s: Stmt) -> tuple[Block | None, list[For]]:
    """The block that is all there is under some loops, and these."""
    loops = []
    while isinstance(s, For):
        loops.append(s)
        s = s.body
    return (s, loops) if isinstance(s, Block) else (None, loops)


def starts(first: Block, block: Block) -> bool:
    """Whether `first` stores the elements that `block`, deeper by reductions alone, goes on from."""
    a, b = first.body, block.body
    if not (isinstance(a, Store) and isinstance(b, Store) and a.buffer is b.buffer) or first.attrs or block.attrs \
            or first.init is not None or block.init is not None or a.buffer in buffers_in(a.value):
        return False
    n = len(first.iters)
    renamed: dict[Any, Any] = {x.var: y.var for x, y in zip(first.iters, block.iters, strict=False)}
    return (first.bindings == block.bindings[:n] and all(it.kind == "spatial" for it in first.iters)
            and [it.kind for it in block.iters[:n]] == ["spatial"] * n
            and all(it.kind == "reduce" for it in block.iters[n:])
            and substitute(first.predicate, renamed) == block.predicate
            and tuple([substitute(i, renamed) for i in a.indices]) == b.indices)


def combines(to: Load, body: Stmt) -> bool:
    while isinstance(body, If):
        body = body.then
    if not isinstance(body, Store):
        return False
    e = body.value
    if isinstance(e, Add | Mul | Min | Max) or isinstance(e, Sub | Div) and e.a == to:
        sides = [e.a == to, e.b == to]
        other = e.b if sides[0] else e.a
        return any(sides) and to.buffer not in buffers_in(other)
    return False


def buffers_in(e: Any) -> frozenset[Buffer]:
    return frozenset(n.buffer for n in walk(e) if isinstance(n, Load)) if isinstance(e, Expr) else frozenset()


def stored_names(stmts: Sequence[ast.stmt]) -> set[str]:
    """Names of the buffers that statements store to."""
    return {t.value.id for s in stmts for n in ast.walk(s) if isinstance(n, ast.Assign | ast.AugAssign)
            for t in (n.targets if isinstance(n, ast.Assign) else [n.target])
            if isinstance(t, ast.Subscript) and isinstance(t.value, ast.Name)}
