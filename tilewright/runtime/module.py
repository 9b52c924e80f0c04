"""A model that can be called: in-process code or a saved library. In: arrays. Out: arrays.

`Executable` checks the arrays and makes one C call per run, which releases the GIL; several threads may run one
Executable at once, each run in a context of its own.
"""
from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from tilewright.core.errors import UserError
from tilewright.core.source_lines import rejected_line
from tilewright.runtime import drivers, native
from tilewright.runtime.arguments import Arguments
from tilewright.runtime.descriptor import Descriptor, TensorSpec, check_threads, to_struct
from tilewright.runtime.memory import Array, address_of, aligned

_CODES = {1: "run-index", 2: "run-memory", 3: "run-shape", 4: "run-value", 5: "run-host-call", 6: "run-device",
          7: "run-argument", 8: "artifact-cpu", 9: "artifact-version", 10: "model-closed", 11: "input-shape",
          12: "device-missing"}
_HINTS = {2: "free memory, or use a smaller batch", 8: "compile the model for this machine, or for a plainer target",
          9: "compile the model again with this Tilewright"}


class KernelTime(NamedTuple):
    """Time spent in one kernel since profiling began."""
    name: str
    seconds: float
    calls: int


class Executable:
    """A runnable model.

    `entry` is the address of its tw_main. `consts`: all weights as one array, used in place if aligned to 64 bytes
    (`memory.aligned` makes such), else copied. `keep` is held until the model is closed: whatever owns the code.
    `threads`: participants of a parallel region, at most 1024, also more than there are CPUs; None or 0 for the
    descriptor's choice, TILEWRIGHT_THREADS, or all CPUs that the process may use.
    Raises UserError "threads-invalid", "artifact-cpu".
    """

    descriptor: Descriptor

    def __init__(self, descriptor: Descriptor, entry: int, consts: Array | None = None, *, threads: int | None = None,
                 keep: Any = None) -> None:
        wanted = check_threads(threads)
        if wanted == 0 and descriptor.threads == 0:
            wanted = native.default_threads()
        data = None if consts is None else _placed(consts)
        struct = to_struct(descriptor, entry, 0 if data is None else address_of(data), 0 if data is None else data.nbytes)
        self._open(descriptor, native.runtime(), struct, wanted, [keep, data, struct])

    @classmethod
    def from_library(cls, descriptor: Descriptor, runtime: native.Runtime, *, threads: int | None = None) -> Executable:
        """The model of a loaded library: `runtime` is the library's own."""
        wanted = check_threads(threads)
        if wanted == 0 and descriptor.threads == 0:
            wanted = native.default_threads()
        self = cls.__new__(cls)
        self._open(descriptor, runtime, runtime.model, wanted, [])
        return self

    def _open(self, descriptor: Descriptor, runtime: native.Runtime, struct: native.Model | None, threads: int,
              held: list[Any]) -> None:
        self.descriptor = descriptor
        self._runtime = runtime
        drivers.announce(descriptor.device)
        handle = runtime.open(struct, threads)
        if handle is None:
            raise _failure(runtime, runtime.error_code(), descriptor.device, descriptor.image)
        self._handle: int | None = handle
        self._held = held
        self._flags = 0
        self._callbacks: dict[int, Any] = {}  # by host-call slot, -1 the tap: what C holds pointers to
        self._pending = threading.local()     # the exception of a callback on this thread
        self._finalizer = weakref.finalize(self, _destroy, runtime, handle, held, self._callbacks)
        self._finalizer.atexit = False
        native.use_outputs(1)  # a saved library has a runtime of its own, and outputs in memory of this one
        self._ended = weakref.finalize(self, native.use_outputs, -1)
        self._ended.atexit = False
        self._input_count = len(descriptor.inputs)
        self._arguments: list[Arguments] = []  # those that no run uses now
        self._static = all(spec.is_static for spec in descriptor.outputs)

    # ---- running ----
    def run(self, inputs: Sequence[Any], outputs: Sequence[Array] | None = None) -> list[Array]:
        """The outputs for `inputs`, both in the descriptor's order.

        Inputs are NumPy arrays or objects with `__dlpack__`; what is large is not copied. `outputs`: arrays to write to,
        instead of new ones (fixed shapes only). Raises UserError: "model-closed", "input-count", "input-type",
        "input-dtype", "input-shape", "input-layout", "input-device", "output-array", and the model's own failures "run-…".
        """
        handle = self._opened()
        if len(inputs) != self._input_count:
            raise UserError("input-count", f"{self.descriptor.name} has {self._input_count} inputs "
                            f"({', '.join(s.name for s in self.descriptor.inputs)}), got {len(inputs)}")
        if outputs is not None and len(outputs) != len(self.descriptor.outputs):
            raise UserError("output-array", f"{self.descriptor.name} has {len(self.descriptor.outputs)} outputs, "
                            f"got {len(outputs)} arrays for them")
        try:
            arguments = self._arguments.pop()
        except IndexError:  # all are in use: several threads run the model, or a callback of a run does
            arguments = Arguments(self.descriptor)
        if outputs is None or not self._static:
            status, results = arguments.run(self._runtime, handle, inputs)
        else:
            status, results = arguments.run_into(self._runtime, handle, inputs, outputs), list(outputs)
        self._arguments.append(arguments)
        if status or self._callbacks:
            self._check(status)
        return results

    def _check(self, status: int) -> None:
        """Raises what a callback raised during the run, else the model's failure, if any."""
        error = getattr(self._pending, "error", None)
        if error is not None:
            self._pending.error = None
            raise error
        if status:
            raise _failure(self._runtime, status)

    # ---- settings ----
    @property
    def threads(self) -> int:
        """Participants of a parallel region; set to 0, as many as this process has CPUs. Raises UserError
        "threads-invalid"."""
        return int(self._runtime.get_threads(self._opened()))

    @threads.setter
    def threads(self, threads: int) -> None:
        self._runtime.set_threads(self._opened(), check_threads(threads) or native.default_threads())

    def _opened(self) -> int:
        if self._handle is None:
            raise UserError("model-closed", f"{self.descriptor.name} was closed", hint="compile or load it again")
        return self._handle

    def _set_flag(self, flag: int, on: bool) -> None:
        handle = self._opened()
        self._flags = self._flags | flag if on else self._flags & ~flag
        self._runtime.set_flags(handle, self._flags)

    def set_poison(self, on: bool) -> None:
        """Fill the arena with NaN before each run, so that reading what nothing wrote shows."""
        self._set_flag(native.POISON, on)

    def set_profiling(self, on: bool) -> None:
        """Measure each kernel from the next run on."""
        self._set_flag(native.PROFILE, on)

    def profile(self, *, reset: bool = False) -> list[KernelTime]:
        """Time per kernel, in the order of `descriptor.kernels`, over the runs made with `set_profiling(True)`."""
        names = self.descriptor.kernels
        numbers = (ctypes.c_uint64 * (2 * len(names) + 1))()
        self._runtime.profile(self._opened(), numbers, int(reset))
        return [KernelTime(name, numbers[2 * i] * 1e-9, numbers[2 * i + 1]) for i, name in enumerate(names)]

    def set_tap(self, tap: Callable[[int, Array], None] | None) -> None:
        """Call `tap(number of the value, its bytes as a uint8 array of its own)` for each value that the code reports."""
        handle = self._opened()
        if tap is None:
            self._set_flag(native.TAP, False)
            self._runtime.set_tap(handle, native.TAP_FUNCTION(0), None)
            self._callbacks.pop(-1, None)
            return
        pending, chosen = self._pending, tap

        def call(_user: int | None, value: int, data: int | None, nbytes: int) -> None:
            try:
                chosen(value, np.frombuffer(ctypes.string_at(data or 0, nbytes), np.uint8).copy())
            except BaseException as error:  # noqa: BLE001 – C cannot carry it: run raises it
                pending.error = error

        function = native.TAP_FUNCTION(call)
        self._runtime.set_tap(handle, function, None)
        self._callbacks[-1] = function
        self._set_flag(native.TAP, True)

    def set_host_call(self, slot: int, function: Callable[[list[int]], None]) -> None:
        """Let host call `slot` of the code run `function(addresses of the arguments)`. What it raises, `run` raises."""
        pending = self._pending

        def call(_user: int | None, args: Any, n: int) -> int:
            try:
                function([args[i] or 0 for i in range(n)])
            except BaseException as error:  # noqa: BLE001 – C cannot carry it: run raises it
                pending.error = error
                return 1
            return 0

        pointer = native.HOST_FUNCTION(call)
        status = self._runtime.set_host_call(self._opened(), slot, pointer, None)
        if status:
            raise _failure(self._runtime, status)
        self._callbacks[slot] = pointer

    @property
    def context_bytes(self) -> int:
        """Memory that the contexts of concurrent runs hold now: arenas and growable allocations."""
        return int(self._runtime.memory(self._opened()))

    # ---- the end ----
    def close(self) -> None:
        """Waits for running calls and gives the memory back; a later run raises UserError "model-closed"."""
        handle = self._handle
        if handle is None:
            return
        status = self._runtime.close(handle)
        if status:
            raise _failure(self._runtime, status)
        self._handle = None
        self._held.clear()
        self._ended()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _destroy(runtime: native.Runtime, handle: int, held: list[Any], callbacks: dict[int, Any]) -> None:
    """Ends an Executable that nobody holds any more; `held` must outlive the handle."""
    runtime.destroy(handle)
    held.clear()
    callbacks.clear()


def _placed(consts: Array) -> Array:
    """The weights where vector loads like them: as given if contiguous and aligned, else a copy."""
    if consts.flags.c_contiguous and address_of(consts) % native.ALIGNMENT == 0:
        return consts
    block = aligned(consts.nbytes)
    block[:] = np.ascontiguousarray(consts).reshape(-1).view(np.uint8)
    return block


def _failure(runtime: native.Runtime, status: int, device: str = "", image: bytes = b"") -> UserError:
    """The error for a status that the runtime returned on this thread; `image`: what a driver may have rejected."""
    words = runtime.error().decode(errors="replace")
    code = _CODES.get(status, "run-failed")
    hint = drivers.HINTS.get(device, "") if code == "device-missing" else _HINTS.get(status, "")
    where = rejected_line(image.decode(errors="replace"), words) if code == "run-device" else ""
    return UserError(code, words, where=where, hint=hint)


__all__ = ["Executable", "KernelTime", "TensorSpec"]
