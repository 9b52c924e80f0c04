"""Checks the invariants of a graph. In: a graph. Out: nothing, or InternalError that names the operation.

Every value is defined once and before its uses; a region sees the values around it; attributes are those of the record;
types follow from inference (up to symbols that inference makes up: sizes that depend on data).
"""
from __future__ import annotations

from collections.abc import Sequence

from tilewright.core.errors import InternalError, TilewrightError
from tilewright.graph.infer import same
from tilewright.graph.ir import Graph, Operation, TensorType, Value
from tilewright.graph.registry import OPS, record_of
from tilewright.loop.ir import Expr, Var
from tilewright.loop.substitute import free_vars


def verify(graph: Graph, *, types: bool = True) -> None:
    """Raises InternalError where the graph is broken; `types=False` leaves inference out."""
    _Checker(types).graph(graph, set())


class _Checker:
    def __init__(self, types: bool) -> None:
        self.types = types
        self.defined: set[Value] = set()

    def graph(self, g: Graph, outer: set[Value]) -> None:
        visible = set(outer)
        for v in g.inputs:
            self.define(v, visible, f"input of {g.name}")
            if v.is_constant:
                raise InternalError(f"{g.name}: the input %{v.name} is a constant")
        for op in g.operations:
            self.operation(op, visible)
        for v in g.outputs:
            if v not in visible and not v.is_constant:
                raise InternalError(f"{g.name}: the output %{v.name} is not defined")

    def define(self, v: Value, visible: set[Value], what: str) -> None:
        if v in self.defined:
            raise InternalError(f"%{v.name} is defined twice ({what})")
        self.defined.add(v)
        visible.add(v)

    def operation(self, op: Operation, visible: set[Value]) -> None:
        if op.op not in OPS:
            raise InternalError(f"{op}: there is no such operator")
        for v in op.inputs:
            if v is not None and v not in visible:
                if not v.is_constant:
                    raise InternalError(f"{op}: %{v.name} is used before it is defined")
                self.constant(v)
        wanted = record_of(op).attrs.keys()
        if op.attrs.keys() != wanted:
            raise InternalError(f"{op}: attributes {sorted(op.attrs)} instead of {sorted(wanted)}")
        for r in op.regions:
            self.graph(r, visible)
        for v in op.outputs:
            self.define(v, visible, f"output of {op}")
            if v.is_constant:
                raise InternalError(f"{op}: its output %{v.name} has constant data")
        if self.types:
            self.inferred(op)

    def constant(self, v: Value) -> None:
        assert v.data is not None
        if v.data.dtype != v.dtype.numpy() or v.data.shape != v.type.sizes():
            raise InternalError(f"the constant %{v.name} is {v.type}, its data {v.data.dtype}{list(v.data.shape)}")

    def inferred(self, op: Operation) -> None:
        rec = record_of(op)
        try:
            if rec.normalize is not None:
                canonical = {**op.attrs, **rec.normalize(op)}
                if canonical != op.attrs:
                    raise InternalError(f"{op}: attributes {op.attrs} are not in canonical form {canonical}")
            found = rec.infer(op)
        except InternalError:
            raise
        except TilewrightError as e:
            raise InternalError(f"{op}: inference fails: {e}") from e
        given = [v.type for v in op.outputs]
        if len(found) != len(given):
            raise InternalError(f"{op}: {len(given)} outputs instead of {len(found)}")
        known = {s for v in op.inputs if v is not None for d in v.shape for s in free_vars(d)}
        for t, want in zip(given, found, strict=True):
            if not _matches(t, want, known):
                raise InternalError(f"{op}: its type is {t}, inference gives {want}")


def _matches(given: TensorType, inferred: TensorType, known: set[Var]) -> bool:
    return given.dtype is inferred.dtype and given.rank == inferred.rank and _all_match(
        given.shape, inferred.shape, known)


def _all_match(given: Sequence[Expr], inferred: Sequence[Expr], known: set[Var]) -> bool:
    """A symbol that no operand has was made up by inference: it stands for anything."""
    return all((isinstance(b, Var) and b not in known) or same(a, b) is not False
               for a, b in zip(given, inferred, strict=True))
