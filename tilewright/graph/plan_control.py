"""Host lowering of operations with regions: If and Loop become the loop IR's If and While.

In: an operation and the part of the plan it stands in. Out: items of the host program. Where a result's sizes are known
before, regions write into its memory. Else the result lives in a growable allocation of its own, and its sizes in cells of
the arena: a branch fills both, and what follows reads the cells. Values that a loop carries change their sizes from turn to
turn in the same way.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tilewright.core.dtype import boolean, i64, u8
from tilewright.core.errors import InternalError
from tilewright.graph import host
from tilewright.graph.host import Item, Output
from tilewright.graph.infer import dim
from tilewright.graph.ir import Graph, Operation, Value
from tilewright.graph.symbols import new_symbols, symbols_of
from tilewright.loop.ir import ONE, TRUE, ZERO, Address, Buffer, Expr, If, Select, Store, Var, While

Cells = dict[Any, Buffer]


@dataclass
class Needs:
    """What an operation with regions needs of the arena: `body` bytes for the regions (branches never live together, so the
    largest), and cells by what they hold: a symbol's value, a loop's counter and condition, and the carried values that
    another carried value takes over, each of which may have to be saved first."""
    body: int
    cells: Cells


class Place(Protocol):
    """What the lowering asks of the part of the plan around an operation."""
    cells: dict[int, Cells]
    buffers: dict[Value, Buffer]

    def where(self, v: Value) -> Buffer: ...
    def symbols_at(self, step: int) -> set[Var]: ...
    def measured(self, region: Graph, step: int) -> tuple[int, dict[Value, Value]]: ...
    def region(self, region: Graph, fixed: dict[Value, Buffer], results: Sequence[Output],
               step: int) -> tuple[list[Item], Place]: ...
    def copies_to(self, results: Sequence[Output]) -> list[Item]: ...
    def new_grown(self) -> int: ...


def needs_of(op: Operation, place: Place, step: int) -> Needs:
    """The arena that an operation's regions need, and its cells."""
    known, cells = place.symbols_at(step), Cells()
    measured = [place.measured(region, step) for region in op.regions]
    sized = [v for r in op.regions for v in r.inputs] if op.op == "loop" else op.outputs
    if op.op == "loop":
        cells["counter"] = Buffer("iteration", i64, (ONE,), "arena")
        cells["going"] = Buffer("going", boolean, (ONE,), "arena")
    rows = [d for v in op.outputs[len(op.inputs) - 2:] for d in v.shape[1:]] if op.op == "loop" else []
    for symbol in (*new_symbols(sized, known), *[s for s in symbols_of(rows) if s not in known]):
        cells[symbol] = Buffer(f"{symbol.name}_cell", i64, (ONE,), "arena")
    if op.op == "loop":
        (body,), ((_, root),) = op.regions, measured
        for p, v in zip(body.inputs[1:], body.outputs, strict=False):
            r = root.get(v, v)
            if r in body.inputs and r is not p and r not in cells and not new_symbols([r], known):
                cells[r] = Buffer(f"{r.name}_saved", r.dtype, r.shape, "arena")
    return Needs(max([size for size, _ in measured], default=0), cells)


def lower(op: Operation, place: Place, step: int) -> list[Item]:
    if op.op == "if_":
        return _if(op, place, step)
    if op.op == "loop":
        return _loop(op, place, step)
    raise InternalError(f"no host lowering for {op.op}")


# ---- if --------------------------------------------------------------------------------------------------------------
def _if(op: Operation, place: Place, step: int) -> list[Item]:
    known, cells = place.symbols_at(step), place.cells[step]
    open_ = [k for k, v in enumerate(op.outputs) if new_symbols([v], known)]
    grown = {k: place.new_grown() for k in open_}
    branches = []
    for region in op.regions:
        results = [Output(k, r, place.where(v)) for k, (v, r) in enumerate(zip(op.outputs, region.outputs, strict=True))
                   if k not in grown]
        items, part = place.region(region, {}, results, step)
        items += part.copies_to(results)
        for k in open_:
            r, v = region.outputs[k], op.outputs[k]
            items += _moved_to(grown[k], r, part.where(r), v.name)
            items += [Store(cells[s], (ZERO,), d) for s, d in zip(v.shape, r.shape, strict=True) if s in cells]
        branches.append(host.nested(items))
    (cond,) = (v for v in op.inputs[:1] if v is not None)
    out: list[Item] = [If(host.scalar_of(place.where(cond)), branches[0], branches[1])]
    out += [host.let(s, b[0]) for s, b in cells.items()]
    return out + [_result(place, op.outputs[k], grown[k]) for k in open_]


def _moved_to(slot: int, v: Value, source: Buffer, name: str) -> list[Item]:
    """A value copied into a growable allocation of its own."""
    there = host.buffer_of(v, f"{name}_new", "arena")
    return [host.allocate(there, host.grow(slot, host.nbytes(v))),
            host.copy_bytes(host.address(there), host.address(source), host.nbytes(v))]


def _result(place: Place, v: Value, slot: int) -> Item:
    """From here on, a result is what a growable allocation holds."""
    place.buffers[v] = host.buffer_of(v, v.name, "arena")
    return host.allocate(place.buffers[v], host.grow(slot, host.nbytes(v)))


