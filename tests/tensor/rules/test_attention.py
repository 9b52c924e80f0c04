"""Attention as one kernel: compiled code against the graph interpreter, over shapes, layouts, masks, targets and threads."""
from __future__ import annotations

import numpy as np
import pytest

from tilewright.core.config import config
from tilewright.driver import Stages, build
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.interpret import run as interpret
from tilewright.graph.ir import Graph, tensor_type
from tilewright.graph.lower import group_program
from tilewright.graph.passes.fuse import fuse
from tilewright.model import Model, relative_error
from tilewright.target.presets import get_target
from tilewright.tensor.rules.attention import find_attention, operand_views
from tilewright.tensor.rules.dispatch import inline_prologues, schedule_program
from tilewright.tensor.schedule import state
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.schedule.state import BlockRef


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with config.override(cache_dir=tmp_path_factory.mktemp("cache"), compile_workers=1):
        yield


def attention(batch=1, heads=2, queries=16, keys=16, size=8, values=None, mask=None, scale=True, layout="heads") -> Graph:
    """softmax(Q Kᵀ * scale + mask) V. Layouts: "heads" [b, h, n, d]; "rows" [b, n, h, d], and so the result; "joint": Q, K
    and V are slices of one [b, n, 3 h, d]; "keys": K as [b, h, d, n]; "constant": K and V are constants; "flat": [h, n, d];
    "shared": one head of K and V for all."""
    b, rng = GraphBuilder("attention"), np.random.default_rng(3)
    values = values or size

    def operand(name: str, n: int, d: int, part: int):
        if layout == "joint":
            x = joint if part else b.input("x", tensor_type("f32", (batch, n, 3 * heads, d)))
            s = b.add("slice", [x], {"starts": (0, 0, part * heads, 0), "sizes": (batch, n, heads, d),
                                     "steps": (1, 1, 1, 1)})
            return x, b.add("transpose", [s], {"perm": (0, 2, 1, 3)})
        shape = {"rows": (batch, n, heads, d), "flat": (heads, n, d),
                 "shared": (batch, heads if part == 0 else 1, n, d)}.get(layout, (batch, heads, n, d))
        if layout == "constant" and part:
            return None, b.constant(rng.standard_normal(shape).astype(np.float32))
        x = b.input(name, tensor_type("f32", shape))
        return x, b.add("transpose", [x], {"perm": (0, 2, 1, 3)}) if layout == "rows" else x

    joint, q = operand("q", queries, size, 0)
    if layout == "keys":
        k = b.input("k", tensor_type("f32", (batch, heads, size, keys)))
    else:
        k = operand("k", keys, size, 1)[1]
        k = b.add("transpose", [k], {"perm": (0, 2, 1) if layout == "flat" else (0, 1, 3, 2)})
    v = operand("v", keys, values, 2)[1]
    s = b.add("matmul", [q, k])
    if scale:
        s = b.add("mul", [s, b.constant(np.float32(1 / np.sqrt(size)))])
    if mask == "keys":
        s = b.add("add", [s, b.input("mask", tensor_type("f32", (batch, 1, 1, keys)))])
    elif mask == "full":
        s = b.add("add", [b.input("mask", tensor_type("f32", (batch, heads, queries, keys))), s])
    elif mask == "causal":
        seen = np.tril(np.ones((queries, keys), bool), keys - queries)
        s = b.add("where", [b.constant(seen[None, None]), s, b.constant(np.float32(-1e9))])
    elif mask == "no keys":
        seen = rng.uniform(size=(queries, keys)) < np.arange(queries)[:, None] / queries  # none in the first row
        s = b.add("add", [s, b.constant(np.where(seen, 0, -np.inf).astype(np.float32)[None, None])])
    p = b.add("softmax", [s], {"axis": -1})
    if mask == "no keys":
        p = b.add("where", [b.add("isnan", [p]), b.constant(np.float32(0)), p])
    o = b.add("matmul", [p, v])
    if layout in ("rows", "joint"):
        o = b.add("transpose", [o], {"perm": (0, 2, 1, 3)})
    return b.finish([o])


