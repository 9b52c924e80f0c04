"""ONNX's heavy operators: convolutions, pooling, matrix products."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tilewright.core.dtype import i32
from tilewright.frontend.onnx.table import Context, Result, onnx_op
from tilewright.graph.infer import dim, product
from tilewright.graph.ir import Value
from tilewright.loop.ir import Expr, as_int


# ---- windows ---------------------------------------------------------------------------------------------------------
def _pads(c: Context, spatial: Sequence[Expr], kernel: Sequence[int], strides: Sequence[int],
          dilations: Sequence[int]) -> tuple[int, ...]:
    """All beginnings, then all ends. SAME pads so that the output has ceil(size / stride) places."""
    mode, rank = c.a("auto_pad", "NOTSET"), len(kernel)
    if mode in ("NOTSET", ""):
        return tuple(c.a("pads", (0,) * (2 * rank)))
    if mode == "VALID":
        return (0,) * (2 * rank)
    c.expect(mode in ("SAME_UPPER", "SAME_LOWER"), f"auto_pad {mode!r}")
    total = []
    for extent, k, s, d in zip(spatial, kernel, strides, dilations, strict=True):
        reach, n = (k - 1) * d + 1, as_int(extent)
        if n is None and s != 1:
            raise c.error("onnx-dynamic-value", f"{c.op}: auto_pad {mode} with stride {s} needs a known size, not "
                          f"{extent!r}", "set the model's symbolic sizes")
        total.append(max(0, reach - 1 if n is None or s == 1 else (math.ceil(n / s) - 1) * s + reach - n))
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return tuple(small + large if mode == "SAME_UPPER" else large + small)


def window(c: Context, spatial: Sequence[Expr], kernel: Sequence[int]) -> dict[str, Any]:
    rank = len(kernel)
    strides, dilations = c.a("strides", (1,) * rank), c.a("dilations", (1,) * rank)
    if not len(strides) == len(dilations) == rank == len(spatial) or min(*strides, *dilations, *kernel, 1) < 1:
        raise c.error("onnx-invalid-graph", f"{c.op}: strides {list(strides)}, dilations {list(dilations)} and kernel "
                      f"{list(kernel)} on {len(spatial)} axes")
    return {"strides": strides, "dilations": dilations, "pads": _pads(c, spatial, kernel, strides, dilations)}


def kernel_of(c: Context, w: Value) -> tuple[int, ...]:
    found = [as_int(d) for d in w.shape[2:]]
    c.expect(w.rank > 2 and all(k is not None for k in found), f"a kernel of shape {list(w.shape)}")
    kernel = tuple([k for k in found if k is not None])
    if c.a("kernel_shape", kernel) != kernel:
        raise c.error("onnx-invalid-graph", f"{c.op}: kernel_shape {list(c.a('kernel_shape'))} and a weight of shape "
                      f"{list(w.shape)}")
    return kernel


def _with_bias(c: Context, y: Value, bias: Value | None) -> Value:
    return y if bias is None else c.add("add", y, c.per_channel(bias, y.rank))


@onnx_op("Conv")
def conv(c: Context) -> Result:
    x, w = c.x(0), c.x(1)
    y = c.add("conv", x, w, group=c.a("group", 1), **window(c, x.shape[2:], kernel_of(c, w)))
    return _with_bias(c, y, c.opt(2))


@onnx_op("ConvInteger")
def conv_integer(c: Context) -> Result:
    x, w = shifted(c, 0, 2, None), shifted(c, 1, 3, 0)
    return c.add("conv", x, w, group=c.a("group", 1), out=i32, **window(c, x.shape[2:], kernel_of(c, w)))


def shifted(c: Context, k: int, zero: int, axis: int | None) -> Value:
    """Integer input `k` less its zero point (along `axis` where it is a vector), as i32."""
    x, z = c.x(k), c.opt(zero)
    if z is None:
        return c.cast(x, i32)
    if z.rank == 1 and as_int(z.shape[0]) != 1:
        c.expect(axis is not None, "a zero point per row")
        assert axis is not None
        z = c.per_channel(z, x.rank, axis % x.rank)
    elif z.rank:
        z = c.reshape(z, [])
    return c.add("sub", c.cast(x, i32), c.cast(z, i32))


@onnx_op("ConvTranspose")
def conv_transpose(c: Context) -> Result:
    """Pads from output_shape or SAME: the whole result cropped to the wanted size."""
    x, w = c.x(0), c.x(1)
    kernel, rank = kernel_of(c, w), w.rank - 2
    strides, dilations = c.a("strides", (1,) * rank), c.a("dilations", (1,) * rank)
    extra, mode = c.a("output_padding", (0,) * rank), c.a("auto_pad", "NOTSET")
    wanted: Sequence[Any] | None = c.a("output_shape")
    if wanted is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [dim(d * s) for d, s in zip(x.shape[2:], strides, strict=True)]
    if wanted is None:
        pads = (0,) * (2 * rank) if mode == "VALID" else tuple(c.a("pads", (0,) * (2 * rank)))
    else:
        total = []
        for d, s, k, e, dl, out in zip(x.shape[2:], strides, kernel, extra, dilations, wanted[-rank:], strict=True):
            t = as_int(dim((d - 1) * s + (e + (k - 1) * dl + 1) - out))
            if t is None:
                raise c.error("onnx-dynamic-value", "ConvTranspose: the padding needs known sizes",
                              "set the model's symbolic sizes")
            total.append(t)
        extra = [e + max(0, -t) for e, t in zip(extra, total, strict=True)]  # beyond the windows' reach are zeros
        small = [max(0, t) // 2 for t in total]
        large = [max(0, t) - s for t, s in zip(total, small, strict=True)]
        pads = tuple(small + large if mode == "SAME_UPPER" else large + small)
    y = c.add("conv_transpose", x, w, group=c.a("group", 1), strides=strides, dilations=dilations, pads=pads,
              output_padding=extra)
    return _with_bias(c, y, c.opt(2))


# ---- pooling ---------------------------------------------------------------------------------------------------------
def _pool(c: Context, op: str, x: Value, **more: Any) -> Value:
    kernel = tuple(c.a("kernel_shape"))
    return c.add(op, x, kernel=kernel, ceil_mode=bool(c.a("ceil_mode", 0)), **window(c, x.shape[2:], kernel), **more)


@onnx_op("MaxPool")
def max_pool(c: Context) -> Result:
    if not c.wants(1):
        return _pool(c, "max_pool", c.x())
    kernel = tuple(c.a("kernel_shape"))
    return c.add_all("max_pool_indices", c.x(), kernel=kernel, ceil_mode=bool(c.a("ceil_mode", 0)),
                     column_major=bool(c.a("storage_order", 0)), **window(c, c.x().shape[2:], kernel))


@onnx_op("MaxUnpool")
def max_unpool(c: Context) -> Result:
    """Elements put back at their places in a tensor of zeros, then with more zeros behind each axis if a size is given."""
    x, kernel = c.x(), tuple(c.a("kernel_shape"))
    rank = len(kernel)
    strides, pads = c.a("strides", (1,) * rank), c.a("pads", (0,) * (2 * rank))
    sizes = [dim((d - 1) * strides[k] - (pads[k] + pads[rank + k]) + kernel[k]) for k, d in enumerate(x.shape[2:])]
    shape = [*x.shape[:2], *sizes]
    zeros = c.add("full", shape=[product(shape)], value=0, dtype=x.dtype)
    count = product(x.shape)
    at = c.b.in_bounds(c.b.reshape(c.x(1), [count]), zeros.shape, from_front=True)
    y = c.add("scatter_elements", zeros, at, c.b.reshape(x, [count]), axis=0)
    y = c.b.reshape(y, shape)
    if c.opt(2) is None:
        return y
    return c.add("pad", y, before=[0] * x.rank, after=[w - d for w, d in zip(c.dims(2), shape, strict=True)])


@onnx_op("Col2Im")
def col2im(c: Context) -> Result:
    attrs = {k: c.a(k) for k in ("strides", "pads", "dilations") if c.a(k) is not None}
    return c.add("col2im", c.x(), image=c.ints(1), block=c.ints(2), **attrs)


@onnx_op("AveragePool")
def average_pool(c: Context) -> Result:
    return _pool(c, "avg_pool", c.x(), count_include_pad=bool(c.a("count_include_pad", 0)))


@onnx_op("LpPool")
def lp_pool(c: Context) -> Result:
    """(sum |x|^p)^(1/p), the sum as mean times size of the window."""
    c.expect(not c.a("ceil_mode"), "ceil_mode")
    x, p = c.x(), c.a("p", 2)
    powers = c.add("pow", c.add("abs", x), c.const(p, x.dtype))
    mean = _pool(c, "avg_pool", powers, count_include_pad=True)
    total = c.add("mul", mean, c.const(math.prod(c.a("kernel_shape")), x.dtype))
    return c.add("pow", total, c.const(1 / p, x.dtype))


def _spatial(x: Value) -> tuple[int, ...]:
    return tuple(range(2, x.rank))


@onnx_op("GlobalAveragePool")
def global_average_pool(c: Context) -> Result:
    return c.add("reduce_mean", c.x(), axes=_spatial(c.x()))


@onnx_op("GlobalMaxPool")
def global_max_pool(c: Context) -> Result:
    return c.add("reduce_max", c.x(), axes=_spatial(c.x()))


@onnx_op("GlobalLpPool")
def global_lp_pool(c: Context) -> Result:
    x, p = c.x(), c.a("p", 2)
    total = c.add("reduce_sum", c.add("pow", c.add("abs", x), c.const(p, x.dtype)), axes=_spatial(x))
    return c.add("pow", total, c.const(1 / p, x.dtype))


# ---- matrix products -------------------------------------------------------------------------------------------------
def matrix_product(c: Context, a: Value, b: Value, **attrs: Any) -> Value:
    """NumPy's rule: a vector is a row on the left and a column on the right, and loses that axis again."""
    if a.rank == 0 or b.rank == 0:
        raise c.error("rank-mismatch", f"{c.op} of a scalar: {a.type} and {b.type}")
    y = c.add("matmul", c.reshape(a, [1, *a.shape]) if a.rank == 1 else a,
              c.reshape(b, [*b.shape, 1]) if b.rank == 1 else b, **attrs)
    gone = ([-2] if a.rank == 1 else []) + ([-1] if b.rank == 1 else [])
    return c.b.squeeze(y, gone) if gone else y


