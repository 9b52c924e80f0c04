"""Property: on random graphs, every pass alone and the whole pipeline keep the results, bit for bit on integers."""
from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tests.graph.passes.passcheck import Net, check_groups, same
from tilewright.graph.ir import Graph, Value
from tilewright.graph.passes.cse import merge_equal
from tilewright.graph.passes.dce import remove_dead
from tilewright.graph.passes.fold import fold_constants
from tilewright.graph.passes.idioms import recover_idioms
from tilewright.graph.passes.products import combine_products, simplify_products
from tilewright.graph.passes.simplify import simplify_operations
from tilewright.graph.passes.sink import sink_reshapes
from tilewright.graph.passes.views import simplify_views
from tilewright.graph.pipeline import graph_pipeline
from tilewright.target.presets import get_target

PASSES = [remove_dead, fold_constants, simplify_operations, simplify_views, merge_equal, recover_idioms, simplify_products,
          sink_reshapes, combine_products, graph_pipeline(get_target("x86-64-v4"), "default").run]
SHAPES = [(2, 3, 4), (6, 4), (4,), (1, 4), (2, 12), (24,), (3, 1), (4, 4)]


def step(b: Net, pool: list[Value], draw: Any) -> Value | None:
    """One more operation on values of the pool; None where the drawn ones do not fit."""
    x = pool[draw(st.integers(0, len(pool) - 1))]
    y = pool[draw(st.integers(0, len(pool) - 1))]
    kind = draw(st.sampled_from(["unary", "binary", "binary", "number", "reshape", "transpose", "slice", "pad", "concat",
                                 "matmul", "reduce", "where"]))
    shape = x.type.sizes()
    axis = draw(st.integers(0, len(shape) - 1))
    if kind == "unary":
        return b.op(draw(st.sampled_from(["neg", "abs", "relu", "identity"])), x)
    if kind in ("binary", "where"):
        if any(m != n and 1 not in (m, n) for m, n in zip(shape[::-1], y.type.sizes()[::-1], strict=False)):
            return None
        if kind == "where":
            return b.op("where", b.op(draw(st.sampled_from(["less", "equal"])), x, y), x, y)
        return b.op(draw(st.sampled_from(["add", "sub", "mul", "min", "max"])), x, y)
    if kind == "number":
        c = b.constant(draw(st.integers(-1, 2)), "n", x.dtype)
        return b.op(draw(st.sampled_from(["add", "mul", "max", "sub"])), *draw(st.permutations([x, c])))
    if kind == "reshape":
        size = 1
        for n in shape:
            size *= n
        fits = [s for s in SHAPES if _size(s) == size]
        return b.reshape(x, draw(st.sampled_from(fits))) if fits else None
    if kind == "transpose":
        return b.op("transpose", x, perm=draw(st.permutations(range(len(shape)))))
    if kind == "slice":
        start = draw(st.integers(0, shape[axis] - 1))
        return b.slice(x, {axis: (start, draw(st.integers(start + 1, shape[axis])), 1)})
    if kind == "pad":
        amounts = [draw(st.integers(-1 if n > 2 else 0, 1)) for n in shape]
        return b.op("pad", x, before=amounts, after=[0] * len(shape))
    if kind == "concat":
        return b.op("concat", x, x, axis=axis) if shape[axis] < 5 else None
    if kind == "reduce":
        return b.op(draw(st.sampled_from(["reduce_sum", "reduce_max"])), x, axes=(axis,))
    if len(shape) < 2:
        return None
    n = draw(st.integers(1, 3))
    return b.op("matmul", x, b.constant(b.rng.integers(-2, 3, (shape[-1], n)), "w", x.dtype))


def _size(shape: tuple[int, ...]) -> int:
    n = 1
    for d in shape:
        n *= d
    return n


@st.composite
def graphs(draw: Any) -> Graph:
    b = Net()
    pool = [b.x(*draw(st.sampled_from(SHAPES)), type="i32") for _ in range(2)]
    pool.append(b.constant(b.rng.integers(-3, 4, draw(st.sampled_from(SHAPES))), "c", "i32"))
    for _ in range(draw(st.integers(1, 14))):
        v = step(b, pool, draw)
        if v is not None and v.rank and _size(v.type.sizes()) <= 400:
            pool.append(v)
    count = draw(st.integers(1, 3))
    return b.finish([pool[draw(st.integers(0, len(pool) - 1))] for _ in range(count - 1)] + [pool[-1]])


@pytest.mark.parametrize("p", PASSES, ids=lambda p: getattr(p, "__name__", "pass"))
@settings(max_examples=120, deadline=None, derandomize=True)
@given(g=graphs())
def test_results_stay(p: Any, g: Graph) -> None:
    same(g, p(g))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(g=graphs())
def test_groups_run_to_the_same(g: Graph) -> None:
    check_groups(g)
    check_groups(graph_pipeline(get_target("x86-64-v4"), "default").run(g))
