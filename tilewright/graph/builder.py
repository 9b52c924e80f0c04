"""Making and rewriting graphs: `GraphBuilder` appends operations, `rewrite` drives a pass over a graph."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import DType, dtype
from tilewright.core.errors import InternalError, UserError
from tilewright.graph import ops
from tilewright.graph.infer import constant_of, element_count, elements_of, product, same
from tilewright.graph.ir import Assumed, Check, Graph, Operation, TensorType, Value, tensor_type
from tilewright.graph.ops.view import slice_range
from tilewright.graph.registry import make
from tilewright.loop.ir import Expr, IntoExpr, Span, Var, as_int, const

assert ops.FAMILIES  # importing the package enters the operators


class GraphBuilder:
    """Builds one graph (or region) in order. Names of values are made unique; `loc` marks what is added next."""

    def __init__(self, name: str = "main", parent: GraphBuilder | None = None) -> None:
        self.name = name
        self.inputs: list[Value] = []
        self.operations: list[Operation] = []
        self.loc = ""
        self._names: dict[str, int] = parent._names if parent is not None else {}
        self.checks: list[Check] = []

    # ---- values ------------------------------------------------------------------------------------------------------
    def unique(self, name: str) -> str:
        """`name`, or with a number behind it if it is taken."""
        n = self._names.get(name)
        if n is None:
            self._names[name] = 0
            return name
        while True:
            n += 1
            trial = f"{name}_{n}"
            if trial not in self._names:
                self._names[name], self._names[trial] = n, 0
                return trial

    def input(self, name: str, type: TensorType) -> Value:
        v = Value(self.unique(name), type, loc=self.loc)
        self.inputs.append(v)
        return v

    def constant(self, array: Any, name: str = "const", element: DType | str | None = None) -> Value:
        """A constant; `element` converts it (Python numbers give i64, f64 or bool without it)."""
        data = np.asarray(array) if element is None else np.asarray(array).astype(dtype(element).numpy())
        return Value(self.unique(name), tensor_type(dtype(data.dtype), data.shape), data, loc=self.loc)

    # ---- operations --------------------------------------------------------------------------------------------------
    def add_all(self, op: str, inputs: Sequence[Value | None], attrs: dict[str, Any] | None = None, *, name: str = "",
                loc: str = "", regions: Sequence[Graph] = ()) -> tuple[Value, ...]:
        """Append an operation; its outputs."""
        made = make(op, inputs, attrs, name=name, loc=loc or self.loc, regions=regions)
        return self.append(made)

    def add(self, op: str, inputs: Sequence[Value | None], attrs: dict[str, Any] | None = None, *, name: str = "",
            loc: str = "", regions: Sequence[Graph] = ()) -> Value:
        """Append an operation of one output; that output."""
        outs = self.add_all(op, inputs, attrs, name=name, loc=loc, regions=regions)
        if len(outs) != 1:
            raise InternalError(f"{op} has {len(outs)} outputs: use add_all")
        return outs[0]

    def append(self, op: Operation) -> tuple[Value, ...]:
        """Append an operation that is already made; names of its outputs are made unique."""
        for v in op.outputs:
            v.name = self.unique(v.name)
        self.operations.append(op)
        return op.outputs

    def again(self, op: Operation, inputs: Sequence[Value | None], **attrs: Any) -> Any:
        """The same operation on other inputs, with some attributes changed, inferred anew: its output, or outputs."""
        outs = self.add_all(op.op, inputs, {**op.attrs, **attrs}, name=op.outputs[0].name if op.outputs else "",
                            loc=op.loc, regions=op.regions)
        return outs[0] if len(outs) == 1 else outs

    # ---- conveniences ------------------------------------------------------------------------------------------------
    def reshape(self, x: Value, shape: Iterable[IntoExpr], name: str = "") -> Value:
        return self.add("reshape", [x], {"shape": tuple(shape)}, name=name)

    def unsqueeze(self, x: Value, axes: Sequence[int]) -> Value:
        """`x` with axes of size 1 at the places `axes` of the result."""
        rank = x.rank + len(axes)
        new = {a % rank for a in axes}
        rest = iter(x.shape)
        return self.reshape(x, [const(1) if k in new else next(rest) for k in range(rank)])

    def squeeze(self, x: Value, axes: Sequence[int], name: str = "") -> Value:
        """`x` without its axes `axes`, which have size 1."""
        gone = {a % x.rank for a in axes}
        y = self.reshape(x, [d for k, d in enumerate(x.shape) if k not in gone], name)
        for k in gone:
            self.assume(x.shape[k], const(1), f"axis {k} of %{x.name}, which is left out")
        return y

    def slice(self, x: Value, bounds: dict[int, tuple[IntoExpr, IntoExpr, int]], name: str = "") -> Value:
        """Python's `[start:end:step]` along the given axes."""
        starts, sizes, steps = [const(0)] * x.rank, list(x.shape), [1] * x.rank
        for axis, (start, end, step) in bounds.items():
            k = axis % x.rank
            starts[k], sizes[k] = slice_range(x.shape[k], start, end, step)
            steps[k] = step
        return self.add("slice", [x], {"starts": starts, "sizes": sizes, "steps": steps}, name=name)

    def finish(self, outputs: Sequence[Value], output_names: Sequence[str] | None = None) -> Graph:
        return Graph(self.name, self.inputs, outputs, self.operations, output_names, self.checks)

    def assume(self, a: Expr, b: Expr, what: str) -> None:
        """The operation that was made last takes two sizes to be equal."""
        if same(a, b) is None:
            self.operations[-1].assumed.append(Assumed(a, b, what))

    def check(self, cond: Expr, message: str) -> None:
        """A run fails with `message` unless `cond` holds of the sizes."""
        self.checks.append(Check(cond, f"{self.loc}: {message}" if self.loc else message))

    def in_bounds(self, x: Value, extents: Sequence[Expr], from_front: bool = False) -> Value:
        """Indices (in the last axis one for each extent, where there are several) that a run checks before they are used;
        known ones are checked now. Negative ones count from the back, unless `from_front`. Raises UserError
        "index-out-of-range"."""
        known, sizes, name = constant_of(x), [as_int(d) for d in extents], self.loc or x.name
        if known is not None and all(n is not None for n in sizes):
            columns = known.reshape(-1, len(sizes)).astype(np.int64)
            limits = np.array(sizes, np.int64)
            if columns.size and not bool(((columns >= (0 if from_front else -limits)) & (columns < limits)).all()):
                raise UserError("index-out-of-range", f"{name}: an index leaves its axis: indices from "
                                f"{columns.min(0).tolist()} to {columns.max(0).tolist()}, sizes {sizes}")
            return x
        count = len(extents)
        rows = product(x.shape if count == 1 else x.shape[:-1])
        ends = self.add_all("index_range", [self.reshape(x, [rows, count])])
        return self.add("in_bounds", [x, *ends], {"extents": tuple(extents), "what": name, "from_front": from_front},
                        name=x.name)

    def sizes(self, x: Value, least: int = 0, name: str = "") -> tuple[Expr, ...]:
        """The elements of a small tensor of integers as sizes: known ones, or new symbols (from `least` on) to which the
        host program gives their values."""
        known = elements_of(x)
        if known is not None:
            return known
        count = element_count(x.type) or 0
        base = name or x.name
        symbols = [Var(base if count == 1 else f"{base}_{k}", span=Span(least)) for k in range(count)]
        made = self.add("sizes", [x], {"symbols": symbols}, name=base)
        if x in self.inputs or any(x in op.outputs for op in self.operations):
            x.elements = made.elements  # whoever asks again in this graph gets the same symbols
        return tuple(symbols)


