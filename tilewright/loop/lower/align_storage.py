"""align_storage: buffers get the strides that the schedule's `storage_align` asked for.

In: buffers in their final shapes, and the program's attribute: (name, axis, factor, offset) with offset = stride modulo
factor. Out: those allocations with strides; the attribute is gone.

    alloc s[64, 32] shared     → (0, 32, 1) →      alloc s[64, 32] shared strides (33, 1)
"""
from __future__ import annotations

from tilewright.core.node import Node, walk
from tilewright.loop.ir import Allocate, Buffer, Program, as_int, const
from tilewright.loop.substitute import substitute

ATTRIBUTE = "storage_align"


def align_storage(program: Program) -> Program:
    """Strides set for the buffers that the attribute names."""
    wishes = program.attr(ATTRIBUTE, ())
    if not wishes:
        return program
    new: dict[Buffer, Buffer] = {}
    for n in walk(program.body):
        if isinstance(n, Allocate):
            rows = {axis: (factor, offset) for name, axis, factor, offset in wishes if name == n.buffer.name}
            if rows:
                new[n.buffer] = _aligned(n.buffer, rows)

    def visit(n: Node) -> Node:
        m = n.map(visit) if not n.by_identity else n
        return m.replace(buffer=new[m.buffer]) if isinstance(m, Allocate) and m.buffer in new else m

    body = visit(program.body)
    attrs = tuple([(k, v) for k, v in program.attrs if k != ATTRIBUTE])
    return program.replace(body=substitute(body, dict(new)), attrs=attrs)


def _aligned(b: Buffer, rows: dict[int, tuple[int, int]]) -> Buffer:
    strides = [1] * b.rank
    for d in range(b.rank - 2, -1, -1):
        step = strides[d + 1] * (as_int(b.shape[d + 1]) or 1)
        if d in rows:
            factor, offset = rows[d]
            step += (offset - step) % factor
        strides[d] = step
    return b.replace(strides=tuple([const(s) for s in strides]))
