"""What only WebGPU asks for: integers in 32 bits, few bindings, large weights in pieces, many blocks. Models are in
test_devices.py and test_networks.py."""
from __future__ import annotations

import numpy as np
import onnx
import pytest

import tilewright
from tests import small_models
from tests.devices import check, needs_webgpu
from tests.small_models import model, weight
from tests.test_opencl import linear_resize
from tilewright.core.dtype import i16, i64
from tilewright.core.errors import UserError
from tilewright.target.presets import get_target
from tilewright.tensor import compute as te
from tilewright.tensor.rules.dispatch import schedule_program


def test_a_constant_beyond_32_bits_is_refused() -> None:
    with pytest.raises(UserError, match=r"device-integers\].*1099511627776"):
        tilewright.compile(small_models.integers(), target="webgpu")
    m = model("f (int64[3] x) => (int64[3] y) { y = Add(x, w) }", w=np.array([1, 2, 3 << 31]))
    with pytest.raises(UserError, match=r"device-integers\].*constant w"):
        tilewright.compile(m, target="webgpu")


def test_an_element_type_that_it_has_not_is_refused() -> None:
    m = model("f (double[3] x) => (double[3] y) { y = Add(x, x) }")
    for made in (m, linear_resize()):
        with pytest.raises(UserError, match=r"device-dtype\].*f64"):
            tilewright.compile(made, target="webgpu")


@needs_webgpu
def test_an_input_beyond_32_bits_fails_the_run() -> None:
    m = model("f (int64[2,3] x) => (int64[2,3] y) { y = Add(x, x) }")
    with tilewright.compile(m, target="webgpu") as made:
        x = np.array([[0, -2**30, 5], [2**30 - 1, 7, -1]])
        np.testing.assert_array_equal(made(x), 2 * x)
        x[1, 2] = -2**31 - 1
        with pytest.raises(UserError, match=r"run-value\] x holds -2147483649"):
            made(x)


@needs_webgpu
def test_negative_constants() -> None:
    """Of signed types, in words that are unsigned beside them: the loop IR's wrap, WGSL's conversions would not."""
    a = te.placeholder((5,), "u8", "A")
    f = tilewright.build(te.create_program("f", [a], [
        te.compute((5,), lambda i: te.select(a[i] < 3, te.const(-2**31, i64), te.const(-5, i64)), name="B"),
        te.compute((5,), lambda i: te.const(-7, i64), name="C"),
        te.compute((5,), lambda i: te.const(-3, i16), name="D")]), "webgpu")
    b, c, d = f(np.arange(5, dtype=np.uint8))
    np.testing.assert_array_equal(b, [-2**31] * 3 + [-5] * 2)
    np.testing.assert_array_equal(c, [-7] * 5)
    np.testing.assert_array_equal(d, np.array([-3] * 5, np.int16))


def many_weights(n: int) -> onnx.ModelProto:
    """One elementwise kernel of `n` weights."""
    lines = [f"a{k} = Add(a{k - 1}, w{k})  b{k} = Tanh(a{k})" for k in range(1, n)]
    text = " ".join(lines).replace("a0", "x")
    for k in range(1, n):
        text = text.replace(f"Add(a{k},", f"Add(b{k},")
    return model(f"f (float[4,30] x) => (float[4,30] b{n - 1}) {{ {text} }}",
                 **{f"w{k}": weight(30, seed=k) for k in range(1, n)})


@needs_webgpu
def test_more_weights_than_bindings() -> None:
    compiled = check(many_weights(12), "webgpu")
    assert len(compiled.kernels) == 1
    assert compiled.descriptor.image.decode().splitlines()[1].endswith(" a111111sssssa")


@needs_webgpu
def test_more_blocks_than_an_axis_has() -> None:
    n = 65535 * 256 + 300
    a = te.placeholder((n,), "u8", "A")
    program = te.create_program("f", [a], [te.compute((n,), lambda i: a[i] + 3, name="B")])
    f = tilewright.build(schedule_program(program, get_target("webgpu"), "default"), "webgpu")
    assert "tw_block.y" in f.source
    x = np.random.default_rng(0).integers(0, 256, n).astype(np.uint8)
    np.testing.assert_array_equal(f(x), x + np.uint8(3))


@pytest.mark.long
@needs_webgpu
def test_a_weight_beyond_what_can_be_bound() -> None:
    """160 MiB in two pieces, read at both ends and across the border."""
    rows = 40 << 10
    w = np.arange(rows * 1024, dtype=np.float32).reshape(rows, 1024)
    m = model("f (int64[6] i) => (float[6,1024] y) { y = Gather(w, i) }", w=w)
    with tilewright.compile(m, target="webgpu") as made:
        i = np.array([0, rows - 1, (32 << 10) - 1, 32 << 10, 5, -1])
        np.testing.assert_array_equal(made(i), w[i])


def test_activations_beyond_what_can_be_bound_are_refused() -> None:
    m = model("f (float[1,33554432] x) => (float[1,33554432] y) { y = Relu(x) }")
    with pytest.raises(UserError, match=r"device-memory\].*256 MiB"):
        tilewright.compile(m, target="webgpu")
