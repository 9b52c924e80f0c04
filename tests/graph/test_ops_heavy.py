"""Reductions, norms, matmul, convolution, pooling, resize, layouts: recipes against NumPy, some against torch too."""
from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tests.graph.opcheck import build, check, floats, ints
from tilewright.core.errors import UserError
from tilewright.graph.ops.layout import from_blocked, to_blocked
from tilewright.loop.ir import Var

N = Var("n")


# ---- reductions and norms --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod"])
def test_reductions(name: str) -> None:
    x = floats(2, 3, 4, low=0.5, high=1.5)
    for axes, keep in (((1,), True), ((-1, 0), False), (None, False), ((), True)):
        check(name, [x], {"axes": axes, "keepdims": keep})
    check(name, [ints(3, 5, low=-4, high=5)], {"axes": (1,)})
    check(name, [x], {"axes": (1,)}, shapes={0: (N, 3, 4)})
    check(name, [floats(2, 9, type=np.float16)], {"axes": (1,)}, rtol=1e-2)


def test_mean_over_a_symbol() -> None:
    check("reduce_mean", [floats(5, 3)], {"axes": (0,)}, shapes={0: (N, 3)})


def test_any_all_arg() -> None:
    x = ints(4, 5, low=0, high=2) > 0
    check("reduce_any", [x], {"axes": (1,)})
    check("reduce_all", [x], {"axes": (0,), "keepdims": False})
    same = ints(3, 6, low=0, high=3).astype(np.float32)
    for name in ("argmax", "argmin"):
        for last in (False, True):
            for keep in (False, True):
                check(name, [same], {"axis": 1, "select_last": last, "keepdims": keep})
        check(name, [same], {"axis": 0})


def test_softmax() -> None:
    for axis in (-1, 0, 1):
        check("softmax", [floats(3, 4, 5)], {"axis": axis})
        check("log_softmax", [floats(3, 4, 5)], {"axis": axis})
    big, = check("softmax", [np.array([[1000.0, 1001], [-1000, -1000]], np.float32)])
    assert np.isfinite(big).all()
    check("softmax", [floats(3, 5, type=ml_dtypes.bfloat16)], rtol=1e-2)
    check("softmax", [floats(3, 5)], shapes={0: (N, 5)})
    check("softmax", [floats(5, 3)], shapes={0: (5, N)})


def test_row_norms() -> None:
    x, s, b = floats(2, 3, 8), floats(8, seed=1), floats(8, seed=2)
    check("layer_norm", [x, s, b], {"eps": 1e-5})
    check("layer_norm", [x, s, None])
    check("layer_norm", [x, floats(3, 8), b], {"axis": 1})
    check("rms_norm", [x, s], {"eps": 1e-6})
    check("layer_norm", [x, s, b], shapes={0: (N, 3, 8)})
    with pytest.raises(UserError, match=r"%x1 \[7\]"):
        build("layer_norm", [x, floats(7), None])


def test_channel_norms() -> None:
    x = floats(2, 6, 3, 4)
    p = [floats(6, low=0.5, high=1.5, seed=k) for k in range(4)]
    check("batch_norm", [x, *p], {"eps": 1e-3})
    check("instance_norm", [x, *p[:2]])
    check("group_norm", [x, *p[:2]], {"groups": 3})
    check("lrn", [x], {"size": 3})
    check("lrn", [x], {"size": 4, "alpha": 0.1, "beta": 0.5, "bias": 2.0})
    with pytest.raises(UserError, match="groups"):
        build("group_norm", [x, *p[:2]], {"groups": 4})


# ---- matmul ------------------------------------------------------------------------------------------------------------
def test_matmul() -> None:
    check("matmul", [floats(3, 4), floats(4, 5)])
    check("matmul", [floats(2, 1, 3, 4), floats(3, 4, 5)])
    check("matmul", [floats(2, 3, 4), floats(4, 5)])
    check("matmul", [floats(2, 3, 4), floats(5, 4)], {"transpose_b": True})
    check("matmul", [floats(3, 4), floats(4, 5)], shapes={0: (N, 4)})
    check("matmul", [ints(3, 4, type=np.int8), ints(4, 5, type=np.int8)], {"out": "i32"})
    check("matmul", [floats(3, 4, type=np.float16), floats(4, 5, type=np.float16)], rtol=1e-2, atol=1e-2)
    with pytest.raises(UserError, match="summed axis"):
        build("matmul", [floats(3, 4), floats(5, 4)])


