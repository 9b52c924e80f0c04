"""ONNX's own backend tests through compiled code: a spread sample always, all of them in the long run. What fails is
listed."""
from __future__ import annotations

import dataclasses
import functools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.frontend.onnx.expected_failures import EXPECTED_FAILURES
from tests.frontend.onnx.onnx_check import case_value, compare
from tilewright.core.errors import UserError
from tilewright.frontend.onnx import backend

REASONS = {name: reason for reason, names in EXPECTED_FAILURES.items() for name in names}
STEP = 8
"""Every so many cases are in the sample: about 250."""
KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")


@functools.cache
def cases() -> list[Any]:
    """All cases of all kinds, with the same data every time: ONNX draws them from NumPy's global generator."""
    np.random.seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests
        found = [c if c.model is not None else loaded(c) for kind in KINDS for c in load_model_tests(kind=kind)]
        return [c for c in found if c.model.graph.node or c.data_sets]


def loaded(case: Any) -> Any:
    """A case that lies in files."""
    folder = Path(case.model_dir)
    model = onnx.load(folder / "model.onnx")

    def read(file: Path, info: Any) -> Any:
        kind = {"tensor_type": onnx.TensorProto, "sequence_type": onnx.SequenceProto,
                "optional_type": onnx.OptionalProto}[info.type.WhichOneof("value")]()
        kind.ParseFromString(file.read_bytes())
        return kind
    sets = [tuple([read(d / f"{stem}_{k}.pb", v) for k, v in enumerate(infos) if (d / f"{stem}_{k}.pb").exists()]
                  for stem, infos in (("input", model.graph.input), ("output", model.graph.output)))
            for d in sorted(folder.glob("test_data_set_*"))]
    return dataclasses.replace(case, model=model, data_sets=sets)


def outcome(case: Any) -> str:
    """"" if compiled code passes the case, else what went wrong. A fault of the compiler is raised."""
    for ins, outs in case.data_sets:
        try:
            got = backend.run_native(case.model, [case_value(x) for x in ins])
            assert len(got) == len(outs)
            for e, g in zip(outs, got, strict=True):
                compare(case_value(e), g, case.rtol, case.atol)
        except (UserError, AssertionError) as e:
            return f"{type(e).__name__}: {e}"
    return ""


def check(chosen: list[Any]) -> None:
    wrong = []
    for case in chosen:
        found, reason = outcome(case), REASONS.get(case.name)
        if found and reason is None:
            wrong.append(f"{case.name}: {found[:300]}")
        elif not found and reason is not None:
            wrong.append(f"{case.name} passes: take it off the list ({reason})")
    assert not wrong, "\n".join(wrong)


@pytest.mark.filterwarnings("ignore")
def test_a_sample_of_the_cases() -> None:
    chosen = cases()[::STEP]
    assert 230 <= len(chosen) <= 270
    check(chosen)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_all_cases() -> None:
    check(cases())
    assert set(REASONS) <= {c.name for c in cases()}, "the list has cases that do not exist"


def one(op: str, inputs: dict[str, Any], output: Any, opset: int = 17) -> onnx.ModelProto:
    node = onnx.helper.make_node(op, list(inputs), ["y"])
    kind = onnx.helper.np_dtype_to_tensor_dtype
    infos = [onnx.helper.make_tensor_value_info(k, kind(v.dtype), v.shape) for k, v in inputs.items()]
    out = onnx.helper.make_tensor_value_info("y", kind(output.dtype), output.shape)
    graph = onnx.helper.make_graph([node], "main", infos, [out])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)


def test_a_shape_that_is_data_is_no_part_of_the_code() -> None:
    x = np.arange(6, dtype=np.float32)
    made = backend.compile_for(one("Reshape", {"x": x, "shape": np.array([2, 3])}, x.reshape(2, 3)), [x, np.array([2, 3])])
    assert not made.specialized
    for shape in ([2, 3], [3, -1], [1, 6]):
        np.testing.assert_array_equal(made.run([x, np.array(shape)])[0], x.reshape(shape))


def test_code_made_for_a_value_refuses_another() -> None:
    x, axes = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1])
    made = backend.compile_for(one("ReduceMax", {"x": x, "axes": axes}, x.max(1, keepdims=True), 18), [x, axes])
    assert list(made.specialized) == ["axes"]
    np.testing.assert_array_equal(made.run([x + 1, axes])[0], (x + 1).max(1, keepdims=True))
    with pytest.raises(UserError, match="backend-specialized"):
        made.run([x, np.array([0])])


def test_a_model_that_is_folded_away_is_not_native() -> None:
    axes = np.array([1])
    m = one("ReduceMax", {"x": axes, "axes": axes}, axes, 18)
    del m.graph.input[0]
    m.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 3), np.int64), "x"))
    with pytest.raises(UserError, match="backend-folded"):
        backend.run_native(m, [axes])
    with pytest.warns(backend.HostFallback):
        np.testing.assert_array_equal(backend.run(m, [axes])[0], np.ones((2, 1)))


def test_the_backend_of_onnx() -> None:
    x = np.array([-1.0, 2.0], np.float32)
    m = one("Relu", {"x": x}, x)
    assert backend.supports_device("CPU") and not backend.supports_device("CUDA:0")
    assert backend.is_compatible(m) and not backend.is_compatible(b"no model")
    for got in (backend.run_model(m, [x]), backend.prepare(m).run([x]), backend.run_node(m.graph.node[0], [x])):
        np.testing.assert_array_equal(got[0], [0.0, 2.0])
    with pytest.raises(UserError, match="backend-device"):
        backend.prepare(m, "CUDA:0")


def test_a_prepared_model_is_compiled_once_per_shape_and_value() -> None:
    x, axes = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1])
    rep = backend.prepare(one("ReduceMax", {"x": x, "axes": axes}, x.max(1, keepdims=True), 18))
    for chosen, count in ((axes, 1), (axes, 1), (np.array([0]), 2)):
        np.testing.assert_array_equal(rep.run([x, chosen])[0], x.max(tuple(chosen), keepdims=True))
        assert sum(map(len, rep._made.values())) == count
        assert rep.specialized == {"axes": count}


def test_inputs_that_the_code_contains_are_named() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    reduced = one("ReduceMax", {"x": x, "axes": np.array([1])}, x.max(1, keepdims=True), 18)
    assert backend.specialized_inputs(reduced, [x, np.array([1])]) == ["axes"]
    sliced = one("Slice", {"x": x, "starts": np.array([0]), "ends": np.array([1])}, x[:1])  # sizes, at run time
    assert backend.specialized_inputs(sliced, [x, np.array([0]), np.array([1])]) == []
    rep = backend.prepare(sliced)
    np.testing.assert_array_equal(rep.run([x, np.array([0]), np.array([1])])[0], x[:1])
    assert rep.specialized == {}
