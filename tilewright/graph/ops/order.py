"""Operators that order elements: topk, order_key, kth_largest, rank_rows.

A few of many are picked one after the other, each in a pass over the row. Else elements are ordered by ranks: how many come
before each one. These are n² comparisons, all in vectors and in parallel; `passes/selection.py` sees to it that n is small.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import DType, boolean, f64, i32, i64, u32, u64
from tilewright.graph.infer import axis_of, expect_at_most, expect_dtype, expect_rank, operands
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.ops.recipes import call, widened
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.ir import TRUE, Call, Expr, Not, Select, as_int, const, estimate, maximum, minimum
from tilewright.tensor import compute as tc
from tilewright.tensor.compute import ReduceAxis, Tensor, compute, reduce_axis
from tilewright.tensor.scan import scan

MOST_PICKS = 8
"""So many are picked one after the other; each takes two passes over the row."""


def _comes_first(a: Expr, b: Expr, largest: bool) -> tuple[Expr, Expr]:
    """Whether `a` comes before `b`, and whether they are equal; NaN counts as the largest, and NaNs as equal."""
    better, same = (b < a if largest else a < b), a.eq(b)
    if a.dtype.is_float:
        nan_a, nan_b = Call("isnan", (a,), boolean), Call("isnan", (b,), boolean)
        better = better | ((nan_a & Not(nan_b)) if largest else (nan_b & Not(nan_a)))
        same = same | (nan_a & nan_b)
    return better, same


# ---- order_key -------------------------------------------------------------------------------------------------------
def _key_type(t: DType) -> DType:
    return i64 if t.is_int and (t.bits > 32 or t is u32) or t is f64 else i32


def _infer_order_key(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    return [TensorType(_key_type(x.dtype), x.shape)]


def _order_key(attrs: dict[str, Any], x: Array) -> Array:
    if x.dtype.kind in "iu":
        key = (x ^ np.uint64(1 << 63)).view(np.int64) if x.dtype == np.uint64 else x.astype(
            np.int64 if x.dtype.itemsize > 4 or x.dtype == np.uint32 else np.int32)
    else:
        wide = x if x.dtype == np.float64 else x.astype(np.float32)
        kind = np.int64 if wide.dtype == np.float64 else np.int32
        most = np.array(np.iinfo(kind).max, kind)
        bits: Array = np.where(wide == 0, wide.dtype.type(0), wide).view(kind)
        key = np.where(np.isnan(wide), most, np.where(bits < 0, np.bitwise_xor(bits, most), bits))
    return key if attrs["largest"] else np.asarray(np.invert(key))


def order_key(x: Expr, largest: bool) -> Expr:
    """An integer that is larger where `x` comes earlier. The bits of a float, taken as an integer, are in its order, once
    those of negative ones are turned over."""
    to = _key_type(x.dtype)
    if x.dtype.is_float:
        wide = widened(x)
        bits = Call("reinterpret", (Select(wide.eq(const(0, wide)), const(0, wide), wide),), to)
        most = const(2 ** (to.bits - 1) - 1, to)
        key: Expr = Select(bits < const(0, to), call("bit_xor", bits, most), bits)
        key = Select(Call("isnan", (wide,), boolean), most, key)
    elif x.dtype is u64:
        key = call("bit_xor", Call("reinterpret", (x,), i64), const(-(2**63), i64))
    else:
        key = x.cast(to)
    return key if largest else const(-1, to) - key


def _compute_order_key(op: Operation, x: Tensor) -> Tensor:
    return compute(x.shape, lambda *i: order_key(x[i], op.attrs["largest"]), name="key")


# ---- topk ------------------------------------------------------------------------------------------------------------
def _normalize_axis(op: Operation) -> dict[str, Any]:
    return {"axis": axis_of(op, op.attrs["axis"], operands(op, 1)[0].rank)}


def _infer_topk(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    axis = op.attrs["axis"]
    expect_at_most(op, op.attrs["k"], x.shape[axis], f"k of the elements of %{x.name} along axis {axis}")
    shape = (*x.shape[:axis], op.attrs["k"], *x.shape[axis + 1:])
    return [TensorType(x.dtype, shape), TensorType(i64, shape)]


def _topk(attrs: dict[str, Any], x: Array) -> tuple[Array, Array]:
    """Equal elements keep their order; NaN counts as the largest."""
    axis = attrs["axis"]
    order = np.argsort(np.invert(_order_key(attrs, x)), axis, kind="stable")
    at = np.take(order, np.arange(attrs["k"]), axis)
    return np.take_along_axis(x, at, axis), at.astype(np.int64)


def _compute_topk(op: Operation, x: Tensor) -> tuple[Tensor, Tensor]:
    n, k = estimate(x.shape[op.attrs["axis"]]), as_int(op.attrs["k"])
    return _picked(op, x, k) if k is not None and 0 < k <= MOST_PICKS and 4 * k <= n else _ranked(op, x)


def _picked(op: Operation, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best that comes after the one before, `count` times: first the largest key, then the first place that has it."""
    axis, n = op.attrs["axis"], x.shape[op.attrs["axis"]]
    rows = (*x.shape[:axis], *x.shape[axis + 1:])
    key = compute(x.shape, lambda *i: order_key(x[i], op.attrs["largest"]), name="key")
    worst = const(-(2 ** (key.dtype.bits - 1)), key.dtype)
    places: list[Tensor] = []
    best: Tensor | None = None
    for turn in range(count):
        def left(i: Sequence[Expr], j: Expr, last: Tensor | None = best, at: tuple[Tensor, ...] = tuple(places[-1:])
                 ) -> tuple[Expr, Expr]:
            """A key, and whether it comes after the last one picked."""
            this = key[(*i[:axis], j, *i[axis:])]
            if last is None:
                return this, TRUE
            return this, (this < last[tuple(i)]) | (this.eq(last[tuple(i)]) & (j > at[0][tuple(i)]))

        r, q = reduce_axis(n, "r"), reduce_axis(n, "q")

        def largest(*i: Expr, r: ReduceAxis = r, left: Any = left) -> Any:
            this, ok = left(i, r.var)
            return tc.max(this if ok is TRUE else Select(ok, this, worst), [r])
        found = compute(rows, largest, name=f"best{turn}")

        def first(*i: Expr, q: ReduceAxis = q, left: Any = left, found: Tensor = found) -> Any:
            this, ok = left(i, q.var)
            hit = this.eq(found[i])
            return tc.min(Select(hit if ok is TRUE else hit & ok, q.var, n - 1), [q])
        if count == 1:  # its place is the result
            places.append(compute(op.outputs[1].shape, lambda *i, first=first: first(*i[:axis], *i[axis + 1:]), name="topk"))
            break
        places.append(compute(rows, first, name=f"place{turn}"))
        best = found

    def chosen(*i: Expr) -> Expr:
        rest = (*i[:axis], *i[axis + 1:])
        out: Expr = places[-1][rest]
        for turn in reversed(range(count - 1)):
            out = Select(i[axis].eq(turn), places[turn][rest], out)
        return out
    shape = op.outputs[1].shape
    at = places[0] if count == 1 else compute(shape, chosen, name="topk")
    return compute(shape, lambda *i: x[(*i[:axis], minimum(maximum(at[i], 0), n - 1), *i[axis + 1:])],
                   name="topk_values"), at


