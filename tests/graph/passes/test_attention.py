"""Which operations become one attention kernel, and which do not."""
from __future__ import annotations

import numpy as np
import pytest

from tilewright.graph.builder import GraphBuilder
from tilewright.graph.ir import tensor_type
from tilewright.graph.passes.attention import MAX_KEYS
from tilewright.graph.passes.fuse import fuse


def groups(change: str = "", shape=(2, 8, 8)) -> list[list[str]]:
    """The groups of softmax(Q Kᵀ + mask) V, with one thing changed."""
    b = GraphBuilder("g")
    *lead, n, d = shape
    rows = (*lead, n, n)
    dtype = "f64" if change == "dtype" else "f32"
    q, k, v = (b.input(name, tensor_type(dtype, s)) for name, s in (("q", (*lead, n, d)), ("k", (*lead, d, n)),
                                                                    ("v", (*lead, n, d))))
    product = b.add("matmul", [q, k])
    scores = b.add("add", [product, b.input("mask", tensor_type(dtype, rows))])
    if change == "stages":
        scores = b.add("tanh", [b.add("mul", [scores, b.constant(np.float32(0.5))])])
    if change == "half":
        scores = b.add("cast", [b.add("cast", [scores], {"to": "f16"})], {"to": "f32"})
    if change == "mask computed":
        later = b.add("mul", [b.input("m", tensor_type(dtype, rows)), b.input("n", tensor_type(dtype, rows))])
        scores = b.add("add", [scores, later])
    if change == "no product":
        scores = b.input("s", tensor_type(dtype, rows))
    p = rows_of = b.add("softmax", [scores], {"axis": -2 if change == "axis" else -1})
    if change == "half":
        p = b.add("cast", [b.add("cast", [p], {"to": "f16"})], {"to": "f32"})
    if "no keys" in change:  # rows without any key, as torch writes them
        p = b.add("where", [b.add("isnan", [p]), b.constant(np.float32(0)), p])
    o = b.add("matmul", [v, p] if change == "order" else [p, v])
    if change == "transpose":
        o = b.add("transpose", [o], {"perm": (1, 0, 2)})
    extra = {"scores kept": [scores], "rows kept": [p], "no keys, read": [rows_of]}.get(change, [])
    if change == "product read":
        extra = [b.add("exp", [product])]
    return [[op.op for op in g.operations] for g in fuse(b.finish([o, *extra]))]


def test_one_kernel():
    assert groups() == [["matmul", "add", "softmax", "matmul"]]
    assert groups("transpose") == [["matmul", "add", "softmax", "matmul", "transpose"]]
    assert groups("stages") == [["matmul", "add", "mul", "tanh", "softmax", "matmul"]]
    assert groups("half") == [["matmul", "add", "cast", "cast", "softmax", "cast", "cast", "matmul"]]


def test_a_function_of_the_rows():
    assert groups("no keys") == [["matmul", "add", "softmax", "isnan", "where", "matmul"]]
    assert ["softmax"] in groups("no keys, read")


def test_a_mask_computed_later_does_not_draw_the_scores_to_itself():
    assert groups("mask computed") == [["mul"], ["matmul", "add", "add", "softmax", "matmul"]]


@pytest.mark.parametrize("change", ["scores kept", "rows kept", "product read", "axis", "dtype", "no product"])
def test_apart(change):
    assert all(not {"softmax", "matmul"} <= set(g) for g in groups(change)), change


def test_rows_as_the_second_operand():
    assert ["softmax"] in groups("order", (2, 8, 8))


def test_sizes():
    assert len(groups(shape=(1, MAX_KEYS, 8))) == 1
    assert len(groups(shape=(1, MAX_KEYS + 1, 8))) == 3
    assert len(groups(shape=(2, 1, 8))) == 3
    assert len(groups(shape=(2, 8, 1))) == 3
