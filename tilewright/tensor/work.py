"""How much a program does: arithmetic operations, and bytes of each parameter that it touches.

In: an unscheduled Program (its blocks as declared, so that what a schedule recomputes does not count). Out: numbers for
rooflines and profiles. An operation is one addition, product, quotient, comparison for a maximum, or function such as
exp on floating-point numbers; a multiply-add counts two. Conversions, tests of indices and moving elements count none.
Counted is what the chosen algorithm executes: Winograd's products and transforms, not those of the convolution it replaces.
"""
from __future__ import annotations

from dataclasses import dataclass

from tilewright.core.node import Node, walk
from tilewright.loop.ir import (
    Add,
    Block,
    Buffer,
    Call,
    Div,
    Expr,
    Guard,
    Let,
    Load,
    Max,
    Min,
    Mul,
    Program,
    Select,
    Seq,
    Stmt,
    Store,
    Sub,
    Var,
    as_int,
)
from tilewright.tensor.schedule.state import blocks


@dataclass(frozen=True)
class Work:
    """Floating-point operations of a program, and bytes touched by parameter name: each element once, however often it is
    read, and none that no index reaches (the rows that a gather leaves alone, the rest of what a slice is cut from)."""
    flops: int
    touched: dict[str, int]


def work_of(program: Program) -> Work:
    """The work of a program; symbolic extents count 1."""
    parameters = {p for p in program.params if isinstance(p, Buffer)}
    elements: dict[Buffer, int] = {}
    flops = 0
    for block in blocks(program):
        extents = {it.var: as_int(it.extent) or 1 for it in block.iters}
        points = 1
        for n in extents.values():
            points *= n
        flops += points * operations(block.body)
        for buffer, places in _accesses(block, parameters).items():
            reached = sum(_points(place, extents) for place in places)
            elements[buffer] = min(elements.get(buffer, 0) + reached, _size(buffer))
    return Work(flops, {b.name: -(-n * b.dtype.bits // 8) for b, n in elements.items()})


def operations(s: Stmt | Expr) -> int:
    """Floating-point operations of one evaluation; of alternatives the longest."""
    match s:
        case Seq():
            return sum(operations(x) for x in s.stmts)
        case Store():
            return operations(s.value)
        case Let():
            return operations(s.value) + operations(s.body)
        case Select() | Guard():
            return max(operations(s.a), operations(s.b))
        case Load():
            return 0
        case Add() | Sub() | Mul() | Div() | Max() | Min():
            return operations(s.a) + operations(s.b) + s.dtype.is_float
        case Call():
            return sum(operations(a) for a in s.args) + s.dtype.is_float
    return sum(operations(c) for c in s.children() if isinstance(c, Expr | Stmt))


def _accesses(block: Block, parameters: set[Buffer]) -> dict[Buffer, set[frozenset[Var]]]:
    """By parameter, the variables of each distinct place at which the block touches it."""
    out: dict[Buffer, dict[tuple[Node, ...], frozenset[Var]]] = {}
    for n in walk(block.body):
        if isinstance(n, Load | Store) and n.buffer in parameters:
            used = frozenset(v for i in n.indices for v in walk(i) if isinstance(v, Var))
            out.setdefault(n.buffer, {})[n.indices] = used
    return {b: set(found.values()) for b, found in out.items()}


def _points(used: frozenset[Var], extents: dict[Var, int]) -> int:
    n = 1
    for v in used:
        n *= extents.get(v, 1)
    return n


def _size(b: Buffer) -> int:
    n = 1
    for d in b.shape:
        n *= as_int(d) or 1
    return n
