"""Winograd's convolution: the recipe, NumPy and the direct form agree, over images, in groups, and over volumes."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilewright
from tests.graph.opcheck import build, check
from tests.small_models import inputs, model, weight
from tilewright.core.errors import UserError
from tilewright.frontend.onnx.importer import import_onnx
from tilewright.graph import interpret
from tilewright.graph.ops.layout import from_blocked, to_blocked
from tilewright.graph.ops.winograd import transform_weights

RNG = np.random.default_rng(0)


def direct(x: Any, w: Any, stride: int = 1, apart: int = 1) -> Any:
    """[N, C, D, H, W] with [O, C, K, 3, 3], no borders, in f64."""
    depth = (x.shape[2] - (w.shape[2] - 1) * apart - 1) // stride + 1
    out = np.zeros((x.shape[0], w.shape[0], depth, x.shape[3] - 2, x.shape[4] - 2))
    for z, (k, i, j) in ((z, t) for z in range(depth) for t in np.ndindex(w.shape[2:])):
        part = x[:, :, z * stride + k * apart, i:x.shape[3] - 2 + i, j:x.shape[4] - 2 + j]
        out[:, :, z] += np.einsum("nchw,oc->nohw", part, w[:, :, k, i, j])
    return out


@pytest.mark.parametrize(("m", "planes"), [(4, None), (4, (2, 1, 1)), (2, None), (2, (2, 2, 1)), (2, (3, 1, 2))])
def test_recipe_and_numpy_are_the_direct_form(m: int, planes: tuple[int, int, int] | None) -> None:
    size, apart, stride = planes or (1, 1, 1)
    x = RNG.uniform(-1, 1, (2, 4, 5 if planes else 1, m + 2, 2 * m + 2)).astype(np.float32)
    w = RNG.uniform(-1, 1, (3, 4, size, 3, 3)).astype(np.float32)
    blocked = to_blocked(x if planes else x[:, :, 0], 2)
    attrs: dict[str, Any] = {"m": m, "height": m, "width": 2 * m - 1, "planes": planes}
    (got,) = check("winograd_conv", [blocked, transform_weights(w, m)], attrs, rtol=1e-4, atol=1e-4)
    want = direct(x, w, stride, apart)[..., :2 * m - 1]
    np.testing.assert_allclose(from_blocked(got, 3), want if planes else want[:, :, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("m", [2, 4])
def test_groups_are_convolutions_of_their_own(m: int) -> None:
    x, w = RNG.uniform(-1, 1, (2, 12, 1, 2 * m + 2, m + 2)), RNG.uniform(-1, 1, (6, 4, 1, 3, 3))
    attrs = {"m": m, "height": 2 * m, "width": m - 1}
    (got,) = check("winograd_conv", [to_blocked(x[:, :, 0].astype(np.float32), 2),
                                     transform_weights(w.astype(np.float32), m, group=3)], attrs, rtol=1e-4, atol=1e-4)
    want = [direct(x[:, 4 * g:4 * g + 4], w[2 * g:2 * g + 2])[:, :, 0, :, :m - 1] for g in range(3)]
    np.testing.assert_allclose(from_blocked(got, 6), np.concatenate(want, axis=1), rtol=1e-4, atol=1e-4)


def test_groups_that_are_no_whole_blocks_are_refused() -> None:
    x = RNG.uniform(-1, 1, (1, 4, 6, 6)).astype(np.float32)
    w = RNG.uniform(-1, 1, (4, 2, 3, 3)).astype(np.float32)
    with pytest.raises(UserError, match="no whole blocks"):
        build("winograd_conv", [to_blocked(x, 4), transform_weights(w, 4, group=2)], {"m": 4, "height": 4, "width": 4})


@pytest.mark.parametrize(("shape", "kernel", "attributes"), [
    ((2, 32, 4, 12, 12), (3, 3, 3), "pads = [1,1,1,1,1,1]"),
    ((1, 32, 5, 14, 13), (3, 3, 3), "pads = [1,1,1,1,1,1], strides = [2,1,1]"),
    ((1, 16, 6, 12, 12), (3, 3, 3), "pads = [2,1,1,2,1,1], dilations = [2,1,1]"),
    ((2, 64, 3, 14, 14), (1, 3, 3), "pads = [0,1,1,0,1,1]"),
    ((2, 32, 17, 20), (3, 3), "pads = [2,2,2,2], dilations = [2,2]"),
    ((1, 64, 25, 24), (3, 3), "pads = [3,0,2,1], dilations = [3,4]"),
    ((1, 18, 24, 32), (3, 3), "pads = [1,1,1,1]"),
    ((2, 64, 14, 13), (3, 3), "pads = [1,1,1,1], group = 2"),
])
def test_volumes_go_plane_by_plane_and_dilated_windows_image_by_image(shape: tuple[int, ...], kernel: tuple[int, ...],
                                                                      attributes: str) -> None:
    sizes = ",".join(map(str, shape))
    channels = shape[1] // 2 if "group" in attributes else shape[1]
    proto = model(f"net (float[{sizes}] x) => (float y) {{ y = Conv<{attributes}>(x, w) }}", w=weight(32, channels, *kernel))
    feeds = inputs(proto)
    (want,) = interpret.run(import_onnx(proto), list(feeds.values()))
    with tilewright.compile(proto, threads=2) as made:
        assert any(op.op == "winograd_conv" for use in made.kernels for op in use.group.operations)
        got = made(feeds)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=3e-5)
