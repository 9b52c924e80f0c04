"""Transformers: idioms are recovered, products get two axes and are combined, reshapes sink, groups are few."""
from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.graph.passes.passcheck import Net, check_groups, counts, kernels, names, same
from tilewright.graph.ir import Graph, Value
from tilewright.graph.passes.cse import merge_equal
from tilewright.graph.passes.fuse import fuse
from tilewright.graph.passes.idioms import recover_idioms
from tilewright.graph.passes.products import combine_products, simplify_products
from tilewright.graph.passes.simplify import simplify_operations
from tilewright.graph.passes.sink import sink_reshapes
from tilewright.graph.pipeline import graph_pipeline
from tilewright.target.presets import get_target

TARGET = get_target("x86-64-v4")
ROWS, WIDTH, HEADS = 8, 32, 4


def layer(b: Net, x: Value) -> Value:
    """One encoder layer as exporters write it."""
    def linear(v: Value, n: int) -> Value:
        return b.op("add", b.op("matmul", v, b.w(v.type.sizes()[-1], n)), b.w(n))

    def heads(v: Value) -> Value:
        return b.op("transpose", b.reshape(v, (1, ROWS, HEADS, -1)), perm=(0, 2, 1, 3))
    q, k, v = [heads(linear(x, WIDTH)) for _ in range(3)]
    scores = b.op("mul", b.op("matmul", q, b.op("transpose", k, perm=(0, 1, 3, 2))), b.n(0.35))
    p = b.op("softmax", b.op("add", scores, b.constant(np.zeros((1, 1, ROWS, ROWS), "f"))))
    y = b.op("transpose", b.op("matmul", p, v), perm=(0, 2, 1, 3))
    x = b.op("layer_norm", b.op("add", linear(b.reshape(y, (1, ROWS, WIDTH)), WIDTH), x), b.w(WIDTH), b.w(WIDTH))
    h = linear(x, 2 * WIDTH)
    h = b.op("mul", h, b.op("mul", b.n(0.5), b.op("add", b.op("erf", b.op("div", h, b.n(math.sqrt(2)))), b.n(1))))
    return b.op("layer_norm", b.op("add", linear(h, WIDTH), x), b.w(WIDTH), b.w(WIDTH))


def encoder() -> Graph:
    b = Net()
    return b.finish([layer(b, layer(b, b.x(1, ROWS, WIDTH)))])


def test_kernels_of_an_encoder() -> None:
    g = encoder()
    after = same(g, graph_pipeline(TARGET, "default").run(g), atol=1e-5)
    one = ["matmul add", "slice transpose slice slice transpose transpose matmul mul softmax matmul transpose",
           "matmul add add", "layer_norm", "matmul add gelu", "matmul add add", "layer_norm"]
    assert kernels(check_groups(after)) == one + one


def test_products_can_stay_apart() -> None:
    g = encoder()
    after = same(g, graph_pipeline(TARGET, "default", combine=False).run(g), atol=1e-5)
    assert counts(after)["matmul"] == 16
    check_groups(after)


def test_strict_gives_the_same() -> None:
    g = encoder()
    same(g, graph_pipeline(TARGET, "strict").run(g), atol=1e-5)


# ---- idioms ----------------------------------------------------------------------------------------------------------
def tanh_gelu(b: Net, x: Value, cube: Any) -> Value:
    s = b.op("add", x, b.op("mul", cube, b.n(0.044715)))
    t = b.op("tanh", b.op("mul", s, b.n(math.sqrt(2 / math.pi))))
    return b.op("mul", b.op("mul", x, b.n(0.5)), b.op("add", t, b.n(1)))


def erf_half(b: Net, x: Value) -> Value:
    return b.op("add", b.n(1), b.op("erf", b.op("mul", x, b.n(math.sqrt(0.5)))))


def mean(b: Net, x: Value) -> Value:
    return b.op("reduce_mean", x, axes=(-1,))


def centered(b: Net, x: Value) -> Value:
    return b.op("sub", x, mean(b, x))


