"""Dead code elimination: drops operations whose results nobody needs, regions included.

In: any Graph. Out: the same graph with only what its outputs depend on (inputs all stay: they are the interface).
"""
from __future__ import annotations

from tilewright.graph.ir import Graph, Operation, used_values


def remove_dead(graph: Graph) -> Graph:
    """Drop operations whose results nobody needs."""
    needed = set(graph.outputs)
    kept: list[Operation] = []
    changed = False
    for op in reversed(graph.operations):
        if not any(v in needed for v in op.outputs):
            changed = True
            continue
        regions = [remove_dead(r) for r in op.regions]
        if any(a is not b for a, b in zip(regions, op.regions, strict=True)):
            op = Operation(op.op, op.inputs, op.attrs, op.outputs, regions, op.loc)
            changed = True
        kept.append(op)
        needed.update(used_values(op))
    return graph.replace(operations=kept[::-1]) if changed else graph
