"""Contractions whose rows are a symbolic size: whole tiles, a ladder for the rest, right at every size."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.graph.symbolic import check
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.ir import Graph, tensor_type
from tilewright.loop.ir import Span, Var

SIZES = [(1,), (2,), (7,), (8,), (13,), (64,), (128,), (383,)]


def product(rows: Any, k: int, n: int) -> Graph:
    b = GraphBuilder()
    x = b.input("x", tensor_type("f32", (rows, k)))
    w = b.constant(np.random.default_rng(1).standard_normal((k, n)).astype(np.float32))
    return b.finish([b.add("relu", [b.add("matmul", [x, w])])])


@pytest.mark.parametrize(("k", "n"), [(96, 96), (33, 40), (64, 16)])
def test_a_product_with_a_weight(k: int, n: int) -> None:
    rows = Var("rows", span=Span(1, hint=128))
    check(product(rows, k, n), [rows], SIZES, rtol=1e-4, atol=1e-4)
