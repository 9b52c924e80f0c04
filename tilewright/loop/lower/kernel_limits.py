"""kernel_limits: a kernel that a device cannot run is refused before anything is generated.

In: a lowered kernel and the target's facts. Out: the same kernel, or a UserError that names the limit, how much is over it
and the loop or buffers to blame.
"""
from __future__ import annotations

from typing import NoReturn

from tilewright.core.errors import UserError
from tilewright.core.node import walk
from tilewright.loop.ir import Allocate, Buffer, For, Program, as_int
from tilewright.target.target import Target


def check_limits(program: Program, target: Target) -> Program:
    """Raises UserError "kernel-limit": threads of a block, in all or along an axis; blocks along an axis; shared and
    local memory."""
    loops = [n for n in walk(program.body) if isinstance(n, For) and "Idx." in n.kind]
    threads = 1
    for f in loops:
        n = as_int(f.extent)
        limits = target.max_block if f.kind.startswith("threadIdx") else target.max_grid
        limit = limits["xyz".index(f.kind[-1])]
        if n is not None and n > limit:
            _over(program, f"{n} {'threads' if limits is target.max_block else 'blocks'} along {f.kind[-1]}", limit, n,
                  f"loop {f.var.name}", target)
        if f.kind.startswith("threadIdx"):
            threads *= n or 1
    if threads > target.max_threads:
        names = ", ".join(f.var.name for f in loops if f.kind.startswith("threadIdx"))
        _over(program, f"{threads} threads in a block", target.max_threads, threads, f"loops {names}", target)
    shared = [n.buffer for n in walk(program.body) if isinstance(n, Allocate) and n.buffer.scope == "shared"]
    total = sum(nbytes(b) for b in shared)
    if total > target.shared_memory:
        parts = ", ".join(f"{b.name} {nbytes(b)}" for b in shared)
        _over(program, f"{total} bytes of shared memory", target.shared_memory, total, f"buffers {parts}", target)
    own = [n.buffer for n in walk(program.body) if isinstance(n, Allocate)
           and n.buffer.scope == "local" and n.buffer.data is None]
    total = sum(map(nbytes, own))
    if target.local_memory and total > target.local_memory:
        parts = ", ".join(f"{b.name} {nbytes(b)}" for b in own)
        _over(program, f"{total} bytes of a thread's own memory", target.local_memory, total, f"buffers {parts}", target)
    return program


def nbytes(b: Buffer) -> int:
    """Bytes of a buffer of constant size, its strides included."""
    if b.strides is not None:
        last = sum(((as_int(n) or 1) - 1) * (as_int(s) or 0) for n, s in zip(b.shape, b.strides, strict=True))
        return (last + 1) * b.dtype.nbytes
    size = b.dtype.nbytes
    for n in b.shape:
        size *= as_int(n) or 0
    return size


def _over(program: Program, what: str, limit: int, got: int, where: str, target: Target) -> NoReturn:
    raise UserError("kernel-limit", f"{program.name} wants {what}; {target.name} has {limit}, {got - limit} less",
                    where=where, hint="split the loop into more blocks, or take smaller tiles")
