"""One scheduled program as a function: made for a target, called with arrays, timed, and read.

In: a Schedule (or a stage schedule, or a Program as it is) and a target. Out: a `Function`. A whole model goes through
`driver.compile`; this is the short way for somebody who writes a kernel: what it computes, how, and then what it gives and
how long it takes.

    f = build(sch, target="opencl")
    y = f(x, w)
    print(f.source, f.benchmark(x, w).median)
"""
from __future__ import annotations

import functools
import re
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.codegen.clike.languages import LANGUAGES
from tilewright.codegen.clike.printer import print_kernels
from tilewright.codegen.llvm import jit
from tilewright.codegen.llvm.compile import compile_object
from tilewright.codegen.llvm.emit import emit
from tilewright.core.dtype import i32, i64, u8
from tilewright.core.errors import UserError
from tilewright.core.node import walk
from tilewright.driver import device_image
from tilewright.graph.memory import round_up
from tilewright.kernels import lowered_kernel, workspaces_of
from tilewright.loop.externs import externs_of
from tilewright.loop.ir import (
    ZERO,
    Address,
    Allocate,
    Buffer,
    Call,
    Evaluate,
    For,
    Launch,
    Program,
    Var,
    as_int,
    const,
    seq,
)
from tilewright.loop.lower.device_pipeline import device_kernels, host_programs
from tilewright.loop.lower.host_for_device import host_for_device
from tilewright.loop.lower.pipeline import lower
from tilewright.loop.printer import print_module
from tilewright.loop.substitute import buffers_written
from tilewright.model import Timing, not_here, timing_of, why_not_here
from tilewright.runtime import native
from tilewright.runtime.descriptor import Descriptor, TensorSpec
from tilewright.runtime.memory import Array
from tilewright.runtime.module import Executable
from tilewright.target.presets import get_target, host_of
from tilewright.target.target import Target
from tilewright.tensor.compute import Tensor
from tilewright.tensor.schedule.schedule import Schedule
from tilewright.tensor.stages import StageSchedule


class Function:
    """A scheduled program for a target. It takes arrays for the buffers that the program only reads, in order of its
    parameters, and gives new arrays for those that it writes. Code is made, and a device opened, at the first call: one for
    another machine can be read all the same.

    `program`: as scheduled; `lowered`: what code is made of, for a device the host's program, which launches, and kernels.
    """

    def __init__(self, schedule: Schedule, target: Target, threads: int | None) -> None:
        self.schedule, self.program, self.target, self.threads = schedule, schedule.program, target, threads
        self.name = re.sub(r"\W", "_", self.program.name)
        self.lowered = lowered_kernel(schedule, self.name, target)
        buffers = [p for p in self.program.params if isinstance(p, Buffer)]
        written = buffers_written(self.program.body)
        self.inputs = [p for p in buffers if p not in written]
        self.outputs = [p for p in buffers if p in written]

    def __repr__(self) -> str:
        def names(buffers: list[Buffer]) -> str:
            return ", ".join([str(_spec(b)) for b in buffers])
        return f"<Function {self.name!r} for {self.target.name}: ({names(self.inputs)}) → {names(self.outputs)}>"

    # ---- reading -------------------------------------------------------------------------------------------------------
    @property
    def loops(self) -> str:
        """The lowered loop programs as text."""
        return print_module(self.lowered)

    @functools.cached_property
    def source(self) -> str:
        """The kernels in the device's language; of a CPU, LLVM IR. Raises UserError "device-dtype", "device-function"."""
        if not self.target.is_gpu:
            return emit(self.lowered, self.target)
        language = LANGUAGES[self.target.language]
        return language.prelude + print_kernels(device_kernels(self.lowered), language)

    # ---- running -------------------------------------------------------------------------------------------------------
    def __call__(self, *arrays: Any) -> Any:
        """Run; one output is an array, several are a list. Raises UserError: "target-not-here", "device-missing" and what
        else keeps the target from running; "input-…" for arrays that do not fit."""
        results = self.executable.run(arrays)
        return results[0] if len(results) == 1 else results

    def benchmark(self, *arrays: Any, warmup: int = 2, runs: int = 20, seconds: float = 1.0) -> Timing:
        """Milliseconds of the kernels alone, copies to a device and back not counted: over at most `runs` runs or
        `seconds`, after `warmup` runs."""
        run = self.executable
        run.set_profiling(True)
        times: list[float] = []
        try:
            for _ in range(warmup):
                run.run(arrays)
            run.profile(reset=True)
            stop = time.perf_counter() + seconds
            while len(times) < runs and (not times or time.perf_counter() < stop):
                run.run(arrays)
                times.append(run.profile(reset=True)[0].seconds * 1e3)
        finally:
            run.set_profiling(False)
        return timing_of(times)

    def random_inputs(self, seed: int = 0) -> list[Array]:
        """Normal floats, small non-negative integers, true booleans."""
        rng = np.random.default_rng(seed)
        out = []
        for b in self.inputs:
            shape, kind = _spec(b).shape, b.dtype.numpy()
            drawn = rng.standard_normal(shape) if b.dtype.is_float else rng.integers(0, 2, shape) | b.dtype.is_bool
            out.append(drawn.astype(kind))
        return out

    @functools.cached_property
    def executable(self) -> Executable:
        """The runtime's side. Raises UserError "target-not-here" and the device's own."""
        if why_not_here(self.target):
            raise not_here(self.target)
        host, order = host_of(self.target), [*self.inputs, *self.outputs]
        main, arena_bytes = _main(self.program, self.name, order, workspaces_of(self.lowered, self.name))
        code, image = self.lowered, b""
        if self.target.is_gpu:
            main, arena_bytes = host_for_device(main, len(self.inputs), arena_bytes, self.target)
            code = host_programs(code)
            image = device_image([print_kernels(device_kernels(self.lowered), LANGUAGES[self.target.language])], self.target)
        places = [*[("in", k) for k in range(len(self.inputs))], *[("out", k) for k in range(len(self.outputs))]]
        entry = lower(main.replace(attrs=(("entry", "tw_main"), ("args", tuple(places)), ("noalias", False))), host)
        symbols = {**native.symbol_addresses(), **jit.extern_addresses(externs_of([code]))}
        library = jit.load([compile_object(emit(m, host), host) for m in (code, entry)], symbols)
        descriptor = Descriptor(self.name, tuple(map(_spec, self.inputs)), tuple(map(_spec, self.outputs)), arena_bytes,
                                (self.name,), tuple(self.target.features),
                                device=self.target.device_name, image=image)
        return Executable(descriptor, library.address("tw_main"), threads=self.threads, keep=library)

    def close(self) -> None:
        """Give the device's memory back; a later call opens it again."""
        opened = self.__dict__.pop("executable", None)
        if opened is not None:
            opened.close()


