"""Specialised versions: one model for all sizes, with further host programs for sizes that are declared to be frequent.

In: a graph of symbolic sizes and what a version says of them; then the host programs of all. Out: the inputs' shapes of the
version; then the program that looks at a run's sizes and calls the first version that they fit, or else the general one.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tilewright.core.errors import InternalError, UserError
from tilewright.graph import host
from tilewright.graph.ir import Graph
from tilewright.graph.plan import HostPlan
from tilewright.graph.symbols import symbols_of
from tilewright.loop.ir import Buffer, Expr, If, Launch, Program, Span, Stmt, Var, as_int, const

Source = tuple[str | int, ...]


def version_shapes(graph: Graph, sizes: Mapping[str, Any], where: str,
                   joined: Mapping[str, Expr] = MappingProxyType({})) -> dict[str, tuple[int | str, ...]]:
    """Shapes by input name where `sizes` gives numbers to some of the graph's symbols, which may be named as those that they
    stand for (`joined`); the others keep their spans.
    Raises UserError "version-invalid": an unknown symbol, no number, a number that no run may have, nothing given."""
    symbols = {s.name: s for s in symbols_of(d for v in graph.inputs for d in v.shape)}
    if not isinstance(sizes, Mapping) or not sizes:
        raise UserError("version-invalid", f"a version gives sizes to symbols, {{\"batch\": 1}}, not {sizes!r}", where=where)
    given: dict[str, Any] = {}
    for name, n in sizes.items():
        stands = joined.get(name)
        if stands is not None and as_int(stands) == n:
            continue
        if stands is not None and not isinstance(stands, Var):
            raise UserError("version-invalid", f"{name!r} is {stands!r} in any run of this model, not {n!r}", where=where)
        asked, name = name, name if stands is None else stands.name
        if given.setdefault(name, n) != n:
            raise UserError("version-invalid", f"{asked!r} cannot be {given[name]} and {n!r} at once", where=where)
        if name not in symbols:
            raise UserError("version-invalid", f"the model has no symbol {name!r}", where=where,
                            hint="known: " + (", ".join(sorted(symbols)) or "none, all sizes are set"))
        span = symbols[name].span or Span()
        if isinstance(n, bool) or not isinstance(n, int) or n not in span:
            raise UserError("version-invalid", f"{name!r} is {span}, which {n!r} is not", where=where)
    if not given:
        raise UserError("version-invalid", "a version of sizes that the model itself sets", where=where)
    return {v.name: tuple([_size(d, given) for d in v.shape]) for v in graph.inputs}


def _size(d: Expr, sizes: Mapping[str, Any]) -> int | str:
    if not isinstance(d, Var):
        n = as_int(d)
        if n is None:
            raise InternalError(f"the size {d} of an input is neither a number nor a symbol")
        return n
    return int(sizes[d.name]) if d.name in sizes else f"{d.name}:{_text(d.span or Span())}"


def _text(s: Span) -> str:
    """A span as `shapes` takes it."""
    return f"{s.least}..{'' if s.most is None else s.most}%{s.multiple}{'' if s.hint is None else f'~{s.hint}'}"


def choose_version(name: str, graph: Graph, general: HostPlan, versions: Sequence[tuple[Graph, HostPlan]]) -> Program:
    """A program with the general one's parameters that calls the first version whose inputs have the sizes of the run."""
    at: dict[Source, Expr] = {}
    for p, source in zip(general.main.params, general.sources, strict=True):
        at[source] = host.address(p) if isinstance(p, Buffer) else p
    for k, v in enumerate(graph.inputs):
        for axis, d in enumerate(v.shape):
            at[("dim", len(graph.inputs) + k, axis)] = d

    def call(plan: HostPlan) -> Stmt:
        return Launch(plan.main.name, tuple([at[s] for s in plan.sources]))

    body = call(general)
    for special, plan in reversed(versions):
        chosen: Expr | None = None
        for mine, theirs in zip(graph.inputs, special.inputs, strict=True):
            for d, e in zip(mine.shape, theirs.shape, strict=True):
                if isinstance(d, Var) and as_int(e) is not None:
                    fits = d.eq(const(as_int(e) or 0))
                    chosen = fits if chosen is None else chosen & fits
        if chosen is None:
            raise InternalError("a version fixes no size")
        body = If(chosen, call(plan), body)
    return Program(name, general.main.params, body, (("entry", True),))
