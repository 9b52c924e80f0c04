"""Polynomial forms of exp, log, tanh, erf against NumPy in float64: accuracy, specials, guards, sharing."""
from __future__ import annotations

import math

import numpy as np
import pytest

from tilewright.core.dtype import DType, bf16, f16, f32, f64
from tilewright.core.node import walk
from tilewright.loop.interpret import run
from tilewright.loop.ir import ZERO, Buffer, Call, For, Guard, Let, Program, Ramp, Store, Var, const
from tilewright.loop.lower.legalize_math import legalize_math

_erf = np.vectorize(math.erf, otypes=[float])
REFERENCE = {"exp": np.exp, "log": np.log, "tanh": np.tanh, "erf": _erf}
SAMPLES = {
    "exp": [np.linspace(-106, 90, 3000), np.linspace(-1, 1, 500), np.linspace(-104, -86, 1500)],
    "log": [np.exp(np.linspace(-103, 88.7, 3000)), np.linspace(0.6, 1.5, 1500)],
    "tanh": [np.linspace(-10, 10, 3000), np.exp(np.linspace(-100, 0, 1500)), np.linspace(-1, 1, 500)],
    "erf": [np.linspace(-5, 5, 3000), np.exp(np.linspace(-80, 0, 1500)), np.linspace(0.9, 0.94, 300)],
}
SPECIALS = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1e-38, 3.4e38, -3.4e38, 88.7228, 88.73, -103.9,
                     -104.1, 1.0, -1.0, 0.92, 4.0])


def elementwise(name: str, n: int, dtype: DType = f32, lanes: int = 1) -> Program:
    x, y = Buffer("x", dtype, (const(n),)), Buffer("y", dtype, (const(n),))
    i = Var("i")
    at = i if lanes == 1 else Ramp(i * lanes, const(1), lanes)
    body = Store(y, (at,), Call(name, (x[at],), dtype.with_lanes(lanes)))
    return Program("f", (x, y), For(i, ZERO, const(n // lanes), body))


def legal(p: Program, name: str) -> Program:
    out = legalize_math(p)
    assert not any(isinstance(n, Call) and n.name == name for n in walk(out.body))
    return out


@pytest.mark.parametrize("name", REFERENCE)
def test_error_in_units_in_the_last_place(name: str) -> None:
    x = np.concatenate([*SAMPLES[name], SPECIALS]).astype(np.float32)
    y = np.zeros_like(x)
    run(legal(elementwise(name, len(x)), name), {"x": x, "y": y})
    with np.errstate(all="ignore"):
        expected = REFERENCE[name](x.astype(np.float64))
        rounded = expected.astype(np.float32)
    special = ~np.isfinite(rounded)
    np.testing.assert_array_equal(y[special], rounded[special])
    ok = ~special
    ulp = np.abs(y[ok].astype(np.float64) - expected[ok]) / np.spacing(np.abs(rounded[ok]))
    assert ulp.max() <= 1.5, (ulp.max(), x[ok][ulp.argmax()])
    zero = x == 0
    if name in ("tanh", "erf"):
        np.testing.assert_array_equal(np.signbit(y[zero]), np.signbit(x[zero]))


@pytest.mark.parametrize("name", REFERENCE)
def test_vectors_equal_scalars(name: str) -> None:
    x = np.concatenate([SAMPLES[name][0][::25], SPECIALS]).astype(np.float32)
    x = x[: len(x) // 8 * 8]
    a, b = np.zeros_like(x), np.zeros_like(x)
    run(legal(elementwise(name, len(x)), name), {"x": x, "y": a})
    run(legal(elementwise(name, len(x), lanes=8), name), {"x": x, "y": b})
    np.testing.assert_array_equal(a.view(np.int32), b.view(np.int32))


@pytest.mark.parametrize("dtype", [f16, bf16])
def test_small_floats_are_computed_in_f32(dtype: DType) -> None:
    x = np.linspace(-5, 5, 101).astype(dtype.numpy())
    y = np.zeros_like(x)
    run(legal(elementwise("exp", len(x), dtype), "exp"), {"x": x, "y": y})
    np.testing.assert_array_equal(y, np.exp(x.astype(np.float64)).astype(np.float32).astype(dtype.numpy()))


def test_f64_stays_a_call() -> None:
    p = elementwise("exp", 4, f64)
    assert legalize_math(p).body is p.body


def test_argument_under_a_guard_is_not_evaluated_where_the_guard_fails() -> None:
    x, y, i = Buffer("x", f32, (const(4),)), Buffer("y", f32, (const(6),)), Var("i")
    value = Guard(i < 4, Call("exp", (x[i],), f32), Call("tanh", (x[i - 4],), f32))
    p = Program("f", (x, y), For(i, ZERO, const(6), Store(y, (i,), value)))
    data, out = np.array([0.5, 1, 2, 3], np.float32), np.zeros(6, np.float32)
    run(legal(legal(p, "exp"), "tanh"), {"x": data, "y": out})
    np.testing.assert_allclose(out, [*np.exp(data), *np.tanh(data[:2])], rtol=3e-7)


def test_equal_calls_share_their_temporaries() -> None:
    x, y = Buffer("x", f32, (const(1),)), Buffer("y", f32, (const(1),))
    once = Call("exp", (x[0],), f32)
    again = Call("exp", (x[0],), f32)
    one = legalize_math(Program("f", (x, y), Store(y, (ZERO,), once)))
    two = legalize_math(Program("f", (x, y), Store(y, (ZERO,), once / (again + 1.0))))
    lets = [sum(isinstance(n, Let) for n in walk(p.body)) for p in (one, two)]
    assert lets[0] == lets[1]