def root(b: Net, d: Value) -> Value:
    return b.op("sqrt", b.op("add", mean(b, b.op("pow", d, b.n(2))), b.n(1e-5)))


def scaled(b: Net, y: Value) -> Value:
    return b.op("add", b.op("mul", b.w(1, 1, 8), y), b.w(8))


IDIOMS = {
    "gelu (x (1 + erf)) / 2": (lambda b, x: b.op("div", b.op("mul", x, erf_half(b, x)), b.n(2)), ["gelu"]),
    "gelu x/2 (1 + erf)": (lambda b, x: b.op("mul", b.op("mul", x, b.n(0.5)), erf_half(b, x)), ["gelu"]),
    "gelu x (half erf)": (lambda b, x: b.op("mul", b.op("mul", erf_half(b, x), b.n(0.5)), x), ["gelu"]),
    "gelu of a product": (lambda b, x: b.op("mul", b.op("mul", b.op("mul", x, x), b.n(0.5)), erf_half(
        b, b.op("mul", x, x))), ["mul", "gelu"]),
    "gelu tanh, pow": (lambda b, x: tanh_gelu(b, x, b.op("pow", x, b.n(3))), ["gelu"]),
    "gelu tanh, products": (lambda b, x: tanh_gelu(b, x, b.op("mul", x, b.op("mul", x, x))), ["gelu"]),
    "silu": (lambda b, x: b.op("mul", b.op("sigmoid", x), x), ["silu"]),
    "silu by exp": (lambda b, x: b.op("div", x, b.op("add", b.n(1), b.op("exp", b.op("neg", x)))),
                    ["neg", "exp", "add", "div"]),
    "sigmoid": (lambda b, x: b.op("div", b.n(1), b.op("add", b.n(1), b.op("exp", b.op("neg", x)))), ["sigmoid"]),
    "hard_swish": (lambda b, x: b.op("div", b.op("mul", x, b.op("clip", b.op("add", x, b.n(3)), min=0, max=6)), b.n(6)),
                   ["hard_swish"]),
    "mish": (lambda b, x: b.op("mul", x, b.op("tanh", b.op("softplus", x))), ["mish"]),
    "softmax": (lambda b, x: softmax(b, x, b.op("exp", b.op("sub", x, b.op("reduce_max", x, axes=(1,))))), ["softmax"]),
    "softmax without maximum": (lambda b, x: softmax(b, x, b.op("exp", x)), ["softmax"]),
    "layer_norm": (lambda b, x: scaled(b, b.op("div", centered(b, x), root(b, centered(b, x)))), ["layer_norm"]),
    "layer_norm by rsqrt": (lambda b, x: b.op("mul", b.op("pow", b.op("add", mean(b, b.op("mul", centered(b, x), centered(
        b, x))), b.n(1e-5)), b.n(-0.5)), centered(b, x)), ["layer_norm"]),
    "rms_norm": (lambda b, x: b.op("mul", b.w(8), b.op("mul", x, b.op("reciprocal", root(b, x)))), ["rms_norm"]),
    "almost gelu": (lambda b, x: b.op("mul", b.op("mul", x, b.n(0.51)), erf_half(b, x)),
                    ["mul", "mul", "erf", "add", "mul"]),
    "almost layer_norm": (lambda b, x: b.op("div", centered(b, x), root(b, x)),
                          ["reduce_mean", "sub", "mul", "reduce_mean", "add", "sqrt", "div"])}


def softmax(b: Net, x: Value, e: Value) -> Value:
    return b.op("div", e, b.op("reduce_sum", e, axes=(1,)))


@pytest.mark.parametrize("case", IDIOMS)
def test_idioms(case: str) -> None:
    build, left = IDIOMS[case]
    b = Net()
    g = b.finish([build(b, b.x(2, 3, 8))])
    after = same(g, recover_idioms(merge_equal(simplify_operations(g))), rtol=1e-4)
    assert names(after) == left


