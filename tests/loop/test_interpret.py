"""The interpreter: numbers as the semantics of loop/ir.py says, and mistakes that must show."""
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.core.dtype import DType, bf16, boolean, dtype, f16, f32, f64, i4, i8, i32, i64, u4, u8, u32, u64
from tilewright.core.errors import InternalError
from tilewright.loop import ir
from tilewright.loop.interpret import AssertFailed, Interpreter, run
from tilewright.loop.ir import (
    ONE,
    ZERO,
    Add,
    Broadcast,
    Buffer,
    Cast,
    Div,
    Expr,
    FloorDiv,
    FloorMod,
    For,
    Guard,
    Max,
    Min,
    Mul,
    Program,
    Ramp,
    Select,
    Store,
    Sub,
    Var,
    const,
)
from tilewright.loop.parser import parse_module, parse_program
from tilewright.loop.values import convert
from tilewright.loop.verify import verify

INTEGERS = (i64, i32, i8, i4, u64, u32, u8, u4)
FLOATS = (f64, f32, f16, bf16, dtype("f8e4m3fn"), dtype("f8e5m2"), dtype("f4e2m1fn"))


def evaluate(e: Expr, **inputs: Any) -> Any:
    """The value of an expression, through a store to memory."""
    t = e.dtype
    out = Buffer("out", t.element, (const(t.lanes),))
    index = Ramp(ZERO, ONE, t.lanes) if t.lanes > 1 else ZERO
    memory = np.zeros(t.lanes, t.numpy())
    run(Program("p", (out,), Store(out, (index,), e)), [memory])
    return memory if t.lanes > 1 else memory[0]


def vector(values: Any, t: DType) -> Expr:
    """A vector of constants, loaded from a table."""
    table = Buffer("table", t, (const(len(values)),), "const", data=tuple(values))
    return table[Ramp(ZERO, ONE, len(values))]


# ---- numbers ---------------------------------------------------------------------------------------------------------
@given(st.data())
@settings(max_examples=300, deadline=None)
def test_integers_wrap_scalar_and_vector(data: Any) -> None:
    t = data.draw(st.sampled_from(INTEGERS))
    lo, hi = t.range()
    a, b = data.draw(st.integers(lo, hi)), data.draw(st.integers(lo, hi))
    op, exact = data.draw(st.sampled_from([
        (Add, a + b), (Sub, a - b), (Mul, a * b), (Min, min(a, b)), (Max, max(a, b)),
        *([(FloorDiv, a // b), (FloorMod, a % b),
           (Div, abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1))] if b else [])]))
    expected = (exact - lo) % (hi - lo + 1) + lo
    assert int(evaluate(op(const(a, t), const(b, t)))) == expected
    lanes = evaluate(op(vector([a, a, lo, 0], t), vector([b, b, 1, 1], t)))
    assert int(lanes[0]) == int(lanes[1]) == expected


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_floats_round_at_every_operation(data: Any) -> None:
    t = data.draw(st.sampled_from(FLOATS))
    kind = t.numpy()
    a, b = (np.float64(np.float64(data.draw(st.floats(-400, 400))).astype(kind)) for _ in range(2))
    with np.errstate(over="ignore"):
        quotient = [(Div, a / b)] if b else []
    op, exact = data.draw(st.sampled_from([(Add, a + b), (Sub, a - b), (Mul, a * b), *quotient]))
    with np.errstate(over="ignore"):
        expected = np.asarray(exact).astype(np.float32 if t.bits < 64 else kind).astype(kind)
    got = evaluate(op(const(a, t), const(b, t)))
    assert got.dtype == kind and np.array_equal(got.astype(np.float64), expected.astype(np.float64), equal_nan=True)
    lanes = evaluate(op(vector([float(a)] * 3, t), vector([float(b)] * 3, t)))
    assert lanes.tobytes() == np.array([got] * 3, kind).tobytes()


def test_f32_is_not_computed_in_f64() -> None:
    big, one = const(2.0**24, f32), const(1.0, f32)
    assert evaluate((big + one) - big) == 0.0
    assert evaluate((const(2.0**24, f64) + const(1.0, f64)) - const(2.0**24, f64)) == 1.0


def test_division_of_floats_by_zero_and_overflow() -> None:
    assert evaluate(Div(const(1, f32), const(0, f32))) == np.inf
    assert np.isnan(evaluate(Div(const(0, f32), const(0, f32))))
    assert evaluate(const(3e38, f32) * const(10, f32)) == np.inf
    assert evaluate(Div(const(1, bf16), const(-0.0, bf16))).astype(float) == -np.inf


