"""Whether two programs of blocks pass the same values on, by integer sets: an oracle that shares nothing with our proofs.

In: programs of constant sizes whose blocks are single stores. Out: per buffer, which instance of a block reads what which
instance wrote last, and who wrote each element at the end; the sets are islpy's. Two programs with equal answers compute
the same.
"""
from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import islpy as isl

from tilewright.loop import ir
from tilewright.loop.substitute import substitute

SIGNS = {ir.Add: "+", ir.Sub: "-", ir.Mul: "*", ir.Lt: "<", ir.Le: "<=", ir.Eq: "=", ir.And: "and"}


@dataclass(frozen=True)
class Event:
    """A block's instances in time: `dims` of the time vector's entries that are loops, what holds of them."""
    block: ir.Block
    time: tuple[str, ...]
    names: dict[ir.Var, str]
    holds: tuple[str, ...]

    @property
    def where(self) -> str:
        return " and ".join(self.holds) or "true"

    def text(self, e: ir.Expr) -> str:
        bound = dict(zip([i.var for i in self.block.iters], self.block.bindings, strict=True))
        return text(substitute(e, bound), self.names)


def text(e: ir.Expr, names: dict[ir.Var, str]) -> str:
    """An expression in isl's notation."""
    match e:
        case ir.Const(value):
            return str(value).lower() if isinstance(value, bool) else str(value)
        case ir.Var():
            return names[e]
        case ir.FloorDiv(a, b):
            return f"floor(({text(a, names)})/{text(b, names)})"
        case ir.FloorMod(a, b):
            return f"(({text(a, names)}) mod {text(b, names)})"
        case ir.Min(a, b) | ir.Max(a, b):
            return f"{'min' if isinstance(e, ir.Min) else 'max'}({text(a, names)}, {text(b, names)})"
    assert isinstance(e, ir.Binary), e
    return f"({text(e.a, names)} {SIGNS[type(e)]} {text(e.b, names)})"


def events(program: ir.Program) -> list[Event]:
    """Every block of a program, with time vectors of one length."""
    found: list[Event] = []

    def visit(s: ir.Stmt, time: tuple[str, ...], names: dict[ir.Var, str], holds: tuple[str, ...]) -> None:
        match s:
            case ir.Seq(stmts):
                for k, t in enumerate(stmts):
                    visit(t, (*time, str(k)), names, holds)
            case ir.Allocate():
                visit(s.body, time, names, holds)
            case ir.For():
                name = f"t{len(time)}"
                start, extent = text(s.start, names), text(s.extent, names)
                visit(s.body, (*time, name), {**names, s.var: name},
                      (*holds, f"{start} <= {name}", f"{name} < {start} + {extent}"))
            case ir.Block():
                bound = dict(zip([i.var for i in s.iters], s.bindings, strict=True))
                cond = text(substitute(s.predicate, bound), names)
                found.append(Event(s, time, names, holds if s.predicate == ir.TRUE else (*holds, cond)))
            case _:
                raise AssertionError(type(s))

    visit(program.body, (), {}, ())
    length = max(len(e.time) for e in found)
    return [Event(e.block, (*e.time, *["0"] * (length - len(e.time))), e.names, e.holds) for e in found]


def _dims(e: Event) -> tuple[str, str]:
    """The time vector's space, and what its constant entries are."""
    names = [f"t{k}" for k in range(len(e.time))]
    fixed = " and ".join(f"{n} = {v}" for n, v in zip(names, e.time, strict=True) if n != v)
    return "[" + ", ".join(names) + "]", fixed or "true"


def _map(e: Event, to: str, also: str = "true") -> isl.Map:
    dims, fixed = _dims(e)
    return isl.Map(f"{{ {dims} -> {to} : {fixed} and {e.where} and {also} }}")


