"""ONNX's quantization: numbers as small integers or floats times a scale per tensor, per axis or per block."""
from __future__ import annotations

import numpy as np

from tilewright.core.dtype import DType, f32, i32
from tilewright.frontend.onnx.ops_math import cast_to
from tilewright.frontend.onnx.ops_nn import kernel_of, matrix_product, shifted, window
from tilewright.frontend.onnx.table import Context, Result, onnx_op
from tilewright.frontend.onnx.tensors import element_type
from tilewright.graph.infer import is_one, same
from tilewright.graph.ir import Value
from tilewright.loop.ir import as_int


class _Blocks:
    """How scales and zero points lie over a tensor: `data` and `laid` bring them and it into shapes that broadcast."""

    def __init__(self, c: Context, x: Value, scale: Value) -> None:
        self.c, self.shape = c, x.shape
        self.size = c.a("block_size", 0) or 0
        axis = c.a("axis", 1)
        if scale.rank > 1 and x.rank and not -x.rank <= axis < x.rank:
            raise c.error("axis-out-of-range", f"{c.op}: axis {axis} of a tensor of rank {x.rank}")
        self.axis = axis % max(x.rank, 1)
        self.blocked = scale.rank > 1 or self.size > 0 and scale.rank == x.rank and x.rank > 0
        if self.blocked and (self.size <= 0 or scale.rank != x.rank):
            raise c.error("onnx-invalid-graph", f"{c.op}: block_size {self.size} with a scale of {scale.type} for {x.type}")
        n = as_int(x.shape[self.axis]) if self.blocked else None
        self.whole = self.blocked and n is not None and n % self.size == 0

    def data(self, x: Value) -> Value:
        """The tensor, its axis split into blocks where they are all full."""
        k = self.axis
        return self.c.b.reshape(x, [*x.shape[:k], -1, self.size, *x.shape[k + 1:]]) if self.whole else x

    def back(self, y: Value) -> Value:
        return self.c.b.reshape(y, self.shape) if self.whole else y

    def laid(self, v: Value) -> Value:
        """A scale or zero point: a number, a vector along the axis, or an element per block."""
        c, k = self.c, self.axis
        if v.rank == 0 or v.rank == 1 and not self.shape:
            return c.reshape(v, [])
        if not self.blocked:
            return c.reshape(v, []) if is_one(v.shape[0]) else c.per_channel(v, len(self.shape), k)
        if self.whole:
            return c.reshape(v, [*v.shape[:k + 1], 1, *v.shape[k + 1:]])
        n = as_int(self.shape[k])
        c.expect(n is not None, "blocks along an axis of unknown size")
        return c.add("gather", v, c.b.constant(np.arange(n or 0, dtype=np.int64) // self.size), axis=k)


@onnx_op("QuantizeLinear")
def quantize(c: Context) -> Result:
    """x / scale rounded to even, then shifted and saturated; floats are rounded by the cast."""
    blocks = _Blocks(c, c.x(), c.x(1))
    x, scale = blocks.data(c.x()), blocks.laid(c.x(1))
    zero = None if c.opt(2) is None else blocks.laid(c.x(2))
    to = zero.dtype if zero is not None else element_type(c.a("output_dtype", 0) or 2, c.loc)
    precision = element_type(c.a("precision"), c.loc) if c.a("precision") else scale.dtype
    y = c.add("div", c.cast(x, precision), c.cast(scale, precision))
    if to.is_float:
        if to.bits < 8 and zero is not None:
            y = c.add("add", c.cast(y, f32), c.cast(zero, f32))
        return blocks.back(cast_to(c, y, to))
    y = c.cast(c.add("round", y), f32)
    if zero is not None:
        y = c.add("add", y, c.cast(zero, f32))
    return blocks.back(saturated(c, y, to))


def saturated(c: Context, y: Value, to: DType) -> Value:
    """Whole numbers as an integer type that keeps the nearest it has; NaN becomes 0 or the least."""
    low, high = to.range()
    return c.cast(c.add("clip", y, min=float(low), max=float(high)), to)


@onnx_op("DequantizeLinear")
def dequantize(c: Context) -> Result:
    blocks = _Blocks(c, c.x(), c.x(1))
    x, scale = blocks.data(c.x()), blocks.laid(c.x(1))
    zero = c.opt(2)
    to = element_type(c.a("output_dtype"), c.loc) if c.a("output_dtype") else scale.dtype
    y = c.cast(x, f32)
    if zero is not None and zero.dtype.is_int:
        wide = i32 if zero.dtype is i32 else f32
        y = c.cast(c.add("sub", c.cast(x, wide), c.cast(blocks.laid(zero), wide)), f32)
    return blocks.back(c.cast(c.add("mul", y, c.cast(scale, f32)), to))


@onnx_op("QLinearMatMul")
def qlinear_matmul(c: Context) -> Result:
    """Products of integers without their zero points, exact in i32, then scaled, rounded and saturated."""
    a, sa, za, b, sb, zb, sy, zy = [c.x(k) for k in range(8)]
    for v in (sa, za, sb, zb, sy, zy):
        c.expect(v.rank <= 1, "a scale of more than one axis")
    left = c.add("sub", c.cast(a, i32), c.cast(_by_rows(c, za), i32))
    right = c.add("sub", c.cast(b, i32), c.cast(zb, i32))
    total = c.cast(matrix_product(c, left, right, out=i32), f32)
    scale = c.add("div", c.add("mul", c.cast(_by_rows(c, sa), f32), c.cast(sb, f32)), c.cast(_by_rows(c, sy), f32))
    y = c.add("add", c.add("round", c.add("mul", total, scale)), c.cast(_by_rows(c, zy), f32))
    return saturated(c, y, zy.dtype)


def _by_rows(c: Context, v: Value) -> Value:
    """A number, or one number per row of a matrix as a column."""
    return v if v.rank == 0 or is_one(v.shape[0]) else c.reshape(v, [v.shape[0], 1])


@onnx_op("QLinearConv")
def qlinear_conv(c: Context) -> Result:
    """A convolution of integers without their zero points, exact in i32 as its bias is, then scaled, rounded, saturated."""
    sx, sw, sy, zy, bias = c.x(1), c.x(4), c.x(6), c.x(7), c.opt(8)
    x, w = shifted(c, 0, 2, None), shifted(c, 3, 5, 0)
    y = c.add("conv", x, w, group=c.a("group", 1), out=i32, **window(c, x.shape[2:], kernel_of(c, w)))
    if bias is not None:
        y = c.add("add", y, c.per_channel(bias, y.rank))
    scale = c.add("div", c.add("mul", _one_of(c, sx), _one_of(c, sw)), _one_of(c, sy))
    if scale.rank:
        scale = c.per_channel(scale, y.rank)
    y = c.add("round", c.add("mul", c.cast(y, f32), scale))
    return saturated(c, c.add("add", y, c.cast(_one_of(c, zy), f32)), zy.dtype)


def _one_of(c: Context, v: Value) -> Value:
    """A number, or a vector of more than one."""
    return c.reshape(v, []) if v.rank == 1 and same(v.shape[0], 1) is True else v
