"""Reductions over rows as compiled code: against the graph interpreter over shapes, axes and dtypes, and that hot loops are
vectors."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.codegen.native import native
from tilewright.core.config import config
from tilewright.core.dtype import dtype
from tilewright.core.node import walk
from tilewright.driver import Stages, build
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.interpret import run as interpret
from tilewright.graph.ir import Graph, tensor_type
from tilewright.graph.lower import group_program
from tilewright.graph.passes.fuse import fuse
from tilewright.loop.ir import Allocate, Call, For, Module, Store, as_int, const
from tilewright.loop.lower.pipeline import lower
from tilewright.target.presets import get_target
from tilewright.tensor import compute as te
from tilewright.tensor.compute import compute, create_program, placeholder, reduce_axis
from tilewright.tensor.rules.dispatch import schedule_program

AVX512 = get_target("x86-64-v4")


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with config.override(cache_dir=tmp_path_factory.mktemp("cache"), compile_workers=1):
        yield


def graph(op: str, shape: tuple[int, ...], attrs: dict[str, Any], type: str = "f32", weights: int = 0) -> Graph:
    """One operation of one input and `weights` constants of the shape of the axes that it normalises."""
    b, rng = GraphBuilder("rows"), np.random.default_rng(2)
    of = shape[attrs["axis"]:] if "axis" in attrs else shape[1:2]
    constants = [b.constant(rng.standard_normal(of).astype(np.float32)) for _ in range(weights)]
    return b.finish(list(b.add_all(op, [b.input("x", tensor_type(type, shape)), *constants], attrs)))


def check(g: Graph, x: Any = None, target: str = "native", threads: int = 1, tolerance: float = 1e-6) -> list[Any]:
    """The compiled model's results; they differ from the interpreter's by `tolerance` of the largest value at most."""
    if x is None:
        t = g.inputs[0].type
        rng = np.random.default_rng(1)
        x = rng.standard_normal(t.sizes()) * 3 if t.dtype.is_float else rng.integers(-9, 9, t.sizes())
        x = x.astype(t.dtype.numpy())
    with build(Stages(optimized=g), get_target(target), "default", threads, lambda done, total: None) as model:
        got = [np.array(y) for y in model.run({"x": x})]
    for y, want in zip(got, interpret(g, {"x": x}), strict=True):
        assert y.dtype == want.dtype and y.shape == want.shape
        a, b = y.astype(np.float64), want.astype(np.float64)
        assert np.array_equal(np.isfinite(a), np.isfinite(b))
        ok = np.isfinite(b)
        assert np.abs(a[ok] - b[ok]).max(initial=0) <= tolerance * max(np.abs(b[ok]).max(initial=0), 1e-30)
        np.testing.assert_array_equal(a[~ok], b[~ok])
    return got


# ---- softmax, norms --------------------------------------------------------------------------------------------------
SOFTMAX = [((12, 16, 128), 2), ((5, 37), 1), ((3, 100), 1), ((2, 50257), 1), ((4, 1), 1), ((7, 3), 1), ((2, 13, 37), 1),
           ((1, 21, 9, 11), 1), ((2, 1000, 7), 1), ((40, 70), 0), ((64,), 0), ((3, 4, 5, 16), 2), ((8, 64), 1), ((4, 2), 1)]


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
@pytest.mark.parametrize("shape,axis", SOFTMAX, ids=str)
def test_softmax(op, shape, axis):
    check(graph(op, shape, {"axis": axis}))


@pytest.mark.parametrize("type", ["f16", "f64"])
def test_softmax_of_other_floats(type):
    check(graph("softmax", (5, 83), {"axis": 1}, type), tolerance=1e-3 if type == "f16" else 1e-14)


def test_softmax_of_large_and_missing_values():
    x = np.random.default_rng(0).standard_normal((6, 70)).astype(np.float32)
    x[0] = 1e4
    x[1, 3:] = -np.inf
    x[2, 5] = np.nan
    x[3, 69] = np.nan
    x[4] *= 1e30
    check(graph("softmax", (6, 70), {"axis": 1}), x)


NORMS = [((1, 9, 768), 2), ((3, 100), 1), ((4, 6, 5, 20), 2), ((2, 3, 7), 1), ((6, 4097), 1), ((16,), 0), ((8, 1), 1)]


@pytest.mark.parametrize("op,weights", [("layer_norm", 2), ("rms_norm", 1)])
@pytest.mark.parametrize("shape,axis", NORMS, ids=str)
def test_norms(op, weights, shape, axis):
    check(graph(op, shape, {"axis": axis}, weights=weights), tolerance=2e-6)


def test_instance_norm():
    check(graph("instance_norm", (2, 5, 13, 11), {}, weights=2), tolerance=2e-6)


# ---- plain reductions ------------------------------------------------------------------------------------------------
REDUCED = [((6, 100), (1,)), ((100, 70), (0,)), ((1, 5, 7, 7, 16), (2, 3)), ((2, 20, 7, 7), (2, 3)),
           ((3, 4, 29, 31), (2, 3)), ((2, 64, 33), (1,)), ((7, 9, 11), (0, 2)),
           ((5, 4, 6), (0, 1, 2)), ((1, 8, 65), (0, 1)), ((40, 41), (0, 1)), ((3, 1, 50), (1,)), ((2, 3, 1), (2,))]


@pytest.mark.parametrize("op", ["reduce_sum", "reduce_mean", "reduce_max"])
@pytest.mark.parametrize("shape,axes", REDUCED, ids=str)
def test_reductions(op, shape, axes):
    check(graph(op, shape, {"axes": axes, "keepdims": len(shape) % 2 == 0}))


TYPES = [("reduce_sum", "i32", 0.0), ("reduce_max", "i64", 0.0), ("reduce_min", "f64", 0.0), ("reduce_min", "u8", 0.0),
         ("reduce_max", "f16", 0.0), ("reduce_mean", "f16", 1e-3), ("reduce_prod", "f32", 1e-5),
         ("reduce_sum", "f64", 1e-14)]


@pytest.mark.parametrize("op,type,tolerance", TYPES)
def test_reductions_of_other_types(op, type, tolerance):
    for shape, axes in (((5, 75), (1,)), ((75, 20), (0,))):
        x = np.random.default_rng(1).uniform(0.5, 1.5, shape) * (1 if dtype(type).is_float else 9)
        check(graph(op, shape, {"axes": axes}, type), x.astype(dtype(type).numpy()), tolerance=tolerance)


@pytest.mark.parametrize("op", ["reduce_any", "reduce_all"])
def test_reductions_of_booleans(op):
    x = np.random.default_rng(0).random((6, 77)) < (0.01 if op == "reduce_any" else 0.99)
    check(graph(op, (6, 77), {"axes": (1,)}, "bool"), x)


@pytest.mark.parametrize("op", ["argmax", "argmin"])
@pytest.mark.parametrize("shape,axis", [((9, 100), 1), ((100, 40), 0), ((3, 70, 5), 1), ((4, 16), 1), ((5, 3), 1)], ids=str)
def test_arg_reductions_find_the_first_and_nan(op, shape, axis):
    rng = np.random.default_rng(4)
    x = rng.integers(-3, 3, shape).astype(np.float32)
    check(graph(op, shape, {"axis": axis}), x)
    x[rng.random(shape) < 0.01] = np.nan
    check(graph(op, shape, {"axis": axis}), x)


@pytest.mark.parametrize("target", ["x86-64-v2", "x86-64-v3"])
def test_other_vectors(target):
    check(graph("softmax", (5, 77), {"axis": 1}), target=target)
    check(graph("layer_norm", (5, 100), {"axis": 1}, weights=2), target=target, tolerance=2e-6)
    check(graph("reduce_mean", (1, 3, 7, 7, 16), {"axes": (2, 3)}), target=target)


def test_threads_do_not_change_a_bit():
    for g in (graph("softmax", (64, 9, 117), {"axis": 2}), graph("layer_norm", (129, 300), {"axis": 1}, weights=2),
              graph("reduce_sum", (300, 700), {"axes": (0,)})):
        for one, two in zip(check(g, tolerance=2e-6), check(g, threads=2, tolerance=2e-6), strict=True):
            np.testing.assert_array_equal(one, two)


def test_random_shapes():
    rng = np.random.default_rng(8)
    for _ in range(25):
        shape = tuple(int(n) for n in rng.integers(1, [7, 40, 40][-int(rng.integers(1, 4)):]))
        axis = int(rng.integers(len(shape)))
        op = ["softmax", "reduce_sum", "argmax", "layer_norm"][int(rng.integers(4))]
        attrs = {"axes": (axis,)} if op == "reduce_sum" else {"axis": axis}
        check(graph(op, shape, attrs, weights=2 if op == "layer_norm" else 0), tolerance=1e-5)


# ---- groups ----------------------------------------------------------------------------------------------------------
def test_what_is_around_a_norm_is_computed_with_its_rows():
    """A residual sum, itself an output, before; a bias and a transposition after."""
    n, m, k = 12, 6, 80
    x, y, bias = placeholder((n, m, k), "f32", "x"), placeholder((n, m, k), "f32", "y"), placeholder((k,), "f32", "bias")
    r, q = reduce_axis(k, "r"), reduce_axis(k, "q")
    s = compute((n, m, k), lambda i, j, c: x[i, j, c] + y[i, j, c], name="residual")
    mean = compute((n, m), lambda i, j: te.sum(s[i, j, r], axis=[r]), name="total")
    d = compute((n, m, k), lambda i, j, c: s[i, j, c] - mean[i, j] / float(k), name="center")
    v = compute((n, m), lambda i, j: te.sum(d[i, j, q] * d[i, j, q], axis=[q]), name="squares")
    z = compute((n, m, k), lambda i, j, c: d[i, j, c] / Call("sqrt", (v[i, j],), v.dtype) + bias[c], name="norm")
    out = compute((m, n, k), lambda j, i, c: z[i, j, c], name="turned")
    p = create_program("group", [x, y, bias], [s, out])
    sch = schedule_program(p, AVX512)
    module = lower(sch.program, AVX512)
    assert scalar_loops(module) == []
    assert len(module.programs) <= 2  # one loop over rows

    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(t).astype(np.float32) for t in ((n, m, k), (n, m, k), (k,)))
    total, got = np.zeros((n, m, k), np.float32), np.zeros((m, n, k), np.float32)
    native_target = get_target("native")
    module = lower(schedule_program(p, native_target).program, native_target)
    assert native(module, [a, b, c, total, got]) == 0
    e = (a + b).astype(np.float64)
    e -= e.mean(-1, keepdims=True)
    want = (e / np.sqrt((e * e).sum(-1, keepdims=True)) + c).transpose(1, 0, 2)
    np.testing.assert_array_equal(total, a + b)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_stages_that_do_not_differ_between_rows_are_computed_once():
    x, w, r = placeholder((50, 64), "f32", "x"), placeholder((64,), "f32", "w"), reduce_axis(64, "r")
    e = compute((64,), lambda c: Call("exp", (w[c],), w.dtype), name="weights")
    s = compute((50,), lambda i: te.sum(x[i, r] * const(2.0, x.dtype), axis=[r]), name="total")
    y = compute((50, 64), lambda i, c: x[i, c] * e[c] + s[i] + e[c], name="y")
    p = create_program("once", [x, w], [y])
    target = get_target("native")
    module = lower(schedule_program(p, target).program, target)
    a, b = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32), np.linspace(0, 1, 64, dtype=np.float32)
    got = np.zeros((50, 64), np.float32)
    scratch = [np.zeros([as_int(d) for d in q.shape], np.float32) for q in module.programs[0].params[3:]]
    assert native(module, [a, b, got, *scratch]) == 0
    np.testing.assert_allclose(got, a * np.exp(b) + 2 * a.sum(1, keepdims=True) + np.exp(b), rtol=1e-5, atol=1e-5)


# ---- the code --------------------------------------------------------------------------------------------------------
def module_of(g: Graph) -> Module:
    (group,) = (x for x in fuse(g) if x.kind == "kernel")
    return lower(schedule_program(group_program(group, "kernel").program, AVX512).program, AVX512)


def scalar_loops(module: Module) -> list[For]:
    """Innermost loops of more than four steps that store scalars only."""
    return [f for p in module.programs for f in walk(p.body) if isinstance(f, For) and (as_int(f.extent) or 5) > 4
            and not any(isinstance(n, For) for n in walk(f.body))
            and all(n.value.dtype.lanes == 1 for n in walk(f.body) if isinstance(n, Store))]


VECTORS = [("softmax", (12, 128, 128), {"axis": 2}, 0, ["reduce_add", "reduce_max"]),
           ("softmax", (64, 50257), {"axis": 1}, 0, ["reduce_add", "reduce_max"]),
           ("softmax", (1, 21, 64, 64), {"axis": 1}, 0, []),
           ("layer_norm", (1, 128, 768), {"axis": 2}, 2, ["reduce_add"]),
           ("reduce_mean", (1, 32, 7, 7, 16), {"axes": (2, 3)}, 0, []),
           ("reduce_max", (128, 768), {"axes": (0,)}, 0, []),
           ("reduce_sum", (1, 64, 56, 56), {"axes": (2, 3)}, 0, ["reduce_add"])]


@pytest.mark.parametrize("op,shape,attrs,weights,horizontal", VECTORS, ids=str)
def test_hot_loops_are_vectors(op, shape, attrs, weights, horizontal):
    module = module_of(graph(op, shape, attrs, weights=weights))
    assert scalar_loops(module) == []
    calls = {n.name for p in module.programs for n in walk(p.body) if isinstance(n, Call)}
    assert sorted(c for c in calls if c.startswith("reduce_")) == horizontal


def test_accumulators_are_several_vectors():
    module = module_of(graph("reduce_sum", (1000, 4096), {"axes": (1,)}))
    sizes = [np.prod([as_int(d) for d in n.buffer.shape]) for p in module.programs for n in walk(p.body)
             if isinstance(n, Allocate)]
    assert 64 in sizes and max(sizes) == 64


@pytest.mark.parametrize("op", ["reduce_sum", "reduce_mean", "reduce_max"])
@pytest.mark.parametrize("shape", [(1, 600000), (3, 100000), (2, 65537)], ids=str)
def test_few_long_rows_are_reduced_in_blocks_whatever_the_number_of_threads(op: str, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(3).random(shape).astype(np.float32)
    g = graph(op, shape, {"axes": (1,), "keepdims": False})
    one, two = (check(g, x, threads=t, tolerance=4e-6) for t in (1, 2))
    np.testing.assert_array_equal(one[0], two[0])
    if shape[1] % 1000 == 0:  # it has a part of the size of a block
        exact = {"reduce_sum": np.sum, "reduce_mean": np.mean, "reduce_max": np.max}[op](x.astype(np.float64), axis=1)
        np.testing.assert_allclose(one[0], exact, rtol=2e-7)
