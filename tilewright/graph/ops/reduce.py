"""Reductions over axes: sum, mean, max, min, prod, any, all, argmax, argmin."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import boolean, i64
from tilewright.graph.infer import (
    Shape,
    axes_of,
    axis_of,
    dim,
    element_grid,
    expect_dtype,
    grid_elements,
    operands,
    product,
)
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.ops import gradients
from tilewright.graph.ops.recipes import accumulator, widened
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.ir import FALSE, TRUE, Expr, const, maximum, minimum
from tilewright.tensor import compute as tc
from tilewright.tensor.compute import Tensor, compute, reduce_axis


def _normalize(op: Operation) -> dict[str, Any]:
    return {"axes": axes_of(op, op.attrs["axes"], operands(op, 1)[0].rank)}


def reduced_shape(shape: Shape, axes: Sequence[int], keepdims: bool) -> Shape:
    if keepdims:
        return tuple([const(1) if k in axes else d for k, d in enumerate(shape)])
    return tuple([d for k, d in enumerate(shape) if k not in axes])


def _infer_number(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    expect_dtype(op, x, x.dtype.is_float or x.dtype.is_int, "numbers")
    return [TensorType(x.dtype, reduced_shape(x.shape, op.attrs["axes"], op.attrs["keepdims"]))]


def _infer_any(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    expect_dtype(op, x, x.dtype is boolean, "booleans")
    return [TensorType(x.dtype, reduced_shape(x.shape, op.attrs["axes"], op.attrs["keepdims"]))]


def _reference(fn: Callable[..., Any], averages: bool = False) -> Callable[..., Array]:
    """Narrow floats are summed in f32; integer means truncate; the largest of nothing is the least number there is."""
    def run(attrs: dict[str, Any], x: Array) -> Array:
        narrow = x.dtype.itemsize < 4 and x.dtype.kind not in "biu"
        wide = x.astype(np.float32) if narrow else x
        if not attrs["axes"]:
            return x.copy()
        keep = {"axis": attrs["axes"], "keepdims": attrs["keepdims"]}
        if averages and x.dtype.kind in "iu":
            n = int(np.prod([x.shape[k] for k in attrs["axes"]]))
            total = np.sum(x, dtype=x.dtype, **keep)
            return np.asarray(np.trunc(total / n)).astype(x.dtype)
        if fn in (np.sum, np.prod) and x.dtype.kind in "iu":
            return np.asarray(fn(wide, dtype=x.dtype, **keep))
        if fn in (np.max, np.min) and not all(x.shape[k] for k in attrs["axes"]):
            keep["initial"] = _ends(wide)[fn is np.min]
        return np.asarray(fn(wide, **keep)).astype(x.dtype, copy=False)
    return run


def _ends(x: Array) -> tuple[Any, Any]:
    """The least and the greatest number of a type."""
    if x.dtype.kind not in "iu":
        return -np.inf, np.inf
    return np.iinfo(x.dtype).min, np.iinfo(x.dtype).max


# ---- recipes ---------------------------------------------------------------------------------------------------------
def reduce_over(x: Tensor, axes: Sequence[int], keepdims: bool, name: str,
                combine: Callable[..., Any], value: Callable[[Expr], Expr] = lambda v: v) -> Tensor:
    """`combine` (a reducer of the compute language) of `value(x[...])` over `axes`."""
    rs = {k: reduce_axis(x.shape[k], name=f"r{k}") for k in axes}
    shape = reduced_shape(x.shape, axes, keepdims)

    def cell(*i: Expr) -> Any:
        free = iter(i)
        at: list[Expr] = []
        for k in range(len(x.shape)):
            if k in rs:
                at.append(rs[k].var)
                if keepdims:
                    next(free)
            else:
                at.append(next(free))
        return combine(value(x[tuple(at)]), axis=list(rs.values()))
    return compute(shape, cell, name=name)


def _recipe(name: str, combine: Callable[..., Any]) -> Callable[[Operation, Tensor], Tensor]:
    def recipe(op: Operation, x: Tensor) -> Tensor:
        axes, t = op.attrs["axes"], x.dtype
        if not axes:
            return compute(x.shape, lambda *i: x[i], name=name)
        acc = accumulator(t)
        out = reduce_over(x, axes, op.attrs["keepdims"], name, combine, lambda v: v.cast(acc))
        if name == "reduce_mean":
            count = product([x.shape[k] for k in axes])
            total = out
            return compute(out.shape, lambda *i: (total[i] / count.cast(acc)).cast(t), name="mean")
        return out if acc is t else compute(out.shape, lambda *i: out[i].cast(t), name=f"{name}_cast")
    return recipe


# ---- argmax, argmin --------------------------------------------------------------------------------------------------
def _normalize_arg(op: Operation) -> dict[str, Any]:
    return {"axis": axis_of(op, op.attrs["axis"], operands(op, 1)[0].rank)}


def _infer_arg(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    return [TensorType(i64, reduced_shape(x.shape, (op.attrs["axis"],), op.attrs["keepdims"]))]


def _arg(fn: Callable[..., Any]) -> Callable[..., Array]:
    def run(attrs: dict[str, Any], x: Array) -> Array:
        axis = attrs["axis"]
        out = x.shape[axis] - 1 - fn(np.flip(x, axis), axis) if attrs["select_last"] else fn(x, axis)
        return np.asarray(np.expand_dims(out, axis) if attrs["keepdims"] else out, dtype=np.int64)
    return run


# ---- elements --------------------------------------------------------------------------------------------------------
_FOLD: dict[str, Callable[[Expr, Expr], Expr]] = {
    "reduce_sum": lambda a, b: a + b, "reduce_prod": lambda a, b: a * b, "reduce_min": minimum, "reduce_max": maximum}


def _elements(op: Operation) -> list[tuple[Expr, ...] | None]:
    grid = element_grid(operands(op, 1)[0])
    if grid is None or not grid.size:
        return [None]
    if op.attrs["axes"]:
        grid = np.frompyfunc(_FOLD[op.op], 2, 1).reduce(grid, axis=op.attrs["axes"], keepdims=op.attrs["keepdims"])
    return [tuple([dim(e) for e in grid_elements(grid)])]


_ANY = tc.reducer(lambda s, t: (s[0] | t[0],), lambda types: (FALSE,), "any")
_ALL = tc.reducer(lambda s, t: (s[0] & t[0],), lambda types: (TRUE,), "all")
_ATTRS = {"axes": Attr("ints", None, "all by default"), "keepdims": Attr("bool", True)}
_ARG_ATTRS = {"axis": Attr("int", 0), "keepdims": Attr("bool", True),
              "select_last": Attr("bool", False, "of equal elements, the last")}


def _record(name: str, infer: Any, fn: Callable[..., Any], combine: Callable[..., Any], doc: str) -> OpRecord:
    return OpRecord(name, "reduction", infer, _reference(fn, name == "reduce_mean"), _recipe(name, combine), _ATTRS,
                    _normalize, _elements if name in _FOLD else None, doc=doc, gradient=gradients.REDUCE.get(name))


def _compute_arg(largest: bool) -> Callable[[Operation, Tensor], Tensor]:
    def recipe(op: Operation, x: Tensor) -> Tensor:
        """The reducer prefers the smaller index among equals, so for the last one it works on negative indices."""
        axis, keep, last = op.attrs["axis"], op.attrs["keepdims"], op.attrs["select_last"]
        r = reduce_axis(x.shape[axis], name="r")
        pick = tc.argmax if largest else tc.argmin

        def cell(*i: Expr) -> Any:
            rest = (*i[:axis], *i[axis + keep:])
            value = widened(x[(*rest[:axis], r.var, *rest[axis:])])
            return pick(value, [r], index=0 - r.var if last else r.var)
        at, _ = compute(op.output.shape, cell, name=op.op)
        return compute(at.shape, lambda *i: 0 - at[i], name=f"{op.op}_last") if last else at
    return recipe


RECORDS = (
    _record("reduce_sum", _infer_number, np.sum, tc.sum, "Sum; narrow floats are accumulated in f32."),
    _record("reduce_mean", _infer_number, np.mean, tc.sum, "Arithmetic mean."),
    _record("reduce_max", _infer_number, np.max, tc.max, "Largest element; NaN wins."),
    _record("reduce_min", _infer_number, np.min, tc.min, "Least element; NaN wins."),
    _record("reduce_prod", _infer_number, np.prod, tc.prod, "Product."),
    _record("reduce_any", _infer_any, np.any, _ANY, "Whether any element is true."),
    _record("reduce_all", _infer_any, np.all, _ALL, "Whether every element is true."),
    OpRecord("argmax", "reduction", _infer_arg, _arg(np.argmax), _compute_arg(True), _ARG_ATTRS, _normalize_arg,
             doc="Index (i64) of the largest element along an axis, the first of equal ones."),
    OpRecord("argmin", "reduction", _infer_arg, _arg(np.argmin), _compute_arg(False), _ARG_ATTRS, _normalize_arg,
             doc="Index (i64) of the least element along an axis, the first of equal ones."),
)
