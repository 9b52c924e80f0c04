"""How cores share rows of pixels: equal parts, outermost, the same in the kernels that follow one another."""
from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest

import tilewright
from tests.small_models import inputs, model, weight
from tilewright.loop.ir import Const
from tilewright.target import get_target
from tilewright.tensor.rules.threads import rows_per_part


@pytest.mark.parametrize(("rows", "cores", "share"), [
    (14, 1, 0), (14, 2, 7), (13, 2, 0), (56, 8, 7), (56, 6, 8), (56, 48, 1), (7, 8, 0), (112, 64, 1)])
def test_parts(rows: int, cores: int, share: int) -> None:
    """At least one part per core and at most two; rows that have no such parts are not shared."""
    target = dataclasses.replace(get_target("x86-64-v3"), cores=cores)
    assert rows_per_part(Const(rows, "i64"), target) == share


def separable(size: int) -> onnx.ModelProto:
    return model(f"m (float[1,16,{size},{size}] x) => (float[1,32,{size},{size}] y) {{ a = Conv(x, u) "
                 "b = Conv<group = 32, pads = [1,1,1,1]>(a, w) y = Conv(b, v) }",
                 u=weight(32, 16, 1, 1), w=weight(32, 1, 3, 3), v=weight(32, 32, 1, 1, seed=1))


@pytest.mark.parametrize("size", (12, 14, 15))
def test_kernels_share_the_same_rows(size: int) -> None:
    """A pointwise and a depthwise convolution begin with a split of their rows by the same factor, and compute what one
    core computes."""
    target = dataclasses.replace(get_target("native"), cores=2)
    proto = separable(size)
    made = tilewright.compile(proto, target=target, threads=2)
    traces = [k.record["trace"] for k in made.kernels if k.group.anchor.op == "conv"]
    assert len(traces) == 3
    for trace in traces:
        assert (f"[None, {size // 2}])" in trace) == (size % 2 == 0)
    x = inputs(proto)
    alone = tilewright.compile(proto, threads=1)
    np.testing.assert_allclose(made(**x), alone(**x), rtol=1e-5, atol=1e-5)