def build(what: Schedule | StageSchedule | Program, target: str | Target = "native", *,
          args: Sequence[Tensor | Var] | None = None, threads: int | None = None) -> Function:
    """A function of a schedule, or of a program as it is, for a target. `args`: of a stage schedule, its inputs and outputs
    in the order of the function's (by default inputs in order of first use, then the results).

    Raises UserError "build-program" for a program that needs a model around it (symbolic sizes and scalars, weights that
    the schedule lays out anew), and for one whose loops are bound to threads on a target that has none; "kernel-limit" and
    "kernel-local" for a kernel that the device cannot run.
    """
    if args is not None and not isinstance(what, StageSchedule):
        raise UserError("build-program", "only a stage schedule takes arguments: a program has its parameters")
    if isinstance(what, StageSchedule):
        schedule = what.schedule(args)
    elif isinstance(what, Schedule | Program):
        schedule = what if isinstance(what, Schedule) else Schedule(what)
    else:
        raise UserError("build-program", f"{what!r} is no schedule and no program")
    program = schedule.program
    for p in program.params:
        if not isinstance(p, Buffer) or any(as_int(d) is None for d in p.shape):
            raise UserError("build-program", f"{p.name} of {program.name} is a scalar or has a symbolic size",
                            where=program.name, hint="give its shape in numbers, or use the program as an operator of a "
                            "model (tilewright.custom_op)")
    device = get_target(target)
    bound = None if device.is_gpu else next((n for n in walk(program.body) if isinstance(n, For) and "Idx." in n.kind), None)
    if bound is not None:
        raise UserError("build-program", f"loop {bound.var.name} of {program.name} is bound to {bound.kind}, which "
                        f"{device.name} does not have", where=program.name, hint="build it for a device (opencl, sm_80, …), "
                        "or schedule it with parallel and vectorize")
    if schedule.prepacks:
        raise UserError("build-program", f"{program.name} wants {', '.join(schedule.prepacks)} in a layout of its own, "
                        "which only a model packs", where=program.name, hint="leave transform_layout out")
    return Function(schedule, device, threads)


def _main(program: Program, name: str, order: list[Buffer], workspaces: list[int | str]) -> tuple[Program, int]:
    """The host's program: one launch, which is timed, with scratch memory in the arena; and the arena's bytes."""
    own = {b: b.replace(name=f"{b.name}_{k}") for k, b in enumerate(order)}
    scratch, end = [], 0
    for k, n in enumerate(workspaces):
        assert isinstance(n, int)
        scratch.append((Buffer(f"scratch{k}", u8, (const(n),), "arena"), end))
        end += round_up(n)
    args = [*[own[p] for p in program.params if isinstance(p, Buffer)], *[b for b, _ in scratch]]
    begin, done = (Evaluate(Call(f"tw_profile_{when}", (const(0, i32),), i64)) for when in ("begin", "end"))
    body = seq(begin, Launch(name, tuple([Address(b, (ZERO,) * b.rank) for b in args])), done)
    for b, at in reversed(scratch):
        body = Allocate(b, body, const(at))
    return Program("main", tuple(own.values()), body), end


def _spec(b: Buffer) -> TensorSpec:
    return TensorSpec(b.name, b.dtype, tuple([as_int(d) or 0 for d in b.shape]))


