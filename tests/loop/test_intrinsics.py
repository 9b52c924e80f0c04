"""Intrinsics: meanings against Python's own mathematics, exact where the type allows."""
import math
import struct
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.core.dtype import DType, bf16, boolean, dtype, f16, f32, f64, i4, i8, i16, i32, i64, u8, u16, u32, u64
from tilewright.core.errors import InternalError
from tilewright.loop.interpret import run
from tilewright.loop.intrinsics import INTRINSICS, Intrinsic, intrinsic, is_pure, register
from tilewright.loop.ir import ONE, ZERO, Buffer, Call, Expr, Program, Ramp, Store, const
from tilewright.loop.parser import parse_program
from tilewright.loop.values import fused_multiply_add, round_to, wrap
from tilewright.loop.verify import verify


def call(name: str, to: DType, *values: Any, frm: DType | None = None) -> Any:
    """A call evaluated by the interpreter, checked by the verifier; lists are vectors."""
    frm = frm or to.with_lanes(len(values[0]) if isinstance(values[0], list) else 1)
    args: list[Expr] = []
    for v in values:
        if isinstance(v, list):
            table = Buffer("t", frm.element, (const(len(v)),), "const", data=tuple(v))
            args.append(table[Ramp(ZERO, ONE, len(v))])
        else:
            args.append(const(v, frm))
    out = Buffer("out", to.element, (const(to.lanes),))
    index = Ramp(ZERO, ONE, to.lanes) if to.lanes > 1 else ZERO
    p = Program("p", (out,), Store(out, (index,), Call(name, tuple(args), to)))
    verify(p)
    memory = np.zeros(to.lanes, to.numpy())
    run(p, [memory])
    return memory if to.lanes > 1 else memory[0]


REFERENCES: dict[str, Any] = {
    "exp": math.exp, "log": math.log, "sqrt": math.sqrt, "rsqrt": lambda x: 1 / math.sqrt(x), "erf": math.erf,
    "tanh": math.tanh, "sin": math.sin, "cos": math.cos, "tan": math.tan, "asin": math.asin, "acos": math.acos,
    "atan": math.atan, "sinh": math.sinh, "cosh": math.cosh, "asinh": math.asinh, "acosh": lambda x: math.acosh(1 + x),
    "atanh": math.atanh, "floor": math.floor, "ceil": math.ceil, "round": round, "trunc": math.trunc, "neg": lambda x: -x,
    "abs": abs, "sign": lambda x: 1.0}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("t", [f32, f64, f16, bf16])
def test_unary_functions(name: str, t: DType) -> None:
    for v in (0.25, 0.5, 0.8125):
        x = v + 1 if name == "acosh" else v
        expected = np.float64(REFERENCES[name](v))
        got = call(name, t, x)
        assert got.dtype == t.numpy()
        if t is f32:
            assert abs(float(got) - expected) <= 2.0**-23 * abs(expected)
            exact = name in ("floor", "ceil", "round", "trunc", "neg", "abs", "sqrt")
            assert float(got) == np.float32(expected) or not exact
        lanes = call(name, t.with_lanes(3), [x, x, 1.5])
        assert lanes[0] == lanes[1] == got


def test_every_intrinsic_is_documented_and_has_a_test_here() -> None:
    tested = {*REFERENCES, "pow", "fmod", "fma", "isnan", "isinf", "bit_and", "bit_or", "bit_xor", "bit_not", "shift_left",
              "shift_right", "popcount", "reinterpret", "prefetch", "reduce_add", "reduce_max", "reduce_min"}
    assert tested <= set(INTRINSICS)
    assert all(r.doc.endswith(".") for r in INTRINSICS.values())
    assert {r.name for r in INTRINSICS.values() if r.arity == 0} == {
        "barrier", "commit_copies", "tw_worker", "tw_threads", "tw_replay", "tw_captured", "unknown"}


