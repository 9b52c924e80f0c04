"""The graph interpreter: runs a graph operation by operation with NumPy. The reference meaning, and the oracle in tests.

In: a Graph and one array per input. Out: one array per output. Symbols of the inputs' shapes take their values from the
arrays; sizes that depend on data take theirs when the value is produced. Every result is checked against its type.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.core.errors import InternalError, UserError
from tilewright.graph.ir import Graph, Operation, TensorType, Value
from tilewright.graph.registry import Array, numeric_attrs, record_of
from tilewright.loop.ir import Expr, Var, as_int, const
from tilewright.loop.simplify import simplify
from tilewright.loop.substitute import free_vars, substitute

Observer = Callable[[Operation, tuple[Array, ...]], None]


def run(graph: Graph, inputs: Mapping[str, Any] | Sequence[Any], *, symbols: Mapping[str, int] | None = None,
        observe: Observer | None = None) -> list[Array]:
    """The graph's outputs. `inputs` in order or by name; `symbols` gives sizes that no input's shape tells, by name;
    `observe` sees every operation of the graph itself with its results. UserError where an input does not fit."""
    frame = _Frame(graph, None)
    frame.named = dict(symbols or {})
    for v, array in zip(graph.inputs, _in_order(graph, inputs), strict=True):
        frame.set_input(v, np.asarray(array))
    return frame.run(observe)


def apply(op: Operation, arrays: Sequence[Array | None],
          size: Callable[[Expr], int] | None = None) -> tuple[Array, ...]:
    """One operation without regions on arrays; `size` evaluates the sizes among its attributes where they are no numbers."""
    rec = record_of(op)
    if rec.numpy is None or op.regions:
        raise InternalError(f"{op.op} cannot be applied by itself")
    result = rec.numpy(numeric_attrs(rec, op.attrs, size), *arrays)
    return tuple([np.asarray(r) for r in (result if isinstance(result, tuple) else (result,))])


def _in_order(graph: Graph, inputs: Mapping[str, Any] | Sequence[Any]) -> list[Any]:
    names = [v.name for v in graph.inputs]
    if isinstance(inputs, Mapping):
        for name in inputs:
            if name not in names:
                raise UserError("input-unknown", f"the graph has no input {name!r}", hint="inputs: " + ", ".join(names))
        missing = [n for n in names if n not in inputs]
        if missing:
            raise UserError("input-missing", f"no array was given for {', '.join(missing)}")
        return [inputs[n] for n in names]
    if len(inputs) != len(names):
        raise UserError("input-count", f"the graph takes {len(names)} inputs ({', '.join(names)}), {len(inputs)} were given")
    return list(inputs)


class _Frame:
    """The values of one graph or region while it runs; a region looks up in the frame around it."""

    def __init__(self, graph: Graph, outer: _Frame | None) -> None:
        self.graph, self.outer = graph, outer
        self.values: dict[Value, Array] = {}
        self.sizes: dict[Var, int] = {}
        self.named: dict[str, int] = {}

    # ---- sizes -------------------------------------------------------------------------------------------------------
    def size_of(self, v: Var) -> int | None:
        frame: _Frame | None = self
        while frame is not None:
            if v in frame.sizes:
                return frame.sizes[v]
            if v.name in frame.named:
                return frame.named[v.name]
            frame = frame.outer
        return None

    def evaluate(self, d: Expr) -> int:
        n = as_int(d)
        if n is not None:
            return n
        known = {v: self.size_of(v) for v in free_vars(d)}
        unknown = [v.name for v, size in known.items() if size is None]
        if unknown:
            raise UserError("symbol-unbound", f"the size {', '.join(unknown)} is not known from the inputs",
                            hint="give it in `symbols`")
        n = as_int(simplify(substitute(d, {v: const(size) for v, size in known.items()})))
        if n is None:
            raise InternalError(f"the size {d} does not come out as a number")
        return n

    def fits(self, t: TensorType, array: Array) -> bool:
        """Whether an array has a type; free symbols among the dimensions take their value from it."""
        if array.dtype != t.dtype.numpy() or array.ndim != t.rank:
            return False
        for d, n in zip(t.shape, array.shape, strict=True):
            if isinstance(d, Var) and self.size_of(d) is None:
                self.sizes[d] = n
        return all(any(self.size_of(v) is None for v in free_vars(d)) or self.evaluate(d) == n
                   for d, n in zip(t.shape, array.shape, strict=True))

    # ---- values ------------------------------------------------------------------------------------------------------
    def set_input(self, v: Value, array: Array) -> None:
        if not self.fits(v.type, array):
            raise UserError("input-mismatch", f"the input %{v.name} is {v.type}, the array is {array.dtype}"
                            f"{list(array.shape)}")
        self.values[v] = array

    def get(self, v: Value | None) -> Array | None:
        if v is None:
            return None
        if v.data is not None:
            return v.data
        frame: _Frame | None = self
        while frame is not None:
            if v in frame.values:
                return frame.values[v]
            frame = frame.outer
        raise InternalError(f"%{v.name} is used before it is defined")

    def run(self, observe: Observer | None = None) -> list[Array]:
        for op in self.graph.operations:
            results = self.operation(op)
            if observe is not None:
                observe(op, results)
        return [np.asarray(self.get(v)) for v in self.graph.outputs]

    def operation(self, op: Operation) -> tuple[Array, ...]:
        rec = record_of(op)
        if rec.numpy is None:
            raise InternalError(f"{op.op} has no NumPy meaning")
        attrs = numeric_attrs(rec, op.attrs, self.evaluate)
        if op.regions:
            attrs["regions"] = [Body(r, self) for r in op.regions]
        result = rec.numpy(attrs, *[self.get(v) for v in op.inputs])
        arrays = tuple([np.asarray(r) for r in (result if isinstance(result, tuple) else (result,))])
        if op.op == "sizes":
            for s, n in zip(op.attrs["symbols"], arrays[0].ravel().tolist(), strict=True):
                if s.span is not None and n not in s.span:
                    raise UserError("run-shape", f"the size {s.name} is not in {s.span}: {n}", where=op.loc)
                self.sizes[s] = n
        for v, array in zip(op.outputs, arrays, strict=True):
            if not self.fits(v.type, array):
                raise InternalError(f"{op}: %{v.name} should be {v.type}, NumPy gives {array.dtype}{list(array.shape)}")
            self.values[v] = array
        return arrays


class Body:
    """A region as a function of arrays; `types` are those of its results."""

    def __init__(self, graph: Graph, outer: _Frame) -> None:
        self.graph, self.outer = graph, outer
        self.types = [v.type for v in graph.outputs]

    def __call__(self, *arrays: Array) -> list[Array]:
        frame = _Frame(self.graph, self.outer)
        for v, array in zip(self.graph.inputs, arrays, strict=True):
            frame.set_input(v, array)
        return frame.run()
