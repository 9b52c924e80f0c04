"""Help for passes that look for patterns: a walk with rules by operator name, and questions about values.

A rule is a function (operation, Walk) → the values that stand for its outputs, or None. Rules see operations in order,
with their inputs already replaced; what a rule adds is seen in the next round. `apply` repeats until nothing changes.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tilewright.core.errors import InternalError
from tilewright.graph.builder import GraphBuilder, rewrite
from tilewright.graph.infer import constant_of
from tilewright.graph.ir import Graph, Operation, Value
from tilewright.graph.passes.dce import remove_dead
from tilewright.loop.ir import Expr, as_int

Result = Value | Sequence[Value] | None
Rule = Callable[[Operation, "Walk"], Result]
MAX_ROUNDS = 100


class Walk:
    """What rules may ask during one walk over a graph: who makes a value, and whether one operation alone reads it."""

    def __init__(self, graph: Graph) -> None:
        self.b = GraphBuilder()
        self._made: dict[Value, Operation] = {}
        self._seen: dict[GraphBuilder, int] = {}
        self._readers: dict[Value, int] = {}
        self._count(graph)

    def _count(self, graph: Graph) -> None:
        for op in graph.operations:
            for v in dict.fromkeys(op.inputs):
                if v is not None:
                    self._readers[v] = self._readers.get(v, 0) + 1
            for region in op.regions:
                self._count(region)
        for v in graph.outputs:
            self._readers[v] = self._readers.get(v, 0) + 2

    def enter(self, b: GraphBuilder, op: Operation) -> None:
        """Look at what was added to the builder since the last call, and at the operation whose turn it is."""
        self.b = b
        self._made.update({v: op for v in op.outputs})
        for op in b.operations[self._seen.get(b, 0):]:
            for v in op.outputs:
                self._made[v] = op
        self._seen[b] = len(b.operations)

    def shared(self, v: Value) -> None:
        """From now on, `v` counts as read by several: it stands for another value too."""
        self._readers[v] = self._readers.get(v, 0) + 2

    def producer(self, v: Value | None, *names: str) -> Operation | None:
        """The operation that makes `v`, if its operator is one of `names` (any, if none are given)."""
        op = None if v is None else self._made.get(v)
        return op if op is not None and (not names or op.op in names) else None

    def lone(self, v: Value) -> bool:
        """Whether exactly one operation reads `v`, and the graph does not give it out. False for what was just added."""
        return self._readers.get(v, 0) == 1


def apply(graph: Graph, rules: Mapping[str, Sequence[Rule]], *, everywhere: Sequence[Rule] = ()) -> Graph:
    """Apply rules by operator name, and those of `everywhere` to all, until none has anything to change."""
    for _ in range(MAX_ROUNDS):
        walk = Walk(graph)

        def step(op: Operation, b: GraphBuilder, walk: Walk = walk) -> Result:
            for rule in (*rules.get(op.op, ()), *everywhere):
                walk.enter(b, op)
                before = len(b.operations)
                result = rule(op, walk)
                if result is not None:
                    fresh = {v for o in b.operations[before:] for v in o.outputs}
                    for v in [result] if isinstance(result, Value) else result:
                        if v not in fresh:
                            walk.shared(v)
                    return result
                del b.operations[before:]
            return None
        new = rewrite(graph, step)
        if new is graph:
            return graph
        graph = remove_dead(new)
    raise InternalError(f"{graph.name}: rewriting does not come to an end after {MAX_ROUNDS} rounds")


# ---- questions about values ------------------------------------------------------------------------------------------
def splat(v: Value | None) -> float | int | bool | None:
    """The number that every element of a constant has; None if there is no such number."""
    a = constant_of(v)
    if a is None or a.size == 0:
        return None
    first = a.flat[0]
    if a.size > 1 and not (a.flat[-1] == first and bool(np.all(a == first))):
        return None
    number = first.item()
    return float(number) if not isinstance(number, bool | int) else number


def is_number(v: Value | None, number: float) -> bool:
    """Whether a constant holds this number everywhere, up to the rounding of its type."""
    x = splat(v)
    if x is None or v is None or isinstance(x, bool):
        return False
    return abs(x - number) <= 4 * epsilon(v) * abs(number)


def epsilon(v: Value) -> float:
    """The distance from 1 to the next number of a value's type; 0 for integers."""
    if not v.dtype.is_float:
        return 0.0
    return {2: 2.0**-7 if v.dtype.name == "bf16" else 2.0**-10, 4: 2.0**-23, 8: 2.0**-52}.get(v.dtype.nbytes, 0.0)


def same_shape(a: Value, b: Value) -> bool:
    return a.shape == b.shape


def sizes(v: Value) -> tuple[int, ...] | None:
    """The shape as numbers, None if a dimension is symbolic."""
    out = [as_int(d) for d in v.shape]
    return None if None in out else tuple([d for d in out if d is not None])


def with_constant(op: Operation) -> tuple[Value, Value] | None:
    """(variable, constant) of an operation of two operands of which exactly one is constant, in either order."""
    a, b = op.inputs
    if a is None or b is None or a.is_constant == b.is_constant:
        return None
    return (b, a) if a.is_constant else (a, b)


def reshaped(v: Value, shape: Sequence[Expr], b: GraphBuilder) -> Value:
    """The value in another shape; a constant at once."""
    if v.data is not None and all(as_int(d) is not None for d in shape):
        return b.constant(v.data.reshape([as_int(d) for d in shape]), name=v.name)
    return b.reshape(v, shape, v.name)


def map_regions(graph: Graph, f: Callable[[Graph], Graph]) -> Graph:
    """The graph with `f` applied to every region of its own operations (for passes that look at one graph at a time)."""
    out, changed = [], False
    for op in graph.operations:
        regions = [f(r) for r in op.regions]
        if any(a is not b for a, b in zip(regions, op.regions, strict=True)):
            op, changed = Operation(op.op, op.inputs, op.attrs, op.outputs, regions, op.loc), True
        out.append(op)
    return graph.replace(operations=out) if changed else graph