Rule = Callable[[Operation, GraphBuilder], "Value | Sequence[Value] | None"]
Finish = Callable[[list[Value], GraphBuilder], Sequence[Value]]


def rewrite(graph: Graph, rule: Rule, *, finish: Finish | None = None, regions: bool = True) -> Graph:
    """A new graph in which `rule(op, builder)` has seen each operation, with its inputs already replaced.

    The rule returns None to keep the operation, or the values that stand for its outputs from here on, having added
    what it needs to the builder. `finish` may replace the outputs at the end. Regions are rewritten too, unless
    `regions` is False: then they only read what stands for values from outside. The graph itself is returned if nothing
    changed. Operations that are no longer used stay (dead code is another pass).
    """
    return _rewrite(graph, rule, finish, regions, {}, GraphBuilder(graph.name))


def _rewrite(graph: Graph, rule: Rule, finish: Finish | None, regions: bool, new: dict[Value, Value],
             b: GraphBuilder) -> Graph:
    b.inputs = list(graph.inputs)
    for v in graph.inputs:
        b._names.setdefault(v.name, 0)
    changed = False
    for op in graph.operations:
        op = _substituted(op, new, lambda r: _rewrite(r, rule if regions else _keep, None, regions, new,
                                                      GraphBuilder(r.name, b)))
        b.loc = op.loc
        result = rule(op, b)
        if result is None:
            for v in op.outputs:  # not before: what replaces an operation may take its name
                b._names.setdefault(v.name, 0)
            b.operations.append(op)
            continue
        changed = True
        values = [result] if isinstance(result, Value) else list(result)
        if len(values) != len(op.outputs):
            raise InternalError(f"a rewrite of {op} gave {len(values)} values for {len(op.outputs)} outputs")
        for old, v in zip(op.outputs, values, strict=True):
            if v is not old:
                new[old] = v
    outputs: Sequence[Value] = [_final(v, new) for v in graph.outputs]
    if finish is not None:
        outputs = finish(list(outputs), b)
    same = len(b.operations) == len(graph.operations) and all(
        x is y for x, y in zip(b.operations, graph.operations, strict=True))
    if not changed and same and all(x is y for x, y in zip(outputs, graph.outputs, strict=True)):
        return graph
    return Graph(graph.name, b.inputs, outputs, b.operations, graph.output_names, graph.checks)


def _keep(op: Operation, b: GraphBuilder) -> None:
    """The rule that changes nothing."""


def _final(v: Value, new: dict[Value, Value]) -> Value:
    while v in new:
        v = new[v]
    return v


def _substituted(op: Operation, new: dict[Value, Value], region: Callable[[Graph], Graph]) -> Operation:
    """`op` with replaced inputs and regions; itself where nothing changed."""
    inputs = [None if v is None else _final(v, new) for v in op.inputs]
    bodies = [region(r) for r in op.regions]
    if all(a is b for a, b in zip(inputs, op.inputs, strict=True)) and all(
            a is b for a, b in zip(bodies, op.regions, strict=True)):
        return op
    return Operation(op.op, inputs, op.attrs, op.outputs, bodies, op.loc)
