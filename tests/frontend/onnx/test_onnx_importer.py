"""Reading whole models: shapes, symbols, names, order, subgraphs, functions, memory."""
from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.frontend.onnx.onnx_check import BOOL, F32, I64, by_reference, constant, model, one, ops_of, run, same, value
from tilewright.core.errors import UserError
from tilewright.frontend.onnx.importer import import_onnx
from tilewright.graph.infer import elements_of
from tilewright.loop.ir import Span, Var, as_int

N = helper.make_node
X = np.random.default_rng(5).standard_normal((2, 6)).astype(np.float32)


def relu(**shapes: Any) -> Any:
    m = model([N("Relu", ["x"], ["y"], name="act")], [value("x", ["batch", 6])], ["y"])
    return import_onnx(m, **shapes)


# ---- inputs ----------------------------------------------------------------------------------------------------------
def test_a_symbol_stays_one_and_is_shared() -> None:
    m = model([N("Add", ["x", "z"], ["y"])], [value("x", ["batch", 6]), value("z", ["batch", 1])], ["y"])
    g = import_onnx(m)
    assert isinstance(g.inputs[0].shape[0], Var) and g.inputs[0].shape[0] is g.inputs[1].shape[0]
    same(run(m, {"x": X, "z": X[:, :1]}), [X + X[:, :1]])


@pytest.mark.parametrize("shapes", [{"batch": 4}, {"x": (4, 6)}, {"x": ["n", 6], "batch": "n"}])
def test_sizes_are_set_by_name(shapes: Any) -> None:
    size = relu(shapes=shapes).inputs[0].shape[0]
    assert as_int(size) == 4 or isinstance(size, Var) and size.name == "n"


def test_a_whole_shape_sets_the_symbol_everywhere() -> None:
    m = model([N("Add", ["x", "z"], ["y"])], [value("x", ["batch", 6]), value("z", ["batch", 1])], ["y"])
    assert import_onnx(m, shapes={"x": (3, 6)}).inputs[1].type.sizes() == (3, 1)


def test_an_input_without_a_rank_takes_its_shape_from_the_user() -> None:
    m = model([N("Relu", ["x"], ["y"])], [value("x", None)], ["y"])
    assert import_onnx(m, shapes={"x": (2, 3)}).inputs[0].type.sizes() == (2, 3)
    with pytest.raises(UserError, match=r"\[shape-open\]"):
        import_onnx(m)


@pytest.mark.parametrize("given, span", [
    ({"batch": "1..64"}, Span(1, 64)), ({"batch": "2.."}, Span(2)), ({"x": ("4..60%8~16", 6)}, Span(8, 56, 8, 16)),
    ({"x": ("n:1..8", 6)}, Span(1, 8)), ({}, Span(0))])
def test_sizes_have_ranges(given: Any, span: Span) -> None:
    size = relu(shapes=given).inputs[0].shape[0]
    assert isinstance(size, Var) and size.span == span


@pytest.mark.parametrize("shapes, code", [
    ({"height": 3}, "shape-unknown-name"), ({"x": (4, 7)}, "shape-fixed"), ({"x": (4, 6, 1)}, "shape-mismatch"),
    ({"x": (4, 6), "batch": 5}, "shape-mismatch"), ({"batch": -1}, "shape-invalid"), ({"x": "4,6"}, "shape-invalid"),
    ({"batch": 2.5}, "shape-invalid"), ({"batch": "5..2"}, "shape-invalid"), ({"batch": "1..8~9"}, "shape-invalid"),
    ({"batch": "1..8%0"}, "shape-invalid"), ({"x": ("n:1..4", 6), "batch": "n:1..5"}, "shape-mismatch"),
    ({"x": 4}, "shape-invalid"), ({"x": (4, "n")}, "shape-fixed"), ({"x": (4, "1..6")}, "shape-fixed"),
    ({"x": (4, "n:6..6")}, "shape-fixed")])
def test_sizes_that_do_not_fit(shapes: Any, code: str) -> None:
    with pytest.raises(UserError) as e:
        relu(shapes=shapes)
    assert e.value.code == code


def test_a_fixed_size_is_named() -> None:
    with pytest.raises(UserError, match=r"dimension 1 of the input 'x' to 6, n:1\.\.8 is asked for"):
        relu(shapes={"x": ("batch", "n:1..8")})


def test_weights_that_are_listed_as_inputs_are_weights() -> None:
    m = model([N("Add", ["x", "w"], ["y"])], [value("x", [2, 6]), value("w", [6])], ["y"], weights={"w": X[0]}, ir=3)
    assert [v.name for v in import_onnx(m).inputs] == ["x"]


# ---- names and places ------------------------------------------------------------------------------------------------
def test_names_and_places_are_the_models_own() -> None:
    m = model([N("Relu", ["x"], ["a/b"], name="first"), N("Gemm", ["a/b", "w", "c"], ["out:0"])], [value("x", [2, 6])],
              ["out:0"], weights={"w": X.T.copy(), "c": X[0, :2]})
    g = import_onnx(m)
    assert g.output_names == ("out:0",) and g.outputs[0].name == "out:0"
    assert [op.loc for op in g.operations] == ["first", "Gemm_1", "Gemm_1"]
    assert ops_of(g) == ["relu", "matmul", "add"]


