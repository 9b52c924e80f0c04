"""The compute language: programs against NumPy through the interpreter, and what it says to wrong definitions."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tilewright.core.dtype import dtype, f32, i32, i64
from tilewright.core.errors import UserError
from tilewright.loop.interpret import run
from tilewright.loop.ir import Block, Guard, IntoExpr, Max, Program, Select, Var, as_int, const, maximum
from tilewright.loop.parser import parse_program
from tilewright.loop.printer import print_program
from tilewright.loop.verify import verify
from tilewright.tensor import compute as te
from tilewright.tensor.compute import (
    Tensor,
    compute,
    const_table,
    create_program,
    if_then_else,
    placeholder,
    reduce_axis,
    reducer,
    select,
)
from tilewright.tensor.reducers import MAX, MIN, PROD, SUM
from tilewright.tensor.schedule.state import blocks, iterate

RNG = np.random.default_rng(3)


def evaluate(program: Program, **given: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Run a program on arrays by name; outputs are made here. The program must verify and survive print → parse."""
    assert verify(program) == []
    assert print_program(parse_program(print_program(program))) == print_program(program)
    sizes = {v: n for p in program.params if not isinstance(p, Var) and p.name in given
             for v, n in zip(p.shape, np.shape(given[p.name]), strict=True) if isinstance(v, Var)}
    args = dict(given)
    for p in program.params:
        if not isinstance(p, Var) and p.name not in args:
            args[p.name] = np.zeros([sizes[d] if isinstance(d, Var) else as_int(d) or 0 for d in p.shape], p.dtype.numpy())
    run(program, args)
    return args


