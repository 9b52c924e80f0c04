"""Which operations end an anchor's group."""
from __future__ import annotations

import numpy as np
import pytest

from tilewright.graph.builder import GraphBuilder
from tilewright.graph.ir import tensor_type
from tilewright.graph.passes.fuse import fuse


@pytest.mark.parametrize("side,groups", [(14, [["conv", "relu", "from_blocked"]]),
                                         (56, [["conv", "relu"], ["from_blocked"]])])
def test_large_results_leave_their_blocks_in_a_kernel_of_their_own(side, groups):
    b = GraphBuilder("g")
    x = b.input("x", tensor_type("f32", (1, 8, side, side, 16)))
    w = b.constant(np.zeros((128, 128, 1, 1), np.float32))
    y = b.add("relu", [b.add("conv", [x, w], {"layout": "NCHWc", "block": 16})])
    plain = b.add("from_blocked", [y], {"channels": 128})
    assert [[op.op for op in g.operations] for g in fuse(b.finish([plain]))] == groups