def test_edges() -> None:
    nan, inf = float("nan"), float("inf")
    assert call("round", f32, 2.5) == 2 and call("round", f32, 3.5) == 4 and call("round", f32, -0.5) == 0
    assert call("trunc", f32, -1.5) == -1 and call("floor", f32, -1.5) == -2
    assert np.isnan(call("log", f32, -1.0)) and call("log", f32, 0.0) == -inf and np.isnan(call("sqrt", f64, -1.0))
    assert call("rsqrt", f32, 0.0) == inf and call("exp", f32, 1000.0) == inf and call("erf", f32, -inf) == -1
    assert np.signbit(call("neg", f32, 0.0)) and not np.signbit(call("abs", f32, -0.0))
    assert call("pow", f32, 2.0, -2.0) == 0.25 and call("pow", f32, nan, 0.0) == 1 and np.isnan(call("pow", f32, -2.0, 0.5))
    assert call("sign", f32, -3.0) == -1 and call("sign", f32, 0.0) == 0 and np.isnan(call("sign", f32, nan))
    assert call("neg", i8, -128) == -128 and call("abs", i8, -128) == -128 and call("neg", u8, 1) == 255
    assert call("sign", i32, -7) == -1 and call("sign", i32, 0) == 0
    assert call("sign", i32.with_lanes(2), [5, -5]).tolist() == [1, -1]
    assert call("fmod", f32, -5.5, 2.0) == -1.5 and call("fmod", i32, -7, 3) == -1 and call("fmod", i32, 7, -3) == 1
    assert call("fmod", i32.with_lanes(2), [-7, 7], [3, -3]).tolist() == [-1, 1]
    assert call("isnan", boolean, nan, frm=f32) and not call("isnan", boolean, inf, frm=f16)
    assert call("isinf", boolean, -inf, frm=bf16) and not call("isinf", boolean, 1.0, frm=f32)
    assert call("isnan", boolean.with_lanes(2), [nan, 1.0], frm=bf16.with_lanes(2)).tolist() == [True, False]


@given(st.sampled_from([i8, i32, i64, u8, u16, u32, u64, i4]), st.data())
@settings(max_examples=200, deadline=None)
def test_bits(t: DType, data: Any) -> None:
    lo, hi = t.range()
    a, b, k = data.draw(st.integers(lo, hi)), data.draw(st.integers(lo, hi)), data.draw(st.integers(0, t.bits - 1))
    for name, v, expected in (("bit_and", b, a & b), ("bit_or", b, a | b), ("bit_xor", b, a ^ b), ("shift_left", k, a << k),
                              ("shift_right", k, a >> k)):
        assert int(call(name, t, a, v)) == wrap(t, expected), name
        assert int(call(name, t.with_lanes(2), [a, 0], [v, 0])[0]) == wrap(t, expected), name
    assert int(call("bit_not", t, a)) == wrap(t, ~a) == int(call("bit_not", t.with_lanes(2), [a, a])[1])
    ones = (a & ((1 << t.bits) - 1)).bit_count()
    assert int(call("popcount", t, a)) == wrap(t, ones) == int(call("popcount", t.with_lanes(2), [a, a])[1])


@given(st.sampled_from([f32, f16, bf16, f64]), st.data())
@settings(max_examples=300, deadline=None)
def test_fma_rounds_once(t: DType, data: Any) -> None:
    """Against exact fractions: no other number of the type is nearer; on a tie the even one is chosen."""
    a, b, c = (float(round_to(t, data.draw(st.floats(-100, 100)))) for _ in range(3))
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    got = fused_multiply_add(t, *[round_to(t, x) for x in (a, b, c)])
    bits = {16: np.int16, 32: np.int32, 64: np.int64}[t.bits]
    pattern = np.asarray(got).view(bits)
    for step in (-1, 1):
        other = (pattern + step).astype(bits).view(t.numpy())
        if not np.isfinite(other.astype(np.float64)):
            continue
        mine, theirs = (abs(Fraction(float(x)) - exact) for x in (got, other))
        assert mine < theirs or mine == theirs and not int(pattern) & 1 or float(got) == 0


def test_fma_differs_from_two_roundings() -> None:
    x = 1.0 + 2.0**-23
    assert call("fma", f32, x, x, -(1.0 + 2.0**-22)) == 2.0**-46
    assert call("fma", f32.with_lanes(2), [x, 2.0], [x, 3.0], [-(1.0 + 2.0**-22), 1.0]).tolist() == [2.0**-46, 7.0]
    # In float64 the sum is a tie between two numbers of f32 only because of a rounding: 1 + 2^-24 + 2^-80.
    assert call("fma", f32, 2.0**-40, 2.0**-40, 1.0 + 2.0**-23) == 1.0 + 2.0**-23
    assert fused_multiply_add(f32, np.float32(2.0**-12 + 2.0**-34), np.float32(2.0**-12), np.float32(1)) == 1.0 + 2.0**-23
    assert call("fma", f64, 1.0 + 2.0**-52, 1.0 + 2.0**-52, -(1.0 + 2.0**-51)) == 2.0**-104
    assert np.isnan(call("fma", f32, float("inf"), 0.0, 1.0)) and call("fma", f64, 1e308, 10.0, 0.0) == float("inf")


