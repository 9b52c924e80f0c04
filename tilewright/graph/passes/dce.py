"""Dead code elimination: drops operations whose results nobody needs, regions included.

In: any Graph. Out: the same graph with only what its outputs depend on (inputs all stay: they are the interface). An
operation is also needed where it gives a symbol its value that is used as a size.
"""
from __future__ import annotations

from collections.abc import Iterable

from tilewright.graph.ir import Graph, Operation, used_values
from tilewright.graph.symbols import defining_operations, needed_symbols, symbols_of
from tilewright.loop.ir import Var


def remove_dead(graph: Graph, known: Iterable[Var] = ()) -> Graph:
    """Drop operations whose results nobody needs. `known`: symbols of the graphs around."""
    needed = set(graph.outputs)
    defined_by = defining_operations(graph, known)
    inside = {*known, *defined_by, *symbols_of(d for v in graph.inputs for d in v.shape)}
    sized = {id(op) for op in defined_by.values()}
    used: set[Var] = set(symbols_of(d for v in graph.outputs for d in v.shape))
    kept: list[Operation] = []
    changed = False
    for op in reversed(graph.operations):
        if not any(v in needed for v in op.outputs) and not (
                id(op) in sized and any(defined_by[s] is op for s in used if s in defined_by)):
            changed = True
            continue
        regions = [remove_dead(r, inside) for r in op.regions]
        if any(a is not b for a, b in zip(regions, op.regions, strict=True)):
            op = Operation(op.op, op.inputs, op.attrs, op.outputs, regions, op.loc)
            changed = True
        kept.append(op)
        needed.update(used_values(op))
        used.update(needed_symbols(op))
    return graph.replace(operations=kept[::-1]) if changed else graph
