"""The schedule rule of attention of few rows: against the interpreter, alone and as the alternative of a kernel for any
number of rows."""
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
from tilewright.loop.ir import TRUE, If, Span, Var
from tilewright.model import Model, relative_error
from tilewright.target.presets import get_target
from tilewright.tensor.rules.attention_few_rows import MAX_ROWS
from tilewright.tensor.rules.dispatch import by_few_rows, schedule_program


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with config.override(cache_dir=tmp_path_factory.mktemp("cache"), compile_workers=1):
        yield


def attention(rows=1, keys=33, batch=1, heads=4, shared=2, size=16, values=None, mask=None, layout="heads") -> Graph:
    """softmax(Q Kᵀ + mask) V where `shared` heads of Q read one of K and V. Layouts: "heads": all as [b, h, n, d]; "rows": Q
    and the result as [b, n, h, d]; "keys": K as [b, h, d, n]; "values": V as [b, h, d, n]."""
    b, values = GraphBuilder("attention"), values or size
    q = b.input("q", tensor_type("f32", (batch, rows, heads, size) if layout == "rows" else (batch, heads, rows, size)))
    if layout == "rows":
        q = b.add("transpose", [q], {"perm": (0, 2, 1, 3)})

    def repeated(name: str, n, d):
        x = b.input(name, tensor_type("f32", (batch, heads // shared, n, d)))
        if shared == 1:
            return x
        x = b.add("reshape", [x], {"shape": (batch, heads // shared, 1, n, d)})
        x = b.add("expand", [x], {"shape": (batch, heads // shared, shared, n, d)})
        return b.add("reshape", [x], {"shape": (batch, heads, n, d)})

    k = repeated("k", *((size, keys) if layout == "keys" else (keys, size)))
    if layout != "keys":
        k = b.add("transpose", [k], {"perm": (0, 1, 3, 2)})
    v = repeated("v", *((values, keys) if layout == "values" else (keys, values)))
    if layout == "values":
        v = b.add("transpose", [v], {"perm": (0, 1, 3, 2)})
    s = b.add("matmul", [q, k])
    if mask is not None:
        s = b.add("add", [s, b.input("mask", tensor_type("f32", (batch, 1, rows, keys)))])
    p = b.add("softmax", [s], {"axis": -1})
    if mask == "no keys":
        p = b.add("where", [b.add("isnan", [p]), b.constant(np.float32(0)), p])
    o = b.add("matmul", [p, v])
    return b.finish([b.add("transpose", [o], {"perm": (0, 2, 1, 3)}) if layout == "rows" else o])


def feeds_of(graph: Graph, sizes: dict[str, int], mask: str | None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    out = {}
    for v in graph.inputs:
        shape = [sizes[d.name] if isinstance(d, Var) else int(d.value) for d in v.shape]
        out[v.name] = rng.standard_normal(shape).astype(np.float32)
    if mask is not None:
        out["mask"] = np.where(out["mask"] > 0.5, -np.inf, out["mask"])
        if mask == "no keys":
            out["mask"][0, :, 0] = -np.inf
        else:
            out["mask"][..., 0] = 0
    return out


def compiled(graph: Graph, target: str = "native", threads: int = 1) -> Model:
    return build(Stages(optimized=graph), get_target(target), "default", threads, lambda done, total: None)


def programs(graph: Graph):
    return [group_program(g, "kernel").program for g in fuse(graph) if g.kind == "kernel"]


CASES = [
    dict(), dict(keys=1025, mask="keys"), dict(shared=1, keys=7), dict(shared=4, size=64, keys=130, mask="no keys"),
    dict(batch=3, layout="rows", size=48, keys=2), dict(layout="keys", keys=37, shared=1), dict(heads=12, shared=6, size=80),
    dict(heads=1, shared=1, keys=19), dict(heads=1, shared=1, batch=2, keys=64, size=8, values=24), dict(size=20, values=9),
    dict(heads=16, shared=16, size=128, keys=50, mask="keys"), dict(rows=2, mask="no keys"),
    dict(rows=3, layout="keys", heads=2, batch=2), dict(rows=MAX_ROWS, shared=1, layout="rows", keys=41),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c.values())) or "plain")
def test_compiled_as_interpreted(case):
    graph = attention(**case)
    (program,) = programs(graph)
    few, condition = by_few_rows(program, get_target("native"))
    assert few is not None and condition == TRUE
    feeds = feeds_of(graph, {}, case.get("mask"))
    with np.errstate(invalid="ignore"):
        (want,) = interpret(graph, feeds)
    results = []
    for threads in (1, 2):
        with compiled(graph, threads=threads) as model:
            results += model.run(feeds)
    assert relative_error(results[0], want) < 1e-5
    assert np.array_equal(results[0], results[1])


@pytest.mark.parametrize("target", ["x86-64-v2", "x86-64-v3"])
def test_other_vectors(target):
    graph = attention(heads=8, shared=4, size=64, mask="keys")
    feeds = feeds_of(graph, {}, "keys")
    with compiled(graph, target) as model:
        assert relative_error(model.run(feeds)[0], interpret(graph, feeds)[0]) < 1e-5


@pytest.mark.parametrize("case", [dict(), dict(size=12), dict(layout="values"), dict(size=32, values=24, layout="rows")],
                         ids=lambda c: "-".join(map(str, c.values())) or "plain")
def test_what_lies_otherwise_is_right(case):
    graph = attention(keys=21, **case)
    feeds = feeds_of(graph, {}, None)
    with compiled(graph) as model:
        assert relative_error(model.run(feeds)[0], interpret(graph, feeds)[0]) < 1e-5


SYMBOLIC = [dict(shared=2, mask="keys"), dict(shared=1, layout="rows", mask="no keys"), dict(heads=8, shared=8)]


@pytest.mark.parametrize("case", SYMBOLIC, ids=lambda c: "-".join(map(str, c.values())))
def test_an_alternative_of_symbolic_sizes(case):
    rows, keys, batch = Var("rows", span=Span(1)), Var("keys", span=Span(1)), Var("batch", span=Span(1, hint=1))
    graph = attention(rows, keys, batch, **case)
    (program,) = programs(graph)
    sch = schedule_program(program, get_target("native"))
    assert isinstance(sch.program.body, If) and not sch.fallback
    results = {}
    for threads in (1, 2):
        with compiled(graph, threads=threads) as model:
            assert len(model.kernels) == 1
            for n in (1, 2, 5, MAX_ROWS, MAX_ROWS + 1, 17):
                for t in (1, 16, 37, 130):
                    feeds = feeds_of(graph, {"rows": n, "keys": t, "batch": 1 + t % 2}, case.get("mask"))
                    with np.errstate(invalid="ignore"):
                        (want,) = interpret(graph, feeds)
                    (got,) = model.run(feeds)
                    assert relative_error(got, want) < 1e-5
                    results.setdefault((n, t), []).append(got.copy())
    assert all(np.array_equal(a, b) for a, b in results.values())


def test_nothing_is_packed_for_few_rows():
    keys = Var("keys", span=Span(1))
    for rows, packed in ((1, False), (MAX_ROWS, False), (MAX_ROWS + 1, True)):
        (program,) = programs(attention(rows, keys))
        sch = schedule_program(program, get_target("native"))
        assert not isinstance(sch.program.body, If) and not sch.fallback
        assert any(call.name == "transform_layout" for call in sch.trace.instructions) == packed


def test_one_schedule_where_rows_are_keys():
    size = Var("size", span=Span(1, 512))
    (program,) = programs(attention(size, size))
    sch = schedule_program(program, get_target("native"))
    assert not isinstance(sch.program.body, If) and not sch.fallback
