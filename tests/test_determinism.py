"""The same bits from every run and on any number of threads: of Winograd's algorithm, of attention, and of long sums."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import pytest

import tilewright
from tests.small_models import attention, inputs, model, weight
from tilewright.core.config import config


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with config.override(cache_dir=tmp_path_factory.mktemp("cache")):
        yield


def winograd() -> onnx.ModelProto:
    return model("""winograd (float[1,32,28,28] x) => (float[1,32,28,28] y) {
        a = Conv<pads = [1,1,1,1]>(x, w1)
        b = Relu(a)
        c = Conv<pads = [1,1,1,1]>(b, w2)
        y = Add(c, x)
    }""", w1=weight(32, 32, 3, 3), w2=weight(32, 32, 3, 3, seed=1))


def long_sums() -> onnx.ModelProto:
    return model("""long_sums (float[2,131072] x) => (float[2] y, float[2,131072] z) {
        y = ReduceSum<keepdims = 0>(x, axes)
        z = Softmax<axis = 1>(x)
    }""", axes=[1])


@pytest.mark.parametrize("make", [winograd, attention, long_sums], ids=lambda make: make.__name__)
def test_same_bits(make: Callable[[], onnx.ModelProto]) -> None:
    proto = make()
    feeds = inputs(proto)
    with tilewright.compile(proto, threads=2) as made:
        want = [a.tobytes() for a in made.run(feeds)]
        for turn in range(20):
            made.threads = 1 + turn % 2
            assert [a.tobytes() for a in made.run(feeds)] == want, f"run {turn}, {made.threads} threads"
