"""Intrinsics: the functions that `Call` names, one record each – arity, result dtype, effect, and meaning in NumPy.

The interpreter runs the meanings, the verifier checks calls against the records, code generators look up effects.
Values: floats are NumPy scalars of the dtype, integers Python ints, bools Python bools; vectors are arrays (loop/values.py).
Transcendental functions are computed in float64 and rounded once to the type; compiled code may differ by a few units
in the last place.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.core.dtype import DType, boolean, i32, i64, u32
from tilewright.core.errors import InternalError
from tilewright.loop.values import from_memory, fused_multiply_add, maximum, minimum, poison, round_to, widen, wrap

Meaning = Callable[..., Any]


@dataclass(frozen=True)
class Intrinsic:
    """One function of the loop IR.

    `result`: from the operands' dtypes to the dtypes that a call may have. `meaning(to, frm, *values)`: the value of a
    call of dtype `to` whose first operand has dtype `frm`. Effectful ones must not be dropped, doubled or reordered.
    """

    name: str
    arity: int
    result: Callable[[tuple[DType, ...], DType], bool]
    meaning: Meaning
    doc: str
    pure: bool = True


INTRINSICS: dict[str, Intrinsic] = {}


def register(record: Intrinsic) -> Intrinsic:
    """Enter a record; a second one of the same name is an error."""
    if record.name in INTRINSICS:
        raise InternalError(f"intrinsic {record.name} declared twice")
    INTRINSICS[record.name] = record
    return record


def intrinsic(name: str) -> Intrinsic:
    """The record of a name. Raises InternalError for an unknown one."""
    if name not in INTRINSICS:
        raise InternalError(f"there is no intrinsic {name!r}; known: {', '.join(sorted(INTRINSICS))}")
    return INTRINSICS[name]


def is_pure(name: str) -> bool:
    """Whether calls may be dropped, doubled and reordered."""
    return intrinsic(name).pure


# ---- result rules ----------------------------------------------------------------------------------------------------
def _same(args: tuple[DType, ...], to: DType) -> bool:
    return all(a is to for a in args)


def _same_float(args: tuple[DType, ...], to: DType) -> bool:
    return to.is_float and _same(args, to)


def _same_int(args: tuple[DType, ...], to: DType) -> bool:
    return to.is_int and _same(args, to)


def _number(args: tuple[DType, ...], to: DType) -> bool:
    return (to.is_int or to.is_float) and _same(args, to)


def _test(args: tuple[DType, ...], to: DType) -> bool:
    return args[0].is_float and to is boolean.with_lanes(args[0].lanes)


def _bitcast(args: tuple[DType, ...], to: DType) -> bool:
    frm = args[0]
    whole = frm.bits == to.bits or min(frm.bits, to.bits) >= 8
    return whole and frm.bits * frm.lanes == to.bits * to.lanes and not frm.is_bool and not to.is_bool


def _horizontal(args: tuple[DType, ...], to: DType) -> bool:
    return args[0].lanes > 1 and args[0].element is to


def _prefetch(args: tuple[DType, ...], to: DType) -> bool:
    return args[0].kind == "handle" and args[1] is i64


def _copy_operands(args: tuple[DType, ...], to: DType) -> bool:
    return args[0].kind == "handle" and args[1].kind == "handle" and args[2] is i64


def _put_operands(args: tuple[DType, ...], to: DType) -> bool:
    return args[0].kind == "handle" and args[1] is u32 and args[2] is u32


def _number_of_kernel(args: tuple[DType, ...], to: DType) -> bool:
    return args[0] is i32


def _number_of_worker(args: tuple[DType, ...], to: DType) -> bool:
    return to is i64


def _nothing(args: tuple[DType, ...], to: DType) -> bool:
    return not args


def _anything(args: tuple[DType, ...], to: DType) -> bool:
    return to.lanes == 1


def _tap_operands(args: tuple[DType, ...], to: DType) -> bool:
    return args[0] is i32 and args[1].kind == "handle" and args[2] is i64


# ---- meanings --------------------------------------------------------------------------------------------------------
def _elementwise(f: Callable[..., Any]) -> Meaning:
    """A function of float64 values, rounded once to the type."""
    return lambda to, frm, *v: round_to(to, f(*[widen(x) for x in v]))


def _either(on_float: Callable[..., Any], on_int: Callable[..., Any]) -> Meaning:
    """`on_float` on float64 values or `on_int` on integers, brought back to the type."""
    def meaning(to: DType, frm: DType, *v: Any) -> Any:
        return round_to(to, on_float(*[widen(x) for x in v])) if to.is_float else wrap(to, on_int(*v))
    return meaning


def _integer(f: Callable[..., Any]) -> Meaning:
    return lambda to, frm, *v: wrap(to, f(*v))


def _truth(f: Callable[[Any], Any]) -> Meaning:
    def meaning(to: DType, frm: DType, v: Any) -> Any:
        got = f(widen(v))
        return got if isinstance(v, np.ndarray) else bool(got)
    return meaning


def _unsigned(t: DType, v: Any) -> Any:
    """The bits of an integer as a non-negative number (arrays of up to 64 bits as uint64)."""
    if isinstance(v, np.ndarray):
        return v.astype(np.uint64) & np.uint64((1 << t.bits) - 1)
    return v & ((1 << t.bits) - 1)


def _popcount(to: DType, frm: DType, v: Any) -> Any:
    bits = _unsigned(frm, v)
    if isinstance(bits, np.ndarray):
        return wrap(to, np.array([int(x).bit_count() for x in bits], np.int64))
    return wrap(to, bits.bit_count())


def _remainder(a: Any, b: Any) -> Any:
    """The remainder of truncating division: it takes the sign of the dividend."""
    if isinstance(a, np.ndarray):
        return np.fmod(a, b)
    return abs(a) % abs(b) * (-1 if a < 0 else 1)


def _sign_int(a: Any) -> Any:
    return np.sign(a) if isinstance(a, np.ndarray) else (a > 0) - (a < 0)


def _reinterpret(to: DType, frm: DType, v: Any) -> Any:
    """The same bits as another type; sub-byte types keep their low bits."""
    if frm.bits >= 8 and to.bits >= 8:
        out = np.atleast_1d(np.asarray(v)).astype(frm.numpy()).view(to.numpy())
    else:  # of one sub-byte width: both are stored in the low bits of a byte
        raw = np.atleast_1d(np.asarray(v)).astype(frm.numpy()).view(np.uint8) & ((1 << frm.bits) - 1)
        out = wrap(to, raw.astype(np.int64)).astype(to.numpy()) if to.is_int else raw.view(to.numpy())
    return from_memory(to, out if to.lanes > 1 else out[0])


def _fold(combine: Callable[[DType, Any, Any], Any]) -> Meaning:
    """Halves are combined while their number of lanes is even, then lanes from left to right."""
    def meaning(to: DType, frm: DType, v: Any) -> Any:
        while len(v) % 2 == 0:
            half = len(v) // 2
            v = combine(to, v[:half], v[half:])
        for k in range(1, len(v)):
            v = np.concatenate([combine(to, v[:1], v[k:k + 1]), v[1:]])
        return from_memory(to, v[0])
    return meaning


def _copy_bytes(to: DType, frm: DType, target: Any, source: Any, nbytes: int) -> int:
    """Operands are (memory, position of the first element) as the interpreter has addresses."""
    into, out_of = ((memory[position:].view(np.uint8)) for memory, position in (target, source))
    into[:nbytes] = out_of[:nbytes]
    return 0


def _put_bits(to: DType, frm: DType, target: Any, mask: int, bits: int) -> int:
    """The operand is (memory, position) as the interpreter has addresses; elements of the memory are u32."""
    memory, position = target
    memory[position] = int(memory[position]) & ~mask & 0xFFFFFFFF | bits
    return 0


def _plus(t: DType, a: Any, b: Any) -> Any:
    return wrap(t, a + b) if t.is_int else a + b


_erf_array = np.frompyfunc(math.erf, 1, 1)


def _erf(x: Any) -> Any:
    return np.asarray(_erf_array(x), np.float64)


def _scale(x: Any, n: Any) -> Any:
    """Through exact products: halves of an exponent are in the range of float64."""
    half = np.floor(n * 0.5)
    return x * np.exp2(half) * np.exp2(n - half)


# ---- the records -----------------------------------------------------------------------------------------------------
def _math(name: str, f: Callable[[Any], Any], doc: str) -> Intrinsic:
    """A function of a float."""
    return Intrinsic(name, 1, _same_float, _elementwise(f), doc)


def _effect(name: str, arity: int, result: Callable[[tuple[DType, ...], DType], bool], doc: str,
            meaning: Meaning = lambda to, frm, *v: 0) -> Intrinsic:
    """What must run where it stands, whether or not its result is used."""
    return Intrinsic(name, arity, result, meaning, doc, pure=False)


def _transfer(name: str, what: str) -> Intrinsic:
    return _effect(name, 3, _copy_operands,
                   f"Copy bytes to the first address from the second: {what}. The result is unused.", _copy_bytes)


_MATH = (
    _math("exp", np.exp, "e to the power x."),
    _math("log", np.log, "Natural logarithm; NaN below zero."),
    _math("sqrt", np.sqrt, "Square root; NaN below zero."),
    _math("rsqrt", lambda x: 1.0 / np.sqrt(x), "1 / sqrt(x)."),
    _math("erf", _erf, "The error function."),
    _math("gelu", lambda x: 0.5 * x * (1.0 + _erf(x * math.sqrt(0.5))), "x times the standard normal distribution at x."),
    _math("tanh", np.tanh, "Hyperbolic tangent."),
    _math("sin", np.sin, "Sine of radians."),
    _math("cos", np.cos, "Cosine of radians."),
    _math("tan", np.tan, "Tangent of radians."),
    _math("asin", np.arcsin, "Inverse sine."),
    _math("acos", np.arccos, "Inverse cosine."),
    _math("atan", np.arctan, "Inverse tangent."),
    _math("sinh", np.sinh, "Hyperbolic sine."),
    _math("cosh", np.cosh, "Hyperbolic cosine."),
    _math("asinh", np.arcsinh, "Inverse hyperbolic sine."),
    _math("acosh", np.arccosh, "Inverse hyperbolic cosine."),
    _math("atanh", np.arctanh, "Inverse hyperbolic tangent."),
    _math("floor", np.floor, "The largest integer not above x, as a float."),
    _math("ceil", np.ceil, "The smallest integer not below x, as a float."),
    _math("round", np.rint, "The nearest integer as a float, half to even."),
    _math("trunc", np.trunc, "The integer part, as a float."),
    Intrinsic("pow", 2, _same_float, _elementwise(np.power), "x to the power y, as C's pow."),
    Intrinsic("neg", 1, _number, _either(np.negative, lambda a: -a), "Minus x: flips the sign bit of a float."),
    Intrinsic("abs", 1, _number, _either(np.abs, abs), "Absolute value; the least integer stays itself."),
    Intrinsic("sign", 1, _number, _either(np.sign, _sign_int), "-1, 0 or 1; NaN of NaN."),
    Intrinsic("fmod", 2, _number, _either(np.fmod, _remainder), "Remainder with the dividend's sign, as C's fmod."),
    Intrinsic("fma", 3, _same_float, lambda to, frm, a, b, c: fused_multiply_add(to, a, b, c), "a*b + c, rounded once."),
    Intrinsic("scale", 2, _same_float, _elementwise(_scale), "x times 2 to the power n, an integer of the same type."),
    Intrinsic("isnan", 1, _test, _truth(np.isnan), "Whether x is NaN."),
    Intrinsic("isinf", 1, _test, _truth(np.isinf), "Whether x is infinite."),
)

_BITS = (
    Intrinsic("bit_and", 2, _same_int, _integer(lambda a, b: a & b), "Bitwise and."),
    Intrinsic("bit_or", 2, _same_int, _integer(lambda a, b: a | b), "Bitwise or."),
    Intrinsic("bit_xor", 2, _same_int, _integer(lambda a, b: a ^ b), "Bitwise exclusive or."),
    Intrinsic("bit_not", 1, _same_int, _integer(lambda a: ~a), "Bitwise complement."),
    Intrinsic("shift_left", 2, _same_int, _integer(lambda a, b: a << b), "Shift left, 0 <= count < bits."),
    Intrinsic("shift_right", 2, _same_int, _integer(lambda a, b: a >> b),
              "Shift right, 0 <= count < bits: arithmetic for signed, logical for unsigned."),
    Intrinsic("popcount", 1, _same_int, _popcount, "The number of one bits."),
    Intrinsic("reinterpret", 1, _bitcast, _reinterpret, "The same bits as another type."),
)

_LANES = (
    Intrinsic("reduce_add", 1, _horizontal, _fold(_plus), "Sum of a vector's lanes, by halves."),
    Intrinsic("reduce_max", 1, _horizontal, _fold(lambda t, a, b: maximum(a, b)), "Largest lane; propagates NaN."),
    Intrinsic("reduce_min", 1, _horizontal, _fold(lambda t, a, b: minimum(a, b)), "Least lane; propagates NaN."),
)

_MEMORY = (
    _effect("prefetch", 2, _prefetch,
            "Bring the cache line of an address near; locality 0 (none) … 3 (keep). The result is unused."),
    _effect("copy_bytes", 3, _copy_operands,
            "Copy bytes to the first address from the second; the stretches do not overlap. No result.", _copy_bytes),
    _effect("put_bits", 3, _put_operands,
            "Replace the bits of a 32-bit word that a mask names; threads may do so to other bits at the same time. No "
            "result.", _put_bits),
)

_THREADS = (
    _effect("tw_profile_begin", 1, _number_of_kernel,
            "The begin of a kernel in the profile, by its number. The result is unused."),
    _effect("tw_profile_end", 1, _number_of_kernel,
            "The end of a kernel in the profile, by its number. The result is unused."),
    _effect("tw_worker", 0, _number_of_worker,
            "The number of the thread that runs a parallel region, from 0 and below tw_threads."),
    _effect("tw_threads", 0, _number_of_worker, "Threads that share parallel regions.", lambda to, frm: 1),
    _effect("barrier", 0, _nothing,
            "The threads of a block wait here for each other; what they wrote before, all see after."),
    _effect("wait_copies", 1, _number_of_kernel,
            "The thread waits here until what its asynchronous copies write has arrived, but for those of its newest "
            "groups, so many."),
    _effect("commit_copies", 0, _nothing, "The thread's asynchronous copies since the last such place are a group."),
)

_DEVICE = (
    _transfer("tw_upload", "the device from the host"),
    _transfer("tw_move", "the device from the device"),
    _transfer("tw_download", "the host from the device"),
    _effect("tw_replay", 0, _number_of_worker,
            "1 if the device did again what it captured up to tw_captured, 0 if that is to be done now."),
    _effect("tw_captured", 0, _number_of_worker, "The end of what tw_replay does again. The result is unused."),
)

_UNKNOWN = (
    _effect("observe", 1, _anything,
            "The value is put to a use that nobody knows here: of an external function. No result."),
    _effect("unknown", 0, _anything, "A value that nobody knows here: of an external function.",
            lambda to, frm: from_memory(to, poison(to, 1)[0])),
    _effect("tw_tap", 3, _tap_operands,
            "Report a stored value of the graph: its number, address and bytes. The result is unused."),
)

for _record in (*_MATH, *_BITS, *_LANES, *_MEMORY, *_THREADS, *_DEVICE, *_UNKNOWN):
    register(_record)