def _ranked(op: Operation, x: Tensor) -> tuple[Tensor, Tensor]:
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


# ---- kth_largest -----------------------------------------------------------------------------------------------------
def _infer_kth_largest(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    expect_rank(op, x, 2)
    expect_dtype(op, x, x.dtype in (i32, i64), "keys (i32 or i64)")
    return [TensorType(x.dtype, (x.shape[0],))]


def _kth_largest(attrs: dict[str, Any], x: Array) -> Array:
    return np.asarray(np.partition(x, x.shape[1] - attrs["k"], axis=1)[:, x.shape[1] - attrs["k"]])


def _compute_kth_largest(op: Operation, x: Tensor) -> Tensor:
    """The largest number that at least k elements reach, bit by bit from the first: each is a pass that counts."""
    (rows, n), t = x.shape, x.dtype
    start = compute((rows,), lambda i: const(-(2 ** (t.bits - 1)), t), name="start")

    def step(turn: Expr, reached: Tensor) -> Tensor:
        bit = Call("shift_left", (const(1, t), (t.bits - 1 - turn).cast(t)), t)
        tried = compute((rows,), lambda i: call("bit_xor", reached[i], bit), name="tried")
        r = reduce_axis(n, "r")
        count = compute((rows,), lambda i: tc.sum(Select(x[i, r.var] >= tried[i], const(1, i32), const(0, i32)), [r]),
                        name="count")
        return compute((rows,), lambda i: Select(count[i].cast(i64) >= op.attrs["k"], tried[i], reached[i]), name="reached")
    found = scan(t.bits, [start], step, name="bits")
    return compute((rows,), lambda i: found[t.bits - 1, i], name="kth")


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
    OpRecord("order_key", "elementwise", _infer_order_key, _order_key, _compute_order_key,
             attrs={"largest": Attr("bool", True)},
             doc="Integers in the order of the elements (turned over where `largest` does not hold); NaN is the largest."),
    OpRecord("topk", "opaque", _infer_topk, _topk, _compute_topk,
             attrs={"k": Attr("dim"), "axis": Attr("int", -1), "largest": Attr("bool", True)},
             normalize=_normalize_axis,
             doc="The k largest or smallest along an axis, sorted, and their indices (i64)."),
    OpRecord("kth_largest", "opaque", _infer_kth_largest, _kth_largest, _compute_kth_largest, attrs={"k": Attr("dim")},
             doc="Of each row of integers the k-th largest, counted with repetitions."),
    OpRecord("rank_rows", "opaque", _infer_rank_rows, _rank_rows, _compute_rank_rows,
             doc="The place (i64) of each row of a matrix in lexicographic order; equal rows keep theirs, NaN comes last."),
)
