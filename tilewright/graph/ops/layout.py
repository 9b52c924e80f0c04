"""Activation layouts: between NCHW… and blocked NC…c, where the channels lie in blocks of `b` in a last axis of their own.

A blocked tensor [N, ceil(C/b), spatial…, b] holds zeros in the channels beyond C.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.graph.infer import ceil_div, expect, expect_rank, operands
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.ops.recipes import read_or
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.ir import Expr, as_int, const
from tilewright.tensor.compute import Tensor, compute


def to_blocked(x: Array, b: int) -> Array:
    """[N, C, …] → [N, ceil(C/b), …, b], zeros in the tail."""
    n, c = x.shape[:2]
    blocks = -(-c // b)
    padded = np.zeros((n, blocks * b, *x.shape[2:]), x.dtype)
    padded[:, :c] = x
    return np.ascontiguousarray(np.moveaxis(padded.reshape(n, blocks, b, *x.shape[2:]), 2, -1))


def from_blocked(x: Array, channels: int) -> Array:
    """[N, blocks, …, b] → [N, channels, …]."""
    flat = np.moveaxis(x, -1, 2)
    return np.ascontiguousarray(flat.reshape(x.shape[0], -1, *x.shape[2:-1])[:, :channels])


def _infer_to(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    expect_rank(op, x, 2, 100)
    b = op.attrs["block"]
    expect(b > 0, "attribute-invalid", f"to_blocked: a block of {b}")
    return [TensorType(x.dtype, (x.shape[0], ceil_div(x.shape[1], b), *x.shape[2:], const(b)))]


def _infer_from(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    expect_rank(op, x, 3, 100)
    blocks, b, c = as_int(x.shape[1]), as_int(x.shape[-1]), op.attrs["channels"]
    expect(blocks is not None and b is not None and (blocks - 1) * b < c <= blocks * b, "shape-mismatch",
           lambda: f"from_blocked: {c} channels do not fill {blocks} blocks of {b}")
    return [TensorType(x.dtype, (x.shape[0], const(c), *x.shape[2:-1]))]


def _compute_to(op: Operation, x: Tensor) -> Tensor:
    b, c = op.attrs["block"], x.shape[1]
    exact = as_int(c) is not None and (as_int(c) or 0) % b == 0

    def cell(*i: Expr) -> Expr:
        ch = i[1] * b + i[-1]
        value = x[(i[0], ch, *i[2:-1])]
        return value if exact else read_or(ch < c, value, 0)
    return compute(op.output.shape, cell, name="to_blocked")


def _compute_from(op: Operation, x: Tensor) -> Tensor:
    b = as_int(x.shape[-1]) or 1
    return compute(op.output.shape, lambda *i: x[(i[0], i[1] // b, *i[2:], i[1] % b)], name="from_blocked")


def _attrs(name: str, doc: str) -> dict[str, Any]:
    return {name: Attr("int", doc=doc)}


RECORDS = (
    OpRecord("to_blocked", "injective", _infer_to, lambda a, x: to_blocked(x, a["block"]), _compute_to,
             _attrs("block", "channels per block"), doc="[N, C, …] → [N, ceil(C/b), …, b], zeros in the tail."),
    OpRecord("from_blocked", "injective", _infer_from, lambda a, x: from_blocked(x, a["channels"]), _compute_from,
             _attrs("channels", "how many there are"), doc="[N, blocks, …, b] → [N, C, …]."),
)
