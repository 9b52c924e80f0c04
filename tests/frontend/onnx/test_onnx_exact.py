"""Corners of ONNX's meaning, compiled, beside NumPy or ONNX's reference: overflow, division, NaN, casts, empty tensors,
ties. Results are compared bit by bit unless a comment says otherwise."""
from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.frontend.onnx.onnx_check import by_reference, one
from tilewright.frontend.onnx import backend

NAN, INF = np.nan, np.inf
LEAST = np.iinfo(np.int32).min
F = np.float32


def arr(values: Any, t: Any = np.float32) -> Any:
    return np.array(values, t)


SPECIAL = arr([NAN, -INF, -2.5, -0.0, 0.0, 1e-40, 0.5, 1.5, 2.5, 3e38, INF])

# (operator, operands, operator set, options, expected)
CASES: list[tuple[str, list[Any], int, dict[str, Any], list[Any]]] = [
    # integers wrap, and division truncates
    ("Add", [arr([2**31 - 1], np.int32), arr([1], np.int32)], 14, {}, [arr([LEAST], np.int32)]),
    ("Mul", [arr([200], np.uint8), arr([3], np.uint8)], 14, {}, [arr([88], np.uint8)]),
    ("Sub", [arr([0], np.uint16), arr([1], np.uint16)], 14, {}, [arr([65535], np.uint16)]),
    ("Div", [arr([-7, 7, -8], np.int64), arr([2, -2, 3], np.int64)], 14, {}, [arr([-3, -3, -2], np.int64)]),
    ("Mod", [arr([-7, 7, -7], np.int32), arr([3, -3, -3], np.int32)], 13, {}, [arr([2, -2, -1], np.int32)]),
    ("Mod", [arr([-7, 7, -7], np.int32), arr([3, -3, -3], np.int32)], 13, {"fmod": 1}, [arr([-1, 1, -1], np.int32)]),
    ("Abs", [arr([LEAST, -5], np.int32)], 13, {}, [arr([LEAST, 5], np.int32)]),
    ("Neg", [arr([-128, 5], np.int8)], 13, {}, [arr([-128, -5], np.int8)]),
    ("BitShift", [arr([200, 3], np.uint8), arr([1, 7], np.uint8)], 11, {"direction": "LEFT"}, [arr([144, 128], np.uint8)]),
    ("ReduceSum", [arr([100, 100, 100], np.int8).astype(np.int32)], 13, {"keepdims": 0}, [arr(300, np.int32)]),
    # NaN wins, signed zeros and infinities stay
    ("Max", [arr([NAN, 1.0, -0.0]), arr([1.0, NAN, -1.0])], 13, {}, [arr([NAN, NAN, -0.0])]),
    ("Min", [arr([NAN, 1.0, INF]), arr([1.0, NAN, -INF])], 13, {}, [arr([NAN, NAN, -INF])]),
    ("ReduceMax", [arr([[1.0, NAN], [-INF, -1.0]])], 13, {"axes": [1], "keepdims": 0}, [arr([NAN, -1.0])]),
    ("ReduceMin", [arr([[1.0, NAN], [INF, -1.0]])], 13, {"axes": [1], "keepdims": 0}, [arr([NAN, -1.0])]),
    ("ReduceSum", [arr([[INF, -INF], [INF, 1.0]])], 11, {"axes": [1], "keepdims": 0}, [arr([NAN, INF])]),
    ("Neg", [arr([0.0, -0.0, INF])], 13, {}, [arr([-0.0, 0.0, -INF])]),
    ("Abs", [arr([-0.0, -INF])], 13, {}, [arr([0.0, INF])]),
    ("Round", [arr([0.5, 1.5, 2.5, -0.5, -1.5, -0.2])], 11, {}, [arr([0.0, 2.0, 2.0, -0.0, -2.0, -0.0])]),
    ("Ceil", [arr([-0.5, 0.2])], 13, {}, [arr([-0.0, 1.0])]),
    ("Sign", [arr([-3.0, 0.0, 2.0])], 13, {}, [arr([-1.0, 0.0, 1.0])]),
    ("Clip", [arr([NAN, -5.0, 5.0]), F(-1), F(1)], 13, {"fixed": [1, 2]}, [arr([NAN, -1.0, 1.0])]),
    ("Relu", [arr([NAN, -1.0, 2.0])], 14, {}, [arr([NAN, 0.0, 2.0])]),
    ("Div", [arr([1.0, -1.0, 0.0]), arr([0.0, 0.0, 0.0])], 14, {}, [arr([INF, -INF, NAN])]),
    ("Equal", [arr([NAN, 0.0]), arr([NAN, -0.0])], 13, {}, [arr([False, True], bool)]),
    ("Where", [arr([True, False], bool), arr([NAN, 1.0]), arr([2.0, -0.0])], 16, {}, [arr([NAN, -0.0])]),
    ("Softmax", [arr([[-INF, 0.0], [1000.0, 1000.0]])], 13, {}, [arr([[0.0, 1.0], [0.5, 0.5]])]),
    # casts
    ("Cast", [arr([-1.9, 1.9, -0.0, 7.0])], 13, {"to": 6}, [arr([-1, 1, 0, 7], np.int32)]),
    ("Cast", [arr([0.0, -0.0, NAN, 2.0])], 13, {"to": 9}, [arr([False, False, True, True], bool)]),
    ("Cast", [arr([300, -1, 256], np.int32)], 13, {"to": 2}, [arr([44, 255, 0], np.uint8)]),
    ("Cast", [arr([65504.0, 65520.0, 1e-8, 2049.0])], 13, {"to": 10}, [arr([65504, INF, 0, 2048], np.float16)]),
    ("Cast", [arr([1.00390625, 1.01171875, 3.4e38])], 13, {"to": 16}, [arr([1, 1.015625, INF], ml_dtypes.bfloat16)]),
    ("Cast", [arr([1000.0, -INF, NAN, 0.3])], 19, {"to": 17}, [arr([448, -448, NAN, 0.3125], ml_dtypes.float8_e4m3fn)]),
    ("Cast", [arr([1e6, NAN, -1e6])], 19, {"to": 19, "saturate": 0}, [arr([INF, NAN, -INF], ml_dtypes.float8_e5m2)]),
    ("QuantizeLinear", [arr([0.25, 0.75, 1.25, -9.0, 400.0]), F(0.5), np.uint8(2)], 13, {},
     [arr([2, 4, 4, 0, 255], np.uint8)]),
    # empty tensors and rank 0
    ("Conv", [np.zeros((0, 2, 5), F), np.ones((4, 1, 1), F)], 11, {"strides": [2], "group": 2}, [np.zeros((0, 4, 3), F)]),
    ("MaxPool", [np.zeros((0, 1, 3), F)], 12, {"kernel_shape": [1], "strides": [2]}, [np.zeros((0, 1, 2), F)]),
    ("ReduceSum", [np.zeros((2, 0), F)], 11, {"axes": [1]}, [np.zeros((2, 1), F)]),
    ("ReduceProd", [np.zeros((2, 0), F)], 11, {"axes": [1]}, [np.ones((2, 1), F)]),
    ("Concat", [np.zeros((2, 0), F), np.ones((2, 3), F)], 13, {"axis": 1}, [np.ones((2, 3), F)]),
    ("MatMul", [np.zeros((2, 0), F), np.zeros((0, 3), F)], 13, {}, [np.zeros((2, 3), F)]),
    ("Relu", [np.zeros((0, 3), F)], 14, {}, [np.zeros((0, 3), F)]), ("Add", [F(1), F(2)], 14, {}, [arr(3.0)]),
    ("Gather", [arr([1.0, 2.0, 3.0]), np.array(-1)], 13, {}, [arr(3.0)]),
    ("Transpose", [arr(5.0)], 13, {}, [arr(5.0)]),
    # steps, duplicates, ties
    ("Slice", [np.arange(6, dtype=F), np.array([-1]), np.array([-100]), np.array([0]), np.array([-2])], 13,
     {"fixed": [1, 2, 3, 4]}, [arr([5.0, 3.0, 1.0])]),
    ("ScatterElements", [arr([0.0, 0, 0]), np.array([1, 1, 1]), arr([1.0, 2, 3])], 18, {}, [arr([0.0, 3, 0])]),
    ("ScatterElements", [arr([1.0, 1, 1]), np.array([1, -2, 1]), arr([1.0, 2, 3])], 18, {"reduction": "add"},
     [arr([1.0, 7, 1])]),
    ("ScatterND", [arr([2.0, 2, 2]), np.array([[0], [0]]), arr([3.0, 5])], 18, {"reduction": "mul"}, [arr([30.0, 2, 2])]),
    ("TopK", [arr([1.0, 3, 3, 1, 3]), np.array([4])], 11, {"fixed": [1], "outputs": 2},
     [arr([3.0, 3, 3, 1]), np.array([1, 2, 4, 0])]),
    ("ArgMax", [arr([1.0, 3, 3, 1])], 13, {"keepdims": 0}, [np.array(1)]),
    ("ArgMin", [arr([1.0, 3, 3, 1])], 13, {"keepdims": 0, "select_last_index": 1}, [np.array(3)]),
    ("CumSum", [arr([1.0, NAN, 2.0]), np.array(0)], 14, {"fixed": [1]}, [arr([1.0, NAN, NAN])]),
    ("Pow", [arr([2, -3, 0], np.int32), arr([3, 3, 0], np.int32)], 13, {}, [arr([8, -27, 1], np.int32)]),
    ("IsInf", [SPECIAL], 10, {"detect_positive": 0}, [arr([False, True] + [False] * 9, bool)]),
]