def feeds_of(graph: Graph) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {v.name: rng.standard_normal(v.type.sizes()).astype(np.float32) for v in graph.inputs}


def compiled(graph: Graph, target: str = "native", threads: int = 1) -> Model:
    return build(Stages(optimized=graph), get_target(target), "default", threads, lambda done, total: None)


def check(graph: Graph, target: str = "native") -> None:
    assert [g.kind for g in fuse(graph) if g.kind == "kernel"] == ["kernel"]
    feeds = feeds_of(graph)
    with compiled(graph, target) as model, np.errstate(invalid="ignore"):
        for got, want in zip(model.run(feeds), interpret(graph, feeds), strict=True):
            assert relative_error(got, want) < 1e-5


CASES = [
    dict(), dict(layout="rows", mask="keys"), dict(layout="joint", heads=3, queries=128, keys=128, size=64, mask="full"),
    dict(layout="keys", queries=20, keys=40, size=32), dict(layout="flat", heads=3, queries=9, keys=24),
    dict(layout="constant", queries=30, keys=32, size=16), dict(layout="shared", batch=2, heads=3, queries=40, keys=48),
    dict(batch=2, heads=3, queries=77, keys=77, size=80, mask="causal"),
    dict(heads=2, queries=197, keys=197, size=64, layout="joint"),
    dict(heads=1, queries=300, keys=260, size=128, scale=False),
    dict(queries=16, keys=7, size=5, values=9), dict(batch=3, queries=2, keys=2, size=2, mask="causal"),
    dict(queries=5, keys=33, size=32, mask="causal"), dict(queries=20, keys=37, size=16, mask="no keys"),
    dict(queries=13, keys=1025, size=16, mask="keys"),
    dict(queries=24, keys=3000, size=64, layout="rows"), dict(heads=1, queries=31, keys=31, size=31, layout="rows"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c.values())) or "plain")
def test_compiled_as_interpreted(case):
    check(attention(**case))


@pytest.mark.parametrize("target", ["x86-64-v2", "x86-64-v3"])
def test_other_vectors(target):
    check(attention(heads=2, queries=29, keys=53, size=32, mask="keys"), target)


def test_random_shapes():
    rng = np.random.default_rng(11)
    for _ in range(12):
        heads, queries, keys, size, values = (int(rng.integers(lo, hi)) for lo, hi in
                                              ((1, 4), (2, 40), (2, 70), (2, 40), (2, 40)))
        mask = [None, "keys", "full", "causal"][int(rng.integers(4))]
        check(attention(2, heads, queries, keys, size, values, mask, layout=["heads", "rows"][int(rng.integers(2))]))


@pytest.mark.parametrize("case", [dict(heads=1, queries=256, keys=128, size=32),
                                  dict(heads=1, queries=300, keys=77, size=24),
                                  dict(batch=2, heads=5, queries=50, keys=64, layout="joint")])
def test_threads_give_the_same_bits(case):
    if case.get("layout") == "joint":
        case = {**case, "keys": case["queries"]}
    graph = attention(**case)
    feeds = feeds_of(graph)
    results = []
    for threads in (1, 2, 3):
        with compiled(graph, threads=threads) as model:
            results.append(model.run(feeds)[0].tobytes())
    assert results[0] == results[1] == results[2]


def test_transposed_operand_and_groups():
    """K as the transposed operand of the product, and in groups of heads through an expand."""
    b = GraphBuilder("g")
    q = b.input("q", tensor_type("f32", (2, 4, 24, 32)))
    k, v = (b.input(n, tensor_type("f32", (2, 2, 1, 40, 32))) for n in "kv")
    k, v = (b.add("expand", [x], {"shape": (2, 2, 2, 40, 32)}) for x in (k, v))
    k, v = (b.add("reshape", [x], {"shape": (2, 4, 40, 32)}) for x in (k, v))
    s = b.add("matmul", [q, k], {"transpose_b": True})
    graph = b.finish([b.add("matmul", [b.add("softmax", [s], {"axis": -1}), v])])
    feeds = feeds_of(graph)
    with compiled(graph) as model:
        assert relative_error(model.run(feeds)[0], interpret(graph, feeds)[0]) < 1e-5