@given(st.sampled_from([bf16, f16, dtype("f8e4m3fn"), dtype("f8e5m2"), dtype("f4e2m1fn")]), st.floats(-6, 6))
@settings(max_examples=300, deadline=None)
def test_round_to_rounds_once(t: DType, x: float) -> None:
    """The nearest of all numbers of the type."""
    size = np.uint16 if t.bits == 16 else np.uint8
    with np.errstate(invalid="ignore"):
        everything = np.arange(1 << t.bits, dtype=size).view(t.numpy()).astype(np.float64)
    everything = everything[np.isfinite(everything)]
    got = float(round_to(t, x))
    distance = np.abs(everything - x)
    nearest = everything[distance <= 1.01 * distance.min()]
    assert min(abs(Fraction(v) - Fraction(x)) for v in nearest) == abs(Fraction(got) - Fraction(x))


def test_round_to_is_not_fooled_by_a_first_rounding_to_f32() -> None:
    assert float(round_to(bf16, 1.0 + 2.0**-8 + 2.0**-40)) == 1.0 + 2.0**-7
    assert float(round_to(bf16, 1.0 + 2.0**-8)) == 1.0
    assert float(round_to(bf16, 1.0 + 3 * 2.0**-8 - 2.0**-40)) == 1.0 + 2.0**-7
    assert float(round_to(bf16, -(1.0 + 2.0**-8 + 2.0**-40))) == -(1.0 + 2.0**-7)
    assert round_to(bf16, np.array([-0.0, 0.0, 1e-300, -1e-300])).tobytes() == np.array(
        [-0.0, 0.0, 0.0, -0.0], np.float32).astype(bf16.numpy()).tobytes()
    with np.errstate(over="ignore"):
        assert float(round_to(bf16, -1e300)) == -math.inf and math.isnan(round_to(bf16, math.nan))


def test_reinterpret() -> None:
    bits = struct.unpack("<i", struct.pack("<f", -1.5))[0]
    assert call("reinterpret", i32, -1.5, frm=f32) == bits and call("reinterpret", f32, bits, frm=i32) == -1.5
    assert call("reinterpret", u16, 1.0, frm=bf16) == 0x3F80 and float(call("reinterpret", bf16, 0x3F80, frm=u16)) == 1.0
    assert call("reinterpret", u64, -1, frm=i64) == 2**64 - 1 and call("reinterpret", i4, 15, frm=dtype("u4")) == -1
    lanes = call("reinterpret", i32.with_lanes(2), [-1.5, 1.0], frm=f32.with_lanes(2))
    assert lanes.tolist() == [bits, 0x3F800000]
    assert call("reinterpret", i16.with_lanes(2), 0x00020001, frm=i32).tolist() == [1, 2]


def test_reductions() -> None:
    assert call("reduce_add", f32, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], frm=f32.with_lanes(6)) == 21
    assert call("reduce_add", f32, [1.0, 2.0**24, 1.0, -(2.0**24)], frm=f32.with_lanes(4)) == 2  # by halves
    assert call("reduce_add", i8, [100, 100, 1], frm=i8.with_lanes(3)) == -55
    assert call("reduce_max", f32, [1.0, 9.0, 3.0], frm=f32.with_lanes(3)) == 9
    assert call("reduce_min", u8, [7, 3, 200, 4], frm=u8.with_lanes(4)) == 3
    assert np.isnan(call("reduce_max", bf16, [1.0, float("nan")], frm=bf16.with_lanes(2)))


def test_prefetch_has_an_effect_and_no_value() -> None:
    assert not is_pure("prefetch") and is_pure("exp")
    p = parse_program("program f(A: f32[4]):\n    prefetch:i32(&A[3], 2)\n    A[0] = 1.0")
    verify(p)
    a = np.zeros(4, np.float32)
    run(p, [a])
    assert a[0] == 1


def test_the_table() -> None:
    with pytest.raises(InternalError, match="exp declared twice"):
        register(INTRINSICS["exp"])
    with pytest.raises(InternalError, match="no intrinsic 'frobnicate'; known: abs"):
        intrinsic("frobnicate")
    assert isinstance(intrinsic("exp"), Intrinsic)