def test_outputs_are_values_of_their_own() -> None:
    nodes = [N("Identity", ["x"], ["a"]), N("Identity", ["w"], ["b"]), N("Relu", ["x"], ["c"]), N("Identity", ["c"], ["d"])]
    m = model(nodes, [value("x", [2, 6])], ["a", "b", "c", "d"], weights={"w": X})
    g = import_onnx(m)
    assert len(set(g.outputs)) == 4 and not any(v.is_constant or v in g.inputs for v in g.outputs)
    same(run(m, {"x": X}), by_reference(m, {"x": X}))


def test_nodes_in_any_order() -> None:
    m = model([N("Exp", ["a"], ["y"]), N("Relu", ["x"], ["a"])], [value("x", [2, 6])], ["y"])
    same(run(m, {"x": X}), [np.exp(np.maximum(X, 0))])


def test_the_given_model_is_not_changed() -> None:
    m, _ = one("Add", [X, X], 17, fixed=[1])
    before = m.SerializeToString(deterministic=True)
    import_onnx(m)
    assert m.SerializeToString(deterministic=True) == before


def test_path_bytes_and_proto_give_the_same(tmp_path: Path) -> None:
    m, feeds = one("Add", [X, X], 17, fixed=[1])
    path = tmp_path / "m.onnx"
    path.write_bytes(m.SerializeToString())
    for given in (m, m.SerializeToString(), path, str(path)):
        same(run(given, feeds), [X + X])


def test_weights_are_copied_once(tmp_path: Path) -> None:
    weight = np.ones((1024, 1024), np.float32)
    m = model([N("MatMul", ["x", "w"], ["y"])], [value("x", [1, 1024])], ["y"], weights={"w": weight})
    import_onnx(m)  # whatever is loaded at the first use
    tracemalloc.start()
    g = import_onnx(m)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert g.constants()[0].data is not None and peak < 1.1 * weight.nbytes


# ---- shape arithmetic ------------------------------------------------------------------------------------------------
def test_shape_arithmetic_is_known_while_compiling() -> None:
    """x.reshape(x.shape[0], -1), and its size as data."""
    nodes = [N("Shape", ["x"], ["s"]), N("Gather", ["s", "zero"], ["n"], axis=0), N("Unsqueeze", ["n", "axes"], ["n1"]),
             N("Concat", ["n1", "rest"], ["t"], axis=0), N("Reshape", ["x", "t"], ["y"])]
    m = model(nodes, [value("x", ["batch", 2, 3])], ["y", "t"],
              weights={"zero": np.array(0), "axes": np.array([0]), "rest": np.array([-1])})
    g = import_onnx(m)
    batch = g.inputs[0].shape[0]
    assert g.outputs[0].shape[0] is batch and as_int(g.outputs[0].shape[1]) == 6
    found = elements_of(g.outputs[1])
    assert found is not None and found[0] is batch
    assert import_onnx(m, shapes={"batch": 5}).outputs[0].type.sizes() == (5, 6)


def test_axes_that_depend_on_data_are_refused_by_name() -> None:
    m = model([N("ReduceSum", ["x", "t"], ["y"], name="bad")], [value("x", [2, 6]), value("t", [1], I64)], ["y"])
    with pytest.raises(UserError, match=r"\[onnx-dynamic-value\](.|\n)*where: bad"):
        import_onnx(m)


# ---- subgraphs -------------------------------------------------------------------------------------------------------
def graph(nodes: Any, inputs: Any, outputs: Any, weights: Any = ()) -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", inputs, [onnx.ValueInfoProto(name=o) for o in outputs], weights)


def test_if_with_values_from_around() -> None:
    then = graph([N("Add", ["x", "x"], ["t"])], [], ["t"])
    other = graph([N("Mul", ["x", "w"], ["e"])], [], ["e"], [constant("w", X[0])])
    m = model([N("If", ["c"], ["y"], then_branch=then, else_branch=other)],
              [value("x", [2, 6]), value("c", [], BOOL)], ["y"])
    for c in (True, False):
        feeds = {"x": X, "c": np.array(c)}
        same(run(m, feeds), by_reference(m, feeds))
    assert ops_of(import_onnx(m)) == ["if_"]


def test_if_with_a_known_condition_is_its_branch() -> None:
    then, other = graph([N("Relu", ["x"], ["t"])], [], ["t"]), graph([N("Abs", ["x"], ["e"])], [], ["e"])
    m = model([N("If", ["c"], ["y"], then_branch=then, else_branch=other)], [value("x", [2, 6])], ["y"],
              weights={"c": np.array(False)})
    assert ops_of(import_onnx(m)) == ["abs"]


