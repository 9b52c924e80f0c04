"""compact_storage: buffers allocated by schedule primitives shrink to what is live, next to where it is used.

In: flat loops; allocations anywhere above the uses, typically at the top. Out: each allocation at the smallest
statement that encloses all its uses and across which no value is carried; buffers of scope "local" and "shared" are
shrunk to the region touched there, their indices relative to its start (of local ones, in units of the
step between the elements touched). Allocations of scope "global" only move, and
never into a parallel loop (they would multiply); shared ones stay outside the loops over the threads that share them,
those of a warp, however small they get, outside the loop over its threads.
An allocation without uses goes away.

    alloc c_local[64, 56]                          for oh in 0..64:
    for oh in 0..64:                                 for owo in 0..4:
      for owo in 0..4:                      →          alloc c_local[1, 14]
        for owi in 0..14: c_local[oh, owo*14+owi]        for owi in 0..14: c_local[0, owi] …

A loop carries a value of a buffer if it reduces into it (`reduces`, left by flatten_blocks), or if an iteration reads
elements that it does not itself write.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tilewright.core.errors import UserError
from tilewright.core.node import Node
from tilewright.loop.bounds import bounds
from tilewright.loop.ir import (
    Address,
    Allocate,
    Buffer,
    Expr,
    For,
    If,
    Let,
    Load,
    Program,
    Stmt,
    Store,
    Var,
    as_int,
    const,
    seq,
)
from tilewright.loop.lower.flatten_blocks import REDUCES
from tilewright.loop.lower.linear import Terms, from_linear, highest, limits_of, linear, loop_range
from tilewright.loop.lower.symbolic_ends import reaches_end

IN_TURN = "in_turn"
"""The program's attribute: names of buffers of which the steps of a loop use the first dimension's places in turn, so that
all of them are kept although no step needs more than one."""

_SHRINKING = ("local", "shared", "warp")


@dataclass(slots=True)
class _Access:
    path: tuple[Stmt, ...]
    indices: tuple[Expr, ...] | None  # None: by address, extent unknown
    is_write: bool


@dataclass(slots=True)
class _Dim:
    """One dimension of a region: [Σ terms + low, Σ terms + high], the terms in variables defined outside."""
    terms: Terms
    low: int
    high: int
    step: int = 0
    """All that is touched is low, low + step, low + 2 step, …; 0 for a single element, 1 where nothing is known."""

    @property
    def extent(self) -> int:
        return 1 if self.step == 0 else max(0, self.high - self.low) // self.step + 1


def compact_storage(program: Program, scope: str | None = None) -> Program:
    """Allocations moved inwards and shrunk; the `reduces` marks of flatten_blocks are gone afterwards. With `scope`, those
    of that scope alone, and the marks stay for the others."""
    in_turn = program.attr(IN_TURN, ())
    found = _Accesses(scope)
    found.stmt(program.body, ())
    wraps: dict[int, list[Buffer]] = {}
    new_buffers: dict[Buffer, tuple[Buffer, list[_Dim | None]]] = {}
    for buffer, depth in found.allocations.items():
        accesses = found.accesses.get(buffer, [])
        if not accesses:
            continue
        place, dims = _place(buffer, accesses, depth, found.ranges)
        if buffer.name in in_turn:
            dims[0] = None
        shape = tuple([e if d is None else const(d.extent)
                       for e, d in zip(buffer.shape, dims, strict=True)])
        new = buffer if all(d is None for d in dims) else buffer.replace(shape=shape)
        new_buffers[buffer] = (new, dims)
        wraps.setdefault(id(place), []).append(new)
    return program.replace(body=_rebuild(program.body, wraps, new_buffers, scope))


class _Accesses:
    """Allocations (with their depth in the tree), accesses of the allocated buffers, and ranges of the variables."""

    def __init__(self, scope: str | None) -> None:
        self.scope = scope
        self.allocations: dict[Buffer, int] = {}
        self.accesses: dict[Buffer, list[_Access]] = {}
        self.ranges: dict[Var, Any] = {}

    def stmt(self, s: Stmt, path: tuple[Stmt, ...]) -> None:
        path = (*path, s)
        if isinstance(s, Allocate) and s.offset is None and self.scope in (None, s.buffer.scope):
            self.allocations[s.buffer] = len(path)
        elif isinstance(s, For):
            r = loop_range(s, self.ranges)
            if r is not None:
                self.ranges[s.var] = r
        elif isinstance(s, Store) and s.buffer in self.allocations:
            self.accesses.setdefault(s.buffer, []).append(_Access(path, s.indices, True))
        for c in s.children():
            if isinstance(c, Stmt):
                self.stmt(c, path)
            elif not isinstance(c, Buffer):
                self.expr(c, path)

    def expr(self, e: Node, path: tuple[Stmt, ...]) -> None:
        if isinstance(e, Load | Address) and e.buffer in self.allocations:
            at = e.indices if isinstance(e, Load) else None
            self.accesses.setdefault(e.buffer, []).append(_Access(path, at, False))
        for c in e.children():
            if not c.by_identity:
                self.expr(c, path)


def _place(buffer: Buffer, accesses: list[_Access], depth: int,
           ranges: dict[Var, Any]) -> tuple[Stmt, list[_Dim | None]]:
    """The statement to allocate around, and what to keep of each dimension (None: all of it)."""
    paths = [a.path for a in accesses]
    common = min(len(p) for p in paths)
    while any(p[common - 1] is not paths[0][common - 1] for p in paths):
        common -= 1
    path = paths[0][:common]
    for i in range(depth, common):
        s = path[i]
        if isinstance(s, For) and (buffer.name in dict(s.attrs).get(REDUCES, ())
                                   or buffer.scope == "global" and s.kind == "parallel"
                                   or buffer.scope == "shared" and s.kind.startswith("threadIdx")):
            path = path[:i + 1]
            break
    while True:
        regions = [_region(buffer, a, len(path), ranges) for a in accesses]
        if _covered(buffer, accesses, regions, len(path)):
            break
        outer = [i for i in range(depth, len(path) - 1) if isinstance(path[i], For)]
        if not outer and buffer.scope == "warp":
            raise UserError("kernel-warp", f"a warp may read elements of {buffer.name} that it did not write itself: its "
                            "registers hold nothing of other warps", hint="bind the loops around all that uses the buffer "
                            "alike, or keep it in shared memory")
        if not outer:
            break
        path = path[:outer[-1] + 1]
    home = _around_warp(path) if buffer.scope == "warp" else path[-1]
    if buffer.scope not in _SHRINKING or buffer.strides is not None or any(a.indices is None for a in accesses):
        return home, [None] * buffer.rank
    dims: list[_Dim | None] = []
    for k in range(buffer.rank):
        hull = _hull([r[k] for r in regions])
        whole = as_int(buffer.shape[k])
        if hull is not None and whole is not None and hull.extent >= whole:
            hull = None
        dims.append(hull)
    return home, dims


def _around_warp(path: Sequence[Stmt]) -> Stmt:
    """The loop over the threads of a warp, outside of which stays what they have together."""
    return next((s for s in path if isinstance(s, For) and s.kind == "threadIdx.x"), path[-1])


def _region(buffer: Buffer, a: _Access, depth: int, ranges: dict[Var, Any]) -> list[_Dim | None]:
    """Per dimension what one access touches, in terms of variables defined above `path[depth-1]`."""
    if a.indices is None:
        return []
    inner = {s.var for s in a.path[depth - 1:] if isinstance(s, For | Let)}
    out: list[_Dim | None] = []
    limits = [x for s, below in pairwise(a.path[depth - 1:]) if isinstance(s, If) and below is s.then
              for x in limits_of(s.cond)]
    for e, extent in zip(a.indices, buffer.shape, strict=True):
        terms, low = linear(e)
        high = low
        outer: Terms = {}
        own: Terms = {}
        step = 0
        for atom, c in terms.items():
            if not _mentions(atom, inner):
                outer[atom] = c
                continue
            lo, hi = bounds(atom, ranges)
            if lo is None or hi is None:
                break
            low, high = low + min(c * lo, c * hi), high + max(c * lo, c * hi)
            step = math.gcd(step, c) if lo != hi else step
            own[atom] = c
        else:
            top = highest(own, ranges, limits) if limits else None
            if top is not None:
                high = min(high, linear(e)[1] + top)
                high = low + (high - low) // max(1, step) * max(1, step)
            if not outer and step <= 1:  # accesses are in bounds
                whole = as_int(extent)
                low, high = max(low, 0), high if whole is None else min(high, whole - 1)
            out.append(_Dim(outer, low, high, step if buffer.scope == "local" else min(step, 1)))
            continue
        out.append(None)
    return out


def _mentions(e: Node, variables: set[Var]) -> bool:
    if e.by_identity:
        return e in variables
    return any(_mentions(c, variables) for c in e.children())


def _hull(dims: list[_Dim | None]) -> _Dim | None:
    first = dims[0]
    if first is None or any(d is None or d.terms != first.terms for d in dims):
        return None
    step = math.gcd(*[d.step for d in dims if d], *[d.low - first.low for d in dims if d])
    return _Dim(first.terms, min(d.low for d in dims if d), max(d.high for d in dims if d), step)


def _covered(buffer: Buffer, accesses: list[_Access], regions: list[list[_Dim | None]], depth: int) -> bool:
    """Whether what is read here lies within what is written here (both as boxes); `depth`: statements around here."""
    if any(a.indices is None for a in accesses):
        return True  # by address: one call fills it, another reads it; flow is between statements
    written = [r for a, r in zip(accesses, regions, strict=True) if a.is_write]
    if not written:
        return False
    for k in range(buffer.rank):
        reads = [r[k] for a, r in zip(accesses, regions, strict=True) if not a.is_write]
        if not reads:
            continue
        read, write = _hull(reads), _hull([r[k] for r in written])
        if write is None and any(a.is_write and a.indices is not None and
                                 reaches_end(a.indices[k], buffer.shape[k], a.path[depth - 1:]) for a in accesses):
            continue
        if read is None or write is None or read.terms != write.terms or read.low < write.low or read.high > write.high:
            return False
    return True


def _rebuild(s: Any, wraps: dict[int, list[Buffer]], new: dict[Buffer, tuple[Buffer, list[_Dim | None]]],
             scope: str | None) -> Any:
    if isinstance(s, Buffer):
        return s
    out = s.map(lambda c: _rebuild(c, wraps, new, scope))
    if isinstance(out, Load | Store | Address) and out.buffer in new:
        buffer, dims = new[out.buffer]
        if buffer is not out.buffer:
            indices = tuple([e if d is None else _relative(e, d) for e, d in zip(out.indices, dims, strict=True)])
            out = out.replace(buffer=buffer, indices=indices)
    elif isinstance(out, Allocate) and out.offset is None and scope in (None, out.buffer.scope):
        out = out.body
    elif scope is None and isinstance(out, For) and any(k == REDUCES for k, _ in out.attrs):
        out = out.replace(attrs=tuple([(k, v) for k, v in out.attrs if k != REDUCES]))
    for buffer in wraps.get(id(s), ()):
        out = Allocate(buffer, seq(out))
    return out


def _relative(e: Expr, d: _Dim) -> Expr:
    terms, constant = linear(e)
    step = max(1, d.step)
    return from_linear([(a, (c - d.terms.get(a, 0)) // step) for a, c in terms.items()], (constant - d.low) // step, e)
