"""Scans become loops: a loop with a known number of turns that picks each step's slices and stacks each step's rows.

    y, rows = scan(s, x)      becomes      y, rows = loop(n, -, s) with x[turn] gathered inside

In: any Graph. Out: the same graph without `scan`: sequences are sliced along their axis, those read from the back at
n-1-turn; results that are stacked along another axis than the first, or from the back, are brought there afterwards.
"""
from __future__ import annotations

from collections.abc import Sequence

from tilewright.core.dtype import boolean, i64
from tilewright.graph.builder import GraphBuilder, rewrite
from tilewright.graph.ir import Graph, Operation, TensorType, Value, tensor_type
from tilewright.graph.registry import make
from tilewright.loop.ir import Expr, as_int


def scans_to_loops(graph: Graph) -> Graph:
    """Replace every scan of a known number of steps by a loop."""
    return rewrite(graph, _loop)


def _loop(op: Operation, b: GraphBuilder) -> Sequence[Value] | None:
    if op.op != "scan":
        return None
    (body,) = op.regions
    a, count = op.attrs, op.attrs["sequences"]
    states, sequences = op.inputs[:-count], op.inputs[-count:]
    first = sequences[0]
    assert first is not None
    steps = first.shape[a["in_axes"][0]]
    known = as_int(steps)
    if known is None:
        bound = b.reshape(b.slice(b.add("shape_of", [first]), {0: (a["in_axes"][0], a["in_axes"][0] + 1, 1)}), [])
    else:
        bound = b.constant(known, "steps", i64)
    turn, going = (Value(b.unique(n), tensor_type(t, ())) for n, t in (("turn", i64), ("going", boolean)))
    picks: list[Operation] = []
    for x, inside, axis, back in zip(sequences, body.inputs[len(states):], a["in_axes"], a["in_reverse"], strict=True):
        at = turn
        if back:
            last = b.constant(known - 1, "last", i64) if known is not None else b.add("sub", [bound, b.constant(1)])
            picks.append(make("sub", [last, turn], name=b.unique("from_back")))
            at = picks[-1].output
        gather = make("gather", [x, at], {"axis": axis}, name=inside.name)
        picks.append(Operation("gather", gather.inputs, gather.attrs, [inside]))
    region = Graph(body.name, [turn, going, *body.inputs[:len(states)]], [going, *body.outputs],
                   [*picks, *body.operations], checks=body.checks)
    types = [v.type for v in op.outputs[:len(states)]]
    for v, axis in zip(op.outputs[len(states):], a["out_axes"], strict=True):  # with the symbols that what follows knows
        types.append(TensorType(v.dtype, (steps, *v.shape[:axis], *v.shape[axis + 1:])))
    made = make("loop", [bound, None, *states], {}, name=op.outputs[0].name, loc=op.loc, regions=[region])
    results = list(b.append(Operation("loop", made.inputs, made.attrs, [Value(v.name, t, loc=v.loc) for v, t in zip(
        made.outputs, types, strict=True)], made.regions, made.loc)))
    for k, (axis, back) in enumerate(zip(a["out_axes"], a["out_reverse"], strict=True), len(states)):
        results[k] = _placed(results[k], axis, bool(back), steps, b)
    return results


def _placed(rows: Value, axis: int, back: bool, steps: Expr, b: GraphBuilder) -> Value:
    """Rows stacked along axis 0 in order of the turns, as the scan gives them."""
    if back:
        starts: list[Expr | int] = [steps - 1, *[0] * (rows.rank - 1)]
        rows = b.add("slice", [rows], {"starts": starts, "sizes": rows.shape, "steps": [-1, *[1] * (rows.rank - 1)]})
    if axis:
        rows = b.add("transpose", [rows], {"perm": [*range(1, axis + 1), 0, *range(axis + 1, rows.rank)]})
    return rows
