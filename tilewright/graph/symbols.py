"""Which symbols an operation needs, and which it gives their values.

A symbol is an input's if it is a dimension of a graph's or region's input; else it belongs to the first operation that has
it as a dimension of a result, or names it as `sizes` does.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Any

from tilewright.graph.ir import Graph, Operation, Value
from tilewright.graph.registry import record_of
from tilewright.loop.ir import Const, Expr, Var, as_int, const
from tilewright.loop.simplify import simplify
from tilewright.loop.substitute import free_vars, substitute


def symbols_of(sizes: Iterable[Expr]) -> list[Var]:
    """The symbols in expressions, in order."""
    return list(dict.fromkeys(s for e in sizes if not isinstance(e, Const) for s in free_vars(e)))


def new_symbols(values: Iterable[Value], known: Iterable[Var]) -> list[Var]:
    """The symbols in the shapes of values that are not among the known."""
    before = set(known)
    return [s for s in symbols_of(d for v in values for d in v.shape) if s not in before]


def defined_symbols(op: Operation, known: Iterable[Var]) -> list[Var]:
    """The symbols that an operation gives values: those of its results that nobody knew before."""
    before = set(known)
    named = [s for s in op.attrs["symbols"] if s not in before] if op.op == "sizes" else []
    return list(dict.fromkeys([*named, *new_symbols(op.outputs, before)]))


def needed_symbols(op: Operation) -> Iterator[Var]:
    """The symbols that an operation uses: in shapes, attributes and regions."""
    yield from symbols_of(d for v in op.outputs for d in v.shape)
    for key, spec in record_of(op).attrs.items():
        value = op.attrs[key]
        if value is not None and spec.type in ("dim", "dims"):
            yield from symbols_of(value if spec.type == "dims" else (value,))
    for region in op.regions:
        for inner in region.operations:
            yield from needed_symbols(inner)
        yield from symbols_of(d for v in (*region.inputs, *region.outputs) for d in v.shape)
        yield from symbols_of(e for v in (*region.inputs, *region.outputs) for e in v.elements or ())


def sizes_sources(graph: Graph) -> dict[Value, tuple[Var, ...]]:
    """The values, also in regions, whose elements become the values of symbols, and which; of a value that only has another
    shape than the one whose memory it shares, that one."""
    out: dict[Value, tuple[Var, ...]] = {}
    seen: dict[Value, Value] = {}
    for op in graph.operations:
        if op.op in ("reshape", "identity", "in_bounds", "sizes") and op.inputs[0] is not None:
            seen[op.output] = seen.get(op.inputs[0], op.inputs[0])
        if op.op == "sizes" and op.inputs[0] is not None:
            out[seen.get(op.inputs[0], op.inputs[0])] = op.attrs["symbols"]
        for region in op.regions:
            out |= sizes_sources(region)
    return out


def numbers_of(shape: Sequence[Expr], known: dict[Var, int], count: int) -> tuple[int, ...] | None:
    """A shape of `count` elements in numbers; a symbol that alone is unknown follows from the count, and is then known.
    None where more is unknown, or the count is another."""
    values: dict[Any, Any] = {s: const(n) for s, n in known.items()}
    found = [simplify(substitute(d, values)) for d in shape]
    sizes = [as_int(d) for d in found]
    rest = prod([n for n in sizes if n is not None])
    unknown = [k for k, n in enumerate(sizes) if n is None]
    if len(unknown) == 1 and rest and count % rest == 0:
        d = found[unknown[0]]
        if isinstance(d, Var):
            known[d] = sizes[unknown[0]] = count // rest
    whole = [n for n in sizes if n is not None]
    return tuple(whole) if len(whole) == len(shape) and prod(whole) == count else None


def defining_operations(graph: Graph, known: Iterable[Var] = ()) -> dict[Var, Operation]:
    """The operation of a graph that gives each symbol its value; inputs' symbols and the `known` have none."""
    before = {*known, *symbols_of(d for v in graph.inputs for d in v.shape)}
    out: dict[Var, Operation] = {}
    for op in graph.operations:
        for s in defined_symbols(op, before):
            before.add(s)
            out[s] = op
    return out
