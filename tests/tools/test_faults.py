"""Planted faults are found: a pass that changes the meaning, a kernel that computes something else; small models of them."""
from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from typer.testing import CliRunner

import tilewright
from tests.frontend.onnx.onnx_check import model, value
from tilewright.graph import pipeline
from tilewright.graph.builder import rewrite
from tilewright.graph.ir import Graph
from tilewright.graph.registry import OPS
from tilewright.tools import bisect, reduce
from tilewright.tools.commands import app

N = helper.make_node
W = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)


def network() -> onnx.ModelProto:
    """Three products with something between them, of which one is the sine."""
    nodes = [N("MatMul", ["x", "w"], ["a"], name="first"), N("Relu", ["a"], ["b"]), N("Softmax", ["b"], ["c"], name="soft"),
             N("MatMul", ["c", "w"], ["d"], name="second"), N("Sin", ["d"], ["e"], name="sine"), N("Sub", ["e", "c"], ["f"]),
             N("MatMul", ["f", "w"], ["g"], name="third"), N("ReduceMax", ["g"], ["h"], keepdims=0), N("Neg", ["g"], ["y"])]
    return model(nodes, [value("x", [4, 6])], ["y", "h"], weights={"w": W})


def plant_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """sin x becomes 1.1 sin x, in compiled code alone."""
    record = OPS.get("sin")
    wrong = dataclasses.replace(record, compute=lambda op, x: _scaled(record, op, x))
    monkeypatch.setitem(OPS._entries, "sin", wrong)


def _scaled(record: Any, op: Any, x: Any) -> Any:
    from tilewright.tensor.compute import compute
    right = record.compute(op, x)
    return compute(op.output.shape, lambda *i: right[i] * 1.1, name="wrong")


def plant_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that swaps the operands of subtractions."""
    def swap_operands(graph: Graph) -> Graph:
        return rewrite(graph, lambda op, b: b.again(op, op.inputs[::-1]) if op.op == "sub" else None)
    monkeypatch.setattr(pipeline, "fold_padding", swap_operands)


def test_layers_and_bisect_find_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    plant_kernel(monkeypatch)
    made = tilewright.compile(network())
    feeds = made.random_inputs(1)
    found = bisect.layers(made, feeds)
    first = next(x for x in found if not x.ok)
    assert "sin" in first.label and 0.01 < first.relative < 1 and first.mean <= first.absolute and (first.ulp or 0) > 1000
    before = found[:found.index(first)]
    assert before and all(x.relative < 1e-5 for x in before)
    verdict = bisect.bisect(made, feeds)
    assert (verdict.kind, verdict.layer, verdict.name) == ("kernel", first, first.kernel)


def test_bisect_finds_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    plant_pass(monkeypatch)
    made = tilewright.compile(network())
    verdict = bisect.bisect(made, made.random_inputs(1))
    assert (verdict.kind, verdict.name) == ("pass", "swap_operands") and verdict.relative > 0.01


def test_bisect_finds_nothing() -> None:
    made = tilewright.compile(network())
    verdict = bisect.bisect(made, made.random_inputs(1))
    assert verdict.kind == "nothing" and all(x.ok for x in bisect.layers(made, made.random_inputs(1)))


def test_reduce_keeps_the_fault_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plant_kernel(monkeypatch)
    small = reduce.reduce_model(network(), reduce.shows_difference(1e-4))
    assert [n.op_type for n in small.graph.node] == ["Sin"]
    onnx.checker.check_model(small)


def test_reduce_keeps_an_error() -> None:
    m = network()
    m.graph.node.insert(3, N("Frobnicate", ["c"], ["odd"]))
    m.graph.output.append(value("odd", [4, 6]))
    small = reduce.reduce_model(m, reduce.shows_error("onnx-unsupported-op"))
    assert [n.op_type for n in small.graph.node] == ["Frobnicate"]


def test_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plant_kernel(monkeypatch)
    onnx.save(network(), tmp_path / "net.onnx")

    def said(*args: object, status: int) -> Any:
        result = CliRunner().invoke(app, [str(a) for a in args])
        assert result.exit_code == status, result.output
        return json.loads(result.stdout) if "--json" in args else result.stdout
    at = tmp_path / "net.onnx"
    assert said("compare", at, "--with", "interpreter", "--layers", "--json", status=1)["layers"][-1]["ok"] is False
    assert "the first layer that differs" in said("compare", at, "--with", "interpreter", "--layers", status=1)
    assert said("bisect", at, "--json", status=1)["kind"] == "kernel"
    assert "the kernel" in said("bisect", at, status=1)
    assert said("reduce", at, "-o", tmp_path / "small.onnx", "--json", status=0)["nodes"] == ["Sin"]
    assert said("reduce", at, "-o", tmp_path / "no" / "small.onnx", "--json", status=2)["error"]["code"] == "output-file"
    (reads,) = onnx.load(tmp_path / "small.onnx").graph.input
    zeros = np.zeros([d.dim_value for d in reads.type.tensor_type.shape.dim], np.float32)
    np.savez(tmp_path / "zeros.npz", **{reads.name: zeros})  # the sine and what was planted agree on them
    args = tmp_path / "small.onnx", "-o", tmp_path / "none.onnx", "-i", tmp_path / "zeros.npz", "--json"
    assert said("reduce", *args, status=2)["error"]["code"] == "reduce-nothing"
    counts = said("coverage", tmp_path / "small.onnx", "--json", status=0)["counts"]
    assert counts == {"compiled": 1, "host": 0, "missing": 0}
    assert "1 compiled" in said("coverage", tmp_path / "small.onnx", status=0)
