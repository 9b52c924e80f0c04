"""Model files that are wrong: each has its own error code, and no file whatever leads to anything but a UserError."""
from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.frontend.onnx.onnx_check import F32, I64, constant, model, value
from tilewright.core.errors import UserError
from tilewright.frontend.onnx.importer import import_onnx

N = helper.make_node
IN = [value("x", [2, 3])]


def refused(m: Any, **options: Any) -> UserError:
    with pytest.raises(UserError) as e:
        import_onnx(m, **options)
    return e.value


# ---- files -----------------------------------------------------------------------------------------------------------
def test_files_that_are_missing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "absent.onnx", tmp_path, tmp_path / "pipe", "/dev/zero", "a\0b"):
        assert refused(path).code == "onnx-missing-file"


def test_files_that_are_no_models(tmp_path: Path) -> None:
    whole = small().SerializeToString()
    for k, data in enumerate([b"", b"\x89PNG\r\n\x1a\n" + b"\0" * 64, b"hello", whole[:len(whole) // 2], whole[:-1]]):
        path = tmp_path / f"{k}.onnx"
        path.write_bytes(data)
        assert refused(path).code == "onnx-malformed"
        assert refused(data).code == "onnx-malformed"
    assert refused(42).code == "onnx-malformed"


def test_names_that_are_no_text() -> None:
    data = model([N("Relu", ["x"], ["y"], name="first")], IN, ["y"]).SerializeToString()
    for name in (b"first", b"Relu", b"main"):
        assert refused(data.replace(name, b"\xff" * len(name))).code == "onnx-malformed"


# ---- operators and versions ------------------------------------------------------------------------------------------
def test_all_unknown_operators_are_named_at_once() -> None:
    inner = helper.make_graph([N("Nothing", ["x"], ["t"], name="inside")], "b", [], [onnx.ValueInfoProto(name="t")])
    nodes = [N("Foo", ["x"], ["a"], name="first"), N("Relu", ["a"], ["b"]), N("Foo", ["b"], ["c"]),
             N("FusedThing", ["c"], ["d"], name="odd", domain="com.example"),
             N("If", ["q"], ["y"], then_branch=inner, else_branch=inner)]
    e = refused(model(nodes, [*IN, value("q", [], onnx.TensorProto.BOOL)], ["y"]))
    assert e.code == "onnx-unsupported-op"
    for name in ("Foo", "first", "Foo_2", "FusedThing", "com.example", "odd", "Nothing", "inside"):
        assert name in e.message
    assert "Relu" not in e.message


def test_variants_that_are_not_supported() -> None:
    weights = {k: np.ones(3, np.float32) for k in "abcd"}
    m = model([N("BatchNormalization", ["x", *"abcd"], ["y"], spatial=0, name="bn")], IN, ["y"], weights=weights, opset=7)
    e = refused(m)
    assert e.code == "onnx-unsupported-variant" and e.where == "bn"


@pytest.mark.parametrize("opset", [-1, 10_000])
def test_operator_sets_that_are_not_known(opset: int) -> None:
    e = refused(model([N("Relu", ["x"], ["y"])], IN, ["y"], opset=opset))
    assert e.code == "onnx-unsupported-opset" and "1 to" in e.message


def test_inputs_that_are_no_tensors() -> None:
    m = model([N("Relu", ["x"], ["y"])], [helper.make_tensor_sequence_value_info("x", F32, [1])], ["y"])
    assert refused(m).code == "shape-open"
    assert refused(m, shapes={"x": [(1,)]}).code == "onnx-invalid-graph"
    assert refused(model([N("Relu", ["x"], ["y"])], [value("x", [1], onnx.TensorProto.STRING)], ["y"])).code \
        == "onnx-unsupported-type"
    m.graph.input[0].type.map_type.key_type = 7
    assert refused(m).code == "onnx-unsupported-type"


# ---- graphs ----------------------------------------------------------------------------------------------------------
def attribute(node: onnx.NodeProto, **fields: Any) -> onnx.NodeProto:
    node.attribute.append(onnx.AttributeProto(**fields))
    return node


def typed(kind: str) -> int:
    return int(getattr(onnx.AttributeProto, kind))


INVALID = {
    "a name twice": ([N("Relu", ["x"], ["y"]), N("Abs", ["x"], ["y"])], ["y"]),
    "an input's name again": ([N("Relu", ["x"], ["x"])], ["x"]),
    "a weight's name again": ([N("Relu", ["x"], ["w"])], ["w"]),
    "nothing defines it": ([N("Add", ["x", "ghost"], ["y"])], ["y"]),
    "no such output": ([N("Relu", ["x"], ["y"])], ["z"]),
    "an output twice": ([N("Relu", ["x"], ["y"])], ["y", "y"]),
    "a circle": ([N("Add", ["x", "b"], ["a"]), N("Relu", ["a"], ["b"])], ["b"]),
    "a node that uses itself": ([N("Add", ["x", "a"], ["a"])], ["a"]),
    "an attribute of another type": ([N("Softmax", ["x"], ["y"], axis=0.5)], ["y"]),
    "an attribute that is not known": ([N("Relu", ["x"], ["y"], alpha=1.0)], ["y"]),
    "an attribute twice": ([attribute(N("Softmax", ["x"], ["y"], axis=0), name="axis", i=1, type=typed("INT"))], ["y"]),
    "an attribute of no type": ([attribute(N("Softmax", ["x"], ["y"]), name="axis")], ["y"]),
    "a reference outside a function": ([attribute(N("Softmax", ["x"], ["y"]), name="axis", ref_attr_name="k")], ["y"]),
    "an attribute missing": ([N("Concat", ["x", "x"], ["y"])], ["y"]),
    "too many inputs": ([N("Relu", ["x", "x"], ["y"])], ["y"]),
    "too few inputs": ([N("Add", ["x"], ["y"])], ["y"]),
    "an input left out": ([N("Add", ["x", ""], ["y"])], ["y"]),
    "too many outputs": ([N("Relu", ["x"], ["y", "z"])], ["y"]),
    "more outputs than there are": ([N("Split", ["x"], ["y", "z"], num_outputs=2**40)], ["y"]),
    "no value": ([N("Constant", [], ["y"])], ["y"])}


@pytest.mark.parametrize("what", INVALID)
def test_graphs_that_make_no_sense(what: str) -> None:
    nodes, outputs = INVALID[what]
    m = model(nodes, IN, outputs, weights={"w": np.ones((3, 3), np.float32)}, opset=18)
    assert refused(m).code == "onnx-invalid-graph"


def test_inputs_and_weights_twice() -> None:
    m = model([N("Relu", ["x"], ["y"])], [*IN, *IN], ["y"])
    assert refused(m).code == "onnx-invalid-graph"
    m = model([N("Relu", ["x"], ["y"])], IN, ["y"], weights={"w": np.ones(1)})
    m.graph.initializer.append(constant("w", np.ones(2)))
    assert refused(m).code == "onnx-invalid-graph"


@pytest.mark.parametrize("shape, code", [([4, 4], "shape-mismatch"), ([3, 2], None)])
def test_shapes_that_do_not_fit_name_their_node(shape: list[int], code: str | None) -> None:
    m = model([N("MatMul", ["x", "w"], ["y"], name="product")], IN, ["y"], weights={"w": np.ones(shape, np.float32)})
    if code is None:
        import_onnx(m)
        return
    e = refused(m)
    assert (e.code, e.where) == (code, "product")


def nested(depth: int) -> onnx.ModelProto:
    """If within If; made in place, since protocol buffers are not copied at such depths."""
    m = model([], [*IN, value("q", [], onnx.TensorProto.BOOL)], ["t"])
    g = m.graph
    for level in range(depth):
        node = g.node.add(op_type="If", input=["q"], output=["t"])
        other = node.attribute.add(name="else_branch", type=typed("GRAPH")).g
        other.node.add(op_type="Abs", input=["x"], output=["t"])
        g = node.attribute.add(name="then_branch", type=typed("GRAPH")).g
        for branch in (other, g):
            branch.name = f"level{level}"
            branch.output.add(name="t")
    g.node.add(op_type="Relu", input=["x"], output=["t"])
    return m


def test_subgraphs_may_be_deep_but_not_too_deep() -> None:
    import_onnx(nested(60))
    for depth in (101, 400):
        e = refused(nested(depth))
        assert e.code == "onnx-invalid-graph" and "100 deep" in e.message


@pytest.mark.parametrize("op, weights, attrs", [
    ("Reshape", [[-1, -1]], {}), ("Reshape", [[7]], {}), ("Reshape", [[0, 0, 0]], {}), ("Squeeze", [[5]], {}),
    ("Slice", [[0], [1], [9]], {}), ("Slice", [[0], [1, 2]], {}), ("Slice", [[0], [1], [0], [0]], {}), ("Tile", [[1]], {}),
    ("Expand", [[5, 5]], {}), ("Pad", [[1]], {}), ("Unsqueeze", [[0, 0]], {}), ("Gather", [[9]], {}),
    ("Split", [[1, 7]], {"axis": 0}), ("TopK", [[99]], {}), ("Gather", [[0]], {"axis": 7}), ("Tile", [[127, -2**31]], {}),
    ("TopK", [[-2**63]], {}), ("TopK", [[-0.5]], {}), ("Split", [[1.0, 1.0]], {"axis": 0}),
    ("Slice", [[0], [float("nan")]], {})])
def test_operands_that_do_not_fit(op: str, weights: list[Any], attrs: Any) -> None:
    names = [f"w{k}" for k in range(len(weights))]
    outputs = ["y", "z"] if op in ("Split", "TopK") else ["y"]
    m = model([N(op, ["x", *names], outputs, name="n", **attrs)], IN, ["y"],
              weights={n: np.array(w) for n, w in zip(names, weights, strict=True)})
    assert refused(m).where == "n"


def test_huge_sizes_allocate_nothing() -> None:
    """Results of any size are types only; nothing of that size is made while reading."""
    m = model([N("ConstantOfShape", ["n"], ["a"]), N("Expand", ["a", "m"], ["b"]), N("Tile", ["b", "r"], ["y"])], [], ["y"],
              weights={"n": np.array([2**31]), "m": np.array([2**20, 2**31]), "r": np.array([4, 4])})
    assert import_onnx(m).outputs[0].type.sizes() == (2**22, 2**33)


# ---- anything at all -------------------------------------------------------------------------------------------------
def small() -> onnx.ModelProto:
    weights = {"w": np.ones((4, 3, 3, 3), np.float32), "b": np.ones(4, np.float32), "t": np.array([1, -1]),
               "m": np.ones((1024, 5), np.float32)}
    nodes = [N("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1], strides=[1, 1]), N("Relu", ["c"], ["r"]),
             N("Shape", ["r"], ["s"]), N("Gather", ["s", "zero"], ["n"], axis=0), N("Reshape", ["r", "t"], ["f"]),
             N("Slice", ["f", "zero1", "end", "one"], ["g"]), N("MatMul", ["g", "m"], ["y"])]
    weights |= {"zero": np.array(0), "zero1": np.array([0]), "end": np.array([1024]), "one": np.array([1])}
    return model(nodes, [value("x", [1, 3, 16, 16])], ["y", "n"], weights=weights)


def test_damaged_models_are_refused_or_read() -> None:
    """Bytes changed, cut out, doubled: a Graph or a UserError, nothing else."""
    import_onnx(small())
    whole = small()
    whole.graph.initializer[3].ClearField("raw_data")
    whole.graph.initializer[3].dims[0] = 0
    data, rng, refusals = whole.SerializeToString(), random.Random(7), set()
    for _ in range(1500):
        b = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(b))
            few = rng.randint(1, 9)
            b[at:at + few] = rng.choice([b"", bytes([rng.randrange(256)]) + b[at + 1:at + few], b[at:at + few] * 2])
        try:
            import_onnx(bytes(b))
        except UserError as e:
            refusals.add(e.code)
    assert {"onnx-malformed", "onnx-invalid-graph", "onnx-unsupported-op"} <= refusals


def test_wrong_attribute_values_are_refused_or_read() -> None:
    """Every integer attribute and shape operand of the small model set to odd values."""
    base, values = small(), [-(2**63), -2, -1, 0, 1, 7, 2**31, 2**63 - 1]
    for k, node in enumerate(base.graph.node):
        for j, a in enumerate(node.attribute):
            for v in values:
                m = onnx.ModelProto()
                m.CopyFrom(base)
                got = m.graph.node[k].attribute[j]
                if a.ints:
                    got.ints[0] = v
                else:
                    got.i = v
                try:
                    import_onnx(m)
                except UserError as e:
                    assert e.where
    for k, t in enumerate(base.graph.initializer):
        if t.data_type != I64:
            continue
        for v in values:
            m = onnx.ModelProto()
            m.CopyFrom(base)
            m.graph.initializer[k].raw_data = np.full(tuple(t.dims), v, np.int64).tobytes()
            try:
                import_onnx(m)
            except UserError as e:
                assert e.where
