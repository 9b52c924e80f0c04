"""virtual_threads: the loops over a thread's virtual threads go innermost and are unrolled.

In: flat loops, some of kind "vthread". Out: none; their iterations are interleaved, so that virtual threads share what is
loaded around them, and what they touch lies as far apart as the split that made them says.

    for v in 0..2 vthread:                      for k in 0..8:
      for k in 0..8: C[v*32] += A[v*32, k]  →     for v in 0..2 unrolled: C[v*32] += A[v*32, k]
"""
from __future__ import annotations

from tilewright.core.node import Node
from tilewright.loop.ir import For, Program, Stmt, Store, TensorCall
from tilewright.loop.lower.push_inward import push_inward


def virtual_threads(program: Program) -> Program:
    """Every virtual thread's loop innermost, around single stores."""
    def visit(n: Node) -> Node:
        if not isinstance(n, Stmt):
            return n
        new = n.map(visit)
        if isinstance(new, For) and new.kind == "vthread":
            return push_inward(new.replace(kind="unrolled"), lambda s: isinstance(s, Store | TensorCall))
        return new

    return program.replace(body=visit(program.body))
