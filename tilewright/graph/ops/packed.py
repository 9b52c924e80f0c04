"""Weights in few bits: half floats, or codes side by side in bytes with a scale and a zero point per block of a column.

The operators that expand them stay in front of products until code is made, so that weights are packed in memory and in
files; how the kernel of a product does it is its schedule's choice (`tensor/rules/expanded.py`).
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import bf16, f16, f32, i32, u8
from tilewright.graph.infer import expect, expect_dtype, expect_rank, operand
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.ops.recipes import call
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.ir import Call, Expr, as_int, const
from tilewright.tensor.compute import Tensor, compute


def codes_of(packed: Array, bits: int, count: int) -> Array:
    """The first `count` codes of every row of bytes, the low bits first."""
    shifts = np.arange(8 // bits, dtype=np.uint8) * bits
    codes = packed[..., None] >> shifts & (2**bits - 1)
    return np.asarray(codes.reshape(*packed.shape[:-1], -1)[..., :count])


def packed_codes(codes: Array, bits: int) -> Array:
    """The inverse of `codes_of`: rows of codes in bytes, zeros behind the last one."""
    per = 8 // bits
    whole = np.zeros((*codes.shape[:-1], -(-codes.shape[-1] // per), per), np.uint8)
    whole.reshape(*codes.shape[:-1], -1)[..., :codes.shape[-1]] = codes
    return np.asarray(np.bitwise_or.reduce(whole << (np.arange(per, dtype=np.uint8) * bits), axis=-1))


def _infer(op: Operation) -> Sequence[TensorType]:
    expect(len(op.inputs) in (2, 3), "operand-count",
           f"unpack_weights takes codes, scales and perhaps zero points, {len(op.inputs)} were given")
    codes, scales = operand(op, 0), operand(op, 1)
    bits, block, k = op.attrs["bits"], op.attrs["block"], op.attrs["depth"]
    expect(bits in (2, 4, 8) and block > 0 and k > 0, "attribute-invalid",
           lambda: f"unpack_weights: {k} weights of {bits} bits in blocks of {block}")
    points = op.inputs[2] if len(op.inputs) > 2 else None
    for v in (codes, scales, points):
        if v is not None:
            expect_rank(op, v, 2, 2)
    expect_dtype(op, codes, codes.dtype is u8, "bytes")
    expect_dtype(op, scales, scales.dtype is f32, "f32")
    blocks = -(-k // block)
    fits = (as_int(codes.shape[1]) or 0) >= -(-k * bits // 8) and codes.shape[0] == scales.shape[0]
    expect(fits and as_int(scales.shape[1]) == blocks and (points is None or points.shape == scales.shape), "shape-mismatch",
           lambda: f"unpack_weights: {codes.type}, scales {scales.type}, zero points "
                   f"{None if points is None else points.type} for {k} rows in blocks of {block}")
    return [TensorType(f32, (const(k), codes.shape[0]))]


def _numpy(attrs: dict[str, Any], codes: Array, scales: Array, points: Array | None = None) -> Array:
    k, block = attrs["depth"], attrs["block"]
    at = np.arange(k) // block
    zero: Any = np.float32(attrs["point"]) if points is None else points.astype(np.float32)[:, at]
    return np.ascontiguousarray(((codes_of(codes, attrs["bits"], k).astype(np.float32) - zero) * scales[:, at]).T)


def _compute(op: Operation, codes: Tensor, scales: Tensor, points: Tensor | None = None) -> Tensor:
    """W[k, n] = (code k of column n - its block's zero point) * its block's scale.

    A code becomes a float where it lies in its byte, `shift` bits up: as the last bits of a number whose unit they are,
    2^(23 - shift). Taking that off gives the code, exactly, and with a whole zero point both go in one subtraction: a
    shift and a conversion less than by way of integers."""
    bits, block, per = op.attrs["bits"], op.attrs["block"], 8 // op.attrs["bits"]
    point = op.attrs["point"]
    whole = float(point).is_integer() if points is None else points.dtype.is_int

    def cell(k: Expr, n: Expr) -> Any:
        byte = codes[n, k // per].cast(i32)
        shift = (k % per * bits).cast(i32)
        code = byte if per == 1 else call("bit_and", byte, call("shift_left", const(2**bits - 1, i32), shift))
        unit = call("shift_left", const(127 + 23, i32) - shift, const(23, i32))
        number, unit = (Call("reinterpret", (e,), f32) for e in (call("bit_or", code, unit), unit))
        zero = const(point, f32) if points is None else points[n, k // block].cast(f32)
        return (number - (unit + zero) if whole else number - unit - zero) * scales[n, k // block]
    return compute(op.output.shape, cell, name="weights")


def _infer_half(op: Operation) -> Sequence[TensorType]:
    x = operand(op, 0)
    expect_dtype(op, x, x.dtype in (f16, bf16), "half floats")
    return [TensorType(f32, x.shape)]


EXPANDERS = frozenset({"unpack_weights", "widen_weights"})
"""What makes weights in f32 of fewer bits."""

RECORDS = (
    OpRecord("unpack_weights", "view", _infer, _numpy, _compute,
             {"bits": Attr("int", doc="of a code: 2, 4 or 8"), "block": Attr("int", doc="rows that share a scale"),
              "depth": Attr("int", doc="rows of the result"),
              "point": Attr("float", 0.0, "zero point, where none is given")},
             doc="Codes [n, bytes] (low bits first), scales and zero points [n, blocks] → [depth, n] in f32: "
                 "(code - zero point) * scale. Read by products, weights stay packed."),
    OpRecord("widen_weights", "view", _infer_half, lambda a, x: x.astype(np.float32),
             lambda op, x: compute(op.output.shape, lambda *i: x[i].cast(f32), name="weights"),
             doc="Half floats in f32. Read by products, weights stay half floats."),
)
