"""Checks one operator: inference against NumPy's result, and the recipe, run by the loop interpreter, against NumPy."""
from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.core.dtype import dtype
from tilewright.graph import interpret
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.ir import Graph, Operation, tensor_type
from tilewright.graph.registry import record_of
from tilewright.loop import interpret as loop_interpret
from tilewright.loop.ir import Var
from tilewright.loop.verify import verify
from tilewright.tensor.compute import create_program, placeholder


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def floats(*shape: int, low: float = -3.0, high: float = 3.0, seed: int = 0, type: Any = np.float32) -> Any:
    return rng(seed).uniform(low, high, shape).astype(type)


def ints(*shape: int, low: int = -9, high: int = 10, seed: int = 0, type: Any = np.int64) -> Any:
    return rng(seed).integers(low, high, shape).astype(type)


def build(op: str, arrays: list[Any], attrs: dict[str, Any] | None = None, shapes: Any = None) -> Graph:
    """A graph of one operation; `shapes` may give symbolic shapes to inputs; None is an absent operand."""
    b = GraphBuilder()
    values = [None if a is None else b.input(f"x{k}", tensor_type(dtype(a.dtype), (shapes or {}).get(k, a.shape)))
              for k, a in enumerate(arrays)]
    return b.finish(b.add_all(op, values, attrs))


def reference(graph: Graph, arrays: list[Any]) -> list[Any]:
    """NumPy's results; the interpreter checks them against the inferred types."""
    return interpret.run(graph, [a for a in arrays if a is not None])


def run_recipe(op: Operation, arrays: list[Any], wanted: list[Any]) -> list[Any]:
    """The default recipe as a program, run scalar by scalar."""
    rec = record_of(op)
    assert rec.compute is not None, f"{op.op} has no recipe"
    tensors = [None if v is None else placeholder(v.shape, v.dtype, v.name) for v in op.inputs]
    made = rec.compute(op, *tensors)
    outs = list(made) if isinstance(made, tuple) else [made]
    for t, v in zip(outs, op.outputs, strict=True):
        assert t.dtype is v.dtype and t.rank == v.rank, f"the recipe of {op.op} gives {t.dtype} of rank {t.rank}, not {v}"
    program = create_program(op.op, [t for t in tensors if t is not None], outs)
    sizes = {d: n for v, a in zip(op.inputs, arrays, strict=True) if v is not None
             for d, n in zip(v.shape, a.shape, strict=True) if isinstance(d, Var)}
    verify(program)
    results = [np.zeros(w.shape, w.dtype) for w in wanted]
    buffers = iter([*[np.array(a, order="C") for a in arrays if a is not None], *results])
    loop_interpret.run(program, [sizes[p] if isinstance(p, Var) else next(buffers) for p in program.params])
    return results


def check(op: str, arrays: list[Any], attrs: dict[str, Any] | None = None, *, shapes: Any = None, rtol: float = 1e-5,
          atol: float = 1e-6, recipe: bool = True) -> list[Any]:
    """Everything about one operation on small data; NumPy's results."""
    graph = build(op, arrays, attrs, shapes)
    wanted = reference(graph, arrays)
    if recipe:
        for got, want in zip(run_recipe(graph.operations[0], arrays, wanted), wanted, strict=True):
            if want.dtype.kind in "biu":
                np.testing.assert_array_equal(got, want)
            else:
                np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=rtol, atol=atol)
    return wanted