def ints(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.integers(-9, 10, shape).astype(np.int32)


def floats(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


# ---- shape of programs ------------------------------------------------------------------------------------------
def test_a_matmul_is_one_block_in_three_loops() -> None:
    a, b, r = placeholder((2, 3), "i32", "A"), placeholder((3, 4), "i32", "B"), reduce_axis(3, "r")
    c = compute((2, 4), lambda i, j: te.sum(a[i, r] * b[r, j], axis=[r]), name="C", attrs=[("mark", 7)])
    program = create_program("matmul", [a, b], [c], weights=["B"])
    (block,) = blocks(program)
    assert block.name == "C" and block.attrs == (("mark", 7),)
    assert [(it.kind, as_int(it.extent)) for it in block.iters] == [("spatial", 2), ("spatial", 4), ("reduce", 3)]
    assert [type(s).__name__ for s in iterate(program.body)] == ["For", "For", "For", "Block"]
    assert program.attr("weights") == ("B",) and program.attr("noalias") is True
    x, y = ints(2, 3), ints(3, 4)
    assert (evaluate(program, A=x, B=y)["C"] == x @ y).all()


def test_stages_come_in_dependence_order_each_once_with_names_of_their_own() -> None:
    x = placeholder((4,), "i32", "X")
    double = compute((4,), lambda i: x[i] * 2, name="t")
    plus = compute((4,), lambda i: double[i] + 1, name="t")
    both = compute((4,), lambda i: plus[i] * double[i], name="out")
    program = create_program("f", [x], [both])
    assert [b.name for b in blocks(program)] == ["t", "t_1", "out"]
    v = ints(4)
    assert (evaluate(program, X=v)["out"] == (v * 2 + 1) * (v * 2)).all()


def test_a_tensor_between_may_be_an_output_too() -> None:
    x = placeholder((4,), "i32", "X")
    a = compute((4,), lambda i: x[i] + 1, name="a")
    b = compute((4,), lambda i: a[i] * 3, name="b")
    got = evaluate(create_program("f", [x], [b, a]), X=(v := ints(4)))
    assert (got["a"] == v + 1).all() and (got["b"] == (v + 1) * 3).all()


def test_one_definition_serves_two_programs() -> None:
    x, r = placeholder((3, 4), "i32", "X"), reduce_axis(4)
    s = compute((3,), lambda i: te.sum(x[i, r], axis=[r]), name="s")
    t = compute((3,), lambda i: s[i] + 1, name="t")
    v = ints(3, 4)
    assert (evaluate(create_program("f", [x], [s]), X=v)["s"] == v.sum(1)).all()
    assert (evaluate(create_program("g", [x], [t]), X=v)["t"] == v.sum(1) + 1).all()
    assert (evaluate(create_program("h", [s], [t]), s=v[:, 0].copy())["t"] == v[:, 0] + 1).all()


def test_symbolic_sizes_become_parameters() -> None:
    n, m = Var("n"), Var("m")
    x, r = placeholder((n, m), "i32", "X"), reduce_axis(m, "r")
    s = compute((n,), lambda i: te.sum(x[i, r], axis=[r]), name="S")
    program = create_program("rows", [x], [s])
    assert [p.name for p in program.params] == ["X", "S", "n", "m"]
    v = ints(5, 3)
    assert (evaluate(program, X=v)["S"] == v.sum(1)).all()


def test_scalars_and_integer_indices_of_any_width() -> None:
    x, at = placeholder((6,), "f32", "X"), placeholder((3,), "i32", "at")
    k = Var("k", f32)
    g = compute((3,), lambda i: x[at[i]] * k, name="G")
    program = create_program("gather", [x, at, k], [g])
    v, i = floats(6), np.array([4, 0, 5], np.int32)
    got = np.zeros(3, np.float32)
    run(program, [v, i, 2.5, got])
    assert (got == v[i] * np.float32(2.5)).all()


def test_reduced_axes_in_index_arithmetic() -> None:
    x, k = placeholder((4, 12), name="x"), reduce_axis(3, "k")
    y = compute((4, 3), lambda i, j: te.sum(if_then_else(
        (k < 2) | (k * 1 >= i), x[3 - i, j * 3 + k] + x[0, k % 2 + 2 * j], 0.0), axis=[k]), name="y")
    a = RNG.integers(0, 9, (4, 12)).astype(np.float32)
    want = [[sum(a[3 - i, j * 3 + r] + a[0, r % 2 + 2 * j] for r in range(3) if r < 2 or r >= i) for j in range(3)]
            for i in range(4)]
    np.testing.assert_array_equal(evaluate(create_program("f", [x], [y]), x=a)["y"], want)


def test_zero_dimensional_tensors() -> None:
    x, r = placeholder((4,), "i32", "X"), reduce_axis(4)
    s = compute((), lambda: te.sum(x[r], axis=[r]), name="s")
    t = compute((4,), lambda i: x[i] - s[()], name="t")
    got = evaluate(create_program("f", [x], [t]), X=(v := ints(4)))
    assert (got["t"] == v - v.sum()).all()


# ---- reductions ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("make", "oracle"), [
    (te.sum, np.sum), (te.prod, np.prod), (te.max, np.max), (te.min, np.min)])
def test_reducers_over_two_axes(make: Callable[..., Any], oracle: Callable[..., Any]) -> None:
    x, r, q = placeholder((3, 2, 4), "i32", "X"), reduce_axis(3), reduce_axis(4)
    y = compute((2,), lambda i: make(x[r, i, q], axis=[r, q]), name="Y")
    v = ints(3, 2, 4)
    assert (evaluate(create_program("f", [x], [y]), X=v)["Y"] == oracle(v, axis=(0, 2))).all()


def test_identities_of_floats_and_integers() -> None:
    assert SUM.identity([f32])[0] == const(0.0, f32) and PROD.identity([f32])[0] == const(1.0, f32)
    assert MAX.identity([f32])[0] == const(-np.inf, f32) and MIN.identity([f32])[0] == const(np.inf, f32)
    assert MAX.identity([i32])[0] == const(-2**31, i32) and MIN.identity([i32])[0] == const(2**31 - 1, i32)


