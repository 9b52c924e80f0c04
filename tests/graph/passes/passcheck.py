"""Checks passes: a graph before and after gives the same results, and only what is expected is left of it."""
from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from tilewright.core.dtype import dtype
from tilewright.graph import interpret
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.ir import Graph, Value, tensor_type
from tilewright.graph.passes.fuse import Group, fuse
from tilewright.graph.registry import record_of
from tilewright.graph.verify import verify


class Net(GraphBuilder):
    """A builder with short names; weights come from a seeded generator."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)

    def x(self, *shape: Any, type: str = "f32") -> Value:
        return self.input(f"x{len(self.inputs)}", tensor_type(dtype(type), shape))

    def w(self, *shape: int, low: float = -0.5, high: float = 0.5) -> Value:
        return self.constant(self.rng.uniform(low, high, shape).astype(np.float32), "w")

    def n(self, number: float) -> Value:
        return self.constant(np.float32(number), "n")

    def op(self, name: str, *inputs: Value | None, **attrs: Any) -> Value:
        return self.add(name, inputs, attrs)

    def conv(self, x: Value, out: int, kernel: int, *, stride: int = 1, pad: int | None = None, group: int = 1,
             bias: bool = True) -> Value:
        c = x.type.sizes()[1]
        p = kernel // 2 if pad is None else pad
        y = self.op("conv", x, self.w(out, c // group, kernel, kernel), strides=(stride, stride), pads=(p,) * 4, group=group)
        return self.op("add", y, self.w(1, out, 1, 1)) if bias else y


def data(graph: Graph, seed: int = 1) -> list[Any]:
    rng = np.random.default_rng(seed)
    out = []
    for v in graph.inputs:
        shape = v.type.sizes()
        out.append(rng.integers(-4, 5, shape).astype(v.dtype.numpy()) if v.dtype.is_int
                   else (rng.integers(0, 2, shape) == 1) if v.dtype.is_bool
                   else rng.uniform(-2, 2, shape).astype(v.dtype.numpy()))
    return out


def same(before: Graph, after: Graph, rtol: float = 1e-5, atol: float = 1e-6) -> Graph:
    """Both graphs give the same results on random inputs; the second graph."""
    assert [v.type for v in after.inputs] == [v.type for v in before.inputs]
    assert after.output_names == before.output_names
    verify(after)
    arrays = data(before)
    for got, want in zip(interpret.run(after, arrays), interpret.run(before, arrays), strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
        if want.dtype.kind in "biu":
            np.testing.assert_array_equal(got, want)
        else:
            np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)
    return after


def names(graph: Graph) -> list[str]:
    return [op.op for op in graph.operations]


def counts(graph: Graph) -> Counter[str]:
    return Counter(names(graph))


def run_groups(graph: Graph, groups: list[Group], arrays: list[Any]) -> list[Any]:
    """Run a graph group by group: each sees only what is stored before it, and stores only its outputs."""
    stored: dict[Value, Any] = dict(zip(graph.inputs, arrays, strict=True))
    for g in groups:
        assert all(v in stored or v.is_constant for v in g.inputs), f"{g.operations} reads what is not there yet"
        inner = {v: stored.get(v, v.data) for v in g.inputs}
        for op in g.operations:
            results = interpret.apply(op, [None if v is None else inner.get(v, v.data) for v in op.inputs])
            inner.update(zip(op.outputs, results, strict=True))
        stored.update({v: inner[v] for v in g.outputs})
    return [stored.get(v, v.data) for v in graph.outputs]


def check_groups(graph: Graph) -> list[Group]:
    """Fusion gives groups that run to the same results; nothing is computed twice except views."""
    groups = fuse(graph)
    arrays = data(graph)
    for got, want in zip(run_groups(graph, groups, arrays), interpret.run(graph, arrays), strict=True):
        np.testing.assert_array_equal(got, want)
    seen = Counter(id(op) for g in groups for op in g.operations)
    work = [op for g in groups for op in g.operations if record_of(op).fusion != "view"]
    assert all(seen[id(op)] == 1 for op in work)
    assert {id(op) for op in graph.operations if record_of(op).fusion != "view"} == {id(op) for op in work}
    return groups


def kernels(groups: list[Group]) -> list[str]:
    return [" ".join(op.op for op in g.operations) for g in groups if g.kind == "kernel"]