@pytest.mark.parametrize("op", [Min, Max])
@pytest.mark.parametrize("t", [f32, bf16])
def test_min_and_max_propagate_nan(op: Any, t: DType) -> None:
    nan = float("nan")
    assert np.isnan(evaluate(op(const(nan, t), const(1, t)))) and np.isnan(evaluate(op(const(1, t), const(nan, t))))
    lanes = evaluate(op(vector([nan, 1.0, 2.0], t), vector([1.0, nan, 3.0], t))).astype(float)
    assert np.isnan(lanes[:2]).all() and lanes[2] == (2 if op is Min else 3)


@pytest.mark.parametrize("value, frm, to, expected", [
    (-1.9, f32, i32, -1), (1.9, f32, i8, 1), (300.0, f32, u8, 0), (float("nan"), f32, i32, -2**31), (3e9, f32, i32, -2**31),
    (-1, i32, u32, 2**32 - 1), (200, i32, i8, -56), (7, i32, i4, 7), (9, i32, i4, -7), (2**24 + 1, i32, f32, 2.0**24),
    (2**60 + 2**36 + 1, i64, f32, 2.0**60 + 2.0**37), (2**63, u64, f64, 2.0**63), (0.0, f32, boolean, False),
    (0.5, f32, boolean, True), (2, i32, boolean, True), (True, boolean, f32, 1.0), (True, boolean, i8, 1),
    (1e9, f32, f16, np.inf), (1.0 + 2.0**-8 + 2.0**-40, f64, bf16, 1.0078125), (0.1, f64, f32, np.float32(0.1))])
def test_casts(value: Any, frm: DType, to: DType, expected: Any) -> None:
    assert evaluate(Cast(to, const(value, frm))) == expected
    lanes = evaluate(Cast(to.with_lanes(2), vector([value, value], frm)))
    assert lanes[0] == lanes[1] == expected
    with np.errstate(over="ignore"):
        assert convert(to, frm, value) == expected


def test_vectors() -> None:
    lanes = evaluate(Select(vector([True, False, True, False], boolean), Ramp(const(3, i32), const(-2, i32), 4),
                            Broadcast(const(9, i32), 4)))
    assert lanes.tolist() == [3, 9, -1, 9]
    assert evaluate(vector([5, 6, 7], u8) < vector([6, 6, 6], u8)).tolist() == [True, False, False]
    assert evaluate(~(vector([True, False], boolean) & vector([True, True], boolean))).tolist() == [False, True]
    assert evaluate(Ramp(const(2**64 - 1, u64), const(1, u64), 2)).tolist() == [2**64 - 1, 0]


def test_a_table_of_small_integers() -> None:
    assert evaluate(vector([-8, 7], i4)).tolist() == [-8, 7]
    assert evaluate(Add(vector([15, 15], u4), Broadcast(const(1, u4), 2))).tolist() == [0, 0]


# ---- programs --------------------------------------------------------------------------------------------------------
MATMUL = """
program matmul(A: f32[m, k], B: f32[k, n], C: f32[m, n], m: i64, n: i64, k: i64):
    for io in 0..(m + 3) // 4 parallel:
        for ii in 0..4:
            for j in 0..n vectorized:
                for r in 0..k:
                    block C(y: spatial m = io*4 + ii, x: spatial n = j, z: reduce k = r) if io*4 + ii < m:
                        init:
                            C[y, x] = 0.0
                        body:
                            C[y, x] = C[y, x] + A[y, z] * B[z, x]
"""


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_blocks_with_predicate_and_init(order: Any) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-9, 9, (6, 3)).astype(np.float32), rng.integers(-9, 9, (3, 5)).astype(np.float32)
    c = np.full((6, 5), np.nan, np.float32)
    run(parse_program(MATMUL), {"A": a, "B": b, "C": c}, order=order, seed=3)
    assert np.array_equal(c, a @ b)


def test_a_binding_outside_of_the_domain_is_an_error() -> None:
    p = parse_program(MATMUL.replace(" if io*4 + ii < m", ""))
    arrays = [np.zeros(s, np.float32) for s in ((6, 3), (3, 5), (6, 5))]
    with pytest.raises(InternalError, match=r"block C runs with y = 6 outside its domain \[0, 6\)"):
        run(p, [*arrays, 6, 5, 3])


