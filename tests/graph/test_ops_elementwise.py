"""Elementwise operators: recipes against NumPy, types, broadcasting, symbolic sizes, errors, known elements."""
from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import tilewright
from tests.frontend.onnx.onnx_check import one
from tests.graph.opcheck import build, check, floats, ints
from tilewright.core.dtype import dtype, i64
from tilewright.core.errors import InternalError, UserError
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.ir import tensor_type
from tilewright.graph.ops import binary, recipes, unary
from tilewright.loop.ir import Buffer, Const, Var, as_int
from tilewright.loop.simplify import simplify
from tilewright.tensor.compute import const_table

POSITIVE = {"log", "sqrt", "rsqrt", "reciprocal"}
UNIT = {"asin", "acos", "atanh"}
FLOAT_UNARY = sorted(r.name for r in unary.RECORDS if r.name not in ("logical_not", "bitwise_not", "cast", "bit_cast"))


def _input(name: str) -> np.ndarray:
    if name in POSITIVE:
        return floats(3, 7, low=0.1, high=5)
    if name in UNIT:
        return floats(3, 7, low=-0.95, high=0.95)
    if name == "acosh":
        return floats(3, 7, low=1.1, high=5)
    if name == "log1p":
        return np.concatenate([floats(10, low=-0.9, high=5), floats(10, low=-0.02, high=0.02)])
    if name == "expm1":
        return np.concatenate([floats(10), floats(10, low=-1e-3, high=1e-3)])
    if name in ("isnan", "isinf"):
        return np.array([0, 1, np.nan, np.inf, -np.inf], np.float32)
    return np.concatenate([floats(40, low=-8, high=8), np.array([0.0, -0.0, 0.5, -0.5, 1.5, 2.5], np.float32)])


@pytest.mark.parametrize("name", FLOAT_UNARY)
def test_unary_recipe(name: str) -> None:
    attrs = {"clip": {"min": -1.5, "max": 2}}.get(name)
    check(name, [_input(name)], attrs)


@pytest.mark.parametrize("name", ["exp", "gelu", "relu", "sqrt", "silu", "neg"])
@pytest.mark.parametrize("type", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_unary_widths(name: str, type: object) -> None:
    check(name, [floats(2, 9, low=0.1, high=2, type=type)], rtol=1e-2 if np.dtype(type).itemsize == 2 else 1e-12)


def test_extremes_stay_finite_or_exact() -> None:
    x = np.array([-100, -30, -20, 20, 30, 100], np.float32)
    for name in ("sigmoid", "softplus", "mish", "silu", "elu", "tanh", "celu", "selu"):
        want, = check(name, [x], rtol=2e-5, atol=1e-7)
        assert np.isfinite(want).all()


def test_attributes_change_the_result() -> None:
    x = floats(20)
    check("leaky_relu", [x], {"alpha": 0.3})
    check("gelu", [x], {"approximate": "tanh"})
    check("clip", [x], {"max": 0.5})
    check("clip", [ints(9)], {"min": -2})
    check("isinf", [np.array([1, np.inf, -np.inf], np.float32)], {"negative": False})
    check("celu", [x], {"alpha": 2.0})
    check("hard_sigmoid", [x], {"alpha": 0.5, "beta": 0.1})
    with pytest.raises(InternalError, match="no attribute 'alfa'"):
        check("elu", [x], {"alfa": 2.0})


@pytest.mark.parametrize("name", ["neg", "abs", "sign", "relu", "bitwise_not"])
def test_integers(name: str) -> None:
    check(name, [ints(11)])
    check(name, [ints(11, type=np.int8)])


def test_logic_and_casts() -> None:
    check("logical_not", [np.array([True, False])])
    for to in ("i32", "i64", "f64", "bool", "f16", "u8"):
        check("cast", [floats(7, low=0, high=200)], {"to": to}, rtol=1e-3)
    check("cast", [np.array([True, False])], {"to": "f32"})
    check("bit_cast", [floats(7)], {"to": "i32"})
    check("bit_cast", [ints(5)], {"to": "u32" if ints(1).dtype.itemsize == 4 else "u64"})
    check("cast", [ints(5)], {"to": "bf16"}, rtol=1e-2)


ARITHMETIC = ["add", "sub", "mul", "div", "mod", "fmod", "min", "max", "prelu"]


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic(name: str) -> None:
    a, b = floats(2, 1, 5), floats(3, 1, seed=1)
    check(name, [a, b])
    whole = ints(3, 4, low=1, high=7, seed=2) * np.where(ints(3, 4, low=0, high=2, seed=3), 1, -1)
    check(name, [ints(2, 3, 4), whole])


DIVIDES = [("Div", {}, "div"), ("Mod", {}, "mod"), ("Mod", {"fmod": 1}, "fmod")]


@pytest.mark.parametrize("type", [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)])
@pytest.mark.parametrize(("onnx", "attrs", "name"), DIVIDES, ids=[d[-1] for d in DIVIDES])
def test_integer_division_never_traps(onnx: str, attrs: dict[str, int], name: str, type: str) -> None:
    """By zero: 0; the least integer by -1: itself, remainder 0. Scalars, vectors and literals, run natively."""
    least, most = np.iinfo(type).min, np.iinfo(type).max
    a = np.array([least, most, 0, 7, 100, least + 1, 3], type)
    b = np.array([0, most, 1, 2, least, *([-1, -3] if least else [])], type)
    grid, across = np.repeat(a, len(b)), np.tile(b, len(a))
    wanted, = check(name, [grid, across])
    assert not wanted[across == 0].any()
    if least and name == "div":
        assert wanted[(grid == least) & (across == -1)] == [least]
    calls = [([a[k:k + 1], b[j:j + 1]], ()) for k, j in ((0, 0), (0, len(b) - 2), (3, 0))]
    calls += [([grid, across], ()), ([a, b[:1]], (1,)), ([a, b[-2:-1]], (1,)), ([a, b[3:4]], (1,))]
    for arrays, fixed in calls:
        model, feeds = one(onnx, arrays, 17, fixed=fixed, **attrs)
        with tilewright.compile(model) as made:
            got, = made.run(feeds)
        np.testing.assert_array_equal(got, check(name, arrays)[0])


