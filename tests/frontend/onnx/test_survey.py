"""Coverage: every node of a model as compiled, on the host or missing, whatever the others are."""
from __future__ import annotations

from typing import Any

from onnx import TensorProto, helper

import tilewright
from tests.frontend.onnx.onnx_check import BOOL, model, value
from tilewright.frontend.onnx.survey import survey

N = helper.make_node


def graph(nodes: list[Any], outputs: list[str]) -> Any:
    return helper.make_graph(nodes, "g", [], [value(o, None) for o in outputs])


def test_every_node_at_once() -> None:
    nodes = [N("Relu", ["x"], ["a"], name="act"), N("Frobnicate", ["a"], ["b"], name="odd", domain="my.ops"),
             N("Add", ["b", "a"], ["c"], name="after"), N("Frobnicate", ["c"], ["d"], name="odd2", domain="my.ops"),
             N("StringConcat", ["s", "s"], ["t"], name="join"), N("Reshape", ["x", "t"], ["r"], name="wrong"),
             N("If", ["flag"], ["e"], name="if", then_branch=graph([N("Neg", ["x"], ["n"], name="then")], ["n"]),
               else_branch=graph([N("Unheard", ["x"], ["m"], name="else")], ["m"]))]
    m = model(nodes, [value("x", ["batch", 4]), value("s", [2], TensorProto.STRING), value("flag", [], BOOL)],
              ["c", "d", "t", "r", "e"], opset=20, imports=[helper.make_opsetid("my.ops", 1)])
    found = {r.node: r for r in survey(m)}
    assert {k: r.status for k, r in found.items()} == {
        "act": "compiled", "odd": "missing", "after": "compiled", "odd2": "missing", "join": "host", "wrong": "missing",
        "if": "missing", "then": "compiled", "else": "missing"}
    assert found["act"].dtypes == "f32" and found["join"].dtypes == "string" and found["odd"].operator == "my.ops.Frobnicate"
    assert "characters" in found["join"].reason and "is of strings" in found["wrong"].reason
    assert found["after"].reason == "its operator is known, its operands are not"


def test_functions_and_what_is_not_reached() -> None:
    f = helper.make_function("my.ops", "Twice", ["v"], ["w"], [N("Add", ["v", "v"], ["w"], name="add")],
                             [helper.make_opsetid("", 17)])
    m = model([N("Twice", ["x"], ["y"], name="call", domain="my.ops"),
               N("If", ["yes"], ["z"], name="if", then_branch=graph([N("Neg", ["x"], ["n"], name="taken")], ["n"]),
                 else_branch=graph([N("Abs", ["x"], ["m"], name="left")], ["m"]))],
              [value("x", [2])], ["y", "z"], weights={"yes": True}, imports=[helper.make_opsetid("my.ops", 1)],
              functions=[f])
    found = {r.node: (r.status, r.reason) for r in survey(m)}
    assert found == {"call": ("compiled", ""), "if": ("compiled", ""), "taken": ("compiled", ""),
                     "left": ("compiled", "not reached: its operator is known"), "Twice/add": ("compiled", "")}


def test_operators_that_passes_take_apart_are_compiled() -> None:
    m = model([N("NonZero", ["x"], ["p"], name="places"), N("Unique", ["x"], ["u"], name="unique")], [value("x", [3, 2])],
              ["p", "u"])
    assert {(r.node, r.status) for r in survey(m)} == {("places", "compiled"), ("unique", "compiled")}
    with tilewright.compile(m, fallback="error") as made:
        assert not made.host_nodes
