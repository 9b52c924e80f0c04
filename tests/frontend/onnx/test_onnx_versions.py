"""Operators in the forms of older versions: attributes that became inputs, meanings that changed."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.frontend.onnx.onnx_check import by_onnxruntime, by_reference, one, run, same

X = np.random.default_rng(3).standard_normal((2, 3, 4, 4)).astype(np.float32)
ROW = np.abs(X[0, :, 0, 0]) + 0.5
ints = np.array

# (operator, operands, version of the operator set, options)
CASES: list[tuple[str, list[Any], int, dict[str, Any]]] = [
    ("Clip", [X], 7, {"min": -0.5, "max": 0.5}), ("Clip", [X], 10, {"max": 0.5}), ("Clip", [X], 9, {}),
    ("Clip", [X, np.float32(-0.5), np.float32(0.5)], 11, {"fixed": [1, 2]}),
    ("Clip", [X, None, np.float32(0.5)], 13, {"fixed": [2]}), ("Clip", [X, np.float32(0), np.float32(1)], 13, {}),
    ("Slice", [X], 9, {"starts": [1, -3], "ends": [2, 100], "axes": [1, 3]}),
    ("Slice", [X], 7, {"starts": [1], "ends": [2]}),
    ("Slice", [X, ints([3]), ints([-100]), ints([-1]), ints([-2])], 10, {"fixed": [1, 2, 3, 4]}),
    ("Slice", [X, ints([0, 1]), ints([1, 3])], 13, {"fixed": [1, 2]}),
    ("Squeeze", [X[:1]], 7, {"axes": [0]}), ("Squeeze", [X[:1, :, :1]], 12, {}),
    ("Squeeze", [X[:1], ints([0])], 13, {"fixed": [1]}),
    ("Unsqueeze", [X], 7, {"axes": [0, 5]}), ("Unsqueeze", [X, ints([-1, 1])], 13, {"fixed": [1]}),
    ("Split", [X], 7, {"axis": 2, "outputs": 2}), ("Split", [X], 11, {"axis": 1, "split": [1, 2], "outputs": 2}),
    ("Split", [X, ints([1, 3])], 13, {"axis": 3, "outputs": 2, "fixed": [1]}),
    ("Split", [X], 18, {"axis": 1, "num_outputs": 2, "outputs": 2}),
    ("Pad", [X], 7, {"pads": [0, 0, 1, 2, 0, 0, 2, 1], "value": 1.5}),
    ("Pad", [X], 10, {"pads": [0] * 7 + [3], "mode": "edge"}),
    ("Pad", [X, ints([0, 0, 1, 2, 0, 0, 2, 1]), np.float32(2)], 11, {"fixed": [1, 2]}),
    ("Pad", [X, ints([1, 2]), None, ints([-1])], 18, {"fixed": [1, 3], "mode": "reflect"}),
    ("Pad", [X, ints([0, 0, 0, -1, 0, 0, 2, -2])], 13, {"fixed": [1]}),
    ("Softmax", [X], 7, {}), ("Softmax", [X], 11, {"axis": 2}), ("Softmax", [X], 12, {"axis": -1}),
    ("Softmax", [X], 13, {"axis": 1}), ("LogSoftmax", [X], 11, {"axis": 0}), ("LogSoftmax", [X], 13, {}),
    ("Hardmax", [X], 11, {"axis": 2}), ("Hardmax", [X], 13, {"axis": 1}),
    ("ReduceSum", [X], 7, {"axes": [1, -1], "keepdims": 0}), ("ReduceSum", [X, ints([1])], 13, {"fixed": [1]}),
    ("ReduceMean", [X], 13, {"axes": [2, 3]}), ("ReduceMean", [X, ints([2, 3])], 18, {"fixed": [1], "keepdims": 0}),
    ("ReduceMax", [X], 11, {}), ("ReduceMin", [X, ints([0])], 18, {"fixed": [1]}), ("ReduceProd", [X], 8, {"axes": [1]}),
    ("ReduceL1", [X], 7, {"axes": [1]}), ("ReduceL2", [X], 13, {"axes": [3]}), ("ReduceLogSumExp", [X], 11, {"axes": [1]}),
    ("ReduceSumSquare", [X], 11, {"axes": [1]}), ("ReduceLogSum", [np.abs(X)], 11, {"axes": [1]}),
    ("BatchNormalization", [X, ROW, ROW, ROW, ROW], 7, {}),
    ("BatchNormalization", [X, ROW, ROW, ROW, ROW], 9, {"epsilon": 0.1}),
    ("BatchNormalization", [X, ROW, ROW, ROW, ROW], 15, {"fixed": [1, 2, 3, 4]}),
    ("Dropout", [X], 7, {}), ("Dropout", [X], 10, {"ratio": 0.3}), ("Dropout", [X, np.float32(0.5)], 13, {}),
    ("TopK", [X], 9, {"axis": 1, "k": 2, "outputs": 2}), ("TopK", [X, ints([3])], 10, {"fixed": [1], "outputs": 2}),
    ("TopK", [X, ints([2])], 11, {"fixed": [1], "outputs": 2, "largest": 0, "axis": 2}),
    ("Flatten", [X], 7, {"axis": 2}), ("Flatten", [X], 13, {"axis": -1}), ("Flatten", [X], 9, {"axis": 0}),
    ("Reshape", [X, ints([0, -1])], 7, {"fixed": [1]}),
    ("Reshape", [X[:0], ints([0, 3])], 14, {"fixed": [1], "allowzero": 1}),
    ("Cast", [X], 7, {"to": 7}), ("Cast", [X], 13, {"to": 10}), ("Gemm", [X[0, 0], X[0, 1], ROW[:1]], 7, {"beta": 0.5}),
    ("Gemm", [X[0, 0], X[0, 1], X[0, 2]], 13, {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", [X[0, 0], X[0, 1], X[0, 2]], 11, {"transB": 1, "alpha": 0.5, "beta": 2.0, "fixed": [1, 2]}),
    ("Gemm", [X[0, 0], X[0, 1]], 11, {"fixed": [1]}), ("MaxPool", [X], 7, {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("MaxPool", [X], 12, {"kernel_shape": [2, 2], "ceil_mode": 1, "dilations": [1, 2], "strides": [2, 1]}),
    ("MaxPool", [X], 12, {"kernel_shape": [3, 3], "strides": [2, 1], "auto_pad": "SAME_LOWER"}),
    ("AveragePool", [X], 7, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", [X], 11, {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER", "strides": [3, 2]}),
    ("Scatter", [X[0, 0], ints([[0, 1]]), np.ones((1, 2), np.float32)], 9, {"axis": 1}),
    ("Constant", [], 12, {"value_floats": [1.0, 2.0]}), ("Constant", [], 12, {"value_int": 3}),
    ("LpNormalization", [X], 7, {"axis": 1, "p": 1}), ("LpNormalization", [X], 22, {"axis": 2}),
    ("GlobalLpPool", [X], 7, {"p": 3}), ("SpaceToDepth", [X], 7, {"blocksize": 2}),
    ("GroupNormalization", [np.concatenate([X, X], 1), ROW[:2], ROW[:2]], 18, {"num_groups": 2}),
    ("GroupNormalization", [X, ROW, ROW], 21, {"num_groups": 1}),
    ("Mean", [X, X[0], X[0, 0]], 8, {}), ("Max", [X], 8, {}), ("Pow", [X[:, :1], ints([2], np.int64)], 12, {}),
    ("Pow", [ints([1, 2, 3], np.int64), np.float32(0.5)], 12, {}), ("Upsample", [X], 7, {"scales": [1.0, 1.0, 2.0, 2.0]}),
    ("Upsample", [X, ints([1, 1, 2, 3], np.float32)], 9, {"fixed": [1]}),
    ("Upsample", [X, ints([1, 1, 2, 2], np.float32)], 9, {"fixed": [1], "mode": "linear"}),
    ("Resize", [X, ints([1, 1, 2, 0.5], np.float32)], 10, {"fixed": [1]}),
    ("Resize", [X, None, ints([1, 1, 2, 2.5], np.float32)], 13, {"fixed": [2]}),
    ("Resize", [X, None, None, ints([2, 3, 7, 3])], 13, {"fixed": [3], "mode": "linear"}),
    ("Resize", [X, ints([], np.float32), ints([], np.float32), ints([2, 3, 8, 8])], 11,
     {"fixed": [1, 2, 3], "mode": "cubic"}),
    ("Resize", [X, None, ints([2, 2], np.float32)], 18, {"fixed": [2], "axes": [2, 3], "nearest_mode": "floor",
                                                      "coordinate_transformation_mode": "asymmetric"}),
]
PEER = {"BatchNormalization", "Dropout", "LpNormalization", "Pad", "Upsample", "Scatter", "Hardmax", "Resize", "Softmax",
        "LogSoftmax", "AveragePool", "MaxPool", "GlobalLpPool"}
"""Compared with ONNX Runtime: the reference evaluator has no old form of these, or gets it wrong."""


@pytest.mark.parametrize("op, arrays, opset, options", CASES, ids=[f"{c[0]}-{c[2]}-{k}" for k, c in enumerate(CASES)])
def test_form(op: str, arrays: list[Any], opset: int, options: dict[str, Any]) -> None:
    m, feeds = one(op, arrays, opset, **options)
    wanted = by_onnxruntime(m, feeds) if op in PEER else by_reference(m, feeds)
    same(run(m, feeds), wanted)


def test_dropout_keeps_everything_and_its_mask_says_so() -> None:
    m, feeds = one("Dropout", [X], 12, outputs=2)
    y, mask = run(m, feeds)
    same([y], [X])
    assert mask.dtype == bool and mask.shape == X.shape and mask.all()


def test_size_one_range_of_float() -> None:
    m, feeds = one("Range", [np.float32(1), np.float32(2.5), np.float32(0.5)], 11, fixed=[0, 1, 2])
    same(run(m, feeds), by_reference(m, feeds))