@onnx_op("MatMul")
def matmul(c: Context) -> Result:
    return matrix_product(c, c.x(0), c.x(1))


@onnx_op("MatMulInteger")
def matmul_integer(c: Context) -> Result:
    a, za = c.x(0), c.opt(2)
    if za is not None and za.rank == 1 and a.rank > 1:
        left = c.add("sub", c.cast(a, i32), c.cast(c.reshape(za, [za.shape[0], 1]), i32))
    else:
        left = shifted(c, 0, 2, -1)
    return matrix_product(c, left, shifted(c, 1, 3, -1), out=i32)


@onnx_op("Gemm")
def gemm(c: Context) -> Result:
    """alpha * A' B' + beta * C; alpha and beta go into constant operands."""
    a, b = c.x(0), c.x(1)
    alpha, beta = c.a("alpha", 1.0), c.a("beta", 1.0)
    if alpha != 1 and b.data is not None:
        b, alpha = _scaled(c, b, alpha), 1.0
    if c.a("transA"):
        a = c.add("transpose", a, perm=(1, 0))
    y = c.add("matmul", a, b, transpose_b=bool(c.a("transB")))
    y = _scaled(c, y, alpha)
    bias = c.opt(2)
    return y if bias is None or beta == 0 else c.add("add", y, _scaled(c, bias, beta))


def _scaled(c: Context, v: Value, factor: float) -> Value:
    if factor == 1:
        return v
    scale = c.const(factor, v.dtype)
    if v.data is not None and scale.data is not None:
        return c.b.constant(v.data * scale.data, v.name)
    return c.add("mul", v, scale)
