"""What a run of a scheduled program does wrong even where its results happen to be right: an oracle by exhaustive listing.

Runs the blocks' instances in order and follows, per element of each buffer, how many updates it has had since it was last
started. Wrong are: reading an element that nobody wrote, or that has not had all of its updates; an update beyond the last
one; writes of one element in several iterations of a parallel loop, unless the buffer is private to a thread; an index
out of bounds.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tilewright.core.node import Node
from tilewright.loop import ir
from tilewright.tensor.schedule.state import blocks

OPERATORS = {ir.Add: "+", ir.Sub: "-", ir.Mul: "*", ir.FloorDiv: "//", ir.FloorMod: "%", ir.Lt: "<", ir.Le: "<=",
             ir.Eq: "==", ir.Ne: "!=", ir.And: "and", ir.Or: "or"}


class Unknown(Exception):
    """The program's accesses depend on data."""


def source(e: ir.Expr) -> str:
    """Python source of an index expression over names v<id>."""
    if isinstance(e, ir.Const):
        return repr(e.value)
    if isinstance(e, ir.Var):
        return f"v{id(e)}"
    if type(e) in OPERATORS:
        assert isinstance(e, ir.Binary)
        return f"({source(e.a)} {OPERATORS[type(e)]} {source(e.b)})"
    if isinstance(e, ir.Min | ir.Max):
        return f"{'min' if isinstance(e, ir.Min) else 'max'}({source(e.a)}, {source(e.b)})"
    if isinstance(e, ir.Not):
        return f"(not {source(e.a)})"
    raise Unknown(str(e))


def compiled(text: str) -> Callable[[dict[str, int]], Any]:
    code = compile(text, "index", "eval")
    return lambda env: eval(code, {"min": min, "max": max}, env)


Loop = tuple[str, Callable[[dict[str, int]], int], Callable[[dict[str, int]], int]]
"""A loop within a block: its variable, start and extent."""


@dataclass
class Access:
    buffer: ir.Buffer
    indices: Callable[[dict[str, int]], tuple[int, ...]]
    when: Callable[[dict[str, int]], bool]
    shape: tuple[int, ...]
    loops: tuple[Loop, ...]

    def places(self, env: dict[str, int]) -> Iterator[tuple[int, ...]]:
        """The elements that it touches in an instance; several if it is in loops within the block, a tile."""
        yield from self._under(env, 0)

    def _under(self, env: dict[str, int], k: int) -> Iterator[tuple[int, ...]]:
        if k == len(self.loops):
            if self.when(env):
                yield self.indices(env)
            return
        var, start, extent = self.loops[k]
        first = start(env)
        for at in range(first, first + extent(env)):
            env[var] = at
            yield from self._under(env, k + 1)


class Instances:
    """A block, ready to list its instances' accesses."""

    def __init__(self, block: ir.Block) -> None:
        self.name = block.name
        self.block = block
        self.bind = [(f"v{id(i.var)}", compiled(source(e))) for i, e in zip(block.iters, block.bindings, strict=True)]
        self.reduced = [f"v{id(i.var)}" for i in block.iters if i.kind == "reduce"]
        self.predicate = compiled(source(block.predicate))
        self.loads: list[Access] = []
        self.stores: list[Access] = []
        self._collect(block.body, "True", ())
        self.starts = block.init is not None
        self.updates = bool(self.reduced) or any(a.buffer is s.buffer for a in self.loads for s in self.stores)

    def _collect(self, n: Node, when: str, loops: tuple[Loop, ...]) -> None:
        if isinstance(n, ir.For):
            inner = (f"v{id(n.var)}", compiled(source(n.start)), compiled(source(n.extent)))
            self._collect(n.body, when, (*loops, inner))
            return
        if isinstance(n, ir.Load):
            self.loads.append(self._access(n, when, loops))
        elif isinstance(n, ir.Guard):
            c = source(n.cond)
            self._collect(n.a, f"({when} and {c})", loops)
            self._collect(n.b, f"({when} and not {c})", loops)
            return
        elif isinstance(n, ir.Store):
            self._collect(n.value, when, loops)
            self.stores.append(self._access(n, when, loops))
            return
        for c in n.children():
            self._collect(c, when, loops)

    def _access(self, n: ir.Load | ir.Store, when: str, loops: tuple[Loop, ...]) -> Access:
        text = "(" + "".join(source(i) + "," for i in n.indices) + ")"
        return Access(n.buffer, compiled(text), compiled(when), tuple([ir.as_int(d) or 0 for d in n.buffer.shape]), loops)


