"""From a fused group to a compute program: the recipes of its operations, one after another.

In: a `Group`. Out: a `Program` of unscheduled blocks whose parameters are named by position (in0, w0, out0, …, s0, …), so
that groups that compute the same thing give equal programs and share one kernel, and the values behind the parameters.

Symbolic sizes: the program has symbols of its own, s0, s1, …, parameters after the buffers, in order of first use in the
buffers' shapes (and then in the recipes). Each stands for a symbol of the graph, or for what is no sum or product there (a
quotient, a minimum), which the host computes and passes: the shapes of a deep convolution are then as simple as those of
the first one. Range and usual value are its own (`loop.ir.Span`). Sizes that the group's operations take to be equal, which
the host has checked before it launches the kernel, have one symbol.
"""
from __future__ import annotations

from dataclasses import dataclass, field

from tilewright.core.errors import InternalError
from tilewright.graph.assumed import assumed_of
from tilewright.graph.infer import dim
from tilewright.graph.ir import Operation, TensorType, Value
from tilewright.graph.passes.fuse import Group
from tilewright.graph.registry import record_of
from tilewright.loop.bounds import bounds
from tilewright.loop.ir import Add, Expr, Mul, Program, Span, Sub, Var, estimate
from tilewright.loop.substitute import free_vars, substitute
from tilewright.tensor.compute import Tensor, const_table, create_program, placeholder

LITERAL_ELEMENTS = 1
"""Constants of at most this many elements become literals of the code; larger ones are parameters."""


@dataclass
class GroupProgram:
    """A program and what its parameters stand for, in order: `inputs` (activations), `weights` (constants), `outputs`, and
    `sizes`, expressions over the graph's symbols."""
    program: Program
    inputs: list[Value]
    weights: list[Value]
    outputs: list[Value]
    sizes: list[Expr] = field(default_factory=list)


def group_program(group: Group, name: str) -> GroupProgram:
    """Compose the recipes of a group."""
    sizes = _Sizes(group)
    tensors: dict[Value, Tensor] = {}
    inputs: list[Value] = []
    weights: list[Value] = []
    for v in group.inputs:
        if v.data is not None and v.data.size <= LITERAL_ELEMENTS:
            tensors[v] = const_table(v.data, v.dtype)
        elif v.is_constant:
            tensors[v] = placeholder(v.shape, v.dtype, f"w{len(weights)}")
            weights.append(v)
        else:
            tensors[v] = placeholder(sizes.shape(v), v.dtype, f"in{len(inputs)}")
            inputs.append(v)
    for op in group.operations:
        results = _run_recipe(sizes.operation(op), [None if v is None else tensors[v] for v in op.inputs])
        for v, t in zip(op.outputs, results, strict=True):
            tensors[v] = t
    params = [tensors[v] for v in inputs + weights]
    outs = [tensors[v] for v in group.outputs]
    program = create_program(name, params, outs, weights={f"w{k}" for k in range(len(weights))}, sizes=sizes.symbols)
    passed = [sizes.symbols[p] for p in program.params if isinstance(p, Var)]
    return GroupProgram(program, inputs, weights, list(group.outputs), passed)


class _Sizes:
    """The program's symbols for the graph's: `symbols` maps each to the expression that it stands for."""

    def __init__(self, group: Group) -> None:
        self.symbols: dict[Var, Expr] = {}
        self.of: dict[Expr, Var] = {}
        self.values: dict[Value, Value] = {}
        self.equal: dict[Var, Expr] = {}
        if any(not v.type.is_static for v in [*group.inputs, *group.outputs]):
            self.join(group)
        for v in [*group.inputs, *group.outputs]:
            self.shape(v)

    def shape(self, v: Value) -> tuple[Expr, ...]:
        return tuple([self.expr(d) for d in v.shape])

    def join(self, group: Group) -> None:
        """Enter the sizes that are taken to be equal: a symbol is what it must be equal to."""
        for op in group.operations:
            for e in assumed_of(op):
                a, b = (substitute(x, self.equal) for x in (e.a, e.b))
                if e.relation not in ("equal", "broadcast") or a == b:
                    continue
                new, old = (b, a) if isinstance(b, Var) and b not in free_vars(a) else (a, b)
                if isinstance(new, Var) and new not in free_vars(old):
                    self.equal = {s: substitute(x, {new: old}) for s, x in self.equal.items()} | {new: old}

    def expr(self, e: Expr) -> Expr:
        """An expression over the graph's symbols as one over the program's."""
        if self.equal and not self.equal.keys().isdisjoint(free_vars(e)):
            e = dim(substitute(e, self.equal))
        if isinstance(e, Add | Sub | Mul):
            return dim(e.map(self.expr))
        if not free_vars(e):
            return e
        if e not in self.of:
            lo, hi = bounds(e)
            span = e.span if isinstance(e, Var) else None if lo is None else Span(lo, hi, hint=estimate(e))
            self.of[e] = new = Var(f"s{len(self.of)}", e.dtype, span)
            self.symbols[new] = e
        return self.of[e]

    def operation(self, op: Operation) -> Operation:
        """The operation as its recipe sees it: over the program's symbols."""
        kinds = {key: spec.type for key, spec in record_of(op).attrs.items()}
        attrs = {key: tuple([self.expr(d) for d in value]) if kinds[key] == "dims" and value is not None
                 else self.expr(value) if kinds[key] == "dim" and value is not None else value
                 for key, value in op.attrs.items()}
        values = [None if v is None else self.value(v) for v in op.inputs]
        new = Operation(op.op, values, attrs, [self.value(v) for v in op.outputs], op.regions, op.loc)
        static = new.attrs == op.attrs and all(a is b for a, b in zip([*new.inputs, *new.outputs],
                                                                      [*op.inputs, *op.outputs], strict=True))
        return op if static else new

    def value(self, v: Value) -> Value:
        if v not in self.values:
            known = v.elements and tuple([self.expr(e) for e in v.elements])
            shape = self.shape(v)
            same = shape == v.shape and known == v.elements
            self.values[v] = v if same else Value(v.name, TensorType(v.dtype, shape), v.data, known, v.loc)
        return self.values[v]


def _run_recipe(op: Operation, operands: list[Tensor | None]) -> tuple[Tensor, ...]:
    recipe = record_of(op).compute
    if recipe is None:
        raise InternalError(f"operator {op.op} has no compute recipe")
    result = recipe(op, *operands)
    return result if isinstance(result, tuple) else (result,)