def test_division_by_a_literal_is_not_guarded() -> None:
    for name in ("div", "mod", "fmod"):
        x = Buffer("x", dtype("i32"), (Const(4, i64),))
        literal = const_table(np.array(3, np.int32))[()]
        assert str(simplify(recipes.BINARY[name](x[Const(0, i64)], literal))).count("select") == 0
        assert str(simplify(recipes.BINARY[name](x[Const(0, i64)], x[Const(1, i64)]))).count("select") > 0


def test_power() -> None:
    check("pow", [floats(4, 3, low=0.1), floats(3, low=-2, high=2)])
    check("pow", [ints(4, 3), ints(3, low=0, high=5)])


@pytest.mark.parametrize("name", [r.name for r in binary.RECORDS if r.name in binary._COMPARE])
def test_comparisons(name: str) -> None:
    check(name, [ints(4, 3, low=0, high=3), ints(3, low=0, high=3, seed=1)])
    check(name, [floats(4, 1), floats(2, 1, 3, seed=1)])


def test_bits_and_logic() -> None:
    for name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
        check(name, [ints(5, 2), ints(2, seed=1)])
    for name in ("shift_left", "shift_right"):
        check(name, [ints(6, low=0, high=99), ints(6, low=0, high=8)])
    for name in ("logical_and", "logical_or", "logical_xor"):
        check(name, [np.array([True, True, False, False]), np.array([True, False, True, False])])


def test_where() -> None:
    check("where", [np.array([[True], [False]]), floats(2, 3), floats(3, seed=1)])


def test_symbolic_broadcast() -> None:
    n = Var("n")
    graph = build("add", [floats(4, 3), floats(1, 3)], shapes={0: (n, 3)})
    assert graph.outputs[0].shape[0] is n
    check("add", [floats(4, 3), floats(3)], shapes={0: (n, 3)})
    check("exp", [floats(4, 3)], shapes={0: (n, 3)})


def test_errors_say_what_was_given() -> None:
    with pytest.raises(UserError, match=r"\[2, 3\] and \[4\] do not broadcast") as e:
        build("add", [floats(2, 3), floats(4)])
    assert e.value.code == "shape-mismatch"
    with pytest.raises(UserError, match="f32 and %x1 is i64"):
        build("add", [floats(2), ints(2)])
    with pytest.raises(UserError, match="floating-point"):
        build("exp", [ints(2)])
    with pytest.raises(UserError, match="takes 2 inputs, 1"):
        build("add", [floats(2)])


def test_elements_of_shape_arithmetic() -> None:
    b, n = GraphBuilder(), Var("n")
    x = b.input("x", tensor_type("f32", (n, 8, 4)))
    s = b.add("shape_of", [x])
    twice = b.add("mul", [s, b.constant([2, 2, 2])])
    back = b.add("div", [twice, b.constant([2])])
    assert back.elements == (n, Const(8, i64), Const(4, i64))
    narrow = b.add("cast", [s], {"to": "i32"})
    assert narrow.elements == s.elements and narrow.dtype is dtype("i32")
    known = b.add("equal", [s, b.constant([8, 8, 8])])
    assert known.elements is not None and known.elements[1].value is True and known.elements[2].value is False
    picked = b.add("where", [b.constant([True, False, True]), s, b.constant([7, 7, 7])])
    assert picked.elements is not None and [as_int(e) for e in picked.elements] == [None, 7, 4]
    folded = b.add("floor", [b.add("cast", [b.constant([3, 4])], {"to": "f32"})])
    assert folded.elements is not None and [e.value for e in folded.elements] == [3.0, 4.0]
