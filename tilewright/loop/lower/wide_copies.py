"""wide_copies: of the vectorized loops of a kernel, those that copy stay vectors; the others are unrolled.

A thread of a device is a lane itself. What pays is to move several neighbouring elements with one instruction, as a
cooperative load into shared memory does. A condition on all of them goes around the loop.

    for v in 0..4 vectorized: s[t*4 + v] = A[i*4 + v]     stays
    for v in 0..4 vectorized: C[v] = C[v] + a * b[v]      →      for v in 0..4 unrolled: …
"""
from __future__ import annotations

from tilewright.core.node import Node
from tilewright.loop.ir import For, If, Load, Program, Stmt, Store, as_int
from tilewright.loop.substitute import free_vars

WIDTHS = (2, 4)


def wide_copies(program: Program) -> Program:
    """Vectorized loops that are no copies of a width that devices have become unrolled ones."""
    def visit(n: Node) -> Node:
        if not isinstance(n, Stmt):
            return n
        new = n.map(visit)
        if isinstance(new, For) and new.kind == "vectorized" and isinstance(new.body, If) and new.body.otherwise is None \
                and new.var not in free_vars(new.body.cond):
            return new.body.replace(then=visit(new.replace(body=new.body.then)))
        if isinstance(new, For) and new.kind == "vectorized" and not _is_copy(new):
            return new.replace(kind="unrolled")
        return new

    return program.replace(body=visit(program.body))


def scalar_copies(program: Program) -> Program:
    """For a device that moves single elements: every vectorized loop has become an unrolled one."""
    def visit(n: Node) -> Node:
        if not isinstance(n, Stmt):
            return n
        new = n.map(visit)
        return new.replace(kind="unrolled") if isinstance(new, For) and new.kind == "vectorized" else new

    return program.replace(body=visit(program.body))


def _is_copy(s: For) -> bool:
    return (isinstance(s.body, Store) and isinstance(s.body.value, Load)
            and as_int(s.extent) in (WIDTHS if s.body.buffer.dtype.bits > 16 else (*WIDTHS, 8)))
