"""LLVM code generation, intrinsics: what each Call becomes: an LLVM intrinsic, a short sequence, or a libm function per lane.

`MATH` and `LIBM` are tables; adding an intrinsic is one line. `LIBRARY` lists the C functions that emitted code may need.
"""
from __future__ import annotations

from collections.abc import Callable

from tilewright.codegen.llvm import address
from tilewright.codegen.llvm.convert import from_float, widen_to_float
from tilewright.codegen.llvm.function import Function
from tilewright.codegen.llvm.memory import memory_of
from tilewright.codegen.llvm.types import (is_small_float, literal, memory_scalar, register_type, scalar_type, splat)
from tilewright.core.dtype import DType, f32
from tilewright.core.errors import InternalError
from tilewright.loop import ir

LLVM_MATH = {"sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "round": "roundeven", "round_even": "roundeven",
             "trunc": "trunc", "abs": "fabs", "copysign": "copysign", "fma": "fma"}
"""Float intrinsics that LLVM knows and x86 or ARM have instructions for (below SSE4.1 they are libm calls)."""

LIBM = ("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh",
        "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "tgamma", "lgamma", "cbrt", "pow", "atan2", "fmod", "hypot")
"""Called per lane: expf and so on for f32, exp for f64."""

LIBRARY = tuple(sorted({n + s for n in (*LIBM, "floor", "ceil", "trunc", "roundeven", "fma", "sqrt") for s in ("", "f")}
                       | {"memcpy", "memset", "memmove"}))
"""Every C library function that an object may refer to."""

RUNTIME = ("tw_parallel", "tw_worker", "tw_fail", "tw_grow", "tw_output", "tw_host_call", "tw_profile_begin",
           "tw_profile_end", "tw_tap")
"""The runtime's functions (tilewright_abi.h); as Calls they get the context as first argument."""


def call(f: Function, e: ir.Call) -> str:
    """The value of a Call; "" for one without a value."""
    name, t = e.name, e.type
    special = _SPECIAL.get(name)
    if special is not None:
        return special(f, e)
    if name.startswith("tw_"):
        return _runtime(f, e)
    if t.is_float and (name in LLVM_MATH or name in LIBM):
        args = [widen_to_float(f, f.value(a), a.dtype)[0] for a in e.args]
        wide = f32.with_lanes(t.lanes) if is_small_float(t) else t
        v = llvm_math(f, LLVM_MATH[name], wide, args) if name in LLVM_MATH else libm(f, name, wide, args)
        return from_float(f, v, t) if is_small_float(t) else v
    if t.is_int and name in _INTEGER:
        return _INTEGER[name](f, t, [f.value(a) for a in e.args])
    raise InternalError(f"the LLVM code generator does not know the intrinsic {name} of {t}")


def suffix(t: DType) -> str:
    """LLVM's mangling of a type: f32, v16f32, i64, …"""
    one = {"float": "f32", "double": "f64"}.get(scalar_type(t), scalar_type(t))
    return one if t.lanes == 1 else f"v{t.lanes}{one}"


def llvm_math(f: Function, name: str, t: DType, args: list[str], extra: str = "") -> str:
    """A call of llvm.`name` whose arguments all have the type of its result."""
    rt = register_type(t)
    full = f"@llvm.{name}.{suffix(t)}"
    more = f", i1 {extra}" if extra else ""
    f.module.declare(full, f"declare {rt} {full}({', '.join([rt] * len(args))}{', i1' if extra else ''})")
    return f.op(f"call {f.flags if t.is_float else ''}{rt} {full}({', '.join([f'{rt} {a}' for a in args])}{more})")


def libm(f: Function, name: str, t: DType, args: list[str]) -> str:
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


def _runtime(f: Function, e: ir.Call) -> str:
    if e.name not in RUNTIME:
        raise InternalError(f"the runtime has no function {e.name}")
    types = [memory_scalar(a.dtype) for a in e.args]
    result = "void" if e.name in ("tw_profile_begin", "tw_profile_end", "tw_tap") else memory_scalar(e.type)
    f.module.declare(f"@{e.name}", f"declare {result} @{e.name}({', '.join(['ptr', *types])})")
    args = ", ".join(["ptr %ctx", *[f"{k} {f.value(a)}" for k, a in zip(types, e.args, strict=True)]])
    if result == "void":
        f.line(f"call void @{e.name}({args})")
        return ""
    return f.op(f"call {result} @{e.name}({args})")


def _neg(f: Function, e: ir.Call) -> str:
    v, t = f.value(e.args[0]), e.type
    if is_small_float(t):
        return f.op(f"xor {register_type(t)} {v}, {splat(str(1 << (t.bits - 1)), t)}")
    if t.is_float:
        return f.op(f"fneg {f.flags}{register_type(t)} {v}")
    return f.op(f"sub {register_type(t)} {splat('0', t)}, {v}")


def _bitcast(f: Function, e: ir.Call) -> str:
    a = e.args[0]
    if scalar_type(a.dtype) == scalar_type(e.type):
        return f.value(a)
    return f.op(f"bitcast {register_type(a.dtype)} {f.value(a)} to {register_type(e.type)}")


def _prefetch(f: Function, e: ir.Call) -> str:
    """prefetch(address, write=0, locality=3)"""
    hints = [ir.as_int(a) for a in e.args[1:]] + [0, 3][len(e.args) - 1:]
    f.module.declare("@llvm.prefetch.p0", "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
    f.line(f"call void @llvm.prefetch.p0(ptr {f.value(e.args[0])}, i32 {hints[0]}, i32 {hints[1]}, i32 1)")
    return ""


def _classify(text: str) -> Callable[[Function, ir.Call], str]:
    """isnan and its kin: a comparison of the float value; `{z}` and `{i}` stand for zero and infinity."""
    def emit(f: Function, e: ir.Call) -> str:
        v, t = widen_to_float(f, f.value(e.args[0]), e.args[0].dtype)
        if "inf" in e.name:
            v = llvm_math(f, "fabs", t, [v])
        limit = splat(literal(float("inf") if "inf" in e.name or e.name == "isfinite" else 0.0, t.element), t)
        if e.name == "isfinite":
            v = llvm_math(f, "fabs", t, [v])
        return f.op(f"fcmp {text} {register_type(t)} {v}, {limit}")
    return emit


def _shift(instruction: dict[str, str]) -> Callable[[Function, DType, list[str]], str]:
    return lambda f, t, a: f.op(f"{instruction[t.kind]} {register_type(t)} {a[0]}, {a[1]}")


def _bits(name: str, flag: str = "") -> Callable[[Function, DType, list[str]], str]:
    return lambda f, t, a: llvm_math(f, name, t, a, flag)


def _integer_abs(f: Function, t: DType, a: list[str]) -> str:
    return a[0] if t.kind == "uint" else llvm_math(f, "abs", t, a, "false")


_LEFT = {"int": "shl", "uint": "shl"}
_RIGHT = {"int": "ashr", "uint": "lshr"}
_XOR = {"int": "xor", "uint": "xor"}
_INTEGER: dict[str, Callable[[Function, DType, list[str]], str]] = {
    "shift_left": _shift(_LEFT), "shift_right": _shift(_RIGHT), "xor": _shift(_XOR), "bit_xor": _shift(_XOR),
    "bitwise_xor": _shift(_XOR), "abs": _integer_abs, "popcount": _bits("ctpop"), "clz": _bits("ctlz", "false"),
    "ctz": _bits("cttz", "false")}


def address_value(f: Function, e: ir.Address) -> str:
    memory_of(f, e.buffer)
    return address.address(f, e.buffer, e.indices)


def _xor_bool(f: Function, e: ir.Call) -> str:
    if not e.type.is_bool:
        return _INTEGER["xor"](f, e.type, [f.value(a) for a in e.args])
    return f.op(f"xor {register_type(e.type)} {f.value(e.args[0])}, {f.value(e.args[1])}")


_SPECIAL: dict[str, Callable[[Function, ir.Call], str]] = {
    "neg": _neg, "bitcast": _bitcast, "reinterpret": _bitcast, "prefetch": _prefetch, "isnan": _classify("uno"),
    "isinf": _classify("oeq"), "isfinite": _classify("olt"), "xor": _xor_bool}

