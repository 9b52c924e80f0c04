"""split_axis: an iteration variable of a block becomes two, so that what depends on a part of it alone is plain to see.

    block C(vi: 20 = i):                            block C(vi0: 2 = i // 10, vi1: 10 = i % 10):
      C[vi] = A[vi // 10] * B[vi]            →        C[vi0*10 + vi1] = A[vi0] * B[vi0*10 + vi1]
"""
from __future__ import annotations

from tilewright.core.node import Node
from tilewright.loop.ir import Block, Expr, For, IterVar, Seq, Stmt, Var, as_int, const
from tilewright.loop.substitute import substitute
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef, ScheduleError, edit, find_block, loops_around
from tilewright.tensor.schedule.trace import primitive
from tilewright.tensor.span import Algebra

NAME = "split_axis"


@primitive
def split_axis(sch: Schedule, block: BlockRef, axis: int, factor: int) -> None:
    """Iteration variable number `axis` of a block, of n values, becomes one of n / factor values and one of `factor`.

    The block's loops stay: split the loop behind the variable by the same factor to have a loop for each part. Raises
    ScheduleError: no such variable, an extent that `factor` is not known to divide.
    """
    b = find_block(sch.program, block)
    if not 0 <= axis < len(b.iters):
        raise ScheduleError(NAME, f"block {b.name} has {len(b.iters)} iteration variables, none is number {axis}",
                            sch.program, block)
    it, value = b.iters[axis], b.bindings[axis]
    n = as_int(it.extent)
    if n is None or factor < 1 or n % factor:
        raise ScheduleError(NAME, f"{factor} does not divide the {it.extent} values of {it.var.name}", sch.program, block)
    outer = IterVar(Var(f"{it.var.name}_0"), const(n // factor), it.kind)
    inner = IterVar(Var(f"{it.var.name}_1"), const(factor), it.kind)
    iters = (*b.iters[:axis], outer, inner, *b.iters[axis + 1:])
    around = Algebra(loops_around(sch.program, b))
    parts = around.simplify(value // factor), around.simplify(value % factor)
    own = Algebra([For(i.var, const(0), i.extent, Seq(())) for i in iters])
    whole = {it.var: outer.var * factor + inner.var}

    def simple(n: Node) -> Node:
        if isinstance(n, Expr):
            return own.simplify(n) if n.dtype.is_int and n.dtype.lanes == 1 else n.map(simple)
        return n.map(simple) if not n.by_identity else n

    def rewritten(s: Stmt | None) -> Stmt | None:
        return None if s is None else simple(substitute(s, whole))  # type: ignore[return-value]

    new = Block(b.name, iters, (*b.bindings[:axis], *parts, *b.bindings[axis + 1:]), substitute(b.predicate, whole),
                rewritten(b.body) or b.body, rewritten(b.init), b.attrs)
    sch.program = edit(sch.program, b, new)
