"""What shape inference took for granted of sizes (`Operation.assumed`): sizes that are one, and checks of the run.

In: a Graph as imported. Out: which symbols of the inputs are one, or a number, because the model's operators need it
(`joined_sizes`; the frontend then reads the model with these); the graph with a check of everything that remains
(`with_checks`): sizes that are computed or that data decide. In a branch of if_ nothing is joined, since it
may never run; checks of branches and of the bodies of loops are made when these run. A kernel has one size for what its
operations take to be equal (`assumed_of`).
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import lcm

from tilewright.core.errors import UserError
from tilewright.graph.ir import Assumed, Check, Graph, Operation, Value
from tilewright.graph.registry import record_of
from tilewright.graph.symbols import defined_symbols, symbols_of
from tilewright.loop.ir import Expr, Span, Var, as_int, const
from tilewright.loop.substitute import free_vars


def assumed_of(op: Operation) -> list[Assumed]:
    """What an operation takes for granted of sizes, by inferring its type anew."""
    again = Operation(op.op, op.inputs, op.attrs, (), op.regions, op.loc)
    record_of(op).infer(again)
    return again.assumed


# ---- sizes that are one ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Joined:
    """Which sizes of the inputs are one: the inputs as they are declared, by the name of a symbol there what stands for it,
    and the symbols that are taken to be equal to others because they are broadcast with them."""
    declared: tuple[Value, ...] = ()
    stands: Mapping[str, Expr] = field(default_factory=dict)
    broadcast: frozenset[str] = frozenset()


def joined_sizes(graph: Graph) -> dict[str, Expr]:
    """For each symbol of the inputs that must be equal to another, or to a number, by its name: what stands for it.
    Symbols of one class become a new one that lies in the spans of all. Raises UserError "shape-mismatch" where no size
    does."""
    symbols = symbols_of(d for v in graph.inputs for d in v.shape)
    classes = {s: [s] for s in symbols}
    numbers: dict[Var, tuple[int, bool]] = {}
    for op, e in _taken(graph):
        a, b = (e.a, e.b) if e.a in classes else (e.b, e.a)
        if not isinstance(a, Var) or a not in classes:
            continue
        one, n = classes[a], as_int(b)
        if isinstance(b, Var) and b in classes and classes[b] is not one:
            one += classes[b]
            for s in classes[b]:
                classes[s] = one
        elif n is not None:
            weak = e.relation != "equal"
            if not all(n in (s.span or Span()) for s in one):
                if not weak:
                    raise UserError("shape-mismatch", f"{e.what}: {a!r} must be {n}, and is {_spans(one)}",
                                    where=op.loc or op.op)
                continue
            first, was_weak = numbers.setdefault(a, (n, weak))
            if first != n and weak and was_weak:  # both are right where it is 1
                numbers[a] = (1, False)
    out: dict[str, Expr] = {}
    for one in {id(c): c for c in classes.values()}.values():
        given = [numbers[s][0] for s in one if s in numbers]
        if given:
            out |= {s.name: const(given[0]) for s in one}
        elif len(one) > 1:
            new = Var(_best_name(graph, sorted(one, key=symbols.index)), span=_common(one))
            out |= {s.name: new for s in one}
    return out


def broadcast_symbols(graph: Graph) -> frozenset[str]:
    """The names of the symbols that are taken to be equal to others because they are broadcast with them."""
    return frozenset({s.name for _, e in _taken(graph) if e.relation != "equal" for s in (e.a, e.b) if isinstance(s, Var)})


def _taken(graph: Graph) -> Iterator[tuple[Operation, Assumed]]:
    for op in graph.operations:
        yield from ((op, e) for e in op.assumed if e.relation != "at most")
        if op.op != "if_":
            for region in op.regions:
                yield from _taken(region)


def _best_name(graph: Graph, symbols: list[Var]) -> str:
    """The first name that somebody gave; those of dimensions without one follow from the input."""
    made = {f"{v.name}_dim{k}" for v in graph.inputs for k in range(v.rank)}
    return next((s.name for s in symbols if s.name not in made), symbols[0].name)


def _common(symbols: list[Var]) -> Span:
    """The sizes that lie in the spans of all."""
    spans = [s.span or Span() for s in symbols]
    most = [s.most for s in spans if s.most is not None]
    multiple = lcm(*[s.multiple for s in spans])
    out = Span(-(-max(s.least for s in spans) // multiple) * multiple, min(most) // multiple * multiple if most else None,
               multiple)
    if out.most is not None and out.most < out.least:
        raise UserError("shape-mismatch", f"no size is {_spans(symbols)} at once, and the model needs these to be equal",
                        where="shapes")
    return replace(out, hint=next((s.hint for s in spans if s.hint is not None and s.hint in out), None))


def _spans(symbols: list[Var]) -> str:
    return ", ".join([f"{s.name} {s.span or Span()}" for s in symbols])


# ---- checks ----------------------------------------------------------------------------------------------------------
def with_checks(graph: Graph) -> Graph:
    """The graph with a check of everything that inference took for granted."""
    places: dict[Var, str] = {}
    for v in graph.inputs:
        for k, d in enumerate(v.shape):
            if isinstance(d, Var):
                places.setdefault(d, f"dimension {k} of input {v.name!r}")
    return _checked(graph, set(), places, may_not_run=False)[0]


def _checked(graph: Graph, known: set[Var], places: Mapping[Var, str], may_not_run: bool) -> tuple[Graph, list[Check]]:
    """A graph or region with its checks, and those that are made before it, because all they need is `known` there."""
    found = {(c.cond, c.message): c for c in graph.checks}
    have = known | set(symbols_of(d for v in graph.inputs for d in v.shape))
    operations = []
    for op in graph.operations:
        made = [_check(op, e, places) for e in op.assumed]
        if op.regions:
            parts = [_checked(r, have, places, op.op in ("if_", "loop")) for r in op.regions]
            op = Operation(op.op, op.inputs, op.attrs, op.outputs, [r for r, _ in parts], op.loc)
            made += [c for _, before in parts for c in before]
        for c in made:
            found.setdefault((c.cond, c.message), c)
        have |= set(defined_symbols(op, have))
        operations.append(op)
    before = [c for c in found.values() if not may_not_run and set(free_vars(c.cond)) <= known]
    return graph.replace(operations=operations, checks=[c for c in found.values() if c not in before]), before


def _check(op: Operation, e: Assumed, places: Mapping[Var, str]) -> Check:
    if e.relation == "at most":
        cond, must = e.a <= e.b, "at most"
    elif e.relation == "repeated":
        cond, must = e.a.eq(e.b) | e.a.eq(1), "1 or equal to"
    else:
        cond, must = e.a.eq(e.b), "equal to"
    where = [f"{s.name} is {places[s]}" for s in symbols_of((e.a, e.b)) if s in places]
    negative = e.relation == "at most" and as_int(e.a) == 0
    said = f", {e.b!r}, is negative" if negative else f": the size {e.a!r} must be {must} {e.b!r}"
    text = f"{op.loc or op.op}: {e.what}{said}{''.join(f', {w}' for w in where)}".replace("{}", "{ }")
    return Check(cond, f"{text}: {{}}", (e.b,)) if negative else Check(cond, f"{text}: they are {{}} and {{}}", (e.a, e.b))
