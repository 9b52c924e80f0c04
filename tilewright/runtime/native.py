"""ctypes binding of the C runtime. In: the built shared library beside this file. Out: its table of functions, typed, and
the addresses that generated code is linked against.

A saved library carries the same table (`Runtime`), so in-process and loaded models are driven by the same code.
"""
from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, Structure, c_char_p, c_int32, c_int64, c_uint64, c_void_p
from importlib import machinery
from pathlib import Path
from typing import Any

from tilewright.core.dtype import DType, dtype
from tilewright.core.errors import InternalError, UserError

ABI_VERSION = 3
MAX_RANK = 16
ALIGNMENT = 64
PROFILE, TAP, POISON = 1, 2, 4

NATIVE_FOLDER = Path(__file__).with_name("native")

# The functions that generated code may call: tilewright_abi.h says what they do.
GENERATED_CODE_CALLS = ("tw_parallel", "tw_parallel_turn", "tw_worker", "tw_fail", "tw_fail_values", "tw_grow",
                        "tw_grow_kept", "tw_output", "tw_host_call", "tw_profile_begin", "tw_profile_end", "tw_tap",
                        "tw_launch", "tw_upload", "tw_download", "tw_move", "tw_replay", "tw_captured")

DEVICES = ("opencl", "webgpu", "cuda")
"""Devices beside the CPU that this runtime can open (device.c)."""

DTYPE_CODES: dict[str, int] = {
    "f64": 1, "f32": 2, "f16": 3, "bf16": 4, "f8e4m3fn": 5, "f8e4m3fnuz": 6, "f8e5m2": 7, "f8e5m2fnuz": 8,
    "f8e8m0fnu": 9, "f4e2m1fn": 10, "i64": 16, "i32": 17, "i16": 18, "i8": 19, "i4": 20, "i2": 21,
    "u64": 32, "u32": 33, "u16": 34, "u8": 35, "u4": 36, "u2": 37, "bool": 48}
_DTYPE_NAMES = {code: name for name, code in DTYPE_CODES.items()}


def dtype_of_code(code: int) -> DType:
    """The element type that a descriptor's number stands for."""
    return dtype(_DTYPE_NAMES[code])


class TensorInfo(Structure):
    """tw_tensor_info"""
    _fields_ = [("name", c_char_p), ("shape", POINTER(c_int64)), ("dtype", c_int32), ("rank", c_int32),
                ("symbols", POINTER(c_int32))]


class Symbol(Structure):
    """tw_symbol"""
    _fields_ = [("name", c_char_p), ("least", c_int64), ("most", c_int64), ("multiple", c_int64)]


class Result(Structure):
    """tw_result"""
    _fields_ = [("data", c_void_p), ("bytes", c_int64), ("rank", c_int32), ("shape", c_int64 * MAX_RANK)]


class Model(Structure):
    """tw_model"""
    _fields_ = [("abi_version", c_int32), ("input_count", c_int32), ("output_count", c_int32),
                ("kernel_count", c_int32), ("name", c_char_p), ("inputs", POINTER(TensorInfo)),
                ("outputs", POINTER(TensorInfo)), ("kernels", POINTER(c_char_p)), ("arena_bytes", c_int64),
                ("consts", c_void_p), ("consts_bytes", c_int64), ("cpu_features", c_uint64), ("entry", c_void_p),
                ("metadata", c_char_p), ("grown_count", c_int32), ("host_count", c_int32), ("threads", c_int32),
                ("symbol_count", c_int32), ("symbols", POINTER(Symbol)),
                ("device", c_char_p), ("image", c_char_p), ("image_bytes", c_int64)]


HOST_FUNCTION = ctypes.CFUNCTYPE(c_int32, c_void_p, POINTER(c_void_p), c_int32)
TAP_FUNCTION = ctypes.CFUNCTYPE(None, c_void_p, c_int32, c_void_p, c_int64)

