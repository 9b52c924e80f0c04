"""Operators of com.microsoft, compiled, beside ONNX Runtime, whose they are."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from tests.frontend.onnx.onnx_check import by_onnxruntime, model, value
from tilewright.frontend.onnx import backend

R = np.random.default_rng(5)


def f(*shape: int) -> Any:
    return R.standard_normal(shape).astype(np.float32)


def u(*shape: int) -> Any:
    return R.integers(0, 256, shape).astype(np.uint8)


def s(v: float) -> Any:
    return np.float32(v)


Z = np.uint8(120)
X = f(2, 6, 8)
ROW = f(8)

# (operator, operands, number of outputs or their names, places of weights, attributes)
CASES: list[tuple[str, list[Any], list[str], list[int], dict[str, Any]]] = [
    ("FusedMatMul", [f(2, 4, 3), f(2, 5, 4)], ["y"], [], {"transA": 1, "transB": 1, "alpha": 0.5}),
    ("FusedMatMul", [f(3, 2, 4), f(2, 4, 5)], ["y"], [], {"transBatchA": 1}),
    ("FusedGemm", [f(3, 4), f(5, 4), f(5)], ["y"], [], {"transB": 1, "activation": "LeakyRelu", "activation_alpha": 0.2}),
    ("FusedConv", [f(1, 4, 6, 6), f(8, 4, 3, 3), f(8), f(1, 8, 6, 6)], ["y"], [1, 2],
     {"pads": [1, 1, 1, 1], "activation": "Relu"}),
    ("Gelu", [X], ["y"], [], {}), ("FastGelu", [X, ROW], ["y"], [], {}), ("FastGelu", [X], ["y"], [], {}),
    ("BiasGelu", [X, ROW], ["y"], [], {}), ("QuickGelu", [X], ["y"], [], {"alpha": 1.5}),
    ("SkipLayerNormalization", [X, f(2, 6, 8), ROW, f(8), f(8)], ["y", "", "", "sum"], [2, 3, 4], {"epsilon": 1e-5}),
    ("SkipSimplifiedLayerNormalization", [X, f(2, 6, 8), ROW], ["y", "", "", "sum"], [2], {"epsilon": 1e-5}),
    ("EmbedLayerNormalization", [R.integers(0, 9, (2, 6)).astype(np.int32), R.integers(0, 2, (2, 6)).astype(np.int32),
                                 f(9, 8), f(10, 8), f(2, 8), f(8), f(8), np.ones((2, 6), np.int32)], ["y", "count"],
     [2, 3, 4, 5, 6], {}),
    ("QLinearAdd", [u(3, 4), s(0.1), Z, u(4), s(0.2), np.uint8(3), s(0.3), np.uint8(100)], ["y"], [1, 2, 4, 5, 6, 7], {}),
    ("QLinearMul", [u(3, 4), s(0.1), Z, u(4), s(0.2), np.uint8(3), s(0.9), np.uint8(100)], ["y"], [1, 2, 4, 5, 6, 7], {}),
    ("QLinearSigmoid", [u(3, 4), s(0.05), Z, s(1 / 256), np.uint8(0)], ["y"], [1, 2, 3, 4], {}),
    ("QLinearLeakyRelu", [u(3, 4), s(0.05), Z, s(0.04), np.uint8(60)], ["y"], [1, 2, 3, 4], {"alpha": 0.1}),
    ("QLinearSoftmax", [u(3, 4), s(0.05), Z, s(1 / 256), np.uint8(0)], ["y"], [1, 2, 3, 4], {"opset": 13, "axis": -1}),
    ("QLinearGlobalAveragePool", [u(1, 3, 4, 5), s(0.05), Z, s(0.05), Z], ["y"], [1, 2, 3, 4], {}),
    ("QLinearConcat", [s(0.1), Z, u(2, 3), s(0.1), Z, u(2, 3), s(0.2), np.uint8(3)], ["y"], [0, 1, 3, 4, 6, 7], {"axis": 1}),
    ("QGemm", [u(3, 4), s(0.1), Z, u(4, 5), s(0.2), np.uint8(3), R.integers(-9, 9, 5).astype(np.int32), s(9.0),
               np.uint8(100)], ["y"], [1, 2, 4, 5, 7, 8], {}),
    ("MatMulIntegerToFloat", [u(3, 4), u(4, 5), s(0.1), s(0.2), Z, np.uint8(3), f(5)], ["y"], [2, 3, 4, 5, 6], {}),
    ("DynamicQuantizeMatMul", [f(3, 8), u(8, 5), s(0.2), np.uint8(3), f(5)], ["y"], [1, 2, 3, 4], {}),
    ("QuantizeLinear", [f(3, 4), s(0.05), Z], ["y"], [1, 2], {}), ("DequantizeLinear", [u(3, 4), s(0.05), Z], ["y"], [], {}),
    *[("MatMulNBits", [f(3, 40), u(6, 3, 8), np.abs(f(18)), *([u(12)] if zero else [])], ["y"], [1, 2, 3][:2 + zero],
       {"K": 40, "N": 6, "bits": 4, "block_size": 16}) for zero in (0, 1)],
    *[("GatherBlockQuantized", [u(9, 24 * bits // 8), np.array([[0, 3, 8], [-1, 3, 2]]), np.abs(f(9, 2)),
                                *([u(9, 2 * bits // 8)] if zero else [])], ["y"], [0, 2, 3][:2 + zero],
       {"bits": bits, "block_size": 16}) for bits in (4, 8) for zero in (0, 1)],
    *[("GatherBlockQuantized", [R.integers(-8, 8, (9, 48)).astype("int4"), np.array([2, 8]), np.abs(f(9, 3)),
                                *([R.integers(-8, 8, (9, 3)).astype("int4")] if zero else [])], ["y"], [0, 2, 3][:2 + zero],
       {"block_size": 16}) for zero in (0, 1)],
    ("RotaryEmbedding", [f(2, 6, 16), np.array([3]), f(20, 4), f(20, 4)], ["y"], [2, 3], {}),
    ("RotaryEmbedding", [f(2, 2, 6, 8), R.integers(0, 20, (2, 6)), f(20, 4), f(20, 4)], ["y"], [2, 3], {"interleaved": 1}),
    ("Attention", [X, f(8, 24), f(24)], ["y"], [1, 2], {"num_heads": 2}),
    ("Attention", [X, f(8, 24), f(24), np.array([3, 6], np.int32)], ["y"], [1, 2], {"num_heads": 2}),
    ("Attention", [X, f(8, 24), f(24), np.array([[1, 1, 1, 0, 0, 0], [1] * 6], np.int32)], ["y"], [1, 2], {"num_heads": 4}),
    ("Attention", [X, f(8, 24), f(24), None, f(2, 2, 2, 3, 4)], ["y", "present"], [1, 2],
     {"num_heads": 2, "unidirectional": 1}),
    ("MultiHeadAttention", [X, f(2, 5, 8), f(2, 5, 8), f(24), np.array([[1] * 5, [1, 1, 0, 0, 0]], np.int32)], ["y"], [3],
     {"num_heads": 2}),
    ("MultiHeadAttention", [X, f(2, 6, 8), f(2, 6, 8), None, None, f(1, 2, 6, 9), f(2, 2, 3, 4), f(2, 2, 3, 4)],
     ["y", "k", "v"], [], {"num_heads": 2, "scale": 0.3}),
    ("GroupQueryAttention", [f(2, 6, 32), f(2, 6, 16), f(2, 6, 16), None, None, np.array([5, 5], np.int32),
                             np.array([6], np.int32)], ["y", "k", "v"], [], {"num_heads": 4, "kv_num_heads": 2}),
    ("GroupQueryAttention", [f(2, 1, 128), None, None, f(2, 2, 7, 16), f(2, 2, 7, 16), np.array([7, 7], np.int32),
                             np.array([8], np.int32), f(20, 8), f(20, 8)], ["y", "k", "v"], [6, 7, 8],
     {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1, "local_window_size": 4}),
    ("QAttention", [u(2, 6, 8), u(8, 24), f(24), s(0.02), s(0.01), None, Z, np.uint8(128)], ["y"], [1, 2, 3, 4, 6, 7],
     {"num_heads": 2}),
]


@pytest.mark.parametrize("op, arrays, outputs, fixed, attrs", CASES, ids=[f"{c[0]}-{k}" for k, c in enumerate(CASES)])
def test_operator(op: str, arrays: list[Any], outputs: list[str], fixed: list[int], attrs: dict[str, Any]) -> None:
    names = ["" if a is None else f"x{k}" for k, a in enumerate(arrays)]
    given = {n: np.asarray(a) for n, a in zip(names, arrays, strict=True) if n}
    weights = {f"x{k}": given[f"x{k}"] for k in fixed}
    feeds = {n: a for n, a in given.items() if n not in weights}
    node = helper.make_node(op, names, outputs, domain="com.microsoft", **attrs)
    infos = [value(n, a.shape, helper.np_dtype_to_tensor_dtype(a.dtype)) for n, a in feeds.items()]
    m = model([node], infos, [o for o in outputs if o], weights=weights, imports=[helper.make_opsetid("com.microsoft", 1)])
    got, wanted = backend.run_native(m, list(feeds.values())), by_onnxruntime(m, feeds)
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if a.dtype.kind in "iu":  # quantized halves are rounded after a division that differs in its last bit
            assert np.abs(a.astype(int) - b.astype(int)).max() <= 1
        else:
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


def test_simplified_layer_norm_stands_in_the_default_domain() -> None:
    node = helper.make_node("SimplifiedLayerNormalization", ["x", "w"], ["y"], epsilon=1e-5)
    m = model([node], [value("x", X.shape)], ["y"], weights={"w": ROW})
    (got,), (wanted,) = backend.run_native(m, [X]), by_onnxruntime(m, {"x": X})
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_bias_split_gelu() -> None:
    """ONNX Runtime has it for CUDA only."""
    from math import erf
    node = helper.make_node("BiasSplitGelu", ["x", "b"], ["y"], domain="com.microsoft")
    m = model([node], [value("x", X.shape), value("b", ROW.shape)], ["y"], imports=[helper.make_opsetid("com.microsoft", 1)])
    (got,) = backend.run_native(m, [X, ROW])
    left, right = np.split(X + ROW, 2, -1)
    gelu = right * 0.5 * (1 + np.vectorize(erf)(right / np.sqrt(2)))
    np.testing.assert_allclose(got, left * gelu, rtol=1e-4, atol=1e-5)


def test_packed_operands_of_attention() -> None:
    """ONNX Runtime has them for CUDA only: they are the same as operands apart."""
    q, k, v = (f(2, 6, 2, 4) for _ in range(3))

    def run(*arrays: Any) -> Any:
        names = [f"x{n}" for n in range(len(arrays))]
        node = helper.make_node("MultiHeadAttention", names, ["y"], domain="com.microsoft", num_heads=2)
        m = model([node], [value(n, a.shape) for n, a in zip(names, arrays, strict=True)], ["y"],
                  imports=[helper.make_opsetid("com.microsoft", 1)])
        return backend.run_native(m, [np.ascontiguousarray(a) for a in arrays])[0]
    apart = run(*[t.reshape(2, 6, 8) for t in (q, k, v)])
    np.testing.assert_allclose(run(np.stack([q, k, v], 3)), apart, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(q.reshape(2, 6, 8), np.stack([k, v], 3)), apart, rtol=1e-5, atol=1e-6)
