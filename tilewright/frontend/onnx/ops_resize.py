"""ONNX's resizing: Upsample and Resize, by the graph's `resize` where its taps follow from sizes alone, else by tables.

With tables, each axis by itself: places [m, taps] and weights [m, taps], gathered, multiplied and summed. Antialiased
kernels have as many taps as the shrinking asks for; a region of interest may be data.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from tilewright.core.dtype import f64, i64
from tilewright.frontend.onnx.table import Context, Result, onnx_op
from tilewright.graph.infer import dim
from tilewright.graph.ir import Value
from tilewright.graph.ops.recipes import accumulator
from tilewright.graph.ops.resize import source_coordinate
from tilewright.loop.ir import Expr, as_int, const


def _sizes(x: Value, scales: Sequence[float]) -> list[Expr]:
    """floor(size * scale); of a symbolic size for scales that `_is_plain` takes."""
    out = []
    for d, s in zip(x.shape, scales, strict=True):
        n = as_int(d)
        out.append(const(math.floor(n * s)) if n is not None else dim(d * Fraction(s).numerator // Fraction(s).denominator))
    return out


def _is_plain(scale: float) -> bool:
    """Whether a scale is a fraction of small numbers, as 2 and 0.75 are."""
    return max(Fraction(scale).numerator, Fraction(scale).denominator) <= 1 << 16


def _check_scales(c: Context, x: Value, scales: Sequence[float]) -> None:
    if len(scales) != x.rank or not all(math.isfinite(s) and 0 < s < 2**31 for s in scales):
        raise c.error("onnx-invalid-graph", f"{c.op}: scales {list(scales)} for {x.type}")
    if any(as_int(d) is None and not _is_plain(s) for d, s in zip(x.shape, scales, strict=True)):
        raise c.error("onnx-dynamic-value", f"{c.op}: the scales {list(scales)} need known sizes, not {x.type}",
                      "set the model's symbolic sizes")


_MODES = {"nearest": "nearest", "linear": "linear", "bilinear": "linear", "trilinear": "linear", "cubic": "cubic"}


def _mode(c: Context) -> str:
    mode = c.a("mode", "nearest")
    c.expect(mode in _MODES, f"mode {mode!r}")
    return _MODES[mode]


@onnx_op("Upsample", since=7)
def upsample(c: Context) -> Result:
    return upsampled(c, c.x(), [float(s) for s in (c.a("scales") if c.since < 9 else c.array(1).reshape(-1).tolist())])


@onnx_op("Resize")
def resize_10(c: Context) -> Result:
    return upsampled(c, c.x(), c.array(1).reshape(-1).tolist())


def upsampled(c: Context, x: Value, scales: Sequence[float]) -> Value:
    """Upsample and the first Resize: coordinates are divided by the scale and rounded down."""
    _check_scales(c, x, scales)
    return c.add("resize", x, sizes=_sizes(x, scales), scales=scales, mode=_mode(c), coordinates="asymmetric",
                 rounding="floor")


@onnx_op("Resize", since=11)
def resize(c: Context) -> Result:
    x = c.x()
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
    if c.a("coordinate_transformation_mode") == "tf_crop_and_resize":
        return _cropped(c, x, axes, sizes, scales)
    if c.a("antialias") and _mode(c) != "nearest":
        return _antialiased(c, x, axes, sizes, scales)
    more = {} if scales is None else {"scales": scales}
    return c.add("resize", x, sizes=sizes, mode=_mode(c), coordinates=c.a("coordinate_transformation_mode", "half_pixel"),
                 rounding=c.a("nearest_mode", "round_prefer_floor"), cubic_a=c.a("cubic_coeff_a", -0.75),
                 exclude_outside=bool(c.a("exclude_outside", 0)), **more)


def _by_sizes(c: Context, x: Value, axes: Sequence[int]) -> tuple[list[Expr], list[float] | None]:
    """Sizes that the node names, bent to one factor where the aspect ratio is to stay."""
    sizes = list(x.shape)
    policy = c.a("keep_aspect_ratio_policy", "stretch")
    tables = c.a("coordinate_transformation_mode") == "tf_crop_and_resize" or c.a("antialias")
    wanted = c.dims(3) if policy == "stretch" and not tables else [const(n) for n in c.ints(3)]
    for a, d in zip(axes, wanted, strict=True):
        sizes[a] = d
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


# ---- by tables -------------------------------------------------------------------------------------------------------
def _known(c: Context, x: Value, sizes: Sequence[Expr], k: int) -> tuple[int, int]:
    """Sizes of axis `k` before and after."""
    n, m = as_int(x.shape[k]), as_int(sizes[k])
    if n is None or m is None:
        raise c.error("onnx-dynamic-value", f"Resize: axis {k} needs known sizes, not {x.shape[k]!r} to {sizes[k]!r}",
                      "set the model's symbolic sizes")
    return n, m


def _antialiased(c: Context, x: Value, axes: Sequence[int], sizes: Sequence[Expr], scales: list[float] | None) -> Value:
    """The kernel is as much wider as the axis shrinks."""
    kind = c.a("coordinate_transformation_mode", "half_pixel")
    for k in [a % x.rank for a in axes]:
        n, m = _known(c, x, sizes, k)
        scale = scales[k] if scales is not None else m / n
        if n == m and scale == 1:
            continue
        at = c.b.constant(source_coordinate(kind, n, m, scale))
        x = _resampled(c, x, k, at, *_taps(c, at, n, min(scale, 1.0)))
    return x


def _cropped(c: Context, x: Value, axes: Sequence[int], sizes: Sequence[Expr], scales: list[float] | None) -> Value:
    """Each axis runs from the region's first to its last element, as parts of the axis; beyond it is one number. The region
    may be data."""
    roi, outside = c.cast(c.x(1), f64), c.a("extrapolation_value", 0.0)
    covers: list[tuple[int, Value]] = []

    def part(j: int) -> Value:
        return c.b.squeeze(c.b.slice(roi, {0: (j, j + 1, 1)}), [0])

    def number(v: float) -> Value:
        return c.const(v, f64)
    for j, k in enumerate([a % x.rank for a in axes]):
        n, m = _known(c, x, sizes, k)
        exact = scales[k] * n if scales is not None else float(m)
        first, last = (c.add("mul", part(j + e * len(axes)), number(n - 1)) for e in (0, 1))
        span = c.add("sub", last, first)
        steps = c.b.constant(np.full(m, 0.5) if exact == 1 else np.arange(m) / (exact - 1))
        at = c.add("add", c.add("mul", steps, span), first)
        covers.append((k, c.add("logical_or", c.add("less", at, number(0)), c.add("greater", at, number(n - 1)))))
        if _mode(c) == "nearest":
            places = c.cast(c.add("clip", _rounded(c, at), min=0, max=n - 1), i64)
            x = c.add("gather", x, places, axis=k)
        else:
            x = _resampled(c, x, k, at, *_taps(c, at, n, 1.0))
    for k, out in covers:
        x = c.add("where", c.per_channel(out, x.rank, k), c.const(outside, x.dtype), x)
    return x


def _rounded(c: Context, at: Value) -> Value:
    match c.a("nearest_mode", "round_prefer_floor"):
        case "floor":
            return c.add("floor", at)
        case "ceil":
            return c.add("ceil", at)
        case "round_prefer_ceil":
            return c.add("floor", c.add("add", at, c.const(0.5, f64)))
        case _:
            return c.add("ceil", c.add("sub", at, c.const(0.5, f64)))


def _taps(c: Context, at: Value, n: int, shrink: float) -> tuple[Value, Value]:
    """Source places and weights [m, taps] of coordinates `at` [m] in an axis of `n`: a kernel of distances times `shrink`
    (the triangle, or Keys's cubic), whose weights sum to 1."""
    cubic, (m,) = _mode(c) == "cubic", at.shape
    half = math.ceil((2 if cubic else 1) / shrink)
    column = c.b.reshape(at, [m, 1])
    places = c.add("add", c.add("floor", column), c.const(np.arange(1 - half, 1 + half), f64))
    d = c.add("mul", c.add("abs", c.add("sub", places, column)), c.const(shrink, f64))

    def polynomial(*factors: float) -> Value:
        y = c.const(factors[0], f64)
        for f in factors[1:]:
            y = c.add("add", c.add("mul", y, d), c.const(f, f64))
        return y
    if cubic:
        a = c.a("cubic_coeff_a", -0.75)
        far = c.add("where", c.add("less", d, c.const(2, f64)), polynomial(a, -5 * a, 8 * a, -4 * a), c.const(0, f64))
        weights = c.add("where", c.add("less_equal", d, c.const(1, f64)), polynomial(a + 2, -a - 3, 0, 1), far)
    else:
        weights = c.add("clip", polynomial(-1, 1), min=0)
    if c.a("exclude_outside"):
        inside = c.add("logical_and", c.add("greater_equal", places, c.const(0, f64)),
                       c.add("less", places, c.const(n, f64)))
        weights = c.add("where", inside, weights, c.const(0, f64))
    weights = c.add("div", weights, c.add("reduce_sum", weights, axes=(1,)))
    return c.cast(c.add("clip", places, min=0, max=n - 1), i64), weights


def _resampled(c: Context, x: Value, axis: int, at: Value, places: Value, weights: Value) -> Value:
    """Weighted sums of the elements at `places` along an axis."""
    acc = accumulator(x.dtype)
    w = c.b.reshape(c.cast(weights, acc), [*weights.shape, *[1] * (x.rank - axis - 1)])
    found = c.cast(c.add("gather", x, places, axis=axis), acc)
    return c.cast(c.add("reduce_sum", c.add("mul", found, w), axes=(axis + 1,), keepdims=False), x.dtype)
