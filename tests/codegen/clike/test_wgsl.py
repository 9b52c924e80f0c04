"""WGSL: the functions that it lacks or knows otherwise, on a device; names that are its own words."""
from __future__ import annotations

import numpy as np
import pytest

import tilewright
from tests.devices import needs_webgpu
from tilewright.core.dtype import boolean
from tilewright.loop.intrinsics import intrinsic
from tilewright.loop.ir import Call, maximum, minimum
from tilewright.tensor import compute as te

X = np.concatenate([np.linspace(-9, 9, 301), [-0.0, 0.0, 1e-6, -1e-6, 30, -30]]).astype(np.float32)
POSITIVE = np.abs(X) + np.float32(1e-3)
UNIT = np.clip(X / 10, -0.99, 0.99)


@needs_webgpu
@pytest.mark.parametrize("name, x", [
    *[(n, X) for n in ("exp", "erf", "gelu", "tanh", "sin", "cos", "atan", "asinh", "floor", "ceil", "round", "trunc", "abs",
                       "sign", "neg")],
    *[(n, POSITIVE) for n in ("log", "sqrt", "rsqrt")],
    *[(n, UNIT) for n in ("tan", "asin", "acos", "sinh", "cosh", "atanh")],
    ("acosh", POSITIVE + 1)], ids=lambda v: v if isinstance(v, str) else "")
def test_functions(name: str, x: np.ndarray) -> None:  # type: ignore[type-arg]
    a = te.placeholder(x.shape, name="A")
    y = te.compute(x.shape, lambda i: Call(name, (a[i],), a[i].dtype))
    f = tilewright.build(te.create_program("f", [a], [y]), "webgpu")
    want = intrinsic(name).meaning(a.dtype, a.dtype, x.astype(np.float64))
    np.testing.assert_allclose(f(x), want, rtol=2e-5, atol=2e-6)


@needs_webgpu
def test_powers_of_negative_numbers() -> None:
    x = np.array([2, -2, -2, -2, 0, 0, -3, 5, -0.5], np.float32)
    y = np.array([0.5, 3, 2, 0.5, 0, 2, -1, -2, 0], np.float32)
    a, b = te.placeholder((9,), name="A"), te.placeholder((9,), name="B")
    power = te.compute((9,), lambda i: Call("pow", (a[i], b[i]), a[i].dtype))
    f = tilewright.build(te.create_program("f", [a, b], [power]), "webgpu")
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(f(x, y), np.power(x, y), rtol=1e-5)


@needs_webgpu
def test_what_is_no_number() -> None:
    nan, inf = np.nan, np.inf
    x = np.array([1, nan, 2, -inf, 0, nan, inf], np.float32)
    y = np.array([nan, 1, 3, inf, -1, nan, 2], np.float32)
    a, b = te.placeholder((7,), name="A"), te.placeholder((7,), name="B")
    f = tilewright.build(te.create_program("f", [a, b], [
        te.compute((7,), lambda i: maximum(a[i], b[i]), name="most"),
        te.compute((7,), lambda i: minimum(a[i], float("inf")), name="least"),
        te.compute((7,), lambda i: Call("isnan", (a[i],), boolean), name="none"),
        te.compute((7,), lambda i: Call("isinf", (a[i],), boolean), name="infinite"),
        te.compute((7,), lambda i: te.select(a[i] < b[i], -inf, nan), name="chosen"),
        te.compute((7,), lambda i: a[i].ne(b[i]), name="other")]), "webgpu")
    most, least, none, infinite, chosen, other = f(x, y)
    np.testing.assert_array_equal(most, np.maximum(x, y))
    np.testing.assert_array_equal(least, np.minimum(x, inf))
    np.testing.assert_array_equal(none, np.isnan(x))
    np.testing.assert_array_equal(infinite, np.isinf(x))
    np.testing.assert_array_equal(other, x != y)
    np.testing.assert_array_equal(chosen, np.where(x < y, -inf, nan))


@needs_webgpu
def test_integers_divide_as_the_loop_ir_says() -> None:
    a, b = te.placeholder((64,), "i32", "A"), te.placeholder((64,), "i32", "B")
    f = tilewright.build(te.create_program("f", [a, b], [
        te.compute((64,), lambda i: a[i] // b[i] * 1000 + a[i] % b[i], name="C"),
        te.compute((64,), lambda i: Call("abs", (a[i],), a[i].dtype) + Call("sign", (a[i],), a[i].dtype), name="D")]),
        "webgpu")
    rng = np.random.default_rng(0)
    x = rng.integers(-50, 50, 64).astype(np.int32)
    y = (rng.integers(1, 9, 64) * rng.choice([-1, 1], 64)).astype(np.int32)
    c, d = f(x, y)
    np.testing.assert_array_equal(c, x // y * 1000 + x % y)
    np.testing.assert_array_equal(d, np.abs(x) + np.sign(x))


@needs_webgpu
def test_names_that_are_words_of_the_language() -> None:
    """Loops and buffers may be called what they like."""
    a = te.placeholder((4, 5), name="array")
    f = tilewright.build(te.create_program("f", [a], [te.compute((4, 5), lambda fn, loop: a[fn, loop] + 1.0, name="var")]),
                         "webgpu")
    np.testing.assert_array_equal(f(np.zeros((4, 5), np.float32)), np.ones((4, 5)))