def test_the_order_of_parallel_iterations() -> None:
    p = parse_program("program f(A: i64[9], n: i64[1]):\n    for i in 0..9 parallel:\n"
                      "        A[n[0]] = i\n        n[0] = n[0] + 1")
    seen = {}
    for order in ("forward", "reverse", "random"):
        a = np.zeros(9, np.int64)
        run(p, [a, np.zeros(1, np.int64)], order=order, seed=1)
        seen[order] = a.tolist()
    assert seen["forward"] == list(range(9)) and seen["reverse"] == list(range(9))[::-1]
    assert sorted(seen["random"]) == list(range(9)) and seen["random"] not in (seen["forward"], seen["reverse"])


def test_control_flow() -> None:
    p = parse_program("""
program collatz(out: i64[2], start: i64):
    out[0] = start
    out[1] = 0
    while out[0] > 1:
        let v = out[0]
        if v % 2 == 0:
            out[0] = v // 2
        elif v > 1000000:
            assert v < 0, 5, "too large"
        else:
            out[0] = 3 * v + 1
        out[1] = out[1] + 1
    assert out[1] < 100, 7, "too long"
""")
    out = np.zeros(2, np.int64)
    interpreter = Interpreter(p)
    interpreter.run([out, 7])
    assert out.tolist() == [1, 16]
    with pytest.raises(AssertFailed, match="too long") as caught:
        interpreter.run([out, 27])
    assert caught.value.code == 7


def test_launches_tasks_and_addresses() -> None:
    m = parse_module("""
program row(task: i64, X: f32[4], Y: f32[4], scale: f32):
    for i in 0..4:
        Y[i] = X[i] * scale + f32(task)

program region(begin: i64, end: i64, X: f32[3, 4], Y: f32[3, 4]):
    for task in begin..+(end - begin):
        launch row(task, &X[task, 0], &Y[task, 0], 2.0)

program main(X: f32[3, 4], Y: f32[3, 4], W: u8[8]):
    launch region(&X[0, 0], &Y[0, 0]) tasks 3
    launch add(&W[4], &Y[2, 3])

program add(W: f32[1], Y: f32[1]):
    Y[0] = Y[0] + W[0]
""")
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    for order in ("forward", "random"):
        y = np.full((3, 4), np.nan, np.float32)
        run(m, [x, y, np.array([0, 100], np.float32).view(np.uint8)], order=order)
        expected = 2 * x + np.arange(3)[:, None]
        expected[2, 3] += 100
        assert np.array_equal(y, expected)
    verify(m)
    out = np.zeros(4, np.float32)
    run(m.programs[0], [1, x[1], out, 1.0])
    assert out.tolist() == [5, 6, 7, 8]
    with pytest.raises(InternalError, match="launch of row, which is not in the module"):
        run(m.programs[1], [0, 3, x, y])
    run(m.programs[1], [0, 3, x, y], m)


def test_strides_address_memory() -> None:
    p = parse_program("program f(A: i32[2, 3] strides[1, 2], B: i32[2, 3]):\n    for i in 0..2:\n        for j in 0..3:\n"
                      "            B[i, j] = A[i, j]")
    b = np.zeros((2, 3), np.int32)
    run(p, [np.arange(6, dtype=np.int32), b])
    assert b.tolist() == [[0, 2, 4], [1, 3, 5]]
    with pytest.raises(InternalError, match="outside the memory of 5 elements"):
        run(p, [np.arange(5, dtype=np.int32), b])


# ---- mistakes show ---------------------------------------------------------------------------------------------------
def test_an_index_out_of_bounds_shows_the_access_and_the_values() -> None:
    p = parse_program("program f(A: f32[4, 2]):\n    for i in 0..5:\n        A[i, 1] = 0.0")
    with pytest.raises(InternalError) as caught:
        run(p, [np.zeros((4, 2), np.float32)])
    text = str(caught.value)
    assert "index 4 is out of bounds [0, 4) in A[i, 1] = 0.0, where i = 4" in text and "^^^^^^^" in text
    negative = parse_program("program f(A: f32[4, 2]):\n    A[1, -1] = 0.0")
    with pytest.raises(InternalError, match="index -1"):
        run(negative, [np.zeros((4, 2), np.float32)])
    lanes = parse_program("program f(A: f32[4]):\n    A[ramp(1, 1, 4)] = broadcast(0.0, 4)")
    with pytest.raises(InternalError, match="out of bounds"):
        run(lanes, [np.zeros(4, np.float32)])


