"""scatter: a tensor with some elements replaced or combined at places that are data, in the compute language.

In: the tensor to start from, and a function from the index of an update to the place it goes to and its value. Out: a
tensor. Updates are made one after another, in row-major order, since several may meet at one place:

    for i in 0..n:                    block y(vi = i): y[vi] = x[vi]
    for j in 0..m:                    block y_update(vj = j): y[place[vj]] = y[place[vj]] + u[vj]
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tilewright.core.dtype import i64
from tilewright.loop.ir import TRUE, ZERO, Block, Expr, For, IntoExpr, IterVar, Load, Seq, Stmt, Store, Var, expr
from tilewright.loop.substitute import substitute
from tilewright.tensor.compute import Stage, Tensor, compute

ORDERED = ("ordered", True)
"""Attribute of a block whose instances must run one after another as the loops are written."""


@dataclass(eq=False)
class Scatter(Stage):
    """A copy (the stage's own axes and body), then updates of it: `update` stores, over `points` below `extents`."""
    points: tuple[Var, ...] = ()
    extents: tuple[Expr, ...] = ()
    update: Stmt = field(default_factory=lambda: Seq(()))

    def nest(self, name: Callable[[str], str]) -> Stmt:
        """The nest that copies, and that of the updates behind it."""
        copy = super().nest(name)
        own = tuple([IterVar(Var(v.name, i64), d, "reduce") for v, d in zip(self.points, self.extents, strict=True)])
        loops = tuple([Var(v.name, i64) for v in self.points])
        body = substitute(self.update, dict(zip(self.points, [it.var for it in own], strict=True)))
        block: Stmt = Block(name(f"{self.name}_update"), own, loops, TRUE, body, None, (ORDERED,))
        for v, d in zip(reversed(loops), reversed(self.extents), strict=True):
            block = For(v, ZERO, d, block)
        return Seq((copy, block))


def scatter(x: Tensor, extents: Iterable[IntoExpr], update: Callable[..., tuple[Sequence[Expr], Expr]],
            combine: Callable[[Expr, Expr], Expr], inputs: Sequence[Tensor], name: str = "scatter") -> Tensor:
    """`x` after `y[place] = combine(y[place], value)` for all indices below `extents`, with `update(*index)` giving
    (place, value). `inputs` are the tensors that `update` reads. Places must lie inside of `x`."""
    stage = compute(x.shape, lambda *i: x[i], name=name).stage
    (out,) = stage.outputs
    sizes = tuple([expr(d) for d in extents])
    points = tuple([Var(f"u{k}", i64) for k in range(len(sizes))])
    place, value = update(*points)
    at = tuple(place)
    store = Store(out.buffer, at, combine(Load(out.buffer, at), value))
    made = Scatter(stage.name, stage.axes, stage.body, inputs=tuple(dict.fromkeys([x, *inputs])),
                   points=points, extents=sizes, update=store)
    result = Tensor(out.buffer, made)
    made.outputs = (result,)
    return result