# ---- convolution -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("x", "w", "attrs"), [
    ((2, 3, 7, 6), (4, 3, 3, 3), {}),
    ((1, 3, 7, 7), (2, 3, 3, 3), {"pads": (1, 1, 1, 1), "strides": (2, 2)}),
    ((1, 2, 9, 8), (3, 2, 3, 2), {"pads": (0, 1, 2, 0), "dilations": (2, 3)}),
    ((1, 4, 5, 5), (6, 2, 3, 3), {"group": 2}),
    ((1, 4, 5, 5), (4, 1, 3, 3), {"group": 4, "pads": (1, 1, 1, 1)}),
    ((1, 2, 5, 5), (4, 1, 3, 3), {"group": 2}),
    ((2, 3, 9), (4, 3, 3), {"strides": (2,)}),
    ((1, 2, 4, 4, 4), (3, 2, 2, 2, 2), {"pads": (1,) * 6}),
])
def test_conv_plain(x: tuple[int, ...], w: tuple[int, ...], attrs: dict[str, object]) -> None:
    check("conv", [floats(*x), floats(*w, seed=1)], attrs, atol=1e-5)


def test_conv_by_hand() -> None:
    got, = check("conv", [np.ones((1, 1, 3, 3), np.float32), np.ones((1, 1, 3, 3), np.float32)], {"pads": (1, 1, 1, 1)})
    assert got[0, 0].tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]


@pytest.mark.parametrize(("c", "o", "group", "attrs"), [
    (8, 8, 1, {}), (8, 12, 1, {"strides": (2, 2)}), (6, 10, 1, {}), (8, 8, 8, {}), (6, 6, 6, {"dilations": (2, 2)}),
    (16, 8, 2, {}), (8, 8, 1, {"pads": (1, 1, 1, 1)})])
def test_conv_blocked(c: int, o: int, group: int, attrs: dict[str, object]) -> None:
    """The blocked form against the plain one, which test_conv_plain holds to NumPy."""
    x, w = floats(2, c, 6, 5), floats(o, c // group, 3, 3, seed=1)
    plain, = check("conv", [x, w], {**attrs, "group": group}, recipe=False)
    blocked, = check("conv", [to_blocked(x, 4), w], {**attrs, "group": group, "layout": "NCHWc"}, atol=1e-5)
    np.testing.assert_allclose(from_blocked(blocked, o), plain, rtol=1e-5, atol=1e-5)
    tail = np.moveaxis(blocked, -1, 2).reshape(2, -1, *blocked.shape[2:-1])[:, o:]
    assert not tail.any()


def test_conv_first_layer() -> None:
    x, w = floats(1, 3, 8, 7), floats(6, 3, 3, 3, seed=1)
    attrs = {"strides": (2, 2), "pads": (1, 1, 1, 1)}
    plain, = check("conv", [x, w], attrs, recipe=False)
    got, = check("conv", [x, w], {**attrs, "layout": "NCHWc", "in_layout": "NCHW", "block": 4}, atol=1e-5)
    np.testing.assert_allclose(from_blocked(got, 6), plain, rtol=1e-5, atol=1e-5)


def test_conv_types_and_symbols() -> None:
    check("conv", [floats(2, 3, 5, 5), floats(4, 3, 3, 3)], shapes={0: (N, 3, 5, 5)}, atol=1e-5)
    check("conv", [floats(1, 3, 5, 6), floats(4, 3, 3, 3)], {"pads": (1, 1, 1, 1)}, shapes={0: (1, 3, N, 6)}, atol=1e-5)
    check("conv", [ints(1, 2, 4, 4, type=np.uint8, low=0), ints(2, 2, 3, 3, type=np.int8)], {"out": "i32"})
    check("conv", [floats(1, 2, 4, 4, type=np.float16), floats(2, 2, 3, 3, type=np.float16)], rtol=1e-2, atol=2e-2)


def test_conv_errors() -> None:
    for x, w, attrs, text in (((1, 3, 5, 5), (4, 2, 3, 3), {}, "channels of"), ((1, 3, 2, 2), (4, 3, 3, 3), {}, "larger"),
                              ((1, 3, 5), (4, 3, 3, 3), {}, "rank 4"), ((1, 3, 5, 5), (4, 3, 3, 3), {"strides": (1,)}, "2")):
        with pytest.raises(UserError, match=text):
            build("conv", [floats(*x), floats(*w)], attrs)


@pytest.mark.parametrize(("x", "w", "attrs"), [
    ((1, 2, 3, 3), (2, 3, 3, 3), {}),
    ((1, 2, 4, 3), (2, 3, 3, 3), {"strides": (2, 2), "pads": (1, 1, 1, 1), "output_padding": (1, 1)}),
    ((1, 4, 3, 3), (4, 2, 2, 2), {"group": 2, "strides": (3, 2)}),
    ((1, 2, 4), (2, 1, 3), {"dilations": (2,), "pads": (0, 2)}),
])
def test_conv_transpose(x: tuple[int, ...], w: tuple[int, ...], attrs: dict[str, object]) -> None:
    check("conv_transpose", [floats(*x), floats(*w, seed=1)], attrs, atol=1e-5)


# ---- pooling, resize, layouts ------------------------------------------------------------------------------------------
POOLS = [{"kernel": (2, 2), "strides": (2, 2)}, {"kernel": (3, 2), "pads": (1, 0, 1, 1)},
         {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}, {"kernel": (2, 2), "dilations": (2, 2)},
         {"kernel": (3, 3), "strides": (2, 2), "ceil_mode": True},
         {"kernel": (3, 3), "strides": (3, 3), "pads": (1, 1, 1, 1), "ceil_mode": True}]


@pytest.mark.parametrize("attrs", POOLS)
def test_pools(attrs: dict[str, object]) -> None:
    x = floats(1, 4, 6, 7)
    plain, = check("max_pool", [x], attrs)
    blocked, = check("max_pool", [to_blocked(x, 4)], {**attrs, "layout": "NCHWc"})
    np.testing.assert_array_equal(from_blocked(blocked, 4), plain)
    for include in (False, True):
        plain, = check("avg_pool", [x], {**attrs, "count_include_pad": include})
        blocked, = check("avg_pool", [to_blocked(x, 4)], {**attrs, "count_include_pad": include, "layout": "NCHWc"})
        np.testing.assert_allclose(from_blocked(blocked, 4), plain, rtol=1e-6)


def test_pools_agree_with_torch() -> None:
    torch = pytest.importorskip("torch")
    x = floats(1, 2, 7, 8)
    for ceil in (False, True):
        attrs = {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "ceil_mode": ceil}
        got, = check("max_pool", [x], attrs)
        want = torch.nn.functional.max_pool2d(torch.from_numpy(x), 3, 2, 1, ceil_mode=ceil)
        np.testing.assert_array_equal(got, want.numpy())
        for include in (False, True):
            got, = check("avg_pool", [x], {**attrs, "count_include_pad": include})
            want = torch.nn.functional.avg_pool2d(torch.from_numpy(x), 3, 2, 1, ceil_mode=ceil, count_include_pad=include)
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=1e-6)


