"""What the runtime must know of a model. In: the compiler's facts, or the C struct of a saved library. Out: `Descriptor`,
and the C struct `tw_model` of an in-process model.
"""
from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tilewright.core.dtype import DType
from tilewright.core.errors import UserError
from tilewright.runtime import native


@dataclass(frozen=True)
class SymbolSpec:
    """A size that the inputs of a run choose: from `least` to `most` (None: any), a multiple of `multiple`."""
    name: str
    least: int = 1
    most: int | None = None
    multiple: int = 1


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: its elements' type and its shape, -1 where a dimension is symbolic. Of an input, `symbols` has for
    each axis the number of its symbol or -1, or is empty."""
    name: str
    dtype: DType
    shape: tuple[int, ...]
    symbols: tuple[int, ...] = ()

    @property
    def is_static(self) -> bool:
        return min(self.shape, default=0) >= 0

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join('?' if d < 0 else str(d) for d in self.shape)}]"


@dataclass(frozen=True)
class Descriptor:
    """A compiled model without its code and weights.

    `arena_bytes`: planned temporaries of one run. `kernels`: names in the order of the numbers given to tw_profile_begin.
    `cpu_features`: LLVM's names; those that the runtime can detect (`native.cpu_feature_bits`) are checked before the
    code runs. `grown_count`, `host_count`: slots of tw_grow and tw_host_call. `threads`: 0 = what the machine gives.
    `symbols`: the sizes that inputs choose. `metadata`: plain data for JSON. `device`: the runtime's name of the
    device that runs the kernels ("" for the CPU), and `image` their module as its driver takes it.
    """
    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    arena_bytes: int = 0
    kernels: tuple[str, ...] = ()
    cpu_features: tuple[str, ...] = ()
    grown_count: int = 0
    host_count: int = 0
    threads: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    symbols: tuple[SymbolSpec, ...] = ()
    device: str = ""
    image: bytes = b""

    def feature_mask(self) -> int:
        bits = native.cpu_feature_bits()
        mask = 0
        for name in self.cpu_features:
            mask |= bits.get(name, 0)
        return mask


def check_threads(threads: int | None) -> int:
    """`threads` as the runtime takes it: 0, as None, for its own choice. Raises UserError "threads-invalid" unless it is a
    number from 0 to 1024."""
    if threads is None:
        return 0
    if isinstance(threads, bool) or not isinstance(threads, int) or not 0 <= threads <= 1024:
        raise UserError("threads-invalid", f"threads={threads!r} is not a number from 1 to 1024",
                        hint="leave it out (or give 0) to use every CPU that this process may use")
    return threads


def missing_features(features: Iterable[str]) -> list[str]:
    """Those of the CPU features (LLVM's names) that this machine is known not to have."""
    known, here = native.cpu_feature_bits(), set(native.host_features())
    return sorted(f for f in features if f in known and f not in here)


def _tensor_infos(specs: tuple[TensorSpec, ...]) -> Any:
    infos = (native.TensorInfo * max(1, len(specs)))()
    for info, spec in zip(infos, specs, strict=False):
        if len(spec.shape) > native.MAX_RANK:
            raise UserError("rank-too-large", f"{spec.name} has {len(spec.shape)} dimensions, at most "
                            f"{native.MAX_RANK} are possible", where=spec.name)
        info.name, info.rank = spec.name.encode(), len(spec.shape)
        info.dtype = native.DTYPE_CODES[spec.dtype.name]
        info.shape = (ctypes.c_int64 * max(1, len(spec.shape)))(*spec.shape)
        if spec.symbols:
            info.symbols = (ctypes.c_int32 * len(spec.symbols))(*spec.symbols)
    return infos


def to_struct(descriptor: Descriptor, entry: int, consts: int, consts_bytes: int) -> native.Model:
    """The C struct for an in-process model (it keeps its parts alive). `entry`, `consts`: addresses."""
    kernels = descriptor.kernels
    return native.Model(
        abi_version=native.ABI_VERSION, input_count=len(descriptor.inputs), output_count=len(descriptor.outputs),
        kernel_count=len(kernels), name=descriptor.name.encode(), inputs=_tensor_infos(descriptor.inputs),
        outputs=_tensor_infos(descriptor.outputs),
        kernels=(ctypes.c_char_p * max(1, len(kernels)))(*(k.encode() for k in kernels)),
        arena_bytes=descriptor.arena_bytes, consts=consts, consts_bytes=consts_bytes,
        cpu_features=descriptor.feature_mask(), entry=entry, metadata=json.dumps(dict(descriptor.metadata)).encode(),
        grown_count=descriptor.grown_count, host_count=descriptor.host_count, threads=descriptor.threads,
        symbol_count=len(descriptor.symbols), symbols=_symbols(descriptor.symbols),
        device=descriptor.device.encode() or None, image=descriptor.image or None, image_bytes=len(descriptor.image))


def _symbols(specs: tuple[SymbolSpec, ...]) -> Any:
    rows = (native.Symbol * max(1, len(specs)))()
    for row, s in zip(rows, specs, strict=False):
        row.name, row.least, row.multiple = s.name.encode(), s.least, s.multiple
        row.most = -1 if s.most is None else s.most
    return rows


def from_struct(model: native.Model, runtime: native.Runtime) -> Descriptor:
    """What a saved library says of itself."""
    def specs(infos: Any, count: int) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(i.name.decode(), native.dtype_of_code(i.dtype), tuple(i.shape[:i.rank]),
                                tuple(i.symbols[:i.rank]) if i.symbols else ()) for i in infos[:count])

    return Descriptor(
        name=model.name.decode(), inputs=specs(model.inputs, model.input_count),
        outputs=specs(model.outputs, model.output_count), arena_bytes=model.arena_bytes,
        kernels=tuple(k.decode() for k in model.kernels[:model.kernel_count]),
        cpu_features=tuple(runtime.feature_names(model.cpu_features)), grown_count=model.grown_count,
        host_count=model.host_count, threads=model.threads, metadata=json.loads(model.metadata),
        symbols=tuple(SymbolSpec(s.name.decode(), s.least, None if s.most < 0 else s.most, s.multiple)
                      for s in model.symbols[:model.symbol_count]),
        device=(model.device or b"").decode())
