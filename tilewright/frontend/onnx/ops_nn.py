"""ONNX's heavy operators: convolutions, pooling, matrix products, resizing."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import f32, i32
from tilewright.frontend.onnx.table import Context, Result, onnx_op
from tilewright.graph.infer import dim, is_one
from tilewright.graph.ir import Value
from tilewright.loop.ir import Expr, as_int, const


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


def _window(c: Context, spatial: Sequence[Expr], kernel: Sequence[int]) -> dict[str, Any]:
    rank = len(kernel)
    strides, dilations = c.a("strides", (1,) * rank), c.a("dilations", (1,) * rank)
    if not len(strides) == len(dilations) == rank == len(spatial) or min(*strides, *dilations, *kernel, 1) < 1:
        raise c.error("onnx-invalid-graph", f"{c.op}: strides {list(strides)}, dilations {list(dilations)} and kernel "
                      f"{list(kernel)} on {len(spatial)} axes")
    return {"strides": strides, "dilations": dilations, "pads": _pads(c, spatial, kernel, strides, dilations)}


def _kernel(c: Context, w: Value) -> tuple[int, ...]:
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
    y = c.add("conv", x, w, group=c.a("group", 1), **_window(c, x.shape[2:], _kernel(c, w)))
    return _with_bias(c, y, c.opt(2))


@onnx_op("ConvInteger")
def conv_integer(c: Context) -> Result:
    x, w = _shifted(c, 0, 2, None), _shifted(c, 1, 3, 0)
    return c.add("conv", x, w, group=c.a("group", 1), out=i32, **_window(c, x.shape[2:], _kernel(c, w)))


def _shifted(c: Context, k: int, zero: int, axis: int | None) -> Value:
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
    kernel, rank = _kernel(c, w), w.rank - 2
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
    return c.add(op, x, kernel=kernel, ceil_mode=bool(c.a("ceil_mode", 0)), **_window(c, x.shape[2:], kernel), **more)


@onnx_op("MaxPool")
def max_pool(c: Context) -> Result:
    c.expect(not c.wants(1), "the output Indices")
    return _pool(c, "max_pool", c.x())


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
def _matmul(c: Context, a: Value, b: Value, **attrs: Any) -> Value:
    """NumPy's rule: a vector is a row on the left and a column on the right, and loses that axis again."""
    if a.rank == 0 or b.rank == 0:
        raise c.error("rank-mismatch", f"{c.op} of a scalar: {a.type} and {b.type}")
    y = c.add("matmul", c.reshape(a, [1, *a.shape]) if a.rank == 1 else a,
              c.reshape(b, [*b.shape, 1]) if b.rank == 1 else b, **attrs)
    gone = ([-2] if a.rank == 1 else []) + ([-1] if b.rank == 1 else [])
    return c.b.squeeze(y, gone) if gone else y


@onnx_op("MatMul")
def matmul(c: Context) -> Result:
    return _matmul(c, c.x(0), c.x(1))


@onnx_op("MatMulInteger")
def matmul_integer(c: Context) -> Result:
    a, za = c.x(0), c.opt(2)
    if za is not None and za.rank == 1 and a.rank > 1:
        left = c.add("sub", c.cast(a, i32), c.cast(c.reshape(za, [za.shape[0], 1]), i32))
    else:
        left = _shifted(c, 0, 2, -1)
    return _matmul(c, left, _shifted(c, 1, 3, -1), out=i32)


@onnx_op("QLinearMatMul")
def qlinear_matmul(c: Context) -> Result:
    """Products of integers without their zero points, exact in i32, then scaled, rounded and saturated."""
    a, sa, za, b, sb, zb, sy, zy = [c.x(k) for k in range(8)]
    for v in (sa, za, sb, zb, sy, zy):
        c.expect(v.rank <= 1, "a scale of more than one axis")
    left = c.add("sub", c.cast(a, i32), c.cast(_by_rows(c, za), i32))
    right = c.add("sub", c.cast(b, i32), c.cast(zb, i32))
    total = c.cast(_matmul(c, left, right, out=i32), f32)
    scale = c.add("div", c.add("mul", c.cast(_by_rows(c, sa), f32), c.cast(sb, f32)), c.cast(_by_rows(c, sy), f32))
    y = c.add("add", c.add("round", c.add("mul", total, scale)), c.cast(_by_rows(c, zy), f32))
    low, high = zy.dtype.range()
    return c.cast(c.add("clip", y, min=float(low), max=float(high)), zy.dtype)


def _by_rows(c: Context, v: Value) -> Value:
    """A number, or one number per row of a matrix as a column."""
    return v if v.rank == 0 or is_one(v.shape[0]) else c.reshape(v, [v.shape[0], 1])


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


