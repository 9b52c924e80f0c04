"""Weights that stay packed, and those that do not.

In: a graph in which `unpack_weights` expands codes. Out: the same graph where that is left only in front of products whose
kernels expand weights while they stream them; elsewhere the expanded weights are constants: small ones, those that others
read too, and all on devices and with strict numerics.

    matmul(x, unpack_weights(codes, scales))      stays
    gather(unpack_weights(codes, scales), i)      →   gather(constant, i)
"""
from __future__ import annotations

from collections.abc import Sequence

from tilewright.graph import interpret
from tilewright.graph.builder import GraphBuilder, rewrite
from tilewright.graph.infer import element_count
from tilewright.graph.ir import Graph, Operation, Value
from tilewright.graph.passes.dce import remove_dead
from tilewright.graph.passes.match import map_regions
from tilewright.target.target import Target

SMALLEST = 1 << 16
"""Weights from which packing pays: fewer are 256 KiB, and stay in the cache between runs."""


def expand_weights(graph: Graph, target: Target, exact: bool = False, smallest: int = SMALLEST) -> Graph:
    """Expand what no product on a CPU streams. `exact`: all of it."""
    graph = map_regions(graph, lambda region: expand_weights(region, target, exact, smallest))
    users, outputs = graph.users(), set(graph.outputs)

    def streamed(op: Operation) -> bool:
        return (not exact and not target.is_gpu and op.output not in outputs
                and are_streamed(op.output, users.get(op.output, []), smallest))

    def rule(op: Operation, b: GraphBuilder) -> Value | None:
        if op.op != "unpack_weights" or streamed(op) or not all(v is None or v.data is not None for v in op.inputs):
            return None
        (array,) = interpret.apply(op, [None if v is None else v.data for v in op.inputs])
        return b.constant(array, op.output.name)
    return remove_dead(rewrite(graph, rule, regions=False))


def are_streamed(weights: Value, readers: Sequence[Operation], smallest: int = SMALLEST) -> bool:
    """Whether weights are worth packing, and only products read them."""
    return (element_count(weights.type) or 0) >= smallest and all(_multiplies(r, weights) for r in readers)


def _multiplies(reader: Operation, weights: Value) -> bool:
    """Whether an operation is a product with these weights on its right."""
    a, w = reader.inputs if reader.op == "matmul" else (None, None)
    return w is weights and a is not weights and not reader.attrs["transpose_b"]
