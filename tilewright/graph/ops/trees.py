"""tree_step: one step down every decision tree for every row. As many steps as the deepest tree has levels end in leaves,
which lead to themselves. Every row and tree is independent: vectors along the trees, gathers from the table of nodes.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import boolean, i64
from tilewright.graph.infer import expect_dtype, expect_rank, expect_same_dim, expect_same_dtype, operands
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.registry import Array, OpRecord
from tilewright.loop.ir import Call, Expr, Select, maximum, minimum
from tilewright.tensor.compute import Tensor, compute


def _infer(op: Operation) -> Sequence[TensorType]:
    x, node, feature, low, high, missing, yes, no = operands(op, 8)
    expect_rank(op, x, 2)
    expect_rank(op, node, 2)
    expect_dtype(op, x, x.dtype.is_float, "a floating-point type")
    expect_same_dtype(op, x, low, high)
    expect_same_dtype(op, node, feature, yes, no)
    expect_dtype(op, node, node.dtype is i64, "nodes as i64")
    expect_dtype(op, missing, missing.dtype is boolean, "booleans")
    for v in (feature, low, high, missing, yes, no):
        expect_rank(op, v, 1)
        expect_same_dim(op, v.shape[0], feature.shape[0], f"the nodes of %{v.name} and %{feature.name}")
    return [node.type]


def _step(attrs: dict[str, Any], x: Array, node: Array, feature: Array, low: Array, high: Array, missing: Array,
          yes: Array, no: Array) -> Array:
    at = np.clip(node, 0, feature.size - 1)
    v = np.take_along_axis(x, np.clip(feature[at], 0, x.shape[1] - 1), 1)
    holds = (v >= low[at]) & (v <= high[at]) | np.isnan(v) & missing[at]
    return np.where(holds, yes[at], no[at])


def _compute(op: Operation, x: Tensor, node: Tensor, feature: Tensor, low: Tensor, high: Tensor, missing: Tensor,
             yes: Tensor, no: Tensor) -> Tensor:
    def inside(i: Expr, n: Expr) -> Expr:
        return minimum(maximum(i, 0), n - 1)

    def cell(r: Expr, t: Expr) -> Expr:
        at = inside(node[r, t], feature.shape[0])
        v = x[r, inside(feature[at], x.shape[1])]
        holds = (v >= low[at]) & (v <= high[at]) | Call("isnan", (v,), boolean) & missing[at]
        return Select(holds, yes[at], no[at])
    out: Tensor = compute(op.output.shape, cell, name="tree_step")
    return out


RECORDS = (
    OpRecord("tree_step", "opaque", _infer, _step, _compute,
             doc="For rows x [N, features] at nodes [N, trees]: yes[node] where low[node] <= x[feature[node]] <= high[node] "
                 "(or x is NaN and missing[node] holds), else no[node]."),
)
