"""Normalisations: softmax, log_softmax, layer_norm, rms_norm, batch_norm (inference), instance_norm, group_norm, lrn.

Recipes are several stages of one program: row statistics, then the elementwise end. Statistics of narrow floats are
computed in f32.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from tilewright.core.dtype import DType, f32
from tilewright.graph.infer import (
    axis_of,
    expect,
    expect_dtype,
    expect_expands,
    expect_rank,
    expect_same_dim,
    expect_same_dtype,
    operand,
    operands,
    optional,
    product,
)
from tilewright.graph.ir import Operation, TensorType, Value
from tilewright.graph.ops import gradients
from tilewright.graph.ops.recipes import accumulator, broadcast_read, call, exp, read_or
from tilewright.graph.ops.reduce import reduce_over
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.ir import Expr, Select, as_int, const
from tilewright.tensor import compute as tc
from tilewright.tensor.compute import Tensor, compute, reduce_axis


def _wide(x: Array) -> Array:
    return x.astype(np.float32) if x.dtype.itemsize < 4 else x


def _float_input(op: Operation) -> Value:
    x = operand(op, 0)
    expect_dtype(op, x, x.dtype.is_float, "a floating-point type")
    return x


def _normalize_axis(op: Operation) -> dict[str, Any]:
    return {"axis": axis_of(op, op.attrs["axis"], operand(op, 0).rank)}


# ---- softmax ---------------------------------------------------------------------------------------------------------
def _infer_softmax(op: Operation) -> Sequence[TensorType]:
    operands(op, 1)
    return [_float_input(op).type]


def _softmax(attrs: dict[str, Any], x: Array) -> Array:
    w, axis = _wide(x), attrs["axis"]
    e = np.exp(w - w.max(axis, keepdims=True, initial=-np.inf))
    return np.asarray(e / e.sum(axis, keepdims=True)).astype(x.dtype)


def _log_softmax(attrs: dict[str, Any], x: Array) -> Array:
    w, axis = _wide(x), attrs["axis"]
    d = w - w.max(axis, keepdims=True, initial=-np.inf)
    with np.errstate(divide="ignore"):  # of nothing
        return np.asarray(d - np.log(np.exp(d).sum(axis, keepdims=True))).astype(x.dtype)


def _row(i: Sequence[Expr], axis: int) -> tuple[Expr, ...]:
    return (*i[:axis], *i[axis + 1:])


FADED = -80.0
"""Elements of a softmax in f32 that are farther than this below the largest count as zero: 1.8e-35 of it at most. Products
with what is left are normal numbers; over denormal ones many processors take a hundred times longer."""


def _exp_below(d: Expr) -> Expr:
    """exp of how far an element is below its row's largest."""
    return exp(Select(d < FADED, const(-math.inf, d), d) if d.dtype is f32 else d)


def _softmax_stages(x: Tensor, axis: int, acc: DType) -> tuple[Tensor, Tensor]:
    """The largest element of each row, and the sum of exp(x - largest)."""
    top = reduce_over(x, (axis,), False, "row_max", tc.max, lambda v: v.cast(acc))
    r = reduce_axis(x.shape[axis], name="r")

    def cell(*i: Expr) -> Any:
        return tc.sum(_exp_below(x[(*i[:axis], r.var, *i[axis:])].cast(acc) - top[i]), axis=[r])
    return top, compute(top.shape, cell, name="row_sum")


def _compute_softmax(op: Operation, x: Tensor) -> Tensor:
    axis, acc = op.attrs["axis"], accumulator(x.dtype)
    top = reduce_over(x, (axis,), False, "row_max", tc.max, lambda v: v.cast(acc))
    e = compute(x.shape, lambda *i: _exp_below(x[i].cast(acc) - top[_row(i, axis)]), name="row_exp")
    total = reduce_over(e, (axis,), False, "row_sum", tc.sum)
    scale = compute(total.shape, lambda *i: 1.0 / total[i], name="row_scale")  # a division costs as much as an exp
    return compute(x.shape, lambda *i: (e[i] * scale[_row(i, axis)]).cast(x.dtype), name="softmax")