def same_bits(got: Any, wanted: Any) -> None:
    """Equal, with NaN in the same places and zeros of the same sign."""
    w = np.asarray(wanted)
    assert (got.dtype, got.shape) == (w.dtype, w.shape)
    if w.dtype.kind in "biu":
        np.testing.assert_array_equal(got, w)
        return
    a, b = got.astype(np.float64), w.astype(np.float64)
    np.testing.assert_array_equal(a, b)
    ok = ~np.isnan(b)
    np.testing.assert_array_equal(np.signbit(a[ok]), np.signbit(b[ok]))


@pytest.mark.parametrize("op, arrays, opset, options, wanted", CASES, ids=[f"{c[0]}-{k}" for k, c in enumerate(CASES)])
def test_corner(op: str, arrays: list[Any], opset: int, options: dict[str, Any], wanted: list[Any]) -> None:
    m, feeds = one(op, arrays, opset, **options)
    for got, w in zip(backend.run_native(m, list(feeds.values())), wanted, strict=True):
        same_bits(got, w)


@pytest.mark.parametrize("mode", ["up", "down", "nearest"])
@pytest.mark.parametrize("saturate", [0, 1])
def test_powers_of_two(mode: str, saturate: int) -> None:
    x = arr([0.0, 1.0, 1.4, 1.5, 1.6, -3.0, 2.0**-126, 2.0**-127, 2.0**-127 * 1.5, 3.3e38, INF, NAN])
    m, feeds = one("Cast", [x], 24, to=24, round_mode=mode, saturate=saturate)
    (got,), (wanted,) = backend.run_native(m, [x]), by_reference(m, feeds)
    if mode == "up":  # ONNX's reference takes 2**-127 for a number between two powers
        got, wanted = np.delete(got, 7), np.delete(wanted, 7)
    np.testing.assert_array_equal(got.view(np.uint8), wanted.view(np.uint8))
