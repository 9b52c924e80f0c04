"""Which operations end an anchor's group, and which views belong to the group that reads them."""
from __future__ import annotations

import numpy as np
import pytest

from tilewright.graph.builder import GraphBuilder
from tilewright.graph.ir import tensor_type
from tilewright.graph.passes.fuse import fuse
from tilewright.loop.ir import Var


@pytest.mark.parametrize("side,groups", [(14, [["conv", "relu", "from_blocked"]]),
                                         (56, [["conv", "relu"], ["from_blocked"]])])
def test_large_results_leave_their_blocks_in_a_kernel_of_their_own(side, groups):
    b = GraphBuilder("g")
    x = b.input("x", tensor_type("f32", (1, 8, side, side, 16)))
    w = b.constant(np.zeros((128, 128, 1, 1), np.float32))
    y = b.add("relu", [b.add("conv", [x, w], {"layout": "NCHWc", "block": 16})])
    plain = b.add("from_blocked", [y], {"channels": 128})
    assert [[op.op for op in g.operations] for g in fuse(b.finish([plain]))] == groups


@pytest.mark.parametrize("shape,transposed,groups", [
    ((2, 12, 5, 8), False, [["expand", "reshape", "relu"]]),  # each head of three read through h // 3
    ((2, 12, 8, 5), True, [["expand", "transpose", "reshape", "relu"]]),
    ((2, 4, 15, 8), False, [["expand"], ["reshape"], ["relu"]]),  # would divide by a symbol
    ((2, 12, 40), False, [["expand"], ["reshape"], ["relu"]])])  # the innermost axis is no longer itself
def test_repeated_heads_are_read_where_they_are(shape, transposed, groups):
    b = GraphBuilder("g")
    n = Var("n")
    sizes = [n if d == 5 else n * 3 if d == 15 else n * 8 if d == 40 else d for d in shape]
    x = b.input("x", tensor_type("f32", (2, 4, 1, n, 8)))
    y = b.add("expand", [x], {"shape": (2, 4, 3, n, 8)})
    if transposed:
        y = b.add("transpose", [y], {"perm": (0, 1, 2, 4, 3)})
    y = b.add("relu", [b.reshape(y, sizes)])
    assert [[op.op for op in g.operations] for g in fuse(b.finish([y]))] == groups
