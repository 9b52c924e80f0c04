"""Packed weights in the graph: which stay, which are expanded, how parallel products of them become one."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.graph.passes.passcheck import Net, same
from tilewright.core.dtype import dtype, f16, f32
from tilewright.core.errors import UserError
from tilewright.graph.ir import Graph, Value
from tilewright.graph.ops.packed import codes_of, packed_codes
from tilewright.graph.passes.fold import fold_constants
from tilewright.graph.passes.packed import expand_weights, pack_weights
from tilewright.graph.passes.products import combine_products
from tilewright.target import get_target

CPU = get_target("x86-64-v3")


def packed(net: Net, k: int, n: int, block: int = 16, bits: int = 4, points: bool = False) -> Value:
    blocks = -(-k // block)
    codes = packed_codes(net.rng.integers(0, 2**bits, (n, blocks * block)).astype(np.uint8), bits)
    scales = net.rng.uniform(0.1, 1, (n, blocks)).astype(np.float32)
    zero = [net.constant(net.rng.integers(0, 2**bits, (n, blocks)).astype(np.uint8))] if points else []
    return net.op("unpack_weights", net.constant(codes), net.constant(scales), *zero, bits=bits, block=block, depth=k,
                  point=8.0)


def left(graph: Graph) -> int:
    return sum(op.op == "unpack_weights" for op in graph.operations)


@pytest.mark.parametrize("bits", (2, 4, 8))
def test_codes_in_bytes(bits: int) -> None:
    codes = np.random.default_rng(0).integers(0, 2**bits, (3, 13)).astype(np.uint8)
    rows = packed_codes(codes, bits)
    assert rows.shape == (3, -(-13 * bits // 8))
    np.testing.assert_array_equal(codes_of(rows, bits, 13), codes)


def product(**more: Any) -> Graph:
    net = Net()
    return net.finish([net.op("matmul", net.x(3, 40), packed(net, 40, 12, **more))])


def test_products_keep_them_and_folding_leaves_them() -> None:
    graph = product()
    assert left(fold_constants(expand_weights(graph, CPU, smallest=1))) == 1


@pytest.mark.parametrize("how", ({"smallest": 1 << 16}, {"exact": True, "smallest": 1},
                                 {"target": get_target("webgpu"), "smallest": 1}), ids=str)
def test_expanded_where_nothing_is_gained(how: dict[str, Any]) -> None:
    """Few weights, strict numerics, devices."""
    graph = product(points=True)
    assert left(same(graph, expand_weights(graph, how.pop("target", CPU), **how))) == 0


def test_expanded_where_others_read_them() -> None:
    net = Net()
    w = packed(net, 12, 12)
    graph = net.finish([net.op("matmul", net.x(3, 12), w), net.op("relu", w)])
    assert left(same(graph, expand_weights(graph, CPU, smallest=1))) == 0


@pytest.mark.parametrize("points", (False, True))
def test_parallel_products_become_one(points: bool) -> None:
    """Products with packed weights of one form; one with plain weights, or with other blocks, stays apart."""
    net = Net()
    x = net.x(3, 40)
    ys = [net.op("relu", net.op("matmul", x, packed(net, 40, n, points=points))) for n in (12, 20)]
    others = [net.op("relu", net.op("matmul", x, w)) for w in (packed(net, 40, 8, block=8), net.w(40, 9))]
    after = same(graph := net.finish([*ys, *others]), combine_products(net.finish([*ys, *others])))
    assert (left(graph), left(after)) == (3, 2)
    assert sum(op.op == "matmul" for op in after.operations) == 3


def test_scales_may_be_as_large_as_weights() -> None:
    assert left(expand_weights(product(block=4), CPU, smallest=1)) == 1
    assert left(expand_weights(product(block=2), CPU, smallest=1)) == 0


def dequantized(net: Net, of: str, k: int, n: int, block: int | None, points: bool, columns_first: bool) -> Value:
    """What DequantizeLinear is imported as: [k, n], or a transposed [n, k]; scales per tensor (None), per column (0), or in
    blocks along k."""
    low, high = dtype(of).range()
    laid = (n, k) if columns_first else (k, n)
    axis = int(columns_first)
    shape: tuple[int, ...] = () if block is None else tuple(1 if d == axis else s for d, s in enumerate(laid))
    codes = net.constant(net.rng.integers(low, high + 1, laid), element=of)
    if block:
        codes = net.reshape(codes, (*laid[:axis], k // block, block, *laid[axis + 1:]))
        shape = tuple(k // block if d == axis else 1 if d == axis + 1 else n for d in range(3))
    y = net.op("cast", codes, to=f32)
    if points:
        y = net.op("sub", y, net.op("cast", net.constant(net.rng.integers(low, high + 1, shape), element=of), to=f32))
    y = net.op("mul", y, net.constant(net.rng.uniform(0.01, 0.02, shape).astype(np.float32)))
    y = net.reshape(y, laid) if block else y
    return net.op("transpose", y, perm=(1, 0)) if columns_first else y


@pytest.mark.parametrize("columns_first", (False, True))
@pytest.mark.parametrize("points", (False, True))
@pytest.mark.parametrize("block", (None, 0, 16, 64))
@pytest.mark.parametrize("of", ("i4", "u4", "i8", "u8"))
def test_dequantized_weights_of_a_product(of: str, block: int | None, points: bool, columns_first: bool) -> None:
    net = Net()
    graph = net.finish([net.op("matmul", net.x(3, 64), dequantized(net, of, 64, 24, block, points, columns_first))])
    after = same(graph, pack_weights(graph, CPU, smallest=1))
    assert sorted(op.op for op in after.operations) == ["matmul", "unpack_weights"]
    op = next(op for op in after.operations if op.op == "unpack_weights")
    assert (op.attrs["bits"], op.attrs["block"]) == (dtype(of).bits, block or 64)
    assert len(op.inputs) == (3 if points and block is not None else 2)


def test_dequantized_weights_of_others() -> None:
    """Scales along the summed axis, weights that two operations read, weights of a product's left side: left alone."""
    net = Net()
    x, w = net.x(16, 16), dequantized(net, "i8", 16, 16, 0, True, False)
    codes = [net.op("cast", net.constant(net.rng.integers(-8, 8, (16, 16)), element="i8"), to=f32) for _ in range(2)]
    rows, first = net.op("mul", codes[0], net.w(16, 1)), net.op("mul", codes[1], net.n(2))
    graph = net.finish([net.op("matmul", x, w), net.op("relu", w), net.op("matmul", x, rows), net.op("matmul", first, x)])
    assert pack_weights(graph, CPU, smallest=1) is graph
    assert pack_weights(graph, get_target("webgpu"), smallest=1) is graph


def test_half_precision_is_summed_with_weights_as_they_are() -> None:
    net = Net()
    w = net.op("cast", packed(net, 40, 12), to=f16)
    graph = net.finish([net.op("matmul", net.x(3, 40, type="f16"), w)])
    after = same(graph, pack_weights(graph, CPU, smallest=1), rtol=1e-2, atol=1e-2)
    assert [op.op for op in after.operations if op.op != "unpack_weights"] == ["cast", "matmul", "cast"]
    assert left(expand_weights(after, CPU, smallest=1)) == 1


def test_shapes_that_do_not_fit() -> None:
    net = Net()
    with pytest.raises(UserError, match="for 100 rows in blocks of 16"):
        net.op("unpack_weights", net.constant(np.zeros((4, 8), np.uint8)), net.constant(np.ones((4, 7), np.float32)), bits=4,
               block=16, depth=100)
