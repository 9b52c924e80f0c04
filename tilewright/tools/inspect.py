"""Looking inside a compilation: graphs, passes, schedules, loop programs, sources, barriers, LLVM IR, assembly.

In: a compiled model with its `stages`. Out: texts, and whether replaying a kernel's trace gives the same code again.
"""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tilewright.codegen.clike.languages import LANGUAGES
from tilewright.codegen.clike.printer import print_kernels
from tilewright.codegen.llvm.compile import assembly, compile_object, optimized_ir
from tilewright.codegen.llvm.emit import emit
from tilewright.core.errors import UserError
from tilewright.core.node import walk
from tilewright.core.passes import Observer, Step
from tilewright.driver import Stages
from tilewright.kernels import CompiledKernel, lowered_kernel, lowered_prepacks, schedule_kernel
from tilewright.loop.intrinsics import INTRINSICS
from tilewright.loop.ir import Address, Call, Load, Module, Program, Store
from tilewright.loop.lower.barriers import Need, explain_barriers, place_barriers
from tilewright.loop.lower.device_pipeline import device_kernels, host_programs, lower_for_device
from tilewright.loop.parser import parse_module
from tilewright.loop.printer import Names, print_expr, print_program
from tilewright.model import Model
from tilewright.target.presets import get_target, host_of
from tilewright.target.target import Target
from tilewright.tensor.schedule.schedule import Schedule, replay


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
    module, (prepacks, packed) = lowered_kernel(again, kernel.name, target), lowered_prepacks(again, kernel.name, host)
    here = host_of(target)
    return (str(trace) == kernel.record["trace"] and compile_object(emit(host_programs(module), here), here) == kernel.object
            and (not target.is_gpu or print_kernels(device_kernels(module), LANGUAGES[target.language]) == kernel.source)
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
    """LLVM IR after LLVM's optimizations; of a device's kernel that of the program which launches it."""
    return optimized_ir(emit(host_programs(lowered(kernel)), host_of(target)), host_of(target))


def assembly_of(kernel: CompiledKernel, target: Target) -> str:
    """Assembly; of a device's kernel that of the program which launches it."""
    return assembly(emit(host_programs(lowered(kernel)), host_of(target)), host_of(target))


def schedule_of(model: Model, kernel: CompiledKernel) -> Schedule:
    """The schedule of a kernel: its program as the default rules leave it, and the trace."""
    stages, target = stages_of(model), model.target
    assert target is not None
    program = next(gp.program for _, gp, key in stages.groups if stages.kernels[key].name == kernel.name)
    return schedule_kernel(program, target, model.descriptor.metadata["numerics"])


def scheduled_program(model: Model, kernel: CompiledKernel) -> str:
    """A kernel's program after its schedule: blocks in their loops, before lowering."""
    return print_program(schedule_of(model, kernel).program.replace(name=kernel.name))


def source_of(kernel: CompiledKernel, target: Target) -> str:
    """A kernel in the language that its target compiles: OpenCL C, CUDA C, …; for a CPU LLVM IR as it is written."""
    if not target.is_gpu:
        return emit(lowered(kernel), target)
    return f"{LANGUAGES[target.language].prelude}{kernel.source}"


@dataclass(frozen=True)
class Dependence:
    """Why a barrier: an access of one thread, and a later one of another to what may be the same element of `buffer`; both
    as in the kernel's program, the earlier one perhaps of another turn of `turns`."""
    buffer: str
    earlier: str
    later: str
    turns: tuple[str, ...]

    def __str__(self) -> str:
        turns = f", in an earlier turn of {', '.join(self.turns)}" if self.turns else ""
        return f"{self.buffer}: one thread {self.earlier}{turns}; then another {self.later}"


@dataclass(frozen=True)
class BarrierReport:
    """A device's kernel where its barriers were placed: the program, each barrier with its number, and what asked for it."""
    kernel: str
    program: str
    barriers: list[list[Dependence]]

    def __str__(self) -> str:
        lines = [self.program]
        for k, needs in enumerate(self.barriers):
            lines += ["", f"barrier {k + 1}", *[f"  {need}" for need in needs]]
        return "\n".join([*lines, *(["", "no barriers"] if not self.barriers else [])])


class _Barriers(Observer):
    """Keeps each kernel as it is before its barriers are placed."""

    def __init__(self) -> None:
        self.kernels: list[Program] = []

    def before(self, step: Step, ir: Program) -> None:
        if step.name == place_barriers.__name__:
            self.kernels.append(ir)


def barriers(schedule: Schedule, target: Target, name: str = "") -> list[BarrierReport]:
    """The barriers of each kernel that a schedule becomes on a device, with the dependences that asked for them. Raises
    UserError "no-device" for a target without threads."""
    if not target.is_gpu:
        raise UserError("no-device", f"{target.name} is a CPU: its kernels have no barriers",
                        hint="choose a device, such as --target opencl")
    seen = _Barriers()
    lower_for_device(schedule.program.replace(name=name or schedule.program.name), target, [seen])
    out = []
    for kernel in seen.kernels:
        placed, found = explain_barriers(kernel)
        names: Names = {}
        lines, number = print_program(placed, names=names).split("\n"), 0
        for k, line in enumerate(lines):
            if line.strip() == "barrier:i64()":
                number += 1
                lines[k] = f"{line.removesuffix(':i64()')}  # {number}"
        out.append(BarrierReport(kernel.name, "\n".join(lines), [
            list(dict.fromkeys([_dependence(n, names) for n in needs])) for needs in found]))
    return out


def _dependence(need: Need, names: Names) -> Dependence:
    earlier, later = (_access(a, names) for a in (need.earlier, need.later))
    return Dependence(names[need.later.buffer], earlier, later, tuple([names[v] for v in need.turns]))


def _access(a: Load | Store | Address, names: Names) -> str:
    verb = "writes" if isinstance(a, Store) else "reads" if isinstance(a, Load) else "has the address of"
    return f"{verb} {print_expr(Load(a.buffer, a.indices), names=names)}"


def intrinsics(model: Model) -> list[tuple[str, int, str]]:
    """Every intrinsic of the loop IR: name, calls in this model's kernels, meaning."""
    calls: Counter[str] = Counter()
    for kernel in stages_of(model).kernels.values():
        for program in lowered(kernel).programs:
            calls.update(n.name for n in walk(program.body) if isinstance(n, Call))
    return [(name, calls[name], record.doc) for name, record in INTRINSICS.items()]
