"""LLVM code generation, casts: between any two element types, of any number of lanes.

Floats below 32 bits are bit patterns; `to_float` and `from_float` convert them exactly and round to nearest, ties to
even, as ml_dtypes does (overflow gives infinity where the format has one, else NaN), by integer operations alone, except
that f16 uses the CPU's conversion where there is one.
"""
from __future__ import annotations

from dataclasses import dataclass

from tilewright.codegen.llvm.function import Function
from tilewright.codegen.llvm.types import is_small_float, literal, register_type, splat, vector_of
from tilewright.core.dtype import DType, f32, f64, i64
from tilewright.core.errors import InternalError


@dataclass(frozen=True)
class Format:
    """A float format: `nan` and `inf` are bit patterns without sign; `unsigned_zero`: the pattern of -0 is the NaN."""

    exponent: int
    mantissa: int
    bias: int
    largest: int
    inf: int | None
    nan: int | None
    unsigned_zero: bool = False


FORMATS: dict[str, Format] = {
    "f16": Format(5, 10, 15, 0x7BFF, 0x7C00, 0x7E00),
    "f8e4m3fn": Format(4, 3, 7, 0x7E, None, 0x7F),
    "f8e4m3fnuz": Format(4, 3, 8, 0x7F, None, 0x80, unsigned_zero=True),
    "f8e5m2": Format(5, 2, 15, 0x7B, 0x7C, 0x7E),
    "f8e5m2fnuz": Format(5, 2, 16, 0x7F, None, 0x80, unsigned_zero=True),
    "f4e2m1fn": Format(2, 1, 1, 0x7, None, None),
}


class _Ops:
    """Integer operations on vectors of one shape, so that the conversions below read as formulas."""

    def __init__(self, f: Function, lanes: int) -> None:
        self.f, self.lanes = f, lanes
        self.int = vector_of("i32", lanes)
        self.float = vector_of("float", lanes)

    def k(self, value: int) -> str:
        return str(value) if self.lanes == 1 else f"splat (i32 {value})"

    def bin(self, op: str, a: str, b: str | int) -> str:
        return self.f.op(f"{op} {self.int} {a}, {self.k(b) if isinstance(b, int) else b}")

    def cmp(self, pred: str, a: str, b: str | int) -> str:
        return self.bin(f"icmp {pred}", a, b)

    def select(self, cond: str, a: str | int, b: str | int) -> str:
        x, y = (self.k(v) if isinstance(v, int) else v for v in (a, b))
        return self.f.op(f"select {vector_of('i1', self.lanes)} {cond}, {self.int} {x}, {self.int} {y}")

    def bits(self, v: str) -> str:
        return self.f.op(f"bitcast {self.float} {v} to {self.int}")

    def as_float(self, v: str) -> str:
        return self.f.op(f"bitcast {self.int} {v} to {self.float}")


def to_float(f: Function, v: str, t: DType) -> str:
    """Bit patterns of the small float type `t` as f32 values; exact."""
    o = _Ops(f, t.lanes)
    if t.name == "f16" and _has_half(f):
        h = f.op(f"bitcast {register_type(t)} {v} to {vector_of('half', t.lanes)}")
        return f.op(f"fpext {vector_of('half', t.lanes)} {h} to {o.float}")
    x = f.op(f"zext {register_type(t)} {v} to {o.int}")
    if t.name == "bf16":
        return o.as_float(o.bin("shl", x, 16))
    if t.name == "f8e8m0fnu":
        value = o.select(o.cmp("eq", x, 0), 0x00400000, o.bin("shl", x, 23))
        return o.as_float(o.select(o.cmp("eq", x, 255), 0x7FC00000, value))
    fmt = FORMATS[t.name]
    sign_at = fmt.exponent + fmt.mantissa
    magnitude = o.bin("and", x, (1 << sign_at) - 1)
    sign = o.bin("shl", o.bin("lshr", x, sign_at), 31)
    shifted = o.bin("shl", magnitude, 23 - fmt.mantissa)
    normal = o.bin("add", shifted, (127 - fmt.bias) << 23)
    unit = literal(2.0 ** (1 - fmt.bias - fmt.mantissa), f32)
    as_number = f.op(f"uitofp {o.int} {magnitude} to {o.float}")
    scaled = f.op(f"fmul {o.float} {as_number}, {splat(unit, f32.with_lanes(t.lanes))}")
    value = o.select(o.cmp("ult", magnitude, 1 << fmt.mantissa), o.bits(scaled), normal)
    if fmt.inf is not None:
        special = o.bin("or", shifted, 0x7F800000)
        value = o.select(o.cmp("uge", magnitude, fmt.inf), special, value)
    elif fmt.nan is not None and not fmt.unsigned_zero:
        value = o.select(o.cmp("eq", magnitude, fmt.nan), 0x7FC00000, value)
    value = o.bin("or", value, sign)
    if fmt.unsigned_zero and fmt.nan is not None:
        value = o.select(o.cmp("eq", x, fmt.nan), 0x7FC00000, value)
    return o.as_float(value)


