"""push_inward: a loop whose iterations are independent goes inside the statements of its body, as far as it is asked to.

    for v: (for k: S(v, k)); T(v)      →      for k: (for v: S(v, k)); for v: T(v)

Independent iterations may run in any order, so they may be interleaved with the steps of the loops in the body and with its
statements. In: a loop and a question that says where to stop. Out: the body with copies of the loop inside.
"""
from __future__ import annotations

from collections.abc import Callable

from tilewright.core.node import Node, walk
from tilewright.loop.ir import Allocate, For, If, Let, Seq, Stmt, Var, seq
from tilewright.loop.substitute import substitute


def push_inward(loop: For, stops: Callable[[Stmt], bool]) -> Stmt:
    """`loop` around the statements of its body where `stops` says so, or where it cannot go further in: a loop whose bounds,
    a branch whose condition, a definition whose value depends on its variable."""
    def visit(s: Stmt) -> Stmt:
        if stops(s):
            return copy(s)
        match s:
            case Seq(stmts):
                return seq([visit(t) for t in stmts])
            case For() if not (mentions(s.start, loop.var) or mentions(s.extent, loop.var)):
                return s.replace(body=visit(s.body))
            case If() if not mentions(s.cond, loop.var):
                return s.replace(then=visit(s.then), otherwise=None if s.otherwise is None else visit(s.otherwise))
            case Let() if not mentions(s.value, loop.var):
                return s.replace(body=visit(s.body))
            case Allocate() if s.offset is None:
                return s.replace(body=visit(s.body))
        return copy(s)

    def copy(s: Stmt) -> Stmt:
        v = Var(loop.var.name, loop.var.type)
        return loop.replace(var=v, body=substitute(s, {loop.var: v}))

    return visit(loop.body)


def mentions(e: Node, v: Var) -> bool:
    """Whether an expression uses a variable."""
    return any(n is v for n in walk(e))
