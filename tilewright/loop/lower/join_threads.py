"""join_threads: the thread loops of a kernel's phases become one set of loops around all that a block does.

In: phases with thread loops of their own, barriers between them. Out: blocks around one nest of thread loops, as many
threads along each axis as the largest phase has; a phase with fewer is guarded, one without an axis runs where it is 0.
Shared buffers are allocated around the threads, those of a warp around its threads (along x), all others within them.

    for t in 0..64 threadIdx.x: S[t] = …            for t in 0..64 threadIdx.x:
    barrier                                   →       S[t] = …; barrier
    for u in 0..32 threadIdx.x: C[u] = S[u + 32]      if t < 32: C[t] = S[t + 32]
"""
from __future__ import annotations

from tilewright.core.node import Node
from tilewright.loop.ir import (
    ZERO,
    Allocate,
    And,
    Buffer,
    Expr,
    For,
    If,
    Let,
    Program,
    Seq,
    Stmt,
    Var,
    While,
    as_int,
    const,
)
from tilewright.loop.lower.thread_nests import Phase, block_body, is_barrier, phase_of, rewrap, thread_extents
from tilewright.loop.substitute import substitute

_AROUND = ("shared", "warp")
"""Scopes of what several threads have together."""


def join_threads(program: Program) -> Program:
    """One set of threads per block."""
    top, body = block_body(program)
    extents = thread_extents(body)
    joined = _Joined({axis: For(Var(f"t{axis[-1]}"), ZERO, const(n), Seq(()), axis) for axis, n in extents.items()})
    inside = [s for s in top if isinstance(s, Allocate) and s.buffer.scope not in _AROUND]
    joined.warp += [s.buffer for s in top if isinstance(s, Allocate) and s.buffer.scope == "warp"]
    stmt = joined.stmt(body)
    for s in reversed(inside):
        stmt = s.replace(body=stmt)
    for axis in sorted(joined.loops):  # x innermost: neighbours in x run together
        stmt = joined.loops[axis].replace(body=stmt)
        if axis == "threadIdx.x":
            for b in reversed(joined.warp):
                stmt = Allocate(b, stmt)
    for b in reversed(joined.shared):
        stmt = Allocate(b, stmt)
    blocks: list[Stmt] = [s for s in top if isinstance(s, For)]
    shared: list[Stmt] = [s for s in top if isinstance(s, Allocate) and s.buffer.scope == "shared"]
    return program.replace(body=rewrap([*blocks, *shared], stmt))


class _Joined:
    """The walk: `loops` of all threads by axis, `shared` the buffers found inside."""

    def __init__(self, loops: dict[str, For]) -> None:
        self.loops = loops
        self.shared: list[Buffer] = []
        self.warp: list[Buffer] = []

    def hoisted(self, b: Buffer) -> bool:
        """Whether an allocation goes around the threads, where it is noted."""
        if b.scope in _AROUND:
            (self.shared if b.scope == "shared" else self.warp).append(b)
        return b.scope in _AROUND

    def stmt(self, s: Stmt) -> Stmt:
        if is_barrier(s):
            return s
        if isinstance(s, Allocate):
            if self.hoisted(s.buffer):
                return self.stmt(s.body)
            return s.replace(body=self.stmt(s.body))
        phase = phase_of(s)
        if phase is not None:
            return self.phase(phase)
        assert isinstance(s, Seq | For | If | Let | While)

        def visit(n: Node) -> Node:
            return self.stmt(n) if isinstance(n, Stmt) else n

        return s.map(visit)

    def phase(self, p: Phase) -> Stmt:
        """What each thread does, and the condition under which it has something to do."""
        mapping: dict[Var, Expr] = {}
        cond: Expr | None = None
        for axis, whole in self.loops.items():
            own = p.axes.get(axis)
            if own is not None:
                mapping[own.var] = own.start + whole.var
            n = 1 if own is None else as_int(own.extent)
            if n != as_int(whole.extent):
                test = whole.var.eq(ZERO) if own is None else whole.var < own.extent
                cond = test if cond is None else And(cond, test)
        body = substitute(p.body, mapping)
        body = self.without_shared(body)
        return body if cond is None else If(cond, body)

    def without_shared(self, s: Stmt) -> Stmt:
        def visit(n: Node) -> Node:
            if not isinstance(n, Stmt):
                return n
            new = n.map(visit)
            return new.body if isinstance(new, Allocate) and self.hoisted(new.buffer) else new

        return visit(s)  # type: ignore[return-value]
