"""Convolutional networks: scales and pads fold, layouts are blocked, halos are written by producers, groups are few."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.graph.passes.passcheck import Net, check_groups, counts, kernels, names, same
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.interpret import run
from tilewright.graph.ir import Graph, Value, tensor_type
from tilewright.graph.passes.halo import share_borders
from tilewright.graph.passes.layouts import blocked_layouts
from tilewright.graph.passes.padding import fold_padding
from tilewright.graph.passes.scale import fold_scales
from tilewright.graph.passes.taps import drop_dead_taps
from tilewright.graph.pipeline import graph_pipeline
from tilewright.target.presets import get_target

TARGET = get_target("x86-64-v4")


def resnet(b: Net) -> list[Value]:
    x = b.op("relu", b.conv(b.x(1, 3, 17, 17), 32, 3, stride=2))
    x = b.op("max_pool", x, kernel=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
    y = b.conv(b.op("relu", b.conv(x, 32, 3)), 32, 3)
    x = b.op("relu", b.op("add", y, x))
    y = b.conv(b.op("relu", b.conv(x, 48, 3, stride=2)), 48, 3)
    x = b.op("relu", b.op("add", y, b.conv(x, 48, 1, stride=2)))
    pooled = b.reshape(b.op("reduce_mean", x, axes=(2, 3)), (1, 48))
    return [b.op("add", b.op("matmul", pooled, b.w(48, 10)), b.w(10))]


def mobilenet(b: Net) -> list[Value]:
    x = b.op("clip", b.conv(b.x(1, 3, 12, 12), 24, 3, stride=2), min=0, max=6)
    for stride in (1, 2):
        y = b.op("clip", b.conv(x, 40, 1), min=0, max=6)
        y = b.op("clip", b.conv(y, 40, 3, stride=stride, group=40), min=0, max=6)
        y = b.conv(y, 24, 1)
        x = b.op("add", x, y) if stride == 1 else y
    return [b.op("reduce_mean", x, axes=(2, 3), keepdims=False)]


def heads(b: Net) -> list[Value]:
    """A YOLO-like tail: concat with an upsampled branch, border of -inf, two heads with odd channels."""
    a = b.op("leaky_relu", b.conv(b.x(1, 16, 8, 8), 32, 3), alpha=0.1)
    c = b.op("pad", a, before=(0, 0, 0, 0), after=(0, 0, 1, 1), value=float("-inf"))
    c = b.op("leaky_relu", b.conv(b.op("max_pool", c, kernel=(2, 2), strides=(2, 2)), 16, 3), alpha=0.1)
    up = b.op("resize", c, sizes=(1, 16, 8, 8), mode="nearest", coordinates="asymmetric", rounding="floor")
    both = b.op("concat", up, a, axis=1)
    one, two = b.conv(both, 21, 3), b.conv(c, 21, 1)
    flat = [b.op("transpose", b.reshape(v, (1, 3, 7, -1)), perm=(0, 1, 3, 2)) for v in (one, two)]
    return [b.reshape(b.op("sigmoid", v), (1, -1, 7)) for v in flat]


def attention(b: Net) -> list[Value]:
    """Squeeze and excite, a bias of one channel, a spatial mask, a division (only on whole blocks), grouped convolution."""
    x = b.conv(b.x(2, 32, 6, 6), 32, 3, group=2)
    s = b.op("sigmoid", b.conv(b.op("reduce_mean", x, axes=(2, 3)), 32, 1))
    x = b.op("div", b.op("mul", x, s), b.w(32, 1, 1, low=1.0, high=2.0))
    x = b.op("add", b.op("mul", x, b.w(6)), b.w(1, 1, 6, 6))
    x = b.slice(b.conv(x, 20, 1), {1: (16, 20, 1)})
    return [b.op("exp", b.conv(x, 20, 3)), b.op("reduce_sum", x, axes=(1,))]


def split(b: Net) -> list[Value]:
    x = b.op("relu", b.conv(b.x(1, 16, 6, 6), 64, 3))
    parts = [b.slice(x, {1: (k, k + 32, 1)}) for k in (0, 32)]
    return [b.op("concat", b.conv(parts[0], 32, 3), parts[1], axis=1), b.slice(x, {2: (1, 5, 2)})]


NETS = {"resnet": resnet, "mobilenet": mobilenet, "heads": heads, "attention": attention, "split": split}


def built(name: str) -> Graph:
    b = Net()
    return b.finish(NETS[name](b))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4"])
def test_layouts(name: str, target: str) -> None:
    g = built(name)
    after = same(g, blocked_layouts(g, get_target(target)), atol=1e-5)
    assert all(op.attrs["layout"] == "NCHWc" for op in after.operations if op.op == "conv")


@pytest.mark.parametrize("name", NETS)
def test_whole_pipeline_and_groups(name: str) -> None:
    g = built(name)
    after = same(g, graph_pipeline(TARGET, "default").run(g), atol=1e-5)
    check_groups(after)
    assert not any(any(op.attrs["pads"]) for op in after.operations if op.op == "conv")


def test_kernels_of_a_residual_network() -> None:
    assert kernels(check_groups(graph_pipeline(TARGET, "default").run(built("resnet")))) == [
        "pad", "conv add relu pad", "max_pool pad", "conv add relu pad", "slice conv add add relu pad",
        "conv add relu pad", "conv add", "slice conv add add relu", "reduce_mean", "matmul add"]


def test_kernels_of_a_mobile_network() -> None:
    found = kernels(check_groups(graph_pipeline(TARGET, "default").run(built("mobilenet"))))
    assert found[:4] == ["pad", "conv add clip", "conv add clip pad", "conv add clip"]
    assert not set(found) & {"add", "clip", "slice", "to_blocked"}


def test_no_conversion_between_convolutions() -> None:
    after = blocked_layouts(built("resnet"), TARGET)
    assert counts(after)["to_blocked"] == counts(after)["from_blocked"] == 0


def test_a_value_that_regions_read_stays_plain_for_them() -> None:
    b = Net()
    y = b.conv(b.x(1, 16, 4, 4), 16, 3)
    z = b.op("relu", b.conv(y, 16, 3))
    regions = []
    for name in ("exp", "tanh"):
        inner = Net()
        regions.append(inner.finish([inner.conv(inner.op(name, y), 16, 3)]))
    out = b.add("if_", [b.x(type="bool")], regions=regions)
    g = b.finish([out, z])
    after = same(g, graph_pipeline(TARGET, "default").run(g), atol=1e-5)
    inside = next(op for op in after.operations if op.op == "if_").regions[0]
    assert "conv" in names(inside)


# ---- borders ---------------------------------------------------------------------------------------------------------
def bordered(build: Any) -> tuple[Graph, Graph]:
    b = Net()
    g = b.finish(build(b))
    return g, same(g, share_borders(g))


def test_the_widest_border_is_stored() -> None:
    def build(b: Net) -> list[Value]:
        x = b.op("relu", b.conv(b.x(1, 4, 9, 9), 4, 1, bias=False))
        return [b.conv(x, 4, 5, bias=False), b.conv(x, 4, 3, bias=False), b.op("add", b.conv(x, 4, 1, bias=False), x)]
    _, after = bordered(build)
    assert counts(after)["pad"] == 1 and counts(after)["slice"] == 2
    assert kernels(check_groups(after)) == ["conv relu pad", "conv", "slice conv", "slice conv add"]


def test_max_pool_pads_with_zeros_only_behind_a_relu() -> None:
    for name, fill in (("relu", 0), ("tanh", float("-inf"))):
        around = {"kernel": (3, 3), "pads": (1, 1, 1, 1)}
        _, after = bordered(lambda b, name=name, a=around: [b.op("max_pool", b.op(name, b.x(1, 2, 5, 5)), **a)])
        assert [op.attrs["value"] for op in after.operations if op.op == "pad"] == [fill]
    wide = {"kernel": (2, 2), "pads": (2, 2, 0, 0)}  # a window that holds nothing gives -inf
    _, after = bordered(lambda b: [b.op("max_pool", b.op("relu", b.x(1, 2, 5, 5)), **wide)])
    assert [op.attrs["value"] for op in after.operations if op.op == "pad"] == [float("-inf")]


def test_two_fills_of_one_value() -> None:
    def build(b: Net) -> list[Value]:
        x = b.op("tanh", b.x(1, 4, 5, 5))
        return [b.conv(x, 4, 3, bias=False), b.op("max_pool", x, kernel=(3, 3), pads=(1, 1, 1, 1))]
    _, after = bordered(build)
    assert counts(after)["pad"] == 1
    check_groups(after)


def test_outputs_and_inputs_are_not_stored_with_a_border() -> None:
    def build(b: Net) -> list[Value]:
        x = b.op("relu", b.x(1, 4, 5, 5))
        return [x, b.conv(x, 4, 3, bias=False)]
    _, after = bordered(build)
    assert names(after) == ["relu", "pad", "conv"]
    assert kernels(check_groups(after)) == ["relu", "pad", "conv"]


# ---- folding ---------------------------------------------------------------------------------------------------------
def test_batch_norm_folds_into_the_convolution() -> None:
    b = Net()
    y = b.conv(b.x(1, 3, 6, 6), 5, 3)
    y = b.op("batch_norm", y, b.w(5), b.w(5), b.w(5), b.w(5, low=0.5, high=2.0), eps=1e-3)
    g = b.finish([b.op("relu", b.op("mul", y, b.n(2)))])
    assert names(same(g, fold_scales(g))) == ["conv", "add", "relu"]


def test_batch_norm_without_a_convolution_is_a_product_and_a_sum() -> None:
    b = Net()
    g = b.finish([b.op("batch_norm", b.x(2, 5, 6), b.w(5), b.w(5), b.w(5), b.w(5, low=0.5, high=2.0))])
    assert names(same(g, fold_scales(g))) == ["mul", "add"]


@pytest.mark.parametrize("flip", [False, True])
def test_scales_fold_into_products(flip: bool) -> None:
    b = Net()
    w = b.w(6, 5) if flip else b.w(5, 6)
    y = b.op("add", b.op("matmul", b.x(4, 5), w, transpose_b=flip), b.w(6))
    g = b.finish([b.op("mul", y, b.w(1, 6))])
    assert names(same(g, fold_scales(g))) == ["matmul", "add"]


def test_a_scale_by_rows_does_not_fold() -> None:
    b = Net()
    g = b.finish([b.op("mul", b.op("matmul", b.x(4, 5), b.w(5, 6)), b.w(4, 1))])
    assert fold_scales(g) is g


def test_a_product_that_others_read_is_not_scaled() -> None:
    b = Net()
    y = b.op("matmul", b.x(4, 5), b.w(5, 6))
    g = b.finish([b.op("mul", y, b.w(6)), b.op("exp", y)])
    assert fold_scales(g) is g


def test_pads_fold_where_legal() -> None:
    def pad(b: Net, x: Value, value: float) -> Value:
        return b.op("pad", x, before=(0, 0, 1, 0), after=(0, 0, 2, 1), value=value)
    b = Net()
    x = b.x(1, 3, 6, 6)
    pooled = {"kernel": (2, 2), "strides": (2, 2)}
    g = b.finish([b.conv(pad(b, x, 0), 4, 3, bias=False), b.op("max_pool", pad(b, x, -np.inf), **pooled),
                  b.op("avg_pool", pad(b, x, 0), **pooled, count_include_pad=True)])
    assert "pad" not in names(same(g, fold_padding(g)))
    b = Net()
    x = b.x(1, 3, 6, 6)
    g = b.finish([b.conv(pad(b, x, 1), 4, 3), b.op("max_pool", pad(b, x, 0), **pooled),
                  b.op("avg_pool", pad(b, x, 0), **pooled),
                  b.conv(b.op("pad", x, before=(0, 1, 0, 0), after=(0, 0, 0, 0)), 4, 3)])
    assert fold_padding(g) is g


def test_printed_graph_of_a_residual_block() -> None:
    b = Net()
    x = b.op("relu", b.conv(b.x(1, 16, 6, 6), 16, 1, bias=False))
    g = b.finish([b.op("reduce_mean", b.op("add", b.conv(x, 16, 3, bias=False), x), axes=(2, 3))])
    after = share_borders(blocked_layouts(g, TARGET))
    shown = [f"{op}: {op.output.type}" for op in after.operations]
    assert shown == [
        "%x0_blocked = to_blocked(%x0): f32[1, 1, 6, 6, 16]",
        "%conv = conv(%x0_blocked, %w): f32[1, 1, 6, 6, 16]",
        "%relu = relu(%conv): f32[1, 1, 6, 6, 16]",
        "%relu_bordered = pad(%relu): f32[1, 1, 8, 8, 16]",
        "%relu_bordered_inner = slice(%relu_bordered): f32[1, 1, 6, 6, 16]",
        "%conv_1 = conv(%relu_bordered, %w_1): f32[1, 1, 6, 6, 16]",
        "%add = add(%conv_1, %relu_bordered_inner): f32[1, 1, 6, 6, 16]",
        "%reduce_mean = reduce_mean(%add): f32[1, 1, 1, 1, 16]",
        "%reduce_mean_1 = reshape(%reduce_mean): f32[1, 16, 1, 1]"]


@pytest.mark.parametrize("groups, inputs, outputs", [(4, 4, 4), (8, 8, 8), (4, 8, 4), (2, 24, 24), (3, 4, 4)])
def test_small_groups_become_whole_blocks(groups: int, inputs: int, outputs: int) -> None:
    rng = np.random.default_rng(0)
    b = GraphBuilder()
    x = b.input("x", tensor_type("f32", (1, groups * inputs, 6, 5)))
    w = b.constant(rng.standard_normal((groups * outputs, inputs, 3, 3)).astype(np.float32))
    graph = b.finish([b.add("conv", [x, w], {"pads": (1, 1, 1, 1), "group": groups})])
    blocked = blocked_layouts(graph, get_target("x86-64-v4"))
    (conv,) = [op for op in blocked.operations if op.op == "conv"]
    assert conv.attrs["layout"] == ("NCHW" if groups == 3 else "NCHWc")
    given = [rng.standard_normal((1, groups * inputs, 6, 5)).astype(np.float32)]
    np.testing.assert_allclose(run(blocked, given)[0], run(graph, given)[0], rtol=1e-4, atol=1e-4)


def test_strict_keeps_infinities_in_their_group() -> None:
    """Merged groups have zeros between them, which times an infinity are NaN: strict numerics does not merge."""
    rng = np.random.default_rng(0)
    b = GraphBuilder()
    x = b.input("x", tensor_type("f32", (1, 16, 6, 5)))
    w = b.constant(rng.uniform(0.5, 1, (16, 4, 3, 3)).astype(np.float32))
    graph = b.finish([b.add("conv", [x, w], {"pads": (1, 1, 1, 1), "group": 4})])
    given = rng.standard_normal((1, 16, 6, 5)).astype(np.float32)
    given[0, 5, 2, 2] = np.inf
    with np.errstate(invalid="ignore"):
        strict, merged = (run(graph_pipeline(TARGET, n).run(graph), [given])[0] for n in ("strict", "default"))
    assert np.isinf(strict[0, 4:8, 1:4, 1:4]).all() and np.isfinite(np.delete(strict, range(4, 8), 1)).all()
    assert not np.isfinite(np.delete(merged, range(4, 8), 1)).all()  # what the test is about


# ---- taps ------------------------------------------------------------------------------------------------------------
def narrowed(x: tuple[int, ...], window: tuple[int, ...], **attrs: Any) -> Graph:
    b = Net()
    g = b.finish([b.op("conv", b.x(*x), b.w(4, x[1], *window), **attrs)])
    return same(g, drop_dead_taps(g))


@pytest.mark.parametrize(("x", "window", "attrs", "left"), [
    ((1, 4, 1, 6, 6), (3, 3, 3), {"pads": (1,) * 6}, (1, 3, 3)),
    ((2, 4, 2, 6, 6), (3, 3, 3), {"pads": (1,) * 6}, (3, 3, 3)),              # each tap reads one of two planes
    ((1, 4, 8, 8), (3, 3), {"pads": (12,) * 4, "dilations": (12, 12)}, (1, 1)),
    ((1, 4, 8, 13), (3, 3), {"pads": (12,) * 4, "dilations": (12, 12)}, (1, 3)),
    ((1, 4, 1, 1), (5, 5), {"pads": (2,) * 4, "strides": (2, 2)}, (1, 1)),
    ((1, 4, 2, 2), (4, 4), {"pads": (3, 0, 0, 3), "strides": (3, 3)}, (1, 2)),
    ((1, 4, 3, 9), (7, 1), {"pads": (3, 0, 3, 0)}, (5, 1)),
])
def test_taps_that_read_padding_alone_go(x: tuple[int, ...], window: tuple[int, ...], attrs: dict[str, Any],
                                         left: tuple[int, ...]) -> None:
    after = narrowed(x, window, **attrs)
    (conv,) = after.operations
    assert conv.inputs[1] is not None and conv.inputs[1].type.sizes()[2:] == left


def test_taps_stay_where_the_rest_would_need_a_crop() -> None:
    """Padding of 4 under a dilation of 3: one tap less leaves 1, two less would leave -2."""
    (conv,) = narrowed((1, 4, 2), (4,), pads=(8, 1), dilations=(3,)).operations
    assert conv.inputs[1] is not None and conv.attrs["pads"][0] >= 0 and conv.inputs[1].type.sizes()[2] < 4


def test_infinite_weights_keep_their_taps() -> None:
    b = Net()
    w = np.full((4, 4, 3, 3), np.inf, np.float32)
    g = b.finish([b.op("conv", b.x(1, 4, 1, 1), b.constant(w, "w"), pads=(1,) * 4)])
    assert names(drop_dead_taps(g)) == ["conv"] and drop_dead_taps(g).operations[0].inputs[1] is g.operations[0].inputs[1]