@pytest.mark.parametrize("pick", ["argmax", "argmin"])
def test_arg_reductions_take_the_first_of_equals_over_several_axes(pick: str) -> None:
    x, r, q = placeholder((2, 3, 4), "i32", "X"), reduce_axis(3), reduce_axis(4)
    index, value = compute((2,), lambda i: getattr(te, pick)(x[i, r, q], axis=[r, q]), name="best")
    assert (index.dtype, value.dtype) == (i64, i32)
    v = RNG.integers(-2, 3, (2, 3, 4)).astype(np.int32)
    got = evaluate(create_program("f", [x], [index, value]), X=v)
    flat = v.reshape(2, 12)
    want = getattr(np, pick)(flat, axis=1)
    assert (got["best_0"] == want).all() and (got["best_1"] == flat[[0, 1], want]).all()


@pytest.mark.parametrize("pick", ["argmax", "argmin"])
def test_arg_reductions_find_nan_as_numpy_does(pick: str) -> None:
    x, r = placeholder((6, 4), "f32", "X"), reduce_axis(4)
    index, value = compute((6,), lambda i: getattr(te, pick)(x[i, r], axis=[r]), name="best")
    nan, inf = np.nan, np.inf
    v = np.array([[1, nan, 2, 3], [nan, 1, nan, 0], [1, 2, 3, nan], [-inf, -inf, -inf, -inf], [inf, nan, inf, 1],
                  [0, -0.0, 0, -1]], np.float32)
    got = evaluate(create_program("f", [x], [index, value]), X=v)
    want = getattr(np, pick)(v, axis=1)
    assert (got["best_0"] == want).all()
    np.testing.assert_array_equal(got["best_1"], v[np.arange(6), want])


def test_a_reducer_of_ones_own_with_a_tuple_state() -> None:
    """Online softmax: (maximum, sum of exponentials relative to it) of two parts combine without a second look."""
    def combine(a: Any, b: Any) -> Any:
        m = maximum(a[0], b[0])
        return m, a[1] * te.exp(a[0] - m) + b[1] * te.exp(b[0] - m)
    online = reducer(combine, lambda d: (const(-1e30, d[0]), const(0.0, d[1])), "online_softmax")
    x, r = placeholder((2, 7), "f32", "X"), reduce_axis(7)
    m, s = compute((2,), lambda i: online((x[i, r], const(1.0, f32)), axis=[r]), name="ms")
    y = compute((2, 7), lambda i, j: te.exp(x[i, j] - m[i]) / s[i], name="Y")
    v = floats(2, 7)
    got = evaluate(create_program("softmax", [x], [y]), X=v)["Y"]
    e = np.exp(v.astype(np.float64) - v.max(1, keepdims=True))
    np.testing.assert_allclose(got, e / e.sum(1, keepdims=True), rtol=1e-5)


# ---- expressions ------------------------------------------------------------------------------------------
def test_select_evaluates_both_sides_and_if_then_else_one() -> None:
    x = placeholder((4,), "i32", "X")
    padded = compute((6,), lambda i: if_then_else((i >= 1) & (i < 5), x[i - 1], 0), name="P")
    sign = compute((6,), lambda i: select(padded[i] < 0, -1, padded[i]), name="S")
    program = create_program("f", [x], [sign])
    kinds = [type(b.body.value) for b in blocks(program)]  # type: ignore[attr-defined]
    assert kinds == [Guard, Select]
    p = np.pad(v := ints(4), 1)
    assert (evaluate(program, X=v)["S"] == np.where(p < 0, -1, p)).all()


def test_math_helpers() -> None:
    x = placeholder((5,), "f32", "X")
    y = compute((5,), lambda i: te.exp(x[i]) + te.tanh(x[i]) * te.sqrt(x[i]) - te.log(x[i]) + te.sigmoid(x[i]), name="Y")
    v = np.abs(floats(5)) + 0.1
    want = np.exp(v) + np.tanh(v) * np.sqrt(v) - np.log(v) + 1 / (1 + np.exp(-v))
    np.testing.assert_allclose(evaluate(create_program("f", [x], [y]), X=v)["Y"], want, rtol=1e-5)


