"""From fused groups to the host program: where every value lives and in which order kernels are launched.

In: a Graph, its groups (nested ones for regions) and the compiled kernel of each group. Out: the `Program` main, whose
buffers are parameters (inputs, outputs), arena buffers at planned offsets, and constants at offsets of the weights' blob;
If and Loop become the loop IR's If and While. No graph remains after this step.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tilewright.core.dtype import boolean, i32, i64, u8
from tilewright.core.errors import InternalError
from tilewright.graph.ir import Graph, Operation, Value, used_values
from tilewright.graph.memory import Storage, assign_offsets
from tilewright.graph.passes.fuse import Group, fuse
from tilewright.loop.ir import (
    ONE,
    TRUE,
    ZERO,
    Address,
    Allocate,
    Buffer,
    Call,
    Evaluate,
    Expr,
    If,
    Launch,
    Program,
    Stmt,
    Store,
    While,
    const,
    seq,
)


@dataclass
class Kernel:
    """What the plan needs to know of a group's kernel: its name, the values behind its parameters in order, and the sizes
    in bytes of the workspaces that follow them."""
    name: str
    arguments: list[Value]
    workspaces: list[int]


@dataclass
class HostPlan:
    """The host program, the bytes of the arena, per launch (in the order of the profile's numbers) its kernel's name
    and the group that it computes, and the stored values by their numbers for taps."""
    main: Program
    arena_bytes: int
    kernels: list[str]
    groups: list[Group]
    taps: list[Value]


class Planner:
    """Plans one graph; `kernel_of(group)` gives a group's kernel, `constant_at(value)` a constant's offset in the
    blob of weights, None for what is no constant."""

    def __init__(self, kernel_of: Callable[[Group], Kernel], constant_at: Callable[[Value], int | None]) -> None:
        self.kernel_of, self.constant_at = kernel_of, constant_at
        self.launches: list[tuple[str, Group]] = []
        self.taps: list[Value] = []
        self.constants: dict[Value, Buffer] = {}
        self.needs: dict[int, _LoopNeeds] = {}

    def plan(self, graph: Graph) -> HostPlan:
        """The host program of a whole model."""
        inputs = {v: _buffer(v, f"in_{v.name}", "global") for v in graph.inputs}
        outputs = [(v, _buffer(v, f"out_{v.name}", "global")) for v in graph.outputs]
        part = _Part(self, graph, inputs, outputs, base=0)
        body = part.statements() + part.copies_to(outputs)
        stmt = seq(*body)
        for b, offset in reversed(part.allocations):
            stmt = Allocate(b, stmt, const(offset))
        for v, b in self.constants.items():
            stmt = Allocate(b, stmt, const(self.constant_at(v) or 0))
        main = Program("main", (*inputs.values(), *[b for _, b in outputs]), stmt, (("entry", True),))
        return HostPlan(main, part.size, [name for name, _ in self.launches], [g for _, g in self.launches],
                        self.taps)


Results = Sequence[tuple[Value, Buffer]]


@dataclass
class _LoopNeeds:
    """What an operation with regions needs of the arena: `body` bytes for the regions (branches never live together, so the
    largest), and the carried values that another carried value takes over, each of which may have to be saved first."""
    body: int
    swapped: list[Value]


class _Part:
    """A graph or a region: its values' buffers, its statements and its share of the arena, starting at `base`.

    `fixed`: values that have a buffer already. `results`: values wanted in given buffers; where nothing forbids it they are
    computed there, `copies_to` moves the rest.
    """

    def __init__(self, planner: Planner, graph: Graph, fixed: dict[Value, Buffer], results: Results, base: int,
                 outer: _Part | None = None) -> None:
        self.planner, self.graph, self.outer, self.base = planner, graph, outer, base
        self.buffers: dict[Value, Buffer] = dict(fixed)
        self.allocations: list[tuple[Buffer, int]] = []
        self.groups = fuse(graph)
        self.size = 0
        self.scratch: dict[int, list[Storage]] = {}
        self.nested: dict[int, Storage] = {}
        self.saved: dict[int, list[Storage]] = {}
        self.root = self._alias_roots()
        self._place(results)

    # ---- memory ------------------------------------------------------------------------------------------------------
    def _place(self, results: Results) -> None:
        computed = {v for g in self.groups if g.kind != "alias" for v in _made(g)}
        for v, b in results:
            r = self.root.get(v, v)
            if r in computed and r not in self.buffers:
                self.buffers[r] = b
        last = self._last_uses()
        storages: list[Storage] = []
        of_root: dict[Value, Storage] = {}
        for step, g in enumerate(self.groups):
            if g.kind == "alias":
                continue
            for v in _made(g):
                if v not in self.buffers:
                    of_root[v] = Storage(v.name, _nbytes(v), step, last.get(v, step))
                    storages.append(of_root[v])
            if g.kind == "kernel":
                sizes = self.planner.kernel_of(g).workspaces
                self.scratch[step] = [Storage(f"workspace{step}", n, step, step) for n in sizes]
                storages += self.scratch[step]
            else:
                needs = _needs(self.planner, g.operations[0], self)
                self.nested[step] = Storage(f"region{step}", needs.body, step, step)
                self.saved[step] = [Storage(name, 8, step, step) for name in ("iteration", "going")]
                self.saved[step] += [Storage(f"{v.name}_saved", _nbytes(v), step, step) for v in needs.swapped]
                storages += [self.nested[step], *self.saved[step]]
        self.size = assign_offsets(storages)
        for v, r in self.root.items():
            if v not in self.buffers and r in of_root:
                self.buffers[v] = self._arena(_buffer(v, v.name, "arena"), of_root[r])

    def _alias_roots(self) -> dict[Value, Value]:
        """Each value of this part, with the value whose memory it shares (itself, unless it is a reshape of another)."""
        root: dict[Value, Value] = {v: v for v in self.buffers}
        for g in self.groups:
            if g.kind == "alias":
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
        """The buffer of a value: of this part, of a part around it, or a constant."""
        if v in self.buffers:
            return self.buffers[v]
        r = self.root.get(v, v)
        if r is not v:
            return self.where(r)
        if self.planner.constant_at(v) is not None:
            return self.planner.constants.setdefault(v, _buffer(v, v.name, "const"))
        if self.outer is not None:
            return self.outer.where(v)
        raise InternalError(f"value {v} has no memory")

    # ---- statements --------------------------------------------------------------------------------------------------
    def statements(self) -> list[Stmt]:
        out: list[Stmt] = []
        for step, g in enumerate(self.groups):
            if g.kind == "kernel":
                out += self._launch(step, g)
            elif g.kind == "control":
                op = g.operations[0]
                lower = {"if_": self._if, "loop": self._loop}.get(op.op)
                if lower is None:
                    raise InternalError(f"no host lowering for {op.op}")
                out += lower(op, step)
        return out

    def copies_to(self, results: Results) -> list[Stmt]:
        """Moves to their buffers the results that were not computed there."""
        return [_copy(b, self.where(v)) for v, b in results if self.where(v) is not b]

    def _launch(self, step: int, g: Group) -> list[Stmt]:
        k = self.planner.kernel_of(g)
        args = [_address(self.where(v)) for v in k.arguments]
        for s in self.scratch[step]:
            args.append(_address(self._arena(Buffer(s.name, u8, (const(s.size),), "arena"), s)))
        index = len(self.planner.launches)
        self.planner.launches.append((k.name, g))
        begin, end = (Evaluate(Call(f"tw_profile_{when}", (const(index, i32),), i64)) for when in ("begin", "end"))
        return [begin, Launch(k.name, tuple(args)), end, *[self._tap(v) for v in g.outputs]]

    def _tap(self, v: Value) -> Stmt:
        """Report a value that has just been stored; the runtime passes it on if somebody listens."""
        number = const(len(self.planner.taps), i32)
        self.planner.taps.append(v)
        return Evaluate(Call("tw_tap", (number, _address(self.where(v)), _size_of(v)), i64))

    def _region(self, region: Graph, fixed: dict[Value, Buffer], results: Results, step: int) -> tuple[list[Stmt], _Part]:
        part = _Part(self.planner, region, fixed, results, self.base + self.nested[step].offset, outer=self)
        stmts = part.statements()
        self.allocations += part.allocations
        return stmts, part

    def _if(self, op: Operation, step: int) -> list[Stmt]:
        branches = []
        for region in op.regions:
            results = [(r, self.where(v)) for v, r in zip(op.outputs, region.outputs, strict=True)]
            stmts, part = self._region(region, {}, results, step)
            branches.append(seq(*stmts, *part.copies_to(results)))
        (cond,) = (v for v in op.inputs[:1] if v is not None)
        return [If(_scalar_of(self.where(cond)), branches[0], branches[1])]

    def _loop(self, op: Operation, step: int) -> list[Stmt]:
        """loop(bound?, cond?, carried…), body(turn, cond, carried…) -> (cond, carried…, rows…): the carried values live in
        the memory of the loop's results; a row goes to its place in the stacked result."""
        bound, start, *carried = op.inputs
        (body,) = op.regions
        of_counter, of_going, *saved = self.saved[step]
        homes = dict(zip(_needs(self.planner, op, self).swapped, saved, strict=True))
        counter = self._arena(Buffer("iteration", i64, (ONE,), "arena"), of_counter)
        going = self._arena(Buffer("going", boolean, (ONE,), "arena"), of_going)
        state = [self.where(v) for v in op.outputs[:len(carried)]]
        setup: list[Stmt] = [Store(counter, (ZERO,), ZERO),
                             Store(going, (ZERO,), TRUE if start is None else _scalar_of(self.where(start)))]
        setup += [_copy(s, self.where(v)) for s, v in zip(state, carried, strict=True) if v is not None]
        fixed = dict(zip(body.inputs, [counter, going, *state], strict=True))
        inner, part = self._region(body, fixed, (), step)
        for v, row in zip(op.outputs[len(carried):], body.outputs[1 + len(carried):], strict=True):
            place = _element(self.where(v), counter[0] * _elements(row))
            source = part.where(row)
            inner.append(Evaluate(Call("copy_bytes", (place, _address(source), _size_of(row)), i64)))
        moves = [(to, part.where(v)) for to, v in zip([going, *state], body.outputs[:1 + len(carried)], strict=True)]
        room = {fixed[v]: s for v, s in homes.items()}
        inner += _simultaneous(moves, lambda b: self._arena(Buffer(f"{b.name}_saved", b.dtype, b.shape, "arena"), room[b]))
        inner.append(Store(counter, (ZERO,), counter[0] + 1))
        cond: Expr = going[0]
        if bound is not None:
            cond = cond & (counter[0] < _scalar_of(self.where(bound)))
        return [*setup, While(cond, seq(*inner))]


def _made(g: Group) -> Sequence[Value]:
    """The values that a group stores: of an operation with regions all, also those that nobody reads."""
    return g.operations[0].outputs if g.kind == "control" else g.outputs


def _simultaneous(moves: list[tuple[Buffer, Buffer]], save: Callable[[Buffer], Buffer]) -> list[Stmt]:
    """Copies (to, from) as if all at once: a buffer is overwritten when nobody needs it any more; a cycle, as in
    (a, b) = (b, a), is broken by saving one of its buffers elsewhere."""
    out: list[Stmt] = []
    left = [(to, source) for to, source in moves if to is not source]
    while left:
        free = next((m for m in left if all(source is not m[0] for _, source in left)), None)
        if free is None:
            held = left[0][0]
            kept = save(held)
            out.append(_copy(kept, held))
            left = [(to, kept if source is held else source) for to, source in left]
        else:
            out.append(_copy(*free))
            left.remove(free)
    return out


def _needs(planner: Planner, op: Operation, outer: _Part) -> _LoopNeeds:
    """The arena that an operation's regions need, found once per operation."""
    if id(op) not in planner.needs:
        parts = [_Part(planner, region, {v: _buffer(v, v.name, "arena") for v in region.inputs}, (), 0, outer=outer)
                 for region in op.regions]
        swapped: dict[Value, None] = {}
        if op.op == "loop":
            (part,) = parts
            body = part.graph
            for place, v in zip(body.inputs[1:], body.outputs, strict=False):
                r = part.root.get(v, v)
                if r in body.inputs and r is not place:
                    swapped.setdefault(r)
        planner.needs[id(op)] = _LoopNeeds(max((p.size for p in parts), default=0), list(swapped))
    return planner.needs[id(op)]


def _nbytes(v: Value) -> int:
    return _elements(v) * v.dtype.nbytes


def _buffer(v: Value, name: str, scope: str) -> Buffer:
    return Buffer(name, v.dtype, v.shape, scope)


def _address(b: Buffer) -> Address:
    return Address(b, (ZERO,) * b.rank)


def _scalar_of(b: Buffer) -> Expr:
    return b[(ZERO,) * b.rank] if b.rank else b[()]


def _elements(v: Value) -> int:
    n = 1
    for d in v.type.sizes():
        n *= d
    return n


def _element(b: Buffer, number: Expr) -> Address:
    """The address of an element by its number in row-major order (the buffer may have another shape than the value)."""
    indices: list[Expr] = []
    for d in reversed(b.shape):
        indices.insert(0, number % d)
        number = number // d
    return Address(b, tuple(indices))


def _size_of(v: Value) -> Expr:
    return const(_nbytes(v))


def _copy(to: Buffer, source: Buffer) -> Stmt:
    n: Expr = const(to.dtype.nbytes)
    for d in to.shape:
        n = n * d
    return Evaluate(Call("copy_bytes", (_address(to), _address(source), n), i64))
