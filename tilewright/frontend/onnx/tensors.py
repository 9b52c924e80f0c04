"""Weights of a model: TensorProto → NumPy array, from raw bytes, typed fields or external files.

Sizes are checked against the bytes that are there before anything is allocated. Arrays are views of the bytes where the
element type allows it; sub-byte types are unpacked to one element per byte.
"""
from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from tilewright.core import strings
from tilewright.core.dtype import DType, boolean, dtype
from tilewright.core.errors import UserError
from tilewright.frontend.onnx.read import open_regular
from tilewright.frontend.onnx.structure import STRING

Array = np.ndarray[Any, Any]

ELEMENT_TYPES = {1: "f32", 2: "u8", 3: "i8", 4: "u16", 5: "i16", 6: "i32", 7: "i64", 9: "bool", 10: "f16", 11: "f64",
                 12: "u32", 13: "u64", 16: "bf16", 17: "f8e4m3fn", 18: "f8e4m3fnuz", 19: "f8e5m2", 20: "f8e5m2fnuz",
                 21: "u4", 22: "i4", 23: "f4e2m1fn", 24: "f8e8m0fnu", 25: "u2", 26: "i2"}
"""TensorProto.DataType → name of our element type. Strings are numbers (core/strings.py), complex numbers have none."""
ELEMENT_NUMBERS = {name: number for number, name in ELEMENT_TYPES.items()}

_FIELDS = {"f32": "float_data", "f64": "double_data", "i64": "int64_data", "u32": "uint64_data", "u64": "uint64_data"}
"""The typed field of each element type; all others are in int32_data."""
_EXTERNAL = 1


def element_type(number: int, where: str) -> DType:
    """The element type for a TensorProto.DataType; UserError `onnx-unsupported-type`."""
    name = ELEMENT_TYPES.get(number)
    if name is None:
        named = {0: "no element type", 8: "strings", 14: "complex numbers", 15: "complex numbers"}
        raise UserError("onnx-unsupported-type", f"tensors of {named.get(number, f'element type {number}')} are not "
                        "supported", where=where)
    return dtype(name)


