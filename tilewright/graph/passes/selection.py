"""Some of many elements are selected before they are ordered.

    topk(x) {k}      →      the k-th largest key of each row; the places of what is above it, and of the first that are equal
                            to it, in order (running sums, a scatter); topk of these few

In: any Graph. Out: the same, without topk of k among more than twice as many elements, where that many comparisons of each
with each would be slow. A few are left to topk itself, which picks them one after the other.
"""
from __future__ import annotations

from collections.abc import Sequence

from tilewright.core.dtype import i64
from tilewright.graph.builder import GraphBuilder, rewrite
from tilewright.graph.infer import product
from tilewright.graph.ir import Graph, Operation, Value
from tilewright.graph.ops.order import MOST_PICKS
from tilewright.graph.passes.data_sizes import numbered
from tilewright.loop.ir import as_int, estimate

FEWEST = 64
"""Among fewer elements, all are compared with all."""


def select_before_ordering(graph: Graph) -> Graph:
    """Let only as many elements be ordered as are asked for."""
    return rewrite(graph, _selected)


def _selected(op: Operation, b: GraphBuilder) -> Sequence[Value] | None:
    if op.op != "topk":
        return None
    (x,), axis, k = op.inputs, op.attrs["axis"], as_int(op.attrs["k"])
    assert x is not None
    n = x.shape[axis]
    if k is None or k <= MOST_PICKS or estimate(n) < max(2 * k, FEWEST):
        return None
    order = [*[a for a in range(x.rank) if a != axis], axis]
    turned = x if axis == x.rank - 1 else b.add("transpose", [x], {"perm": order})
    rows = product(turned.shape[:-1])
    flat = b.reshape(turned, [rows, n])
    key = b.add("order_key", [flat], {"largest": op.attrs["largest"]})
    limit = b.reshape(b.add("kth_largest", [key], {"k": k}), [rows, 1])
    above, same = b.add("greater", [key, limit]), b.add("equal", [key, limit])
    many = b.add("reduce_sum", [b.add("cast", [above], {"to": i64})], {"axes": (1,), "keepdims": True})
    nth = b.add("cumsum", [b.add("cast", [same], {"to": i64})], {"axis": 1})
    first = b.add("less_equal", [nth, b.add("sub", [b.constant(k), many])])
    chosen = b.add("logical_or", [above, b.add("logical_and", [same, first])])
    place = b.add("sub", [b.add("cumsum", [b.add("cast", [chosen], {"to": i64})], {"axis": 1}), b.constant(1)])
    place = b.add("where", [chosen, place, b.constant(k)])  # what is not chosen goes to one place behind the end
    start = b.add("full", [], {"shape": (rows, k + 1), "value": 0, "dtype": i64})
    numbers = b.add("expand", [numbered(n, b)], {"shape": (rows, n)})
    found = b.slice(b.add("scatter_elements", [start, place, numbers], {"axis": 1}), {1: (0, k, 1)})
    few = b.add("gather_elements", [key, found], {"axis": 1})
    _, ranked = b.add_all("topk", [few], {"k": k, "axis": 1})
    at = b.add("gather_elements", [found, ranked], {"axis": 1})
    out = []
    for v, name in zip((b.add("gather_elements", [flat, at], {"axis": 1}), at), op.outputs, strict=True):
        v = b.reshape(v, [*turned.shape[:-1], k], name.name)
        back = [order.index(a) for a in range(x.rank)]
        out.append(v if axis == x.rank - 1 else b.add("transpose", [v], {"perm": back}, name=name.name))
    return out
