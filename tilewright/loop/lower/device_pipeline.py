"""The lowering of a program for a device: a host program that launches kernels, and the kernels, ready to print.

The list below is what happens to each kernel; the comments say which invariant begins and ends where.
"""
from __future__ import annotations

import functools
from collections.abc import Sequence

from tilewright.core.config import config
from tilewright.core.passes import Observer, Pipeline, Verify
from tilewright.loop.ir import ONE, Module, Program, seq
from tilewright.loop.lower.align_storage import align_storage
from tilewright.loop.lower.barriers import place_barriers
from tilewright.loop.lower.compact_storage import compact_storage
from tilewright.loop.lower.flatten_blocks import flatten_blocks
from tilewright.loop.lower.join_threads import join_threads
from tilewright.loop.lower.kernel_limits import check_limits
from tilewright.loop.lower.legalize_math import legalize_math
from tilewright.loop.lower.split_grid import split_grid
from tilewright.loop.lower.split_kernels import launch_of, split_kernels
from tilewright.loop.lower.split_pipelines import split_pipelines
from tilewright.loop.lower.thread_nests import gather_threads, grid_of
from tilewright.loop.lower.unguarded_sums import unguarded_sums
from tilewright.loop.lower.unroll import unroll
from tilewright.loop.lower.vectorize import vectorize
from tilewright.loop.lower.virtual_threads import virtual_threads
from tilewright.loop.lower.wait_for_copies import wait_for_copies
from tilewright.loop.lower.wide_copies import scalar_copies, wide_copies
from tilewright.loop.lower.word_memory import word_memory
from tilewright.loop.simplify import simplify
from tilewright.loop.verify import verify
from tilewright.target.target import Target

AXES = tuple(f"{kind}Idx.{x}" for kind in ("block", "thread") for x in "xyz")


def _compact_warps(program: Program) -> Program:
    return compact_storage(program, "warp")


def _compact_shared(program: Program) -> Program:
    return compact_storage(program, "shared")


def _gather(program: Program) -> Program:
    return program.replace(body=gather_threads(program.body))


KERNEL: Pipeline[Program] = Pipeline("kernel", [
    # In: flat loops of any kind; phases of threads one after another; allocations where the schedule left them.
    _compact_warps,  # before steps of pipelines are told apart: each has registers for its own fragments alone
    split_pipelines,
    virtual_threads,
    # No "vthread" loops.
    _gather,
    # The thread loops of a phase are directly inside each other.
    _compact_shared,
    # Shared buffers have the size of what is live, next to the phases that use them: all their threads are inside.
    place_barriers,
    join_threads,
    wait_for_copies,  # every thread for its own, so not before they are joined: one phase may be one thread's
    # One set of thread loops per kernel; shared buffers around it, the others inside.
    simplify,
    compact_storage,
    # Local buffers are what one thread needs.
    unguarded_sums,
    align_storage,
    simplify,
    wide_copies,
    vectorize,
    unroll,
    simplify,
    # Loops are serial or bound; vectors are copies.
])


def lower_for_device(program: Program, target: Target, observers: Sequence[Observer] = ()) -> Module:
    """The host program, and the kernels that it launches. Where the target binds memory, kernels have other parameters
    than the launches give: the device's driver makes them (see `word_memory`). Raises UserError "kernel-limit" and
    "kernel-local"; for what kernels of such a target cannot compute, "device-dtype" and "device-integers"."""
    if config.debug:
        observers = [*observers, Verify(verify)]
    start: Pipeline[Program] = Pipeline("device", [
        flatten_blocks, *([scalar_copies] if target.binds else []), simplify])
    whole = start.run(program, observers)
    split = split_kernels(whole)
    # Functions that the language of the kernels lacks are arithmetic; nothing is beyond the device's limits.
    finish: Pipeline[Program] = Pipeline("limits", [
        functools.partial(legalize_math, names=target.absent),
        functools.partial(split_grid, target=target),
        *([functools.partial(word_memory, target=target, weights=program.attr("weights", ()))] if target.binds else []),
        functools.partial(check_limits, target=target)])
    kernels, launches = [], []
    for p in split.programs:
        k = finish.run(KERNEL.run(p, observers), observers)
        extents = grid_of(k)
        kernels.append(k)
        launches.append(launch_of(p, tuple([extents.get(axis, ONE) for axis in AXES])))
    attrs = [(k, v) for k, v in program.attrs if k not in ("storage_align", "in_turn", "weights")]
    if split.workspaces:
        attrs.append(("workspaces", len(split.workspaces)))
    params: tuple[object, ...] = (*program.params, *split.workspaces)
    host = program.replace(params=params, body=seq(*launches), attrs=tuple(attrs))
    return Module((host, *kernels))


def device_kernels(module: Module) -> list[Program]:
    """The kernels of a module; its other programs are the host's."""
    return [p for p in module.programs if p.attr("device")]


def host_programs(module: Module) -> Module:
    return Module(tuple([p for p in module.programs if not p.attr("device")]))
