"""The graph interpreter: inputs, symbols, control flow; the builder's rewrite."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.core.errors import InternalError, UserError
from tilewright.graph import interpret
from tilewright.graph.builder import GraphBuilder, rewrite
from tilewright.graph.ir import Graph, Operation, Value, tensor_type
from tilewright.graph.verify import verify
from tilewright.loop.ir import Var

N = Var("n")


def square_plus(graph_name: str = "main") -> Graph:
    b = GraphBuilder(graph_name)
    x = b.input("x", tensor_type("f32", (N, 2)))
    y = b.add("mul", [x, x], name="square")
    return b.finish([b.add("add", [y, b.constant(np.array(1, np.float32))], name="y")])


def test_inputs_by_order_and_name() -> None:
    g, x = square_plus(), np.array([[1, 2], [3, 4]], np.float32)
    for given in ([x], {"x": x}):
        out, = interpret.run(g, given)
        assert out.tolist() == [[2, 5], [10, 17]]


def test_input_errors() -> None:
    g, x = square_plus(), np.zeros((2, 2), np.float32)
    for given, message in (([x, x], "takes 1 inputs"), ({"z": x}, "no input 'z'"), ({}, "no array was given for x"),
                           ([x[0]], "the array is float32"), ([x.astype(np.float64)], "float64"), ([x[:, :1]], r"\[2, 1\]")):
        with pytest.raises(UserError, match=message):
            interpret.run(g, given)


def test_one_symbol_has_one_value() -> None:
    b = GraphBuilder()
    x, y = b.input("x", tensor_type("f32", (N,))), b.input("y", tensor_type("f32", (N,)))
    g = b.finish([b.add("add", [x, y])])
    with pytest.raises(UserError, match="%y"):
        interpret.run(g, [np.zeros(2, np.float32), np.zeros(3, np.float32)])


def test_wrong_types_are_found() -> None:
    x, y = Value("x", tensor_type("f32", (2,))), Value("y", tensor_type("f32", (3,)))
    with pytest.raises(InternalError, match="should be"):
        interpret.run(Graph("g", [x], [y], [Operation("relu", [x], {}, [y])]), [np.zeros(2, np.float32)])


def test_observer_sees_every_operation() -> None:
    seen: list[str] = []
    interpret.run(square_plus(), [np.zeros((1, 2), np.float32)], observe=lambda op, arrays: seen.append(op.op))
    assert seen == ["mul", "add"]


def test_if() -> None:
    b = GraphBuilder()
    c, x = b.input("c", tensor_type("bool", ())), b.input("x", tensor_type("f32", (2,)))
    branches = []
    for name, op in (("then", "neg"), ("otherwise", "relu")):
        inner = GraphBuilder(name, b)
        branches.append(inner.finish([inner.add(op, [x])]))
    g = b.finish([b.add("if_", [c], regions=branches)])
    verify(g)
    assert interpret.run(g, [np.array(True), np.array([1, -1], np.float32)])[0].tolist() == [-1, 1]
    assert interpret.run(g, [np.array(False), np.array([1, -1], np.float32)])[0].tolist() == [1, 0]
    with pytest.raises(UserError, match="branches give"):
        b.add("if_", [c], regions=[branches[0], GraphBuilder("none").finish([])])


def _counting(bound: int | None, start: bool, b: GraphBuilder) -> Graph:
    """x += turn, while x < 10; stacks x."""
    x = b.input("x", tensor_type("i64", ()))
    body = GraphBuilder("body", b)
    turn, _ = body.input("turn", tensor_type("i64", ())), body.input("going", tensor_type("bool", ()))
    v = body.input("v", tensor_type("i64", ()))
    new = body.add("add", [v, turn])
    region = body.finish([body.add("less", [new, body.constant(10)]), new, new])
    first = None if bound is None else b.constant(bound)
    return b.finish(b.add_all("loop", [first, b.constant(start), x], regions=[region]))


def test_loop() -> None:
    for bound, start, last, rows in ((100, True, 10, [0, 1, 3, 6, 10]), (3, True, 3, [0, 1, 3]),
                                     (None, True, 10, [0, 1, 3, 6, 10]),
                                     (100, False, 0, [])):
        g = _counting(bound, start, GraphBuilder())
        verify(g)
        final, stacked = interpret.run(g, [np.array(0)])
        assert final == last and stacked.tolist() == rows


def test_loop_with_a_known_number_of_turns() -> None:
    b = GraphBuilder()
    x = b.input("x", tensor_type("f32", (2,)))
    body = GraphBuilder("body", b)
    _, going = body.input("turn", tensor_type("i64", ())), body.input("going", tensor_type("bool", ()))
    v = body.input("v", tensor_type("f32", (2,)))
    region = body.finish([going, body.add("add", [v, x]), v])
    _, rows = b.add_all("loop", [b.constant(4), None, x], regions=[region])
    assert rows.type == tensor_type("f32", (4, 2))


@pytest.mark.parametrize("back", [0, 1])
def test_scan(back: int) -> None:
    b = GraphBuilder()
    s, xs = b.input("s", tensor_type("f32", (2,))), b.input("xs", tensor_type("f32", (2, N)))
    body = GraphBuilder("body", b)
    state, x = body.input("state", tensor_type("f32", (2,))), body.input("x", tensor_type("f32", (2,)))
    new = body.add("add", [state, x])
    outs = b.add_all("scan", [s, xs], {"sequences": 1, "in_axes": (1,), "in_reverse": (back,), "out_axes": (1,)},
                     regions=[body.finish([new, new])])
    g = b.finish(outs)
    verify(g)
    data = np.arange(6, dtype=np.float32).reshape(2, 3)
    last, rows = interpret.run(g, [np.zeros(2, np.float32), data])
    want = np.cumsum(data[:, ::-1] if back else data, 1)
    np.testing.assert_array_equal(rows, want)
    np.testing.assert_array_equal(last, want[:, -1])


# ---- rewriting -------------------------------------------------------------------------------------------------------
def test_rewrite_keeps_an_unchanged_graph() -> None:
    g = square_plus()
    assert rewrite(g, lambda op, b: None) is g


def test_rewrite_replaces_values_and_keeps_output_names() -> None:
    g = square_plus()

    def rule(op: Operation, b: GraphBuilder) -> Any:
        if op.op == "mul":
            return b.add("pow", [op.inputs[0], b.constant(np.array(2, np.float32))], name="square")
        return None
    new = rewrite(g, rule)
    assert [op.op for op in new.operations] == ["pow", "add"] and new.output_names == ("y",)
    verify(new)
    x = np.array([[1, 2]], np.float32)
    np.testing.assert_array_equal(interpret.run(g, [x])[0], interpret.run(new, [x])[0])
    assert [v.name for op in new.operations for v in op.outputs] == ["square", "y"]


def test_rewrite_to_an_input_and_in_regions() -> None:
    b = GraphBuilder()
    c, x = b.input("c", tensor_type("bool", ())), b.input("x", tensor_type("f32", (2,)))
    same = b.add("identity", [x])
    inner = GraphBuilder("then", b)
    then = inner.finish([inner.add("neg", [inner.add("identity", [same])])])
    other = GraphBuilder("otherwise", b)
    g = b.finish([b.add("if_", [c], regions=[then, other.finish([same])])])
    new = rewrite(g, lambda op, b: op.inputs[0] if op.op == "identity" else None)
    verify(new)
    assert [op.op for op in new.operations] == ["if_"]
    assert new.operations[0].regions[1].outputs == (x,)
    assert interpret.run(new, [np.array(True), np.array([1, 2], np.float32)])[0].tolist() == [-1, -2]


def test_rewrite_counts_outputs() -> None:
    with pytest.raises(InternalError, match="gave 2 values for 1"):
        rewrite(square_plus(), lambda op, b: [op.inputs[0], op.inputs[0]] if op.op == "mul" else None)
