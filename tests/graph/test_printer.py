"""Print → parse is the identity; errors of the parser name the place; the verifier finds broken graphs."""
from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tilewright.core.errors import InternalError, UserError
from tilewright.graph import interpret
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.ir import Graph, Operation, Value, tensor_type
from tilewright.graph.parser import parse_graph
from tilewright.graph.printer import print_graph, print_with_data
from tilewright.graph.verify import verify
from tilewright.loop.ir import Var


def classifier() -> Graph:
    b, n = GraphBuilder("net"), Var("batch")
    x = b.input("x", tensor_type("f32", (n, 3, 8, 8)))
    w = b.constant(np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32), "conv1.weight")
    b.loc = 'node "conv1"'
    y = b.add("conv", [x, w], {"pads": (1, 1, 1, 1), "strides": (2, 2)}, name="conv/out")
    y = b.add("clip", [y], {"min": 0, "max": 6.0})
    y = b.add("reduce_mean", [y], {"axes": (2, 3), "keepdims": False})
    half = b.add("slice", [y], {"starts": (0, 1), "sizes": (n, 2)})
    y = b.add("add", [half, b.constant(np.array([0.1, -np.inf], np.float32))], name="add")
    y = b.add("reshape", [y], {"shape": (n * 2,)})
    values, at = b.add_all("topk", [b.add("cast", [y], {"to": "f16"})], {"k": 1})
    return b.finish([values, at], ["scores", "odd name"])


def counting_loop() -> Graph:
    """Doubles a vector until its first element passes a limit; stacks what it was."""
    b = GraphBuilder()
    x, limit = b.input("x", tensor_type("f32", (2,))), b.input("limit", tensor_type("f32", ()))
    body = GraphBuilder("body", b)
    body.input("turn", tensor_type("i64", ()))
    body.input("going", tensor_type("bool", ()))
    v = body.input("v", tensor_type("f32", (2,)))
    doubled = body.add("mul", [v, body.constant(np.array(2, np.float32))])
    first = body.reshape(body.slice(doubled, {0: (0, 1, 1)}), ())
    region = body.finish([body.add("less", [first, limit]), doubled, v])
    last, rows = b.add_all("loop", [b.constant(100), b.constant(True), x], regions=[region])
    return b.finish([last, rows])


@pytest.mark.parametrize("make", [classifier, counting_loop])
def test_print_parse_is_the_identity(make: object) -> None:
    graph = make()  # type: ignore[operator]
    text, data = print_with_data(graph)
    again = parse_graph(text, data)
    assert print_graph(again) == text
    verify(again)
    assert again.output_names == graph.output_names
    sizes = [[2 if isinstance(d, Var) else d.value for d in v.shape] for v in graph.inputs]
    inputs = [np.random.default_rng(1).uniform(1, 2, s).astype(np.float32) if s else np.array(30, np.float32) for s in sizes]
    for a, b in zip(interpret.run(graph, inputs), interpret.run(again, inputs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_element_type_comes_back() -> None:
    b = GraphBuilder()
    arrays = [np.array([1, -2, 3]).astype(t) for t in (np.int8, np.int64, np.float16, np.float32, np.float64,
                                                     ml_dtypes.bfloat16)]
    arrays += [np.array([0.1, np.nan, -np.inf, 1e-45, -0.0], np.float32), np.array([True, False]), np.array(5),
               np.zeros((0, 3)), np.array([2**63], np.uint64)]
    values = [b.constant(a) for a in arrays]
    again = parse_graph(print_graph(b.finish(values)))
    for a, v in zip(arrays, again.outputs, strict=True):
        assert v.data is not None and (v.data.dtype, v.data.shape) == (a.dtype, a.shape)
        assert v.data.tobytes() == a.tobytes()


def test_large_constants_need_their_data() -> None:
    text, data = print_with_data(classifier())
    assert len(data) == 1 and "sha256:" in text
    with pytest.raises(UserError, match="was not given"):
        parse_graph(text)
    with pytest.raises(UserError, match="is not that of"):
        parse_graph(text, {k: v + 1 for k, v in data.items()})


@pytest.mark.parametrize(("text", "message"), [
    ("graph g() -> (%y) {\n}", "%y is not defined"),
    ("graph g(%x: f32[2]) -> (%y) {\n %y = relu(%z) : f32[2]\n}", "%z is not defined"),
    ("graph g(%x: f32[2]) -> (%x) {\n %x = relu(%x) : f32[2]\n}", "defined twice"),
    ("graph g(%x: f32[2]) -> (%y) {\n %y = rleu(%x) : f32[2]\n}", "did you mean 'relu'"),
    ("graph g(%x: f32[2]) -> (%y) {\n %y = relu(%x) {a=1} : f32[2]\n}", "no attribute 'a'"),
    ("graph g(%x: q32[2]) -> (%x) {\n}", "no element type"),
    ("graph g(%x: f32[2]) -> (%y) {\n %y = constant i64[3] [1, 2]\n}", "3 elements, 2"),
    ("graph g(%x: f32[2] -> (%x) {\n}", "expected ','"), ("graph g() -> () {\n ? }", "unexpected character")])
def test_parser_errors(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_graph(text)


def test_verifier_accepts_and_refuses() -> None:
    verify(classifier())
    verify(counting_loop())
    x = Value("x", tensor_type("f32", (2,)))
    y = Value("y", tensor_type("f32", (2,)))
    relu = Operation("relu", [x], {}, [y])
    for graph, message in (
            (Graph("g", [], [y], [relu]), "before it is defined"),
            (Graph("g", [x], [y], [relu, relu]), "defined twice"),
            (Graph("g", [x], [Value("z", y.type)], [relu]), "output %z is not defined"),
            (Graph("g", [x], [y], [Operation("relu", [x], {"k": 1}, [y])]), "attributes"),
            (Graph("g", [x], [y], [Operation("rleu", [x], {}, [y])]), "no such operator"),
            (Graph("g", [x], [], [Operation("relu", [x], {}, [Value("w", tensor_type("f32", (3,)))])]), "inference gives"),
            (Graph("g", [x], [], [Operation("add", [x], {}, [Value("w", y.type)])]), "inference fails")):
        with pytest.raises(InternalError, match=message):
            verify(graph)