# ---- loop ------------------------------------------------------------------------------------------------------------
def _loop(op: Operation, place: Place, step: int) -> list[Item]:
    """loop(bound?, cond?, carried…), body(turn, cond, carried…) -> (cond, carried…, rows…): carried values of fixed sizes
    live in the memory of the loop's results; a row goes to its place in the stacked result."""
    bound, start, *carried = op.inputs
    (body,) = op.regions
    known, cells, n = place.symbols_at(step), place.cells[step], len(carried)
    counter, going = cells["counter"], cells["going"]
    setup: list[Item] = [Store(counter, (ZERO,), ZERO),
                         Store(going, (ZERO,), TRUE if start is None else host.scalar_of(place.where(start)))]
    turn: list[Item] = []
    fixed = {body.inputs[0]: counter, body.inputs[1]: going}
    slots: dict[int, int] = {}
    seen: set[Var] = set()
    for k, (before, p, v) in enumerate(zip(carried, body.inputs[2:], op.outputs, strict=False)):
        assert before is not None
        if not new_symbols([p, v], known):
            fixed[p] = place.where(v)
            setup.append(host.copy(fixed[p], place.where(before)))
            continue
        slots[k] = place.new_grown()
        setup += _moved_to(slots[k], before, place.where(before), p.name)
        for s, d in zip(p.shape, before.shape, strict=True):
            if s in cells and s not in seen:
                assert isinstance(s, Var)
                seen.add(s)
                setup.append(Store(cells[s], (ZERO,), d))
                turn.append(host.let(s, cells[s][0]))
        fixed[p] = host.buffer_of(p, p.name, "arena")
        turn.append(host.allocate(fixed[p], host.grow(slots[k], host.nbytes(p))))
    inner, part = place.region(body, fixed, (), step)
    turn += inner
    before_rows, rows, after_rows = _stacked(op, place, part, known, cells)
    setup += before_rows
    turn += rows
    turn += _next_state(body, place, part, fixed, slots, cells)
    turn.append(Store(counter, (ZERO,), counter[0] + 1))
    cond: Expr = going[0]
    if bound is not None:
        cond = cond & (counter[0] < host.scalar_of(place.where(bound)))
    out: list[Item] = [*setup, While(cond, host.nested(turn)), *after_rows]
    for k in slots:
        p, v = body.inputs[2 + k], op.outputs[k]
        for d, s in zip(v.shape, p.shape, strict=True):
            if isinstance(d, Var) and d not in known:
                out.append(host.let(d, cells[s][0] if s in cells else s))
        out.append(_result(place, v, slots[k]))
    assert len(carried) == n
    return out


def _next_state(body: Graph, place: Place, part: Place, fixed: dict[Value, Buffer], slots: dict[int, int],
                cells: Cells) -> list[Item]:
    """The carried values' moves at the end of a turn, as if all at once: what a state of changing sizes takes from another
    state is put aside first, then the states of fixed sizes move, then those of changing ones."""
    states = set(fixed.values())
    out: list[Item] = []
    late: list[Item] = []
    fixed_moves: list[tuple[Buffer, Buffer]] = []
    for k, (p, q) in enumerate(zip(body.inputs[1:], body.outputs, strict=False)):
        source = part.where(q)
        if k - 1 not in slots:
            fixed_moves.append((fixed[p], source))
            continue
        if source is not fixed[p]:
            if source in states:
                aside = place.new_grown()
                out += _moved_to(aside, q, source, f"{p.name}_aside")
                source = host.buffer_of(q, f"{p.name}_aside", "arena")
                out.append(host.allocate(source, host.grow(aside, host.nbytes(q))))
            late += _moved_to(slots[k - 1], q, source, p.name)
        late += [Store(cells[s], (ZERO,), d) for s, d in zip(p.shape, q.shape, strict=True) if s in cells]
    room = {fixed[v]: b for v, b in cells.items() if isinstance(v, Value)}
    return [*out, *host.simultaneous(fixed_moves, lambda b: room[b]), *late]


def _stacked(op: Operation, place: Place, part: Place, known: set[Var],
             cells: Cells) -> tuple[list[Item], list[Item], list[Item]]:
    """What is done for the stacked results before the loop, in a turn, and after the loop. Sizes that the body decides are
    those of the first turn's row; another row must have the same."""
    (body,) = op.regions
    n, counter = len(op.inputs) - 2, cells["counter"]
    before, turn, after = list[Item](), list[Item](), list[Item]()
    lets: set[Var] = set()
    for v, row in zip(op.outputs[n:], body.outputs[1 + n:], strict=True):
        source, new = part.where(row), new_symbols([v], known)
        if not new:
            place_of_row = host.element(place.where(v), counter[0] * host.elements(row))
            turn.append(host.copy_bytes(place_of_row, host.address(source), host.nbytes(row)))
            continue
        for d, size in zip(v.shape[1:], row.shape, strict=True):
            if isinstance(d, Var) and d in cells:
                before.append(Store(cells[d], (ZERO,), ZERO))
                turn += [Store(cells[d], (ZERO,), Select(counter[0].eq(ZERO), size, cells[d][0])),
                         host.must_hold(cells[d][0].eq(size), f"{op.loc or v.name}: rows of different shapes are stacked")]
                after.append(host.let(d, cells[d][0]))
        slot, each = place.new_grown(), host.nbytes(row)
        used = dim(counter[0] * each)
        memory = Buffer(f"{v.name}_rows", u8, (used + each,), "arena")
        turn += [host.allocate(memory, host.grow_kept(slot, used + each, used)),
                 host.copy_bytes(Address(memory, (used,)), host.address(source), each)]
        if new[0] is v.shape[0] and new[0] not in lets:
            lets.add(new[0])
            after.append(host.let(new[0], counter[0]))
        after.append(_result(place, v, slot))
    return before, turn, after
