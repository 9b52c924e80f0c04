"""BatchNorm and scale folding: what only scales or shifts the channels of a convolution or product goes into its weights.

In: any Graph. Out: the same graph where a batch_norm with constant parameters is a product and a sum per channel; a product
by a constant per output channel behind conv or matmul (or behind its constant bias) is part of the weights; and a shift is
part of the bias.

    batch_norm(conv(x, w) + b)      becomes      conv(x, w') + b'
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilewright.graph.ir import Graph, Operation, Value
from tilewright.graph.passes.match import Result, Rule, Walk, apply, with_constant
from tilewright.graph.registry import Array
from tilewright.loop.ir import as_int


def fold_scales(graph: Graph) -> Graph:
    """Put scales and shifts of channels into weights and biases."""
    return apply(graph, _RULES)


def _batch_norm(op: Operation, w: Walk) -> Result:
    """(x - mean) / sqrt(var + eps) * scale + bias → x * a + c, with a and c computed in f64."""
    x = op.inputs[0]
    parameters = [v.data for v in op.inputs[1:] if v is not None and v.data is not None]
    if x is None or len(parameters) != 4:
        return None
    scale, bias, mean, var = (p.astype(np.float64) for p in parameters)
    a = scale / np.sqrt(var + op.attrs["eps"])
    c = bias - mean * a
    shape = (1, -1) + (1,) * (x.rank - 2)
    y = w.b.add("mul", [x, w.b.constant(a.reshape(shape), "scale", x.dtype)], name=op.output.name)
    return w.b.add("add", [y, w.b.constant(c.reshape(shape), "shift", x.dtype)], name=op.output.name)


def _channel_axis(op: Operation) -> int:
    return 1 if op.op == "conv" else op.output.rank - 1


def per_channel(c: Array, result: Value, axis: int) -> Array | None:
    """The constant as one number per channel (of the result's axis `axis`); None if it varies along another axis."""
    n = as_int(result.shape[axis])
    if n is None or c.ndim > result.rank:
        return None
    full = c.reshape((1,) * (result.rank - c.ndim) + c.shape)
    if any(d != 1 for k, d in enumerate(full.shape) if k != axis) or full.shape[axis] not in (1, n):
        return None
    return np.broadcast_to(full.reshape(-1), (n,))


def _scale(op: Operation, w: Walk) -> Result:
    """Behind conv or matmul: into the weights. Behind their bias: into weights and bias."""
    found = with_constant(op)
    if found is None or not op.output.dtype.is_float or found[0].shape != op.output.shape or found[1].data is None:
        return None
    y = found[0]
    shifted = w.producer(y, "add")
    bias: Value | None = None
    if shifted is not None and w.lone(y):
        inner = with_constant(shifted)
        if inner is None or inner[0].shape != y.shape:
            return None
        y, bias = inner
    made = w.producer(y, "conv", "matmul")
    weight = None if made is None else made.inputs[1]
    if made is None or weight is None or weight.data is None or not w.lone(y):
        return None
    if made.op == "matmul" and weight.rank != 2:
        return None
    axis = _channel_axis(made)
    s = per_channel(found[1].data, y, axis)
    b = None if bias is None or bias.data is None else per_channel(bias.data, y, axis)
    if s is None or (bias is not None and b is None):
        return None
    shape = [1] * weight.rank
    shape[0 if made.op == "conv" or made.attrs["transpose_b"] else 1] = -1
    scaled = w.b.constant(weight.data * s.reshape(shape).astype(weight.data.dtype), weight.name)
    out = w.b.add(made.op, [made.inputs[0], scaled], made.attrs, name=op.output.name)
    if b is None:
        return out
    wide = [1] * y.rank
    wide[axis] = -1
    return w.b.add("add", [out, w.b.constant((b * s).reshape(wide).astype(b.dtype), "bias")], name=op.output.name)


def _shift(op: Operation, w: Walk) -> Result:
    """(y + b) + c → y + (b + c) behind conv or matmul, per channel."""
    found = with_constant(op)
    inner = None if found is None or not w.lone(found[0]) else w.producer(found[0], "add")
    pair = None if inner is None else with_constant(inner)
    made = None if pair is None else w.producer(pair[0], "conv", "matmul")
    if found is None or pair is None or made is None or pair[0].shape != op.output.shape or not op.output.dtype.is_float:
        return None
    axis = _channel_axis(made)
    parts = [None if v.data is None else per_channel(v.data, pair[0], axis) for v in (pair[1], found[1])]
    if parts[0] is None or parts[1] is None:
        return None
    wide = [1] * op.output.rank
    wide[axis] = -1
    both = (parts[0] + parts[1]).reshape(wide)
    return w.b.add("add", [pair[0], w.b.constant(both, "bias")], name=op.output.name)


_RULES: dict[str, Sequence[Rule]] = {"batch_norm": [_batch_norm], "mul": [_scale], "add": [_shift]}
