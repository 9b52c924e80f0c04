"""The C arguments of a run. In: arrays for the inputs. Out: the status of the C call, and arrays of the outputs.

Asking a NumPy array for its address costs more than copying a small one, and so does making an array of memory that C has
handed over: small inputs and outputs are copied to and from memory whose address is known, large ones are used in place.
"""
from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.core.errors import UserError
from tilewright.runtime import native
from tilewright.runtime.array import check_output, read_input
from tilewright.runtime.descriptor import Descriptor, TensorSpec
from tilewright.runtime.memory import Array, address_of, adopt, empty

_COPIED_BYTES = 4096
"""Arrays below this size are copied: that takes a tenth of a microsecond, an address a whole one."""


class _Room:
    """Memory for a small array of one type, seen in the shape that was asked for last."""
    __slots__ = ("_bytes", "_kind", "address", "array")

    def __init__(self, kind: np.dtype[Any]) -> None:
        self._bytes, self._kind = empty((_COPIED_BYTES,), np.dtype(np.uint8)), kind
        self.address = address_of(self._bytes)
        self.array = self._bytes[:0].view(kind)

    def shaped(self, shape: tuple[int, ...]) -> Array:
        if shape != self.array.shape:
            self.array = self._bytes[:math.prod(shape) * self._kind.itemsize].view(self._kind).reshape(shape)
        return self.array


class _Input:
    """What a run reads: `shape` of the last array, and its `copy` if it was small."""
    __slots__ = ("copy", "extents", "kind", "room", "shape", "spec")

    def __init__(self, spec: TensorSpec) -> None:
        self.spec, self.kind = spec, spec.dtype.numpy()
        self.extents: Any = (ctypes.c_int64 * max(1, len(spec.shape)))()
        self.room = _Room(self.kind)
        self.shape: tuple[int, ...] | None = None
        self.copy: Array | None = None

    def place(self, value: Any) -> tuple[int, Any]:
        """The address of an array that is not like the last one, and what must stay alive during the run."""
        address, shape, alive = read_input(value, self.spec, self.kind)
        self.extents[:len(shape)] = shape
        self.shape = self.copy = None
        if isinstance(value, np.ndarray):
            self.shape = shape
            if value.nbytes < _COPIED_BYTES:
                self.copy = self.room.shaped(shape)
                self.copy[...] = value
                return self.room.address, None
        return address, alive


class _Output:
    """What a run writes: `room` for one that is small, `result` (and its `extents`) for one whose size the model says."""
    __slots__ = ("extents", "kind", "result", "room", "spec")

    def __init__(self, spec: TensorSpec, result: Any) -> None:
        self.spec, self.kind, self.result = spec, spec.dtype.numpy(), result
        self.extents: Any = None if result is None else result.shape
        self.room: _Room | None = None
        if result is not None:
            self.room = _Room(self.kind)
        elif math.prod(spec.shape) * self.kind.itemsize < _COPIED_BYTES:
            self.room = _Room(self.kind)
            self.room.shaped(spec.shape)

    def take(self, runtime: native.Runtime) -> Array:
        """The array in memory that the model asked the runtime for."""
        result, room = self.result, self.room
        address, nbytes = result.data, result.bytes
        if address is None:
            raise UserError("run-shape", f"the model gave no output {self.spec.name!r}", where=self.spec.name)
        shape = tuple(self.extents[:result.rank])
        if nbytes >= _COPIED_BYTES and 0 not in shape:
            large: Array = adopt(address, nbytes, runtime.free, address).view(self.kind).reshape(shape)
            return large
        assert room is not None
        array = room.shaped(shape)
        ctypes.memmove(room.address, address, array.nbytes)
        runtime.release(address)
        return array.copy()


class Arguments:
    """Pointers, shapes and results of one run at a time, used again by later runs of a model."""

    def __init__(self, descriptor: Descriptor) -> None:
        inputs, outputs = descriptor.inputs, descriptor.outputs
        static = all(spec.is_static for spec in outputs)
        results: Any = (native.Result * len(outputs))()
        self._results = None if static else results
        self._inputs = [_Input(spec) for spec in inputs]
        self._outputs = [_Output(spec, None if spec.is_static else results[i]) for i, spec in enumerate(outputs)]
        self._pointers: Any = (ctypes.c_void_p * max(1, len(inputs)))()
        self._targets: Any = (ctypes.c_void_p * max(1, len(outputs)))()
        self._shapes: Any = None
        if not all(spec.is_static for spec in inputs):
            self._shapes = (ctypes.POINTER(ctypes.c_int64) * len(inputs))(*(place.extents for place in self._inputs))
        for i, out in enumerate(self._outputs):
            if out.room is not None and out.result is None:
                self._targets[i] = out.room.address

    def run(self, runtime: native.Runtime, handle: int, values: Sequence[Any]) -> tuple[int, list[Array]]:
        """A run that writes to new arrays: its status and, if that is 0, its outputs. Raises UserError where a value does
        not fit its input."""
        keep = self._read(values)
        targets = self._targets
        arrays: list[Any] = []
        for i, out in enumerate(self._outputs):
            arrays.append(None)
            if out.room is None:
                arrays[i] = empty(out.spec.shape, out.kind)
                targets[i] = address_of(arrays[i])
        status = runtime.run(handle, self._pointers, self._shapes, targets, self._results)
        del keep
        if status:
            return status, []
        for i, out in enumerate(self._outputs):
            if out.result is not None:
                arrays[i] = out.take(runtime)
            elif out.room is not None:
                arrays[i] = out.room.array.copy()
        return status, arrays

    def run_into(self, runtime: native.Runtime, handle: int, values: Sequence[Any], arrays: Sequence[Array]) -> int:
        """A run that writes to the caller's arrays: its status. All outputs must be of fixed shape. Raises UserError where
        an array does not fit."""
        keep = self._read(values)
        targets = (ctypes.c_void_p * max(1, len(self._outputs)))()
        for i, (out, array) in enumerate(zip(self._outputs, arrays, strict=True)):
            targets[i] = check_output(array, out.spec, out.kind)
        status: int = runtime.run(handle, self._pointers, self._shapes, targets, None)
        del keep
        return status

    def _read(self, values: Sequence[Any]) -> list[Any]:
        """Sets the pointers and shapes of the inputs; what must stay alive during the run beside the values."""
        keep: list[Any] = []
        for i, (value, place) in enumerate(zip(values, self._inputs, strict=True)):
            if (type(value) is np.ndarray and value.shape == place.shape and value.dtype == place.kind
                    and value.flags.carray):  # the common case, by the shortest way
                if place.copy is not None:
                    place.copy[...] = value
                else:
                    self._pointers[i] = address_of(value)
            else:
                self._pointers[i], alive = place.place(value)
                keep.append(alive)
        return keep
