"""Resizing by interpolation along any axes: nearest, linear, cubic, with ONNX's coordinate conventions.

Interpolation is separable: along each resized axis every output place reads a few taps with weights, which a small
table (one stage per axis) holds. Coordinates are computed in f64.
"""
from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import f64, i64
from tilewright.graph.infer import dim, expect, expect_at_most, expect_dtype, operands, same
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.ops.recipes import accumulator, call
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.ir import Expr, Select, as_int, const, maximum, minimum
from tilewright.tensor.compute import Tensor, compute

TAPS = {"nearest": 1, "linear": 2, "cubic": 4}
COORDINATES = ("half_pixel", "half_pixel_symmetric", "asymmetric", "align_corners", "pytorch_half_pixel")
TINY = 1e-9
"""In place of a distance of 0 between the first place and the last, where both are one."""
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def _infer(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    a = op.attrs
    expect(a["mode"] in TAPS, "attribute-invalid", f"resize: unknown mode {a['mode']!r}", "one of " + ", ".join(TAPS))
    expect(a["coordinates"] in COORDINATES, "attribute-invalid", f"resize: unknown coordinates {a['coordinates']!r}",
           "one of " + ", ".join(COORDINATES))
    expect(a["rounding"] in ROUNDINGS, "attribute-invalid", f"resize: unknown rounding {a['rounding']!r}",
           "one of " + ", ".join(ROUNDINGS))
    expect(len(a["sizes"]) == x.rank and (a["scales"] is None or len(a["scales"]) == x.rank), "attribute-invalid",
           lambda: f"resize: sizes and scales need one entry for each of the {x.rank} axes of %{x.name}")
    expect_dtype(op, x, a["mode"] == "nearest" or x.dtype.is_float, "a floating-point type for interpolation")
    for k, (n, m) in enumerate(zip(x.shape, a["sizes"], strict=True)):
        expect_at_most(op, dim(minimum(m, 1)), n, f"the elements of axis {k} of %{x.name} that are resized")
    return [TensorType(x.dtype, a["sizes"])]


# ---- reference -------------------------------------------------------------------------------------------------------
def _coordinate(kind: str, i: Any, n: Any, m: Any, scale: Any) -> Any:
    """Where output place i (of m) lies in the input (of n elements), on arrays or expressions alike."""
    if kind == "asymmetric":
        return i / scale
    if kind == "half_pixel_symmetric":
        return (1.0 - m / (scale * n)) * (n * 0.5) + (i + 0.5) / scale - 0.5
    return (i + 0.5) / scale - 0.5


def source_coordinate(kind: str, n: int, m: int, scale: float) -> Array:
    i = np.arange(m, dtype=np.float64)
    if kind == "align_corners":
        return i * (n - 1) / max(scale * n - 1, TINY)
    if kind == "pytorch_half_pixel" and m == 1:
        return np.zeros(1)
    return np.asarray(_coordinate(kind, i, n, m, scale))


def _rounded(rounding: str, x: Array) -> Array:
    match rounding:
        case "floor":
            return np.floor(x)
        case "ceil":
            return np.ceil(x)
        case "round_prefer_ceil":
            return np.floor(x + 0.5)
        case _:
            return np.ceil(x - 0.5)


def taps(attrs: dict[str, Any], n: int, m: int, scale: float) -> tuple[Array, Array]:
    """Source places [m, taps] and weights [m, taps] (f64) along one axis."""
    x = source_coordinate(attrs["coordinates"], n, m, scale)
    if attrs["mode"] == "nearest":
        at = _rounded(attrs["rounding"], x)[:, None]
        return np.clip(at, 0, n - 1).astype(np.int64), np.ones((m, 1))
    first = np.floor(x)
    t = x - first
    if attrs["mode"] == "linear":
        places, weights = first[:, None] + [0, 1], np.stack([1 - t, t], 1)
    else:
        a = attrs["cubic_a"]
        weights = np.stack([a * (t * (1 - t) * (1 - t)) * 1.0, (a + 2) * t**3 - (a + 3) * t**2 + 1,
                            (a + 2) * (1 - t)**3 - (a + 3) * (1 - t)**2 + 1, a * (t * t * (1 - t))], 1)
        places = first[:, None] + [-1, 0, 1, 2]
        if attrs["exclude_outside"]:
            weights = np.where((places >= 0) & (places < n), weights, 0)
            weights = weights / weights.sum(1, keepdims=True)
    return np.clip(places, 0, n - 1).astype(np.int64), weights


def _scale(attrs: dict[str, Any], k: int, n: int, m: int) -> float:
    return float(attrs["scales"][k]) if attrs["scales"] is not None else m / n


def _resize(attrs: dict[str, Any], x: Array) -> Array:
    out = x.astype(np.float32) if x.dtype.itemsize < 4 and attrs["mode"] != "nearest" else x
    for k, (n, m) in enumerate(zip(x.shape, attrs["sizes"], strict=True)):
        scale = _scale(attrs, k, n, m)
        if n == m and scale == 1.0:
            continue
        at, weights = taps(attrs, n, m, scale)
        if attrs["mode"] == "nearest":
            out = np.take(out, at[:, 0], k)
            continue
        shape = [m if d == k else 1 for d in range(x.ndim)]
        out = sum(np.take(out, at[:, t], k) * weights[:, t].astype(out.dtype).reshape(shape)
                  for t in range(at.shape[1]))
    return np.asarray(out).astype(x.dtype, copy=False)


# ---- recipe ----------------------------------------------------------------------------------------------------------
def _coordinate_expr(op: Operation, k: int, n: Expr, m: Expr, i: Expr) -> Expr:
    a, x = op.attrs, i.cast(f64)
    kind = a["coordinates"]
    nf, mf = n.cast(f64), m.cast(f64)
    scale = const(a["scales"][k], f64) if a["scales"] is not None else mf / nf
    if kind == "align_corners":
        return x * (nf - 1.0) / maximum((mf if a["scales"] is None else scale * nf) - 1.0, TINY)
    at = _coordinate(kind, x, nf, mf, scale)
    return Select(m > 1, at, const(0.0, f64)) if kind == "pytorch_half_pixel" else at


def _clamped(x: Expr, n: Expr) -> Expr:
    return minimum(maximum(x.cast(i64), 0), n - 1)


class _Axis:
    """How one axis is read: `reads(i)` gives (source index, weight or None) per tap."""

    def __init__(self, op: Operation, x: Tensor, k: int) -> None:
        a, n, m = op.attrs, x.shape[k], op.output.shape[k]
        self.taps = TAPS[a["mode"]]
        self.scaled: int | None = self._whole_ratio(op, k, n, m)
        if self.scaled is not None:
            return
        count = self.taps

        def place(i: Expr, t: Expr) -> Expr:
            at = _coordinate_expr(op, k, n, m, i)
            if a["mode"] == "nearest":
                return _clamped(self._rounded(a["rounding"], at), n)
            shift = t - 1 if a["mode"] == "cubic" else t
            return minimum(maximum(call("floor", at).cast(i64) + shift, 0), n - 1)
        self.places = compute((m, const(count)), place, name=f"places{k}")
        acc = accumulator(x.dtype)
        if count > 1:
            self.weights = compute((m, const(count)), lambda i, t: self._weight(op, k, n, m, i, t).cast(acc),
                                   name=f"weights{k}")

    @staticmethod
    def _whole_ratio(op: Operation, k: int, n: Expr, m: Expr) -> int | None:
        """The factor of an enlargement in which each element is repeated: the index is then i // factor."""
        x, y = as_int(n), as_int(m)
        if op.attrs["mode"] != "nearest" or not x or not y or y % x:
            return None
        at, _ = taps(op.attrs, x, y, _scale(op.attrs, k, x, y))
        return y // x if np.array_equal(at[:, 0], np.arange(y) // (y // x)) else None

    @staticmethod
    def _rounded(rounding: str, x: Expr) -> Expr:
        match rounding:
            case "floor":
                return call("floor", x)
            case "ceil":
                return call("ceil", x)
            case "round_prefer_ceil":
                return call("floor", x + 0.5)
            case _:
                return call("ceil", x - 0.5)

    @staticmethod
    def _weight(op: Operation, k: int, n: Expr, m: Expr, i: Expr, tap: Expr) -> Expr:
        at = _coordinate_expr(op, k, n, m, i)
        first = call("floor", at)
        t = at - first
        if op.attrs["mode"] == "linear":
            return Select(tap.eq(0), 1.0 - t, t)
        a, u = op.attrs["cubic_a"], 1.0 - t
        w = [(t * u * u) * a, ((t * (a + 2)) - (a + 3)) * t * t + 1.0, ((u * (a + 2)) - (a + 3)) * u * u + 1.0,
             (t * t * u) * a]
        if op.attrs["exclude_outside"]:
            inside = [(first + (j - 1.0) >= 0.0) & (first + (j - 1.0) < n.cast(f64)) for j in range(4)]
            w = [Select(c, v, const(0.0, f64)) for c, v in zip(inside, w, strict=True)]
            total = w[0] + w[1] + w[2] + w[3]
            w = [v / total for v in w]
        return Select(tap.eq(0), w[0], Select(tap.eq(1), w[1], Select(tap.eq(2), w[2], w[3])))

    def read(self, i: Expr, tap: int) -> tuple[Expr, Expr | None]:
        if self.scaled is not None:
            return i // self.scaled, None
        return self.places[i, const(tap)], self.weights[i, const(tap)] if self.taps > 1 else None


def _compute(op: Operation, x: Tensor) -> Tensor:
    a, acc = op.attrs, accumulator(x.dtype)
    moved = [k for k in range(len(x.shape)) if same(x.shape[k], op.output.shape[k]) is not True
             or (a["scales"] is not None and a["scales"][k] != 1.0)]
    axes = {k: _Axis(op, x, k) for k in moved}

    def cell(*i: Expr) -> Expr:
        total: Expr | None = None
        for choice in itertools.product(range(TAPS[a["mode"]]), repeat=len(moved)):
            at, weight = list(i), None
            for k, tap in zip(moved, choice, strict=True):
                at[k], w = axes[k].read(i[k], tap)
                weight = w if weight is None else weight * w if w is not None else weight
            value = x[tuple(at)] if weight is None else x[tuple(at)].cast(acc) * weight
            total = value if total is None else total + value
        assert total is not None
        return total.cast(x.dtype)
    return compute(op.output.shape, cell, name="resize")


RECORDS = (
    OpRecord("resize", "injective", _infer, _resize, _compute,
             {"sizes": Attr("dims", doc="of every axis of the result"),
              "scales": Attr("floats", None, "for every axis, where coordinates use other factors than the ratio of sizes"),
              "mode": Attr("str", "nearest", "nearest, linear or cubic"),
              "coordinates": Attr("str", "half_pixel", "one of " + ", ".join(COORDINATES)),
              "rounding": Attr("str", "round_prefer_floor", "of nearest: one of " + ", ".join(ROUNDINGS)),
              "cubic_a": Attr("float", -0.75), "exclude_outside": Attr("bool", False)},
             doc="Interpolation along the axes whose size changes; works on any layout."),
)