_TABLE: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
    ("open", c_void_p, (POINTER(Model), c_int32)),
    ("close", c_int32, (c_void_p,)),
    ("destroy", None, (c_void_p,)),
    ("run", c_int32, (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)),
    ("error", c_char_p, ()),
    ("error_code", c_int32, ()),
    ("set_threads", c_int32, (c_void_p, c_int32)),
    ("get_threads", c_int32, (c_void_p,)),
    ("set_flags", None, (c_void_p, c_int32)),
    ("set_tap", None, (c_void_p, TAP_FUNCTION, c_void_p)),
    ("set_host_call", c_int32, (c_void_p, c_int32, HOST_FUNCTION, c_void_p)),
    ("profile", None, (c_void_p, POINTER(c_uint64), c_int32)),
    ("memory", c_int64, (c_void_p,)),
    ("release", None, (c_void_p,)),
    ("cpu_features", c_uint64, ()),
    ("cpu_feature_name", c_char_p, (c_int32,)),
)


class _Table(Structure):
    """tw_runtime"""
    _fields_ = [("abi_version", c_int32), ("bytes", c_int32), ("model", POINTER(Model)),
                *((name, c_void_p) for name, _, _ in _TABLE)]


class Runtime:
    """The functions of one copy of the runtime; `library` keeps it loaded. `model` is the saved model, None in-process.

    Raises UserError "artifact-version" if the copy has another ABI.
    """

    open: Any
    close: Any
    destroy: Any
    run: Any
    error: Any
    error_code: Any
    set_threads: Any
    get_threads: Any
    set_flags: Any
    set_tap: Any
    set_host_call: Any
    profile: Any
    memory: Any
    release: Any
    cpu_features: Any
    cpu_feature_name: Any

    def __init__(self, library: ctypes.CDLL, where: str) -> None:
        find = library.tilewright_runtime
        find.restype, find.argtypes = POINTER(_Table), ()
        table = find().contents
        if table.abi_version != ABI_VERSION or table.bytes != ctypes.sizeof(_Table):
            raise UserError("artifact-version", f"the library is of runtime version {table.abi_version}, "
                            f"this Tilewright reads version {ABI_VERSION}", where=where,
                            hint="compile the model again with this Tilewright")
        self.library = library
        self.model: Model | None = table.model.contents if table.model else None
        for name, result, arguments in _TABLE:
            setattr(self, name, ctypes.CFUNCTYPE(result, *arguments)(getattr(table, name)))

    def free(self, address: int) -> None:
        """Gives back an output's memory. A method, so that who holds it holds this copy of the runtime."""
        self.release(address)

    def feature_names(self, mask: int) -> list[str]:
        """The names of the CPU features whose bits are set, as LLVM spells them."""
        names = (self.cpu_feature_name(bit) for bit in range(64) if mask >> bit & 1)
        return [name.decode() for name in names if name is not None]


@functools.cache
def _library() -> ctypes.CDLL:
    for suffix in machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_native" + suffix)
        if path.exists():
            return ctypes.CDLL(str(path))
    raise UserError("runtime-not-built", "the C runtime of this Tilewright has not been built", where=str(NATIVE_FOLDER),
                    hint="install the package (`pip install .`), or run `python setup.py build_ext --inplace`")


@functools.cache
def runtime() -> Runtime:
    """The in-process runtime, loaded when first asked for. Raises UserError "runtime-not-built"."""
    return Runtime(_library(), "the installed runtime")


def symbol_addresses() -> dict[str, int]:
    """Addresses of the functions that generated code may call, for the linker of in-process code."""
    addresses = {}
    for name in GENERATED_CODE_CALLS:
        address = ctypes.cast(getattr(_library(), name), c_void_p).value
        if address is None:
            raise InternalError(f"the runtime has no {name}")
        addresses[name] = address
    return addresses