def from_float(f: Function, v: str, t: DType) -> str:
    """f32 values rounded to the small float type `t`, as bit patterns."""
    o = _Ops(f, t.lanes)
    if t.name == "f16" and _has_half(f):
        h = f.op(f"fptrunc {o.float} {v} to {vector_of('half', t.lanes)}")
        return f.op(f"bitcast {vector_of('half', t.lanes)} {h} to {register_type(t)}")
    bits = o.bits(v)
    if t.name == "bf16":
        out = _round_bfloat(o, bits)
    elif t.name == "f8e8m0fnu":
        out = _round_exponent(o, bits)
    else:
        out = _round(f, o, bits, FORMATS[t.name])
    return f.op(f"trunc {o.int} {out} to {register_type(t)}")


def _round_bfloat(o: _Ops, bits: str) -> str:
    odd = o.bin("and", o.bin("lshr", bits, 16), 1)
    rounded = o.bin("lshr", o.bin("add", o.bin("add", bits, 0x7FFF), odd), 16)
    quiet = o.bin("or", o.bin("lshr", bits, 16), 0x40)
    is_nan = o.cmp("ugt", o.bin("and", bits, 0x7FFFFFFF), 0x7F800000)
    return o.select(is_nan, quiet, rounded)


def _round_exponent(o: _Ops, bits: str) -> str:
    """The nearest power of two (ties to the even exponent's neighbour, as the bits of an f32 round)."""
    exponent = o.bin("lshr", bits, 23)
    half = o.bin("and", bits, 0x7FFFFF)
    tie_up = o.bin("and", exponent, 1)
    threshold = o.bin("sub", o.k(0x400000), tie_up)
    up = o.select(o.cmp("ugt", half, threshold), 1, 0)
    rounded = o.bin("add", exponent, up)
    bad = o.cmp("ugt", bits, 0x7F000000 | 0x400000)
    return o.select(bad, 255, rounded)


def _round(f: Function, o: _Ops, bits: str, fmt: Format) -> str:
    sign_at = fmt.exponent + fmt.mantissa
    magnitude = o.bin("and", bits, 0x7FFFFFFF)
    sign = o.bin("shl", o.bin("lshr", bits, 31), sign_at)
    drop = 23 - fmt.mantissa
    odd = o.bin("and", o.bin("lshr", magnitude, drop), 1)
    biased = o.bin("add", o.bin("add", magnitude, (1 << (drop - 1)) - 1), odd)
    normal = o.bin("sub", o.bin("lshr", biased, drop), (127 - fmt.bias) << fmt.mantissa)
    # A subnormal result: adding 2^(23 + exponent of its unit) rounds at that unit and leaves it in the low bits.
    magic = (127 + 23 + 1 - fmt.bias - fmt.mantissa) << 23
    total = f.op(f"fadd {o.float} {o.as_float(magnitude)}, "
                 f"{o.f.op(f'bitcast {o.int} {o.k(magic)} to {o.float}')}")
    small = o.bin("sub", o.bits(total), magic)
    smallest_normal = (128 - fmt.bias) << 23
    value = o.select(o.cmp("ult", magnitude, smallest_normal), small, normal)
    over = fmt.inf if fmt.inf is not None else fmt.nan if fmt.nan is not None else fmt.largest
    too_large = o.cmp("sgt", value, fmt.largest)
    value = o.select(too_large, over, value)
    is_nan = o.cmp("ugt", magnitude, 0x7F800000)
    if fmt.nan is not None:
        value = o.select(is_nan, fmt.nan, value)
    if not fmt.unsigned_zero:
        return o.bin("or", value, sign)
    signed = o.select(o.cmp("eq", value, 0), 0, o.bin("or", value, sign))
    return signed


