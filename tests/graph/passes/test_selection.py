"""topk of few among many: picked one after the other, or selected before they are ordered. Exactly as the interpreter."""
from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

import tilewright
from tests.frontend.onnx.onnx_check import model, value
from tilewright.graph import interpret
from tilewright.graph.ir import Graph
from tilewright.graph.ops.order import MOST_PICKS

RNG = np.random.default_rng(11)


def topk(shape: list[Any], k: int, kind: Any = np.float32, **attrs: int) -> onnx.ModelProto:
    node = helper.make_node("TopK", ["x", "k"], ["v", "i"], **attrs)
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    return model([node], [value("x", shape, element)], ["v", "i"], weights={"k": np.array([k])}, opset=24)


def numbers(kind: Any, *shape: int) -> Any:
    """Many equal ones, the ends of the type, and of floats zeros of both signs, infinities and NaN."""
    t = np.dtype(kind)
    if t.kind in "iu":
        some = RNG.integers(np.iinfo(t).min, np.iinfo(t).max, shape, t, endpoint=True)
        return np.where(RNG.random(shape) < 0.5, RNG.integers(0, 9, shape).astype(t), some)
    odd = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1.0, -1.0]).astype(t)
    return np.where(RNG.random(shape) < 0.6, RNG.standard_normal(shape).astype(t), odd[RNG.integers(0, len(odd), shape)])


def check(m: onnx.ModelProto, arrays: list[Any], **options: Any) -> list[str]:
    """The operators of the optimized graph."""
    with tilewright.compile(m, **options) as made:
        assert isinstance(made.graph, Graph)
        assert not any(k.record.get("schedule_fallback") for k in made.kernels)
        for x in arrays:
            for got, want in zip(made.run({"x": x}), interpret.run(made.graph, {"x": x}), strict=True):
                assert got.dtype == want.dtype
                wide = got.dtype if got.dtype.kind in "iu" else np.float64
                np.testing.assert_array_equal(got.astype(wide), want.astype(wide))
        return [op.op for op in made.stages.optimized.operations]


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.uint8, np.int32,
                                  np.uint32, np.int64, np.uint64])
@pytest.mark.parametrize("largest", (0, 1))
def test_of_every_type(kind: Any, largest: int) -> None:
    for k in (3, 20):
        found = check(topk([2, 70], k, kind, largest=largest), [numbers(kind, 2, 70) for _ in range(3)])
        assert ("kth_largest" in found) == (k > MOST_PICKS)


def test_along_other_axes_and_of_equal_numbers() -> None:
    for k in (2, 24):
        check(topk([2, 96, 3], k, axis=1), [numbers(np.float32, 2, 96, 3), np.ones((2, 96, 3), np.float32)])
        check(topk([96, 2], k, axis=0, largest=0), [numbers(np.float32, 96, 2), np.zeros((96, 2), np.float32)])
        check(topk([100], k), [numbers(np.float32, 100)])


def test_among_as_many_as_there_are() -> None:
    """A size that is known at run time only."""
    for k in (1, 10):
        check(topk(["r", "n"], k), [numbers(np.float32, *shape) for shape in ((1, 10), (3, 64), (2, 301))],
              shapes={"n": "10..~256"})


def test_all_of_few_are_ordered_at_once() -> None:
    assert check(topk([3, 40], 12), [numbers(np.float32, 3, 40)]).count("topk") == 1