class _Device(Structure):
    """tw_device, as far as it is used here"""
    _fields_ = [("name", c_char_p), ("state", c_void_p), ("open", ctypes.CFUNCTYPE(c_int32, c_void_p)),
                *[(name, c_void_p) for name in ("alloc", "free", "copy", "load", "unload", "launch", "sync")],
                ("error", ctypes.CFUNCTYPE(c_char_p, c_void_p))]


def open_device(name: str) -> str:
    """Opens one of `DEVICES`; what keeps it from opening, "" if nothing does."""
    try:
        count = c_int32.in_dll(_library(), "tw_device_count").value
    except ValueError:
        return "the C runtime was built from other sources: build it again"
    table = (POINTER(_Device) * count).in_dll(_library(), "tw_devices")
    device = next((d for d in table if d.contents.name == name.encode()), None)
    if device is None:
        return f"the C runtime knows no {name} devices: build it again"
    if device.contents.open(ctypes.cast(device, c_void_p)) == 0:
        return ""
    return (device.contents.error(ctypes.cast(device, c_void_p)) or b"").decode(errors="replace")


def cpu_feature_bits() -> dict[str, int]:
    """Every feature that a model can require, by LLVM's name → its bit in `tw_model.cpu_features`."""
    bits = {}
    for bit in range(64):
        name = runtime().cpu_feature_name(bit)
        if name is not None:
            bits[name.decode()] = 1 << bit
    return bits


def host_features() -> list[str]:
    """CPU features of this machine that the system lets programs use, as LLVM spells them."""
    return runtime().feature_names(runtime().cpu_features())


def default_threads() -> int:
    """TILEWRIGHT_THREADS, else min(CPUs in the affinity mask, control-group quota). Raises UserError "threads-invalid"."""
    threads = int(_library().tw_default_threads())
    if threads == 0:
        raise UserError("threads-invalid", "TILEWRIGHT_THREADS is not a number from 1 to 1024",
                        hint="unset it to use every CPU that this process may use")
    return threads


def cgroup_quota(root: str = "/sys/fs/cgroup", membership: str = "/proc/self/cgroup") -> int:
    """CPUs granted by control groups, rounded down, at least 1; 0 when there is no limit."""
    function = _library().tw_quota
    function.restype, function.argtypes = c_int32, (c_char_p, c_char_p)
    return int(function(root.encode(), membership.encode()))


@functools.cache
def _function(name: str, result: Any, *arguments: Any) -> Any:
    """One of the runtime's functions that models do not call. Raises UserError "runtime-not-built" where it is not there."""
    try:
        function = getattr(_library(), name)
    except AttributeError:
        raise UserError("runtime-not-built", "the C runtime was built from other sources", where=str(NATIVE_FOLDER),
                        hint="build it again: `python setup.py build_ext --inplace`") from None
    function.restype, function.argtypes = result, arguments
    return function


def _memory(address: int | None, nbytes: int) -> int:
    if address is None:
        raise MemoryError(f"no memory for {nbytes} bytes")
    return address


def map_pages(nbytes: int) -> int:
    """Address of zeroed pages (2 MiB aligned, huge where possible, from 4 MiB on). Raises MemoryError."""
    return _memory(_function("tw_map", c_void_p, c_int64)(nbytes), nbytes)


def unmap_pages(address: int, nbytes: int) -> None:
    """Gives back what `map_pages(nbytes)` returned."""
    _function("tw_unmap", None, c_void_p, c_int64)(address, nbytes)


def take_block(nbytes: int) -> int:
    """Address of memory for an output, aligned, not zeroed. Raises MemoryError."""
    return _memory(_function("tw_take", c_void_p, c_int64)(nbytes), nbytes)


def release_block(address: int) -> None:
    """Gives back what `take_block` returned; it may be kept for the next output of its size."""
    _function("tw_release", None, c_void_p)(address)


def use_outputs(more: int) -> None:
    """Blocks that were given back are kept while somebody runs models, who says so by 1 and at the end by -1."""
    _function("tw_use_outputs", None, c_int32)(more)
