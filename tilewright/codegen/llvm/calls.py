"""LLVM code generation, intrinsics: what each Call becomes: an LLVM intrinsic, a short sequence, or a libm call per lane.

The names are those of loop/intrinsics.py. `LIBRARY` lists the C functions that emitted code may need.
"""
from __future__ import annotations

from collections.abc import Callable

from tilewright.codegen.llvm import address
from tilewright.codegen.llvm.convert import from_float, widen_to_float
from tilewright.codegen.llvm.function import Function
from tilewright.codegen.llvm.memory import memory_of
from tilewright.codegen.llvm.types import (
    is_small_float,
    literal,
    memory_scalar,
    register_type,
    scalar_type,
    splat,
    vector_of,
)
from tilewright.core.dtype import DType, f32
from tilewright.core.errors import InternalError
from tilewright.loop import ir

LLVM_MATH = {"sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "round": "rint", "trunc": "trunc", "fma": "fma"}
"""Float intrinsics that are instructions of x86 (from SSE4.1 and FMA on; before, libm calls) and ARM."""

LIBM = ("exp", "log", "erf", "tanh", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh",
        "pow", "fmod")
"""Called per lane: expf and so on for f32, exp for f64."""

LIBRARY = tuple(sorted({n + s for n in (*LIBM, "floor", "ceil", "trunc", "rint", "fma", "sqrt") for s in ("", "f")}
                       | {"memcpy", "memset", "memmove"}))
"""Every C library function that an object may refer to."""

RUNTIME = {"tw_worker": "i32", "tw_grow": "ptr", "tw_grow_kept": "ptr", "tw_output": "ptr", "tw_host_call": "i32",
           "tw_profile_begin": "void", "tw_profile_end": "void", "tw_tap": "void", "tw_upload": "void",
           "tw_download": "void", "tw_move": "void", "tw_replay": "i64", "tw_captured": "void"}
"""The runtime's functions (tilewright_abi.h) that may be Calls, and what they return; the context is added in front."""


def call(f: Function, e: ir.Call) -> str:
    """The value of a Call; "" for one without a value."""
    name, t = e.name, e.type
    if name in _SPECIAL:
        return _SPECIAL[name](f, e)
    if name in RUNTIME:
        return _runtime(f, e)
    args = [f.value(a) for a in e.args]
    if t.is_int and name in _INTEGER:
        return _INTEGER[name](f, t, args)
    if t.is_float and (name in LLVM_MATH or name in LIBM or name in _FLOAT):
        args = [widen_to_float(f, v, t)[0] for v in args]
        wide = f32.with_lanes(t.lanes) if is_small_float(t) else t
        if name in _FLOAT:
            v = _FLOAT[name](f, wide, args)
        else:
            v = llvm_math(f, LLVM_MATH[name], wide, args) if name in LLVM_MATH else libm(f, name, wide, args)
        return from_float(f, v, t) if is_small_float(t) else v
    raise InternalError(f"the LLVM code generator does not know the intrinsic {name} of {t}")


def suffix(t: DType) -> str:
    """LLVM's mangling of a type: f32, v16f32, i64, …"""
    one = {"float": "f32", "double": "f64"}.get(scalar_type(t), scalar_type(t))
    return one if t.lanes == 1 else f"v{t.lanes}{one}"


def llvm_math(f: Function, name: str, t: DType, args: list[str], flag: str = "", flags: str | None = None) -> str:
    """A call of llvm.`name`, whose arguments have the type of its result, but for a last i1 `flag`."""
    rt = register_type(t)
    full = f"@llvm.{name}.{suffix(t)}"
    f.module.declare(full, f"declare {rt} {full}({', '.join([rt] * len(args))}{', i1' if flag else ''})")
    more = f", i1 {flag}" if flag else ""
    if flags is None:
        flags = f.flags if t.is_float else ""
    return f.op(f"call {flags}{rt} {full}({', '.join([f'{rt} {a}' for a in args])}{more})")


def libm(f: Function, name: str, t: DType, args: list[str]) -> str:
    """A function of the C library, lane by lane."""
    st = scalar_type(t)
    full = f"@{name}{'f' if st == 'float' else ''}"
    f.module.declare(full, f"declare {st} {full}({', '.join([st] * len(args))}) #1")
    if t.lanes == 1:
        return f.op(f"call {st} {full}({', '.join([f'{st} {a}' for a in args])})")
    rt, out = register_type(t), "poison"
    for k in range(t.lanes):
        each = [f.op(f"extractelement {rt} {a}, i64 {k}") for a in args]
        got = f.op(f"call {st} {full}({', '.join([f'{st} {a}' for a in each])})")
        out = f.op(f"insertelement {rt} {out}, {st} {got}, i64 {k}")
    return out


def float_min_max(f: Function, low: bool, t: DType, x: str, y: str) -> str:
    """The lesser (or greater) of f32 or f64 values, NaN if either is.

    `nsz` leaves a minps and a blend for NaN (nothing but the minps if one side is a constant). minps gives its second
    operand where the two are equal: hence the order, so that it is x, as the loop IR has it.
    """
    return llvm_math(f, "minimum" if low else "maximum", t, [y, x], flags="nsz ")


def int_min_max(f: Function, low: bool, t: DType, a: str, b: str) -> str:
    return llvm_math(f, ("s" if t.kind == "int" else "u") + ("min" if low else "max"), t, [a, b])


def address_value(f: Function, e: ir.Address) -> str:
    memory_of(f, e.buffer)
    return address.address(f, e.buffer, e.indices)


def _runtime(f: Function, e: ir.Call) -> str:
    types = [memory_scalar(a.dtype) for a in e.args]
    result = RUNTIME[e.name]
    f.module.declare(f"@{e.name}", f"declare {result} @{e.name}({', '.join(['ptr', *types])})")
    args = ", ".join(["ptr %ctx", *[f"{k} {f.value(a)}" for k, a in zip(types, e.args, strict=True)]])
    if result == "void":
        f.line(f"call void @{e.name}({args})")
        return ""
    got = f.op(f"call {result} @{e.name}({args})")
    return f.op(f"sext i32 {got} to i64") if result == "i32" and e.type.bits == 64 else got


def _threads(f: Function, e: ir.Call) -> str:
    at = f.pure("getelementptr inbounds i8, ptr %ctx, i64 20")
    return f.op(f"sext i32 {f.op(f'load i32, ptr {at}')} to i64")


def _neg(f: Function, e: ir.Call) -> str:
    v, t = f.value(e.args[0]), e.type
    if is_small_float(t):
        return f.op(f"xor {register_type(t)} {v}, {splat(str(1 << (t.bits - 1)), t)}")
    if t.is_float:
        return f.op(f"fneg {f.flags}{register_type(t)} {v}")
    return f.op(f"sub {register_type(t)} {splat('0', t)}, {v}")


def _reinterpret(f: Function, e: ir.Call) -> str:
    v, before, after = f.value(e.args[0]), register_type(e.args[0].dtype), register_type(e.type)
    return v if before == after else f.op(f"bitcast {before} {v} to {after}")


def _prefetch(f: Function, e: ir.Call) -> str:
    locality = ir.as_int(e.args[1]) if len(e.args) > 1 else 3
    f.module.declare("@llvm.prefetch.p0", "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
    f.line(f"call void @llvm.prefetch.p0(ptr {f.value(e.args[0])}, i32 0, i32 {locality}, i32 1)")
    return ""


def _copy_bytes(f: Function, e: ir.Call) -> str:
    f.module.declare("@llvm.memcpy.p0.p0.i64", "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
    to, source, nbytes = [f.value(a) for a in e.args]
    f.line(f"call void @llvm.memcpy.p0.p0.i64(ptr {to}, ptr {source}, i64 {nbytes}, i1 false)")
    return ""


def _isnan(f: Function, e: ir.Call) -> str:
    v, t = widen_to_float(f, f.value(e.args[0]), e.args[0].dtype)
    return f.op(f"fcmp uno {register_type(t)} {v}, {v}")


def _isinf(f: Function, e: ir.Call) -> str:
    v, t = widen_to_float(f, f.value(e.args[0]), e.args[0].dtype)
    return f.op(f"fcmp oeq {register_type(t)} {llvm_math(f, 'fabs', t, [v])}, {splat(literal(float('inf'), t.element), t)}")


# ---- of one type -----------------------------------------------------------------------------------------------------
OfOneType = Callable[[Function, DType, list[str]], str]


def _rsqrt(f: Function, t: DType, a: list[str]) -> str:
    root = llvm_math(f, "sqrt", t, a)
    return f.op(f"fdiv {register_type(t)} {splat(literal(1.0, t.element), t)}, {root}")


def _sign_float(f: Function, t: DType, a: list[str]) -> str:
    rt, one = register_type(t), vector_of("i1", t.lanes)
    zero, plus, minus = (splat(literal(x, t.element), t) for x in (0.0, 1.0, -1.0))
    got = f.op(f"select {one} {f.op(f'fcmp oeq {rt} {a[0]}, {zero}')}, {rt} {zero}, {rt} {a[0]}")
    got = f.op(f"select {one} {f.op(f'fcmp ogt {rt} {a[0]}, {zero}')}, {rt} {plus}, {rt} {got}")
    return f.op(f"select {one} {f.op(f'fcmp olt {rt} {a[0]}, {zero}')}, {rt} {minus}, {rt} {got}")


def _sign_int(f: Function, t: DType, a: list[str]) -> str:
    one = splat("1", t)
    if t.kind == "uint":
        return llvm_math(f, "umin", t, [a[0], one])
    return llvm_math(f, "smax", t, [llvm_math(f, "smin", t, [a[0], one]), splat("-1", t)])


def _by(signed: str, unsigned: str = "") -> OfOneType:
    """A binary instruction, by the type's sign."""
    return lambda f, t, a: f.op(f"{(unsigned or signed) if t.kind == 'uint' else signed} {register_type(t)} {a[0]}, {a[1]}")


_INTEGER: dict[str, OfOneType] = {
    "shift_left": _by("shl"), "shift_right": _by("ashr", "lshr"), "bit_and": _by("and"), "bit_or": _by("or"),
    "bit_xor": _by("xor"), "bit_not": lambda f, t, a: f.op(f"xor {register_type(t)} {a[0]}, {splat('-1', t)}"),
    "abs": lambda f, t, a: a[0] if t.kind == "uint" else llvm_math(f, "abs", t, a, "false"),
    "popcount": lambda f, t, a: llvm_math(f, "ctpop", t, a), "fmod": _by("srem", "urem"), "sign": _sign_int}
_FLOAT: dict[str, OfOneType] = {
    "abs": lambda f, t, a: llvm_math(f, "fabs", t, a), "rsqrt": _rsqrt, "sign": _sign_float}


# ---- over a vector's lanes -------------------------------------------------------------------------------------------
def _reduce(f: Function, e: ir.Call) -> str:
    """Halves are combined while their number is even, then lanes from left to right: the order of loop/intrinsics.py."""
    frm = e.args[0].dtype
    v, t = widen_to_float(f, f.value(e.args[0]), frm)
    small = is_small_float(frm)
    while t.lanes % 2 == 0:
        half = t.lanes // 2
        parts = [_slice(f, v, t, k, half) for k in (0, half)]
        t = t.with_lanes(half)
        v = _rounded(f, _combine(f, e.name, t, *parts), frm.with_lanes(half)) if small else _combine(f, e.name, t, *parts)
    if t.lanes > 1:
        lanes = [f.op(f"extractelement {register_type(t)} {v}, i64 {k}") for k in range(t.lanes)]
        t, v = t.element, lanes[0]
        for lane in lanes[1:]:
            v = _rounded(f, _combine(f, e.name, t, v, lane), frm.element) if small else _combine(f, e.name, t, v, lane)
    return from_float(f, v, e.type) if small else v


def _rounded(f: Function, v: str, t: DType) -> str:
    return widen_to_float(f, from_float(f, v, t), t)[0]


def _slice(f: Function, v: str, t: DType, first: int, lanes: int) -> str:
    if lanes == 1:
        return f.op(f"extractelement {register_type(t)} {v}, i64 {first}")
    order = ", ".join([f"i32 {first + k}" for k in range(lanes)])
    return f.op(f"shufflevector {register_type(t)} {v}, {register_type(t)} poison, <{lanes} x i32> <{order}>")


def _combine(f: Function, name: str, t: DType, a: str, b: str) -> str:
    if name == "reduce_add":
        return f.op(f"{'fadd' if t.is_float else 'add'} {register_type(t)} {a}, {b}")
    low = name == "reduce_min"
    return float_min_max(f, low, t, a, b) if t.is_float else int_min_max(f, low, t, a, b)


def _scale(f: Function, e: ir.Call) -> str:
    """x · 2ⁿ of 4, 8 or 16 lanes: AVX-512's vscalefps. The mask is full; 4 is the current rounding mode."""
    t, rt = e.type, register_type(e.type)
    if t.element is not f32 or t.lanes not in (4, 8, 16):
        raise InternalError(f"there is no instruction that scales {t}")
    mask = "i16" if t.lanes == 16 else "i8"
    name = f"@llvm.x86.avx512.mask.scalef.ps.{32 * t.lanes}"
    f.module.declare(name, f"declare {rt} {name}({rt}, {rt}, {rt}, {mask}{', i32' if t.lanes == 16 else ''})")
    x, n = [f.value(a) for a in e.args]
    return f.op(f"call {rt} {name}({rt} {x}, {rt} {n}, {rt} zeroinitializer, {mask} -1{', i32 4' if t.lanes == 16 else ''})")


_SPECIAL: dict[str, Callable[[Function, ir.Call], str]] = {
    "scale": _scale,
    "neg": _neg, "reinterpret": _reinterpret, "prefetch": _prefetch, "copy_bytes": _copy_bytes, "isnan": _isnan,
    "isinf": _isinf, "tw_threads": _threads, "reduce_add": _reduce, "reduce_max": _reduce, "reduce_min": _reduce}
