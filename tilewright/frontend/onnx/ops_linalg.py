"""ONNX's linear algebra beyond products: Det, by elimination with row exchanges in a compiled loop."""
from __future__ import annotations

import numpy as np

from tilewright.core.dtype import boolean, i64
from tilewright.frontend.onnx.table import Context, Result, onnx_op
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.infer import product
from tilewright.graph.ir import Value, tensor_type
from tilewright.graph.ops.recipes import accumulator
from tilewright.loop.ir import as_int


@onnx_op("Det")
def det(c: Context) -> Result:
    """The product of pivots, its sign turned by each exchange. A step takes, of all matrices at once, the row with the
    largest element in the column (Golub and Van Loan, "Matrix Computations", algorithm 3.4.1)."""
    x = c.x()
    n = as_int(x.shape[-1])
    if n is None or as_int(x.shape[-2]) != n:
        raise c.error("shape-mismatch", f"Det: {x.type} holds no square matrices of known size")
    wide, batch = accumulator(x.dtype), product(x.shape[:-2])
    a = c.b.reshape(c.cast(x, wide), [batch, n, n])
    one = c.add("full", shape=[batch], value=1, dtype=wide)
    b = GraphBuilder(c.b.unique("elimination"), c.b)
    step, _, left, found = (b.input(name, t) for name, t in (
        ("step", tensor_type(i64, ())), ("go", tensor_type(boolean, ())), ("left", a.type), ("found", one.type)))

    def add(op: str, *operands: Value, **attrs: object) -> Value:
        return b.add(op, operands, attrs)
    rows = b.constant(np.arange(n), element=i64)
    zero = b.constant(0, element=wide)
    here, below = add("equal", rows, step), add("greater_equal", rows, step)  # [n]
    column = b.reshape(add("gather", left, b.reshape(step, [1]), axis=2), [batch, n])
    size = add("where", below, add("abs", column), b.constant(-1, element=wide))
    best = add("argmax", size, axis=1, keepdims=True)  # [batch, 1]
    chosen = add("equal", rows, best)  # [batch, n]

    def row(which: Value) -> Value:  # the row that is marked, [batch, 1, n]
        mask = b.reshape(which, [batch if which.rank == 2 else 1, n, 1])
        return add("reduce_sum", add("where", mask, left, zero), axes=(1,))
    top, other = row(chosen), row(here)
    swapped = add("where", b.reshape(chosen, [batch, n, 1]), other, left)
    swapped = add("where", b.reshape(here, [1, n, 1]), top, swapped)
    pivot = b.reshape(add("gather", top, b.reshape(step, [1]), axis=2), [batch, 1])
    turned = add("where", add("equal", best, b.reshape(step, [1, 1])), pivot, add("neg", pivot))
    nothing = add("equal", pivot, zero)
    safe = add("where", nothing, b.constant(1, element=wide), pivot)
    again = b.reshape(add("gather", swapped, b.reshape(step, [1]), axis=2), [batch, n])
    factor = add("where", add("greater", rows, step), add("div", again, safe), zero)
    after = add("sub", swapped, add("mul", b.reshape(factor, [batch, n, 1]), top))
    value = add("mul", found, b.reshape(turned, [batch]))
    body = b.finish([b.constant(True, element=boolean), after, value])
    _, out = c.add_all("loop", c.b.constant(np.int64(n)), None, a, one, regions=[body])
    return c.cast(c.b.reshape(out, x.shape[:-2]), x.dtype)
