"""Simplification of operations and views, folding, CSE, DCE: what is left, and that results stay the same."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.graph.passes.passcheck import Net, counts, names, same
from tilewright.graph import interpret
from tilewright.graph.ir import Graph, Value
from tilewright.graph.passes.cse import merge_equal
from tilewright.graph.passes.dce import remove_dead
from tilewright.graph.passes.fold import fold_constants
from tilewright.graph.passes.simplify import simplify_operations
from tilewright.graph.passes.views import simplify_views
from tilewright.loop.ir import Var


def one(build: Any, *shape: int) -> Graph:
    b = Net()
    return b.finish([build(b, b.x(*(shape or (2, 3, 4))))])


OPERATIONS = {
    "x*1": (lambda b, x: b.op("mul", x, b.n(1)), []),
    "0+x": (lambda b, x: b.op("add", b.n(0), x), []),
    "x-0": (lambda b, x: b.op("sub", x, b.n(0)), []),
    "x/1": (lambda b, x: b.op("div", x, b.n(1)), []),
    "x*0 stays": (lambda b, x: b.op("mul", x, b.n(0)), ["mul"]),
    "x*ones repeated": (lambda b, x: b.op("mul", x, b.constant(np.ones((5, 2, 3, 4), "f"))), ["expand"]),
    "x/4": (lambda b, x: b.op("div", x, b.n(4)), ["mul"]),
    "x**2": (lambda b, x: b.op("pow", x, b.n(2)), ["mul"]),
    "x**3": (lambda b, x: b.op("pow", x, b.n(3)), ["mul", "mul"]),
    "|x|**0.5": (lambda b, x: b.op("pow", b.op("abs", x), b.n(0.5)), ["abs", "sqrt"]),
    "clip": (lambda b, x: b.op("clip", x, min=0, max=None), ["relu"]),
    "clip of relu": (lambda b, x: b.op("clip", b.op("relu", x), min=-1, max=1), ["clip"]),
    "max(x, 0)": (lambda b, x: b.op("max", x, b.n(0)), ["relu"]),
    "relu of relu": (lambda b, x: b.op("relu", b.op("relu", x)), ["relu"]),
    "where": (lambda b, x: b.op("where", b.constant(np.ones((3, 4), bool)), x, b.n(7)), []),
    "where false": (lambda b, x: b.op("where", b.constant(np.zeros(4, bool)), b.n(7), x), []),
    "cast": (lambda b, x: b.op("cast", x, to="f32"), []),
    "neg": (lambda b, x: b.op("neg", b.op("neg", x)), []),
    "identity": (lambda b, x: b.op("relu", b.op("identity", x)), ["relu"]),
    "x+1+2": (lambda b, x: b.op("add", b.op("add", x, b.n(1)), b.n(2)), ["add"])}


@pytest.mark.parametrize("case", OPERATIONS)
def test_operations(case: str) -> None:
    build, left = OPERATIONS[case]
    g = one(build)
    assert names(same(g, simplify_operations(g))) == left


def test_exact_keeps_rounding() -> None:
    third = one(lambda b, x: b.op("div", x, b.n(3)))
    assert names(simplify_operations(third, exact=True)) == ["div"]
    assert names(same(third, simplify_operations(third))) == ["mul"]
    sums = one(lambda b, x: b.op("add", b.op("add", x, b.n(0.1)), b.n(0.2)))
    assert names(simplify_operations(sums, exact=True)) == ["add", "add"]


def test_a_reciprocal_that_overflows_is_not_used() -> None:
    g = one(lambda b, x: b.op("div", x, b.n(2.0**-149)))
    assert names(simplify_operations(g)) == ["div"]


@pytest.mark.parametrize("number,other", [(True, "x"), (False, "full")])
def test_logic(number: bool, other: str) -> None:
    b = Net()
    x = b.x(3, type="bool")
    g = b.finish([b.op("logical_and", b.constant(np.full(3, number)), x)])
    assert names(same(g, simplify_operations(g))) == ([] if other == "x" else ["full"])


VIEWS = {
    "reshape twice": (lambda b, x: b.reshape(b.reshape(x, (6, 4)), (4, 6)), ["reshape"]),
    "reshape back": (lambda b, x: b.op("relu", b.reshape(b.reshape(x, (24,)), (2, 3, 4))), ["relu"]),
    "transpose back": (lambda b, x: b.op("transpose", b.op("transpose", x, perm=(1, 2, 0)), perm=(2, 0, 1)), []),
    "transpose twice": (lambda b, x: b.op("transpose", b.op("transpose", x, perm=(1, 2, 0)), perm=(1, 2, 0)), ["transpose"]),
    "expand": (lambda b, x: b.op("expand", x, shape=(1, 2, 3, 4)), ["reshape"]),
    "slice of all": (lambda b, x: b.slice(x, {0: (0, 2, 1)}), []),
    "slice of slice": (lambda b, x: b.slice(b.slice(x, {2: (3, None or -5, -1)}), {2: (1, 3, 1), 1: (1, 3, 1)}), ["slice"]),
    "gather": (lambda b, x: b.op("gather", x, b.constant(np.array([-1, 1])), axis=2), ["slice"]),
    "gather one": (lambda b, x: b.op("gather", x, b.constant(np.int64(1)), axis=1), ["slice", "reshape"]),
    "pad": (lambda b, x: b.op("pad", x, before=(0, 0, 0), after=(0, 0, 0)), []),
    "crop": (lambda b, x: b.op("pad", x, before=(0, -1, 0), after=(0, 0, -2)), ["slice"]),
    "concat": (lambda b, x: b.op("concat", b.op("concat", x, x, axis=1), x, axis=1), ["concat"])}


@pytest.mark.parametrize("case", VIEWS)
def test_views(case: str) -> None:
    build, left = VIEWS[case]
    g = one(build)
    assert names(same(g, simplify_views(g))) == left


def test_transpose_of_ones_is_a_reshape() -> None:
    g = one(lambda b, x: b.op("transpose", x, perm=(0, 2, 1, 3)), 1, 1, 5, 4)
    assert names(same(g, simplify_views(g))) == ["reshape"]


@pytest.mark.parametrize("start,shape,left", [(8, (2, 3, 2, 4), ["reshape", "slice"]),
                                              (4, (2, 3, 2, 4), ["reshape", "slice"]),
                                              (2, (2, 3, 2, 4), ["slice", "reshape"]), (8, (6, 8), ["reshape", "slice"]),
                                              (8, (2, 24), ["slice", "reshape"])])
def test_slices_go_behind_reshapes(start: int, shape: tuple[int, ...], left: list[str]) -> None:
    g = one(lambda b, x: b.reshape(b.slice(x, {2: (start, start + 8, 1)}), shape), 2, 3, 24)
    assert names(same(g, simplify_views(g))) == left


def test_slices_go_behind_reshapes_of_symbolic_sizes() -> None:
    b, n, m = Net(), Var("n"), Var("m")
    x = b.reshape(b.x(n, m, 24), (m * n, 24))
    part = b.slice(x, {1: (8, 16, 1)})
    g = b.finish([b.reshape(part, (n, m, 2, 4)), b.reshape(b.slice(x, {0: (0, 1, 1)}), (24,))])
    after = simplify_views(g)
    assert names(after) == ["reshape", "reshape", "slice", "slice", "reshape"]
    data = np.random.default_rng(0).standard_normal((2, 3, 24)).astype(np.float32)
    for want, got in zip(interpret.run(g, [data]), interpret.run(after, [data]), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("perm,left", [((0, 2, 1), ["transpose", "reshape"]), ((2, 0, 1), ["transpose", "reshape"]),
                                       ((1, 0, 2), ["transpose", "reshape"])])
def test_transposes_around_a_reshape_that_merges_axes_are_one(perm: tuple[int, ...], left: list[str]) -> None:
    g = one(lambda b, x: b.op("transpose", b.reshape(b.op("transpose", x, perm=(0, 2, 1, 3)), (10, 3, 4)), perm=perm),
            2, 3, 5, 4)
    assert names(same(g, simplify_views(g))) == left


def test_transposes_stay_apart_where_the_reshape_mixes_their_axes() -> None:
    g = one(lambda b, x: b.op("transpose", b.reshape(b.op("transpose", x, perm=(0, 2, 1, 3)), (5, 6, 4)), perm=(1, 0, 2)),
            2, 3, 5, 4)
    assert names(same(g, simplify_views(g))) == ["transpose", "reshape", "transpose"]


@pytest.mark.parametrize("perm,out,left", [((0, 2, 1), (2, 3, 4, 5), ["transpose"]),
                                           ((0, 2, 1), (3, 2, 4, 5), ["transpose", "reshape"]),
                                           ((0, 2, 1), (6, 4, 5), ["reshape", "transpose"])])
def test_axes_merged_for_a_transpose_stay_apart(perm: tuple[int, ...], out: tuple[int, ...], left: list[str]) -> None:
    g = one(lambda b, x: b.reshape(b.op("transpose", b.reshape(x, (6, 5, 4)), perm=perm), out), 2, 3, 5, 4)
    assert names(same(g, simplify_views(g))) == left


def test_scales_of_operands_stand_behind_the_product() -> None:
    b = Net()
    x, y = (b.op("mul", b.x(2, 4, 4), b.n(0.5)) for _ in range(2))
    g = b.finish([b.op("matmul", x, y)])
    assert names(same(g, simplify_operations(g))) == ["matmul", "mul"]
    assert names(same(g, simplify_operations(g, exact=True))) == ["mul", "mul", "matmul"]


@pytest.mark.parametrize("change", ["weight", "large", "read twice", "half"])
def test_scales_that_stay(change: str) -> None:
    b = Net()
    x = b.x(4, 4, type="f16" if change == "half" else "f32")
    scaled = b.op("mul", x, b.constant(np.asarray(2 if change == "large" else 0.5, x.dtype.numpy())))
    y = b.op("matmul", scaled, b.w(4, 4) if change == "weight" else b.x(4, 4, type=x.dtype.name))
    g = b.finish([y, *([scaled] if change == "read twice" else [])])
    assert names(simplify_operations(g)) == ["mul", "matmul"]


def test_folding_stops_where_constants_would_grow() -> None:
    b = Net()
    small = b.op("expand", b.n(3), shape=(4, 4))
    big = b.op("expand", b.n(3), shape=(1024, 1024))
    x = b.x(1024, 1024)
    g = b.finish([b.op("add", b.op("exp", b.w(4, 4)), small), b.op("add", x, big)])
    after = same(g, fold_constants(g))
    assert counts(after) == {"expand": 1, "add": 1}
    assert after.outputs[0].is_constant


def test_known_elements_become_constants() -> None:
    b = Net()
    x = b.x(Var("n"), 4)
    rows = b.op("gather", b.op("shape_of", x), b.constant(np.array([1])), axis=0)
    g = b.finish([b.op("mul", rows, rows)])
    assert fold_constants(g).outputs[0].data.tolist() == [16]


def test_equal_operations_are_done_once_in_their_scope() -> None:
    b = Net()
    x, c = b.x(2, 3), b.x(type="bool")

    def branch(name: str) -> Graph:
        inner = Net()
        inner.name = name
        return inner.finish([inner.op("add", inner.op("exp", x), inner.op("tanh", x))])
    outer = b.op("exp", x)
    y = b.add("if_", [c], regions=[branch("then"), branch("else")])
    g = b.finish([outer, y, b.op("exp", x), b.op("mul", x, b.n(2)), b.op("mul", x, b.n(2))])
    after = same(g, merge_equal(g))
    assert counts(after) == {"exp": 1, "if_": 1, "mul": 1}
    regions = next(op for op in after.operations if op.op == "if_").regions
    assert [names(r) for r in regions] == [["tanh", "add"], ["tanh", "add"]]  # not shared between the branches


def test_equal_looking_attributes_are_told_apart() -> None:
    b = Net()
    x = b.x(3)
    g = b.finish([b.op("clip", x, min=0, max=1), b.op("clip", x, min=0.5, max=1), b.op("cast", x, to="i32"),
                  b.op("cast", x, to="i64")])
    assert len(merge_equal(g).operations) == 4


def test_dead_code_goes_and_inputs_stay() -> None:
    b = Net()
    x, y = b.x(3), b.x(3)
    unused: Value = b.op("exp", y)
    b.op("tanh", unused)
    g = b.finish([b.op("relu", x)])
    after = same(g, remove_dead(g))
    assert names(after) == ["relu"] and len(after.inputs) == 2
    assert remove_dead(after) is after
