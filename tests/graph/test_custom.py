"""Operators of the user's own: read from a model, compiled with what is around them, and what is said of wrong ones."""
# mypy: ignore-errors
# ruff: noqa: F821, UP037 (sizes are names in quotes)
from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import tilewright
from tilewright.core.errors import UserError
from tilewright.tensor.compute import compute, select, sigmoid
from tilewright.tensor.script import f32, kernel


@kernel
def running_sum(x: f32["rows", "n"], y: f32["rows", "n"]):
    for i in range(rows):
        for j in range(n):
            y[i, j] = x[i, j] + (y[i, j - 1] if j > 0 else 0.0)


def swish(x, beta=1.0, names=()):
    return compute(x.shape, lambda *i: x[i] * sigmoid(x[i] * beta), name="swish")


def min_and_max(x, floor=None):
    low = compute(x.shape, lambda *i: x[i] if floor is None else select(x[i] < floor[i], floor[i], x[i]), name="low")
    return low, compute(x.shape, lambda *i: -x[i], name="high")


OPS = [tilewright.custom_op("mine::Swish", swish), tilewright.custom_op("mine::RunningSum", running_sum),
       tilewright.custom_op("mine::Two", min_and_max)]


def model(nodes, outputs, shape=(4, 9)):
    graph = helper.make_graph(nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
                              [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def chain():
    return model([helper.make_node("Exp", ["x"], ["e"]), helper.make_node("Swish", ["e"], ["s"], domain="mine", beta=2.0),
                  helper.make_node("RunningSum", ["s"], ["r"], domain="mine"), helper.make_node("Neg", ["r"], ["y"])], ["y"])


def expected(x):
    e = np.exp(x)
    return -np.cumsum(e / (1 + np.exp(-2 * e)), 1)


X = np.random.default_rng(0).standard_normal((4, 9)).astype(np.float32)


def test_a_model_with_operators_of_its_own(tmp_path):
    with tilewright.compile(chain(), custom_ops=OPS, verify=True) as made:
        np.testing.assert_allclose(made(X), expected(X), rtol=1e-5)
        made.save(tmp_path / "net.so")
    with tilewright.load(tmp_path / "net.so") as loaded:  # the operators are in the library
        np.testing.assert_allclose(loaded(X), expected(X), rtol=1e-5)


def test_several_results_and_an_operand_that_is_left_out():
    with tilewright.compile(model([helper.make_node("Two", ["x", ""], ["a", "b"], domain="mine")], ["a", "b"]),
                            custom_ops=OPS) as made:
        a, b = made(X)
        np.testing.assert_array_equal(a, X)
        np.testing.assert_array_equal(b, -X)


def test_without_them_the_operators_are_unknown():
    with pytest.raises(UserError, match="RunningSum") as raised:
        tilewright.compile(chain())
    assert raised.value.code == "onnx-unsupported-op"


def test_what_is_no_operator():
    with pytest.raises(UserError, match="domain::Name"):
        tilewright.custom_op("Swish", swish)
    for build, word in ((lambda x: 3, "no tensor"), (lambda x: x, "one of its operands")):
        with pytest.raises(UserError, match=word) as raised:
            tilewright.compile(model([helper.make_node("F", ["x"], ["y"], "f", domain="mine")], ["y"]),
                               custom_ops=[tilewright.custom_op("mine::F", build)])
        assert raised.value.code == "custom-op-invalid" and raised.value.where


def test_shapes_follow_from_the_function():
    with pytest.raises(UserError, match="rank") as raised:
        tilewright.compile(model([helper.make_node("RunningSum", ["x"], ["y"], "sums", domain="mine")], ["y"], (3, 4, 5)),
                           custom_ops=OPS)
    assert "sums" in raised.value.where


def test_a_model_file_holds_no_code():
    """An attribute that is a graph is no argument of a Python function."""
    body = helper.make_graph([], "g", [], [])
    node = helper.make_node("Swish", ["x"], ["y"], domain="mine", names=body)
    with pytest.raises(UserError) as raised:
        tilewright.compile(model([node], ["y"]), custom_ops=OPS)
    assert raised.value.code == "onnx-unsupported-variant"
