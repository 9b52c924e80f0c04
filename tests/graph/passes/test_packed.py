"""Packed weights in the graph: which stay, which are expanded, how parallel products of them become one."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.graph.passes.passcheck import Net, same
from tilewright.core.errors import UserError
from tilewright.graph.ir import Graph, Value
from tilewright.graph.ops.packed import codes_of, packed_codes
from tilewright.graph.passes.fold import fold_constants
from tilewright.graph.passes.packed import expand_weights
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


def test_shapes_that_do_not_fit() -> None:
    net = Net()
    with pytest.raises(UserError, match="for 100 rows in blocks of 16"):
        net.op("unpack_weights", net.constant(np.zeros((4, 8), np.uint8)), net.constant(np.ones((4, 7), np.float32)), bits=4,
               block=16, depth=100)
