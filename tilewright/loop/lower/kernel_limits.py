"""kernel_limits: a kernel that a device cannot run is refused before anything is generated.

In: a lowered kernel and the target's facts. Out: the same kernel, or a UserError that names the limit, how much is over it
and the loop or buffers to blame.
"""
from __future__ import annotations

from typing import NoReturn

from tilewright.core.errors import UserError
from tilewright.core.node import walk
from tilewright.loop.ir import Allocate, Buffer, For, Program, TensorCall, as_int
from tilewright.loop.tensor_intrinsics import tensor_intrinsic_named
from tilewright.target.target import Target


def check_limits(program: Program, target: Target) -> Program:
    """Raises UserError "kernel-limit": threads of a block, in all or along an axis; blocks along an axis; shared and
    local memory, registers for what warps hold, parameters; "intrinsic-target" and "kernel-warp" for tensor intrinsics that
    the device does not have, or not for these threads."""
    given = len(program.params)
    if target.max_parameters and given > target.max_parameters:
        _over(program, f"{given} parameters", target.max_parameters, given, "what the kernel reads and writes", target,
              "let the model join or write fewer values at once")
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
    _check_instructions(program, target, loops)
    shared = [n.buffer for n in walk(program.body) if isinstance(n, Allocate) and n.buffer.scope == "shared"]
    total = sum(nbytes(b) for b in shared)
    if total > target.shared_memory:
        parts = ", ".join(f"{b.name} {nbytes(b)}" for b in shared)
        _over(program, f"{total} bytes of shared memory", target.shared_memory, total, f"buffers {parts}", target)
    held = [n.buffer for n in walk(program.body) if isinstance(n, Allocate) and n.buffer.scope == "warp"]
    total = sum(nbytes(b) for b in held) // max(1, target.warp) // 4
    if target.registers and total > target.registers:
        parts = ", ".join(f"{b.name} {nbytes(b) // target.warp // 4}" for b in held)
        _over(program, f"{total} registers of a thread for what its warp holds", target.registers, total, f"buffers {parts}",
              target)
    own = [n.buffer for n in walk(program.body) if isinstance(n, Allocate)
           and n.buffer.scope == "local" and n.buffer.data is None]
    total = sum(map(nbytes, own))
    if target.local_memory and total > target.local_memory:
        parts = ", ".join(f"{b.name} {nbytes(b)}" for b in own)
        _over(program, f"{total} bytes of a thread's own memory", target.local_memory, total, f"buffers {parts}", target)
    return program


def _check_instructions(program: Program, target: Target, loops: list[For]) -> None:
    """Tensor intrinsics are there, and those of a warp find whole warps along x."""
    for n in walk(program.body):
        if isinstance(n, TensorCall):
            intrinsic = tensor_intrinsic_named(n.name)
            if intrinsic.requires and not target.has(intrinsic.requires):
                raise UserError("intrinsic-target", f"{target.name} has no {intrinsic.requires}, which the tensor intrinsic "
                                f"{n.name} is", hint="choose a target that has it, or a schedule without it")
            across = next((f for f in loops if f.kind == "threadIdx.x"), None)
            if across is not None and (as_int(across.extent) or 0) % intrinsic.threads:
                raise UserError("kernel-warp", f"{n.name} is run by {intrinsic.threads} threads together; {program.name} "
                                f"has {as_int(across.extent)} along x", where=f"loop {across.var.name}",
                                hint=f"bind loops of a multiple of {intrinsic.threads} to threadIdx.x, or of less")


def nbytes(b: Buffer) -> int:
    """Bytes of a buffer of constant size, its strides included."""
    if b.strides is not None:
        last = sum(((as_int(n) or 1) - 1) * (as_int(s) or 0) for n, s in zip(b.shape, b.strides, strict=True))
        return (last + 1) * b.dtype.nbytes
    size = b.dtype.nbytes
    for n in b.shape:
        size *= as_int(n) or 0
    return size


def _over(program: Program, what: str, limit: int, got: int, where: str, target: Target,
          hint: str = "split the loop into more blocks, or take smaller tiles") -> NoReturn:
    raise UserError("kernel-limit", f"{program.name} wants {what}; {target.name} has {limit}, {got - limit} less",
                    where=where, hint=hint)