def test_what_follows():
    """Elementwise operations and a transpose after the second product are part of its store; so is nothing that pads."""
    b = GraphBuilder("g")
    q, k, v = (b.input(n, tensor_type("f32", (2, 3, 20, 16))) for n in "qkv")
    p = b.add("softmax", [b.add("matmul", [q, k], {"transpose_b": True})], {"axis": -1})
    o = b.add("mul", [b.add("matmul", [p, v]), b.input("gate", tensor_type("f32", (2, 3, 20, 16)))])
    o = b.add("transpose", [b.add("sigmoid", [o])], {"perm": (0, 2, 1, 3)})
    graph = b.finish([b.add("pad", [o], {"before": (0, 1, 0, 0), "after": (0, 1, 0, 0)})])
    assert [[op.op for op in g.operations][-1] for g in fuse(graph)] == ["transpose", "pad"]
    feeds = feeds_of(graph)
    with compiled(graph) as model:
        assert relative_error(model.run(feeds)[0], interpret(graph, feeds)[0]) < 1e-5


def test_masked_row_and_nan():
    """A row of which nothing is seen gives NaN as the formula does; a NaN spreads over its own row alone."""
    b = GraphBuilder("g")
    q, k, v = (b.input(n, tensor_type("f32", (2, 12, 16))) for n in "qkv")
    mask = b.input("mask", tensor_type("f32", (2, 12, 12)))
    s = b.add("add", [b.add("matmul", [q, b.add("transpose", [k], {"perm": (0, 2, 1)})]), mask])
    graph = b.finish([b.add("matmul", [b.add("softmax", [s], {"axis": -1}), v])])
    feeds = feeds_of(graph)
    feeds["mask"] = np.zeros((2, 12, 12), np.float32)
    feeds["mask"][0, 3] = -np.inf
    feeds["q"][1, 7, 2] = np.nan
    with compiled(graph) as model, np.errstate(invalid="ignore"):
        got, want = model.run(feeds)[0], interpret(graph, feeds)[0]
    bad = np.isnan(got)
    assert bad[0, 3].all() and bad[1, 7].all() and bad.sum() == 2 * 16
    assert np.array_equal(bad, np.isnan(want)) and relative_error(got[~bad], want[~bad]) < 1e-5


def program_of(graph: Graph):
    (group,) = [g for g in fuse(graph) if g.kind == "kernel"]
    return group_program(group, "kernel").program


def test_rows_stay_in_the_cache():
    """Scores are kept for a tile of rows only, and K is laid out once per head."""
    program = program_of(attention(heads=4, queries=128, keys=128, size=64, layout="joint"))
    sch = schedule_program(program, get_target("x86-64-v3"))
    views = operand_views(program)
    assert views is not None

    def around(name: str):
        return state.loops_around(sch.program, state.find_block(sch.program, BlockRef(name)))

    tile = next(f for f in around("softmax") if f.var in {g.var for g in around("matmul_1")} and f.kind == "serial")
    for name in ("matmul", "mul", "row_max", "row_exp", "row_sum"):
        assert tile in around(name)
    for view in views:
        assert view is not None and tile not in around(view) and around(view)[0].kind == "parallel"


def test_products_that_are_no_attention():
    """Two products in a row, the second of which does not sum over stages of the first, are left to the other rules."""
    b = GraphBuilder("g")
    x, y = (b.input(n, tensor_type("f32", (8, 16, 16))) for n in "xy")
    graph = b.finish([b.add("matmul", [b.add("relu", [b.add("matmul", [x, y])]), y])])
    assert len(fuse(graph)) == 2
    for group in fuse(graph):
        program = group_program(group, "kernel").program
        assert operand_views(program) is None


def test_finds_attention():
    program = program_of(attention(layout="rows", mask="causal"))
    views = operand_views(program)
    assert views is not None and None not in views
    sch = Schedule(program)
    inline_prologues(sch, keep=views)
    found = find_attention(sch.program, views)
    assert found is not None
    assert found.stages[-1] == "softmax" and {"row_max", "row_exp", "row_sum"} <= set(found.stages)
