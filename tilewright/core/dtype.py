"""Element types, shared by both IRs: what a number is, how many bits it has, how many lanes travel together.

A dtype says what an element *means*; how elements are packed in memory (two int4 in a byte) is the `packing` of a
buffer (`loop.ir.Buffer`), so an int4 value computes the same wherever it is stored.
"""
from __future__ import annotations

from typing import Any, Literal

from tilewright.core.errors import InternalError, UserError

Kind = Literal["float", "int", "uint", "bool", "handle"]

_INTERNED: dict[tuple[str, int], DType] = {}


class DType:
    """An element type, interned: `f32 is dtype("f32")`. `lanes` > 1 is a vector value of the loop IR.

    Attributes: `name` ("f32"), `kind`, `bits` of one element (bool counts 8: it is stored as a byte), `lanes`.
    """

    __slots__ = ("name", "kind", "bits", "lanes")

    name: str
    kind: Kind
    bits: int
    lanes: int

    def __init__(self, name: str, kind: Kind, bits: int, lanes: int = 1) -> None:
        self.name, self.kind, self.bits, self.lanes = name, kind, bits, lanes
        if (name, lanes) in _INTERNED:
            raise InternalError(f"dtype {name} with {lanes} lanes declared twice")
        _INTERNED[name, lanes] = self

    def with_lanes(self, lanes: int) -> DType:
        """The same element in a vector of `lanes`."""
        got = _INTERNED.get((self.name, lanes))
        return got if got is not None else DType(self.name, self.kind, self.bits, lanes)

    @property
    def element(self) -> DType:
        return self.with_lanes(1)

    @property
    def nbytes(self) -> int:
        """Bytes of one unpacked element in memory (sub-byte types occupy a byte unless a buffer packs them)."""
        return max(1, self.bits // 8)

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_int(self) -> bool:
        """Signed or unsigned integer (bool is neither)."""
        return self.kind in ("int", "uint")

    @property
    def is_bool(self) -> bool:
        return self.kind == "bool"

    def range(self) -> tuple[int, int]:
        """Smallest and largest value of an integer type."""
        if self.kind == "int":
            return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
        if self.kind == "uint":
            return 0, (1 << self.bits) - 1
        raise InternalError(f"{self} has no integer range")

    def numpy(self) -> Any:
        """The NumPy dtype of one element (ml_dtypes for bf16, float8, float4 and the small integers)."""
        import numpy as np
        if self.name in _NUMPY:
            return np.dtype(_NUMPY[self.name])
        import ml_dtypes
        return np.dtype(getattr(ml_dtypes, _ML_DTYPES[self.name]))

    def __repr__(self) -> str:
        return self.name if self.lanes == 1 else f"{self.name}x{self.lanes}"

    def __reduce__(self) -> tuple[Any, ...]:
        return dtype, (repr(self),)


f64 = DType("f64", "float", 64)
f32 = DType("f32", "float", 32)
f16 = DType("f16", "float", 16)
bf16 = DType("bf16", "float", 16)
f8e4m3fn = DType("f8e4m3fn", "float", 8)
f8e4m3fnuz = DType("f8e4m3fnuz", "float", 8)
f8e5m2 = DType("f8e5m2", "float", 8)
f8e5m2fnuz = DType("f8e5m2fnuz", "float", 8)
f8e8m0fnu = DType("f8e8m0fnu", "float", 8)
f4e2m1fn = DType("f4e2m1fn", "float", 4)
i64, i32, i16, i8, i4, i2 = (DType(f"i{b}", "int", b) for b in (64, 32, 16, 8, 4, 2))
u64, u32, u16, u8, u4, u2 = (DType(f"u{b}", "uint", b) for b in (64, 32, 16, 8, 4, 2))
boolean = DType("bool", "bool", 8)
handle = DType("handle", "handle", 64)

_NUMPY = {"f64": "float64", "f32": "float32", "f16": "float16", "i64": "int64", "i32": "int32", "i16": "int16",
          "i8": "int8", "u64": "uint64", "u32": "uint32", "u16": "uint16", "u8": "uint8", "bool": "bool",
          "handle": "uint64"}
_ML_DTYPES = {"bf16": "bfloat16", "f8e4m3fn": "float8_e4m3fn", "f8e4m3fnuz": "float8_e4m3fnuz",
              "f8e5m2": "float8_e5m2", "f8e5m2fnuz": "float8_e5m2fnuz", "f8e8m0fnu": "float8_e8m0fnu",
              "f4e2m1fn": "float4_e2m1fn", "i4": "int4", "u4": "uint4", "i2": "int2", "u2": "uint2"}
_FROM_NUMPY = {v: k for k, v in _NUMPY.items() if k != "handle"} | {v: k for k, v in _ML_DTYPES.items()}


def dtype(spec: Any) -> DType:
    """A DType from its name ("f32", "f32x16"), a NumPy dtype, or itself. Raises UserError for an unknown one."""
    if isinstance(spec, DType):
        return spec
    if isinstance(spec, str):
        name, _, lanes = spec.partition("x") if spec[-1].isdigit() and "x" in spec else (spec, "", "")
        base = _INTERNED.get((name, 1))
        if base is not None:
            return base.with_lanes(int(lanes)) if lanes else base
    import numpy as np
    try:
        name = np.dtype(spec).name
    except TypeError:
        name = str(spec)
    if name in _FROM_NUMPY:
        return _INTERNED[_FROM_NUMPY[name], 1]
    raise UserError("dtype-unknown", f"there is no element type {spec!r}",
                    hint="known types: " + ", ".join(sorted(n for n, lanes in _INTERNED if lanes == 1)))
