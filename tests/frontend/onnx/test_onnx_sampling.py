"""Sampling, transforms, windows and training, compiled, beside other implementations: what ONNX's own cases leave out."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.frontend.onnx.onnx_check import by_onnxruntime, by_reference, one, run
from tilewright.frontend.onnx import backend

R = np.random.default_rng(7)


def f(*shape: int) -> Any:
    return R.standard_normal(shape).astype(np.float32)


def both(m: Any, feeds: dict[str, Any], wanted: list[Any], atol: float = 1e-4) -> None:
    """Compiled code and the interpreter against what is wanted."""
    for got in (backend.run_native(m, list(feeds.values())), run(m, feeds)):
        assert len(got) == len(wanted)
        for a, b in zip(got, wanted, strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=atol)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("corners", [0, 1])
def test_grids_that_leave_the_image(mode: str, padding: str, corners: int) -> None:
    m, feeds = one("GridSample", [f(2, 3, 5, 4), f(2, 4, 6, 2) * 1.7], 20, mode=mode, padding_mode=padding,
                   align_corners=corners)
    both(m, feeds, by_onnxruntime(m, feeds))


def test_coordinates_that_are_no_numbers_read_nothing_outside() -> None:
    grid = f(1, 2, 3, 2)
    grid[0, 0, 0], grid[0, 0, 1], grid[0, 1, 2] = np.nan, np.inf, -1e30
    for padding in ("zeros", "border", "reflection"):
        m, feeds = one("GridSample", [f(1, 1, 4, 4), grid], 20, padding_mode=padding)
        (y,) = backend.run_native(m, list(feeds.values()))
        small = np.nan_to_num(grid, nan=0, posinf=0).clip(-9, 9)
        (finite,) = by_onnxruntime(*one("GridSample", [feeds["x0"], small], 20, padding_mode=padding))
        np.testing.assert_allclose(y[0, 0, 0, 2], finite[0, 0, 0, 2], rtol=1e-4, atol=1e-5)


def test_regions_sampled_as_often_as_they_are_large() -> None:
    """sampling_ratio 0 counts by the region, which must be known."""
    rois = np.array([[0, 0, 9, 7], [2.5, 1, 4, 6.25]], np.float32)
    for mode in ("avg", "max"):
        m, feeds = one("RoiAlign", [f(2, 3, 9, 8), rois, np.array([1, 0])], 16, fixed=[1], output_height=3, output_width=2,
                       spatial_scale=0.9, mode=mode)
        both(m, feeds, by_reference(m, feeds))


def test_max_roi_pool() -> None:
    rois = np.array([[0, 0, 0, 7, 6], [1, 2, 3, 2, 3], [0, 6, 1, 9, 12]], np.float32)
    m, feeds = one("MaxRoiPool", [f(2, 3, 8, 9), rois], 16, pooled_shape=[3, 2], spatial_scale=0.9)
    both(m, feeds, by_onnxruntime(m, feeds))


@pytest.mark.parametrize("n", [1, 7, 12, 97, 128, 360])
def test_transforms_of_any_length(n: int) -> None:
    """97 is prime, 128 and 360 are taken in steps."""
    x = f(2, n, 2)
    m, feeds = one("DFT", [x, np.array(n), np.array(1)], 20, fixed=[1, 2])
    wanted = np.fft.fft(x[..., 0] + 1j * x[..., 1])
    both(m, feeds, [np.stack([wanted.real, wanted.imag], -1).astype(np.float32)], 1e-3)
    m, feeds = one("DFT", [x[..., :1].copy(), np.array(n), np.array(1)], 20, fixed=[1, 2], onesided=1)
    half = np.fft.rfft(x[..., 0])
    both(m, feeds, [np.stack([half.real, half.imag], -1).astype(np.float32)], 1e-3)
    if n > 1:
        spectrum = np.stack([half.real, half.imag], -1).astype(np.float32)
        m, feeds = one("DFT", [spectrum, np.array(n), np.array(1)], 20, fixed=[1, 2], onesided=1, inverse=1)
        both(m, feeds, [x[..., :1]], 1e-3)


@pytest.mark.parametrize("columns", [0, 1])
def test_places_of_the_largest(columns: int) -> None:
    x = R.integers(-4, 4, (2, 3, 7, 6)).astype(np.float32)  # with equals
    m, feeds = one("MaxPool", [x], 12, outputs=2, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1], ceil_mode=1,
                   storage_order=columns)
    both(m, feeds, by_onnxruntime(m, feeds))


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_antialiased_shrinking_keeps_a_constant(mode: str) -> None:
    x = np.full((1, 2, 11, 9), 1.5, np.float32)
    m, feeds = one("Resize", [x, None, None, np.array([1, 2, 4, 7])], 18, fixed=[3], mode=mode, antialias=1)
    both(m, feeds, [np.full((1, 2, 4, 7), 1.5, np.float32)])


def test_determinants_with_exchanges() -> None:
    x = f(5, 6, 6)
    x[1, 0, 0] = 0
    x[2, :, 3] = 0
    m, feeds = one("Det", [x], 11)
    both(m, feeds, [np.linalg.det(x)])


def test_random_numbers_are_even_and_repeat() -> None:
    for shape in ([1000], [1100, 1000]):  # a table, and a counter
        m, feeds = one("RandomUniform", [], 17, shape=shape, low=-1.0, high=3.0, seed=5.0)
        (y,), (again,) = backend.run_native(m, []), backend.run_native(m, [])
        np.testing.assert_array_equal(y, again)
        assert y.min() >= -1 and y.max() < 3 and abs(y.mean() - 1) < 0.1 and abs(y.std() - 4 / 12**0.5) < 0.1
    m, feeds = one("RandomNormalLike", [f(1100, 1000)], 17, mean=2.0, scale=0.5)
    (y,) = backend.run_native(m, list(feeds.values()))
    assert abs(y.mean() - 2) < 0.01 and abs(y.std() - 0.5) < 0.01
    m, feeds = one("Bernoulli", [np.full(4000, 0.3, np.float32)], 17)
    assert abs(backend.run_native(m, list(feeds.values()))[0].mean() - 0.3) < 0.05


def test_multinomial_follows_the_weights() -> None:
    m, feeds = one("Multinomial", [np.log(np.array([[0.1, 0.6, 0.3]], np.float32))], 17, sample_size=4000, dtype=7)
    (y,) = backend.run_native(m, list(feeds.values()))
    assert y.dtype == np.int64 and y.shape == (1, 4000)
    np.testing.assert_allclose(np.bincount(y[0], minlength=3) / 4000, [0.1, 0.6, 0.3], atol=0.05)
