"""workspaces: buffers too large for the stack become parameters, whose memory the caller plans.

In: flat loops, storage compacted. Out: allocations of scope "global", and local ones of more than `STACK_LIMIT` bytes,
are trailing parameters of the program; its attribute `workspaces` counts them. Within a parallel loop each iteration
gets its own slice; local buffers within one of symbolic extent, or of many large slices, have a slice per thread. Local
buffers of symbolic size are as large as they can be where that fits the stack; within a parallel loop those that may be
larger have a slice per thread. Allocations with a planned offset stay.

    f(A, C):                                 f(A, C, t: f32[4, 9000]):  # workspaces=1
      for i in parallel 0..4:        →         for i in parallel 0..4:
        alloc t[9000] local; … t[j] …            … t[i, j] …
"""
from __future__ import annotations

from typing import Any

from tilewright.core.dtype import i64
from tilewright.loop.bounds import bounds
from tilewright.loop.ir import (
    Address,
    Allocate,
    Buffer,
    Call,
    Expr,
    For,
    Let,
    Load,
    Program,
    Stmt,
    Store,
    Var,
    as_int,
    const,
)
from tilewright.loop.substitute import free_vars

THREADS = Call("tw_threads", (), i64)
WORKER = Call("tw_worker", (), i64)
LINE = 16
"""Elements to a multiple of which the slices of threads are padded, so that each begins on a cache line."""

STACK_LIMIT = 64 << 10
"""Bytes of the largest buffer that stays an allocation."""

TASKS_LIMIT = 1 << 20
"""Bytes that the slices of all iterations may take: more leave the caches, and a thread uses one slice again and again."""


def workspaces(program: Program) -> Program:
    """Large and global allocations become parameters."""
    hoist = _Hoist({p for p in program.params if isinstance(p, Var)})
    body = hoist.stmt(program.body, None)
    if not hoist.found:
        return program.replace(body=body)
    attrs = (*program.attrs, ("workspaces", len(hoist.found)))
    return program.replace(params=(*program.params, *hoist.found), body=body, attrs=attrs)


class _Hoist:
    def __init__(self, sizes: set[Var]) -> None:
        self.sizes = sizes
        self.worker: Var | None = None
        self.found: list[Buffer] = []
        self.moved: dict[Buffer, tuple[Buffer, tuple[Expr, ...]]] = {}

    def stmt(self, s: Any, parallel: For | None) -> Any:
        if isinstance(s, Allocate) and s.offset is None and s.buffer.data is None and self.is_symbolic(s.buffer):
            small = _at_most(s.buffer)
            if small is not None:
                self.moved[s.buffer] = small, ()
                return Allocate(small, self.stmt(s.body, parallel))
            if parallel is None:
                self.found.append(s.buffer)
                return self.stmt(s.body, parallel)
            if s.buffer.scope == "local":
                return self.per_thread(s, parallel)
        if isinstance(s, Allocate) and s.offset is None and s.buffer.data is None and _belongs_to_the_caller(s.buffer):
            size = None if parallel is None else as_int(parallel.extent)
            if parallel is None:
                self.found.append(s.buffer)
                return self.stmt(s.body, parallel)
            per_thread = s.buffer.scope == "local" and s.buffer.strides is None and s.buffer.packing == 1
            if size is not None and s.buffer.strides is None and not (per_thread and size * _bytes(s.buffer) > TASKS_LIMIT):
                new = s.buffer.replace(shape=(parallel.extent, *s.buffer.shape), scope="global")
                self.found.append(new)
                self.moved[s.buffer] = new, (parallel.var - parallel.start,)
                return self.stmt(s.body, parallel)
            if per_thread:
                return self.per_thread(s, parallel)
        if isinstance(s, For) and s.kind == "parallel" and parallel is None:
            self.worker = None
            loop = s.map(lambda c: self.stmt(c, s) if isinstance(c, Stmt) else self.expr(c))
            return loop if self.worker is None else loop.replace(body=Let(self.worker, WORKER, loop.body))
        new_s = s.map(lambda c: self.stmt(c, parallel) if isinstance(c, Stmt) else self.expr(c))
        return self.accessed(new_s) if isinstance(new_s, Store) else new_s

    def per_thread(self, s: Allocate, parallel: For) -> Stmt:
        """The body of an allocation whose buffer becomes a slice per thread of a parameter."""
        *outer, last = s.buffer.shape
        own = s.buffer.replace(shape=(THREADS, *outer, (last + (LINE - 1)) // LINE * LINE), scope="global")
        self.found.append(own)
        if self.worker is None:
            self.worker = Var("worker")
        self.moved[s.buffer] = own, (self.worker,)
        return self.stmt(s.body, parallel)  # type: ignore[no-any-return]

    def is_symbolic(self, b: Buffer) -> bool:
        """Whether a buffer's size is known from the program's sizes, but not yet."""
        used = {v for d in b.shape for v in free_vars(d)}
        return bool(used) and used <= self.sizes and b.strides is None and b.packing == 1 and b.scope in ("local", "global")

    def expr(self, e: Any) -> Any:
        if not self.moved or e.by_identity:
            return e
        return self.accessed(e.map(self.expr))

    def accessed(self, n: Any) -> Any:
        if isinstance(n, Load | Store | Address) and n.buffer in self.moved:
            buffer, task = self.moved[n.buffer]
            return n.replace(buffer=buffer, indices=(*task, *n.indices))
        return n


def _at_most(b: Buffer) -> Buffer | None:
    """A local buffer of symbolic size, as large as it may be, if that fits the stack."""
    most = [bounds(d)[1] for d in b.shape]
    size = b.dtype.nbytes
    for n in most:
        size *= STACK_LIMIT if n is None else max(1, n)
    return b.replace(shape=tuple([const(n or 1) for n in most])) if b.scope == "local" and size <= STACK_LIMIT else None


def _bytes(b: Buffer) -> int:
    """The size of a buffer, 0 if it is symbolic."""
    size = b.dtype.nbytes
    for d in b.shape:
        size *= as_int(d) or 0
    return size


def _belongs_to_the_caller(b: Buffer) -> bool:
    if any(as_int(d) is None for d in b.shape):
        return False
    return b.scope == "global" or b.scope == "local" and _bytes(b) > STACK_LIMIT
