"""The graph IR: a model as operations on tensor values in SSA form, with symbolic dimensions and regions.

Semantics: every operation is pure; a value is defined once (graph input, constant, or output of one operation) and is
never changed; order between operations exists only through values. Dimensions are integer expressions of the loop IR,
so a size may be a number, a named symbol (`Var("batch")`) or arithmetic on them. Small integer tensors may carry their
*elements* as such expressions (`Value.elements`): shape arithmetic is then known while compiling.
An operation may own regions (the bodies of If, Loop, Scan): graphs that may use values of the graphs around them.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tilewright.core.dtype import DType, dtype
from tilewright.core.errors import InternalError
from tilewright.core.node import Node, node
from tilewright.loop.ir import Expr, IntoExpr, as_int, expr


@node
class TensorType(Node):
    """Element type and shape (one expression per dimension; rank 0 is a scalar)."""
    dtype: DType
    shape: tuple[Expr, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)

    def sizes(self) -> tuple[int, ...]:
        """The shape as numbers; InternalError if a dimension is symbolic."""
        out = [as_int(d) for d in self.shape]
        if any(d is None for d in out):
            raise InternalError(f"{self} has a symbolic dimension where numbers are needed")
        return tuple(d for d in out if d is not None)

    @property
    def is_static(self) -> bool:
        return all(as_int(d) is not None for d in self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(repr, self.shape))}]"


def tensor_type(element: DType | str, shape: Iterable[IntoExpr]) -> TensorType:
    return TensorType(dtype(element), tuple([expr(d) for d in shape]))


class Value:
    """An SSA value, equal only to itself. `data` is set for constants (treated as read-only); `elements` holds the
    row-major elements of a small integer tensor as expressions where inference knows them; `loc` says where it came
    from in the user's model."""

    __slots__ = ("name", "type", "data", "elements", "loc")

    def __init__(self, name: str, type: TensorType, data: np.ndarray[Any, Any] | None = None,
                 elements: tuple[Expr, ...] | None = None, loc: str = "") -> None:
        self.name, self.type, self.data, self.elements, self.loc = name, type, data, elements, loc

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def shape(self) -> tuple[Expr, ...]:
        return self.type.shape

    @property
    def rank(self) -> int:
        return len(self.type.shape)

    @property
    def is_constant(self) -> bool:
        return self.data is not None

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


Relation = Literal["equal", "broadcast", "repeated", "at most"]


@dataclass(frozen=True)
class Assumed:
    """What inference took for granted of two sizes: that they are equal; that they are equal in a broadcast, where one might
    as well be 1, and is not; that `a`, which is repeated, is equal to `b` or 1; or that `a` is at most `b`. `what` says
    which sizes of the operator these are."""
    a: Expr
    b: Expr
    what: str
    relation: Relation = "equal"


class Operation:
    """One application of an operator record (`graph/registry.py`). Immutable: rewrites make new ones, which may define the
    same output values. `inputs` may hold None for an absent optional operand. `attrs` are checked against the record.
    `assumed`: what inference took for granted when the operation was made; not kept where one is rewritten."""

    __slots__ = ("op", "inputs", "attrs", "outputs", "regions", "loc", "assumed")

    def __init__(self, op: str, inputs: Sequence[Value | None], attrs: dict[str, Any], outputs: Sequence[Value],
                 regions: Sequence[Graph] = (), loc: str = "") -> None:
        self.op, self.inputs, self.attrs = op, tuple(inputs), dict(attrs)
        self.outputs, self.regions, self.loc = tuple(outputs), tuple(regions), loc
        self.assumed: list[Assumed] = []

    @property
    def output(self) -> Value:
        """The only output."""
        (v,) = self.outputs
        return v

    def __repr__(self) -> str:
        outs = ", ".join(f"%{v.name}" for v in self.outputs)
        ins = ", ".join("-" if v is None else f"%{v.name}" for v in self.inputs)
        return f"{outs} = {self.op}({ins})"


@dataclass(frozen=True)
class Check:
    """What must hold of sizes at run time, and what to say if it does not: {} stands for one of `values`, up to three."""
    cond: Expr
    message: str
    values: tuple[Expr, ...] = ()


class Graph:
    """Operations in topological order. Constants are values with `data` used by operations; they need no definition.
    `output_names` are the names by which the user knows the outputs: they outlive rewrites of the values. `checks`: what
    was taken for granted of symbolic sizes; each is made once its symbols have values (of a region, when it runs)."""

    __slots__ = ("name", "inputs", "outputs", "operations", "output_names", "checks")

    def __init__(self, name: str, inputs: Sequence[Value], outputs: Sequence[Value],
                 operations: Sequence[Operation], output_names: Sequence[str] | None = None,
                 checks: Sequence[Check] = ()) -> None:
        self.checks = tuple(checks)
        self.name, self.inputs = name, tuple(inputs)
        self.outputs, self.operations = tuple(outputs), tuple(operations)
        self.output_names = tuple([v.name for v in self.outputs] if output_names is None else output_names)
        if len(self.output_names) != len(self.outputs):
            raise InternalError(f"{name}: {len(self.output_names)} names for {len(self.outputs)} outputs")

    def replace(self, *, inputs: Sequence[Value] | None = None, outputs: Sequence[Value] | None = None,
                operations: Sequence[Operation] | None = None, checks: Sequence[Check] | None = None) -> Graph:
        """A copy with some parts changed; the outputs' names stay while their number does."""
        keep = outputs is None or len(outputs) == len(self.outputs)
        return Graph(self.name, self.inputs if inputs is None else inputs,
                     self.outputs if outputs is None else outputs,
                     self.operations if operations is None else operations, self.output_names if keep else None,
                     self.checks if checks is None else checks)

    def producers(self) -> dict[Value, Operation]:
        """Which operation defines each value."""
        return {v: op for op in self.operations for v in op.outputs}

    def users(self) -> dict[Value, list[Operation]]:
        """The operations that use each value, in order, once per operation; uses inside regions count for the owner."""
        out: dict[Value, list[Operation]] = {}
        for op in self.operations:
            for v in used_values(op):
                out.setdefault(v, []).append(op)
        return out

    def constants(self) -> list[Value]:
        """Constants used, in order of first use, regions included."""
        seen: dict[Value, None] = {}
        for op in self.operations:
            for v in used_values(op):
                if v.is_constant:
                    seen.setdefault(v)
        for v in self.outputs:
            if v.is_constant:
                seen.setdefault(v)
        return list(seen)


def used_values(op: Operation) -> Iterator[Value]:
    """Values that an operation needs, each once: its inputs and whatever its regions take from outside."""
    seen: set[Value] = set()
    for v in op.inputs:
        if v is not None and v not in seen:
            seen.add(v)
            yield v
    for region in op.regions:
        inner = set(region.inputs) | {v for o in region.operations for v in o.outputs}
        for v in [x for o in region.operations for x in used_values(o)] + list(region.outputs):
            if v not in inner and v not in seen:
                seen.add(v)
                yield v
