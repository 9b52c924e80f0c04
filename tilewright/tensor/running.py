"""running: each element from the one before it along an axis, in the compute language (running sums and products).

In: a shape, an axis, the value that each place adds, and how a value is added. Out: a tensor. It becomes one block that
reads what it has written; what forbids other orders of its instances is that read alone, so rules may move other loops:

    for i in 0..n, k in 0..m:
        block y(vi = i, vk = k): y[vi, vk] = (y[vi, vk - 1] if vk > 0 else start) + value(vi, vk)
"""
from __future__ import annotations

from collections.abc import Callable, Iterable

from tilewright.core.node import walk
from tilewright.loop.ir import Block, Buffer, Expr, Guard, IntoExpr, Load, Store, Var, expr
from tilewright.tensor.compute import Tensor, compute


def running(shape: Iterable[IntoExpr], axis: int, value: Callable[..., Expr], combine: Callable[[Expr, Expr], Expr],
            start: Expr, name: str = "running") -> Tensor:
    """The tensor whose element at (i, …, k, …) is `combine` of that at (i, …, k-1, …), or of `start` for k = 0, and
    `value(i, …, k, …)`, k being the index along `axis`. `start` gives the dtype."""
    itself = Tensor(Buffer(name, start.dtype, tuple([expr(d) for d in shape])))

    def cell(*i: Expr) -> Expr:
        k = i[axis]
        return combine(Guard(k > 0, Load(itself.buffer, (*i[:axis], k - 1, *i[axis + 1:])), start), value(*i))
    stage = compute(shape, cell, name=name).stage
    itself.stage, stage.outputs = stage, (itself,)
    return itself


def running_axis(block: Block) -> Var | None:
    """The variable along which a block reads what other instances of it have written; None if it does not, or along
    several."""
    body = block.body
    if not isinstance(body, Store):
        return None
    found = {own for n in walk(body.value) if isinstance(n, Load) and n.buffer is body.buffer
             for own, read in zip(body.indices, n.indices, strict=True) if own != read}
    only = next(iter(found)) if len(found) == 1 else None
    return only if isinstance(only, Var) else None
