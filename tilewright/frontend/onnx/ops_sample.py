"""ONNX's operators that read at places which are data: GridSample, DeformConv, RoiAlign, MaxRoiPool."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilewright.core.dtype import f32, i64
from tilewright.frontend.onnx.ops_nn import kernel_of
from tilewright.frontend.onnx.table import Context, Result, onnx_op
from tilewright.graph.infer import constant_of, dim, product
from tilewright.graph.ir import Value
from tilewright.graph.ops.recipes import accumulator
from tilewright.loop.ir import as_int

_GRID_MODES = {"bilinear": "linear", "linear": "linear", "nearest": "nearest", "bicubic": "cubic", "cubic": "cubic"}


@onnx_op("GridSample")
def grid_sample(c: Context) -> Result:
    mode = c.a("mode", "linear")
    c.expect(mode in _GRID_MODES, f"mode {mode!r}")
    return c.add("sample", c.x(0), c.x(1), mode=_GRID_MODES[mode], padding=c.a("padding_mode", "zeros"), grid=True,
                 corners=bool(c.a("align_corners", 0)))


@onnx_op("DeformConv")
def deform_conv(c: Context) -> Result:
    """The elements under each window, moved by offsets and times a mask, as columns: then a product with the weights."""
    x, w, offset, bias, mask = c.x(0), c.x(1), c.x(2), c.opt(3), c.opt(4)
    kernel, rank = kernel_of(c, w), w.rank - 2
    strides, dilations = c.a("strides", (1,) * rank), c.a("dilations", (1,) * rank)
    pads, group, parts = c.a("pads", (0,) * (2 * rank)), c.a("group", 1), c.a("offset_group", 1)
    out = offset.shape[2:]
    sizes = [as_int(d) for d in out]
    if any(s is None for s in sizes):
        raise c.error("onnx-dynamic-value", f"DeformConv: offsets of {offset.type}", "set the model's symbolic sizes")
    n, channels, count, points = x.shape[0], x.shape[1], int(np.prod(kernel)), product(out)
    places = np.zeros((*kernel, *[s or 0 for s in sizes], rank), np.float32)
    for k in range(rank):
        window = np.arange(kernel[k]) * dilations[k] - pads[k]
        start = np.arange(sizes[k] or 0) * strides[k]
        shape = [1] * (2 * rank)
        shape[k], shape[rank + k] = window.size, start.size
        places[..., k] = (window[:, None] + start).reshape(shape)
    order = [0, 1, *range(3, 3 + rank), 2]
    moved = c.add("transpose", c.b.reshape(offset, [n * parts, count, rank, *out]), perm=order)
    at = c.add("add", c.cast(moved, f32), c.const(places.reshape(count, *places.shape[rank:]), f32))
    found = c.add("sample", c.b.reshape(x, [n * parts, dim(channels // parts), *x.shape[2:]]), at)
    if mask is not None:
        found = c.add("mul", found, c.b.reshape(mask, [n * parts, 1, count, *out]))
    per = dim(channels // group)
    columns = c.b.reshape(found, [n, group, per * count, points])
    weights = c.reshape(w, [1, group, dim(w.shape[0] // group), per * count])
    y = c.b.reshape(c.add("matmul", weights, columns), [n, w.shape[0], *out])
    return y if bias is None else c.add("add", y, c.per_channel(bias, y.rank))


# ---- regions of interest ---------------------------------------------------------------------------------------------
def _column(c: Context, v: Value, k: int, rank: int) -> Value:
    """Column k of a matrix, with axes of size 1 behind its only one."""
    return c.b.reshape(c.b.slice(v, {1: (k, k + 1, 1)}), [v.shape[0], *[1] * (rank - 1)])


def _counts(c: Context, sizes: Sequence[Value], pooled: Sequence[int]) -> tuple[list[int], list[Value]] | None:
    """How many samples fit into a bin of each region: the most per axis, and the numbers. None: they are data."""
    known = [constant_of(s) for s in sizes]
    found = [None if a is None else np.maximum(np.ceil(a / p), 0) for a, p in zip(known, pooled, strict=True)]
    if any(f is None for f in found):
        return None
    most = [int(f.max()) if f is not None and f.size else 1 for f in found]
    return most, [c.const(f, f32) for f in found]


@onnx_op("RoiAlign")
def roi_align_16(c: Context) -> Result:
    """Before version 16 coordinates are not moved by half an element."""
    return _roi_align(c, c.since >= 16 and c.a("coordinate_transformation_mode", "half_pixel") == "half_pixel")


def _roi_align(c: Context, half_pixel: bool) -> Value:
    """Bins of each region, sampled at a lattice of points (between elements by linear interpolation) whose mean, or largest
    weighted neighbour, is the result. A point more than an element outside counts 0."""
    x, rois = c.x(0), c.x(1)
    batch = c.b.in_bounds(c.cast(c.x(2), i64), [x.shape[0]], from_front=True)
    wide, ratio = accumulator(x.dtype), c.a("sampling_ratio", 0)
    pooled = (c.a("output_height", 1), c.a("output_width", 1))
    mode = c.a("mode", "avg")
    c.expect(mode in ("avg", "max"), f"mode {mode!r}")

    def number(v: float) -> Value:
        return c.const(v, wide)
    scaled = c.add("mul", c.cast(rois, wide), number(c.a("spatial_scale", 1.0)))
    if half_pixel:
        scaled = c.add("sub", scaled, number(0.5))
    first = [_column(c, scaled, k, 1) for k in (1, 0)]
    sizes = [c.add("sub", _column(c, scaled, k, 1), f) for k, f in zip((3, 2), first, strict=True)]
    if not half_pixel:
        sizes = [c.add("max", s, number(1)) for s in sizes]
    if ratio > 0:
        most, counts = [ratio, ratio], [number(ratio)] * 2
    else:
        found = _counts(c, sizes, pooled)
        c.expect(found is not None, "sampling_ratio 0, where regions are data,")
        assert found is not None
        most, counts = found
    regions = rois.shape[0]
    axes, counted = [], []
    for k in range(2):
        shape = [regions, pooled[k], most[k]]
        rows = [c.b.reshape(v, [regions if v.rank else 1, 1, 1]) for v in (first[k], sizes[k], counts[k])]
        bins = c.add("div", rows[1], number(pooled[k]))
        step = c.const(np.arange(most[k]) + 0.5, wide)
        inner = c.add("div", c.add("mul", step, bins), rows[2])
        start = c.add("add", c.add("mul", c.const(np.arange(pooled[k])[:, None], wide), bins), rows[0])
        at = c.add("add", start, inner)
        height = c.cast(c.b.squeeze(c.b.slice(c.add("shape_of", x), {0: (2 + k, 3 + k, 1)}), [0]), wide)
        inside = c.add("logical_and", c.add("greater_equal", at, number(-1)), c.add("less_equal", at, height))
        at = c.add("max", c.add("min", at, c.add("sub", height, number(1))), number(0))
        lay = [*shape[:1], *([*shape[1:], 1, 1] if k == 0 else [1, 1, *shape[1:]])]
        axes.append(c.b.reshape(c.add("expand", at, shape=shape), lay))
        inside = c.b.reshape(c.add("expand", inside, shape=shape), lay)
        used = c.add("less", c.const(np.arange(most[k]), wide), rows[2])
        counted.append((inside, c.b.reshape(c.add("expand", used, shape=shape), lay)))
    points = [regions, pooled[0], most[0], pooled[1], most[1]]
    at = c.add("concat", *[c.b.unsqueeze(c.add("expand", v, shape=points), [5]) for v in axes], axis=5)
    y = c.cast(c.add("sample", x, at, batch, padding="border", taps="max" if mode == "max" else "sum"), wide)

    def both(j: int) -> Value:
        return c.b.unsqueeze(c.add("logical_and", counted[0][j], counted[1][j]), [1])
    y = c.add("where", both(0), y, number(0))
    if mode == "max":
        y = c.add("where", both(1), y, number(-np.inf))
        return c.cast(c.add("reduce_max", y, axes=(3, 5), keepdims=False), x.dtype)
    y = c.add("reduce_sum", c.add("where", both(1), y, number(0)), axes=(3, 5), keepdims=False)
    total = c.add("max", c.add("mul", *[c.b.reshape(v, [regions if v.rank else 1, 1, 1, 1]) for v in counts]), number(1))
    return c.cast(c.add("div", y, total), x.dtype)


@onnx_op("MaxRoiPool")
def max_roi_pool(c: Context) -> Result:
    """The largest element of each bin, along one axis after the other; 0 of an empty one. Corners are rounded."""
    x, rois, pooled = c.x(0), c.x(1), c.a("pooled_shape")
    regions = rois.shape[0]
    scaled = c.add("mul", c.cast(rois, f32), c.const(c.a("spatial_scale", 1.0), f32))
    away = c.add("floor", c.add("add", scaled, c.const(0.5, f32)))  # corners are not negative: halves go up
    batch = c.cast(c.b.reshape(c.b.slice(rois, {1: (0, 1, 1)}), [regions]), i64)
    y = c.add("gather", x, c.b.in_bounds(batch, [x.shape[0]], from_front=True), axis=0)
    low = float(np.finfo(x.dtype.numpy()).min)
    empty: list[Value] = []
    for k, axis in ((1, 3), (0, 2)):
        first, last = _column(c, away, 2 - k, 2), _column(c, away, 4 - k, 2)
        extent = c.add("max", c.add("add", c.add("sub", last, first), c.const(1, f32)), c.const(1, f32))
        bins = c.add("div", extent, c.const(pooled[k], f32))
        size = c.cast(c.b.squeeze(c.b.slice(c.add("shape_of", x), {0: (axis, axis + 1, 1)}), [0]), f32)

        def bound(number: int, rounding: str, bins: Value = bins, first: Value = first, size: Value = size,
                  k: int = k) -> Value:
            at = c.add(rounding, c.add("mul", c.const(np.arange(pooled[k]) + number, f32), bins))
            return c.add("max", c.add("min", c.add("add", at, first), size), c.const(0, f32))
        start, end = bound(0, "floor"), bound(1, "ceil")
        empty.append(c.add("less_equal", end, start))
        n = y.shape[axis]
        place = c.cast(c.add("range", *[c.const(0, i64), c.b.squeeze(c.b.slice(c.add("shape_of", y), {
            0: (axis, axis + 1, 1)}), [0]), c.const(1, i64)]), f32)
        within = c.add("logical_and", c.add("greater_equal", place, c.b.unsqueeze(start, [2])),
                       c.add("less", place, c.b.unsqueeze(end, [2])))  # [regions, pooled, n]
        if k == 1:
            spread = c.b.unsqueeze(y, [3])  # [regions, channels, height, 1, width]
            chosen = c.b.reshape(within, [regions, 1, 1, pooled[1], n])
            y = c.add("reduce_max", c.add("where", chosen, spread, c.const(low, x.dtype)), axes=(4,), keepdims=False)
        else:
            spread = c.b.unsqueeze(y, [2])  # [regions, channels, 1, height, pooled width]
            chosen = c.b.reshape(within, [regions, 1, pooled[0], n, 1])
            y = c.add("reduce_max", c.add("where", chosen, spread, c.const(low, x.dtype)), axes=(3,), keepdims=False)
    nothing = c.add("logical_or", c.b.reshape(empty[1], [regions, 1, pooled[0], 1]),
                    c.b.reshape(empty[0], [regions, 1, 1, pooled[1]]))
    return c.add("where", nothing, c.const(0, x.dtype), y)
