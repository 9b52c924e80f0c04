"""Sizes that no vector or tile divides, and sizes of 0, are scheduled by their rule, not left as they are written."""
from __future__ import annotations

import math
import re

import numpy as np
import onnx
import pytest

import tilewright
from tests.small_models import inputs, model, weight
from tilewright.frontend.onnx.importer import import_onnx
from tilewright.graph import interpret


def half_a_block() -> onnx.ModelProto:
    """Eight channels in blocks of sixteen, read with a border that is wider than the convolution's own."""
    conv = "Conv<pads = [1,1]>"
    return model(f"""net (float[1,8,512] x) => (float[1,8,512] y) {{
        a = {conv}(x, u) b = {conv}(a, v) c = Conv<pads = [3,3], dilations = [3]>(b, w) d = {conv}(b, u) y = Add(c, d) }}""",
                 u=weight(8, 8, 3), v=weight(8, 8, 3, seed=1), w=weight(8, 8, 3, seed=2))


def one_column() -> onnx.ModelProto:
    return model("net (float[4096,256] x) => (float[4096,1] y) { a = Gemm<transB = 1>(x, w, b) y = Relu(a) }",
                 w=weight(1, 256), b=weight(1))


def odd_heads() -> onnx.ModelProto:
    """Attention with 77 keys and heads of 40."""
    return model("""net (float[2,50,40] q, float[2,40,77] k, float[2,77,40] v) => (float[2,50,40] y) {
        s = MatMul(q, k) p = Softmax(s) y = MatMul(p, v) }""")


@pytest.mark.parametrize("target", ("x86-64-v3", "x86-64-v4", "aarch64-neon"))
@pytest.mark.parametrize("make", (half_a_block, one_column, odd_heads))
def test_no_rule_gives_up(make, target) -> None:  # type: ignore[no-untyped-def]
    made = tilewright.compile(make(), target=target, threads=2)
    assert not [k.label for k in made.kernels if "schedule_fallback" in k.record]


@pytest.mark.parametrize("make", (half_a_block, one_column, odd_heads))
def test_results(make) -> None:  # type: ignore[no-untyped-def]
    proto = make()
    feeds = inputs(proto)
    (want,) = interpret.run(import_onnx(proto), list(feeds.values()))
    with tilewright.compile(proto, threads=2) as made:
        np.testing.assert_allclose(made(feeds), want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("m", "k", "n"), ((0, 64, 64), (16, 0, 64), (16, 64, 0), (0, 0, 0)))
def test_products_of_nothing(m: int, k: int, n: int) -> None:
    """Weights that are prefetched, packed and streamed, where there is nothing to read."""
    with tilewright.compile(model(f"net (float[{m},{k}] x) => (float[{m},{n}] y) {{ y = MatMul(x, w) }}",
                                  w=weight(k, n))) as made:
        y = made(made.random_inputs())
        assert y.shape == (m, n) and not y.any()
        assert not [u.label for u in made.kernels if "schedule_fallback" in u.record]


def test_a_convolution_of_no_images() -> None:
    with tilewright.compile(model("net (float[0,16,8,8] x) => (float[0,16,8,8] y) { y = Conv<pads = [1,1,1,1]>(x, w) }",
                                  w=weight(16, 16, 3, 3))) as made:
        assert made(made.random_inputs()).shape == (0, 16, 8, 8)


@pytest.mark.parametrize(("channels", "window"), [(24, 1), (18, 3), (40, 1)])
def test_channels_that_fill_a_block_are_not_summed(channels: int, window: int) -> None:
    """Blocks are filled with zeros to a whole vector; packed weights, which are what is multiplied, have none for them."""
    w = weight(32, channels, window, window)
    middle = f"Conv<strides = [2,2], pads = {[window // 2] * 4}>"
    proto = model(f"""net (float[1,{channels},9,10] x) => (float[1,32,5,5] y) {{ a = Conv<group = {channels}>(x, d)
        y = {middle}(a, w) }}""", d=weight(channels, 1, 1, 1), w=w)
    feeds = inputs(proto)
    (want,) = interpret.run(import_onnx(proto), list(feeds.values()))
    with tilewright.compile(proto, threads=2) as made:
        np.testing.assert_allclose(made(feeds), want, rtol=2e-5, atol=2e-5)
    *_, last = tilewright.compile(proto, target="x86-64-v4", threads=2).kernels
    (packed,) = re.findall(r"w0: f32\[([\d, ]+)\]", last.record["lowered"].splitlines()[0])
    assert math.prod(map(int, packed.split(", "))) == 32 * channels * window**2
