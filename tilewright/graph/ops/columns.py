"""Windows as columns and back: col2im, which sums what overlapping windows say of each element, and max_pool_indices."""
from __future__ import annotations

from collections.abc import Sequence
from itertools import product as combinations
from typing import Any

import numpy as np

from tilewright.core.dtype import i64
from tilewright.graph.infer import dim, expect, expect_rank, operands, product
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.ops.pool import POOL_ATTRS, infer_pool, lowest, normalize_pool, over_windows
from tilewright.graph.ops.recipes import accumulator, read_or
from tilewright.graph.ops.window import window_defaults
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.ir import TRUE, Expr, Select, as_int, const
from tilewright.tensor import compute as tc
from tilewright.tensor.compute import Tensor, compute, reduce_axis

BEYOND = 2**62
"""The index of what is no element: above every other."""


# ---- col2im ----------------------------------------------------------------------------------------------------------
def _windows(attrs: dict[str, Any], image: Sequence[Any]) -> list[Any]:
    """How many windows there are along each axis."""
    rank = len(attrs["block"])
    return [(n + attrs["pads"][k] + attrs["pads"][rank + k] - (attrs["block"][k] - 1) * attrs["dilations"][k] - 1)
            // attrs["strides"][k] + 1 for k, n in enumerate(image)]


def _normalize(op: Operation) -> dict[str, Any]:
    return window_defaults(op, len(op.attrs["block"]))


def _infer_col2im(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    a = op.attrs
    expect_rank(op, x, 3)
    rank, size = len(a["block"]), int(np.prod(a["block"]))
    expect(rank == len(a["image"]) > 0 and size > 0, "attribute-invalid",
           lambda: f"col2im: an image of {len(a['image'])} axes and a block of {a['block']}")
    columns, have, want = as_int(x.shape[1]), as_int(x.shape[2]), as_int(product(_windows(a, a["image"])))
    expect(columns is None or columns % size == 0, "shape-mismatch", lambda: f"col2im: {columns} rows of blocks of {size}")
    expect(have is None or want is None or have == want, "shape-mismatch",
           lambda: f"col2im: {have} columns, the image has {want} windows")
    return [TensorType(x.dtype, (x.shape[0], dim(x.shape[1] // size), *a["image"]))]


def _col2im(attrs: dict[str, Any], x: Array) -> Array:
    a, image, rank = attrs, attrs["image"], len(attrs["block"])
    count = _windows(a, image)
    wide = x.astype(np.float32) if x.dtype.itemsize < 4 and x.dtype.kind not in "biu" else x
    parts = wide.reshape(x.shape[0], -1, *a["block"], *count)
    padded = [n + a["pads"][k] + a["pads"][rank + k] for k, n in enumerate(image)]
    out = np.zeros((*parts.shape[:2], *padded), wide.dtype)
    for at in combinations(*[range(b) for b in a["block"]]):
        first = [i * d for i, d in zip(at, a["dilations"], strict=True)]
        places = tuple([slice(f, f + (n - 1) * s + 1, s) for f, n, s in zip(first, count, a["strides"], strict=True)])
        here: Any = (slice(None), slice(None), *at)
        out[(slice(None), slice(None), *places)] += parts[here]
    inner = tuple([slice(a["pads"][k], a["pads"][k] + n) for k, n in enumerate(image)])
    return out[(slice(None), slice(None), *inner)].astype(x.dtype)


def _compute_col2im(op: Operation, x: Tensor) -> Tensor:
    """Each element by itself: a sum over the places of a block, where a window stands so that the place is this element."""
    a, rank, acc = op.attrs, len(op.attrs["block"]), accumulator(x.dtype)
    count = _windows(a, a["image"])
    rs = [reduce_axis(const(b), name=f"k{k}") for k, b in enumerate(a["block"])]

    def cell(*i: Expr) -> Any:
        row: Expr = i[1]
        column: Expr = const(0)
        inside = TRUE
        for k in range(rank):
            row = row * a["block"][k] + rs[k].var
            shifted = i[2 + k] + a["pads"][k] - rs[k].var * a["dilations"][k]
            window = shifted // a["strides"][k]
            holds = (shifted >= 0) & (window < count[k])
            if a["strides"][k] > 1:
                holds = holds & (shifted % a["strides"][k]).eq(0)
            inside = holds if inside is TRUE else inside & holds
            column = column * count[k] + window
        return tc.sum(read_or(inside, x[i[0], row, column].cast(acc), 0), axis=rs)
    total = compute(op.output.shape, cell, name="col2im")
    out: Tensor = total if acc is x.dtype else compute(total.shape, lambda *i: total[i].cast(x.dtype), name="col2im_cast")
    return out


# ---- max_pool_indices ------------------------------------------------------------------------------------------------
def _infer_indices(op: Operation) -> Sequence[TensorType]:
    (values,) = infer_pool(op)
    return [values, TensorType(i64, values.shape)]


def _indices(attrs: dict[str, Any], x: Array) -> tuple[Array, Array]:
    rank = x.ndim - 2
    least = np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf
    values = over_windows(attrs, x, least)
    plain = np.arange(x.size).reshape(x.shape)
    if attrs["column_major"]:
        sizes = x.shape[2:]
        inner = np.arange(int(np.prod(sizes))).reshape(sizes[::-1]).transpose(*reversed(range(rank)))
        plain = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *[1] * rank) * inner.size + inner
    shape = values.shape[:2 + rank]
    places = over_windows(attrs, plain, BEYOND).reshape(*shape, -1)
    flat = values.reshape(*shape, -1)
    flat = flat.astype(np.float32) if flat.dtype.itemsize < 4 and flat.dtype.kind not in "biu" else flat
    top = flat.max(-1, keepdims=True)
    same = ((flat == top) | ((flat != flat) & (top != top))) & (places < BEYOND)
    at = np.argmax(same, -1)[..., None]
    return np.take_along_axis(values.reshape(*shape, -1), at, -1)[..., 0], np.take_along_axis(places, at, -1)[..., 0]


def _compute_indices(op: Operation, x: Tensor) -> tuple[Tensor, Tensor]:
    """The first of the largest elements in row-major order; its place is told in the other order afterwards."""
    a, rank = op.attrs, len(op.attrs["kernel"])
    rs = [reduce_axis(const(k), name=f"k{n}") for n, k in enumerate(a["kernel"])]
    sizes = x.shape[2:]

    def cell(*i: Expr) -> Any:
        at, inside = list(i), TRUE
        place: Expr = i[0] * x.shape[1] + i[1]
        for k in range(rank):
            at[2 + k] = i[2 + k] * a["strides"][k] + rs[k].var * a["dilations"][k] - a["pads"][k]
            holds = (at[2 + k] >= 0) & (at[2 + k] < sizes[k])
            inside = holds if inside is TRUE else inside & holds
            place = place * sizes[k] + at[2 + k]
        acc = accumulator(x.dtype)
        value = read_or(inside, x[tuple(at)].cast(acc), lowest(acc))
        return tc.argmax(value, rs, index=Select(inside, place, const(BEYOND)))
    places, values = compute(op.outputs[0].shape, cell, name="max_pool_indices")
    if values.dtype is not x.dtype:
        wide = values
        values = compute(wide.shape, lambda *i: wide[i].cast(x.dtype), name="max_pool_cast")
    if not a["column_major"]:
        return values, places

    def turned(*i: Expr) -> Expr:
        left = places[i]
        inner: list[Expr] = []
        for n in reversed(sizes):
            inner.append(left % n)
            left = left // n
        for n, at in zip(reversed(sizes), inner, strict=True):
            left = left * n + at
        return left
    return values, compute(places.shape, turned, name="max_pool_places")


RECORDS = (
    OpRecord("col2im", "reduction", _infer_col2im, _col2im, _compute_col2im,
             {"image": Attr("dims", doc="spatial sizes of the result"), "block": Attr("ints"),
              "strides": Attr("ints", None, "1 by default"), "pads": Attr("ints", None, "all beginnings, then all ends"),
              "dilations": Attr("ints", None)}, _normalize,
             doc="[N, C · block, windows] summed into [N, C, *image]: each window's elements where the window covers it."),
    OpRecord("max_pool_indices", "opaque", _infer_indices, _indices, _compute_indices,
             {**POOL_ATTRS, "column_major": Attr("bool", False, "places count the first spatial "
                                                                            "axis fastest")}, normalize_pool,
             doc="max_pool, and where in the whole tensor each largest element stands (i64), the first of equal ones."),
)
