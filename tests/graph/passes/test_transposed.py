"""Transposed convolutions as convolutions over phases: the same results over strides, pads, kernels and axes."""
from __future__ import annotations

import numpy as np
import pytest

from tests.graph.opcheck import check, floats
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.interpret import run
from tilewright.graph.ir import tensor_type
from tilewright.graph.passes.layouts import blocked_layouts
from tilewright.graph.passes.transposed import transposed_to_phases
from tilewright.target.presets import get_target


@pytest.mark.parametrize("axes, kernel, stride, pads, extra", [
    (2, 4, 2, (1, 1, 1, 1), 0), (2, 3, 2, (1, 1, 1, 1), 1), (1, 5, 3, (2, 2), 1), (2, 4, 1, (0, 0, 0, 0), 0),
    (2, 3, 1, (1, 1, 1, 1), 0), (3, 2, 2, (0,) * 6, 0), (1, 8, 4, (3, 1), 2), (1, 2, 3, (0, 0), 0),
    (2, 3, 2, (0, 1, 2, 1), 0)])
@pytest.mark.parametrize("channels", [3, 16])
def test_phases(axes: int, kernel: int, stride: int, pads: tuple[int, ...], extra: int, channels: int) -> None:
    b = GraphBuilder()
    x = b.input("x", tensor_type("f32", (2, 16, *[5, 6, 4][:axes])))
    w = b.constant(floats(16, channels, *[kernel] * axes))
    y = b.add("conv_transpose", [x, w], {"strides": (stride,) * axes, "pads": pads, "output_padding": (extra,) * axes})
    graph = b.finish([b.add("relu", [y])])
    phases = transposed_to_phases(graph)
    assert "conv_transpose" not in [op.op for op in phases.operations]
    given = [floats(2, 16, *[5, 6, 4][:axes], seed=1)]
    (want,) = run(graph, given)
    for g in (phases, blocked_layouts(phases, get_target("x86-64-v4"))):
        (got,) = run(g, given)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_interleave() -> None:
    check("interleave", [floats(2, 12, 3, 4)], {"factors": (2, 3), "starts": (1, 0), "sizes": (4, 11)})
    check("interleave", [floats(2, 6, 3, 4)], {"factors": (2,), "starts": (1,), "sizes": (5,), "layout": "NCHWc"})


@pytest.mark.parametrize("kernel, phases", [(3, False), (4, True)])
def test_strict_fills_no_kernel_up(kernel: int, phases: bool) -> None:
    """Zeros that fill a kernel up to a multiple of the stride would turn an infinity into NaN where it does not reach."""
    b = GraphBuilder()
    x = b.input("x", tensor_type("f32", (1, 2, 3, 3)))
    w = b.constant(np.ones((2, 1, kernel, kernel), np.float32))
    graph = b.finish([b.add("conv_transpose", [x, w], {"strides": (2, 2)})])
    exact = transposed_to_phases(graph, exact=True)
    assert any(op.op == "interleave" for op in exact.operations) == phases
    given = [np.ones((1, 2, 3, 3), np.float32)]
    given[0][0, 0, 1, 1] = np.inf
    np.testing.assert_array_equal(run(exact, given)[0], run(graph, given)[0])
