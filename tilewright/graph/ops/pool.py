"""Max and average pooling over any number of spatial axes, plain or channel-blocked. Global pools are reductions."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import DType
from tilewright.graph.infer import expect, expect_dtype, expect_rank, operands
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.ops.layout import from_blocked, to_blocked
from tilewright.graph.ops.recipes import accumulator, read_or
from tilewright.graph.ops.window import (
    expect_layout,
    is_blocked,
    output_size,
    spatial,
    spatial_pad,
    window_defaults,
    windows,
)
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.ir import TRUE, Expr, Select, const
from tilewright.tensor import compute as tc
from tilewright.tensor.compute import Tensor, compute, reduce_axis


def normalize_pool(op: Operation) -> dict[str, Any]:
    operands(op, 1)
    expect_layout(op, op.attrs["layout"])
    return window_defaults(op, len(op.attrs["kernel"]))


def infer_pool(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    a = op.attrs
    rank = len(a["kernel"])
    expect(rank > 0 and min(a["kernel"]) > 0, "attribute-invalid", f"{op.op}: a kernel of {a['kernel']}")
    expect_rank(op, x, rank + 2 + is_blocked(a["layout"]))
    expect_dtype(op, x, x.dtype.is_float or (op.op == "max_pool" and x.dtype.is_int), "a floating-point type")
    sizes = [output_size(op, s, a["kernel"][k], a, k, a["ceil_mode"])
             for k, s in enumerate(spatial(x.shape, a["layout"]))]
    return [TensorType(x.dtype, (*x.shape[:2], *sizes, *x.shape[2 + rank:]))]


# ---- reference -------------------------------------------------------------------------------------------------------
def lowest(t: DType) -> float | int:
    """The identity of max."""
    return float("-inf") if t.is_float else t.range()[0]


def _lowest(x: Array) -> Any:
    return np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf


def _geometry(attrs: dict[str, Any], x: Array) -> tuple[list[int], list[int]]:
    """Output sizes, and how far the last window hangs over the padded end."""
    rank, sizes, over = x.ndim - 2, [], []
    for k in range(rank):
        s, d, kernel = attrs["strides"][k], attrs["dilations"][k], attrs["kernel"][k]
        before, after = attrs["pads"][k], attrs["pads"][rank + k]
        free = x.shape[2 + k] + before + after - ((kernel - 1) * d + 1)
        n = (-(-free // s) if attrs["ceil_mode"] else free // s) + 1
        if attrs["ceil_mode"] and (n - 1) * s >= x.shape[2 + k] + before:
            n -= 1
        sizes.append(n)
        over.append(max(0, (n - 1) * s - free))
    return sizes, over


def over_windows(attrs: dict[str, Any], x: Array, fill: Any) -> Array:
    sizes, over = _geometry(attrs, x)
    view = windows(spatial_pad(x, attrs["pads"], fill, over), attrs["kernel"], attrs["strides"], attrs["dilations"])
    return view[(slice(None), slice(None), *[slice(0, n) for n in sizes])]


def _in_layout(fn: Callable[[dict[str, Any], Array], Array]) -> Callable[[dict[str, Any], Array], Array]:
    def run(attrs: dict[str, Any], x: Array) -> Array:
        if not is_blocked(attrs["layout"]):
            return fn(attrs, x)
        return to_blocked(fn(attrs, from_blocked(x, x.shape[1] * x.shape[-1])), x.shape[-1])
    return run


def _max_pool(attrs: dict[str, Any], x: Array) -> Array:
    rank = x.ndim - 2
    return np.asarray(over_windows(attrs, x, _lowest(x)).max(tuple(range(2 + rank, 2 + 2 * rank))))


def _avg_pool(attrs: dict[str, Any], x: Array) -> Array:
    rank, w = x.ndim - 2, x.astype(np.float32) if x.dtype.itemsize < 4 else x
    axes = tuple(range(2 + rank, 2 + 2 * rank))
    total = over_windows(attrs, w, 0).sum(axes)
    ones = np.ones((1, 1, *x.shape[2:]), w.dtype)
    if attrs["count_include_pad"]:
        ones = spatial_pad(ones, attrs["pads"], 1)
        _, over = _geometry(attrs, x)
        view = windows(spatial_pad(ones, (0,) * (2 * rank), 0, over), attrs["kernel"], attrs["strides"],
                       attrs["dilations"])
        count = view[(slice(None), slice(None), *[slice(0, n) for n in total.shape[2:]])].sum(axes)
    else:
        count = over_windows(attrs, ones, 0).sum(axes)
    return np.asarray(total / count).astype(x.dtype)


# ---- recipes ---------------------------------------------------------------------------------------------------------
def _window_total(op: Operation, x: Tensor, fill: float, combine: Callable[..., Any], acc: DType) -> Tensor:
    """`combine` over each window; places outside the tensor count as `fill`."""
    a, rank, out = op.attrs, len(op.attrs["kernel"]), op.output.shape
    rs = [reduce_axis(const(k), name=f"k{n}") for n, k in enumerate(a["kernel"])]

    def cell(*i: Expr) -> Any:
        at, inside = list(i), TRUE
        for k in range(rank):
            at[2 + k] = i[2 + k] * a["strides"][k] + rs[k].var * a["dilations"][k] - a["pads"][k]
            for need, cond in ((a["pads"][k] > 0, at[2 + k] >= 0),
                               (a["pads"][rank + k] > 0 or a["ceil_mode"], at[2 + k] < x.shape[2 + k])):
                if need:
                    inside = cond if inside is TRUE else inside & cond
        value = x[tuple(at)].cast(acc)
        return combine(value if inside is TRUE else read_or(inside, value, fill), axis=rs)
    return compute(out, cell, name=op.op)


def _compute_max(op: Operation, x: Tensor) -> Tensor:
    return _window_total(op, x, lowest(x.dtype), tc.max, x.dtype)


def _compute_avg(op: Operation, x: Tensor) -> Tensor:
    a, rank, acc = op.attrs, len(op.attrs["kernel"]), accumulator(x.dtype)
    total = _window_total(op, x, 0, tc.sum, acc)
    whole = not a["ceil_mode"] and (a["count_include_pad"] or not any(a["pads"]))
    if whole:
        number = const(float(np.prod(a["kernel"])), acc)
        return compute(total.shape, lambda *i: (total[i] / number).cast(x.dtype), name="avg")

    def counts(k: int) -> Tensor:
        """How many elements of the window count along spatial axis k, by place."""
        r = reduce_axis(const(a["kernel"][k]), name="r")
        pad_end = a["pads"][rank + k] if a["count_include_pad"] else 0
        pad_start = a["pads"][k] if a["count_include_pad"] else 0

        def cell(p: Expr) -> Any:
            at = p * a["strides"][k] + r.var * a["dilations"][k] - a["pads"][k]
            counted = (at >= -pad_start) & (at < x.shape[2 + k] + pad_end)
            return tc.sum(Select(counted, const(1.0, acc), const(0.0, acc)), axis=[r])
        return compute((total.shape[2 + k],), cell, name=f"count{k}")
    per_axis = [counts(k) for k in range(rank)]

    def cell(*i: Expr) -> Any:
        n: Expr = per_axis[0][i[2]]
        for k in range(1, rank):
            n = n * per_axis[k][i[2 + k]]
        return (total[i] / n).cast(x.dtype)
    return compute(total.shape, cell, name="avg")


POOL_ATTRS = {"kernel": Attr("ints"), "strides": Attr("ints", None, "1 by default"),
          "pads": Attr("ints", None, "all beginnings, then all ends"), "dilations": Attr("ints", None),
          "ceil_mode": Attr("bool", False, "a last window may hang over the end"),
          "layout": Attr("str", "NCHW", "NCHW or NCHWc")}
RECORDS = (
    OpRecord("max_pool", "anchor", infer_pool, _in_layout(_max_pool), _compute_max, POOL_ATTRS, normalize_pool,
             doc="Largest element of each window; padding never wins."),
    OpRecord("avg_pool", "anchor", infer_pool, _in_layout(_avg_pool), _compute_avg,
             {**POOL_ATTRS, "count_include_pad": Attr("bool", False)}, normalize_pool,
             doc="Mean of each window, over the elements inside the tensor or (count_include_pad) the padded one."),
)