def test_loop_that_stacks_rows() -> None:
    body = graph([N("Add", ["s", "x"], ["s2"]), N("Identity", ["c"], ["c2"]), N("Relu", ["s2"], ["row"])],
                 [value("i", [], I64), value("c", [], BOOL), value("s", [2, 6])], ["c2", "s2", "row"])
    m = model([N("Loop", ["n", "", "x"], ["last", "rows"], body=body)], [value("x", [2, 6])], ["last", "rows"],
              weights={"n": np.array(3)})
    g = import_onnx(m)
    assert g.outputs[1].type.sizes() == (3, 2, 6)
    last, rows = run(m, {"x": X})
    same([last, rows], [X * 4, np.maximum(np.stack([X * k for k in (2, 3, 4)]), 0)], atol=1e-5)


def test_loop_whose_state_grows() -> None:
    body = graph([N("Concat", ["s", "x"], ["s2"], axis=0), N("Identity", ["c"], ["c2"])],
                 [value("i", [], I64), value("c", [], BOOL), value("s", ["n", 6])], ["c2", "s2"])
    m = model([N("Loop", ["n", "", "x"], ["last"], body=body)], [value("x", [2, 6]), value("n", [], I64)], ["last"])
    same(run(m, {"x": X, "n": np.array(2)}), [np.concatenate([X] * 3)])


def test_scan() -> None:
    body = graph([N("Add", ["s", "e"], ["s2"]), N("Identity", ["s2"], ["row"])], [value("s", [6]), value("e", [6])],
                 ["s2", "row"])
    m = model([N("Scan", ["z", "x"], ["last", "rows"], body=body, num_scan_inputs=1)], [value("x", [2, 6])],
              ["last", "rows"], weights={"z": np.zeros(6, np.float32)})
    same(run(m, {"x": X}), by_reference(m, {"x": X}))


# ---- functions -------------------------------------------------------------------------------------------------------
def scale(name: str = "Scale") -> onnx.FunctionProto:
    """y = leaky_relu(x, alpha) + b, where b may be left out."""
    inner = N("LeakyRelu", ["x"], ["t"])
    inner.attribute.append(onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope"))
    return helper.make_function("mine", name, ["x", "b"], ["y"], [inner, N("Max", ["t", "x"], ["y"])],
                                [helper.make_opsetid("", 17)], ["slope"])


@pytest.mark.parametrize("attrs, slope", [({"slope": 0.5}, 0.5), ({}, 0.01)])
def test_model_local_functions_are_put_in_place(attrs: Any, slope: float) -> None:
    m = model([N("Scale", ["x"], ["y"], domain="mine", name="call", **attrs)], [value("x", [2, 6])], ["y"],
              imports=[helper.make_opsetid("mine", 1)], functions=[scale()])
    g = import_onnx(m)
    assert [op.loc for op in g.operations] == ["call/LeakyRelu_0", "call/Max_1"]
    same(run(m, {"x": X}), [np.maximum(np.where(X < 0, X * np.float32(slope), X), X)])


def test_operators_that_onnx_defines_are_put_in_place() -> None:
    m, feeds = one("MeanVarianceNormalization", [X.reshape(1, 2, 3, 2)], 13)
    same(run(m, feeds), by_reference(m, feeds), atol=1e-5)
    assert len(ops_of(import_onnx(m))) > 3


def test_a_function_that_calls_itself_is_refused() -> None:
    f = helper.make_function("mine", "F", ["x"], ["y"], [N("F", ["x"], ["y"], domain="mine")],
                             [helper.make_opsetid("mine", 1)])
    m = model([N("F", ["x"], ["y"], domain="mine")], [value("x", [2])], ["y"], imports=[helper.make_opsetid("mine", 1)],
              functions=[f])
    with pytest.raises(UserError, match=r"\[onnx-invalid-graph\].*calls itself"):
        import_onnx(m)


def test_functions_that_multiply_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each function calls the next ten times: 11 small functions would be 10^10 nodes."""
    monkeypatch.setattr("tilewright.frontend.onnx.checks.MAX_NODES", 2000)
    mine = helper.make_opsetid("mine", 1)

    def layer(k: int) -> onnx.FunctionProto:
        op, domain = (f"F{k + 1}", "mine") if k < 10 else ("Relu", "")
        nodes = [N(op, [f"t{j}"], [f"t{j + 1}"], domain=domain) for j in range(10)]
        return helper.make_function("mine", f"F{k}", ["t0"], ["t10"], nodes, [mine, helper.make_opsetid("", 17)])
    m = model([N("F0", ["x"], ["y"], domain="mine")], [value("x", [2])], ["y"], imports=[mine],
              functions=[layer(k) for k in range(11)])
    with pytest.raises(UserError, match=r"\[onnx-invalid-graph\].*more than 2000 nodes"):
        import_onnx(m)


def test_weights_may_be_nan_and_infinite() -> None:
    m, feeds = one("Add", [X[0, :2], np.array([np.nan, np.inf], np.float32)], 17, fixed=[1])
    (y,) = run(m, feeds)
    assert np.isnan(y[0]) and np.isinf(y[1])
    assert m.graph.output[0].name == "y0" and F32 == 1