def test_guard_does_not_evaluate_the_other_side_and_select_does() -> None:
    a = Buffer("A", f32, (const(2),))
    i = Var("i")
    for cls in (Guard, Select):
        p = Program("p", (a, i), Store(a, (ZERO,), cls(i < 2, a[i], const(7, f32))))
        array = np.zeros(2, np.float32)
        if cls is Guard:
            run(p, [array, 2])
            assert array[0] == 7
        else:
            with pytest.raises(InternalError, match="out of bounds"):
                run(p, [array, 2])


@pytest.mark.parametrize("name, expected", [
    ("f32", np.nan), ("f16", np.nan), ("bf16", np.nan), ("f8e4m3fn", np.nan), ("f64", np.nan), ("i8", -51), ("u8", 0xCD),
    ("i32", np.array(0xCDCDCDCD, np.uint32).astype(np.int32)), ("u4", 0xD), ("i4", -3), ("f4e2m1fn", -3.0), ("bool", True)])
def test_allocated_memory_is_poisoned(name: str, expected: Any) -> None:
    p = parse_program(f"program f(out: {name}[1]):\n    alloc t: {name}[4] local\n    out[0] = t[3]")
    out = np.zeros(1, dtype(name).numpy())
    run(p, [out])
    assert np.array_equal(out.astype(np.float64), [np.float64(expected)], equal_nan=True)


def test_buffers_planned_to_overlap_do_overlap() -> None:
    text = """
program f(out: i32[1]):
    alloc a: i32[4] arena at 0
    alloc b: i32[4] arena at {offset}
    a[2] = 7
    b[0] = 1
    out[0] = a[2]
"""
    out = np.zeros(1, np.int32)
    run(parse_program(text.format(offset=16)), [out])
    assert out[0] == 7
    run(parse_program(text.format(offset=8)), [out])
    assert out[0] == 1
    with pytest.raises(InternalError, match="the arena has 64 bytes"):
        Interpreter(parse_program(text.format(offset=64)), arena_bytes=64).run([out])


def test_integer_division_by_zero_is_an_error() -> None:
    for op in (Div, FloorDiv, FloorMod):
        with pytest.raises(InternalError, match="division by zero"):
            evaluate(op(const(1, i32), const(0, i32)))
        with pytest.raises(InternalError, match="division by zero"):
            evaluate(op(vector([1, 1], i32), vector([1, 0], i32)))


@pytest.mark.parametrize("args, message", [
    ([np.zeros(3, np.float64), 3], "must be a C-contiguous array of f32, not f"),
    ([np.zeros(4, np.float32), 3], "has shape"), ([np.zeros((6,), np.float32)[::2], 3], "C-contiguous"),
    ([np.zeros(3, np.float32)], "2 parameters and was given 1"), ({"A": np.zeros(3, np.float32), "B": 1}, "no parameters B"),
    ({"n": 1}, "was not given A"), ([np.zeros(3, np.float32), 2**63], "out of the range")])
def test_arguments_that_do_not_fit(args: Any, message: str) -> None:
    with pytest.raises(InternalError, match=message):
        run(parse_program("program f(A: f32[n], n: i64):\n    A[0] = 1.0"), args)


def test_a_variable_outside_its_scope() -> None:
    a, i = Buffer("A", i64, (const(4),)), Var("i")
    with pytest.raises(InternalError, match="i is used in f but not defined"):
        run(Program("f", (a,), Store(a, (i,), i)), [np.zeros(4, np.int64)])


def test_it_is_fast_enough_for_property_tests() -> None:
    """About a million scalar operations a second on one core; the bound leaves room for a slow machine."""
    import time
    n, arrays = 24, [np.ones((24, 24), np.float32) for _ in range(3)]
    p = Interpreter(parse_program(MATMUL))
    start = time.perf_counter()
    p.run([*arrays, n, n, n])
    assert time.perf_counter() - start < 3.0
    assert np.all(arrays[2] == n)


def test_small_types_have_numpy_forms() -> None:
    assert bf16.numpy() == np.dtype(ml_dtypes.bfloat16)
    body = For(Var("i"), ZERO, const(0), ir.Seq(()))
    run(Program("empty", (), body), [])