def _compute_log_softmax(op: Operation, x: Tensor) -> Tensor:
    axis, acc = op.attrs["axis"], accumulator(x.dtype)
    top, total = _softmax_stages(x, axis, acc)
    log = compute(total.shape, lambda *i: call("log", total[i]), name="row_log")
    return compute(x.shape, lambda *i: (x[i].cast(acc) - top[_row(i, axis)] - log[_row(i, axis)]).cast(x.dtype),
                   name="log_softmax")


# ---- layer_norm, rms_norm --------------------------------------------------------------------------------------------
def _infer_row_norm(op: Operation) -> Sequence[TensorType]:
    x, axis = _float_input(op), op.attrs["axis"]
    for k in range(1, len(op.inputs)):
        v = optional(op, k)
        if v is None:
            continue
        expect_same_dtype(op, x, v)
        expect_expands(op, v.shape, x.shape[axis:], f"%{v.name}")
    return [x.type]


def _affine(y: Array, scale: Array | None, bias: Array | None) -> Array:
    if scale is not None:
        y = y * _wide(scale)
    return y if bias is None else y + _wide(bias)


def _layer_norm(attrs: dict[str, Any], x: Array, scale: Array | None = None, bias: Array | None = None) -> Array:
    w, axes = _wide(x), tuple(range(attrs["axis"], x.ndim))
    d = w - w.mean(axes, keepdims=True)
    y = d / np.sqrt((d * d).mean(axes, keepdims=True) + np.asarray(attrs["eps"], w.dtype))
    return _affine(y, scale, bias).astype(x.dtype)


def _rms_norm(attrs: dict[str, Any], x: Array, scale: Array | None = None) -> Array:
    w, axes = _wide(x), tuple(range(attrs["axis"], x.ndim))
    y = w / np.sqrt((w * w).mean(axes, keepdims=True) + np.asarray(attrs["eps"], w.dtype))
    return _affine(y, scale, None).astype(x.dtype)


def _scaled(y: Expr, i: Sequence[Expr], x: Tensor, axis: int, acc: DType, scale: Tensor | None,
            bias: Tensor | None) -> Expr:
    if scale is not None:
        y = y * broadcast_read(scale, i[axis:], x.shape[axis:]).cast(acc)
    if bias is not None:
        y = y + broadcast_read(bias, i[axis:], x.shape[axis:]).cast(acc)
    return y.cast(x.dtype)


