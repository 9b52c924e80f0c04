"""Arrays at the border of a model. In: NumPy arrays, or any object with `__dlpack__`. Out: addresses, without copies.

DLPack's structs are read here directly (https://dmlc.github.io/dlpack, version 0.x/1.x layout of an unversioned
capsule), since NumPy's reader knows neither bf16 nor float8.
"""
from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p
from typing import Any

import numpy as np

from tilewright.core.errors import UserError
from tilewright.runtime.descriptor import TensorSpec
from tilewright.runtime.memory import address_of


class _DataType(Structure):
    _fields_ = [("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16)]


class _Tensor(Structure):
    _fields_ = [("data", c_void_p), ("device_type", c_int32), ("device_id", c_int32), ("ndim", c_int32),
                ("dtype", _DataType), ("shape", POINTER(c_int64)), ("strides", POINTER(c_int64)),
                ("byte_offset", c_uint64)]


_CPU_DEVICES = {1, 3, 11}  # kDLCPU, and the memory of CUDA and ROCm hosts
_NAMES = {(0, 8): "i8", (0, 16): "i16", (0, 32): "i32", (0, 64): "i64", (0, 4): "i4", (0, 2): "i2",
          (1, 8): "u8", (1, 16): "u16", (1, 32): "u32", (1, 64): "u64", (1, 4): "u4", (1, 2): "u2",
          (2, 16): "f16", (2, 32): "f32", (2, 64): "f64", (4, 16): "bf16", (6, 8): "bool",
          (10, 8): "f8e4m3fn", (11, 8): "f8e4m3fnuz", (12, 8): "f8e5m2", (13, 8): "f8e5m2fnuz", (14, 8): "f8e8m0fnu"}

_capsule_pointer = ctypes.PYFUNCTYPE(c_void_p, ctypes.py_object, c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))


def read_input(value: Any, spec: TensorSpec, numpy_dtype: np.dtype[Any]) -> tuple[int, tuple[int, ...], Any]:
    """(address, shape, what must stay alive during the run) of an array given for an input.

    Raises UserError "input-type", "input-dtype", "input-shape", "input-layout" or "input-device", naming the input.
    """
    if isinstance(value, np.ndarray):
        if value.dtype != numpy_dtype:
            raise _dtype_error(spec, str(value.dtype))
        _check_shape(value.shape, spec)
        if not (value.flags.c_contiguous and value.flags.aligned):
            raise _layout_error(spec)
        return address_of(value), value.shape, value
    if hasattr(value, "__dlpack__"):
        return _read_dlpack(value, spec)
    raise UserError("input-type", f"input {spec.name!r} got a {type(value).__name__}, expected an array {spec}",
                    where=spec.name, hint="give a NumPy array or any array that speaks DLPack (torch, jax, cupy, …)")


def check_output(value: Any, spec: TensorSpec, numpy_dtype: np.dtype[Any]) -> int:
    """The address of an array that an output shall be written to. Raises UserError "output-array"."""
    if (isinstance(value, np.ndarray) and value.dtype == numpy_dtype and value.shape == spec.shape
            and value.flags.carray):
        return address_of(value)
    got = f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
    raise UserError("output-array", f"output {spec.name!r} is {spec}, got {got}", where=spec.name,
                    hint="give a writable, contiguous NumPy array of this type and shape, or leave `outputs` out")


def _check_shape(shape: tuple[int, ...], spec: TensorSpec) -> None:
    if len(shape) != len(spec.shape) or any(s not in (-1, d) for s, d in zip(spec.shape, shape, strict=True)):
        raise UserError("input-shape", f"input {spec.name!r} has the shape {list(shape)}, expected {spec}",
                        where=spec.name)


def _dtype_error(spec: TensorSpec, got: str) -> UserError:
    return UserError("input-dtype", f"input {spec.name!r} has the element type {got}, expected {spec}", where=spec.name,
                     hint=f"convert it, e.g. array.astype('{spec.dtype.numpy().name}')")


def _layout_error(spec: TensorSpec) -> UserError:
    return UserError("input-layout", f"input {spec.name!r} is not contiguous in memory", where=spec.name,
                     hint="numpy.ascontiguousarray(x) or tensor.contiguous() makes it so")


def _read_dlpack(value: Any, spec: TensorSpec) -> tuple[int, tuple[int, ...], Any]:
    try:
        device = value.__dlpack_device__()[0] if hasattr(value, "__dlpack_device__") else 1
        capsule = value.__dlpack__() if device in _CPU_DEVICES else None
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise UserError("input-type", f"input {spec.name!r} cannot be read through DLPack: {error}", where=spec.name,
                        hint="for a torch tensor that needs gradients: tensor.detach()") from error
    if capsule is None:
        raise UserError("input-device", f"input {spec.name!r} lies on another device", where=spec.name,
                        hint="copy it to the CPU first")
    # The capsule stays ours and unconsumed: when it goes, its own destructor tells the producer.
    tensor = _Tensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    kind = tensor.dtype
    name = _NAMES.get((kind.code, kind.bits), f"DLPack {kind.code}:{kind.bits}")
    if name != spec.dtype.name or kind.lanes != 1 or (kind.bits < 8):
        raise _dtype_error(spec, name)
    shape = tuple(tensor.shape[:tensor.ndim])
    _check_shape(shape, spec)
    if tensor.strides:
        expected = 1
        for extent, stride in zip(reversed(shape), reversed(tensor.strides[:tensor.ndim]), strict=True):
            if extent != 1 and stride != expected and 0 not in shape:
                raise _layout_error(spec)
            expected *= extent
    return (tensor.data or 0) + tensor.byte_offset, shape, capsule
