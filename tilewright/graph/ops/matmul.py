"""Matrix product, batched with broadcasting."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import DType
from tilewright.graph.infer import broadcast, expect_dtype, expect_rank, expect_same_dim, expect_same_dtype, operands
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.ops import gradients
from tilewright.graph.ops.recipes import accumulator, broadcast_read
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.ir import Expr
from tilewright.tensor import compute as tc
from tilewright.tensor.compute import Tensor, compute, reduce_axis


def _out(op: Operation) -> DType:
    found = op.inputs[0]
    assert found is not None
    return op.attrs["out"] or found.dtype


def _infer(op: Operation) -> Sequence[TensorType]:
    a, b = operands(op, 2)
    expect_rank(op, a, 2, 100)
    expect_rank(op, b, 2, 100)
    expect_dtype(op, a, a.dtype.is_float or a.dtype.is_int, "numbers")
    if not (op.attrs["out"] is not None and a.dtype.is_int and b.dtype.is_int):
        expect_same_dtype(op, a, b)
    n, k = (b.shape[-2], b.shape[-1]) if op.attrs["transpose_b"] else (b.shape[-1], b.shape[-2])
    expect_same_dim(op, a.shape[-1], k, f"the summed axis of %{a.name} {a.type} and %{b.name} {b.type}")
    return [TensorType(_out(op), (*broadcast(op, a.shape[:-2], b.shape[:-2]), a.shape[-2], n))]


def _matmul(attrs: dict[str, Any], a: Array, b: Array) -> Array:
    if attrs["transpose_b"]:
        b = np.swapaxes(b, -1, -2)
    to = attrs["out"].numpy() if attrs["out"] is not None else a.dtype
    if a.dtype.kind not in "iu" and a.dtype.itemsize < 4:
        a, b = a.astype(np.float32), b.astype(np.float32)
    elif a.dtype.kind in "iu":
        a, b = a.astype(to), b.astype(to)
    return np.asarray(np.matmul(a, b)).astype(to, copy=False)


def _compute(op: Operation, a: Tensor, b: Tensor) -> Tensor:
    """C[…, m, n] = sum over k of A[…, m, k] * B[…, k, n], or B[…, n, k] with transpose_b."""
    shape, to, flip = op.output.shape, op.output.dtype, op.attrs["transpose_b"]
    acc = accumulator(to)
    k = reduce_axis(a.shape[-1], name="k")
    lead = shape[:-2]

    def cell(*i: Expr) -> Any:
        m, n = i[-2], i[-1]
        left = broadcast_read(a, (*i[:-2], m, k.var), (*lead, a.shape[-2], a.shape[-1]))
        at = (*i[:-2], n, k.var) if flip else (*i[:-2], k.var, n)
        right = broadcast_read(b, at, (*lead, *b.shape[-2:]))
        return tc.sum(left.cast(acc) * right.cast(acc), axis=[k])
    total = compute(shape, cell, name="matmul")
    return total if acc is to else compute(shape, lambda *i: total[i].cast(to), name="matmul_cast")


RECORDS = (
    OpRecord("matmul", "anchor", _infer, _matmul, _compute,
             {"transpose_b": Attr("bool", False, "b is […, n, k]"),
              "out": Attr("dtype", None, "of an integer product: the type it is computed in and has")},
             doc="[…, m, k] times […, k, n] with the leading axes broadcast; operands have rank 2 or more. Narrow floats "
                 "are accumulated in f32, integers in the result's type.", gradient=gradients.matmul),
)
