"""Operators that place elements: concat, pad, tile, cumsum, cumprod."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilewright.core.errors import UserError
from tilewright.graph.infer import (
    axis_of,
    dim,
    element_grid,
    expect,
    expect_at_most,
    expect_dtype,
    expect_rank,
    expect_same_dim,
    expect_same_dtype,
    grid_elements,
    operand,
    operands,
)
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.ops import gradients
from tilewright.graph.ops.recipes import accumulator, read_or
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.ir import TRUE, Expr, Guard, Select, as_int, const, maximum, minimum
from tilewright.tensor.compute import Tensor, compute
from tilewright.tensor.running import running


# ---- concat ----------------------------------------------------------------------------------------------------------
def _normalize_concat(op: Operation) -> dict[str, Any]:
    expect(len(op.inputs) > 0, "operand-missing", "concat needs at least one input")
    return {"axis": axis_of(op, op.attrs["axis"], operand(op, 0).rank)}


def _infer_concat(op: Operation) -> Sequence[TensorType]:
    xs, axis = operands(op, len(op.inputs)), op.attrs["axis"]
    t = expect_same_dtype(op, *xs)
    shape = list(xs[0].shape)
    for x in xs[1:]:
        expect_rank(op, x, xs[0].rank)
        for k in range(x.rank):
            if k == axis:
                shape[k] = shape[k] + x.shape[k]
            else:
                shape[k] = expect_same_dim(op, shape[k], x.shape[k], f"axis {k} of %{xs[0].name} and %{x.name}")
    shape[axis] = dim(shape[axis])
    return [TensorType(t, tuple(shape))]


def _concat_elements(op: Operation) -> list[tuple[Expr, ...] | None]:
    grids = [element_grid(operand(op, k)) for k in range(len(op.inputs))]
    if any(g is None for g in grids):
        return [None]
    return [grid_elements(np.concatenate(grids, op.attrs["axis"]))]


def _compute_concat(op: Operation, *xs: Tensor) -> Tensor:
    axis = op.attrs["axis"]
    starts: list[Expr] = [const(0)]
    for x in xs:
        starts.append(dim(starts[-1] + x.shape[axis]))

    def pick(*i: Expr) -> Expr:
        def read(k: int) -> Expr:
            return xs[k][(*i[:axis], i[axis] - starts[k], *i[axis + 1:])]
        out = read(len(xs) - 1)
        for k in reversed(range(len(xs) - 1)):
            out = Guard(i[axis] < starts[k + 1], read(k), out)
        return out
    return compute(op.output.shape, pick, name="concat")


# ---- pad -------------------------------------------------------------------------------------------------------------
_MODES = {"constant": "constant", "reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def _infer_pad(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    a = op.attrs
    expect(len(a["before"]) == len(a["after"]) == x.rank, "attribute-invalid",
           lambda: f"pad: before and after need one entry for each of the {x.rank} axes of %{x.name}")
    if a["mode"] not in _MODES:
        raise UserError("attribute-invalid", f"pad: unknown mode {a['mode']!r}", hint="one of " + ", ".join(_MODES))
    shape = tuple([dim(b + d + e) for b, d, e in zip(a["before"], x.shape, a["after"], strict=True)])
    for k, d in enumerate(shape):
        size = as_int(d)
        expect(size is None or size >= 0, "shape-mismatch", f"pad: axis {k} of %{x.name} is cropped below 0")
        if a["mode"] != "constant":
            needed = dim(minimum(maximum(maximum(a["before"][k], a["after"][k]), 0), 1))
            expect_at_most(op, needed, x.shape[k], f"the elements of axis {k} of %{x.name} that fill its border")
    return [TensorType(x.dtype, shape)]


def _pad(attrs: dict[str, Any], x: Array) -> Array:
    """Negative amounts crop."""
    before, after = attrs["before"], attrs["after"]
    kept = x[tuple(slice(max(0, -b), n - max(0, -e)) for b, e, n in zip(before, after, x.shape, strict=True))]
    widths = [(max(0, b), max(0, e)) for b, e in zip(before, after, strict=True)]
    if attrs["mode"] == "constant":
        return np.pad(kept, widths, constant_values=np.asarray(attrs["value"]).astype(x.dtype))
    return np.asarray(np.pad(kept, widths, mode=_MODES[attrs["mode"]]))  # type: ignore[call-overload]


def _source(mode: str, i: Expr, n: Expr) -> Expr:
    """Which element of an axis of `n` stands at place `i`, which may be outside, by a padding mode."""
    if mode == "edge":
        return minimum(maximum(i, 0), n - 1)
    if mode == "wrap":
        return i % n
    period = maximum(2 * n - 2, 1)
    m = i % period
    return Select(m < n, m, period - m)


def _compute_pad(op: Operation, x: Tensor) -> Tensor:
    a = op.attrs
    padded = [k for k in range(len(x.shape)) if as_int(a["before"][k]) != 0 or as_int(a["after"][k]) != 0]

    def pick(*i: Expr) -> Expr:
        at = list(i)
        for k in padded:
            at[k] = i[k] - a["before"][k]
        if a["mode"] != "constant":
            for k in padded:
                at[k] = _source(a["mode"], at[k], x.shape[k])
            return x[tuple(at)]
        inside: Expr = TRUE
        for k in padded:
            if as_int(a["before"][k]) != 0:
                inside = inside & (at[k] >= 0) if inside is not TRUE else at[k] >= 0
            if as_int(a["after"][k]) != 0:
                below = at[k] < x.shape[k]
                inside = inside & below if inside is not TRUE else below
        return x[tuple(at)] if inside is TRUE else read_or(inside, x[tuple(at)], a["value"])
    return compute(op.output.shape, pick, name="pad")


# ---- tile ------------------------------------------------------------------------------------------------------------
def _infer_tile(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    expect(len(op.attrs["repeats"]) == x.rank, "attribute-invalid",
           lambda: f"tile: repeats needs one entry for each of the {x.rank} axes of %{x.name}")
    return [TensorType(x.dtype, tuple([dim(d * r) for d, r in zip(x.shape, op.attrs["repeats"], strict=True)]))]


def _compute_tile(op: Operation, x: Tensor) -> Tensor:
    reps = op.attrs["repeats"]
    return compute(op.output.shape, lambda *i: x[tuple(
        [v if as_int(r) == 1 else v % d for v, d, r in zip(i, x.shape, reps, strict=True)])], name="tile")


# ---- cumsum ----------------------------------------------------------------------------------------------------------
def _normalize_cumsum(op: Operation) -> dict[str, Any]:
    return {"axis": axis_of(op, op.attrs["axis"], operands(op, 1)[0].rank)}


def _infer_cumsum(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    expect_dtype(op, x, x.dtype.is_float or x.dtype.is_int, "numbers")
    return [x.type]


def _running(fn: Callable[..., Array], start: int) -> Callable[[dict[str, Any], Array], Array]:
    """Running sums or products; exclusive ones are shifted by one, `start` first."""
    def run(attrs: dict[str, Any], x: Array) -> Array:
        axis = attrs["axis"]
        y = np.flip(x, axis) if attrs["reverse"] else x
        wide = y.astype(np.float32) if y.dtype.itemsize < 4 and y.dtype.kind not in "iu" else y
        if attrs["exclusive"]:
            shape = [*y.shape[:axis], 1, *y.shape[axis + 1:]]
            wide = np.concatenate([np.full(shape, start, wide.dtype), wide], axis).take(np.arange(y.shape[axis]), axis)
        out = fn(wide, axis, dtype=wide.dtype)
        return (np.flip(out, axis) if attrs["reverse"] else out).astype(x.dtype)
    return run


def _compute_running(combine: Callable[[Expr, Expr], Expr], start: int) -> Callable[[Operation, Tensor], Tensor]:
    def recipe(op: Operation, x: Tensor) -> Tensor:
        """One after another along the axis, from its end if reversed; exclusive ones skip the element itself."""
        a, axis, n = op.attrs, op.attrs["axis"], x.shape[op.attrs["axis"]]
        acc = accumulator(x.dtype)

        def flipped(i: Sequence[Expr]) -> tuple[Expr, ...]:
            return (*i[:axis], n - 1 - i[axis], *i[axis + 1:]) if a["reverse"] else tuple(i)

        def value(*i: Expr) -> Expr:
            if a["exclusive"]:
                before = flipped((*i[:axis], i[axis] - 1, *i[axis + 1:]))
                return read_or(i[axis] > 0, x[before].cast(acc), start)
            return x[flipped(i)].cast(acc)
        total = running(x.shape, axis, value, combine, const(start, acc), name=op.op)
        if acc is x.dtype and not a["reverse"]:
            return total
        return compute(x.shape, lambda *i: total[flipped(i)].cast(x.dtype), name=f"{op.op}_placed")
    return recipe


_RUNNING = {"axis": Attr("int"), "exclusive": Attr("bool", False), "reverse": Attr("bool", False)}
RECORDS = (
    OpRecord("concat", "injective", _infer_concat, lambda a, *xs: np.concatenate(xs, a["axis"]), _compute_concat,
             {"axis": Attr("int")}, _normalize_concat, _concat_elements, doc="Tensors one after another along an axis.",
             gradient=gradients.concat),
    OpRecord("pad", "injective", _infer_pad, _pad, _compute_pad,
             {"before": Attr("dims"), "after": Attr("dims"),
              "mode": Attr("str", "constant", "constant, reflect, edge or wrap"), "value": Attr("number", 0)},
             doc="Elements added in front of and behind each axis; negative amounts crop.", gradient=gradients.pad),
    OpRecord("tile", "injective", _infer_tile, lambda a, x: np.tile(x, a["repeats"]), _compute_tile,
             {"repeats": Attr("dims")}, doc="The tensor repeated along each axis."),
    OpRecord("cumsum", "opaque", _infer_cumsum, _running(np.cumsum, 0), _compute_running(lambda s, v: s + v, 0), _RUNNING,
             _normalize_cumsum, doc="Running sum along an axis."),
    OpRecord("cumprod", "opaque", _infer_cumsum, _running(np.cumprod, 1), _compute_running(lambda s, v: s * v, 1),
             _RUNNING, _normalize_cumsum, doc="Running product along an axis."),
)
