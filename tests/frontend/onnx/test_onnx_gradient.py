"""ONNX's Gradient: compiled, beside finite differences and the graph interpreter."""
from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import tilewright
from tests.frontend.onnx.onnx_check import I64, model, value
from tilewright.core.errors import UserError
from tilewright.graph import interpret
from tilewright.graph.ir import Graph

N = helper.make_node
TRAINING = "ai.onnx.preview.training"
RNG = np.random.default_rng(5)


def gradient(inputs: list[str], outputs: list[str], y: str, **names: list[str]) -> Any:
    return N("Gradient", inputs, outputs, domain=TRAINING, y=y, **names)


def trained(nodes: list[Any], inputs: list[Any], outputs: list[str]) -> onnx.ModelProto:
    return model(nodes, inputs, outputs, imports=[helper.make_opsetid(TRAINING, 1)])


def x(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def test_a_step_of_training() -> None:
    """A convolution, a product and a loss: how it changes with each weight."""
    nodes = [N("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]), N("Tanh", ["c"], ["t"]),
             N("Flatten", ["t"], ["f"]), N("Gemm", ["f", "u", "b"], ["z"]),
             N("SoftmaxCrossEntropyLoss", ["z", "labels"], ["loss"]),
             gradient(["w", "u", "b", "x", "labels"], ["dw", "du", "db"], "loss", xs=["w", "u", "b"], zs=["x", "labels"])]
    m = trained(nodes, [value("x", [4, 2, 6, 6]), value("w", [3, 2, 3, 3]), value("u", [27, 5]), value("b", [5]),
                        value("labels", [4], I64)], ["loss", "dw", "du", "db"])
    feed = {"x": x(4, 2, 6, 6), "w": x(3, 2, 3, 3), "u": x(27, 5), "b": x(5), "labels": np.array([0, 4, 2, 2])}
    with tilewright.compile(m, fallback="error") as made:
        loss, *found = made.run(feed)
        assert isinstance(made.graph, Graph)
        for got, want in zip([loss, *found], interpret.run(made.graph, feed), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        for name, g in zip("wub", found, strict=True):
            way = x(*feed[name].shape)
            ends = [float(made.run({**feed, name: feed[name] + np.float32(sign * 1e-2) * way})[0]) for sign in (1, -1)]
            assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float((way * g).sum()), rel=2e-2, abs=2e-3)


def test_the_gradient_elsewhere_and_of_what_is_between() -> None:
    """At other values than those that the names stand for; by a value that is computed; with an output left out."""
    nodes = [N("Mul", ["a", "a"], ["h"]), N("Mul", ["h", "b"], ["y"]), gradient(["p", "b"], ["dp", ""], "y", xs=["a", "b"]),
             gradient(["h", "b"], ["dh", "db"], "y", xs=["h", "b"])]
    m = trained(nodes, [value(n, [2]) for n in "abp"], ["y", "dp", "dh", "db"])
    a, b, p = (np.array(v, np.float32) for v in ([1, 2], [3, 5], [7, 11]))
    with tilewright.compile(m) as made:
        for got, want in zip(made.run({"a": a, "b": b, "p": p}), (a * a * b, 2 * p * b, b, a * a), strict=True):
            np.testing.assert_array_equal(got, want)


def test_what_has_no_gradient_is_named() -> None:
    for nodes, code in (([N("LRN", ["x"], ["y"], size=3), gradient(["x"], ["d"], "y", xs=["x"])], "gradient-missing"),
                        ([N("ArgMax", ["x"], ["y"]), gradient(["x"], ["d"], "y", xs=["x"])], "dtype-mismatch"),
                        ([N("Relu", ["x"], ["y"]), gradient(["x"], ["d"], "y", xs=["x", "y"])], "onnx-invalid-graph"),
                        ([N("Relu", ["x"], ["y"]), gradient(["x"], ["d"], "nothing", xs=["x"])], "onnx-invalid-graph")):
        with pytest.raises(UserError, match=code):
            tilewright.compile(trained(nodes, [value("x", [1, 4, 2, 2])], ["d"]))