@pytest.mark.parametrize("name", ["f64", "f32", "f16", "bf16", "f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz", "f8e8m0fnu",
                                  "f4e2m1fn", "i64", "i32", "i16", "i8", "i4", "i2", "u64", "u32", "u16", "u8", "u4", "u2",
                                  "bool"])
def test_constant_tables_of_every_dtype(name: str) -> None:
    t = dtype(name)
    data = np.array([[1, 0], [1, 1]] if name in ("bool", "u2", "i2") else [[1, 2], [4, 1]]).astype(t.numpy())
    table = const_table(data, name="T")
    assert table.dtype is t
    y = compute((2, 2), lambda i, j: table[1 - i, j], name="Y")
    program = create_program("f", [], [y])
    assert program.params == (y.buffer,)
    np.testing.assert_array_equal(evaluate(program)["Y"], data[::-1])


def test_a_constant_table_is_no_parameter() -> None:
    table, x = const_table(np.array([[1, -2], [3, 4]], np.int32), name="T"), placeholder((2, 2), "i32", "X")
    y = compute((2, 2), lambda i, j: table[i, j] * x[j, i], name="Y")
    program = create_program("f", [x], [y])
    assert [p.name for p in program.params] == ["X", "Y"]
    v = ints(2, 2)
    assert (evaluate(program, X=v)["Y"] == np.array([[1, -2], [3, 4]]) * v.T).all()


def test_max_of_a_reduction_is_an_expression_of_the_ir() -> None:
    x, r = placeholder((3,), "f32", "X"), reduce_axis(3)
    y = compute((), lambda: te.max(x[r], axis=[r]), name="Y")
    (block,) = blocks(create_program("f", [x], [y]))
    assert isinstance(block, Block) and isinstance(block.body.value, Max)  # type: ignore[union-attr]


# ---- wrong definitions ------------------------------------------------------------------------------------------
def wrong(f: Callable[[], Any], *words: str) -> None:
    with pytest.raises(UserError) as e:
        f()
    assert e.value.code == "compute-invalid"
    for w in words:
        assert w in str(e.value), str(e.value)


def two() -> tuple[Tensor, Any]:
    return placeholder((4, 3), "i32", "X"), reduce_axis(3, "r")


def test_wrong_indices() -> None:
    x, _ = two()
    wrong(lambda: compute((4,), lambda i: x[i]), "2 dimensions, indexed with 1")
    wrong(lambda: compute((4,), lambda i: x[i, 0.5]), "no integer")
    wrong(lambda: compute((4,), lambda i: (x[i, 0], x[i, 1])), "2 values")


def test_wrong_reductions() -> None:
    x, r = two()
    axis: IntoExpr = 0
    wrong(lambda: compute((4,), lambda i: te.sum(x[i, r], axis=[])), "at least one reduce_axis")
    wrong(lambda: compute((4,), lambda i: te.sum(x[i, axis], axis=[axis])), "at least one reduce_axis")
    wrong(lambda: compute((4,), lambda i: te.sum(x[i, r], axis=[r, r])), "reduced twice")
    loose = compute((4,), lambda i: x[i, r] + 1, name="loose")
    wrong(lambda: create_program("f", [x], [loose]), "r is used in f", "axis=[...]")


def test_wrong_programs() -> None:
    x, _ = two()
    y = compute((4,), lambda i: x[i, 0], name="Y")
    wrong(lambda: create_program("f", [x], [x]), "X is an output of f, but nothing computes it")
    wrong(lambda: create_program("f", [], [y]), "Y reads X, which is neither an input of f nor computed")
    wrong(lambda: create_program("f", [x], [y, y]), "given twice")
    wrong(lambda: create_program("f", [x], [y], weights=["W"]), "no inputs W")
