"""Operators whose places are data: gather, gather_elements, gather_nd, scatter_elements, scatter_nd, nonzero, unravel."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import i64
from tilewright.graph.infer import (
    axis_of,
    constant_of,
    element_count,
    element_grid,
    expect,
    expect_at_most,
    expect_dtype,
    expect_rank,
    expect_same_dim,
    expect_same_dtype,
    grid_elements,
    operands,
    show,
)
from tilewright.graph.ir import Operation, TensorType, Value
from tilewright.graph.ops import gradients
from tilewright.graph.ops.recipes import is_narrow, widened
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.ir import Cast, Expr, Select, Span, Var, as_int, const, maximum, minimum
from tilewright.tensor.compute import Tensor, compute
from tilewright.tensor.scatter import scatter


def _place(index: Expr, extent: Expr) -> Expr:
    """An index that may count from the back, kept inside the axis so that no data can lead out of bounds."""
    i = index.cast(i64)
    return minimum(maximum(Select(i < 0, i + extent, i), 0), extent - 1)


def _integers(op: Operation, k: int) -> None:
    v = op.inputs[k]
    assert v is not None
    expect_dtype(op, v, v.dtype.is_int, "integer indices")


# ---- gather ----------------------------------------------------------------------------------------------------------
def _normalize_axis(op: Operation) -> dict[str, Any]:
    x = op.inputs[0]
    expect(x is not None, "operand-missing", f"{op.op} needs its input 0")
    return {"axis": axis_of(op, op.attrs["axis"], x.rank if x is not None else 0)}


def _infer_gather(op: Operation) -> Sequence[TensorType]:
    x, idx = operands(op, 2)
    _integers(op, 1)
    axis, at = op.attrs["axis"], constant_of(idx)
    extent = as_int(x.shape[axis])
    if at is not None and extent is not None and at.size:
        expect(bool((at >= -extent).all() and (at < extent).all()), "index-out-of-range",
               lambda: f"gather: an index leaves axis {axis} of %{x.name}, which has {extent} elements")
    return [TensorType(x.dtype, (*x.shape[:axis], *idx.shape, *x.shape[axis + 1:]))]


def _gather_elements_known(op: Operation) -> list[tuple[Expr, ...] | None]:
    x, idx = operands(op, 2)
    grid, at = element_grid(x), constant_of(idx)
    if grid is None or at is None:
        return [None]
    return [grid_elements(np.take(grid, at.astype(np.int64), op.attrs["axis"]))]


def _compute_gather(op: Operation, x: Tensor, idx: Tensor) -> Tensor:
    axis, r = op.attrs["axis"], len(idx.shape)
    return compute(op.output.shape, lambda *i: x[(
        *i[:axis], _place(idx[i[axis:axis + r]], x.shape[axis]), *i[axis + r:])], name="gather")


# ---- gather_elements -------------------------------------------------------------------------------------------------
def _infer_gather_elements(op: Operation) -> Sequence[TensorType]:
    x, idx = operands(op, 2)
    _integers(op, 1)
    expect_rank(op, idx, x.rank)
    _fewer_places(op, idx, x)
    return [TensorType(x.dtype, idx.shape)]


def _fewer_places(op: Operation, idx: Value, x: Value) -> None:
    """Along the other axes the indices have at most as many places as the operand."""
    for k, (n, m) in enumerate(zip(idx.shape, x.shape, strict=True)):
        if k != op.attrs["axis"]:
            expect_at_most(op, n, m, f"the places of the indices %{idx.name} along axis {k} of %{x.name}")


def _gather_elements(attrs: dict[str, Any], x: Array, idx: Array) -> Array:
    axis = attrs["axis"]
    at = list(np.indices(idx.shape))
    at[axis] = idx.astype(np.int64)
    return x[tuple(at)]


def _compute_gather_elements(op: Operation, x: Tensor, idx: Tensor) -> Tensor:
    """Along the other axes the indices have at most as many places as the operand; where that is not known while
    compiling, an index stays inside."""
    axis = op.attrs["axis"]

    def at(*i: Expr) -> tuple[Expr, ...]:
        inside = [v if n == m or as_int(n) is not None and as_int(m) is not None else minimum(v, m - 1)
                  for v, n, m in zip(i, idx.shape, x.shape, strict=True)]
        return (*inside[:axis], _place(idx[i], x.shape[axis]), *inside[axis + 1:])
    return compute(op.output.shape, lambda *i: x[at(*i)], name="gather_elements")


# ---- gather_nd -------------------------------------------------------------------------------------------------------
def _tuple_length(op: Operation, x_rank: int, idx_shape: Sequence[Expr], batch: int) -> int:
    n = as_int(idx_shape[-1]) if idx_shape else None
    if n is None or not 0 < n <= x_rank - batch:
        expect(False, "shape-mismatch", f"{op.op}: the last axis of the indices {show(idx_shape)} must be a number up to "
               f"{x_rank - batch}")
    return int(n or 0)


def _infer_gather_nd(op: Operation) -> Sequence[TensorType]:
    x, idx = operands(op, 2)
    _integers(op, 1)
    b = op.attrs["batch_dims"]
    n = _tuple_length(op, x.rank, idx.shape, b)
    for k in range(b):
        expect_same_dim(op, x.shape[k], idx.shape[k], f"batch axis {k} of %{x.name} and the indices %{idx.name}")
    return [TensorType(x.dtype, (*idx.shape[:-1], *x.shape[b + n:]))]


def _gather_nd(attrs: dict[str, Any], x: Array, idx: Array) -> Array:
    b = attrs["batch_dims"]
    at = idx.astype(np.int64)
    batch = np.ogrid[tuple(slice(0, n) for n in x.shape[:b])] if b else []
    lead = [np.asarray(g).reshape(g.shape + (1,) * (idx.ndim - 1 - b)) for g in batch]
    return np.asarray(x[(*lead, *[at[..., k] for k in range(at.shape[-1])])])


def _compute_gather_nd(op: Operation, x: Tensor, idx: Tensor) -> Tensor:
    b, r = op.attrs["batch_dims"], len(idx.shape) - 1
    n = as_int(idx.shape[-1]) or 0
    return compute(op.output.shape, lambda *i: x[(
        *i[:b], *[_place(idx[(*i[:r], const(k))], x.shape[b + k]) for k in range(n)], *i[r:])], name="gather_nd")


# ---- scatter ---------------------------------------------------------------------------------------------------------
_COMBINE: dict[str, Callable[[Array, Any, Array], None]] = {
    "none": lambda y, at, u: y.__setitem__(at, u), "add": np.add.at, "mul": np.multiply.at, "min": np.minimum.at,
    "max": np.maximum.at}


def _infer_scatter_elements(op: Operation) -> Sequence[TensorType]:
    x, idx, updates = operands(op, 3)
    _integers(op, 1)
    expect_rank(op, idx, x.rank)
    expect_rank(op, updates, x.rank)
    expect_same_dtype(op, x, updates)
    for k, (n, m) in enumerate(zip(idx.shape, updates.shape, strict=True)):
        expect_same_dim(op, n, m, f"axis {k} of the indices %{idx.name} and the updates %{updates.name}")
    _fewer_places(op, idx, x)
    _known_reduction(op)
    return [x.type]


def _known_reduction(op: Operation) -> None:
    expect(op.attrs["reduction"] in _COMBINE, "attribute-invalid",
           lambda: f"{op.op}: unknown reduction {op.attrs['reduction']!r}", "one of " + ", ".join(_COMBINE))


def _scatter_elements(attrs: dict[str, Any], x: Array, idx: Array, updates: Array) -> Array:
    y = x.copy()
    at = list(np.indices(idx.shape))
    at[attrs["axis"]] = idx.astype(np.int64)
    _COMBINE[attrs["reduction"]](y, tuple(at), updates)
    return y


def _infer_scatter_nd(op: Operation) -> Sequence[TensorType]:
    x, idx, updates = operands(op, 3)
    _integers(op, 1)
    expect_same_dtype(op, x, updates)
    n = _tuple_length(op, x.rank, idx.shape, 0)
    expect_rank(op, updates, idx.rank - 1 + x.rank - n)
    for k, (have, want) in enumerate(zip(updates.shape, (*idx.shape[:-1], *x.shape[n:]), strict=True)):
        expect_same_dim(op, have, want, f"axis {k} of the updates %{updates.name}")
    _known_reduction(op)
    return [x.type]


def _scatter_nd(attrs: dict[str, Any], x: Array, idx: Array, updates: Array) -> Array:
    y = x.copy()
    at = idx.astype(np.int64)
    _COMBINE[attrs["reduction"]](y, tuple(at[..., k] for k in range(at.shape[-1])), updates)
    return y


_MERGE: dict[str, Callable[[Expr, Expr], Expr]] = {
    "none": lambda old, u: u, "add": lambda old, u: old + u, "mul": lambda old, u: old * u, "min": minimum, "max": maximum}


def _merge(op: Operation) -> Callable[[Expr, Expr], Expr]:
    """How an update is put to what is there; narrow floats are combined in f32 and rounded each time."""
    f, t = _MERGE[op.attrs["reduction"]], op.output.dtype
    if is_narrow(t) and op.attrs["reduction"] != "none":
        return lambda old, u: Cast(t, f(widened(old), widened(u)))
    return f


def _compute_scatter_elements(op: Operation, x: Tensor, idx: Tensor, updates: Tensor) -> Tensor:
    axis = op.attrs["axis"]

    def update(*i: Expr) -> tuple[Sequence[Expr], Expr]:
        return (*i[:axis], _place(idx[i], x.shape[axis]), *i[axis + 1:]), updates[i]
    return scatter(x, idx.shape, update, _merge(op), [idx, updates], "scatter_elements")


def _compute_scatter_nd(op: Operation, x: Tensor, idx: Tensor, updates: Tensor) -> Tensor:
    r, n = len(idx.shape) - 1, as_int(idx.shape[-1]) or 0

    def update(*i: Expr) -> tuple[Sequence[Expr], Expr]:
        return (*[_place(idx[(*i[:r], const(k))], x.shape[k]) for k in range(n)], *i[r:]), updates[i]
    return scatter(x, updates.shape, update, _merge(op), [idx, updates], "scatter_nd")


# ---- places of elements ----------------------------------------------------------------------------------------------
def _infer_nonzero(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    count = element_count(x.type)
    return [TensorType(i64, (const(x.rank), Var("nonzero_count", span=Span(0, count))))]


def _infer_unravel(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    expect_rank(op, x, 1)
    return [TensorType(i64, (const(len(op.attrs["shape"])), *x.shape))]


def _compute_unravel(op: Operation, x: Tensor) -> Tensor:
    shape = op.attrs["shape"]

    def place(axis: Expr, k: Expr) -> Expr:
        flat: Expr = x[k]
        out: Expr = const(0)
        for n in reversed(range(len(shape))):
            out = Select(axis.eq(n), flat % maximum(shape[n], 1) if n else flat, out)
            flat = flat // maximum(shape[n], 1)
        return out
    return compute(op.output.shape, place, name="unravel")


_AXIS = {"axis": Attr("int", 0)}
RECORDS = (
    OpRecord("gather", "injective", _infer_gather, lambda a, x, i: np.take(x, i.astype(np.int64), a["axis"]),
             _compute_gather, _AXIS, _normalize_axis, _gather_elements_known,
             doc="Slices of an axis by index (negative ones count from the back); the axis becomes the indices' axes.",
             gradient=gradients.gather),
    OpRecord("gather_elements", "injective", _infer_gather_elements, _gather_elements, _compute_gather_elements, _AXIS,
             _normalize_axis, doc="out[i,j,k] = x[i, index[i,j,k], k] for axis 1, and likewise for others.",
             gradient=gradients.gather_elements),
    OpRecord("gather_nd", "injective", _infer_gather_nd, _gather_nd, _compute_gather_nd, {"batch_dims": Attr("int", 0)},
             doc="Slices of x by index tuples in the last axis of the indices."),
    OpRecord("scatter_elements", "opaque", _infer_scatter_elements, _scatter_elements, _compute_scatter_elements,
             attrs={**_AXIS, "reduction": Attr("str", "none")}, normalize=_normalize_axis,
             doc="x with updates put (or added, multiplied, min, max) at the places that gather_elements would read."),
    OpRecord("scatter_nd", "opaque", _infer_scatter_nd, _scatter_nd, _compute_scatter_nd,
             attrs={"reduction": Attr("str", "none")},
             doc="x with slices put (or combined) at index tuples."),
    OpRecord("nonzero", "opaque", _infer_nonzero, lambda a, x: np.array(np.nonzero(x), np.int64),
             doc="Indices of the elements that are not zero, one column each, row major (i64)."),
    OpRecord("unravel", "injective", _infer_unravel, lambda a, x: np.array(np.unravel_index(x, a["shape"]), np.int64),
             _compute_unravel, {"shape": Attr("dims")},
             doc="Where the elements with the given numbers (i64, row major) are in a tensor of a shape, one column each."),
)
