"""From fused groups to the host program: where every value lives and in which order kernels are launched.

In: a Graph, its groups (nested ones for regions) and the compiled kernel of each group. Out: the `Program` main, whose
buffers are parameters (inputs, outputs), arena buffers at planned offsets, and constants at offsets of the weights' blob;
If and Loop become the loop IR's If and While. No graph remains after this step.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tilewright.core.dtype import DType, boolean, i64, u8
from tilewright.core.errors import InternalError
from tilewright.graph.ir import Graph, Operation, Value, used_values
from tilewright.graph.memory import Storage, assign_offsets, round_up
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
    """The host program and the figures of the memory plan (bytes)."""
    main: Program
    arena_bytes: int
    kernels: list[str]
    constants: dict[Value, int] = field(default_factory=dict)


class Planner:
    """Plans one graph; `kernel_of(group)` gives a group's kernel, `constant_at(value)` a constant's offset in the
    blob of weights, None for what is no constant."""

    def __init__(self, kernel_of: Callable[[Group], Kernel], constant_at: Callable[[Value], int | None]) -> None:
        self.kernel_of, self.constant_at = kernel_of, constant_at
        self.kernel_names: list[str] = []
        self.constants: dict[Value, Buffer] = {}

    def plan(self, graph: Graph) -> HostPlan:
        """The host program of a whole model."""
        inputs = {v: _buffer(v, f"in_{v.name}", "global") for v in graph.inputs}
        outputs: list[Buffer] = [_buffer(v, f"out_{v.name}", "global") for v in graph.outputs]
        fixed: dict[Value, Buffer] = dict(inputs)
        for v, b in zip(graph.outputs, outputs, strict=True):
            if v not in fixed and not v.is_constant:
                fixed[v] = b
        part = _Part(self, graph, fixed, base=0)
        body = part.statements()
        for v, b in zip(graph.outputs, outputs, strict=True):
            if part.buffers.get(v, self.constants.get(v)) is not b:
                body.append(_copy(b, part.where(v)))
        stmt = seq(*body)
        for b, offset in reversed(part.allocations):
            stmt = Allocate(b, stmt, const(offset))
        for v, b in self.constants.items():
            stmt = Allocate(b, stmt, const(self.constant_at(v) or 0))
        main = Program("main", (*inputs.values(), *outputs), stmt, (("entry", True),))
        return HostPlan(main, part.size, self.kernel_names)


class _Part:
    """A graph or a region: its values' buffers, its statements and its share of the arena, starting at `base`."""

    def __init__(self, planner: Planner, graph: Graph, fixed: dict[Value, Buffer], base: int,
                 outer: _Part | None = None) -> None:
        self.planner, self.graph, self.outer, self.base = planner, graph, outer, base
        self.buffers: dict[Value, Buffer] = dict(fixed)
        self.allocations: list[tuple[Buffer, int]] = []
        self.groups = fuse(graph)
        self.size = 0
        self.scratch: dict[int, list[Storage]] = {}
        self.nested: dict[int, Storage] = {}
        self._place(fixed)

    # ---- memory ------------------------------------------------------------------------------------------------------
    def _place(self, fixed: dict[Value, Buffer]) -> None:
        root = self._alias_roots()
        last = self._last_uses(root)
        storages: list[Storage] = []
        of_root: dict[Value, Storage] = {}
        for step, g in enumerate(self.groups):
            if g.kind == "alias":
                continue
            for v in g.outputs:
                r = root[v]
                if r not in of_root and r not in self.buffers and not self._fixed_through_alias(r, root, fixed):
                    of_root[r] = Storage(v.name, _nbytes(v), step, last.get(r, step))
                    storages.append(of_root[r])
            if g.kind == "kernel":
                sizes = self.planner.kernel_of(g).workspaces
                self.scratch[step] = [Storage(f"workspace{step}", n, step, step) for n in sizes]
                storages += self.scratch[step]
            else:
                need = _region_bytes(self.planner, g.operations[0], self)
                self.nested[step] = Storage(f"region{step}", need, step, step)
                storages.append(self.nested[step])
        self.size = assign_offsets(storages)
        for v, r in root.items():
            if v in self.buffers:
                continue
            if r in of_root:
                self.buffers[v] = self._arena(v, of_root[r].offset)
            elif r in self.buffers:
                self.buffers[v] = self.buffers[r]

    def _alias_roots(self) -> dict[Value, Value]:
        """Each value of this part, with the value whose memory it shares (itself, unless it is a reshape of another)."""
        root: dict[Value, Value] = {v: v for v in self.buffers}
        for g in self.groups:
            if g.kind == "alias":
                src = g.operations[0].inputs[0]
                assert src is not None
                root[g.operations[0].output] = root.get(src, src)
            else:
                for v in g.outputs:
                    root[v] = v
        return root

    def _fixed_through_alias(self, r: Value, root: dict[Value, Value], fixed: dict[Value, Buffer]) -> bool:
        """A value that is a model output under another shape is written to the output's memory at once."""
        for v in self.graph.outputs:
            if root.get(v) is r and v in fixed and v is not r:
                self.buffers[r] = fixed[v]
                return True
        return False

    def _last_uses(self, root: dict[Value, Value]) -> dict[Value, int]:
        last: dict[Value, int] = {}
        for step, g in enumerate(self.groups):
            for op in g.operations:
                for v in used_values(op):
                    last[root.get(v, v)] = step
        for v in self.graph.outputs:
            last[root.get(v, v)] = len(self.groups)
        return last

    def _arena(self, v: Value, offset: int) -> Buffer:
        b = _buffer(v, v.name, "arena")
        self.allocations.append((b, self.base + offset))
        return b

    def scalar(self, name: str, dtype: DType) -> Buffer:
        """A host scalar in the arena, behind everything else of this part."""
        b = Buffer(name, dtype, (ONE,), "arena")
        self.allocations.append((b, self.base + self.size))
        self.size += round_up(8)
        return b

    def where(self, v: Value) -> Buffer:
        """The buffer of a value: of this part, of a part around it, or a constant."""
        if v in self.buffers:
            return self.buffers[v]
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
                out += lower(op, self.base + self.nested[step].offset)
        return out

    def _launch(self, step: int, g: Group) -> list[Stmt]:
        k = self.planner.kernel_of(g)
        args = [_address(self.where(v)) for v in k.arguments]
        for s in self.scratch[step]:
            b = Buffer(s.name, u8, (const(s.size),), "arena")
            self.allocations.append((b, self.base + s.offset))
            args.append(_address(b))
        index = len(self.planner.kernel_names)
        self.planner.kernel_names.append(k.name)
        return [Evaluate(Call("profile_begin", (const(index),), i64)), Launch(k.name, tuple(args)),
                Evaluate(Call("profile_end", (const(index),), i64))]

    def _region(self, region: Graph, fixed: dict[Value, Buffer], base: int) -> tuple[list[Stmt], _Part]:
        part = _Part(self.planner, region, fixed, base, outer=self)
        stmts = part.statements()
        self.allocations += part.allocations
        return stmts, part

    def _if(self, op: Operation, base: int) -> list[Stmt]:
        branches = []
        for region in op.regions:
            stmts, part = self._region(region, {}, base)
            stmts += [_copy(self.where(v), part.where(r)) for v, r in zip(op.outputs, region.outputs, strict=True)]
            branches.append(seq(*stmts))
        (cond,) = (v for v in op.inputs[:1] if v is not None)
        return [If(_scalar_of(self.where(cond)), branches[0], branches[1])]

    def _loop(self, op: Operation, base: int) -> list[Stmt]:
        """loop(trip_count?, cond?, carried...): body(iteration, cond, carried...) -> (cond, carried...)."""
        trip, start, *carried = op.inputs
        (body,) = op.regions
        counter, going = self.scalar("iteration", i64), self.scalar("going", boolean)
        state = [self.where(v) for v in op.outputs]
        setup: list[Stmt] = [Store(counter, (ZERO,), ZERO),
                 Store(going, (ZERO,), TRUE if start is None else _scalar_of(self.where(start)))]
        setup += [_copy(s, self.where(v)) for s, v in zip(state, carried, strict=True) if v is not None]
        fixed = dict(zip(body.inputs, [counter, going, *state], strict=True))
        inner, part = self._region(body, fixed, base)
        inner += [_copy(s, part.where(v)) for s, v in zip(state, body.outputs[1:], strict=True)
                  if part.where(v) is not s]
        inner += [Store(going, (ZERO,), _scalar_of(part.where(body.outputs[0]))),
                  Store(counter, (ZERO,), counter[0] + 1)]
        cond: Expr = going[0]
        if trip is not None:
            cond = cond & (counter[0] < _scalar_of(self.where(trip)))
        return [*setup, While(cond, seq(*inner))]


