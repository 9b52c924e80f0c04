"""virtual_threads: the loops over a thread's virtual threads go innermost and are unrolled.

In: flat loops, some of kind "vthread". Out: none; their iterations are interleaved, so that virtual threads share what is
loaded around them, and what they touch lies as far apart as the split that made them says.

    for v in 0..2 vthread:                      for k in 0..8:
      for k in 0..8: C[v*32] += A[v*32, k]  →     for v in 0..2 unrolled: C[v*32] += A[v*32, k]
"""
from __future__ import annotations

from tilewright.core.node import Node, walk
from tilewright.loop.ir import For, Load, Program, Stmt, Store, TensorCall
from tilewright.loop.lower.push_inward import mentions, push_inward


def virtual_threads(program: Program) -> Program:
    """Every virtual thread's loop innermost, around single stores; one that is the same in all of them runs once."""
    def visit(n: Node) -> Node:
        if not isinstance(n, Stmt):
            return n
        new = n.map(visit)
        if isinstance(new, For) and new.kind == "vthread":
            inner = new.replace(kind="unrolled", attrs=(*new.attrs, MARK))
            return once(push_inward(inner, lambda s: isinstance(s, Store | TensorCall)))
        return new

    return program.replace(body=visit(program.body))


MARK = ("vthread", True)


def once(s: Node) -> Node:
    """The statement without loops over virtual threads around a store that does not depend on them."""
    if isinstance(s, For) and MARK in s.attrs:
        body, attrs = once(s.body), tuple([a for a in s.attrs if a != MARK])
        assert isinstance(body, Stmt)
        return body if isinstance(body, Store) and not mentions(body, s.var) and not _reads_itself(body) else s.replace(
            body=body, attrs=attrs)
    return s.map(once) if isinstance(s, Stmt) else s


def _reads_itself(s: Store) -> bool:
    return any(isinstance(n, Load) and n.buffer is s.buffer for n in walk(s))
