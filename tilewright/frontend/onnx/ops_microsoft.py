"""Operators of com.microsoft that exported and optimized files contain: fused products, activations, norms, quantized ones.

Each is put together from the graph's own operators, whose fusion makes one kernel of it again. Attention is in
ops_attention.py.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tilewright.core.dtype import DType, f32, i32, u8
from tilewright.frontend.onnx import schema
from tilewright.frontend.onnx.ops_nn import kernel_of, matrix_product, window
from tilewright.frontend.onnx.ops_quant import saturated
from tilewright.frontend.onnx.table import Context, Function, Result, onnx_op
from tilewright.graph.infer import dim, is_one
from tilewright.graph.ir import Value
from tilewright.graph.ops.packed import codes_of
from tilewright.loop.ir import Expr, as_int

MICROSOFT = "com.microsoft"
TINY = 1e-12


def microsoft(name: str, inputs: tuple[int, int], outputs: tuple[int, int] = (1, 1), domain: str = MICROSOFT,
              **attributes: Any) -> Callable[[Function], Function]:
    """Enter a function for an operator, and what the operator takes: numbers of operands and attributes."""
    def enter(fn: Function) -> Function:
        schema.declare(domain, name, inputs, outputs, dict(attributes))
        return onnx_op(name, domain=domain)(fn)
    return enter


_WINDOW: dict[str, Any] = {"auto_pad": "NOTSET", "dilations": tuple, "group": 1, "kernel_shape": tuple, "pads": tuple,
                           "strides": tuple}


# ---- products --------------------------------------------------------------------------------------------------------
def _turned(c: Context, v: Value, last: bool, batch: bool) -> Value:
    """The last two axes swapped, or the batch's axes moved behind the next one."""
    perm = list(range(v.rank))
    if batch:
        perm = [*perm[1:-1], 0, perm[-1]]
    if last and v.rank > 1:
        perm[-2:] = perm[:-3:-1]
    return v if perm == sorted(perm) else c.add("transpose", v, perm=perm)


@microsoft("FusedMatMul", (2, 2), alpha=1.0, transA=0, transB=0, transBatchA=0, transBatchB=0)
@microsoft("TransposeMatMul", (2, 2), alpha=1.0, transA=0, transB=0, transBatchA=0, transBatchB=0)
def fused_matmul(c: Context) -> Result:
    a = _turned(c, c.x(0), bool(c.a("transA")), bool(c.a("transBatchA")))
    b = _turned(c, c.x(1), bool(c.a("transB")), bool(c.a("transBatchB")))
    return _scaled(c, matrix_product(c, a, b), c.a("alpha"))


def _scaled(c: Context, v: Value, factor: float) -> Value:
    return v if factor == 1 else c.add("mul", v, c.const(factor, v.dtype))


@microsoft("FusedGemm", (2, 3), alpha=1.0, beta=1.0, transA=0, transB=0, activation=str, activation_alpha=float,
           activation_beta=float, activation_gamma=float)
def fused_gemm(c: Context) -> Result:
    a, b = _turned(c, c.x(0), bool(c.a("transA")), False), _turned(c, c.x(1), bool(c.a("transB")), False)
    y = _scaled(c, c.add("matmul", a, b), c.a("alpha"))
    if c.opt(2) is not None and c.a("beta"):
        y = c.add("add", y, _scaled(c, c.x(2), c.a("beta")))
    return _activated(c, y, [c.a(f"activation_{k}") for k in ("alpha", "beta", "gamma")])


@microsoft("FusedConv", (2, 4), activation=str, activation_params=list, **_WINDOW)
def fused_conv(c: Context) -> Result:
    """A convolution, then the sum with another tensor, then an activation."""
    x, w = c.x(0), c.x(1)
    y = c.add("conv", x, w, group=c.a("group", 1), **window(c, x.shape[2:], kernel_of(c, w)))
    if c.opt(2) is not None:
        y = c.add("add", y, c.per_channel(c.x(2), y.rank))
    if c.opt(3) is not None:
        y = c.add("add", y, c.x(3))
    return _activated(c, y, list(c.a("activation_params") or ()))


def _activated(c: Context, y: Value, given: list[float | None]) -> Value:
    """After an activation by its ONNX name, with up to three parameters."""
    names = {"Relu": ("relu",), "Tanh": ("tanh",), "Sigmoid": ("sigmoid",), "LeakyRelu": ("leaky_relu", "alpha"),
             "HardSigmoid": ("hard_sigmoid", "alpha", "beta"), "Clip": ("clip", "min", "max"), "Elu": ("elu", "alpha"),
             "Softplus": ("softplus",), "HardSwish": ("hard_swish",)}
    kind = c.a("activation")
    if not kind:
        return y
    c.expect(kind in names, f"activation {kind!r}")
    op, *keys = names[kind]
    return c.add(op, y, **{k: v for k, v in zip(keys, given, strict=False) if v is not None})


