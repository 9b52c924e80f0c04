"""Reverse-mode differentiation: operations that compute a value become operations that compute its gradients.

In: operations in order, the value y, and the values xs that it depends on. Out: for each of xs the gradient of the sum of
y's elements, computed by operations that are added to the builder. Each operator's rule is in its record.
"""
from __future__ import annotations

from collections.abc import Sequence

from tilewright.core.errors import UserError
from tilewright.graph.builder import GraphBuilder
from tilewright.graph.ir import Operation, Value, used_values
from tilewright.graph.ops.gradients import Arithmetic
from tilewright.graph.registry import record_of


def gradients(operations: Sequence[Operation], y: Value, xs: Sequence[Value], b: GraphBuilder) -> list[Value]:
    """Raises UserError "gradient-missing", which names all operators between xs and y that have no rule."""
    if not y.dtype.is_float:
        raise UserError("dtype-mismatch", f"%{y.name} is {y.type}: only floats have gradients")
    path = between(operations, y, xs)
    missing = [op for op in path if record_of(op).gradient is None and any(v.dtype.is_float for v in op.outputs)]
    if missing:
        lines = [f"\n  {op.loc or op.outputs[0].name} ({op.op})" for op in missing]
        raise UserError("gradient-missing", f"{len(missing)} operators have no gradient:" + "".join(lines))
    d = Arithmetic(b)
    found = {y: d("full", shape=y.shape, value=1, dtype=y.dtype)}
    wanted = {*xs, *[v for op in path for v in op.outputs]}
    for op in reversed(path):
        given = [found.get(v) for v in op.outputs]
        rule = record_of(op).gradient
        if rule is None or not any(given):
            continue
        for v, g in zip(op.inputs, rule(op, given, d), strict=True):
            if v is not None and g is not None and v in wanted and v.dtype.is_float:
                found[v] = d("add", found[v], g) if v in found else g
    return [found.get(x) or d.zeros(x) for x in xs]


def between(operations: Sequence[Operation], y: Value, xs: Sequence[Value]) -> list[Operation]:
    """The operations that depend on xs and on which y depends, in order."""
    after = set(xs)
    forward: list[Operation] = []
    for op in operations:
        if any(v in after for v in used_values(op)) and not any(v in xs for v in op.outputs):
            after |= set(op.outputs)
            forward.append(op)
    needed, out = {y}, list[Operation]()
    for op in reversed(forward):
        if any(v in needed for v in op.outputs):
            needed |= set(used_values(op)) - set(xs)
            out.append(op)
    return out[::-1]
