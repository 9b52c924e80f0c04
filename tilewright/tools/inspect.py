"""Looking inside a compilation: graphs, passes, schedules, loop programs, LLVM IR, assembly.

In: a compiled model with its `stages`. Out: texts, and whether replaying a kernel's trace gives the same code again.
"""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tilewright.codegen.llvm.compile import assembly, compile_object, optimized_ir
from tilewright.codegen.llvm.emit import emit
from tilewright.core.errors import UserError
from tilewright.core.node import walk
from tilewright.driver import Stages
from tilewright.kernels import CompiledKernel, lowered_kernel, lowered_prepacks, schedule_kernel
from tilewright.loop.intrinsics import INTRINSICS
from tilewright.loop.ir import Call, Module, Program
from tilewright.loop.parser import parse_module
from tilewright.model import Model
from tilewright.target.presets import get_target
from tilewright.target.target import Target
from tilewright.tensor.schedule.schedule import replay


@dataclass(frozen=True)
class ScheduleReport:
    """A kernel's schedule: what it computes, its trace, how often it is launched, and whether the trace, replayed on the
    unscheduled program, gives byte for byte the object code that runs."""
    kernel: str
    label: str
    launches: int
    program: str
    trace: str
    replays: bool


def stages_of(model: Model) -> Stages:
    """The record of a compilation. Raises UserError "no-stages" for a loaded library."""
    if not isinstance(model.stages, Stages):
        raise UserError("no-stages", "a saved library holds no graphs and no schedules", hint="inspect the ONNX file")
    return model.stages


def schedules(model: Model, numerics: str = "default") -> list[ScheduleReport]:
    """One report per kernel (equal groups share one), in order of first launch. Raises UserError "no-stages"."""
    stages, target = stages_of(model), model.target
    assert target is not None
    programs: dict[str, Program] = {}
    for _, gp, key in stages.groups:
        programs.setdefault(stages.kernels[key].name, gp.program)
    by_name = {k.name: k for k in stages.kernels.values()}
    launches = Counter(use.kernel for use in model.kernels)
    labels = {use.kernel: use.label for use in reversed(model.kernels)}
    out = []
    for name, count in launches.items():
        kernel = by_name[name]
        out.append(ScheduleReport(name, labels[name], count, kernel.record["program"], kernel.record["trace"],
                                  replays_exactly(kernel, programs[name], target, numerics)))
    return out


def replays_exactly(kernel: CompiledKernel, program: Program, target: Target, numerics: str) -> bool:
    """Schedule anew, replay that trace on the program, compile: the trace and the bytes must be the kernel's."""
    trace = schedule_kernel(program, target, numerics).trace
    again, host = replay(trace, program), get_target()
    kernels, (prepacks, packed) = lowered_kernel(again, kernel.name, target), lowered_prepacks(again, kernel.name, host)
    return (str(trace) == kernel.record["trace"] and compile_object(emit(kernels, target), target) == kernel.object
            and (not packed or compile_object(emit(prepacks, host), host) == kernel.prepack))


def kernel_named(model: Model, name: str) -> CompiledKernel:
    """A kernel by its name, the beginning of it, or a launch's number. Raises UserError "kernel-unknown"."""
    kernels = {k.name: k for k in stages_of(model).kernels.values()}
    if name.isdigit() and int(name) < len(model.kernels):
        return kernels[model.kernels[int(name)].kernel]
    found = [k for n, k in kernels.items() if n.startswith(name) or n.startswith(f"k_{name}")]
    if len(found) != 1:
        what = "no kernel" if not found else f"{len(found)} kernels"
        raise UserError("kernel-unknown", f"{what} for {name!r}", hint=f"a launch's number below {len(model.kernels)}, or a "
                        "name: `tilewright inspect MODEL` lists them")
    return found[0]


def lowered(kernel: CompiledKernel) -> Module:
    """The loop programs from which a kernel's code was made."""
    return parse_module(kernel.record["lowered"])


def llvm_ir(kernel: CompiledKernel, target: Target) -> str:
    """LLVM IR after LLVM's optimizations."""
    return optimized_ir(emit(lowered(kernel), target), target)


def assembly_of(kernel: CompiledKernel, target: Target) -> str:
    return assembly(emit(lowered(kernel), target), target)


def intrinsics(model: Model) -> list[tuple[str, int, str]]:
    """Every intrinsic of the loop IR: name, calls in this model's kernels, meaning."""
    calls: Counter[str] = Counter()
    for kernel in stages_of(model).kernels.values():
        for program in lowered(kernel).programs:
            calls.update(n.name for n in walk(program.body) if isinstance(n, Call))
    return [(name, calls[name], record.doc) for name, record in INTRINSICS.items()]
