"""wait_for_copies: asynchronous copies have arrived when a barrier says that they have.

In: kernels with barriers, some tensor intrinsics in them asynchronous. Out: each thread waits for its own copies before it
waits for the others. Kernels without such copies stay as they are.

    tensor cp_async_f32(S[…], …, A[…], …): …                tensor cp_async_f32(S[…], …, A[…], …): …
    barrier                                            →    wait_copies; barrier
"""
from __future__ import annotations

from tilewright.core.dtype import i64
from tilewright.core.node import Node, walk
from tilewright.loop.ir import Call, Evaluate, Program, Stmt, TensorCall, seq
from tilewright.loop.lower.thread_nests import is_barrier
from tilewright.loop.tensor_intrinsics import tensor_intrinsic_named


def wait_for_copies(program: Program) -> Program:
    """A kernel whose threads wait for their copies before each barrier, if it has any."""
    if not any(isinstance(n, TensorCall) and tensor_intrinsic_named(n.name).asynchronous for n in walk(program.body)):
        return program

    def visit(n: Node) -> Node:
        if not isinstance(n, Stmt):
            return n
        return seq(Evaluate(Call("wait_copies", (), i64)), n) if is_barrier(n) else n.map(visit)

    return program.replace(body=visit(program.body))
