"""sample: a tensor read at places between its elements, which are data: grids, deformed windows, regions of interest.

Along each axis a coordinate has one, two or four taps; what is outside is zero, the nearest element, or mirrored. Every
result is independent of the others: kernels run in parallel over points, vectors along the last axis of them.
"""
from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import i64
from tilewright.graph.infer import expect, expect_dtype, expect_rank, expect_same_dim, operand, optional
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.ops.recipes import accumulator, call
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.ir import TRUE, Expr, Select, as_int, const, maximum, minimum
from tilewright.tensor.compute import Tensor, compute

MODES = {"nearest": 1, "linear": 2, "cubic": 4}
PADDINGS = ("zeros", "border", "reflection")


def _infer(op: Operation) -> Sequence[TensorType]:
    x, at, batch = operand(op, 0), operand(op, 1), optional(op, 2)
    a, rank = op.attrs, x.rank - 2
    for key, known in (("mode", tuple(MODES)), ("padding", PADDINGS), ("taps", ("sum", "max"))):
        expect(a[key] in known, "attribute-invalid", f"sample: unknown {key} {a[key]!r}", "one of " + ", ".join(known))
    expect_rank(op, x, 3, 100)
    expect_rank(op, at, 2, 100)
    expect_dtype(op, at, at.dtype.is_float, "floating-point coordinates")
    expect_dtype(op, x, a["mode"] == "nearest" or x.dtype.is_float, "a floating-point type for interpolation")
    expect(as_int(at.shape[-1]) == rank, "shape-mismatch",
           lambda: f"sample: coordinates {at.type} of a tensor with {rank} axes to be sampled, {x.type}")
    if batch is None:
        n = expect_same_dim(op, x.shape[0], at.shape[0], "the batch")
    else:
        expect_rank(op, batch, 1)
        expect_dtype(op, batch, batch.dtype.is_int, "integer indices of the batch")
        n = expect_same_dim(op, batch.shape[0], at.shape[0], "the batch's indices")
    return [TensorType(x.dtype, (n, x.shape[1], *at.shape[1:-1]))]


# ---- the formulas, on arrays and on expressions ----------------------------------------------------------------------
class _Numbers:
    """Arithmetic on arrays."""
    floor = staticmethod(np.floor)
    round = staticmethod(np.rint)
    select = staticmethod(np.where)
    absolute = staticmethod(np.abs)

    @staticmethod
    def clamp(v: Any, low: Any, high: Any) -> Any:
        return np.minimum(np.maximum(v, low), high)

    @staticmethod
    def integer(v: Any) -> Any:
        with np.errstate(invalid="ignore"):
            return v.astype(np.int64)

    @staticmethod
    def like(n: Any, v: Any) -> Any:
        return v.dtype.type(n)


class _Expressions:
    """Arithmetic on expressions."""
    select = staticmethod(Select)

    @staticmethod
    def floor(v: Expr) -> Expr:
        return call("floor", v)

    @staticmethod
    def round(v: Expr) -> Expr:
        return call("round", v)

    @staticmethod
    def absolute(v: Expr) -> Expr:
        return call("abs", v)

    @staticmethod
    def clamp(v: Expr, low: Any, high: Any) -> Expr:
        return minimum(maximum(v, low), high)

    @staticmethod
    def integer(v: Expr) -> Expr:
        return v.cast(i64)

    @staticmethod
    def like(n: Expr, v: Expr) -> Expr:
        return n.cast(v.dtype)


def _placed(a: dict[str, Any], o: Any, v: Any, n: Any) -> Any:
    """A coordinate in elements, brought inside as the padding says (of grids: -1 and 1 are the ends)."""
    size = o.like(n, v)
    if a["grid"]:
        v = (v + 1) * 0.5 * (size - 1) if a["corners"] else ((v + 1) * size - 1) * 0.5
    if a["mode"] == "nearest":
        v = o.round(v)
    if a["padding"] == "zeros" or (a["padding"], a["mode"]) == ("border", "cubic"):  # then the taps alone are moved
        return v
    low, high = (0 * size, size - 1) if a["corners"] else (0 * size - 0.5, size - 0.5)
    if a["padding"] == "border":
        return o.select((v < low) | (v > high), o.clamp(v, 0 * size, size - 1), v)
    span = o.select(high > low, high - low, 0 * size + 1)
    u = o.absolute(v - low)
    u = u - o.floor(u / (span + span)) * (span + span)
    return o.select((v < low) | (v > high), o.select(u > span, span + span - u, u) + low, v)


def _index(a: dict[str, Any], o: Any, i: Any, n: Any) -> tuple[Any, Any]:
    """Where a tap reads, always inside, and whether it counts (None: always)."""
    inside = (i >= 0) & (i < n) if a["padding"] == "zeros" else None
    if a["padding"] == "reflection":
        if a["corners"]:
            period = o.clamp(n + n - 2, 1, 2**62)
            m = i % period
            i = o.select(m < n, m, period - m)
        else:
            m = i % (n + n)
            i = o.select(m < n, m, n + n - 1 - m)
    return o.clamp(i, 0, n - 1), inside


