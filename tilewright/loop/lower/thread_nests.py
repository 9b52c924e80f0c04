"""What the passes for kernels know of their structure: blocks around phases, phases around threads.

A kernel is loops over blockIdx, inside them statements that all threads of a block run together (sequences, serial loops,
branches), and as their leaves the phases: nests of loops over threadIdx, or single statements that one thread runs.
"""
from __future__ import annotations

from dataclasses import dataclass

from tilewright.core.node import Node, walk
from tilewright.loop.ir import Allocate, Call, Evaluate, Expr, For, Program, Stmt, as_int
from tilewright.loop.lower.push_inward import push_inward

AXES = ("threadIdx.x", "threadIdx.y", "threadIdx.z")


@dataclass(frozen=True)
class Phase:
    """A leaf: what each thread does, and which variable and extent each thread axis has there."""
    body: Stmt
    axes: dict[str, For]


def is_thread_loop(s: Node) -> bool:
    return isinstance(s, For) and s.kind.startswith("threadIdx")


def has_threads(s: Stmt) -> bool:
    return any(is_thread_loop(n) for n in walk(s))


def phase_of(s: Stmt) -> Phase | None:
    """The phase that a statement is, or None for one that has phases (or waits) inside."""
    axes: dict[str, For] = {}
    body = s
    while isinstance(body, For) and body.kind.startswith("threadIdx"):
        axes[body.kind] = body
        body = body.body
    if not axes and (has_threads(s) or any(is_barrier(n) for n in walk(s))):
        return None
    return Phase(body, axes)


def gather_threads(s: Stmt) -> Stmt:
    """The loops over threads of each nest directly inside each other: an outer one goes in to the inner ones."""
    def visit(n: Node) -> Node:
        if not isinstance(n, Stmt):
            return n
        new = n.map(visit)
        if is_thread_loop(new):
            assert isinstance(new, For)
            if not is_thread_loop(new.body) and has_threads(new.body):
                return push_inward(new, lambda x: is_thread_loop(x) or not has_threads(x))
        return new

    return visit(s)  # type: ignore[return-value]


def block_body(program: Program) -> tuple[list[Stmt], Stmt]:
    """The allocations and block loops at the top of a kernel, outermost first, and what a block does."""
    top: list[Stmt] = []
    body = program.body
    while isinstance(body, Allocate) or isinstance(body, For) and body.kind.startswith("blockIdx"):
        top.append(body)
        body = body.body
    return top, body


def rewrap(top: list[Stmt], body: Stmt) -> Stmt:
    for s in reversed(top):
        body = s.replace(body=body)
    return body


def thread_extents(s: Stmt) -> dict[str, int]:
    """The threads of a block along each axis: the most that any of its phases has."""
    out: dict[str, int] = {}
    for n in walk(s):
        if is_thread_loop(n):
            assert isinstance(n, For)
            out[n.kind] = max(out.get(n.kind, 1), as_int(n.extent) or 1)
    return out


def grid_of(program: Program) -> dict[str, Expr]:
    """The extent of every block and thread axis of a lowered kernel."""
    return {n.kind: n.extent for n in walk(program.body) if isinstance(n, For) and "Idx." in n.kind}


def is_barrier(s: Node) -> bool:
    return isinstance(s, Evaluate) and isinstance(s.value, Call) and s.value.name == "barrier"
