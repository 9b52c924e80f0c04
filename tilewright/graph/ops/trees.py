"""tree_step: one step down every decision tree for every row. As many steps as the deepest tree has levels end in leaves,
which lead to themselves. Every row and tree is independent, so that many walks are on their way at once.

The table has a row for each node, so that a step reads one line of memory of it: feature, bits of the bound, yes, no.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import boolean, i32, i64
from tilewright.graph.infer import expect, expect_dtype, expect_rank, expect_same_dtype, operand, same
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.registry import Array, OpRecord
from tilewright.loop.ir import Call, Expr, Select, as_int, maximum, minimum
from tilewright.tensor.compute import Tensor, compute

FIELDS = 4


def _infer(op: Operation) -> Sequence[TensorType]:
    expect(3 <= len(op.inputs) <= 5, "operand-count", f"tree_step takes 3 to 5 inputs, {len(op.inputs)} were given")
    x, node, table = (operand(op, k) for k in range(3))
    expect_rank(op, x, 2)
    expect_rank(op, node, 2)
    expect_rank(op, table, 2)
    expect_dtype(op, x, x.dtype.is_float and x.dtype.bits >= 32, "f32 or f64")
    expect_dtype(op, node, node.dtype is (i32 if x.dtype.bits == 32 else i64), "integers as wide as the features")
    expect_same_dtype(op, node, table)
    expect(as_int(table.shape[1]) == FIELDS, "shape-mismatch",
           lambda: f"tree_step: a node has {FIELDS} numbers, not {table.type}")
    for v, kind in zip(op.inputs[3:], (x.dtype, boolean), strict=False):
        if v is not None:
            expect_rank(op, v, 1)
            expect_dtype(op, v, v.dtype is kind, str(kind))
            expect(same(v.shape[0], table.shape[0]) is not False, "shape-mismatch",
                   lambda: f"tree_step: {v.type} and {table.type} do not say the same number of nodes")  # noqa: B023
    return [node.type]


def _step(attrs: dict[str, Any], x: Array, node: Array, table: Array, low: Array | None = None,
          missing: Array | None = None) -> Array:
    at = np.clip(node, 0, table.shape[0] - 1)
    feature, high, yes, no = (table[:, k] for k in range(FIELDS))
    v = np.take_along_axis(x, np.clip(feature[at], 0, x.shape[1] - 1).astype(np.int64), 1)
    holds = v <= np.ascontiguousarray(high).view(x.dtype)[at]
    if low is not None:
        holds &= v >= low[at]
    if missing is not None:
        holds |= np.isnan(v) & missing[at]
    return np.where(holds, yes[at], no[at])


def _compute(op: Operation, x: Tensor, node: Tensor, table: Tensor, low: Tensor | None = None,
             missing: Tensor | None = None) -> Tensor:
    def inside(i: Expr, n: Expr) -> Expr:
        return minimum(maximum(i, 0), n.cast(node.dtype) - 1)

    def cell(r: Expr, t: Expr) -> Expr:
        at = inside(node[r, t], table.shape[0])
        v = x[r, inside(table[at, 0], x.shape[1])]
        holds = v <= Call("reinterpret", (table[at, 1],), x.dtype)
        if low is not None:
            holds = holds & (v >= low[at])
        if missing is not None:
            holds = holds | Call("isnan", (v,), boolean) & missing[at]
        return Select(holds, table[at, 2], table[at, 3])
    out: Tensor = compute(op.output.shape, cell, name="tree_step")
    return out


RECORDS = (
    OpRecord("tree_step", "opaque", _infer, _step, _compute,
             doc="For rows x [N, features] at nodes [N, trees] of a table [nodes, 4] of (feature, bits of high, yes, no): "
                 "yes where low[node] <= x[feature] <= high (or x is NaN and missing[node] holds), else no. Without `low` "
                 "there is no lower bound, without `missing` NaN leads to no."),
)
