"""ONNX's reductions and what works along an axis: sums, argmax, topk, cumulative sums, softmax, normalisations."""
from __future__ import annotations

from typing import Any

from tilewright.core.dtype import boolean, f32
from tilewright.core.errors import UserError
from tilewright.frontend.onnx.table import Context, Function, Result, entry, onnx_op
from tilewright.graph.infer import product
from tilewright.graph.ir import Value
from tilewright.loop.ir import as_int

REDUCTIONS = {"ReduceMax": "reduce_max", "ReduceMean": "reduce_mean", "ReduceMin": "reduce_min",
              "ReduceProd": "reduce_prod", "ReduceSum": "reduce_sum"}


def _over(c: Context) -> dict[str, Any] | None:
    """Axes and keepdims, for the graph's reductions; None where nothing is reduced."""
    axes = c.ints_of("axes", 1)
    if not axes and c.a("noop_with_empty_axes"):
        return None
    keep = bool(c.a("keepdims", 1))
    return {"axes": axes, "keepdims": keep} if axes else {"keepdims": keep}


def _reduction(op: str) -> Function:
    def run(c: Context) -> Result:
        over = _over(c)
        if over is None:
            return c.x()
        logical = {"reduce_max": "reduce_any", "reduce_min": "reduce_all"}
        return c.add(logical[op] if c.x().dtype is boolean and op in logical else op, c.x(), **over)
    return run


for _name, _op in REDUCTIONS.items():
    entry(_name, _reduction(_op))


def _sum(c: Context, x: Value) -> Value:
    over = _over(c)
    return x if over is None else c.add("reduce_sum", x, **over)


@onnx_op("ReduceL1")
def reduce_l1(c: Context) -> Result:
    return _sum(c, c.add("abs", c.x()))


@onnx_op("ReduceL2")
def reduce_l2(c: Context) -> Result:
    x = c.x()
    wide = c.cast(x, f32) if x.dtype.is_int else x
    return c.cast(c.add("sqrt", _sum(c, c.add("mul", wide, wide))), x.dtype)


@onnx_op("ReduceSumSquare")
def reduce_sum_square(c: Context) -> Result:
    return _sum(c, c.add("mul", c.x(), c.x()))


@onnx_op("ReduceLogSum")
def reduce_log_sum(c: Context) -> Result:
    return c.add("log", _sum(c, c.x()))


@onnx_op("ReduceLogSumExp")
def reduce_log_sum_exp(c: Context) -> Result:
    """log(sum(exp(x - top))) + top, with top = 0 where the largest element is infinite."""
    x, over = c.x(), _over(c)
    if over is None:
        return x
    top = c.add("reduce_max", x, **{**over, "keepdims": True})
    top = c.add("where", c.add("isinf", top), c.const(0, x.dtype), top)
    total = c.add("reduce_sum", c.add("exp", c.add("sub", x, top)), **over)
    return c.add("add", c.add("log", total), c.b.reshape(top, total.shape))


@onnx_op("ArgMax", "ArgMin")
def arg(c: Context) -> Result:
    """Of nothing there is no largest element."""
    x, axis = c.x(), c.a("axis", 0)
    y = c.add(c.op.lower(), x, axis=axis, keepdims=bool(c.a("keepdims", 1)), select_last=bool(c.a("select_last_index", 0)))
    size, none = x.shape[axis], f"axis {axis} of %{x.name} has no element to choose"
    if as_int(size) is None:
        c.b.check(size >= 1, none)
    elif as_int(size) == 0:
        raise UserError("shape-mismatch", none, where=c.b.loc)
    return y


@onnx_op("CumSum", "CumProd")
def running(c: Context) -> Result:
    return c.add(c.op.lower(), c.x(), axis=c.ints(1)[0], exclusive=bool(c.a("exclusive")), reverse=bool(c.a("reverse")))


@onnx_op("TopK")
def topk(c: Context) -> Result:
    """The result is sorted also where that is not asked for."""
    k = c.dims(1)[0] if c.since >= 10 else c.a("k")
    return c.add_all("topk", c.x(), k=k, axis=c.a("axis", -1), largest=bool(c.a("largest", 1)))


# ---- softmax ---------------------------------------------------------------------------------------------------------
def _as_rows(c: Context, fn: Any) -> Value:
    """Before version 13: the axes from `axis` on are one row."""
    x, axis = c.x(), c.a("axis", 1)
    axis = axis + x.rank if axis < 0 else axis
    if axis == x.rank - 1:
        return fn(x, axis)  # type: ignore[no-any-return]
    flat = c.b.reshape(x, [product(x.shape[:axis]), product(x.shape[axis:])])
    return c.b.reshape(fn(flat, 1), x.shape)


