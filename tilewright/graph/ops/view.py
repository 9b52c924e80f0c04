"""Operators that only rename places: reshape, transpose, expand, slice. Squeeze, unsqueeze, flatten and split are these."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tilewright.core.errors import UserError
from tilewright.graph.infer import (
    Shape,
    axis_of,
    dim,
    element_grid,
    elements_of,
    expect,
    expect_expands,
    expect_same_dim,
    grid_elements,
    is_one,
    operands,
    product,
    same,
    show,
)
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.ops import gradients
from tilewright.graph.ops.recipes import broadcast_read
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.ir import Expr, IntoExpr, Mul, as_int, const, expr, maximum, minimum
from tilewright.tensor.compute import Tensor, compute


# ---- reshape ---------------------------------------------------------------------------------------------------------
def _factors(sizes: Iterable[Expr]) -> list[Expr]:
    """Sizes, products among them taken apart."""
    out: list[Expr] = []
    for d in sizes:
        out += _factors((d.a, d.b)) if isinstance(d, Mul) else [d]
    return out


def _without_common(a: Sequence[Expr], b: Sequence[Expr]) -> tuple[list[Expr], list[Expr]]:
    """Both lists of factors with those that occur in both left out."""
    rest, left = _factors(b), []
    for d in _factors(a):
        if d in rest:
            rest.remove(d)
        else:
            left.append(d)
    return left, rest


def _normalize_reshape(op: Operation) -> dict[str, Any]:
    (x,) = operands(op, 1)
    shape = list(op.attrs["shape"])
    free = [k for k, d in enumerate(shape) if as_int(d) == -1]
    if len(free) > 1:
        raise UserError("shape-mismatch", f"reshape: more than one -1 in {show(shape)}")
    if free:
        left, rest = _without_common(x.shape, [d for k, d in enumerate(shape) if k != free[0]])
        below, above = product(rest), product(left)
        if as_int(below) == 0:
            raise UserError("shape-mismatch", f"reshape: -1 beside a size of 0 in {show(shape)}")
        if as_int(above) is not None and as_int(below) is not None and as_int(dim(above % below)) != 0:
            raise UserError("shape-mismatch", f"reshape: {show(x.shape)} does not fit {show(shape)}")
        shape[free[0]] = dim(above // below)
    return {"shape": tuple(shape)}


def _infer_reshape(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    left, rest = _without_common(x.shape, op.attrs["shape"])
    both_empty = all(any(as_int(d) == 0 for d in shape) for shape in (x.shape, op.attrs["shape"]))
    if not both_empty and same(product(left), product(rest)) is False:
        raise UserError("shape-mismatch", f"reshape: {show(x.shape)} has another number of elements than "
                        f"{show(op.attrs['shape'])}")
    if not both_empty:
        expect_same_dim(op, product(x.shape), product(op.attrs["shape"]),
                        f"the elements of {show(x.shape)} and of {show(op.attrs['shape'])}")
    return [TensorType(x.dtype, op.attrs["shape"])]


def aligned_groups(a: Shape, b: Shape) -> list[tuple[range, range]]:
    """Runs of axes of `a` and `b` with equal numbers of elements, as fine as they can be told apart: a reshape from
    `a` to `b` moves elements within each pair only."""
    out: list[tuple[range, range]] = []
    i = j = i0 = j0 = 0
    while i < len(a) and j < len(b):
        i, j = i + 1, j + 1
        while True:
            left, right = _without_common(a[i0:i], b[j0:j])
            p, q = product(left), product(right)
            if same(p, q) is True:
                out.append((range(i0, i), range(j0, j)))
                i0, j0 = i, j
                break
            x, y = as_int(p), as_int(q)
            right_is_less = y is not None and (x is None or y < x)
            if j < len(b) and (right_is_less or i == len(a)):
                j += 1
            elif i < len(a):
                i += 1
            else:
                break
    if i0 < len(a) or j0 < len(b):
        out.append((range(i0, len(a)), range(j0, len(b))))
    return out


def reshape_index(index: Sequence[Expr], shape: Shape, source: Shape) -> tuple[Expr, ...]:
    """Where the element at `index` of a tensor of `shape` lies in the tensor of shape `source` it is a reshape of."""
    out: list[Expr] = [const(0)] * len(source)
    for src, dst in aligned_groups(source, shape):
        used = [k for k in src if not is_one(source[k])]
        flat: Expr = const(0)
        for k in dst:
            if not is_one(shape[k]):
                flat = index[k] if as_int(flat) == 0 else flat * shape[k] + index[k]
        for k in reversed(used):
            if k == used[0]:
                out[k] = flat
            else:
                out[k], flat = flat % source[k], flat // source[k]
    return tuple(out)


def _compute_reshape(op: Operation, x: Tensor) -> Tensor:
    shape = op.output.shape
    return compute(shape, lambda *i: x[reshape_index(i, shape, x.shape)], name="reshape")


# ---- transpose -------------------------------------------------------------------------------------------------------
def _normalize_transpose(op: Operation) -> dict[str, Any]:
    (x,) = operands(op, 1)
    perm = op.attrs["perm"]
    return {"perm": tuple(reversed(range(x.rank))) if perm is None else tuple(axis_of(op, p, x.rank) for p in perm)}


def _infer_transpose(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    perm = op.attrs["perm"]
    expect(sorted(perm) == list(range(x.rank)), "axis-out-of-range",
           lambda: f"transpose: {perm} is no permutation of the {x.rank} axes of %{x.name}")
    return [TensorType(x.dtype, tuple(x.shape[p] for p in perm))]


def _compute_transpose(op: Operation, x: Tensor) -> Tensor:
    perm = op.attrs["perm"]
    where = [perm.index(k) for k in range(len(perm))]
    return compute(op.output.shape, lambda *i: x[tuple([i[w] for w in where])], name="transpose")


# ---- expand ----------------------------------------------------------------------------------------------------------
def _infer_expand(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    to = op.attrs["shape"]
    expect_expands(op, x.shape, to, f"%{x.name}", "repeated")
    return [TensorType(x.dtype, to)]


def _compute_expand(op: Operation, x: Tensor) -> Tensor:
    """Where it is not known while compiling whether an axis is repeated, an index stays inside."""
    shape = op.output.shape
    inside = shape[len(shape) - len(x.shape):]

    def place(v: Expr, n: Expr, m: Expr) -> Expr:
        return v if is_one(n) or same(n, m) is True else minimum(v, n - 1)
    return compute(shape, lambda *i: broadcast_read(x, (*i[:len(i) - len(inside)], *[
        place(v, n, m) for v, n, m in zip(i[len(i) - len(inside):], x.shape, inside, strict=True)]), shape), name="expand")


# ---- slice -----------------------------------------------------------------------------------------------------------
def slice_range(extent: IntoExpr, start: IntoExpr, end: IntoExpr, step: int) -> tuple[Expr, Expr]:
    """First element and number of elements of Python's `[start:end:step]` on an axis of `extent` elements.

    `start` and `end` may count from the back (known negative numbers, or beyond the ends); symbolic ones are taken to
    count from the front.
    """
    if step == 0:
        raise UserError("attribute-invalid", "a slice has a step of 0")
    n = dim(extent)
    low, high = (const(0), n) if step > 0 else (const(-1), dim(n - 1))

    def clamp(v: IntoExpr) -> Expr:
        value = as_int(v)
        if value is None:
            return dim(minimum(maximum(expr(v), low), high))
        if as_int(n) is None:
            if value >= 0:  # a symbolic extent is taken to reach any start; a far end is the end
                return high if value >= 2**31 - 1 else dim(minimum(const(value), high)) if value else const(0)
            if value <= -(2**31):
                return low
            return dim(maximum(n + value, low))
        return dim(minimum(maximum(const(value + (as_int(n) or 0) if value < 0 else value), low), high))

    first, last = clamp(start), clamp(end)
    span = last - first if step > 0 else first - last
    return first, dim(maximum((span + (abs(step) - 1)) // abs(step), 0))


def _infer_slice(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    a = op.attrs
    expect(len(a["starts"]) == len(a["sizes"]) == len(a["steps"]) == x.rank, "attribute-invalid",
           lambda: f"slice: starts, sizes and steps need one entry for each of the {x.rank} axes of %{x.name}")
    for k, (start, size, step, extent) in enumerate(zip(a["starts"], a["sizes"], a["steps"], x.shape, strict=True)):
        s, n, e = as_int(start), as_int(size), as_int(extent)
        expect(step != 0, "attribute-invalid", "slice: a step of 0")
        if s is not None and n is not None and e is not None and n:
            expect(min(s, s + (n - 1) * step) >= 0 and max(s, s + (n - 1) * step) < e, "shape-mismatch",
                   f"slice: {n} elements from {s} by {step} leave axis {k} of {show(x.shape)}")
    return [TensorType(x.dtype, a["sizes"])]


def _normalize_slice(op: Operation) -> dict[str, Any]:
    steps = op.attrs["steps"]
    return {"steps": (1,) * len(op.attrs["starts"]) if steps is None else steps}


def _slices(attrs: dict[str, Any]) -> tuple[slice, ...]:
    out = []
    for start, size, step in zip(attrs["starts"], attrs["sizes"], attrs["steps"], strict=True):
        stop = start + size * step
        out.append(slice(start, None if stop < 0 else stop, step) if size else slice(0, 0))
    return tuple(out)


def _slice_elements(op: Operation) -> list[tuple[Expr, ...] | None]:
    grid = element_grid(operands(op, 1)[0])
    numbers = [as_int(d) for d in (*op.attrs["starts"], *op.attrs["sizes"])]
    if grid is None or any(n is None for n in numbers):
        return [None]
    half = len(numbers) // 2
    return [grid_elements(grid[_slices({**op.attrs, "starts": numbers[:half], "sizes": numbers[half:]})])]


def _compute_slice(op: Operation, x: Tensor) -> Tensor:
    a = op.attrs
    return compute(op.output.shape, lambda *i: x[tuple(
        [s + v * t for s, v, t in zip(a["starts"], i, a["steps"], strict=True)])], name="slice")


def _infer_dynamic_slice(op: Operation) -> Sequence[TensorType]:
    x, starts = operands(op, 2)
    expect(starts.dtype.is_int and starts.rank == 1, "dtype-mismatch",
           lambda: f"dynamic_slice: the starts are a vector of integers, %{starts.name} is {starts.type}")
    expect(len(op.attrs["sizes"]) == x.rank, "attribute-invalid",
           lambda: f"dynamic_slice: sizes needs one entry for each of the {x.rank} axes of %{x.name}")
    return [TensorType(x.dtype, op.attrs["sizes"])]


def _dynamic_slice(attrs: dict[str, Any], x: Array, starts: Array) -> Array:
    at = [min(max(int(s), 0), n - size) for s, n, size in zip(starts, x.shape, attrs["sizes"], strict=True)]
    return x[tuple(slice(s, s + size) for s, size in zip(at, attrs["sizes"], strict=True))]


def _compute_dynamic_slice(op: Operation, x: Tensor, starts: Tensor) -> Tensor:
    sizes = op.attrs["sizes"]

    def at(k: int, i: Expr) -> Expr:
        return i + minimum(maximum(starts[const(k)].cast("i64"), 0), x.shape[k] - sizes[k])
    return compute(op.output.shape, lambda *i: x[tuple([at(k, v) for k, v in enumerate(i)])], name="dynamic_slice")


def _keep_elements(op: Operation) -> list[tuple[Expr, ...] | None]:
    return [elements_of(op.inputs[0])]


def _expand_elements(op: Operation) -> list[tuple[Expr, ...] | None]:
    grid = element_grid(operands(op, 1)[0])
    return [None if grid is None else grid_elements(np.broadcast_to(grid, op.output.type.sizes()))]


def _transpose_elements(op: Operation) -> list[tuple[Expr, ...] | None]:
    grid = element_grid(operands(op, 1)[0])
    return [None if grid is None else grid_elements(grid.transpose(op.attrs["perm"]))]


RECORDS = (
    OpRecord("identity", "view", lambda op: [operands(op, 1)[0].type], lambda a, x: x,
             lambda op, x: compute(x.shape, lambda *i: x[i], name="identity"), elements=_keep_elements,
             doc="The same value; where two outputs of a graph must be values of their own.", gradient=gradients.identity),
    OpRecord("reshape", "view", _infer_reshape, lambda a, x: x.reshape(a["shape"]), _compute_reshape,
             {"shape": Attr("dims", doc="one entry may be -1")}, _normalize_reshape, _keep_elements,
             doc="The same elements, row major, in another shape.", gradient=gradients.reshape),
    OpRecord("transpose", "view", _infer_transpose, lambda a, x: x.transpose(a["perm"]), _compute_transpose,
             {"perm": Attr("ints", None, "output axis k is input axis perm[k]; reversed by default")},
             _normalize_transpose, _transpose_elements, doc="Axes in another order.", gradient=gradients.transpose),
    OpRecord("expand", "view", _infer_expand, lambda a, x: np.broadcast_to(x, a["shape"]), _compute_expand,
             {"shape": Attr("dims", doc="the result's shape")}, None, _expand_elements,
             doc="Broadcast to a shape: axes of size 1 are repeated, axes in front are added.",
             gradient=gradients.expand),
    OpRecord("slice", "view", _infer_slice, lambda a, x: x[_slices(a)], _compute_slice,
             {"starts": Attr("dims"), "sizes": Attr("dims"), "steps": Attr("ints", None, "any but 0; 1 by default")},
             _normalize_slice, _slice_elements,
             doc="sizes[k] elements of each axis, from starts[k] by steps[k]; all in bounds.", gradient=gradients.slice_),
    OpRecord("dynamic_slice", "injective", _infer_dynamic_slice, _dynamic_slice, _compute_dynamic_slice,
             {"sizes": Attr("dims")}, doc="sizes[k] elements of each axis from starts[k], clamped into the tensor."),
)
