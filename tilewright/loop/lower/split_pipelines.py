"""split_pipelines: loops that a schedule has pipelined become a prologue, the steady state and an epilogue.

In: a flat program; a pipelined loop (attribute "pipelined" = stages) of n + stages - 1 turns loads in its first n turns and
computes in its last n, under conditions. Out: three loops, in each of which the conditions are decided; the attribute is
gone. A loop of symbolic extent keeps its conditions. The first two loops say how many steps' loads may be on their way at a
barrier in them (attribute "ahead"): what the steady state computes with next was loaded `stages` - 1 steps ago.

    for k in 0..9 {pipelined=2}:                 S[0] = A[0]
      if k < 8: S[k % 2] = A[k]            →     for k in 1..+7: S[k % 2] = A[k]; C += S[(k - 1) % 2]
      if 1 <= k: C += S[(k - 1) % 2]             C += S[1]
"""
from __future__ import annotations

from tilewright.core.node import Node
from tilewright.loop.ir import For, Program, Stmt, Var, as_int, const, seq
from tilewright.loop.simplify import simplify
from tilewright.loop.substitute import fresh_copy, substitute

PIPELINED = "pipelined"
"""The attribute of such a loop: its stages."""
AHEAD = "ahead"
"""The attribute of a loop that loads ahead: of its newest steps' loads, those that no barrier in it has to wait for."""


def split_pipelines(program: Program) -> Program:
    """Every pipelined loop of constant extent in its three parts."""
    def visit(n: Node) -> Node:
        if not isinstance(n, Stmt):
            return n
        new = n.map(visit)
        stages = dict(new.attrs).get(PIPELINED) if isinstance(new, For) else None
        return _split(new, stages) if isinstance(new, For) and isinstance(stages, int) else new

    body = visit(program.body)
    return program if body is program.body else simplify(program.replace(body=body))


def _split(s: For, stages: int) -> Stmt:
    plain = s.replace(attrs=tuple([(k, v) for k, v in s.attrs if k != PIPELINED]))
    n = as_int(s.extent)
    ahead = stages - 1
    if n is None or n < 2 * ahead:
        return plain
    parts = []
    for first, count, flying in ((0, ahead, 0), (ahead, n - 2 * ahead, ahead - 1), (n - ahead, ahead, None)):
        if count:
            v = Var(s.var.name, s.var.type)
            body = substitute(fresh_copy(plain.body), {s.var: v})
            attrs = plain.attrs if flying is None or ahead == 1 else (*plain.attrs, (AHEAD, flying))
            parts.append(plain.replace(var=v, start=s.start + first, extent=const(count), body=body, attrs=attrs))
    return seq(parts)
