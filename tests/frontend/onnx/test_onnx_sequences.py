"""Sequences and optional values: taken apart while a model is read, so that what is left is compiled code over tensors."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tilewright
from tests.frontend.onnx.onnx_check import BOOL, F32, I64, model, ops_of, value
from tilewright.core.errors import UserError
from tilewright.frontend.onnx.importer import import_model, import_onnx

N = helper.make_node
A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((4, 3), np.float32)


def sequence(name: str, element: int = F32) -> onnx.ValueInfoProto:
    return helper.make_tensor_sequence_value_info(name, element, None)


def optional(name: str, shape: Any = (2, 3)) -> onnx.ValueInfoProto:
    return helper.make_value_info(name, helper.make_optional_type_proto(helper.make_tensor_type_proto(F32, shape)))


def body(nodes: list[Any], inputs: list[str], outputs: list[str]) -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", [onnx.ValueInfoProto(name=n) for n in inputs],
                             [onnx.ValueInfoProto(name=n) for n in outputs])


def test_a_sequence_goes_in_and_comes_out() -> None:
    m = model([N("SequenceMap", ["s", "t"], ["y"], body=body([N("Add", ["a", "b"], ["c"])], ["a", "b"], ["c"])),
               N("SequenceInsert", ["y", "t", "at"], ["z"])], [sequence("s"), value("t", [1, 3])], ["z"],
              weights={"at": np.int64(-1)})
    made = tilewright.compile(m, shapes={"s": [(2, 3), (4, 3)]}, fallback="error")
    assert [i.name for i in made.inputs] == ["s[0]", "s[1]", "t"]
    got = made([A, B], B[:1])
    for x, want in zip(got, [A + 1, B[:1], B + 1], strict=True):
        np.testing.assert_array_equal(x, want)
    assert made.verify() == 0.0


def test_structure_must_be_given_and_must_fit() -> None:
    m = model([N("SequenceAt", ["s", "k"], ["y"])], [sequence("s")], ["y"], weights={"k": np.int64(1)})
    with pytest.raises(UserError, match="shape-open"):
        import_onnx(m)
    with pytest.raises(UserError, match="position 1 is outside"):
        import_onnx(m, shapes={"s": [(2,)]})
    made = tilewright.compile(m, shapes={"s": [(2, 3), (4, 3)]})
    np.testing.assert_array_equal(made([A, B]), B)
    for wrong in ([A], A, None):
        with pytest.raises(UserError, match="input-structure"):
            made.run({"s": wrong})


def test_optional_values() -> None:
    m = model([N("OptionalHasElement", ["o"], ["has"]), N("Identity", ["o"], ["same"])], [optional("o")], ["has", "same"])
    has, same = tilewright.compile(m, shapes={"o": (2, 3)})(A)
    assert has and np.array_equal(same, A)
    has, same = tilewright.compile(m, shapes={"o": None})(None)
    assert not has and same is None


def test_a_saved_library_keeps_the_structure(tmp_path: Path) -> None:
    m = model([N("SplitToSequence", ["x"], ["s"], axis=1, keepdims=0)], [value("x", [2, 3])], ["s"])
    made = tilewright.compile(m)
    made.save(tmp_path / "net.so")
    with tilewright.load(tmp_path / "net.so") as loaded:
        for k, x in enumerate(loaded(A)):
            np.testing.assert_array_equal(x, A[:, k])


def test_a_loop_over_sequences_is_read_turn_by_turn() -> None:
    turn = body([N("SequenceInsert", ["s", "x"], ["t"]), N("Identity", ["go"], ["on"]), N("Cast", ["i"], ["f"], to=F32),
                 N("Add", ["f", "x"], ["row"])], ["i", "go", "s"], ["on", "t", "row"])
    m = model([N("SequenceEmpty", [], ["e"]), N("Loop", ["n", "", "e"], ["s", "rows"], body=turn),
               N("ConcatFromSequence", ["s"], ["y"], axis=0)], [value("x", [2, 3])], ["y", "rows"],
              weights={"n": np.int64(3)})
    assert "loop" not in ops_of(import_onnx(m))
    y, rows = tilewright.compile(m, fallback="error")(A)
    np.testing.assert_array_equal(y, np.concatenate([A, A, A]))
    np.testing.assert_array_equal(rows, np.stack([A, A + 1, A + 2]))


def test_branches_of_one_structure_stay_a_branch() -> None:
    then, other = (body([N(op, ["x"], ["v"]), N("SequenceConstruct", ["v", "x"], ["r"])], [], ["r"])
                   for op in ("Neg", "Abs"))
    m = model([N("If", ["c"], ["s"], then_branch=then, else_branch=other)],
              [value("c", [], BOOL), value("x", [2, 3])], ["s"])
    made = tilewright.compile(m, fallback="error")
    assert "if_" in ops_of(made.stages.imported)
    for flag, want in ((True, -A), (False, abs(A))):
        first, second = made(np.array(flag), A)
        np.testing.assert_array_equal(first, want)
        np.testing.assert_array_equal(second, A)


@pytest.mark.parametrize("nodes, message", [
    ([N("Relu", ["s"], ["y"])], "is a sequence, a tensor is needed"),
    ([N("SequenceLength", ["x"], ["y"])], "is no sequence"),
    ([N("SequenceErase", ["s", "far"], ["y"])], "outside a sequence of 1"),
    ([N("ConcatFromSequence", ["e"], ["y"], axis=0)], "one at least"),
    ([N("OptionalGetElement", ["o"], ["y"])], "is empty"),
    ([N("SplitToSequence", ["x", "far"], ["y"], axis=7)], "axis 7")])
def test_what_does_not_fit(nodes: list[Any], message: str) -> None:
    m = model([N("SequenceEmpty", [], ["e"]), *nodes], [sequence("s"), optional("o"), value("x", [2, 3])], ["y"], opset=18,
              weights={"far": np.int64(9)})
    with pytest.raises(UserError, match=message):
        import_onnx(m, shapes={"s": [(2,)], "o": None})


def test_strings_in_sequences() -> None:
    m = model([N("SplitToSequence", ["x"], ["s"], axis=0), N("ConcatFromSequence", ["s"], ["y"], axis=0)],
              [value("x", [2, 1], TensorProto.STRING)], ["s", "y"])
    read = import_model(m)
    assert read.signature.string_outputs == {0, 1, 2} and read.signature.string_inputs == {0}
    s, y = tilewright.compile(m, fallback="error")(np.array([["a"], ["b"]]))
    assert [x.tolist() for x in s] == [[["a"]], [["b"]]] and y.tolist() == [["a"], ["b"]]


def test_positions_that_are_inputs_must_be_known() -> None:
    m = model([N("SequenceConstruct", ["x", "x"], ["s"]), N("SequenceAt", ["s", "k"], ["y"])],
              [value("x", [2, 3]), value("k", [], I64)], ["y"])
    with pytest.raises(UserError, match="must be a constant"):
        import_onnx(m)
