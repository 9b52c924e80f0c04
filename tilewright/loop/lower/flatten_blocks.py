"""flatten_blocks: a nest of Blocks becomes plain loops.

In: a program in which a Block stands for a compute statement. Out: the same loops around the Blocks' bodies, the
iteration variables replaced by their bindings. A predicate becomes an If around the instance, and `init` an If for
"every reduction variable is at its first value". A loop that carries a reduction is marked with the attribute
`reduces` = names of the buffers that it accumulates, which compact_storage reads (and takes away).

    for k in 0..8:                              for k in 0..8:  # reduces=("C",)
      block C(r: reduce 8 = k):                   if k == 0: C[0] = 0
        init C[0] = 0                      →      C[0] = C[0] + A[k]
        C[0] = C[0] + A[r]

A block that stands for a tensor intrinsic becomes its TensorCall; one that several threads run together, in a loop over
these threads.
"""
from __future__ import annotations

from tilewright.core.errors import InternalError
from tilewright.core.node import Node, walk
from tilewright.loop.ir import (
    TRUE,
    ZERO,
    And,
    Block,
    Const,
    Expr,
    For,
    If,
    Program,
    Stmt,
    Store,
    Var,
    const,
    seq,
)
from tilewright.loop.match_tensor import match_tensor, tensor_call
from tilewright.loop.substitute import substitute
from tilewright.loop.tensor_intrinsics import KEY, TensorIntrinsic, tensor_intrinsic_named

REDUCES = "reduces"


def flatten_blocks(program: Program) -> Program:
    """Every Block replaced by its body."""
    body, _ = _flatten(program.body)
    return program.replace(body=body)


def _flatten(s: Stmt) -> tuple[Stmt, dict[Var, tuple[str, ...]]]:
    """The flat statement, and per loop variable outside it the buffers whose reduction runs over that loop."""
    carried: dict[Var, tuple[str, ...]] = {}

    def visit(child: Node) -> Node:
        if not isinstance(child, Stmt):
            return child
        flat, inner = _flatten(child)
        for v, names in inner.items():
            carried[v] = carried.get(v, ()) + tuple([n for n in names if n not in carried.get(v, ())])
        return flat

    if isinstance(s, Block):
        return visit(_instance(s, carried)), carried  # type: ignore[return-value]
    new = s.map(visit)
    if isinstance(new, For) and (names := carried.pop(new.var, ())):
        new = new.replace(attrs=(*new.attrs, (REDUCES, names)))
    return new, carried


def _instance(b: Block, carried: dict[Var, tuple[str, ...]]) -> Stmt:
    bindings = {i.var: e for i, e in zip(b.iters, b.bindings, strict=True)}
    reductions = [e for i, e in zip(b.iters, b.bindings, strict=True) if i.kind == "reduce"]
    written = tuple(dict.fromkeys(n.buffer.name for n in walk(b.body) if isinstance(n, Store)))
    for e in reductions:
        for n in walk(e):
            if isinstance(n, Var):
                carried[n] = written
    body = substitute(b.body, bindings)
    name = dict(b.attrs).get(KEY)
    if name is not None:
        body = _call(b, body, tensor_intrinsic_named(name))
    if b.init is not None:
        first = _all([e.eq(const(0, e)) for e in reductions if not (isinstance(e, Const) and e.value == 0)])
        init = substitute(b.init, bindings)
        body = seq(init if first == TRUE else If(first, init), body)
    predicate = substitute(b.predicate, bindings)
    return body if predicate == TRUE else If(predicate, body)


def _call(b: Block, body: Stmt, intrinsic: TensorIntrinsic) -> Stmt:
    tiles = match_tensor(body, intrinsic)
    if isinstance(tiles, str):
        raise InternalError(f"block {b.name} is not {intrinsic.name} any more: {tiles}\n{b}")
    call: Stmt = tensor_call(body, intrinsic, tiles)
    if intrinsic.threads == 1:
        return call
    return For(Var("lane"), ZERO, const(intrinsic.threads), call, "threadIdx.x")


def _all(conditions: list[Expr]) -> Expr:
    whole: Expr = TRUE
    for c in conditions:
        whole = c if whole is TRUE else And(whole, c)
    return whole
