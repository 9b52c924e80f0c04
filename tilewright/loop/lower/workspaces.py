"""workspaces: buffers too large for the stack become parameters, whose memory the caller plans.

In: flat loops, storage compacted. Out: allocations of scope "global", and local ones of more than `STACK_LIMIT` bytes,
are trailing parameters of the program; its attribute `workspaces` counts them. Within a parallel loop each iteration
gets its own slice. Allocations with a planned offset, and those whose size is not constant, stay.

    f(A, C):                                 f(A, C, t: f32[4, 9000]):  # workspaces=1
      for i in parallel 0..4:        →         for i in parallel 0..4:
        alloc t[9000] local; … t[j] …            … t[i, j] …
"""
from __future__ import annotations

from typing import Any

from tilewright.loop.ir import Address, Allocate, Buffer, Expr, For, Load, Program, Stmt, Store, as_int

STACK_LIMIT = 64 << 10
"""Bytes of the largest buffer that stays an allocation."""


def workspaces(program: Program) -> Program:
    """Large and global allocations become parameters."""
    hoist = _Hoist()
    body = hoist.stmt(program.body, None)
    if not hoist.found:
        return program
    attrs = (*program.attrs, ("workspaces", len(hoist.found)))
    return program.replace(params=(*program.params, *hoist.found), body=body, attrs=attrs)


class _Hoist:
    def __init__(self) -> None:
        self.found: list[Buffer] = []
        self.moved: dict[Buffer, tuple[Buffer, tuple[Expr, ...]]] = {}

    def stmt(self, s: Any, parallel: For | None) -> Any:
        if isinstance(s, Allocate) and s.offset is None and s.buffer.data is None and _belongs_to_the_caller(s.buffer):
            size = None if parallel is None else as_int(parallel.extent)
            if parallel is None:
                self.found.append(s.buffer)
                return self.stmt(s.body, parallel)
            if size is not None and s.buffer.strides is None:
                new = s.buffer.replace(shape=(parallel.extent, *s.buffer.shape), scope="global")
                self.found.append(new)
                self.moved[s.buffer] = new, (parallel.var - parallel.start,)
                return self.stmt(s.body, parallel)
        if isinstance(s, For) and s.kind == "parallel" and parallel is None:
            return s.map(lambda c: self.stmt(c, s) if isinstance(c, Stmt) else self.expr(c))
        new_s = s.map(lambda c: self.stmt(c, parallel) if isinstance(c, Stmt) else self.expr(c))
        return self.accessed(new_s) if isinstance(new_s, Store) else new_s

    def expr(self, e: Any) -> Any:
        if not self.moved or e.by_identity:
            return e
        return self.accessed(e.map(self.expr))

    def accessed(self, n: Any) -> Any:
        if isinstance(n, Load | Store | Address) and n.buffer in self.moved:
            buffer, task = self.moved[n.buffer]
            return n.replace(buffer=buffer, indices=(*task, *n.indices))
        return n


def _belongs_to_the_caller(b: Buffer) -> bool:
    size = b.dtype.nbytes
    for d in b.shape:
        k = as_int(d)
        if k is None:
            return False
        size *= k
    return b.scope == "global" or b.scope == "local" and size > STACK_LIMIT
