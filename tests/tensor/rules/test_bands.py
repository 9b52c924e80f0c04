"""A contraction between spatial blocks runs in bands where caches allow it: one region, less memory, the same numbers."""
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


def winograd(size: int, channels: int = 32) -> onnx.ModelProto:
    shape = f"float[1,{channels},{size},{size}]"
    return model(f"conv ({shape} x) => ({shape} y) {{ a = Conv<pads = [1,1,1,1]>(x, w) b = Relu(a) "
                 "y = Conv<pads = [1,1,1,1]>(b, v) }",
                 w=weight(channels, channels, 3, 3), v=weight(channels, channels, 3, 3, seed=1))


def compiled(proto: onnx.ModelProto, threads: int = 1, **facts: Any) -> Model:
    return tilewright.compile(proto, target=dataclasses.replace(get_target(), **facts), threads=threads)


def regions(made: Model) -> list[int]:
    """Parallel regions of each convolution."""
    return [use.record["lowered"].count("launch ") for use in made.kernels if use.group.anchor.op == "winograd_conv"]


@pytest.mark.parametrize(("size", "channels", "kib"), [(24, 32, 320), (30, 32, 320), (24, 20, 160), (30, 18, 160)])
def test_phases_share_a_region_if_the_cache_holds_a_band(size: int, channels: int, kib: int) -> None:
    """Sizes that are whole tiles and one that is not, channels that are whole blocks and not; every element sums in the same
    order either way."""
    proto = winograd(size, channels)
    feeds = inputs(proto)
    near, far = compiled(proto, l2=kib << 10, cores=2), compiled(proto, l2=32 << 10, cores=2)
    assert regions(near) and all(n == 1 for n in regions(near)) and all(n > 1 for n in regions(far))
    assert near.memory.arena < far.memory.arena
    for a, b in zip(near(feeds), far(feeds), strict=True):
        np.testing.assert_array_equal(a, b)


def test_any_number_of_threads_gives_the_same() -> None:
    proto = winograd(24)
    feeds = inputs(proto)
    one, two = compiled(proto, threads=1), compiled(proto, threads=2)
    for a, b in zip(one(feeds), two(feeds), strict=True):
        np.testing.assert_array_equal(a, b)


def test_groups_run_one_after_another_on_a_core() -> None:
    """Weights of all groups are too large for the cache, those of one are not; as many threads as you like."""
    shape = "float[1,128,16,15]"
    proto = model(f"conv ({shape} x) => ({shape} y) {{ a = Conv<pads = [1,1,1,1], group = 4>(x, w) y = Relu(a) }}",
                  w=weight(128, 32, 3, 3))
    feeds = inputs(proto)
    near, far = compiled(proto, 2, l2=320 << 10, cores=2), compiled(proto, 1, l2=32 << 10, cores=2)
    assert regions(near) == [1] and regions(far) == [3]
    np.testing.assert_array_equal(near(feeds), far(feeds))
