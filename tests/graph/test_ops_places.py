"""Operators that move elements: views, concat, pad, gather, scatter, creation; recipes, symbolic sizes, errors, elements."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.graph.opcheck import build, check, floats, ints, reference
from tilewright.core.errors import UserError
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.ir import tensor_type
from tilewright.graph.ops.view import aligned_groups, slice_range
from tilewright.loop.ir import Const, Var, as_int, expr, i64

N = Var("n")


@pytest.mark.parametrize(("source", "target"), [
    ((2, 3, 4), (6, 4)), ((6, 4), (2, 3, 2, 2)), ((4, 6), (8, 3)), ((2, 3), (3, 2)), ((5,), (5, 1, 1)), ((1, 5, 1), (5,)),
    ((2, 3, 4), (-1,)), ((2, 1, 6), (1, 2, -1)), ((1, 1), ()), ((), (1,)), ((2, 12, 3), (2, 3, 4, 3)), ((0, 3), (3, 0))])
def test_reshape(source: tuple[int, ...], target: tuple[int, ...]) -> None:
    check("reshape", [floats(*source)], {"shape": target})


def test_reshape_of_symbols_stays_within_groups() -> None:
    x = floats(5, 12, 8)
    check("reshape", [x], {"shape": (N, 12, 2, 4)}, shapes={0: (N, 12, 8)})
    check("reshape", [x], {"shape": (-1, 8)}, shapes={0: (N, 12, 8)})
    graph = build("reshape", [x], {"shape": (-1, 96)}, shapes={0: (N, 12, 8)})
    assert graph.outputs[0].shape[0] is N
    shape = tuple(expr(d) for d in (N, 12, 8))
    assert aligned_groups(shape, tuple(expr(d) for d in (N, 3, 4, 8))) == [
        (range(1), range(1)), (range(1, 2), range(1, 3)), (range(2, 3), range(3, 4))]


def test_reshape_errors() -> None:
    for shape, text in (((4, 2), "another number"), ((-1, 4), "does not fit"), ((-1, -1), "more than one")):
        with pytest.raises(UserError, match=text):
            build("reshape", [floats(2, 3)], {"shape": shape})


def test_transpose_expand() -> None:
    check("transpose", [floats(2, 3, 4)], {"perm": (2, 0, 1)})
    check("transpose", [floats(2, 3, 4)])
    check("transpose", [floats(2, 3, 4)], {"perm": (0, 2, 1)}, shapes={0: (2, N, 4)})
    check("expand", [floats(3, 1)], {"shape": (2, 3, 4)})
    with pytest.raises(UserError, match="no permutation"):
        build("transpose", [floats(2, 3)], {"perm": (0, 0)})
    with pytest.raises(UserError, match="does not expand"):
        build("expand", [floats(3, 2)], {"shape": (3, 1)})


@pytest.mark.parametrize(("start", "end", "step"), [
    (0, 7, 1), (1, 100, 2), (-3, 2**62, 1), (5, 1, -1), (-1, -(2**62), -2), (3, 3, 1), (2, -1, 3), (-100, 4, 1), (6, 0, 1)])
def test_slices_follow_python(start: int, end: int, step: int) -> None:
    x = floats(7, 2)
    b = GraphBuilder()
    v = b.input("x", tensor_type("f32", x.shape))
    graph = b.finish([b.slice(v, {0: (start, end, step)})])
    got, = reference(graph, [x])
    np.testing.assert_array_equal(got, x[start:end:step])
    check("slice", [x], graph.operations[0].attrs)


def test_slice_of_symbols() -> None:
    first, size = slice_range(N, 0, 2**62, 1)
    assert as_int(first) == 0 and size is N
    first, size = slice_range(N, -1, 2**62, 1)
    assert repr(first) in ("max(n - 1, 0)", "max(0, n - 1)", "n - 1", "max(n + -1, 0)", "max(0, n + -1)"), first
    check("slice", [floats(6, 3)], {"starts": (0, 1), "sizes": (N, 2)}, shapes={0: (N, 3)})
    with pytest.raises(UserError, match="leave axis 0"):
        build("slice", [floats(3)], {"starts": (2,), "sizes": (2,)})


def test_dynamic_slice_clamps() -> None:
    for starts in ([1, 0], [5, 2], [-3, 1]):
        check("dynamic_slice", [floats(4, 3), np.array(starts)], {"sizes": (2, 2)})


def test_concat() -> None:
    check("concat", [floats(2, 3), floats(2, 1, seed=1), floats(2, 4, seed=2)], {"axis": 1})
    check("concat", [floats(2, 3)], {"axis": 0})
    check("concat", [floats(4, 3), floats(2, 3)], {"axis": -2}, shapes={0: (N, 3)})
    with pytest.raises(UserError, match="axis 1 of"):
        build("concat", [floats(2, 3), floats(2, 4)], {"axis": 0})


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pad(mode: str) -> None:
    check("pad", [floats(4, 5)], {"before": (1, 0), "after": (2, 3), "mode": mode, "value": 7})
    check("pad", [floats(4, 5)], {"before": (0, 2), "after": (0, 2), "mode": mode}, shapes={0: (N, 5)})
    if mode == "constant":
        check("pad", [floats(4, 5)], {"before": (-1, 2), "after": (0, -2)})
        check("pad", [ints(3)], {"before": (2,), "after": (0,), "value": -5})


def test_tile_cumsum_trilu() -> None:
    check("tile", [floats(2, 3)], {"repeats": (2, 3)})
    for reverse in (False, True):
        for exclusive in (False, True):
            check("cumsum", [ints(3, 4)], {"axis": 1, "reverse": reverse, "exclusive": exclusive})
            check("cumprod", [ints(3, 4)], {"axis": 1, "reverse": reverse, "exclusive": exclusive})
    check("cumsum", [floats(5)], {"axis": 0})
    for k in (-1, 0, 2):
        for upper in (False, True):
            check("trilu", [floats(2, 4, 3)], {"k": k, "upper": upper})


def test_creation() -> None:
    check("full", [], {"shape": (2, 3), "value": 1.5, "dtype": "f32"})
    check("full", [], {"shape": (2,), "value": True, "dtype": "bool"})
    check("range", [np.array(2), np.array(11), np.array(3)], recipe=False)
    check("shape_of", [floats(2, 3)])
    check("shape_of", [floats(2, 3)], shapes={0: (N, 3)})
    check("one_hot", [np.array([[0, 2], [-1, 5]]), np.array([0.5, 3], np.float32)], {"depth": 3, "axis": 1})


def test_range_recipe_and_length() -> None:
    b = GraphBuilder()
    start, limit = b.input("a", tensor_type("i64", ())), b.input("b", tensor_type("i64", ()))
    v = b.add("range", [start, limit, b.constant(2)])
    assert isinstance(v.shape[0], Var)
    got, = reference(b.finish([v]), [np.array(3), np.array(10)])
    assert got.tolist() == [3, 5, 7, 9]
    x = b.input("x", tensor_type("f32", (N, 2)))
    size = b.reshape(b.slice(b.add("shape_of", [x]), {0: (0, 1, 1)}), ())
    positions = b.add("range", [b.constant(0), size, b.constant(1)])
    assert positions.shape == (N,)


def test_gathers() -> None:
    x = floats(4, 5, 3)
    check("gather", [x, np.array([[0, -1], [2, 1]])], {"axis": 1})
    check("gather", [x, np.array(2, np.int32)], {"axis": 0})
    check("gather", [x, np.array([3, 0])], {"axis": 0}, shapes={0: (N, 5, 3)})
    check("gather_elements", [x, ints(4, 2, 3, low=-5, high=5)], {"axis": 1})
    check("gather_nd", [x, np.array([[0, 1], [3, -1]])])
    check("gather_nd", [x, np.array([[1], [0], [4], [2]])], {"batch_dims": 1})
    b = GraphBuilder()
    with pytest.raises(UserError, match="leaves axis 0"):
        b.add("gather", [b.constant(x), b.constant([4])])
    with pytest.raises(UserError, match="axis 3 of a tensor of rank 3"):
        build("gather", [x, np.array([0])], {"axis": 3})


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "min", "max"])
def test_scatters(reduction: str) -> None:
    got, = check("scatter_elements", [np.arange(5.0), np.array([1, -1]), np.array([10.0, 20])],
                 {"reduction": reduction})
    want = {"none": [10, 20], "add": [11, 24], "mul": [10, 80], "min": [1, 4], "max": [10, 20]}[reduction]
    assert got[[1, 4]].tolist() == want
    got, = check("scatter_nd", [np.zeros((2, 3)), np.array([[1]]), np.ones((1, 3))], {"reduction": reduction})
    assert got[0].tolist() == [0, 0, 0] and got[1, 0] == (0 if reduction in ("mul", "min") else 1)


def test_topk_and_nonzero() -> None:
    x = np.array([[3, 1, 3, 2.0]])
    values, at = check("topk", [x], {"k": 3})
    assert values.tolist() == [[3, 3, 2]] and at.tolist() == [[0, 2, 3]]
    values, at = check("topk", [x], {"k": 2, "largest": False})
    assert values.tolist() == [[1, 2]] and at.tolist() == [[1, 3]]
    got, = check("nonzero", [np.array([[0, 1], [2, 0]])], recipe=False)
    assert got.tolist() == [[0, 1], [1, 0]]


def test_shape_chain_is_known() -> None:
    """Shape → Gather → Concat → Reshape, as exporters write it."""
    b = GraphBuilder()
    x = b.input("x", tensor_type("f32", (N, 12, 8)))
    s = b.add("shape_of", [x])
    batch = b.add("gather", [s, b.constant(0)])
    rows = b.add("gather", [s, b.constant([-2])])
    joined = b.add("concat", [b.unsqueeze(batch, [0]), rows, b.constant([2, -1])], {"axis": 0})
    assert joined.elements == (N, Const(12, i64), Const(2, i64), Const(-1, i64))
    y = b.add("reshape", [x], {"shape": joined.elements})
    assert y.shape == (N, expr(12), expr(2), expr(4))
    total = b.add("reduce_prod", [s], {"axes": (0,), "keepdims": False})
    assert total.elements is not None and repr(total.elements[0]) in ("n*96", "96*n", "n * 96", "96 * n")
    assert b.add("slice", [s], {"starts": (1,), "sizes": (2,)}).elements == (expr(12), expr(8))


def test_elements_survive_views() -> None:
    b = GraphBuilder()
    c: Any = b.constant([[1, 2], [3, 4]])
    assert [as_int(e) for e in b.add("transpose", [c]).elements or ()] == [1, 3, 2, 4]
    assert [as_int(e) for e in b.add("expand", [b.constant([7])], {"shape": (3,)}).elements or ()] == [7, 7, 7]
    assert [as_int(e) for e in b.add("full", [], {"shape": (2,), "value": 4, "dtype": "i64"}).elements or ()] == [4, 4]


def test_rank_rows() -> None:
    check("rank_rows", [ints(9, 1, low=0, high=4)])
    check("rank_rows", [ints(12, 3, low=0, high=2)], shapes={0: (N, 3)})
    x = floats(7, 2)
    x[[1, 4, 6], 0] = np.nan
    assert check("rank_rows", [x])[0].tolist()[1] >= 4
    assert check("rank_rows", [floats(1, 5)])[0].tolist() == [0]
