"""From fused groups to the host program: where every value lives and in which order kernels are launched.

In: a Graph, its groups (nested ones for regions) and the compiled kernel of each group. Out: the `Program` main, whose
buffers are parameters (inputs, outputs), arena buffers at planned offsets, and constants at offsets of the weights' blob;
If and Loop become the loop IR's If and While (`plan_control.py`). No graph remains after this step.

Symbols. Those of the inputs' shapes are parameters of main; others get their values while it runs: from a `sizes` operation
or from an operation with regions. Values whose bytes depend on symbols live in a growable allocation, one for each place
where symbols get values: there the bytes of its slots are computed and their sum is asked for.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tilewright.core.dtype import i32, i64, u8
from tilewright.core.errors import InternalError
from tilewright.graph import host, plan_control
from tilewright.graph.host import Item, Output
from tilewright.graph.infer import dim
from tilewright.graph.ir import Check, Graph, Operation, Value, used_values
from tilewright.graph.memory import Flexible, Slot, Storage, assign_offsets, assign_slots
from tilewright.graph.ops.bounds import message
from tilewright.graph.passes.fuse import Group, fuse
from tilewright.graph.registry import record_of
from tilewright.graph.symbols import defined_symbols, new_symbols, symbols_of
from tilewright.loop.ir import (
    HOST_CALL,
    ZERO,
    Address,
    Assert,
    Buffer,
    Call,
    Evaluate,
    Expr,
    Launch,
    Program,
    Var,
    as_int,
    const,
)
from tilewright.loop.substitute import free_vars

SHARING = frozenset({"alias", "sizes", "check"})
"""Groups whose result is in the memory of their first operand."""

ENTRY = -1
"""The step at which a graph's or region's own symbols have values: before the first group."""


@dataclass
class Kernel:
    """What the plan needs to know of a group's kernel: its name, the values behind its parameters in order, then the sizes
    that it takes, and the sizes in bytes of the workspaces that follow them."""
    name: str
    arguments: list[Value]
    sizes: list[Expr]
    workspaces: list[Expr]


@dataclass(frozen=True)
class HostCall:
    """A call back into the process for one operation: what it gets are the addresses of `operands` and `results`, of a cell
    for the sizes in `decides` if there are any, and the values of `symbols`. What decides sizes has two calls."""
    op: Operation
    operands: list[Value]
    results: list[Value]
    symbols: list[Var]
    decides: list[Var] = field(default_factory=list)


@dataclass
class HostPlan:
    """A host program, for each of its parameters where the entry finds it, the bytes of the arena and the number of
    growable allocations, per launch (in the order of the profile's numbers) its kernel's name and the group that it
    computes, the stored values by their numbers for taps, and the host calls by their slots."""
    main: Program
    sources: tuple[tuple[str | int, ...], ...]
    arena_bytes: int
    grown: int
    kernels: list[str]
    groups: list[Group]
    taps: list[Value]
    hosts: list[HostCall]


class Planner:
    """Plans graphs that share kernels, weights and the numbers of launches and taps; `kernel_of(group)` gives a group's
    kernel, `constant_at(value)` a constant's offset in the blob of weights, None for what is no constant."""

    def __init__(self, kernel_of: Callable[[Group], Kernel], constant_at: Callable[[Value], int | None]) -> None:
        self.kernel_of, self.constant_at = kernel_of, constant_at
        self.launches: list[tuple[str, Group]] = []
        self.taps: list[Value] = []
        self.hosts: list[HostCall] = []
        self.constants: dict[Value, Buffer] = {}
        self.grown = 0

    def plan(self, graph: Graph, name: str = "main", made_outputs: Iterable[int] = ()) -> HostPlan:
        """The host program of a whole model. `made_outputs`: outputs whose memory the program asks the runtime for, beside
        those whose sizes are not known before."""
        self.constants, self.grown = {}, 0
        inputs = {v: host.buffer_of(v, f"in_{v.name}", "global") for v in graph.inputs}
        sources = {d: ("dim", len(graph.inputs) + i, axis) for i, v in reversed([*enumerate(graph.inputs)])
                   for axis, d in reversed([*enumerate(v.shape)]) if isinstance(d, Var)}
        made = {*made_outputs, *[k for k, v in enumerate(graph.outputs) if not v.type.is_static]}
        outputs = [Output(k, v, host.buffer_of(v, f"out_{v.name}", "arena" if k in made else "global"), k in made)
                   for k, v in enumerate(graph.outputs)]
        part = Part(self, graph, inputs, outputs, base=0, visible=set(sources))
        stmt = host.nested(part.items() + part.copies_to(outputs))
        for b, offset in reversed(part.allocations):
            stmt = host.allocate(b, const(offset))(stmt)
        for v, b in self.constants.items():
            stmt = host.allocate(b, const(self.constant_at(v) or 0))(stmt)
        given = [o for o in outputs if not o.made]
        main = Program(name, (*inputs.values(), *[o.buffer for o in given], *sources), stmt, (("entry", True),))
        places = (*[("in", i) for i in range(len(inputs))], *[("out", o.number) for o in given], *sources.values())
        return HostPlan(main, places, part.size, self.grown, [n for n, _ in self.launches], [g for _, g in self.launches],
                        self.taps, self.hosts)

    def new_grown(self) -> int:
        """The number of a growable allocation of its own."""
        self.grown += 1
        return self.grown - 1


@dataclass
class _Opening:
    """What happens where symbols get their values: storages that depend on them, outputs that are asked for."""
    storages: list[Flexible] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    buffers: list[tuple[Buffer, Flexible]] = field(default_factory=list)
    outputs: list[tuple[Output, Buffer]] = field(default_factory=list)


class Part:
    """A graph or a region: its values' buffers, its items and its share of the arena, starting at `base`.

    `fixed`: values that have a buffer already. `results`: values wanted in given buffers; where nothing forbids it they are
    computed there, `copies_to` moves the rest. `visible`: the symbols that have values when it starts.
    """

    def __init__(self, planner: Planner, graph: Graph, fixed: dict[Value, Buffer], results: Sequence[Output], base: int,
                 visible: set[Var], outer: Part | None = None) -> None:
        self.planner, self.graph, self.outer, self.base = planner, graph, outer, base
        self.buffers: dict[Value, Buffer] = dict(fixed)
        self.allocations: list[tuple[Buffer, int]] = []
        self.groups = fuse(graph)
        self.size = 0
        self.scratch: dict[int, list[Buffer]] = {}
        self.nested: dict[int, Storage] = {}
        self.cells: dict[int, dict[str | Var, Buffer]] = {}
        self.bound: dict[Var, int] = dict.fromkeys(visible, ENTRY)
        self.openings: dict[int, _Opening] = {}
        self.checks: list[Check] = list(graph.checks)
        self.root = self._alias_roots()
        self._find_symbols()
        self._place(results)

    # ---- symbols -----------------------------------------------------------------------------------------------------
    def _find_symbols(self) -> None:
        """The step at which each symbol gets its value."""
        for step, g in enumerate(self.groups):
            if g.kind != "kernel":
                for v in defined_symbols(g.operations[0], self.bound):
                    self.bound.setdefault(v, step)

    def opened_at(self, sizes: Iterable[Expr]) -> int:
        """The step from which on expressions of sizes can be computed."""
        symbols = symbols_of(sizes)
        unknown = [v.name for v in symbols if v not in self.bound]
        if unknown:
            raise InternalError(f"nothing gives {', '.join(unknown)} a value")
        return max([self.bound[v] for v in symbols], default=ENTRY)

    def symbols_at(self, step: int) -> set[Var]:
        return {v for v, s in self.bound.items() if s < step}

    # ---- memory ------------------------------------------------------------------------------------------------------
    def _place(self, results: Sequence[Output]) -> None:
        made_at = {v: step for step, g in enumerate(self.groups) if g.kind in ("kernel", "control", "host")
                   for v in _made(g)}
        for o in results:
            r = self.root.get(o.value, o.value)
            if r in made_at and r not in self.buffers and self.opened_at(o.value.shape) < made_at[r]:
                self.buffers[r] = o.buffer
        last = self._last_uses()
        storages: list[Storage] = []
        of_root: dict[Value, Storage] = {}
        kept: list[tuple[Buffer, Storage]] = []

        def keep(b: Buffer, size: Expr, first: int, last: int) -> Buffer:
            """Memory for a buffer that is no value's."""
            n = as_int(size)
            if n is None:
                self._flexible(b, size, first, last)
            else:
                s = Storage(b.name, n, first, last)
                storages.append(s)
                kept.append((b, s))
            return b

        for step, g in enumerate(self.groups):
            if g.kind in SHARING:
                continue
            for v in _made(g):
                if v in self.buffers:
                    continue
                n = as_int(host.nbytes(v))
                if n is not None and v.type.is_static:
                    of_root[v] = Storage(v.name, n, step, last.get(v, step))
                    storages.append(of_root[v])
                elif self.opened_at(v.shape) < step or g.kind == "host":
                    self.buffers[v] = host.buffer_of(v, v.name, "arena")
                    self._flexible(self.buffers[v], host.nbytes(v), step, last.get(v, step))
                # else the operation itself finds memory for it
            if g.kind == "kernel":
                self.scratch[step] = [keep(Buffer(f"workspace{step}", u8, (n,), "arena"), n, step, step)
                                      for n in self.planner.kernel_of(g).workspaces]
            elif g.kind == "host" and self._decided(step):
                size = const(len(self._decided(step)))
                self.cells[step] = {"sizes": keep(Buffer(f"sizes{step}", i64, (size,), "arena"), size * 8, step, step)}
            elif g.kind == "control":
                needs = plan_control.needs_of(g.operations[0], self, step)
                self.nested[step] = Storage(f"region{step}", needs.body, step, step)
                storages.append(self.nested[step])
                self.cells[step] = {key: keep(b, b_size(b), step, step) for key, b in needs.cells.items()}
        for o in results:
            if o.made:
                at = self.opened_at(o.value.shape)
                cell = keep(Buffer(f"shape_{o.value.name}", i64, (const(max(o.value.rank, 1)),), "arena"),
                            const(8 * max(o.value.rank, 1)), at, at)
                self.openings.setdefault(at, _Opening()).outputs.append((o, cell))
        self.size = assign_offsets(storages)
        for v, r in self.root.items():
            if v not in self.buffers and r in of_root and v.type.is_static:
                self.buffers[v] = self._arena(host.buffer_of(v, v.name, "arena"), of_root[r])
        for b, s in kept:
            self._arena(b, s)
        for opening in self.openings.values():
            opening.slots = assign_slots(opening.storages)

    def _flexible(self, b: Buffer, size: Expr, first: int, last: int) -> None:
        opening = self.openings.setdefault(self.opened_at([size, *b.shape]), _Opening())
        s = Flexible(b.name, size, first, last)
        opening.storages.append(s)
        opening.buffers.append((b, s))

    def _alias_roots(self) -> dict[Value, Value]:
        """Each value of this part, with the value whose memory it shares (itself, unless it is a reshape of another)."""
        root: dict[Value, Value] = {v: v for v in self.buffers}
        for g in self.groups:
            if g.kind in SHARING:
                src = g.operations[0].inputs[0]
                assert src is not None
                root[g.operations[0].output] = root.get(src, src)
            else:
                for v in _made(g):
                    root[v] = v
        return root

    def _last_uses(self) -> dict[Value, int]:
        last: dict[Value, int] = {}
        for step, g in enumerate(self.groups):
            for op in g.operations:
                for v in used_values(op):
                    last[self.root.get(v, v)] = step
        for v in self.graph.outputs:
            last[self.root.get(v, v)] = len(self.groups)
        return last

    def _arena(self, b: Buffer, s: Storage) -> Buffer:
        self.allocations.append((b, self.base + s.offset))
        return b

    def where(self, v: Value) -> Buffer:
        """The buffer of a value: of this part, of a part around it, or a constant. An alias may have its root's."""
        if v in self.buffers:
            return self.buffers[v]
        r = self.root.get(v, v)
        if r is not v:
            return self.where(r)
        if self.planner.constant_at(v) is not None:
            return self.planner.constants.setdefault(v, host.buffer_of(v, v.name, "const"))
        if self.outer is not None:
            return self.outer.where(v)
        raise InternalError(f"value {v} has no memory")

    # ---- regions -----------------------------------------------------------------------------------------------------
    def measured(self, region: Graph, step: int) -> tuple[int, dict[Value, Value]]:
        """The bytes of the arena that a region takes, and its values' roots."""
        fixed = {v: host.buffer_of(v, v.name, "arena") for v in region.inputs}
        part = Part(self.planner, region, fixed, (), 0, self._inside(region, step), outer=self)
        return part.size, part.root

    def region(self, region: Graph, fixed: dict[Value, Buffer], results: Sequence[Output],
               step: int) -> tuple[list[Item], Part]:
        """The items of a region, and its part."""
        part = Part(self.planner, region, fixed, results, self.base + self.nested[step].offset,
                    self._inside(region, step), outer=self)
        items = part.items()
        self.allocations += part.allocations
        return items, part

    def _inside(self, region: Graph, step: int) -> set[Var]:
        known = self.symbols_at(step)
        return known | set(new_symbols(region.inputs, known))

    def new_grown(self) -> int:
        return self.planner.new_grown()

    # ---- items -------------------------------------------------------------------------------------------------------
    def items(self) -> list[Item]:
        out: list[Item] = self._opened(ENTRY)
        for step, g in enumerate(self.groups):
            if g.kind == "kernel":
                out += self._launch(step, g)
            elif g.kind == "sizes":
                out += self._sizes(g.operations[0]) + self._opened(step)
            elif g.kind == "check":
                out += self._check(g.operations[0])
            elif g.kind == "host":
                out += self._host(step, g.operations[0])
            elif g.kind == "control":
                out += plan_control.lower(g.operations[0], self, step) + self._opened(step)
        return out

    def copies_to(self, results: Sequence[Output]) -> list[Item]:
        """Moves to their buffers the results that were not computed there."""
        return [host.copy(o.buffer, self.where(o.value)) for o in results if self.where(o.value) is not o.buffer]

    def _opened(self, step: int) -> list[Item]:
        """What follows when the symbols of a step have their values: checks, then memory."""
        out: list[Item] = []
        known = {v for v, s in self.bound.items() if s <= step}
        ready = [c for c in self.checks if set(free_vars(c.cond)) <= known]
        self.checks = [c for c in self.checks if c not in ready]
        out += [host.must_hold(c.cond, c.message, c.values) for c in ready]
        opening = self.openings.get(step)
        if opening is None:
            return out
        at: dict[int, Expr] = {}
        total: Expr = ZERO
        for slot in opening.slots:
            offset = Var("offset")
            out.append(host.let(offset, total))
            total = offset + slot.size()
            at |= {id(s): offset for s in slot.members}
        if opening.slots:
            memory = Buffer("memory", u8, (total,), "arena")
            out.append(host.allocate(memory, host.grow(self.planner.new_grown(), total)))
            out += [host.allocate(b, Address(memory, (at[id(s)],))) for b, s in opening.buffers]
        for o, cell in opening.outputs:
            stores, found = host.output_memory(o.number, o.value.shape, cell, host.nbytes(o.value))
            out += [*stores, host.allocate(o.buffer, found)]
        return out

    def _sizes(self, op: Operation) -> list[Item]:
        """Elements of a small tensor become the values of symbols, each checked against its span."""
        (x,) = op.inputs
        assert x is not None
        b, out = self.where(x), list[Item]()
        for k, symbol in enumerate(op.attrs["symbols"]):
            value = b[host.element(b, const(k)).indices].cast(i64)
            out.append(host.let(symbol, value))
            span, what = symbol.span, op.loc or x.name
            if span is not None:
                inside = symbol >= span.least if span.most is None else (symbol >= span.least) & (symbol <= span.most)
                out.append(host.must_hold(inside, f"{what}: the size {symbol.name} is not in {span}"))
        return out

    def _check(self, op: Operation) -> list[Item]:
        """Compare the least and the greatest index with each extent."""
        out: list[Item] = []
        ends = [self.where(v) for v in op.inputs[1:] if v is not None]
        for k, extent in enumerate(op.attrs["extents"]):
            found = [Var("least"), Var("most")]
            out += [host.let(v, b[host.element(b, const(k)).indices]) for v, b in zip(found, ends, strict=True)]
            fits = (found[0] >= (0 if op.attrs["from_front"] else 0 - extent)) & (found[1] < extent)
            out.append(Assert(fits, host.ERROR_INDEX, message(op.attrs["what"]), (*found, extent)))
        return out

    def _launch(self, step: int, g: Group) -> list[Item]:
        k = self.planner.kernel_of(g)
        args = [*[host.address(self.where(v)) for v in k.arguments], *[dim(e) for e in k.sizes],
                *[host.address(b) for b in self.scratch[step]]]
        index = len(self.planner.launches)
        self.planner.launches.append((k.name, g))
        begin, end = (Evaluate(Call(f"tw_profile_{when}", (const(index, i32),), i64)) for when in ("begin", "end"))
        return [begin, Launch(k.name, tuple(args)), end, *[self._tap(v) for v in g.outputs]]

    def _host(self, step: int, op: Operation) -> list[Item]:
        """Call back for one operation. Where it decides sizes, a first call tells them, and a second brings the results."""
        operands, fresh = [v for v in op.inputs if v is not None], self._decided(step)
        dims = [d for name, spec in record_of(op).attrs.items() if spec.type in ("dims", "dim")
                for d in (op.attrs[name] if isinstance(op.attrs[name], tuple) else [op.attrs[name]]) if d is not None]
        known = symbols_of([*[d for v in (*operands, *op.outputs) for d in v.shape], *dims])
        known = [s for s in known if s not in fresh]
        taps = [self._tap(v) for v in op.outputs]
        if not fresh:
            return [self._call(HostCall(op, operands, list(op.outputs), known)), *taps]
        cell = self.cells[step]["sizes"]
        first = self._call(HostCall(op, operands, [], known, fresh), cell)
        values = [host.let(s, cell[k]) for k, s in enumerate(fresh)]
        second = self._call(HostCall(op, [], list(op.outputs), [*known, *fresh]))
        return [first, *values, *self._opened(step), second, *taps]

    def _call(self, call: HostCall, *cells: Buffer) -> Item:
        slot = len(self.planner.hosts)
        self.planner.hosts.append(call)
        places = [*[self.where(v) for v in (*call.operands, *call.results)], *cells]
        return Launch(HOST_CALL, (const(slot, i32), *[host.address(b) for b in places], *call.symbols))

    def _decided(self, step: int) -> list[Var]:
        """The symbols that get their values at a step."""
        return [s for s, at in self.bound.items() if at == step]

    def _tap(self, v: Value) -> Item:
        """Report a value that has just been stored; the runtime passes it on if somebody listens."""
        number = const(len(self.planner.taps), i32)
        self.planner.taps.append(v)
        return Evaluate(Call("tw_tap", (number, host.address(self.where(v)), host.nbytes(v)), i64))


def b_size(b: Buffer) -> Expr:
    """The bytes of a buffer."""
    n: Expr = const(b.dtype.nbytes)
    for d in b.shape:
        n = n * d
    return dim(n)


def _made(g: Group) -> Sequence[Value]:
    """The values that a group stores: of an operation with regions, or on the host, all, also those that nobody reads."""
    return g.operations[0].outputs if g.kind in ("control", "host") else g.outputs