def _region_bytes(planner: Planner, op: Operation, outer: _Part) -> int:
    """Arena bytes that the regions of an operation need: branches never live together, so the largest."""
    names, constants = list(planner.kernel_names), dict(planner.constants)
    need = 0
    for region in op.regions:
        fixed = {v: _buffer(v, v.name, "arena") for v in region.inputs}
        part = _Part(planner, region, fixed, 0, outer=outer)
        for step, g in enumerate(part.groups):  # scalars of nested loops come behind the planned part
            part.size += 2 * round_up(8) * (g.kind == "control" and step >= 0)
        need = max(need, part.size)
    planner.kernel_names, planner.constants = names, constants
    return need


def _nbytes(v: Value) -> int:
    n = v.dtype.nbytes
    for d in v.type.sizes():
        n *= d
    return n


def _buffer(v: Value, name: str, scope: str) -> Buffer:
    return Buffer(name, v.dtype, v.shape, scope)


def _address(b: Buffer) -> Address:
    return Address(b, (ZERO,) * b.rank)


def _scalar_of(b: Buffer) -> Expr:
    return b[(ZERO,) * b.rank] if b.rank else b[()]


def _copy(to: Buffer, source: Buffer) -> Stmt:
    n: Expr = const(to.dtype.nbytes)
    for d in to.shape:
        n = n * d
    return Evaluate(Call("copy_bytes", (_address(to), _address(source), n), i64))


