"""Sizes that depend on data get their values in two steps: a kernel counts, the host reads the count as a symbol.

In: any Graph. Out: the same graph, in which every symbol that an operation gives belongs to a `sizes` operation or to one
with regions.

    y = nonzero(x) : i64[2, n]      →      sizes(sum(x != 0)) {symbols=[n]}; y from the running sum, a scatter and a slice
    y = range(a, b, c) : f32[n]     →      sizes(ceil((b - a) / c)) {symbols=[n]}; y = range(a, b, c) {length=n}
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.core.dtype import boolean, f64, i64
from tilewright.graph.builder import GraphBuilder, rewrite
from tilewright.graph.infer import product
from tilewright.graph.ir import Graph, Operation, Value
from tilewright.loop.ir import Expr, Var


def bind_sizes(graph: Graph) -> Graph:
    """Let the host read the sizes that data decide."""
    return rewrite(graph, lambda op, b: _RULES[op.op](op, b) if op.op in _RULES else None)


def _nonzero(op: Operation, b: GraphBuilder) -> Value | None:
    (x,), n = op.inputs, op.output.shape[1]
    assert x is not None
    if not isinstance(n, Var):
        return None
    total = product(x.shape)
    mask = b.add("cast", [b.reshape(x, [total])], {"to": boolean})
    ones = b.add("cast", [mask], {"to": i64})
    count = b.add("reduce_sum", [ones], {"axes": (0,), "keepdims": False})
    b.add("sizes", [count], {"symbols": (n,)}, loc=op.loc)
    # each element's number goes to its place; those that are zero all go to one place behind the end
    place = b.add("where", [mask, b.add("sub", [b.add("cumsum", [ones], {"axis": 0}), b.constant(1)]), count])
    numbers = numbered(total, b)
    start = b.add("full", [], {"shape": (n + 1,), "value": 0, "dtype": i64})
    found = b.add("scatter_elements", [start, place, numbers], {"axis": 0})
    return b.add("unravel", [b.slice(found, {0: (0, n, 1)})], {"shape": x.shape}, name=op.output.name)


def numbered(count: Expr, b: GraphBuilder) -> Value:
    """0, 1, … as many as `count` says."""
    zero = b.constant(0)
    return b.add("range", [zero, zero, b.constant(1)], {"length": count})


def _range(op: Operation, b: GraphBuilder) -> Value | None:
    n = op.output.shape[0]
    if op.attrs["length"] is not None or not isinstance(n, Var) or n.name != "range_length":
        return None
    wide = [b.add("cast", [v], {"to": f64}) for v in op.inputs]
    steps = b.add("ceil", [b.add("div", [b.add("sub", [wide[1], wide[0]]), wide[2]])])
    none = b.add("equal", [wide[2], b.constant(0.0)])
    count = b.add("max", [b.add("cast", [b.add("where", [none, b.constant(0.0), steps])], {"to": i64}), b.constant(0)])
    b.add("sizes", [b.add("where", [none, b.constant(-1), count])], {"symbols": (n,)}, loc=op.loc)
    return b.add("range", op.inputs, {"length": n}, name=op.output.name)


_RULES: dict[str, Callable[[Operation, GraphBuilder], Value | Sequence[Value] | None]] = {
    "nonzero": _nonzero, "range": _range}
