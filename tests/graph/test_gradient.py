"""Gradients beside finite differences, by the interpreter in f64."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tilewright.core.dtype import f64, i64
from tilewright.core.errors import UserError
from tilewright.graph import interpret
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.gradient import gradients
from tilewright.graph.ir import Graph, Value, tensor_type
from tilewright.graph.ops.gradients import BINARY, REDUCE, UNARY
from tilewright.graph.registry import OPS

Make = Callable[..., Value]
RNG = np.random.default_rng(3)
ABOVE_ONE = {"acosh"}
INSIDE_ONE = {"asin", "acos", "atanh"}
POSITIVE = {"log", "log1p", "sqrt", "rsqrt", "reciprocal"}
ATTRS = {"clip": {"min": -0.5, "max": 0.7}, "cast": {"to": f64}}


def inside(name: str, *shape: int) -> Any:
    """Numbers for which an operator is smooth."""
    x = RNG.uniform(0.2, 0.8, shape)
    signs = np.where(RNG.random(shape) < 0.5, -1, 1)
    chosen = x + 1 if name in ABOVE_ONE else x if name in POSITIVE else x * signs if name in INSIDE_ONE else 2 * x * signs
    return np.asarray(chosen)


def graph_of(make: Make, arrays: list[Any]) -> Graph:
    """A weighted sum of what `make(builder, values)` gives, and its gradients by the float inputs."""
    b = GraphBuilder("g")
    xs = [b.input(f"x{k}", tensor_type(f64 if a.dtype.kind == "f" else i64, a.shape)) for k, a in enumerate(arrays)]
    y = make(b, *xs)
    weights = np.cos(np.arange(np.prod([int(d.value) for d in y.shape]))).reshape(  # type: ignore[attr-defined]
        [d.value for d in y.shape])  # type: ignore[attr-defined]
    total = b.add("reduce_sum", [b.add("mul", [y, b.constant(weights, element=f64)])], {"keepdims": False})
    return b.finish([total, *gradients(b.operations, total, [x for x in xs if x.dtype.is_float], b)])


def check(make: Make, arrays: list[Any]) -> None:
    graph, step = graph_of(make, arrays), 1e-5
    _, *found = interpret.run(graph, arrays)
    for k, got in zip([k for k, a in enumerate(arrays) if a.dtype.kind == "f"], found, strict=True):
        want = np.zeros_like(arrays[k])
        for at in np.ndindex(want.shape):
            ends = []
            for sign in (1, -1):
                moved = [a.copy() for a in arrays]
                moved[k][at] += sign * step
                ends.append(interpret.run(graph, moved)[0])
            want[at] = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7, err_msg=f"input {k}")


@pytest.mark.parametrize("name", UNARY)
def test_one_operand(name: str) -> None:
    check(lambda b, x: b.add(name, [x], ATTRS.get(name)), [inside(name, 2, 3)])


def test_gelu_by_tanh() -> None:
    check(lambda b, x: b.add("gelu", [x], {"approximate": "tanh"}), [inside("gelu", 2, 3)])


@pytest.mark.parametrize("name", BINARY)
def test_two_operands_and_broadcasting(name: str) -> None:
    for shapes in (((2, 3), (2, 3)), ((2, 1, 3), (4, 1)), ((), (2,))):
        check(lambda b, x, y: b.add(name, [x, y]), [inside("log" if name == "pow" else "", *s) for s in shapes])


def test_equal_operands_share() -> None:
    x = np.ones(2)
    assert [g.tolist() for g in interpret.run(graph_of(lambda b, x, y: b.add("max", [x, y]), [x, x]), [x, x])[1:]] == [
        pytest.approx(np.cos([0, 1]) / 2)] * 2


@pytest.mark.parametrize("name", REDUCE)
@pytest.mark.parametrize("axes, keepdims", [((1,), True), ((0, 2), False), (None, False)])
def test_reductions(name: str, axes: Any, keepdims: bool) -> None:
    check(lambda b, x: b.add(name, [x], {"axes": axes, "keepdims": keepdims}), [inside("", 2, 3, 2)])


OTHERS: dict[str, tuple[Make, list[Any]]] = {
    "where": (lambda b, x, y: b.add("where", [b.add("less", [x, y]), x, y]), [inside("", 2, 3), inside("", 3)]),
    "reshape": (lambda b, x: b.reshape(x, [3, 2]), [inside("", 2, 3)]),
    "expand": (lambda b, x: b.add("expand", [x], {"shape": (4, 2, 3)}), [inside("", 2, 1)]),
    "transpose": (lambda b, x: b.add("transpose", [x], {"perm": (2, 0, 1)}), [inside("", 2, 3, 4)]),
    "slice": (lambda b, x: b.slice(x, {1: (1, 3, 1)}), [inside("", 2, 4)]),
    "pad": (lambda b, x: b.add("pad", [x], {"before": (1, 0), "after": (0, 2)}), [inside("", 2, 3)]),
    "concat": (lambda b, x, y: b.add("concat", [x, y, x], {"axis": 1}), [inside("", 2, 1), inside("", 2, 3)]),
    "gather": (lambda b, x, i: b.add("gather", [x, i], {"axis": 1}), [inside("", 2, 3, 2), np.array([[0, 2], [-1, 0]])]),
    "gather_elements": (lambda b, x, i: b.add("gather_elements", [x, i], {"axis": 0}),
                        [inside("", 3, 2), np.array([[0, 1], [0, -1]])]),
    "matmul": (lambda b, x, y: b.add("matmul", [x, y]), [inside("", 2, 3), inside("", 4, 3, 2)]),
    "matmul of a transpose": (lambda b, x, y: b.add("matmul", [x, y], {"transpose_b": True}),
                              [inside("", 4, 2, 3), inside("", 2, 3)]),
    "softmax": (lambda b, x: b.add("softmax", [x], {"axis": 0}), [inside("", 3, 2)]),
    "log_softmax": (lambda b, x: b.add("log_softmax", [x], {"axis": 1}), [inside("", 3, 2)]),
    "conv": (lambda b, x, w: b.add("conv", [x, w], {"pads": (1, 0, 1, 1), "strides": (2, 1), "dilations": (1, 2)}),
             [inside("", 2, 3, 6, 5), inside("", 2, 3, 3, 2)]),
    "one value twice": (lambda b, x: b.add("mul", [x, b.add("exp", [x])]), [inside("", 3)]),
    "what does not depend": (lambda b, x, y: b.add("mul", [x, b.add("floor", [x])]), [inside("", 3), inside("", 2)])}


@pytest.mark.parametrize("name", OTHERS)
def test_others(name: str) -> None:
    check(*OTHERS[name])


def test_every_rule_is_tested() -> None:
    ruled = {name for name, rec in OPS.items() if rec.gradient is not None}
    assert ruled == {*UNARY, *BINARY, *REDUCE, *[n for n in OTHERS if n in OPS], "identity"}


def test_a_second_derivative() -> None:
    b = GraphBuilder("g")
    x = b.input("x", tensor_type("f64", (3,)))
    (first,) = gradients(b.operations, b.add("tanh", [x]), [x], b)
    (second,) = gradients(b.operations, first, [x], b)
    a = inside("", 3)
    np.testing.assert_allclose(interpret.run(b.finish([second]), [a])[0], -2 * np.tanh(a) / np.cosh(a) ** 2, rtol=1e-12)


def test_operators_without_a_rule_are_named_at_once() -> None:
    with pytest.raises(UserError, match="gradient-missing") as error:
        graph_of(lambda b, x: b.add("cumsum", [b.add("lrn", [x], {"size": 3})], {"axis": 1}), [inside("", 1, 3, 2, 2)])
    assert "2 operators" in str(error.value) and "cumsum" in str(error.value) and "lrn" in str(error.value)
