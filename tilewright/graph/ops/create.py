"""Operators that make tensors from sizes and numbers: full, range, shape_of, one_hot, and masks by position (trilu)."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import i64
from tilewright.graph.infer import (
    axis_of,
    constant_of,
    dim,
    element_count,
    elements_of,
    expect,
    expect_dtype,
    expect_rank,
    expect_same_dtype,
    is_small_int,
    operands,
)
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.ir import Expr, Select, Span, Var, const, maximum
from tilewright.tensor.compute import Tensor, compute


def _infer_full(op: Operation) -> Sequence[TensorType]:
    operands(op, 0)
    return [TensorType(op.attrs["dtype"], op.attrs["shape"])]


def _full_elements(op: Operation) -> list[tuple[Expr, ...] | None]:
    if not is_small_int(op.output.type):
        return [None]
    t = i64 if op.output.dtype.is_int else op.output.dtype
    count = int(np.prod(op.output.type.sizes()))
    return [(const(op.attrs["value"], t),) * count]


def _compute_full(op: Operation) -> Tensor:
    return compute(op.output.shape, lambda *i: const(op.attrs["value"], op.output.dtype), name="full")


def _range_length(op: Operation) -> Expr:
    """How many elements a range has: known numbers, symbolic integers with a constant step, or a fresh symbol."""
    start, limit, step = [constant_of(v) for v in op.inputs]
    if start is not None and limit is not None and step is not None:
        expect(bool(step.item() != 0), "attribute-invalid", "range: a step of 0")
        return const(max(0, int(np.ceil((limit.astype(np.float64) - start) / step).item())))
    first, last = elements_of(op.inputs[0]), elements_of(op.inputs[1])
    if first is not None and last is not None and step is not None and op.inputs[0].dtype.is_int:  # type: ignore[union-attr]
        by = int(step.item())
        expect(by != 0, "attribute-invalid", "range: a step of 0")
        span = last[0] - first[0] if by > 0 else first[0] - last[0]
        length = dim((span + (abs(by) - 1)) // abs(by))
        return length if isinstance(length, Var) else dim(maximum(length, 0))
    return Var("range_length", span=Span())


def _infer_range(op: Operation) -> Sequence[TensorType]:
    start, limit, step = operands(op, 3)
    for v in (start, limit, step):
        expect_rank(op, v, 0)
    t = expect_same_dtype(op, start, limit, step)
    length = op.attrs["length"]
    return [TensorType(t, (_range_length(op) if length is None else length,))]


def _range_elements(op: Operation) -> list[tuple[Expr, ...] | None]:
    first, step = elements_of(op.inputs[0]), elements_of(op.inputs[2])
    if not is_small_int(op.output.type) or first is None or step is None:
        return [None]
    return [tuple([dim(first[0] + step[0] * k) for k in range(op.output.type.sizes()[0])])]


def _compute_range(op: Operation, start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    return compute(op.output.shape, lambda i: start[()] + i.cast(op.output.dtype) * step[()], name="range")


def _range(attrs: dict[str, Any], start: Array, limit: Array, step: Array) -> Array:
    count = attrs["length"]
    if count is None:
        count = max(0, int(np.ceil((limit.astype(np.float64) - start) / step)))
    return (start + np.arange(count).astype(start.dtype) * step).astype(start.dtype)


def _infer_shape_of(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    return [TensorType(i64, (const(x.rank),))]


def _compute_shape_of(op: Operation, x: Tensor) -> Tensor:
    def pick(i: Expr) -> Expr:
        out: Expr = const(0)
        for k in reversed(range(len(x.shape))):
            out = Select(i.eq(k), x.shape[k], out)
        return out
    return compute(op.output.shape, pick, name="shape_of")


def _infer_sizes(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    expect_dtype(op, x, x.dtype.is_int, "integers")
    expect(element_count(x.type) == len(op.attrs["symbols"]), "attribute-invalid",
           lambda: f"sizes: {len(op.attrs['symbols'])} symbols for {x.type}")
    return [x.type]


def _normalize_one_hot(op: Operation) -> dict[str, Any]:
    return {"axis": axis_of(op, op.attrs["axis"], operands(op, 2)[0].rank + 1)}


def _infer_one_hot(op: Operation) -> Sequence[TensorType]:
    indices, values = operands(op, 2)
    expect_rank(op, values, 1)
    axis = op.attrs["axis"]
    return [TensorType(values.dtype, (*indices.shape[:axis], op.attrs["depth"], *indices.shape[axis:]))]


def _one_hot(attrs: dict[str, Any], indices: Array, values: Array) -> Array:
    at = np.expand_dims(indices, attrs["axis"])
    shape = [1] * at.ndim
    shape[attrs["axis"]] = attrs["depth"]
    place = np.arange(attrs["depth"]).reshape(shape)
    return np.where((at == place) | (at + attrs["depth"] == place), values[1], values[0])


def _compute_one_hot(op: Operation, indices: Tensor, values: Tensor) -> Tensor:
    axis, depth = op.attrs["axis"], op.attrs["depth"]

    def pick(*i: Expr) -> Expr:
        at = indices[(*i[:axis], *i[axis + 1:])].cast("i64")
        at = Select(at < 0, at + depth, at)
        return Select(at.eq(i[axis]), values[const(1)], values[const(0)])
    return compute(op.output.shape, pick, name="one_hot")


def _infer_trilu(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    expect_rank(op, x, 2, 100)
    return [x.type]


def _trilu(attrs: dict[str, Any], x: Array) -> Array:
    return np.triu(x, attrs["k"]) if attrs["upper"] else np.tril(x, attrs["k"])


def _compute_trilu(op: Operation, x: Tensor) -> Tensor:
    k, upper = op.attrs["k"], op.attrs["upper"]

    def pick(*i: Expr) -> Expr:
        keep = i[-1] >= i[-2] + k if upper else i[-1] <= i[-2] + k
        return Select(keep, x[i], const(0, op.output.dtype))
    return compute(op.output.shape, pick, name="trilu")


RECORDS = (
    OpRecord("full", "injective", _infer_full, lambda a: np.full(a["shape"], a["value"], a["dtype"].numpy()),
             _compute_full, {"shape": Attr("dims"), "value": Attr("number", 0), "dtype": Attr("dtype")}, None,
             _full_elements, doc="A tensor of one number."),
    OpRecord("range", "injective", _infer_range, _range, _compute_range,
             {"length": Attr("dim", None, "how many these are, where inference cannot tell")}, None, _range_elements,
             doc="start, start + step, … up to but without limit (three scalars)."),
    OpRecord("shape_of", "injective", _infer_shape_of, lambda a, x: np.array(x.shape, np.int64), _compute_shape_of, {},
             None, lambda op: [operands(op, 1)[0].shape], doc="The sizes of a tensor as an i64 vector."),
    OpRecord("sizes", "opaque", _infer_sizes, lambda a, x: x, None, {"symbols": Attr("symbols", (), "one per element")},
             None, lambda op: [op.attrs["symbols"]],
             doc="The same small tensor of integers, whose elements are from here on the values of symbols: sizes that are "
                 "computed from data. A run fails where one leaves its span."),
    OpRecord("one_hot", "injective", _infer_one_hot, _one_hot, _compute_one_hot,
             {"depth": Attr("dim"), "axis": Attr("int", -1, "of the result")}, _normalize_one_hot,
             doc="values[1] where the place along the new axis is the index (negative ones count from the back), else "
                 "values[0]."),
    OpRecord("trilu", "elementwise", _infer_trilu, _trilu, _compute_trilu,
             {"k": Attr("int", 0, "diagonals above the main one"), "upper": Attr("bool", True)},
             doc="The upper or lower triangle of the last two axes, zero elsewhere."),
)
