"""Long reductions are cut into chunks where the cache is too small for the first operand, and only there."""
from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest

import tilewright
from tests.small_models import inputs, model, weight
from tilewright.model import Model
from tilewright.target import get_target
from tilewright.tensor.rules.tiles import choose_tile, most_apart

SMALL = {name: 400 << 10 for name in ("product", "residual", "tanh, odd columns")} | {"convolutions": 1600 << 10}
"""Second-level caches that hold one half of the first operand, not all of it."""

MODELS = {
    "product": lambda: model("m (float[64,1024] x) => (float[64,96] y) { y = MatMul(x, w) }", w=weight(1024, 96)),
    "residual": lambda: model("m (float[64,1024] x, float[64,96] r) => (float[64,96] y) { a = MatMul(x, w) y = Add(a, r) }",
                              w=weight(1024, 96)),
    "tanh, odd columns": lambda: model("m (float[64,1024] x) => (float[64,75] y) { a = MatMul(x, w) y = Tanh(a) }",
                                       w=weight(1024, 75)),
    "convolutions": lambda: model(
        "m (float[1,1024,16,16] x) => (float[1,32,16,16] y) { a = Conv(x, w) b = Relu(a) "
        "y = Conv<pads = [1,1,1,1]>(b, v) }", w=weight(64, 1024, 1, 1), v=weight(32, 64, 3, 3, seed=1)),
}


def compiled(proto: onnx.ModelProto, l2: int, threads: int = 1) -> Model:
    target: Any = dataclasses.replace(get_target(), l2=l2, cores=threads)
    return tilewright.compile(proto, target=target, threads=threads)


def cut(made: Model) -> int:
    """Kernels whose reduction is in chunks."""
    return sum("rfactor(" in use.record["trace"] for use in made.kernels)


@pytest.mark.parametrize("name", MODELS)
def test_chunks_where_the_cache_is_small(name: str) -> None:
    proto = MODELS[name]()
    feeds = inputs(proto)
    near, far = compiled(proto, 64 << 20), compiled(proto, SMALL[name])
    assert cut(near) == 0 and cut(far) >= 1
    for a, b in zip(near(feeds), far(feeds), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_any_number_of_threads_gives_the_same(name: str) -> None:
    proto = MODELS[name]()
    feeds = inputs(proto)
    for a, b in zip(compiled(proto, SMALL[name], 1)(feeds), compiled(proto, SMALL[name], 2)(feeds), strict=True):
        np.testing.assert_array_equal(a, b)


def test_rows_in_the_same_sets_of_the_cache_are_few() -> None:
    target = dataclasses.replace(get_target("x86-64-v4"), l1d=32 << 10, cache_line=64)
    assert [most_apart(n, target) for n in (4096, 12288, 6144, 3072)] == [8, 8, 16, 32]
    assert most_apart(4100, target) == most_apart(64, target) == 512
    assert choose_tile(1, 128, 48, target, max_columns=8).columns <= 8
