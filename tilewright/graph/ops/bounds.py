"""Operators that check indices: index_range and in_bounds. The builder's `in_bounds` puts them before what reads by index.

The check is the host program's: a kernel finds the least and the greatest index, and the run fails if they lie outside.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import i64
from tilewright.core.errors import UserError
from tilewright.graph.infer import elements_of, expect, expect_dtype, expect_rank, operands, same
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.ir import maximum, minimum
from tilewright.tensor import compute as tc
from tilewright.tensor.compute import Tensor, compute, reduce_axis

FAR = 1 << 62
"""Bounds of no indices at all: within any size."""


# ---- index_range -----------------------------------------------------------------------------------------------------
def _infer_index_range(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    expect_rank(op, x, 2)
    expect_dtype(op, x, x.dtype.is_int, "integer indices")
    return [TensorType(i64, (x.shape[1],))] * 2


def _index_range(attrs: dict[str, Any], x: Array) -> tuple[Array, Array]:
    wide = x.astype(np.int64)
    return wide.min(0, initial=FAR), wide.max(0, initial=-FAR)


def _compute_index_range(op: Operation, x: Tensor) -> tuple[Tensor, Tensor]:
    count, n = x.shape
    rows = [reduce_axis(count, name) for name in ("r", "q")]
    lowest = compute((n,), lambda k: tc.min(x[rows[0].var, k].cast(i64), [rows[0]]), name="lowest")
    highest = compute((n,), lambda k: tc.max(x[rows[1].var, k].cast(i64), [rows[1]]), name="highest")
    return (compute((n,), lambda k: minimum(lowest[k], FAR), name="least"),
            compute((n,), lambda k: maximum(highest[k], -FAR), name="most"))


# ---- in_bounds -------------------------------------------------------------------------------------------------------
def _infer_in_bounds(op: Operation) -> Sequence[TensorType]:
    x, least, most = operands(op, 3)
    count = len(op.attrs["extents"])
    expect(all(v.dtype is i64 and v.rank == 1 and same(v.shape[0], count) is True for v in (least, most)), "shape-mismatch",
           lambda: f"in_bounds: {least.type} and {most.type} for {count} extents")
    return [x.type]


def _in_bounds(attrs: dict[str, Any], x: Array, least: Array, most: Array) -> Array:
    for low, high, n in zip(least.tolist(), most.tolist(), attrs["extents"], strict=True):
        if low < (0 if attrs["from_front"] else -n) or high >= n:
            raise UserError("run-index", message(attrs["what"], n).replace("{}", str(low), 1).replace("{}", str(high), 1))
    return x


def message(what: str, extent: object = "{}") -> str:
    """What is said of indices out of bounds, with {} for the least, the greatest, and the extent."""
    return f"{what}: an index is out of bounds: indices from {{}} to {{}}, for an axis of {extent} elements"


RECORDS = (
    OpRecord("index_range", "opaque", _infer_index_range, _index_range, _compute_index_range,
             doc="The least and the greatest number (i64) of each column; of none, numbers that are in any bounds."),
    OpRecord("in_bounds", "opaque", _infer_in_bounds, _in_bounds, lambda op, x, least, most: x,
             {"extents": Attr("dims", doc="one for each number of the range"), "what": Attr("str", doc="whose indices"),
              "from_front": Attr("bool", False, "negative indices are out of bounds, too")},
             None, lambda op: [elements_of(op.inputs[0])],
             doc="The same indices; a run fails unless all of their range is from -extent (or 0) to extent - 1. The host "
                 "program compares, and no kernel is made."),
)
