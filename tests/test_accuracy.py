"""Functions of f32 as compiled, over a stride through all bit patterns and densely where models are, against float64."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import tilewright
from tilewright.target import get_target

_erf = np.vectorize(math.erf, otypes=[float])
_erfc = np.vectorize(math.erfc, otypes=[float])


def _sigmoid(x: Any) -> Any:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1.0 + e)


def _gelu(x: Any) -> Any:
    return 0.5 * x * _erfc(-x * math.sqrt(0.5))


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "Exp": np.exp, "Log": np.log, "Tanh": np.tanh, "Erf": _erf, "Sigmoid": _sigmoid,
    "Softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))}
EDGES = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 88.72283, 88.72284, -87.33655, -103.97,
                  -103.9721, -104.0, 3.4028235e38, -3.4028235e38], np.float32)


def samples() -> Any:
    """A million of all bit patterns, the ranges in which activations are, and edges."""
    count = 1 << 20
    k = np.arange(count, dtype=np.uint64)
    every = (k * ((1 << 32) // count) + k * 2654435761 % ((1 << 32) // count)).astype(np.uint32).view(np.float32)
    dense = [np.linspace(-r, r, (1 << 17) - 8).astype(np.float32) for r in (1, 20, 110)]
    found = np.concatenate([every, *dense, EDGES])
    return np.resize(found, (-(-len(found) // 1024), 1024))


def compiled(name: str, x: Any, target: str) -> Any:
    graph = helper.make_graph([helper.make_node(name, ["x"], ["y"])], "g",
                              [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape)])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    with tilewright.compile(proto, target=target) as model:
        return np.asarray(model.run({"x": x})[0])


def references(name: str, x: Any) -> tuple[Any, Any]:
    """In float64, and rounded."""
    with np.errstate(all="ignore"):
        exact = FUNCTIONS[name](x.astype(np.float64))
        return exact, exact.astype(np.float32)


@pytest.mark.parametrize("target", ["native", "x86-64-v3"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_two_units_in_the_last_place_over_the_whole_range(name: str, target: str) -> None:
    if not set(get_target(target).features) <= set(get_target("native").features):
        pytest.skip("not this machine's code")
    x = samples()
    got = compiled(name, x, target)
    exact, rounded = references(name, x)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(got[~finite], rounded[~finite])
    error = np.abs(got[finite].astype(np.float64) - exact[finite]) / np.spacing(np.abs(rounded[finite]))
    assert error.max() <= 2.0, (error.max(), x[finite][error.argmax()])
    if name in ("Tanh", "Erf"):
        np.testing.assert_array_equal(np.signbit(got[x == 0]), np.signbit(x[x == 0]))


def test_gelu_over_the_whole_range() -> None:
    """A few units in the last place above -1; below, an absolute error that the formula's own sum in f32 has as well."""
    x = samples()
    x = x[np.isfinite(x).all(axis=1)]
    got, exact = compiled("Gelu", x, "native").astype(np.float64), _gelu(x.astype(np.float64))
    error = np.abs(got - exact)
    above = x > -1
    assert (error[above] / np.spacing(np.abs(exact[above]).astype(np.float32))).max() <= 4.0
    assert error[~above].max() <= 6e-8
    with np.errstate(invalid="ignore"):
        ends = compiled("Gelu", np.resize(np.array([np.nan, np.inf], np.float32), (1, 1024)), "native")
    assert np.isnan(ends[0, 0]) and ends[0, 1] == np.inf


@pytest.mark.parametrize("target", ["native", "x86-64-v3"])
def test_softmax_has_no_denormal_numbers_and_keeps_what_counts(target: str) -> None:
    if not set(get_target(target).features) <= set(get_target("native").features):
        pytest.skip("not this machine's code")
    edges = [0.0, -20.0, -60.0, -79.0, -81.0, -90.0, -103.0, -105.0, -3.4e38, -np.inf]
    x = np.concatenate([edges, np.linspace(-120, 0, 1014)])
    got = compiled("Softmax", x.astype(np.float32)[None], target)[0]
    exact = np.exp(x) / np.exp(x).sum()
    np.testing.assert_allclose(got, exact, rtol=2e-6, atol=1e-34)
    assert got[got != 0].min() > np.finfo(np.float32).tiny