def _has_half(f: Function) -> bool:
    return f.target.has("f16c")


def cast(f: Function, v: str, source: DType, to: DType) -> str:
    """`v` of type `source` as `to` (same lanes). Float to integer truncates; to bool is `!= 0`."""
    if source is to:
        return v
    if source.kind == "handle" or to.kind == "handle":
        raise InternalError(f"a cast from {source} to {to}")
    if is_small_float(source):
        v, source = to_float(f, v, source), f32.with_lanes(source.lanes)
        if source is to:
            return v
    if is_small_float(to):
        return from_float(f, _towards_small(f, v, source), to)
    st, tt = register_type(source), register_type(to)
    if to.is_bool:
        zero = splat(literal(0, source.element), source)
        return f.op(f"{'fcmp une' if source.is_float else 'icmp ne'} {st} {v}, {zero}")
    if source.is_float and to.is_float:
        return f.op(f"{'fpext' if to.bits > source.bits else 'fptrunc'} {st} {v} to {tt}")
    if source.is_float:
        got = f.op(f"{'fptosi' if to.kind == 'int' else 'fptoui'} {st} {v} to {tt}")
        return f.op(f"freeze {tt} {got}")
    if to.is_float:
        return f.op(f"{'sitofp' if source.kind == 'int' else 'uitofp'} {st} {v} to {tt}")
    from_bits = 1 if source.is_bool else source.bits
    if from_bits == to.bits:
        return v
    how = "trunc" if to.bits < from_bits else "sext" if source.kind == "int" else "zext"
    return f.pure(f"{how} {st} {v} to {tt}", v) if to.lanes == 1 else f.op(f"{how} {st} {v} to {tt}")


def _towards_small(f: Function, v: str, source: DType) -> str:
    """A value of f32, f64, integer or bool type as f32, so that a second rounding to fewer bits gives what one would:
    what f32 cannot hold is rounded to odd (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", 2008)."""
    near_type = f32.with_lanes(source.lanes)
    if source.bits <= 16 or source is near_type:
        return cast(f, v, source, near_type)
    wide = f64.with_lanes(source.lanes)
    v = cast(f, v, source, wide)
    near = cast(f, v, wide, near_type)
    back = cast(f, near, near_type, wide)
    o, wt = _Ops(f, source.lanes), register_type(wide)
    one = vector_of("i1", source.lanes)
    size = [f.op(f"and {vector_of('i64', source.lanes)} {f.op(f'bitcast {wt} {x} to ' + vector_of('i64', source.lanes))}, "
                 + splat(str((1 << 63) - 1), i64.with_lanes(source.lanes))) for x in (v, back)]
    bits = o.bits(near)
    inexact = f.op(f"fcmp one {wt} {v}, {back}")
    finite = o.cmp("ult", o.bin("and", bits, 0x7FFFFFFF), 0x7F800000)
    even = o.cmp("eq", o.bin("and", bits, 1), 0)
    fix = f.op(f"and {one} {f.op(f'and {one} {inexact}, {finite}')}, {even}")
    below = f.op(f"icmp ult {vector_of('i64', source.lanes)} {size[1]}, {size[0]}")
    odd = o.bin("add", bits, o.select(below, 1, -1))
    return o.as_float(o.select(fix, odd, bits))


def widen_to_float(f: Function, v: str, t: DType) -> tuple[str, DType]:
    """A float value in a type that has arithmetic: itself, or f32 for the small ones."""
    return (to_float(f, v, t), f32.with_lanes(t.lanes)) if is_small_float(t) else (v, t)