# ---- products --------------------------------------------------------------------------------------------------------
def test_leading_axes_are_rows() -> None:
    b = Net()
    x = b.x(2, 3, 4)
    g = b.finish([b.op("matmul", x, b.w(4, 5)), b.op("matmul", x, b.w(1, 4, 5)), b.op("matmul", x, b.w(2, 4, 5))])
    after = same(g, simplify_products(g))
    assert [op.inputs[0].rank for op in after.operations if op.op == "matmul"] == [2, 2, 3]


def test_a_transposed_weight_is_read_as_it_is() -> None:
    b = Net()
    w = b.w(5, 4)
    g = b.finish([b.op("matmul", b.x(3, 4), b.op("transpose", w, perm=(1, 0)))])
    after = same(g, simplify_products(g))
    assert names(after) == ["matmul"] and after.operations[0].inputs[1] is w


def test_parallel_products_are_combined_only_where_their_parts_are_views() -> None:
    b = Net()
    x = b.x(3, 4)
    parts = [b.op("add", b.op("matmul", x, b.w(n, 4), transpose_b=True), b.w(n)) for n in (4, 6, 5)]
    g = b.finish([b.op("relu", parts[0]), b.reshape(b.op("relu", b.reshape(parts[1], (3, 2, 3))), (18,)), parts[2]])
    after = same(g, combine_products(g))
    assert counts(after)["matmul"] == 2 and counts(after)["slice"] == 2
    flat = b.finish([b.reshape(parts[0], (12,)), b.reshape(parts[1], (18,))])
    assert combine_products(flat) is flat


def test_parallel_products_and_additions_that_are_no_rows() -> None:
    """A number, and one element under more axes than the product has."""
    b = Net()
    x = b.x(3, 4)
    parts = [b.op("relu", b.op("add", b.op("matmul", x, b.w(4, 1)), b.w(*s))) for s in ((), (), (1, 1, 1), (1, 1, 1))]
    g = b.finish(parts)
    assert counts(same(g, combine_products(g)))["matmul"] == 1


# ---- reshapes --------------------------------------------------------------------------------------------------------
def test_bias_residual_and_activation_join_the_product() -> None:
    b = Net()
    y = b.reshape(b.op("matmul", b.x(6, 4), b.w(4, 8)), (2, 3, 8))
    y = b.op("relu", b.op("add", b.op("add", y, b.w(8)), b.x(2, 3, 8)))
    g = b.finish([b.op("mul", y, b.w(2, 1, 1)), ])
    after = same(g, sink_reshapes(g))
    assert kernels(check_groups(after)) == ["matmul add add relu", "mul"]  # [2, 1, 1] repeats within the merged axis


def test_reshapes_of_stored_values_stay() -> None:
    b = Net()
    x = b.x(6, 4)
    g = b.finish([b.op("exp", b.reshape(x, (2, 3, 4)))])
    assert sink_reshapes(g) is g


def test_a_group_stores_what_others_read() -> None:
    b = Net()
    y = b.op("matmul", b.x(6, 4), b.w(4, 8))
    g = b.finish([b.op("relu", y), b.op("exp", y)])
    assert [len(group.operations) for group in fuse(g)] == [1, 1, 1]
    check_groups(g)


def test_elementwise_groups_join_their_only_reader() -> None:
    b = Net()
    x, y = b.x(3, 4), b.x(3, 4)
    e = b.op("exp", x)
    z = b.op("mul", b.op("tanh", e), e)  # e is read twice, in one group
    both = b.op("concat", b.op("mul", z, b.op("neg", y)), b.op("abs", y), axis=0)
    row = b.op("exp", b.x(1, 4))  # repeated by its reader: stored
    g = b.finish([b.op("relu", both), b.op("add", b.op("sin", x), row)])
    assert kernels(check_groups(g)) == ["exp", "exp tanh mul neg mul abs concat relu", "sin add"]


def test_concatenation_of_the_innermost_axis_reads_stored_values() -> None:
    b = Net()
    x = b.x(3, 4)
    g = b.finish([b.op("concat", b.op("exp", x), b.op("abs", x), axis=1)])
    assert kernels(check_groups(g)) == ["exp", "abs", "concat"]