def to_array(t: Any, folder: Path | None, where: str = "") -> Array:
    """The read-only values of a TensorProto (of strings: their numbers); `folder` is where external data may lie.

    Raises UserError `onnx-initializer-size`, `onnx-external-data`, `onnx-unsupported-type`.
    """
    where = where or f"initializer {t.name!r}"
    if t.data_type == STRING:
        return _texts(t, where)
    element = element_type(t.data_type, where)
    shape = tuple(t.dims)
    count = _element_count(shape, where)
    nbytes = -(-count * element.bits // 8)
    if t.HasField("segment"):
        raise UserError("onnx-unsupported-type", "tensors in several segments are not supported", where=where)
    if t.data_location == _EXTERNAL:
        flat = _unpacked(_external(t, nbytes, folder, where), element, count)
    elif t.HasField("raw_data"):
        raw = t.raw_data
        if len(raw) != nbytes:
            raise _size_error(shape, element, f"{nbytes} bytes", f"{len(raw)} bytes", where)
        flat = _unpacked(np.frombuffer(raw, np.uint8), element, count)
    else:
        flat = _typed(t, shape, element, count, where)
    out = flat.reshape(shape)
    out.flags.writeable = False
    return out


def _texts(t: Any, where: str) -> Array:
    """Strings, as their numbers."""
    shape, texts = tuple(t.dims), t.string_data
    if _element_count(shape, where) != len(texts):
        raise UserError("onnx-initializer-size", f"strings{list(shape)} are not {len(texts)} in number", where=where)
    return strings.encode(np.array([x.decode("utf-8", "replace") for x in texts], object).reshape(shape))


def _element_count(shape: tuple[int, ...], where: str) -> int:
    count = 1
    for d in shape:
        if d < 0:
            raise UserError("onnx-initializer-size", f"the shape {list(shape)} has a negative size", where=where)
        count *= d
    if count >= 2**63 or any(d >= 2**63 for d in shape):
        raise UserError("onnx-initializer-size", f"the shape {list(shape)} has too many elements", where=where)
    if len(shape) > 64:
        raise UserError("onnx-initializer-size", f"a tensor of rank {len(shape)}", where=where)
    return count


def _size_error(shape: tuple[int, ...], element: DType, need: str, got: str, where: str) -> UserError:
    return UserError("onnx-initializer-size", f"{element}{list(shape)} needs {need}, the file holds {got}", where=where,
                     hint="the file may be damaged or cut off: download or export it again")


def _unpacked(raw: Array, element: DType, count: int) -> Array:
    """Elements from little-endian bytes; a view for types of whole bytes."""
    if element is boolean:
        return np.asarray(raw != 0)
    if element.bits >= 8:
        return raw.view(element.numpy())
    per_byte = 8 // element.bits
    parts = np.stack([(raw >> (element.bits * k)) & ((1 << element.bits) - 1) for k in range(per_byte)], axis=-1)
    codes = parts.reshape(-1)[:count]
    if element.kind == "int":
        half = 1 << (element.bits - 1)
        codes = (codes.astype(np.int8) ^ half) - half
    elif element.is_float:
        return codes.view(element.numpy())
    return codes.astype(element.numpy())


def _typed(t: Any, shape: tuple[int, ...], element: DType, count: int, where: str) -> Array:
    """Elements from float_data, int32_data and so on."""
    field = _FIELDS.get(element.name, "int32_data")
    values = getattr(t, field)
    packed = element.bits < 8
    need = -(-count * element.bits // 8) if packed else count
    if len(values) != need:
        raise _size_error(shape, element, f"{need} entries", f"{len(values)} in {field}", where)
    if field != "int32_data":
        wide = {"float_data": np.float32, "double_data": np.float64, "int64_data": np.int64, "uint64_data": np.uint64}
        return np.array(values, wide[field]).astype(element.numpy(), copy=False)
    codes = np.array(values, np.int32)
    if packed:
        return _unpacked(codes.astype(np.uint8), element, count)
    if element is boolean:
        return np.asarray(codes != 0)
    if element.is_float:
        return codes.astype(np.uint16 if element.bits == 16 else np.uint8).view(element.numpy())
    return codes.astype(element.numpy())


# ---- external data ---------------------------------------------------------------------------------------------------
def _external(t: Any, nbytes: int, folder: Path | None, where: str) -> Array:
    entries = {e.key: e.value for e in t.external_data}
    if folder is None:
        raise UserError("onnx-external-data", "the weights are in a file beside the model, and the model was not given "
                        "as a path", where=where, hint="give the path of the .onnx file, or load the data first")
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(nbytes)))
    except ValueError as e:
        raise UserError("onnx-external-data", f"offset or length is no number: {e}", where=where) from e
    if offset < 0 or length < 0:
        raise UserError("onnx-external-data", f"offset {offset} or length {length} is negative", where=where)
    if length != nbytes:
        raise UserError("onnx-initializer-size", f"the shape {list(t.dims)} needs {nbytes} bytes, the external data "
                        f"has {length}", where=where)
    path = _inside(folder, entries.get("location", ""), where)
    try:
        fd = open_regular(path, follow=False)
    except (OSError, ValueError) as e:
        raise UserError("onnx-external-data", f"the external data {path.name!r} cannot be read: {e}", where=where,
                        hint="copy it beside the model") from e
    with os.fdopen(fd, "rb") as f:
        size = os.fstat(fd).st_size
        if offset + nbytes > size:
            raise UserError("onnx-external-data", f"the external data {path.name!r} has {size} bytes, "
                            f"{offset + nbytes} are needed", where=where, hint="it may be cut off: copy it again")
        f.seek(offset)
        raw = np.fromfile(f, np.uint8, nbytes)
    if raw.size != nbytes:
        raise UserError("onnx-external-data", f"the external data {path.name!r} became shorter while it was read",
                        where=where)
    return raw


def _inside(folder: Path, location: str, where: str) -> Path:
    """The path of external data, which must lie below the model's folder and not behind a symbolic link."""
    parts = PurePosixPath(location).parts
    windows = PureWindowsPath(location)
    if not parts or "\0" in location or PurePosixPath(location).is_absolute() or windows.drive or windows.root \
            or ".." in parts or ".." in windows.parts:
        raise UserError("onnx-external-data", f"the external data {location!r} lies outside the model's folder",
                        where=where, hint="only files below the folder of the model are read")
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise UserError("onnx-external-data", f"the external data {location!r} leads through the symbolic link "
                            f"{str(path)!r}", where=where, hint="put the file itself beside the model")
    return path