@microsoft("MatMulNBits", (3, 6), K=int, N=int, bits=4, block_size=int, accuracy_level=0, weight_prepacked=0)
def matmul_nbits(c: Context) -> Result:
    """Weights [N, blocks, bytes] of 2, 4 or 8 bits, the low ones first, less a zero point (the middle by default) and times
    a scale per block."""
    a, k, n, bits, block = c.x(0), c.a("K"), c.a("N"), c.a("bits"), c.a("block_size")
    c.expect(bits in (2, 4, 8), f"{bits} bits")
    c.expect(c.opt(4) is None, "g_idx")
    blocks = -(-k // block)
    zero, points = c.opt(3), None
    if zero is not None:
        whole = codes_of(c.array(3).reshape(n, -1), bits, blocks) if zero.dtype is u8 else c.array(3).astype(np.float32)
        points = c.b.constant(whole.reshape(n, blocks), "points")
    scales = c.b.constant(c.array(2).astype(np.float32).reshape(n, blocks), "scales")
    w = c.add("unpack_weights", c.b.constant(c.array(1).reshape(n, -1), "codes"), scales, points, bits=bits, block=block,
              depth=k, point=float(2 ** (bits - 1)))
    w = c.cast(w, a.dtype)
    y = c.add("matmul", a, w)
    return y if c.opt(5) is None else c.add("add", y, c.x(5))


@microsoft("GatherBlockQuantized", (3, 4), bits=4, block_size=128, gather_axis=0, quantize_axis=1)
def gather_block_quantized(c: Context) -> Result:
    """Rows of a quantized table: the codes of those that are asked for, less their zero points and times their scales, one
    of each per block of the last axis. Codes of fewer than 8 bits in u8 lie side by side along that axis, the low bits
    first, and have the middle for a zero point by default; others have 0."""
    x, scales, points = c.x(0), c.x(2), c.opt(3)
    axis, bits = c.a("gather_axis") % x.rank, c.a("bits") if x.dtype is u8 else x.dtype.bits
    c.expect(c.a("quantize_axis") % x.rank == x.rank - 1 and axis < x.rank - 1, "blocks along another axis than the last")
    c.expect(bits in (2, 4, 8), f"{bits} bits")
    at = c.b.in_bounds(c.x(1), [x.shape[axis]])
    per = 8 // bits if x.dtype is u8 else 1

    def rows(v: Value, count: Expr | int) -> Value:
        """What belongs to the rows, in f32, `count` along the last axis."""
        v = c.add("gather", v, at, axis=axis)
        if v.dtype is not u8 or per == 1:
            return c.cast(v, f32)
        shifts = c.b.constant(np.arange(per, dtype=np.uint8) * bits)
        codes = c.add("bitwise_and", c.add("shift_right", c.b.unsqueeze(v, [v.rank]), shifts), c.const(2**bits - 1, u8))
        whole = c.b.reshape(codes, (*v.shape[:-1], v.shape[-1] * per))
        return c.b.slice(c.cast(whole, f32), {-1: (0, count, 1)})
    length, blocks = as_int(x.shape[-1]), scales.shape[-1]
    c.expect(length is not None, "a table of unknown width")
    codes = rows(x, (length or 0) * per)
    block = c.b.constant(np.arange((length or 0) * per, dtype=np.int64) // c.a("block_size"))

    def spread(v: Value) -> Value:
        return c.add("gather", v, block, axis=v.rank - 1)
    middle = float(2 ** (bits - 1)) if x.dtype is u8 else 0.0
    zero = c.const(middle, f32) if points is None else spread(rows(points, blocks))
    y = c.add("mul", c.add("sub", codes, zero), spread(c.cast(c.add("gather", scales, at, axis=axis), f32)))
    return c.cast(y, scales.dtype)


# ---- activations -----------------------------------------------------------------------------------------------------
@microsoft("Gelu", (1, 1))
def gelu(c: Context) -> Result:
    return c.add("gelu", c.x())


@microsoft("BiasGelu", (2, 2))
def bias_gelu(c: Context) -> Result:
    return c.add("gelu", c.add("add", c.x(0), c.x(1)))


@microsoft("FastGelu", (1, 2))
def fast_gelu(c: Context) -> Result:
    x = c.x() if c.opt(1) is None else c.add("add", c.x(0), c.x(1))
    return c.add("gelu", x, approximate="tanh")


@microsoft("QuickGelu", (1, 1), alpha=1.702)
def quick_gelu(c: Context) -> Result:
    x = c.x()
    return c.add("mul", x, c.add("sigmoid", _scaled(c, x, c.a("alpha"))))


@microsoft("BiasSplitGelu", (2, 2))
def bias_split_gelu(c: Context) -> Result:
    """The first half of the columns times the GELU of the second."""
    x = c.add("add", c.x(0), c.x(1))
    half = dim(x.shape[-1] // 2)
    return c.add("mul", c.b.slice(x, {-1: (0, half, 1)}), c.add("gelu", c.b.slice(x, {-1: (half, x.shape[-1], 1)})))


@microsoft("BiasAdd", (3, 3))
def bias_add(c: Context) -> Result:
    return c.add("add", c.add("add", c.x(0), c.x(1)), c.x(2))


# ---- norms -----------------------------------------------------------------------------------------------------------
def _statistics(c: Context, x: Value, eps: float, centered: bool) -> tuple[Value, Value]:
    """Mean and 1 / deviation of the rows, in f32."""
    wide = c.cast(x, f32)
    mean = c.add("reduce_mean", wide, axes=(-1,))
    d = c.add("sub", wide, mean) if centered else wide
    variance = c.add("reduce_mean", c.add("mul", d, d), axes=(-1,))
    return mean, c.add("rsqrt", c.add("add", variance, c.const(eps, f32)))


@microsoft("SkipLayerNormalization", (3, 5), (1, 4), epsilon=TINY)
def skip_layer_norm(c: Context) -> Result:
    x = c.add("add", c.x(0), c.x(1))
    x = x if c.opt(4) is None else c.add("add", x, c.x(4))
    bias = [] if c.opt(3) is None else [c.x(3)]
    y = c.add("layer_norm", x, c.x(2), *bias, axis=-1, eps=c.a("epsilon"))
    mean, scale = _statistics(c, x, c.a("epsilon"), True) if c.wants(1) or c.wants(2) else (None, None)
    return y, mean, scale, x if c.wants(3) else None


@microsoft("SkipSimplifiedLayerNormalization", (3, 4), (1, 4), epsilon=TINY)
def skip_rms_norm(c: Context) -> Result:
    x = c.add("add", c.x(0), c.x(1))
    x = x if c.opt(3) is None else c.add("add", x, c.x(3))
    y = c.add("rms_norm", x, c.x(2), axis=-1, eps=c.a("epsilon"))
    mean, scale = _statistics(c, x, c.a("epsilon"), False) if c.wants(1) or c.wants(2) else (None, None)
    return y, mean, scale, x if c.wants(3) else None


@microsoft("SimplifiedLayerNormalization", (2, 2), (1, 2), domain="", axis=-1, epsilon=1e-5, stash_type=1)
def simplified_layer_norm(c: Context) -> Result:
    x = c.x(0)
    c.expect(not c.wants(1) or c.a("axis") in (-1, x.rank - 1), "the deviations of several axes")
    y = c.add("rms_norm", x, c.cast(c.x(1), x.dtype), axis=c.a("axis"), eps=c.a("epsilon"))
    return y, _statistics(c, x, c.a("epsilon"), False)[1] if c.wants(1) else None


@microsoft("EmbedLayerNormalization", (7, 9), (1, 3), epsilon=TINY, mask_index_type=0)
def embed_layer_norm(c: Context) -> Result:
    """The sum of embeddings of words, places and segments, normalized; and how many words the mask keeps in each row."""
    ids, segments, places, mask = c.x(0), c.opt(1), c.opt(8), c.opt(7)

    def rows(k: int, at: Value) -> Value:
        return c.add("gather", c.x(k), c.b.in_bounds(at, [c.x(k).shape[0]]), axis=0)
    x = rows(2, ids)
    if places is not None:
        x = c.add("add", x, rows(3, places))
    else:
        x = c.add("add", x, c.b.slice(c.x(3), {0: (0, ids.shape[1], 1)}))
    if segments is not None and c.opt(4) is not None:
        x = c.add("add", x, rows(4, segments))
    y = c.add("layer_norm", x, c.x(5), c.x(6), axis=-1, eps=c.a("epsilon"))
    count: Value | None = None
    if c.wants(1):
        count = (c.add("full", shape=[ids.shape[0]], value=0, dtype=i32) if mask is None else
                 c.add("reduce_sum", c.cast(mask, i32), axes=(1,), keepdims=False))
    return y, count, x if c.wants(2) else None


@microsoft("GroupNorm", (3, 3), epsilon=1e-5, groups=int, activation=int, channels_last=1)
def group_norm(c: Context) -> Result:
    """Of tensors whose channels are last; then x * sigmoid(x) if asked for."""
    x = c.x(0)
    last = bool(c.a("channels_last"))
    y = c.add("transpose", x, perm=(0, x.rank - 1, *range(1, x.rank - 1))) if last else x
    y = c.add("group_norm", y, c.cast(c.x(1), x.dtype), c.cast(c.x(2), x.dtype), groups=c.a("groups"), eps=c.a("epsilon"))
    y = c.add("silu", y) if c.a("activation") else y
    return c.add("transpose", y, perm=(0, *range(2, x.rank), 1)) if last else y


# ---- quantized -------------------------------------------------------------------------------------------------------
def real(c: Context, x: Value, scale: Value, zero: Value | None, axis: int | None = None) -> Value:
    """(x - zero) * scale in f32; scale and zero point are numbers, or one per place of `axis`."""
    def laid(v: Value) -> Value:
        if v.rank == 0 or v.rank == 1 and is_one(v.shape[0]):
            return c.reshape(v, [])
        if axis is None or v.rank != 1:
            return v
        return c.per_channel(v, x.rank, axis % x.rank)
    y = c.cast(x, f32)
    if zero is not None:
        y = c.add("sub", y, c.cast(laid(zero), f32))
    return c.add("mul", y, c.cast(laid(scale), f32))


def coded(c: Context, y: Value, scale: Value, zero: Value | None, to: DType) -> Value:
    """round(y / scale) + zero, saturated."""
    y = c.add("round", c.add("div", y, c.cast(c.reshape(scale, []), f32)))
    if zero is not None:
        y = c.add("add", y, c.cast(c.reshape(zero, []), f32))
    return saturated(c, y, to)


def _two(op: str) -> Function:
    def run(c: Context) -> Result:
        a, b = real(c, c.x(0), c.x(1), c.opt(2)), real(c, c.x(3), c.x(4), c.opt(5))
        return coded(c, c.add(op, a, b), c.x(6), c.opt(7), c.x(0).dtype)
    return run


microsoft("QLinearAdd", (7, 8))(_two("add"))
microsoft("QLinearMul", (7, 8))(_two("mul"))


@microsoft("QLinearSigmoid", (4, 5))
def qlinear_sigmoid(c: Context) -> Result:
    return coded(c, c.add("sigmoid", real(c, c.x(0), c.x(1), c.opt(2))), c.x(3), c.opt(4), c.x(0).dtype)


@microsoft("QLinearLeakyRelu", (4, 5), alpha=0.01)
def qlinear_leaky_relu(c: Context) -> Result:
    y = c.add("leaky_relu", real(c, c.x(0), c.x(1), c.opt(2)), alpha=c.a("alpha"))
    return coded(c, y, c.x(3), c.opt(4), c.x(0).dtype)


@microsoft("QLinearSoftmax", (4, 5), axis=-1, opset=int)
def qlinear_softmax(c: Context) -> Result:
    x, axis = real(c, c.x(0), c.x(1), c.opt(2)), c.a("axis")
    last = (c.a("opset") or 13) >= 13 or axis in (-1, x.rank - 1)
    c.expect(last, "several axes as one row")
    return coded(c, c.add("softmax", x, axis=axis), c.x(3), c.opt(4), c.x(0).dtype)


@microsoft("QLinearGlobalAveragePool", (5, 5), channels_last=0)
def qlinear_global_average_pool(c: Context) -> Result:
    x = c.x(0)
    axes = range(1, x.rank - 1) if c.a("channels_last") else range(2, x.rank)
    y = c.add("reduce_mean", real(c, x, c.x(1), c.x(2)), axes=tuple(axes))
    return coded(c, y, c.x(3), c.x(4), x.dtype)


@microsoft("QLinearAveragePool", (4, 5), ceil_mode=0, channels_last=0, count_include_pad=0, **_WINDOW)
def qlinear_average_pool(c: Context) -> Result:
    c.expect(not c.a("channels_last"), "channels_last")
    x, kernel = real(c, c.x(0), c.x(1), c.opt(2)), tuple(c.a("kernel_shape"))
    y = c.add("avg_pool", x, kernel=kernel, ceil_mode=bool(c.a("ceil_mode")),
              count_include_pad=bool(c.a("count_include_pad")), **window(c, x.shape[2:], kernel))
    return coded(c, y, c.x(3), c.opt(4), c.x(0).dtype)


@microsoft("QLinearConcat", (5, schema.INFINITE), axis=int)
def qlinear_concat(c: Context) -> Result:
    parts = [real(c, c.x(k), c.x(k + 1), c.x(k + 2)) for k in range(2, len(c.inputs), 3)]
    return coded(c, c.add("concat", *parts, axis=c.a("axis")), c.x(0), c.x(1), c.x(2).dtype)


@microsoft("QGemm", (6, 9), alpha=1.0, transA=0, transB=0)
def qgemm(c: Context) -> Result:
    """Integers without their zero points, exact in i32 with a bias in i32; f32 where no scale of the result is given."""
    def plain(k: int, turn: bool, axis: int) -> Value:
        v = c.cast(c.x(k), i32)
        zero = c.opt(k + 2)
        if zero is not None:
            column = turn and zero.rank == 1 and not is_one(zero.shape[0])
            v = c.add("sub", v, c.cast(c.reshape(zero, [zero.shape[0], 1]) if column else zero, i32))
        return c.add("transpose", v, perm=(1, 0)) if turn else v
    c.expect(c.opt(5) is None or c.x(5).rank < 2, "zero points of several axes")
    y = c.add("matmul", plain(0, bool(c.a("transA")), 0), plain(3, bool(c.a("transB")), 1), out=i32)
    if c.opt(6) is not None:
        y = c.add("add", y, c.x(6))
    scale = c.add("mul", c.cast(c.reshape(c.x(1), []), f32), c.cast(c.x(4), f32))
    y = c.add("mul", c.cast(y, f32), _scaled(c, scale, c.a("alpha")))
    return y if c.opt(7) is None else coded(c, y, c.x(7), c.opt(8), c.x(8).dtype if c.opt(8) is not None else u8)


@microsoft("MatMulIntegerToFloat", (4, 7))
def matmul_integer_to_float(c: Context) -> Result:
    y = _integer_product(c, c.x(0), c.x(1), c.opt(4), c.opt(5))
    y = c.add("mul", c.cast(y, f32), c.add("mul", c.cast(c.x(2), f32), c.cast(c.x(3), f32)))
    return y if c.opt(6) is None else c.add("add", y, c.x(6))


def _integer_product(c: Context, a: Value, b: Value, za: Value | None, zb: Value | None) -> Value:
    left, right = c.cast(a, i32), c.cast(b, i32)
    if za is not None:
        left = c.add("sub", left, c.cast(c.reshape(za, []), i32))
    if zb is not None:
        right = c.add("sub", right, c.cast(zb, i32))
    return matrix_product(c, left, right, out=i32)


@microsoft("DynamicQuantizeMatMul", (3, 5))
def dynamic_quantize_matmul(c: Context) -> Result:
    """The left operand is coded as u8 with the range of its own values, which includes 0."""
    a = c.x(0)
    zero = c.const(0, f32)
    low, high = (c.add(op, c.add(f"reduce_{op}", a, keepdims=False), zero) for op in ("min", "max"))
    scale = c.add("div", c.add("sub", high, low), c.const(255, f32))
    scale = c.add("where", c.add("equal", scale, zero), c.const(1, f32), scale)
    point = c.add("clip", c.add("round", c.add("div", c.add("neg", low), scale)), min=0.0, max=255.0)
    codes = saturated(c, c.add("add", c.add("round", c.add("div", a, scale)), point), u8)
    y = _integer_product(c, codes, c.x(1), c.cast(point, u8), c.opt(3))
    y = c.add("mul", c.cast(y, f32), c.add("mul", scale, c.cast(c.x(2), f32)))
    return y if c.opt(4) is None else c.add("add", y, c.x(4))


@microsoft("QuantizeLinear", (2, 3), axis=1)
def quantize(c: Context) -> Result:
    x, zero = c.x(0), c.opt(2)
    y = c.add("round", c.add("div", c.cast(x, f32), _laid(c, c.x(1), x)))
    to = u8 if zero is None else zero.dtype
    return saturated(c, y if zero is None else c.add("add", y, _laid(c, zero, x)), to)


@microsoft("DequantizeLinear", (2, 3), axis=1)
def dequantize(c: Context) -> Result:
    return c.cast(real(c, c.x(0), c.x(1), c.opt(2), c.a("axis")), c.x(1).dtype)


def _laid(c: Context, v: Value, x: Value) -> Value:
    if v.rank == 1 and not is_one(v.shape[0]):
        v = c.per_channel(v, x.rank, c.a("axis") % x.rank)
    elif v.rank:
        v = c.reshape(v, [])
    return c.cast(v, f32)


