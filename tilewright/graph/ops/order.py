"""Operators that order elements: topk, rank_rows.

Both go by ranks: how many elements come before each one. These are n² comparisons, all in vectors and in parallel.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import boolean, i64
from tilewright.graph.infer import axis_of, expect, expect_rank, operands
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.ops.recipes import widened
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.ir import Call, Expr, Not, Select, as_int, const, maximum, minimum
from tilewright.tensor import compute as tc
from tilewright.tensor.compute import Tensor, compute, reduce_axis


def _comes_first(a: Expr, b: Expr, largest: bool) -> tuple[Expr, Expr]:
    """Whether `a` comes before `b`, and whether they are equal; NaN counts as the largest, and NaNs as equal."""
    better, same = (b < a if largest else a < b), a.eq(b)
    if a.dtype.is_float:
        nan_a, nan_b = Call("isnan", (a,), boolean), Call("isnan", (b,), boolean)
        better = better | ((nan_a & Not(nan_b)) if largest else (nan_b & Not(nan_a)))
        same = same | (nan_a & nan_b)
    return better, same


# ---- topk ------------------------------------------------------------------------------------------------------------
def _normalize_axis(op: Operation) -> dict[str, Any]:
    return {"axis": axis_of(op, op.attrs["axis"], operands(op, 1)[0].rank)}


def _infer_topk(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    axis = op.attrs["axis"]
    n, k = as_int(x.shape[axis]), as_int(op.attrs["k"])
    expect(n is None or k is None or k <= n, "shape-mismatch", lambda: f"topk: {k} of {n} elements")
    shape = (*x.shape[:axis], op.attrs["k"], *x.shape[axis + 1:])
    return [TensorType(x.dtype, shape), TensorType(i64, shape)]


def _topk(attrs: dict[str, Any], x: Array) -> tuple[Array, Array]:
    """Equal elements keep their order; NaN counts as the largest."""
    axis, count = attrs["axis"], attrs["k"]
    if attrs["largest"]:
        order = np.flip(x.shape[axis] - 1 - np.argsort(np.flip(x, axis), axis, kind="stable"), axis)
    else:
        order = np.argsort(x, axis, kind="stable")
    at = np.take(order, np.arange(count), axis)
    return np.take_along_axis(x, at, axis), at.astype(np.int64)


def _compute_topk(op: Operation, x: Tensor) -> tuple[Tensor, Tensor]:
    """The ranks within each row, then the place of each rank."""
    axis, largest, n = op.attrs["axis"], op.attrs["largest"], x.shape[op.attrs["axis"]]

    def at(i: Sequence[Expr], k: Expr) -> tuple[Expr, ...]:
        return (*i[:axis], k, *i[axis + 1:])

    def first(a: Expr, b: Expr, earlier: Expr) -> Expr:
        better, same = _comes_first(a, b, largest)
        return better | (same & earlier)

    r, q = reduce_axis(n, "r"), reduce_axis(n, "q")
    rank = compute(x.shape, lambda *i: tc.sum(Select(
        first(widened(x[at(i, r.var)]), widened(x[i]), r.var < i[axis]), const(1), const(0)), [r]), name="rank")
    shape = op.outputs[1].shape
    places = compute(shape, lambda *i: tc.sum(
        Select(rank[at(i, q.var)].eq(i[axis]), q.var, const(0)), [q]), name="topk")
    return compute(shape, lambda *i: x[at(i, minimum(maximum(places[i], 0), n - 1))], name="topk_values"), places


# ---- rank_rows -------------------------------------------------------------------------------------------------------
def _infer_rank_rows(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    expect_rank(op, x, 2)
    return [TensorType(i64, (x.shape[0],))]


def _rank_rows(attrs: dict[str, Any], x: Array) -> Array:
    rank = np.empty(len(x), np.int64)
    rank[np.lexsort([np.zeros(len(x)), *x.T[::-1]])] = np.arange(len(x))
    return rank


def _compute_rank_rows(op: Operation, x: Tensor) -> Tensor:
    """Two rows are compared at the first column where they differ."""
    n, m = x.shape

    def element(i: Expr, k: Expr) -> Expr:
        return widened(x[i, k])

    def same(i: Expr, j: Expr, k: Expr) -> Expr:
        return _comes_first(element(j, k), element(i, k), False)[1]

    if as_int(m) == 1:
        def column(i: Expr, j: Expr) -> Expr:
            return const(0)
    else:
        k = reduce_axis(m, "k")
        differ = compute((n, n), lambda i, j: tc.min(Select(same(i, j, k.var), m - 1, k.var), [k]), name="differ")

        def column(i: Expr, j: Expr) -> Expr:
            return minimum(maximum(differ[i, j], 0), m - 1)

    def before(i: Expr, j: Expr) -> Expr:
        better, equal = _comes_first(element(j, column(i, j)), element(i, column(i, j)), False)
        return better | (equal & (j < i))
    r = reduce_axis(n, "r")
    return compute((n,), lambda i: tc.sum(Select(before(i, r.var), const(1), const(0)), [r]), name="rank")


RECORDS = (
    OpRecord("topk", "opaque", _infer_topk, _topk, _compute_topk,
             attrs={"k": Attr("dim"), "axis": Attr("int", -1), "largest": Attr("bool", True)},
             normalize=_normalize_axis,
             doc="The k largest or smallest along an axis, sorted, and their indices (i64)."),
    OpRecord("rank_rows", "opaque", _infer_rank_rows, _rank_rows, _compute_rank_rows,
             doc="The place (i64) of each row of a matrix in lexicographic order; equal rows keep theirs, NaN comes last."),
)