def _accesses(e: Event) -> Iterator[tuple[ir.Buffer, bool, str, str]]:
    """(buffer, whether it is written, indices, condition)."""
    assert isinstance(e.block.body, ir.Store) and e.block.init is None

    def loads(n: Any, cond: str) -> Iterator[tuple[ir.Buffer, bool, str, str]]:
        if isinstance(n, ir.Guard):
            c = e.text(n.cond)
            yield from loads(n.a, f"{cond} and {c}")
            yield from loads(n.b, f"{cond} and not ({c})")
            return
        if isinstance(n, ir.Load):
            yield n.buffer, False, ", ".join(map(e.text, n.indices)), cond
        for c in n.children():
            if isinstance(c, ir.Expr):
                yield from loads(c, cond)

    store = e.block.body
    yield store.buffer, True, ", ".join(map(e.text, store.indices)), "true"
    yield from loads(store.value, "true")


def base_name(name: str, known: set[str]) -> str:
    """The block that a piece was cut from."""
    while name not in known:
        name = re.sub(r"_\d+$", "", name)
    return name


def dataflow(program: ir.Program, known: set[str]) -> dict[str, Any]:
    """Per buffer: the relations reader → last writer, and element → last writer at the end. `known`: the block names of the
    program that this one was made from."""
    reads: dict[str, list[tuple[isl.Map, Any]]] = {}
    writes: dict[str, isl.Map] = {}
    instances = isl.UnionMap("{ }")
    for e in events(program):
        name = base_name(e.block.name, known)
        at = ", ".join(e.text(i.var) for i in e.block.iters)
        instances = instances.union(isl.UnionMap.from_map(_map(e, f"{name}[{at}]")))
        for buffer, written, indices, cond in _accesses(e):
            m = _map(e, f"[{indices}]", cond)
            if written:
                old = writes.get(buffer.name)
                writes[buffer.name] = m if old is None else old.union(m)
            else:
                reads.setdefault(buffer.name, []).append(m)
    out: dict[str, Any] = {}
    for buffer, made in writes.items():
        time = made.domain().get_space()
        before = isl.Map.lex_gt(time)
        flow, missing = isl.UnionMap("{ }"), isl.UnionMap("{ }")
        for m in reads.get(buffer, []):
            last = m.apply_range(made.reverse()).intersect(before).lexmax()
            flow = flow.union(isl.UnionMap.from_map(last).apply_domain(instances).apply_range(instances))
            without = m.intersect_domain(m.domain().subtract(last.domain()))
            missing = missing.union(isl.UnionMap.from_map(without).apply_domain(instances))
        out[buffer] = flow, missing, isl.UnionMap.from_map(made.reverse().lexmax()).apply_range(instances)
    return out


def same_values(a: dict[str, Any], b: dict[str, Any], outputs: set[str]) -> bool:
    """Whether two programs read and leave the same values; what is left in buffers that are no `outputs` does not matter."""
    for name in a.keys() | b.keys():
        if name not in a or name not in b:
            return False
        (flow, missing, last), (flow2, missing2, last2) = a[name], b[name]
        if not flow.is_equal(flow2) or not missing.is_equal(missing2):
            return False
        if name in outputs and not last.is_equal(last2):
            return False
    return True


def races(program: ir.Program, loop: ir.Var) -> bool:
    """Whether two steps of a loop, in one step of those around it, touch one element and one of them writes it."""
    found = events(program)
    place = next(int(e.names[loop][1:]) for e in found if loop in e.names)
    touching: dict[str, tuple[isl.Map | None, isl.Map | None]] = {}
    for e in found:
        if loop not in e.names:
            continue
        for buffer, written, indices, cond in _accesses(e):
            m = _map(e, f"[{indices}]", cond)
            w, every = touching.get(buffer.name, (None, None))
            every = m if every is None else every.union(m)
            if written:
                w = m if w is None else w.union(m)
            touching[buffer.name] = w, every
    for w, every in touching.values():
        if w is None or every is None:
            continue
        pairs = w.apply_range(every.reverse())
        n = pairs.dim(isl.dim_type.in_)
        one = ", ".join(f"a{k}" for k in range(n))
        two = ", ".join(f"b{k}" for k in range(n))
        same = " and ".join([f"a{k} = b{k}" for k in range(place)] or ["true"])
        other = isl.Map(f"{{ [{one}] -> [{two}] : {same} and (a{place} < b{place} or a{place} > b{place}) }}")
        if not pairs.intersect(other).is_empty():
            return True
    return False