# ---- resizing --------------------------------------------------------------------------------------------------------
def _sizes(x: Value, scales: Sequence[float]) -> list[Expr]:
    """floor(size * scale); of a symbolic size for whole factors only."""
    out = []
    for d, s in zip(x.shape, scales, strict=True):
        n = as_int(d)
        out.append(const(math.floor(n * s)) if n is not None else dim(d * int(s)))
    return out


def _check_scales(c: Context, x: Value, scales: Sequence[float]) -> None:
    if len(scales) != x.rank or not all(math.isfinite(s) and 0 < s < 2**31 for s in scales):
        raise c.error("onnx-invalid-graph", f"{c.op}: scales {list(scales)} for {x.type}")
    if any(as_int(d) is None and s != int(s) for d, s in zip(x.shape, scales, strict=True)):
        raise c.error("onnx-dynamic-value", f"{c.op}: fractional scales need known sizes, not {x.type}",
                      "set the model's symbolic sizes")


_MODES = {"nearest": "nearest", "linear": "linear", "bilinear": "linear", "trilinear": "linear", "cubic": "cubic"}


def _mode(c: Context) -> str:
    mode = c.a("mode", "nearest")
    c.expect(mode in _MODES, f"mode {mode!r}")
    return _MODES[mode]


@onnx_op("Upsample")
def upsample(c: Context) -> Result:
    x = c.x()
    return _legacy(c, [float(s) for s in (c.a("scales") if c.since < 9 else c.array(1).reshape(-1).tolist())], x)


@onnx_op("Resize")
def resize_10(c: Context) -> Result:
    return _legacy(c, c.array(1).reshape(-1).tolist(), c.x())


def _legacy(c: Context, scales: Sequence[float], x: Value) -> Value:
    """Upsample and the first Resize: coordinates are divided by the scale and rounded down."""
    _check_scales(c, x, scales)
    return c.add("resize", x, sizes=_sizes(x, scales), scales=scales, mode=_mode(c), coordinates="asymmetric",
                 rounding="floor")


@onnx_op("Resize", since=11)
def resize(c: Context) -> Result:
    x = c.x()
    coordinates = c.a("coordinate_transformation_mode", "half_pixel")
    c.expect(coordinates != "tf_crop_and_resize", "tf_crop_and_resize")
    c.expect(not c.a("antialias"), "antialias")
    axes = c.a("axes", tuple(range(x.rank)))
    if any(not -x.rank <= a < x.rank for a in axes):
        raise c.error("axis-out-of-range", f"Resize: axes {list(axes)} of a tensor of rank {x.rank}")
    scales: list[float] | None = None
    if c.opt(2) is not None and c.x(2).type.shape and as_int(c.x(2).shape[0]) != 0:
        scales = [1.0] * x.rank
        for a, s in zip(axes, c.array(2).reshape(-1).tolist(), strict=True):
            scales[a] = s
        _check_scales(c, x, scales)
        sizes = _sizes(x, scales)
    else:
        sizes, scales = _by_sizes(c, x, axes)
    more = {} if scales is None else {"scales": scales}
    return c.add("resize", x, sizes=sizes, mode=_mode(c), coordinates=coordinates,
                 rounding=c.a("nearest_mode", "round_prefer_floor"), cubic_a=c.a("cubic_coeff_a", -0.75),
                 exclude_outside=bool(c.a("exclude_outside", 0)), **more)


def _by_sizes(c: Context, x: Value, axes: Sequence[int]) -> tuple[list[Expr], list[float] | None]:
    """Sizes that the node names, bent to one factor where the aspect ratio is to stay."""
    sizes = list(x.shape)
    wanted = c.dims(3)
    for a, d in zip(axes, wanted, strict=True):
        sizes[a] = d
    policy = c.a("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return sizes, None
    c.expect(policy in ("not_larger", "not_smaller"), f"keep_aspect_ratio_policy {policy!r}")
    factors = []
    for a in axes:
        m, n = as_int(sizes[a]), as_int(x.shape[a])
        if m is None or not n:
            raise c.error("onnx-dynamic-value", "Resize: keep_aspect_ratio_policy needs known sizes",
                          "set the model's symbolic sizes")
        factors.append(m / n)
    factor = min(factors) if policy == "not_larger" else max(factors)
    scales = [1.0] * x.rank
    for a in axes:
        n = as_int(x.shape[a]) or 0
        scales[a], sizes[a] = factor, const(int(np.floor(factor * n + 0.5)))
    return sizes, scales
