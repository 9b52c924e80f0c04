"""Kernels of symbolic sizes by class of computation: a rule's schedule for each (no fallback), one object, right at every
size that is tried, borders of sizes included."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.graph.symbolic import check
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.ir import Value, tensor_type
from tilewright.loop.ir import Span, Var

BATCH, SEQ, OTHER = Var("batch", span=Span(1, 64, hint=1)), Var("seq", span=Span(1)), Var("other", span=Span(1))
BOUNDED = Var("bounded", span=Span(1, 512))
HEIGHT, WIDTH = (Var(name, span=Span(1, hint=56)) for name in ("height", "width"))
TOKENS = [(1, 1), (1, 7), (2, 13), (1, 128), (4, 65)]
IMAGES = [(1, 5, 5), (2, 8, 9), (1, 16, 16), (3, 7, 33)]

Build = Callable[[GraphBuilder], Value]
CASES: dict[str, tuple[Build, tuple[Var, ...], list[tuple[int, ...]]]] = {}


def case(symbols: tuple[Var, ...], sizes: list[tuple[int, ...]]) -> Callable[[Build], Build]:
    def enter(build: Build) -> Build:
        CASES[build.__name__] = build, symbols, sizes
        return build
    return enter


def weight(b: GraphBuilder, *shape: int) -> Value:
    return b.constant(np.random.default_rng(3).uniform(-1, 1, shape).astype(np.float32))


def x(b: GraphBuilder, *shape: Any, name: str = "x", of: str = "f32") -> Value:
    return b.input(name, tensor_type(of, shape))


def heads(b: GraphBuilder, name: str, *shape: Any) -> Value:
    return b.add("transpose", [x(b, *shape, name=name)], {"perm": (0, 2, 1, 3)})


# ---- products --------------------------------------------------------------------------------------------------------
@case((BATCH, SEQ), TOKENS)
def linear(b: GraphBuilder) -> Value:
    return b.add("relu", [b.add("add", [b.add("matmul", [x(b, BATCH, SEQ, 48), weight(b, 48, 64)]), weight(b, 64)])])


@case((BATCH, SEQ), TOKENS)
def linear_with_residual_and_gelu(b: GraphBuilder) -> Value:
    y = b.add("add", [b.add("matmul", [x(b, BATCH, SEQ, 48), weight(b, 48, 64)]), x(b, BATCH, SEQ, 64, name="r")])
    return b.add("gelu", [y], {"approximate": "none"})


@case((BATCH, SEQ), TOKENS)
def scores(b: GraphBuilder) -> Value:
    k = b.add("transpose", [x(b, BATCH, 4, SEQ, 64, name="k")], {"perm": (0, 1, 3, 2)})
    return b.add("matmul", [x(b, BATCH, 4, SEQ, 64), k])


@case((BATCH, SEQ), TOKENS)
def weighted_values(b: GraphBuilder) -> Value:
    return b.add("matmul", [x(b, BATCH, 4, SEQ, SEQ), x(b, BATCH, 4, SEQ, 64, name="v")])


@case((SEQ, OTHER), [(1, 1), (3, 9), (17, 33), (128, 64)])
def columns(b: GraphBuilder) -> Value:
    return b.add("matmul", [x(b, SEQ, 40), x(b, 40, OTHER, name="y")])


def attention_of(b: GraphBuilder, seq: Var, width: int) -> Value:
    q, k, v = (heads(b, name, BATCH, seq, 4, width) for name in "qkv")
    s = b.add("matmul", [q, b.add("transpose", [k], {"perm": (0, 1, 3, 2)})])
    s = b.add("add", [b.add("mul", [s, weight(b, 1)]), x(b, BATCH, 1, 1, seq, name="mask")])
    out = b.add("matmul", [b.add("softmax", [s], {"axis": -1}), v])
    return b.add("transpose", [out], {"perm": (0, 2, 1, 3)})


@case((BATCH, SEQ), [*TOKENS, (1, 384)])
def attention(b: GraphBuilder) -> Value:
    return attention_of(b, SEQ, 16)


@case((BATCH, BOUNDED), TOKENS)
def attention_of_bounded_length(b: GraphBuilder) -> Value:
    return attention_of(b, BOUNDED, 64)


@case((BATCH, SEQ), [(1, 1), (2, 13), (1, 128), (1, 200)])
def attention_of_one_head(b: GraphBuilder) -> Value:
    q, v = (x(b, BATCH, SEQ, 24, name=name) for name in "qv")
    k = b.add("transpose", [x(b, BATCH, SEQ, 24, name="k")], {"perm": (0, 2, 1)})
    return b.add("matmul", [b.add("softmax", [b.add("matmul", [q, k])], {"axis": -1}), v])


@case((SEQ, OTHER), [(1, 1), (3, 9), (17, 33), (128, 64)])
def attention_without_batch(b: GraphBuilder) -> Value:
    q, k, v = x(b, SEQ, 16, name="q"), x(b, 16, OTHER, name="k"), x(b, OTHER, 16, name="v")
    return b.add("matmul", [b.add("softmax", [b.add("matmul", [q, k])], {"axis": -1}), v])


# ---- rows ------------------------------------------------------------------------------------------------------------
@case((BATCH, SEQ), TOKENS)
def softmax_of_rows(b: GraphBuilder) -> Value:
    return b.add("softmax", [x(b, BATCH, 12, SEQ, SEQ)], {"axis": -1})


@case((BATCH, BOUNDED), TOKENS)
def softmax_of_bounded_rows(b: GraphBuilder) -> Value:
    return b.add("softmax", [x(b, BATCH, 2, BOUNDED, BOUNDED)], {"axis": -1})


@case((BATCH, SEQ), TOKENS)
def softmax_along_another_axis(b: GraphBuilder) -> Value:
    return b.add("softmax", [x(b, BATCH, SEQ, 10)], {"axis": 1})


@case((BATCH, SEQ), TOKENS)
def layer_norm(b: GraphBuilder) -> Value:
    return b.add("layer_norm", [x(b, BATCH, SEQ, 96), weight(b, 96), weight(b, 96)], {"axis": -1})


@case((BATCH, SEQ), TOKENS)
def mean_over_rows(b: GraphBuilder) -> Value:
    return b.add("reduce_mean", [x(b, BATCH, SEQ, 96)], {"axes": (1,), "keepdims": False})


@case((BATCH, SEQ), TOKENS)
def largest_of_all(b: GraphBuilder) -> Value:
    return b.add("reduce_max", [x(b, BATCH, SEQ)], {"axes": (0, 1), "keepdims": False})


@case((BATCH, SEQ), TOKENS)
def position_of_largest(b: GraphBuilder) -> Value:
    return b.add("argmax", [x(b, BATCH, SEQ)], {"axis": 1, "keepdims": False})


@case((BATCH, SEQ), TOKENS)
def running_sum(b: GraphBuilder) -> Value:
    return b.add("cumsum", [x(b, BATCH, SEQ)], {"axis": 1})


# ---- places ----------------------------------------------------------------------------------------------------------
@case((BATCH, SEQ), TOKENS)
def elementwise(b: GraphBuilder) -> Value:
    return b.add("tanh", [b.add("add", [x(b, BATCH, SEQ), x(b, BATCH, SEQ, name="y")])])


@case((BATCH, SEQ), TOKENS)
def transposed(b: GraphBuilder) -> Value:
    return b.add("transpose", [x(b, BATCH, SEQ, 40)], {"perm": (0, 2, 1)})


@case((BATCH, SEQ), TOKENS)
def gathered(b: GraphBuilder) -> Value:
    return b.add("gather", [weight(b, 50, 32), x(b, BATCH, SEQ, of="i64")], {"axis": 0})


@case((BATCH, SEQ), TOKENS)
def joined(b: GraphBuilder) -> Value:
    return b.add("concat", [x(b, BATCH, SEQ, 8), x(b, BATCH, SEQ, 8, name="y")], {"axis": 1})


@case((BATCH, SEQ), [(1, 2), (3, 14), (1, 65)])
def second_half(b: GraphBuilder) -> Value:
    return b.add("relu", [b.add("slice", [x(b, BATCH, SEQ, 6)],
                                {"starts": (0, SEQ // 2, 0), "sizes": (BATCH, SEQ - SEQ // 2, 6)})])


@case((BATCH, SEQ), TOKENS)
def padded(b: GraphBuilder) -> Value:
    return b.add("pad", [x(b, BATCH, SEQ, 6)], {"before": (0, 1, 0), "after": (0, 2, 3)})


@case((BATCH, SEQ), TOKENS)
def expanded(b: GraphBuilder) -> Value:
    return b.add("relu", [b.add("expand", [x(b, BATCH, 1, SEQ)], {"shape": (BATCH, 5, SEQ)})])


@case((BATCH, HEIGHT, WIDTH), IMAGES)
def resized(b: GraphBuilder) -> Value:
    return b.add("resize", [x(b, BATCH, 8, HEIGHT, WIDTH)], {"sizes": (BATCH, 8, HEIGHT * 2, WIDTH * 2), "mode": "nearest",
                                                             "scales": (1.0, 1.0, 2.0, 2.0)})


# ---- images ----------------------------------------------------------------------------------------------------------
BLOCKED = {"layout": "NCHWc", "block": 16}


@case((BATCH, HEIGHT, WIDTH), IMAGES)
def convolution(b: GraphBuilder) -> Value:
    return b.add("relu", [b.add("conv", [x(b, BATCH, 3, HEIGHT, WIDTH), weight(b, 32, 3, 3, 3)],
                                {"pads": (1, 1, 1, 1), "strides": (2, 2), **BLOCKED, "in_layout": "NCHW"})])


@case((BATCH, HEIGHT, WIDTH), IMAGES)
def convolution_in_plain_layout(b: GraphBuilder) -> Value:
    return b.add("conv", [x(b, BATCH, 8, HEIGHT, WIDTH), weight(b, 32, 8, 3, 3)], {"pads": (1, 1, 1, 1)})


@case((BATCH, HEIGHT, WIDTH), IMAGES)
def convolution_in_blocks(b: GraphBuilder) -> Value:
    return b.add("relu", [b.add("conv", [x(b, BATCH, 2, HEIGHT, WIDTH, 16), weight(b, 32, 32, 3, 3)],
                                {"pads": (1, 1, 1, 1), **BLOCKED})])


@case((BATCH, HEIGHT, WIDTH), IMAGES)
def convolution_within_a_border(b: GraphBuilder) -> Value:
    return b.add("relu", [b.add("conv", [x(b, BATCH, 2, HEIGHT + 2, WIDTH + 2, 16), weight(b, 32, 32, 3, 3)], BLOCKED)])


@case((BATCH, HEIGHT, WIDTH), IMAGES)
def depthwise(b: GraphBuilder) -> Value:
    return b.add("conv", [x(b, BATCH, 2, HEIGHT + 2, WIDTH + 2, 16), weight(b, 32, 1, 3, 3)], {**BLOCKED, "group": 32})


@case((BATCH, HEIGHT, WIDTH), IMAGES)
def pool(b: GraphBuilder) -> Value:
    return b.add("max_pool", [x(b, BATCH, 2, HEIGHT, WIDTH, 16)],
                 {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "layout": "NCHWc"})


@case((BATCH, HEIGHT, WIDTH), IMAGES)
def plain_pool(b: GraphBuilder) -> Value:
    return b.add("avg_pool", [x(b, BATCH, 8, HEIGHT, WIDTH)], {"kernel": (2, 2), "strides": (2, 2)})


@case((BATCH, HEIGHT, WIDTH), IMAGES)
def mean_of_images(b: GraphBuilder) -> Value:
    return b.add("reduce_mean", [x(b, BATCH, 2, HEIGHT, WIDTH, 16)], {"axes": (2, 3), "keepdims": True})


@case((BATCH, HEIGHT, WIDTH), IMAGES)
def into_blocks(b: GraphBuilder) -> Value:
    return b.add("to_blocked", [x(b, BATCH, 20, HEIGHT, WIDTH)], {"block": 16})


@case((BATCH, HEIGHT, WIDTH), IMAGES)
def out_of_blocks(b: GraphBuilder) -> Value:
    return b.add("from_blocked", [x(b, BATCH, 2, HEIGHT, WIDTH, 16)], {"channels": 20})


@pytest.mark.parametrize("name", CASES)
def test_one_kernel_is_right_at_every_size(name: str) -> None:
    build, symbols, sizes = CASES[name]
    b = GraphBuilder()
    check(b.finish([build(b)]), symbols, sizes, rtol=1e-4, atol=1e-4)
