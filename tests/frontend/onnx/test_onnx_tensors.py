"""Weights: every element type in raw and typed fields, external data, and sizes that do not fit."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.frontend.onnx.onnx_check import model, run, same, value
from tilewright.core import strings
from tilewright.core.errors import UserError
from tilewright.frontend.onnx.tensors import ELEMENT_TYPES, to_array

W = np.arange(6, dtype=np.float32).reshape(2, 3)


def code_of(call: Any) -> str:
    with pytest.raises(UserError) as e:
        call()
    return e.value.code


# ---- element types ---------------------------------------------------------------------------------------------------
def samples(number: int) -> Any:
    t = helper.tensor_dtype_to_np_dtype(number)
    if t.kind == "b":
        return np.array([[True, False, True]])
    small = np.array([[0, 1, 1], [1, 0, 1]] if ELEMENT_TYPES[number] in ("u2", "i2") else [[0, 1, 2], [3, 4, 6]])
    sign = -1 if t.name.startswith(("int", "float", "bfloat")) and "e8m0" not in t.name else 1
    return (small * sign + (1 if "e8m0" in t.name else 0)).astype(t)


@pytest.mark.parametrize("number", sorted(ELEMENT_TYPES))
def test_raw_bytes(number: int) -> None:
    a = samples(number)
    got = to_array(numpy_helper.from_array(a, "w"), None)
    assert got.dtype == a.dtype and got.shape == a.shape and not got.flags.writeable
    np.testing.assert_array_equal(got.astype(np.float64), a.astype(np.float64))


@pytest.mark.parametrize("number", sorted(ELEMENT_TYPES))
def test_typed_fields(number: int) -> None:
    a = samples(number)
    t = helper.make_tensor("w", number, a.shape, a.astype(np.float64).ravel().tolist())
    assert not t.HasField("raw_data")
    got = to_array(t, None)
    assert got.dtype == a.dtype
    np.testing.assert_array_equal(got.astype(np.float64), a.astype(np.float64))


def test_an_odd_number_of_four_bit_elements() -> None:
    a = np.array([-8, 7, -1], ml_dtypes.int4)
    np.testing.assert_array_equal(to_array(numpy_helper.from_array(a, "w"), None).astype(int), a.astype(int))


def test_no_elements() -> None:
    assert to_array(TensorProto(name="w", data_type=1, dims=[0, 3]), None).shape == (0, 3)
    assert to_array(TensorProto(name="w", data_type=1, dims=[0], raw_data=b""), None).shape == (0,)


@pytest.mark.parametrize("number", [0, 14, 15, 99])
def test_element_types_that_are_not_read(number: int) -> None:
    assert code_of(lambda: to_array(TensorProto(name="w", data_type=number, dims=[1]), None)) == "onnx-unsupported-type"


def test_strings_are_read_as_numbers() -> None:
    found = to_array(TensorProto(name="w", data_type=8, dims=[2], string_data=[b"a", b""]), None)
    assert found.dtype == np.int64 and strings.decode(found).tolist() == ["a", ""]
    few = TensorProto(name="w", data_type=8, dims=[2], string_data=[b"a"])
    assert code_of(lambda: to_array(few, None)) == "onnx-initializer-size"


# ---- sizes -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dims, data", [
    ([2, 3], {"raw_data": b"\0" * 23}), ([2, 3], {"raw_data": b"\0" * 25}), ([2, 3], {}),
    ([2, 3], {"float_data": [0.0] * 5}), ([-2, -3], {"raw_data": b"\0" * 24}), ([-1], {"raw_data": b""}),
    ([2**40], {"raw_data": b"\0" * 4}), ([2**32, 2**32], {"raw_data": b""}), ([2**62, 2**62, 0], {"float_data": [1.0]}),
    ([1] * 65, {"raw_data": b"\0" * 4}), ([2**50], {"float_data": [1.0]})])
def test_bytes_that_do_not_fit_the_shape(dims: list[int], data: Any) -> None:
    t = TensorProto(name="w", data_type=1, dims=dims, **data)
    assert code_of(lambda: to_array(t, None)) == "onnx-initializer-size"


# ---- external data ---------------------------------------------------------------------------------------------------
def external(folder: Path, location: str, **entries: Any) -> Path:
    """A model x + w whose w lies in another file."""
    m = model([helper.make_node("Add", ["x", "w"], ["y"])], [value("x", [2, 3])], ["y"])
    t = m.graph.initializer.add(name="w", data_type=1, dims=[2, 3], data_location=TensorProto.EXTERNAL)
    for k, v in {"location": location, **entries}.items():
        t.external_data.add(key=k, value=str(v))
    path = folder / "m.onnx"
    path.write_bytes(m.SerializeToString())
    return path


def test_external_data_with_offset(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(b"\0" * 8 + W.tobytes())
    same(run(external(tmp_path, "sub/w.bin", offset=8, length=24), {"x": W}), [W + W])


def test_external_data_as_onnx_writes_it(tmp_path: Path) -> None:
    m = model([helper.make_node("Add", ["x", "w"], ["y"])], [value("x", [2, 3])], ["y"], weights={"w": W})
    onnx.save(m, str(tmp_path / "m.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    same(run(tmp_path / "m.onnx", {"x": W}), [W + W])


@pytest.mark.parametrize("location", ["../w.bin", "a/../../w.bin", "/etc/passwd", "C:\\w.bin", "\\w.bin", "..\\w.bin", "",
                                      "a\0b"])
def test_external_data_outside_the_folder(tmp_path: Path, location: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    path = external(inner, location)
    assert code_of(lambda: run(path, {"x": W})) == "onnx-external-data"


@pytest.mark.parametrize("where", ["file", "folder"])
def test_external_data_through_a_link(tmp_path: Path, where: str) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    inner.mkdir()
    outer.mkdir()
    (outer / "w.bin").write_bytes(W.tobytes())
    if where == "file":
        (inner / "w.bin").symlink_to(outer / "w.bin")
    else:
        (inner / "sub").symlink_to(outer)
    path = external(inner, "w.bin" if where == "file" else "sub/w.bin")
    assert code_of(lambda: run(path, {"x": W})) == "onnx-external-data"


@pytest.mark.parametrize("entries, code", [
    ({"offset": 4}, "onnx-external-data"), ({"offset": -1}, "onnx-external-data"), ({"offset": "x"}, "onnx-external-data"),
    ({"length": 20}, "onnx-initializer-size"), ({"length": -24}, "onnx-external-data"),
    ({"offset": 2**62}, "onnx-external-data")])
def test_external_data_that_does_not_fit(tmp_path: Path, entries: Any, code: str) -> None:
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    path = external(tmp_path, "w.bin", **entries)
    assert code_of(lambda: run(path, {"x": W})) == code


def test_external_data_that_is_missing_or_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dir").mkdir()
    for name in ("absent.bin", "pipe", "dir"):
        path = external(tmp_path, name)
        assert code_of(lambda path=path: run(path, {"x": W})) == "onnx-external-data"


def test_external_data_of_a_model_without_a_path(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    data = external(tmp_path, "w.bin").read_bytes()
    assert code_of(lambda: run(data, {"x": W})) == "onnx-external-data"