def _weights(a: dict[str, Any], t: Any) -> list[Any]:
    """Weights of the taps for a fraction t: linear, or Keys's cubic convolution."""
    if a["mode"] == "linear":
        return [1 - t, t]
    k, u = a["cubic_a"], 1 - t
    return [t * u * u * k, ((k + 2) * t - (k + 3)) * t * t + 1, ((k + 2) * u - (k + 3)) * u * u + 1, t * t * u * k]


# ---- reference -------------------------------------------------------------------------------------------------------
def _sample(attrs: dict[str, Any], x: Array, at: Array, batch: Array | None = None) -> Array:
    rank, n = x.ndim - 2, at.shape[0]
    wide = x.astype(np.float32) if x.dtype.itemsize < 4 and attrs["mode"] != "nearest" else x
    at = at.astype(np.float32) if at.dtype.itemsize < 4 else at
    first = np.arange(n) if batch is None else np.clip(batch + (batch < 0) * x.shape[0], 0, x.shape[0] - 1)
    first = first.astype(np.int64).reshape(n, *[1] * (at.ndim - 2))
    axes = []
    for k in range(rank):
        size = np.int64(x.shape[2 + k])
        v = _placed(attrs, _Numbers, at[..., rank - 1 - k if attrs["grid"] else k], size)
        base = v if attrs["mode"] == "nearest" else np.floor(v)
        weights = [None] if attrs["mode"] == "nearest" else _weights(attrs, (v - base).astype(wide.dtype))
        shift = 1 if attrs["mode"] == "cubic" else 0
        axes.append([(*_index(attrs, _Numbers, _Numbers.integer(base) + (j - shift), size), w)
                     for j, w in enumerate(weights)])
    total: Any = None
    for taps in itertools.product(*axes):
        value = np.moveaxis(wide[(first, slice(None), *[i for i, _, _ in taps])], -1, 1)
        for _, inside, w in taps:
            if inside is not None:
                value = np.where(inside[:, None], value, wide.dtype.type(0))
            if w is not None:
                value = value * w[:, None]
        if total is None:
            total = value
        else:
            total = np.maximum(total, value) if attrs["taps"] == "max" else total + value
    return np.asarray(total).astype(x.dtype, copy=False)


# ---- recipe ----------------------------------------------------------------------------------------------------------
def _compute(op: Operation, x: Tensor, at: Tensor, batch: Tensor | None = None) -> Tensor:
    a, rank, o = op.attrs, len(x.shape) - 2, _Expressions
    acc, wide = accumulator(x.dtype), accumulator(at.dtype)
    points = (op.output.shape[0], *op.output.shape[2:])

    def coordinate(k: int) -> Tensor:
        d = const(rank - 1 - k if a["grid"] else k)
        out: Tensor = compute(points, lambda *p: _placed(a, o, at[(*p, d)].cast(wide), x.shape[2 + k]), name=f"place{k}")
        return out
    places = [coordinate(k) for k in range(rank)]

    def taps(k: int, p: Sequence[Expr]) -> list[tuple[Expr, Expr | None, Expr | None]]:
        v, n = places[k][tuple(p)], x.shape[2 + k]
        if a["mode"] == "nearest":
            return [(*_index(a, o, v.cast(i64), n), None)]
        base = call("floor", v)
        weights = _weights(a, (v - base).cast(acc))
        shift = 1 if a["mode"] == "cubic" else 0
        return [(*_index(a, o, base.cast(i64) + (j - shift), n), w) for j, w in enumerate(weights)]

    def cell(n: Expr, c: Expr, *p: Expr) -> Expr:
        first = n
        if batch is not None:
            b = batch[n].cast(i64)
            first = minimum(maximum(Select(b < 0, b + x.shape[0], b), 0), x.shape[0] - 1)
        total: Expr | None = None
        for choice in itertools.product(*[taps(k, (n, *p)) for k in range(rank)]):
            value: Expr = x[(first, c, *[i for i, _, _ in choice])]
            inside: Expr = TRUE
            for _, holds, _ in choice:
                if holds is not None:
                    inside = holds if inside is TRUE else inside & holds
            if inside is not TRUE:
                value = Select(inside, value, const(0, value))
            weight: Expr | None = None
            for _, _, w in choice:
                weight = w if weight is None else weight if w is None else weight * w
            value = value if weight is None else value.cast(acc) * weight
            if total is None:
                total = value
            else:
                total = maximum(total, value) if a["taps"] == "max" else total + value
        assert total is not None
        return total.cast(x.dtype)
    out: Tensor = compute(op.output.shape, cell, name="sample")
    return out


RECORDS = (
    OpRecord("sample", "opaque", _infer, _sample, _compute,
             {"mode": Attr("str", "linear", "nearest, linear or cubic"),
              "padding": Attr("str", "zeros", "zeros, border or reflection"),
              "corners": Attr("bool", True, "the ends of an axis are the middles of its first and last element, else their "
                                            "outer borders"),
              "grid": Attr("bool", False, "coordinates run from -1 to 1, the last axis first; else they count elements"),
              "taps": Attr("str", "sum", "sum of the weighted taps, or the max of them"), "cubic_a": Attr("float", -0.75)},
             doc="x [N, C, *sizes] at coordinates [M, *points, axes]: [M, C, *points]. With a third operand, [M] indices of "
                 "the batch; else M is N."),
)