def _compute_layer_norm(op: Operation, x: Tensor, scale: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    axis, acc = op.attrs["axis"], accumulator(x.dtype)
    axes = tuple(range(axis, len(x.shape)))
    count = product(x.shape[axis:]).cast(acc)
    total = reduce_over(x, axes, False, "row_sum", tc.sum, lambda v: v.cast(acc))
    mean = compute(total.shape, lambda *i: total[i] / count, name="row_mean")
    d = compute(x.shape, lambda *i: x[i].cast(acc) - mean[i[:axis]], name="row_center")
    squares = reduce_over(d, axes, False, "row_squares", tc.sum, lambda v: v * v)
    inverse = compute(total.shape, lambda *i: 1.0 / call("sqrt", squares[i] / count + op.attrs["eps"]),
                      name="row_rstd")
    return compute(x.shape, lambda *i: _scaled(d[i] * inverse[i[:axis]], i, x, axis, acc, scale, bias),
                   name="layer_norm")


def _compute_rms_norm(op: Operation, x: Tensor, scale: Tensor | None = None) -> Tensor:
    axis, acc = op.attrs["axis"], accumulator(x.dtype)
    count = product(x.shape[axis:]).cast(acc)
    squares = reduce_over(x, tuple(range(axis, len(x.shape))), False, "row_squares", tc.sum,
                          lambda v: v.cast(acc) * v.cast(acc))
    inverse = compute(squares.shape, lambda *i: 1.0 / call("sqrt", squares[i] / count + op.attrs["eps"]),
                      name="row_rstd")
    return compute(x.shape, lambda *i: _scaled(x[i].cast(acc) * inverse[i[:axis]], i, x, axis, acc, scale, None),
                   name="rms_norm")


# ---- per channel -----------------------------------------------------------------------------------------------------
def _infer_channel_norm(op: Operation) -> Sequence[TensorType]:
    """x [N, C, …] with parameters of C elements each."""
    x = _float_input(op)
    expect_rank(op, x, 2, 100)
    for v in operands(op, len(op.inputs))[1:]:
        expect_rank(op, v, 1)
        expect_same_dim(op, x.shape[1], v.shape[0], f"channels of %{x.name} and %{v.name}")
    return [x.type]


def _infer_group_norm(op: Operation) -> Sequence[TensorType]:
    types = _infer_channel_norm(op)
    channels, groups = as_int(operand(op, 0).shape[1]), op.attrs["groups"]
    expect(groups > 0 and channels is not None and channels % groups == 0, "shape-mismatch",
           lambda: f"group_norm: {channels} channels do not fall into {groups} groups")
    return types


def _per_channel(v: Array, rank: int) -> Array:
    return _wide(v).reshape((1, -1) + (1,) * (rank - 2))


def _batch_norm(attrs: dict[str, Any], x: Array, scale: Array, bias: Array, mean: Array, var: Array) -> Array:
    s, b, m, v = (_per_channel(p, x.ndim) for p in (scale, bias, mean, var))
    return ((_wide(x) - m) / np.sqrt(v + np.asarray(attrs["eps"], v.dtype)) * s + b).astype(x.dtype)


def _compute_batch_norm(op: Operation, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    acc = accumulator(x.dtype)

    def cell(*i: Expr) -> Any:
        s, b, m, v = (p[i[1]].cast(acc) for p in (scale, bias, mean, var))
        return ((x[i].cast(acc) - m) / call("sqrt", v + op.attrs["eps"]) * s + b).cast(x.dtype)
    return compute(x.shape, cell, name="batch_norm")


def _group_norm(attrs: dict[str, Any], x: Array, scale: Array, bias: Array) -> Array:
    groups = attrs.get("groups") or x.shape[1]
    w = _wide(x).reshape(x.shape[0], groups, x.shape[1] // groups * prod(x.shape[2:]))
    d = w - w.mean(2, keepdims=True)
    y = (d / np.sqrt((d * d).mean(2, keepdims=True) + np.asarray(attrs["eps"], w.dtype))).reshape(x.shape)
    return (y * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim)).astype(x.dtype)


def _compute_group_norm(op: Operation, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Statistics over the channels of a group and all places; instance_norm is the case of one channel per group."""
    acc, channels = accumulator(x.dtype), x.shape[1]
    groups = const(op.attrs["groups"]) if "groups" in op.attrs else channels
    size = 1 if "groups" not in op.attrs else (as_int(channels) or 0) // op.attrs["groups"]
    count = (product(x.shape[2:]) * size).cast(acc)

    def total(name: str, f: Any) -> Tensor:
        rs = [reduce_axis(d, name=f"r{k}") for k, d in enumerate((const(size), *x.shape[2:]))]

        def cell(n: Expr, g: Expr) -> Any:
            v = x[(n, g * size + rs[0].var, *[r.var for r in rs[1:]])].cast(acc)
            return tc.sum(f(v, n, g), axis=rs)
        return compute((x.shape[0], groups), cell, name=name)
    sums = total("group_sum", lambda v, n, g: v)
    squares = total("group_squares", lambda v, n, g: (v - sums[n, g] / count) * (v - sums[n, g] / count))

    def cell(*i: Expr) -> Any:
        n, g = i[0], i[1] if size == 1 else i[1] // size
        y = (x[i].cast(acc) - sums[n, g] / count) / call("sqrt", squares[n, g] / count + op.attrs["eps"])
        return (y * scale[i[1]].cast(acc) + bias[i[1]].cast(acc)).cast(x.dtype)
    return compute(x.shape, cell, name=op.op)


# ---- local response --------------------------------------------------------------------------------------------------
def _infer_lrn(op: Operation) -> Sequence[TensorType]:
    operands(op, 1)
    x = _float_input(op)
    expect_rank(op, x, 2, 100)
    return [x.type]


def _lrn(attrs: dict[str, Any], x: Array) -> Array:
    w, size = _wide(x), attrs["size"]
    below, above = (size - 1) // 2, size // 2
    squares = np.pad(w * w, [(0, 0), (below, above)] + [(0, 0)] * (x.ndim - 2))
    total = sum(squares[:, k:k + x.shape[1]] for k in range(size))
    return np.asarray(w / (attrs["bias"] + attrs["alpha"] / size * total) ** attrs["beta"]).astype(x.dtype)


def _compute_lrn(op: Operation, x: Tensor) -> Tensor:
    a, acc = op.attrs, accumulator(x.dtype)
    below = (a["size"] - 1) // 2
    r = reduce_axis(const(a["size"]), name="r")

    def cell(*i: Expr) -> Any:
        c = i[1] + r.var - below
        v = read_or((c >= 0) & (c < x.shape[1]), x[(i[0], c, *i[2:])].cast(acc), 0.0)
        return tc.sum(v * v, axis=[r])
    total = compute(x.shape, cell, name="lrn_sum")

    def scale(*i: Expr) -> Expr:
        base = a["bias"] + total[i] * (a["alpha"] / a["size"])
        return (x[i].cast(acc) / call("pow", base, const(a["beta"], acc))).cast(x.dtype)
    return compute(x.shape, scale, name="lrn")


_EPS = Attr("float", 1e-5)
_AXIS = {"axis": Attr("int", -1)}
RECORDS = (
    OpRecord("softmax", "reduction", _infer_softmax, _softmax, _compute_softmax, _AXIS, _normalize_axis,
             doc="exp(x - max) / sum(exp(x - max)) along an axis.", gradient=gradients.softmax),
    OpRecord("log_softmax", "reduction", _infer_softmax, _log_softmax, _compute_log_softmax, _AXIS, _normalize_axis,
             doc="The logarithm of softmax.", gradient=gradients.log_softmax),
    OpRecord("layer_norm", "reduction", _infer_row_norm, _layer_norm, _compute_layer_norm,
             {**_AXIS, "eps": _EPS}, _normalize_axis,
             doc="(x - mean) / sqrt(variance + eps) over the axes from `axis` on, times scale, plus bias (optional)."),
    OpRecord("rms_norm", "reduction", _infer_row_norm, _rms_norm, _compute_rms_norm, {**_AXIS, "eps": _EPS},
             _normalize_axis, doc="x / sqrt(mean(x²) + eps) over the axes from `axis` on, times scale (optional)."),
    OpRecord("batch_norm", "broadcast", _infer_channel_norm, _batch_norm, _compute_batch_norm, {"eps": _EPS},
             doc="(x - mean) / sqrt(var + eps) * scale + bias per channel; operands x, scale, bias, mean, var."),
    OpRecord("instance_norm", "reduction", _infer_channel_norm, _group_norm, _compute_group_norm, {"eps": _EPS},
             doc="Each channel of each sample normalised over its places; operands x, scale, bias."),
    OpRecord("group_norm", "reduction", _infer_group_norm, _group_norm, _compute_group_norm,
             {"groups": Attr("int"), "eps": _EPS},
             doc="Groups of channels normalised over channels and places; scale and bias per channel."),
    OpRecord("lrn", "reduction", _infer_lrn, _lrn, _compute_lrn,
             {"size": Attr("int"), "alpha": Attr("float", 1e-4), "beta": Attr("float", 0.75), "bias": Attr("float", 1.0)},
             doc="x / (bias + alpha/size * sum of squares over `size` neighbouring channels) ** beta."),
)
