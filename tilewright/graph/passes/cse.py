"""Common subexpression elimination: operations that apply the same operator to the same values are done once.

In: any Graph. Out: the same graph, where equal operations (operator, operands, attributes) and equal small constants are
one. Operations with regions are left alone, but their regions are searched: what a region repeats from outside is taken
from there.
"""
from __future__ import annotations

from typing import Any

from tilewright.graph.builder import GraphBuilder, rewrite
from tilewright.graph.ir import Graph, Operation, Value
from tilewright.graph.passes.dce import remove_dead

SMALL_BYTES = 4096
"""Constants of at most this size are compared by content, larger ones by identity of their memory."""


def merge_equal(graph: Graph) -> Graph:
    """Do equal operations once."""
    return remove_dead(_Merge(graph).run(graph))


class _Merge:
    """One walk; `first` maps what an operation computes to the values that have it. Scopes follow builders: a region sees
    what the graphs around it have computed before it, not the other way round."""

    def __init__(self, graph: Graph) -> None:
        self.first: dict[Any, tuple[Value, ...]] = {}
        self.paths: dict[Value, tuple[int, ...]] = {}
        self._enter(graph, (0,))

    def _enter(self, graph: Graph, path: tuple[int, ...]) -> None:
        """Note in which region each value is made, as the path to it."""
        for k, op in enumerate(graph.operations):
            for v in op.outputs:
                self.paths[v] = path
            for j, region in enumerate(op.regions):
                self._enter(region, (*path, k, j))

    def run(self, graph: Graph) -> Graph:
        return rewrite(graph, self.visit)

    def visit(self, op: Operation, b: GraphBuilder) -> tuple[Value, ...] | None:
        if op.regions or not op.outputs:
            return None
        path = self.paths[op.outputs[0]]
        key = (op.op, tuple([_operand(v) for v in op.inputs]), tuple([(k, _attr(a)) for k, a in op.attrs.items()]))
        for end in range(len(path), 0, -2):
            known = self.first.get((path[:end], key))
            if known is not None:
                return known
        self.first[path, key] = op.outputs
        return None


def _operand(v: Value | None) -> Any:
    if v is None or v.data is None:
        return v
    if v.data.nbytes <= SMALL_BYTES:
        return (v.dtype.name, v.data.shape, v.data.tobytes())
    where = v.data.__array_interface__
    return (v.dtype.name, v.data.shape, where["data"][0], v.data.strides)


def _attr(value: Any) -> Any:
    """Attributes are hashable; 1, 1.0 and True must not be mixed up, nor 0.0 and -0.0."""
    return (type(value).__name__, repr(value)) if isinstance(value, int | float) else value
