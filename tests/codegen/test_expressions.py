"""Every expression of the loop IR, every element type, scalar and vector: native results have the interpreter's bits."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.codegen.native import both, native, same, samples
from tilewright.core import dtype as d
from tilewright.core.dtype import DType, boolean, f32, f64, i64
from tilewright.core.errors import InternalError
from tilewright.loop import ir
from tilewright.loop.intrinsics import INTRINSICS
from tilewright.target import get_target

N = 48
FLOATS = (d.f64, d.f32, d.f16, d.bf16, d.f8e4m3fn, d.f8e4m3fnuz, d.f8e5m2, d.f8e5m2fnuz)
INTS = (d.i64, d.i32, d.i16, d.i8, d.u64, d.u32, d.u16, d.u8)
SUB_BYTE = (d.i4, d.i2, d.u4, d.u2)
LEVELS = ("native", "x86-64-v3", "x86-64-v2", "x86-64")


def c(n: int) -> ir.Expr:
    return ir.Const(n, i64)


def elementwise(out: DType, ins: tuple[DType, ...], f: Callable[..., ir.Expr], lanes: int, n: int = N) -> ir.Program:
    """out[i] = f(in0[i], …), `lanes` at a time."""
    a = [ir.Buffer(f"A{k}", t, (c(n),)) for k, t in enumerate(ins)]
    o, i = ir.Buffer("O", out, (c(n),)), ir.Var("i")
    at = ir.Ramp(i * lanes, c(1), lanes) if lanes > 1 else i
    return ir.Program("f", (*a, o), ir.For(i, c(0), c(n // lanes), ir.Store(o, (at,), f(*[b[at] for b in a]))))


def check(out: DType, ins: tuple[DType, ...], f: Callable[..., ir.Expr], seed: int = 0, target: str = "native") -> None:
    for lanes in (1, 8):
        args = [samples(t, N, seed + k) for k, t in enumerate(ins)]
        p = elementwise(out, ins, f, lanes)
        same(p, [*args, np.zeros(N, out.numpy())], target=get_target(target))


@pytest.mark.parametrize("t", FLOATS, ids=str)
@pytest.mark.parametrize("op", [ir.Add, ir.Sub, ir.Mul, ir.Div, ir.Min, ir.Max], ids=lambda o: o.__name__)
def test_float_arithmetic(t: DType, op: type[ir.Binary]) -> None:
    check(t, (t, t), op)


@pytest.mark.parametrize("t", (*INTS, *SUB_BYTE), ids=str)
@pytest.mark.parametrize("op", [ir.Add, ir.Sub, ir.Mul, ir.Min, ir.Max], ids=lambda o: o.__name__)
def test_int_arithmetic(t: DType, op: type[ir.Binary]) -> None:
    check(t, (t, t), op)


@pytest.mark.parametrize("t", INTS, ids=str)
@pytest.mark.parametrize("op", [ir.Div, ir.FloorDiv, ir.FloorMod], ids=lambda o: o.__name__)
@pytest.mark.parametrize("by", ["variable", 7, 8, -3])
def test_division(t: DType, op: type[ir.Binary], by: str | int) -> None:
    if by == -3 and t.kind == "uint":
        by = 3
    rng = np.random.default_rng(1)
    low = t.range()[0]
    a = samples(t, N)
    a[a == low] = 1 if low else 0  # least / -1 overflows
    if by == "variable":
        b = rng.integers(max(low, -9), 9, N).astype(t.numpy())
        b[b == 0] = 5
        for lanes in (1, 8):
            same(elementwise(t, (t, t), op, lanes), [a, b, np.zeros(N, t.numpy())])
        return
    for lanes in (1, 8):
        same(elementwise(t, (t,), lambda x: op(x, ir.const(by, x)), lanes), [a, np.zeros(N, t.numpy())])


@pytest.mark.parametrize("t", (f32, f64, d.f16, d.bf16, *INTS, d.i4, boolean), ids=str)
def test_comparisons_and_selection(t: DType) -> None:
    for op in (ir.Eq, ir.Ne, *(() if t.is_bool else (ir.Lt, ir.Le))):
        check(boolean, (t, t), op)
    check(t, (t, t), lambda a, b: ir.Select(ir.Ne(a, b), b, a))


def test_bool_logic() -> None:
    check(boolean, (boolean, boolean), ir.And)
    check(boolean, (boolean, boolean), ir.Or)
    check(boolean, (boolean,), ir.Not)
    check(boolean, (boolean, boolean, boolean), lambda a, b, e: ir.Select(a, b, ir.Not(e)))


@pytest.mark.parametrize("source", (*FLOATS, d.f8e8m0fnu, d.f4e2m1fn, *INTS, *SUB_BYTE, boolean), ids=str)
def test_casts(source: DType) -> None:
    targets = (f32, f64, d.f16, d.bf16, d.f8e4m3fn, d.f8e4m3fnuz, d.f8e5m2, d.f8e5m2fnuz, d.f4e2m1fn, d.i64, d.i32, d.i8,
               d.u8, d.u32, d.i4, d.u2, boolean)
    for to in targets:
        if source.is_float and to.is_int:
            continue
        if source.is_float and to.name == "f4e2m1fn":
            values = [x for x in samples(source, N).astype(np.float64) if np.isfinite(x)]  # it has no NaN
            x = np.resize(np.array(values, np.float32).astype(source.numpy()), N)
            same(elementwise(to, (source,), lambda a, to=to: a.cast(to), 8), [x, np.zeros(N, to.numpy())])
            continue
        check(to, (source,), lambda a, to=to: a.cast(to))


@pytest.mark.parametrize("source", (f32, f64, d.f16, d.bf16, d.f8e5m2), ids=str)
@pytest.mark.parametrize("to", (d.i64, d.i32, d.i8, d.u8), ids=str)
def test_float_to_integer(source: DType, to: DType) -> None:
    x = np.array([0, 0.5, 1.5, 2.75, 100, 63.5, -0.5, 7.25] * 6, np.float32).astype(source.numpy())
    for lanes in (1, 8):
        same(elementwise(to, (source,), lambda a: a.cast(to), lanes), [x, np.zeros(N, to.numpy())])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("t", (d.f16, d.bf16, d.f8e4m3fn, d.f8e4m3fnuz, d.f8e5m2, d.f8e5m2fnuz, d.f8e8m0fnu), ids=str)
def test_every_bit_pattern_to_f32(t: DType, level: str) -> None:
    n = 1 << t.bits
    x = np.arange(n).astype(np.uint8 if t.bits == 8 else np.uint16).view(t.numpy())
    got = np.zeros(n, np.float32)
    p = elementwise(f32, (t,), lambda a: a.cast(f32), 8, n)
    assert native(p, [x, got], target=get_target(level)) == 0
    want = x.astype(np.float32)
    assert np.array_equal(got, want, equal_nan=True)
    assert np.array_equal(np.signbit(got)[~np.isnan(want)], np.signbit(want)[~np.isnan(want)])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("t", (d.f16, d.bf16, d.f8e4m3fn, d.f8e4m3fnuz, d.f8e5m2, d.f8e5m2fnuz), ids=str)
def test_rounding_to_small_floats(t: DType, level: str) -> None:
    """Around every representable value and every midpoint."""
    bits = np.arange(1 << t.bits).astype(np.uint8 if t.bits == 8 else np.uint16).view(t.numpy()).astype(np.float32)
    v = np.sort(bits[np.isfinite(bits)])
    if len(v) > 4096:
        v = v[::17]
    middle = ((v[1:].astype(np.float64) + v[:-1]) / 2).astype(np.float32)
    x = np.concatenate([v, middle, np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, -np.float32(np.inf)),
                        np.array([1e30, -1e30, np.inf, -np.inf, np.nan, 1e-30, -1e-30], np.float32)])
    x = np.resize(x, -(-len(x) // 8) * 8)
    got = np.zeros(len(x), t.numpy())
    assert native(elementwise(t, (f32,), lambda a: a.cast(t), 8, len(x)), [x, got], target=get_target(level)) == 0
    with np.errstate(over="ignore", invalid="ignore"):
        want = x.astype(t.numpy())
    a, b = got.astype(np.float32), want.astype(np.float32)
    assert np.array_equal(a, b, equal_nan=True)
    assert np.array_equal(np.signbit(a)[~np.isnan(b)], np.signbit(b)[~np.isnan(b)])


def test_f64_to_small_rounds_once() -> None:
    x = np.resize(np.array([1 + 2.0**-11 + 2.0**-40, 1 + 2.0**-11, 1 + 2.0**-11 - 2.0**-40, -(1 + 2.0**-9 + 2.0**-45)]), N)
    for t in (d.f16, d.bf16):
        same(elementwise(t, (f64,), lambda a, t=t: a.cast(t), 8), [x, np.zeros(N, t.numpy())])


# ---- intrinsics ------------------------------------------------------------------------------------------------------
EXACT = ("sqrt", "floor", "ceil", "round", "trunc", "neg", "abs", "sign")
CLOSE = ("exp", "log", "erf", "tanh", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh",
         "rsqrt")
INTEGER = ("bit_and", "bit_or", "bit_xor", "bit_not", "shift_left", "shift_right", "popcount", "abs", "neg", "sign")


def test_every_intrinsic_is_tested() -> None:
    others = {"pow", "fmod", "fma", "isnan", "isinf", "reinterpret", "reduce_add", "reduce_max", "reduce_min", "prefetch"}
    others |= {"copy_bytes", "tw_profile_begin", "tw_profile_end", "tw_tap"}  # of host programs: see tests/test_driver.py
    others |= {"tw_worker", "tw_threads"}  # of workspaces: see tests/tensor/rules/test_symbolic_kernels.py
    others |= {"barrier", "tw_upload", "tw_move", "tw_download"}  # of devices: tests/loop/lower/test_device.py
    others |= {"tw_replay", "tw_captured"}  # tests/runtime/test_cuda.py
    others |= {"put_bits", "wait_copies", "commit_copies"}  # test_word_memory.py, test_pipelines.py
    others |= {"observe", "unknown"}  # of external functions, never called: tests/tensor/test_extern.py
    others |= {"scale", "gelu"}  # of some targets, below; always a polynomial (test_legalize_math.py)
    assert set(INTRINSICS) == {*EXACT, *CLOSE, *INTEGER, *others}


@pytest.mark.skipif(not get_target("native").has("scale"), reason="no instruction that scales")
@pytest.mark.parametrize("lanes", (4, 8, 16))
def test_scale(lanes: int) -> None:
    x = np.array([1.0, -1.5, 1.9999999, 0.0, -0.0, np.nan, np.inf, 1.2345678] * 64, np.float32)
    n = np.repeat(np.arange(-160, 160, 5), 8).astype(np.float32)
    p = elementwise(f32, (f32, f32), lambda a, b: ir.Call("scale", (a, b), a.dtype), lanes, len(x))
    same(p, [x, n, np.zeros_like(x)])


@pytest.mark.parametrize("level", ("native", "x86-64-v2", "x86-64"))
@pytest.mark.parametrize("name", EXACT)
def test_exact_float_intrinsics(name: str, level: str) -> None:
    for t in (f32, f64, d.f16, d.bf16):
        check(t, (t,), lambda a: ir.Call(name, (a,), a.dtype), target=level)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", CLOSE)
def test_libm_intrinsics(name: str) -> None:
    for t, digits in ((f32, 5e-7), (f64, 1e-15)):
        for lanes in (1, 8):
            p = elementwise(t, (t,), lambda a: ir.Call(name, (a,), a.dtype), lanes)
            for a, b in both(p, [samples(t, N), np.zeros(N, t.numpy())]):
                np.testing.assert_allclose(a, b, rtol=digits, atol=digits * 1e-3)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_two_operand_intrinsics() -> None:
    for name in ("pow", "fmod"):
        for t in (f32, f64):
            p = elementwise(t, (t, t), lambda a, b, name=name: ir.Call(name, (a, b), a.dtype), 8)
            for a, b in both(p, [samples(t, N), samples(t, N, 1), np.zeros(N, t.numpy())]):
                np.testing.assert_allclose(a, b, rtol=5e-7)
    rng = np.random.default_rng(0)
    for t in (d.i64, d.i32, d.u8):
        a, b = samples(t, N), rng.integers(1, 9, N).astype(t.numpy())
        same(elementwise(t, (t, t), lambda a, b: ir.Call("fmod", (a, b), a.dtype), 8), [a, b, np.zeros(N, t.numpy())])


@pytest.mark.parametrize("level", ("native", "x86-64-v2"))
def test_fma_rounds_once(level: str) -> None:
    for t in (f32, f64):
        check(t, (t, t, t), lambda a, b, e: ir.Call("fma", (a, b, e), a.dtype), target=level)


def test_float_tests() -> None:
    for t in FLOATS:
        check(boolean, (t,), lambda a: ir.Call("isnan", (a,), boolean.with_lanes(a.dtype.lanes)))
        check(boolean, (t,), lambda a: ir.Call("isinf", (a,), boolean.with_lanes(a.dtype.lanes)))


@pytest.mark.parametrize("name", INTEGER)
@pytest.mark.parametrize("t", INTS, ids=str)
def test_integer_intrinsics(name: str, t: DType) -> None:
    if name in ("bit_not", "popcount", "abs", "neg", "sign"):
        check(t, (t,), lambda a: ir.Call(name, (a,), a.dtype))
        return
    if "shift" in name:
        count = np.random.default_rng(0).integers(0, t.bits, N).astype(t.numpy())
        for lanes in (1, 8):
            p = elementwise(t, (t, t), lambda a, b: ir.Call(name, (a, b), a.dtype), lanes)
            same(p, [samples(t, N), count, np.zeros(N, t.numpy())])
        return
    check(t, (t, t), lambda a, b: ir.Call(name, (a, b), a.dtype))


def test_reinterpret() -> None:
    for frm, to in ((f32, d.i32), (d.i32, f32), (d.f16, d.u16), (d.u16, d.bf16), (f64, d.u64)):
        check(to, (frm,), lambda a, to=to: ir.Call("reinterpret", (a,), to.with_lanes(a.dtype.lanes)))


@pytest.mark.parametrize("name", ("reduce_add", "reduce_max", "reduce_min"))
@pytest.mark.parametrize("t", (f32, f64, d.f16, d.i32, d.u8), ids=str)
@pytest.mark.parametrize("lanes", (2, 12, 16))
def test_reductions_over_lanes(name: str, t: DType, lanes: int) -> None:
    a, o, i = ir.Buffer("A", t, (c(N),)), ir.Buffer("O", t, (c(N // lanes),)), ir.Var("i")
    value = ir.Call(name, (a[ir.Ramp(i * lanes, c(1), lanes)],), t)
    p = ir.Program("f", (a, o), ir.For(i, c(0), c(N // lanes), ir.Store(o, (i,), value)))
    for seed in range(3):
        same(p, [samples(t, N, seed), np.zeros(N // lanes, t.numpy())])


def test_unknown_intrinsic() -> None:
    with pytest.raises(InternalError, match="frobnicate"):
        native(elementwise(f32, (f32,), lambda a: ir.Call("frobnicate", (a,), a.dtype), 1), [])


# ---- numbers ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("level", ("native", "x86-64"))
@pytest.mark.parametrize("value", (0.0, 1.5, float("nan"), float("inf")))
def test_min_max_with_constants_propagate_nan(value: float, level: str) -> None:
    for t in (f32, f64):
        for f in (lambda a: ir.Max(a, ir.const(value, a)), lambda a: ir.Min(a, ir.const(value, a))):
            check(t, (t,), f, target=level)
    p = elementwise(f32, (f32,), lambda a: ir.Max(ir.const(value, a), a), 8)
    for a, b in both(p, [samples(f32, N), np.zeros(N, np.float32)], target=get_target(level)):
        np.testing.assert_array_equal(a, b)  # the sign of a zero is free when the constant comes first


def test_deep_sums_do_not_need_pythons_stack() -> None:
    a, o = ir.Buffer("A", d.i32, (c(1),)), ir.Buffer("O", d.i32, (c(1),))
    e: ir.Expr = a[0]
    for k in range(700):
        e = ir.Add(e, ir.Const(k, d.i32))
    got = np.zeros(1, np.int32)
    assert native(ir.Program("f", (a, o), ir.Store(o, (c(0),), e)), [np.array([7], np.int32), got]) == 0
    assert got[0] == 7 + sum(range(700))


def test_shared_nodes_are_computed_once() -> None:
    """A chain in which each node uses the last one twice is 2**60 operations as a tree."""
    def f(a: ir.Expr) -> ir.Expr:
        for _ in range(60):
            a = a + a
        return a
    x, got = np.arange(N), np.zeros(N, np.int64)
    assert native(elementwise(d.i64, (d.i64,), f, 8), [x, got]) == 0
    assert np.array_equal(got, x << 60)


def test_contraction_is_optional() -> None:
    x = np.full(N, 1 + 2.0**-12, np.float32)
    y = -(x * x)
    fused = elementwise(f32, (f32, f32), lambda a, b: a * a + b, 8)
    strict = fused.replace(attrs=(("fp", ""),))
    got = np.zeros(N, np.float32)
    assert native(strict, [x, y, got]) == 0 and not got.any()
    assert native(fused, [x, y, got]) == 0 and np.all(got == np.float32(2.0**-24))
