"""One scheduled program as a function: called, timed and read on every kind of target."""
from __future__ import annotations

import numpy as np
import pytest

import tilewright
from tests.loop.lower.test_device import product
from tests.test_opencl import needs_opencl
from tilewright.core.errors import UserError
from tilewright.tensor import compute as te
from tilewright.tensor.schedule.schedule import Schedule


def two_results() -> Schedule:
    """A sum kept in memory between two kernels, and an integer beside it."""
    a, k = te.placeholder((6, 9), name="A"), te.placeholder((9,), "i64", name="K")
    r = te.reduce_axis(9)
    total = te.compute((6,), lambda i: te.sum(a[i, r], axis=[r]), name="total")
    share = te.compute((6, 9), lambda i, j: a[i, j] / total[i], name="share")
    return Schedule(te.create_program("shares", [a, k], [share, te.compute((9,), lambda j: k[j] + 1, name="next")]))


@pytest.mark.parametrize("target", ["native", pytest.param("opencl", marks=needs_opencl)])
def test_a_program_as_it_is(target: str) -> None:
    f = tilewright.build(two_results().program, target)
    assert repr(f) == f"<Function 'shares' for {target}: (f32[6, 9], i64[9]) → f32[6, 9], i64[9]>"
    a, k = f.random_inputs(3)
    share, after = f(a, k)
    np.testing.assert_allclose(share, a / a.sum(1, keepdims=True), rtol=1e-4)
    np.testing.assert_array_equal(after, k + 1)
    timing = f.benchmark(a, k, runs=3)
    assert timing.runs == 3 and 0 < timing.minimum <= timing.median
    f.close()
    np.testing.assert_array_equal(f(a, k)[1], k + 1)  # opened again
    with pytest.raises(UserError, match="input-shape"):
        f(a[:3], k)


@needs_opencl
def test_a_tiled_product() -> None:
    f = tilewright.build(product(), "opencl")
    a, b = np.arange(256, dtype=np.float32).reshape(16, 16) % 7, np.arange(256, dtype=np.float32).reshape(16, 16) % 5
    np.testing.assert_array_equal(f(a, b), a @ b)


def test_code_for_another_machine_can_be_read() -> None:
    f = tilewright.build(product(), "gfx90a")
    assert "__shared__" in f.source and "launch product_0" in f.loops
    with pytest.raises(UserError, match="target-not-here"):
        f(*f.random_inputs())
    assert "define" in tilewright.build(two_results()).source


def test_what_needs_a_model_is_refused() -> None:
    n = te.Var("n")
    a = te.placeholder((n,), name="A")
    with pytest.raises(UserError, match=r"build-program\].*symbolic size"):
        tilewright.build(te.create_program("f", [a], [te.compute((n,), lambda i: a[i] + 1.0, name="B")]))
    with pytest.raises(UserError, match=r"build-program\].*blockIdx"):
        tilewright.build(product(), "native")
    w = te.placeholder((8, 4), name="W")
    sch = Schedule(te.create_program("f", [w], [te.compute((8, 4), lambda i, j: w[i, j] + 1.0, name="B")], weights=["W"]))
    sch.transform_layout(sch.block("B"), "W", lambda i, j: (j, i))
    with pytest.raises(UserError, match=r"build-program\].*W in a layout"):
        tilewright.build(sch)