@onnx_op("Softmax", "LogSoftmax")
def softmax_rows(c: Context) -> Result:
    op = {"Softmax": "softmax", "LogSoftmax": "log_softmax"}[c.op]
    return _as_rows(c, lambda x, axis: c.add(op, x, axis=axis))


@onnx_op("Softmax", "LogSoftmax", since=13)
def softmax(c: Context) -> Result:
    return c.add({"Softmax": "softmax", "LogSoftmax": "log_softmax"}[c.op], c.x(), axis=c.a("axis", -1))


def _hardmax(c: Context, x: Value, axis: int) -> Value:
    values = c.const([0, 1], x.dtype)
    axis = axis + x.rank if axis < 0 else axis
    return c.add("one_hot", c.add("argmax", x, axis=axis, keepdims=False), values, depth=x.shape[axis], axis=axis)


@onnx_op("Hardmax")
def hardmax_rows(c: Context) -> Result:
    return _as_rows(c, lambda x, axis: _hardmax(c, x, axis))


@onnx_op("Hardmax", since=13)
def hardmax(c: Context) -> Result:
    return _hardmax(c, c.x(), c.a("axis", -1))


# ---- normalisations --------------------------------------------------------------------------------------------------
@onnx_op("InstanceNormalization")
def instance_norm(c: Context) -> Result:
    return c.add("instance_norm", c.x(0), c.x(1), c.x(2), eps=c.a("epsilon"))


@onnx_op("GroupNormalization")
def group_norm_by_group(c: Context) -> Result:
    """Before version 21: scale and bias have one element per group."""
    x, groups = c.x(), c.a("num_groups")
    size = x.shape[1] // groups

    def spread(v: Value) -> Value:
        column = c.reshape(v, [groups, 1])
        return c.b.reshape(c.add("expand", column, shape=[groups, size]), [x.shape[1]])
    return c.add("group_norm", x, spread(c.x(1)), spread(c.x(2)), groups=groups, eps=c.a("epsilon"))


@onnx_op("GroupNormalization", since=21)
def group_norm(c: Context) -> Result:
    return c.add("group_norm", c.x(0), c.x(1), c.x(2), groups=c.a("num_groups"), eps=c.a("epsilon"))


@onnx_op("LayerNormalization")
def layer_norm(c: Context) -> Result:
    x, axis, eps = c.x(), c.a("axis", -1), c.a("epsilon")
    bias = [c.cast(c.x(2), x.dtype)] if c.opt(2) is not None else []
    y = c.add("layer_norm", x, c.cast(c.x(1), x.dtype), *bias, axis=axis, eps=eps)
    if not (c.wants(1) or c.wants(2)):
        return y
    axes = tuple(range(axis + x.rank if axis < 0 else axis, x.rank))
    wide = c.cast(x, f32)
    mean = c.add("reduce_mean", wide, axes=axes)
    centered = c.add("sub", wide, mean)
    variance = c.add("reduce_mean", c.add("mul", centered, centered), axes=axes)
    return y, mean, c.add("rsqrt", c.add("add", variance, c.const(eps, f32)))


@onnx_op("RMSNormalization")
def rms_norm(c: Context) -> Result:
    x = c.x()
    return c.add("rms_norm", x, c.cast(c.x(1), x.dtype), axis=c.a("axis", -1), eps=c.a("epsilon"))


@onnx_op("LRN")
def lrn(c: Context) -> Result:
    c.expect(0 < c.a("size") < 2**16, f"a size of {c.a('size')}")
    return c.add("lrn", c.x(), **{k: c.a(k) for k in ("size", "alpha", "beta", "bias")})


@onnx_op("LpNormalization")
def lp_norm(c: Context) -> Result:
    """x / norm along an axis; 0 where the norm is 0."""
    x, axes = c.x(), (c.a("axis", -1),)
    if c.a("p", 2) == 1:
        norm = c.add("reduce_sum", c.add("abs", x), axes=axes)
    else:
        norm = c.add("sqrt", c.add("reduce_sum", c.add("mul", x, x), axes=axes))
    zero = c.add("equal", norm, c.const(0, x.dtype))
    return c.add("div", x, c.add("where", zero, c.const(1, x.dtype), norm))