def test_conv_transpose_agrees_with_torch() -> None:
    torch = pytest.importorskip("torch")
    x, w = floats(1, 4, 5, 4), floats(4, 3, 3, 3, seed=1)
    got, = check("conv_transpose", [x, w], {"strides": (2, 2), "pads": (1, 1, 1, 1), "output_padding": (1, 1), "group": 2},
                 atol=1e-5)
    want = torch.nn.functional.conv_transpose2d(torch.from_numpy(x), torch.from_numpy(w), stride=2, padding=1,
                                                output_padding=1, groups=2)
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)


COORDINATES = ["half_pixel", "half_pixel_symmetric", "asymmetric", "align_corners", "pytorch_half_pixel"]


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize(mode: str, coordinates: str) -> None:
    x = floats(1, 2, 4, 5)
    for sizes in ((1, 2, 8, 10), (1, 2, 7, 3), (1, 2, 4, 1)):
        check("resize", [x], {"sizes": sizes, "mode": mode, "coordinates": coordinates}, rtol=1e-4, atol=1e-5)


def test_resize_variants() -> None:
    x = floats(1, 1, 4, 4)
    for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
        check("resize", [x], {"sizes": (1, 1, 6, 9), "rounding": rounding})
    check("resize", [x], {"sizes": (1, 1, 8, 8), "mode": "cubic", "exclude_outside": True}, rtol=1e-4, atol=1e-5)
    check("resize", [x], {"sizes": (1, 1, 6, 6), "scales": (1, 1, 1.6, 1.6), "mode": "linear"}, rtol=1e-4, atol=1e-5)
    check("resize", [floats(1, 1, 3, 4)], {"sizes": (1, 1, N * 2, 8), "mode": "linear"}, shapes={0: (1, 1, N, 4)}, rtol=1e-4)
    check("resize", [to_blocked(floats(1, 4, 3, 3), 4)], {"sizes": (1, 1, 6, 6, 4)})
    with pytest.raises(UserError, match="unknown mode 'bilinear'"):
        build("resize", [x], {"sizes": (1, 1, 8, 8), "mode": "bilinear"})


def test_resize_agrees_with_torch() -> None:
    torch = pytest.importorskip("torch")
    x = floats(1, 2, 4, 5)
    for align in (False, True):
        got, = check("resize", [x], {"sizes": (1, 2, 7, 9), "mode": "linear",
                                     "coordinates": "align_corners" if align else "half_pixel"}, rtol=1e-4, atol=1e-5)
        want = torch.nn.functional.interpolate(torch.from_numpy(x), (7, 9), mode="bilinear", align_corners=align)
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)


def test_layouts() -> None:
    for c in (8, 5):
        x = floats(2, c, 3, 2)
        blocked, = check("to_blocked", [x], {"block": 4})
        back, = check("from_blocked", [blocked], {"channels": c})
        np.testing.assert_array_equal(back, x)
    with pytest.raises(UserError, match="do not fill"):
        build("from_blocked", [floats(1, 2, 3, 4)], {"channels": 9})