class Run:
    """One listing of a program's instances, in order."""

    def __init__(self, program: ir.Program, full: Counter[Any]) -> None:
        self.blocks = {b.name: Instances(b) for b in blocks(program)}
        self.full = full
        self.written = {s.buffer for b in self.blocks.values() for s in b.stores}
        self.count: Counter[Any] = Counter()
        self.wrong: list[str] = []
        self.raced: dict[Any, int] = {}
        self.parallel: list[tuple[int, int]] = []
        self.visit(program.body, {})

    def visit(self, s: ir.Stmt, env: dict[str, int]) -> None:
        if isinstance(s, ir.Block):
            self.instance(self.blocks[s.name], env)
        elif isinstance(s, ir.For):
            start, extent = compiled(source(s.start))(env), compiled(source(s.extent))(env)
            for k in range(start, start + extent):
                env[f"v{id(s.var)}"] = k
                if s.kind == "parallel":
                    self.parallel.append((id(s), k))
                self.visit(s.body, env)
                if s.kind == "parallel":
                    self.parallel.pop()
        elif isinstance(s, ir.Seq):
            for x in s.stmts:
                self.visit(x, env)
        elif isinstance(s, ir.Allocate):
            self.visit(s.body, env)
        else:
            raise Unknown(type(s).__name__)

    def instance(self, b: Instances, env: dict[str, int]) -> None:
        env.update({n: f(env) for n, f in b.bind})
        if not b.predicate(env):
            return
        first = not any(env[v] for v in b.reduced)
        own = {s.buffer for s in b.stores}
        for a in b.loads:
            if a.buffer in own or a.buffer not in self.written:
                continue
            for at in a.places(env):
                if not all(0 <= i < n for i, n in zip(at, a.shape, strict=True)):
                    self.wrong.append(f"{b.name} reads {a.buffer.name}{at}")
                elif self.count[a.buffer, at] < self.full[a.buffer, at] or not self.count[a.buffer, at]:
                    self.wrong.append(f"{b.name} reads unfinished {a.buffer.name}{at}")
        started: set[Any] = set()
        for s in b.stores:
            for at in s.places(env):
                self.store(b, s.buffer, at, first and (s.buffer, at) not in started)
                started.add((s.buffer, at))

    def store(self, b: Instances, buffer: ir.Buffer, at: tuple[int, ...], first: bool) -> None:
        key = buffer, at
        if not b.updates or (b.starts and first):
            self.count[key] = 1 if b.updates or not b.reduced else 0
        else:
            if not b.starts and not self.count[key]:
                self.wrong.append(f"{b.name} updates {buffer.name}{at}, which was never started")
            self.count[key] += 1
        if self.count[key] > self.full[key] > 0:
            self.wrong.append(f"{b.name} updates {buffer.name}{at} too often")
        if buffer.scope != "local":
            for place in range(len(self.parallel)):
                around, step = self.parallel[:place], self.parallel[place]
                if self.raced.setdefault((key, tuple(around), step[0]), step[1]) != step[1]:
                    self.wrong.append(f"{b.name} writes {buffer.name}{at} in several parallel iterations")


def wrongs(program: ir.Program) -> list[str]:
    """What is wrong with a program's order of instances; raises Unknown if its accesses depend on data.

    The number of updates that an element needs is the greatest that it ever has.
    """
    most: Counter[Any] = Counter()

    class Counting(Run):
        def store(self, b: Instances, buffer: ir.Buffer, at: tuple[int, ...], first: bool) -> None:
            super().store(b, buffer, at, first)
            most[buffer, at] = max(most[buffer, at], self.count[buffer, at])

    try:
        Counting(program, Counter())
        return Run(program, most).wrong
    except NameError as e:  # an index from a variable that holds data
        raise Unknown(str(e)) from e
