"""split_grid: a kernel of more blocks along x than the device launches at once has its blocks in two axes.

In: a lowered kernel. Out: the same; a loop over blockIdx.x whose extent is beyond the limit is two, over y and x, as few
along y as may be; the last blocks of the grid may have nothing to do.

    for b in 0..100000 blockIdx.x: …      →      for y in 0..2 blockIdx.y: for x in 0..50000 blockIdx.x: b = y * 50000 + x: …
"""
from __future__ import annotations

from tilewright.core.node import Node, walk
from tilewright.loop.ir import ZERO, For, If, Program, Stmt, Var, as_int, const
from tilewright.loop.substitute import substitute
from tilewright.target.target import Target


def split_grid(program: Program, target: Target) -> Program:
    """The kernel within the limit of blocks along x, if y is free and that is enough."""
    loops = {n.kind: n for n in walk(program.body) if isinstance(n, For) and n.kind.startswith("blockIdx")}
    wide = loops.get("blockIdx.x")
    n = as_int(wide.extent) if wide is not None else None
    if n is None or n <= target.max_grid[0] or "blockIdx.y" in loops:
        return program
    rows = -(-n // target.max_grid[0])
    columns = -(-n // rows)
    y, x = Var("y"), Var("x")

    def visit(s: Node) -> Node:
        if s is not wide:
            return s.map(visit) if isinstance(s, Stmt) else s
        assert isinstance(s, For)
        block = y * columns + x
        body = substitute(s.body, {s.var: s.start + block})
        if rows * columns != n:
            body = If(block < n, body)
        inner = For(x, ZERO, const(columns), body, "blockIdx.x")
        return For(y, ZERO, const(rows), inner, "blockIdx.y")

    return program.replace(body=visit(program.body))
