"""parallel_regions: each parallel loop becomes a program of its own, which threads call for ranges of tasks.

In: flat loops. Out: a module: the program with a Launch in place of each outermost parallel loop, and per loop a
program `<name>__region<k>(begin, end, captured…)` that runs the iterations begin..end. Parallel loops inside a region
become serial.
Captured buffers that are parameters of the program or allocated around the loop become parameters of the region; so do
scalar variables defined around it (also those in the shapes of captured buffers).

    for i in parallel 0..n: C[i] = A[i] + x      →      launch f__region0(A, C, x) tasks n
                                                       f__region0(begin, end, A, C, x): for i in begin..end: …
"""
from __future__ import annotations

from tilewright.core.node import Node
from tilewright.loop.ir import (
    Address,
    Expr,
    For,
    Launch,
    Module,
    Program,
    Stmt,
    Var,
    as_int,
    const,
)
from tilewright.loop.substitute import free_buffers, free_vars, substitute


def parallel_regions(program: Program) -> Module:
    """The program and its regions, the program first."""
    regions: list[Program] = []

    def visit(s: Node) -> Node:
        if not isinstance(s, Stmt):
            return s
        if isinstance(s, For) and s.kind == "parallel":
            if as_int(s.extent) == 1:
                return visit(s.replace(kind="serial"))
            region, launch = _outline(s, program, f"{program.name}__region{len(regions)}")
            regions.append(region)
            return launch
        return s.map(visit)

    body = visit(program.body)
    return Module((program.replace(body=body), *regions))


def _outline(loop: For, program: Program, name: str) -> tuple[Program, Launch]:
    buffers = tuple(b for b in free_buffers(loop) if b.data is None)
    scalars = dict.fromkeys(v for v in free_vars(loop))
    for b in buffers:
        for e in (*b.shape, *(b.strides or ())):
            scalars.update(free_vars(e))
    for e in (loop.start, loop.extent):
        scalars.update(free_vars(e))
    begin, end = Var("begin"), Var("end")
    task = Var("task")
    if as_int(loop.start) == 0:
        body: Stmt = For(loop.var, begin, end - begin, _serial(loop.body))
    else:
        body = For(task, begin, end - begin, substitute(_serial(loop.body), {loop.var: loop.start + task}))
    body.at(loop.loc)
    order = {p: i for i, p in enumerate(program.params)}
    captured = sorted(buffers, key=lambda b: order.get(b, len(order)))
    # A region keeps the buffers as they are: one object names one memory throughout the module.
    attrs = (*[(k, v) for k, v in program.attrs if k in ("noalias", "aligned", "fp")], ("internal", True))
    region = Program(name, (begin, end, *captured, *scalars), body, attrs)
    args: list[Expr] = [Address(b, tuple([const(0)] * b.rank)) for b in captured]
    return region.at(loop.loc), Launch(name, (*args, *scalars), loop.extent).at(loop.loc)


def _serial(s: Stmt) -> Stmt:
    def visit(n: Node) -> Node:
        if not isinstance(n, Stmt):
            return n
        new = n.map(visit)
        return new.replace(kind="serial") if isinstance(new, For) and new.kind == "parallel" else new

    return visit(s)  # type: ignore[return-value]
