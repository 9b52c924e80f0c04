"""One group's program becomes machine code: default schedule, lowering, LLVM IR, object.

In: unscheduled Programs (many; equal ones are one job) and a target. Out: per program a `CompiledKernel`: an object file
that holds the kernel and the prepack programs of its weights, and the record of how it was made (trace, lowered program).
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tilewright.codegen.llvm.compile import CompilePool
from tilewright.codegen.llvm.emit import emit
from tilewright.core.config import config
from tilewright.core.dtype import dtype
from tilewright.core.errors import InternalError, TilewrightError
from tilewright.core.passes import Dump
from tilewright.loop.ir import Buffer, Module, Program, as_int
from tilewright.loop.lower.pipeline import lower
from tilewright.loop.printer import print_module, print_program
from tilewright.target.target import Target
from tilewright.tensor.rules.dispatch import schedule_program
from tilewright.tensor.schedule.schedule import Schedule


@dataclass
class PackedWeight:
    """How a kernel wants one of its weights: the program that lays it out, the new shape and the bytes it takes."""
    program: str
    shape: list[int]
    dtype: str

    @property
    def nbytes(self) -> int:
        n = dtype(self.dtype).nbytes
        for d in self.shape:
            n *= d
        return n


@dataclass
class CompiledKernel:
    """A kernel's object and record. `workspaces`: bytes of the scratch buffers that follow its parameters."""
    name: str
    object: bytes
    workspaces: list[int]
    packed: dict[str, PackedWeight]
    record: dict[str, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """For the cache: a JSON header's length, the header, the object."""
        head = asdict(self)
        del head["object"]
        text = json.dumps(head).encode()
        return len(text).to_bytes(8, "little") + text + self.object

    @staticmethod
    def from_bytes(data: bytes) -> CompiledKernel:
        n = int.from_bytes(data[:8], "little")
        head = json.loads(data[8:8 + n])
        packed = {k: PackedWeight(**v) for k, v in head.pop("packed").items()}
        return CompiledKernel(**head, packed=packed, object=data[8 + n:])


def kernel_key(program: Program, target: Target, numerics: str, version: str) -> str:
    """The content address of a kernel: its program with names normalised, the target's facts, options, the compiler."""
    text = "\n".join([version, repr(target), numerics, print_program(program, canonical=True)])
    return hashlib.sha256(text.encode()).hexdigest()


def schedule_kernel(program: Program, target: Target, numerics: str) -> Schedule:
    """The default schedule of a program; errors name the program."""
    try:
        return schedule_program(program, target, numerics)
    except TilewrightError as e:
        raise InternalError(f"no schedule for this program: {e}\n{program}") from e


def lowered_module(sch: Schedule, name: str, target: Target) -> tuple[Module, dict[str, PackedWeight]]:
    """The emitted-stage module of a scheduled kernel and its prepack programs."""
    observers = [] if config.dump_dir is None else [Dump(config.dump_dir / name)]
    programs = list(lower(sch.program.replace(name=name), target, observers).programs)
    packed: dict[str, PackedWeight] = {}
    for weight, prepack in sch.prepacks.items():
        out = prepack.params[-1]
        assert isinstance(out, Buffer)
        pack_name = f"{name}_pack_{weight}"
        pack = schedule_program(prepack.replace(name=pack_name), target, "strict")
        programs += lower(pack.program, target).programs
        packed[weight] = PackedWeight(pack_name, [as_int(d) or 0 for d in out.shape], out.dtype.name)
    return Module(tuple(programs)), packed


def workspaces_of(module: Module, name: str) -> list[int]:
    """Bytes of the scratch parameters that lowering appended to the kernel."""
    (kernel,) = (p for p in module.programs if p.name == name)
    sizes = []
    for p in kernel.params[len(kernel.params) - kernel.attr("workspaces", 0):]:
        assert isinstance(p, Buffer)
        n = p.dtype.nbytes
        for d in p.shape:
            n *= as_int(d) or 0
        sizes.append(n)
    return sizes


def compile_kernels(programs: Mapping[str, Program], target: Target, numerics: str, workers: int,
                    lookup: Callable[[str], bytes | None], store: Callable[[str, bytes], None],
                    progress: Callable[[int, int], None]) -> dict[str, CompiledKernel]:
    """Compile programs by key; those that `lookup` finds are not compiled. LLVM runs in `workers` forked processes while
    this one schedules and lowers the next kernel."""
    done: dict[str, CompiledKernel] = {}
    todo: list[str] = []
    for key in programs:
        found = lookup(key)
        if found is None:
            todo.append(key)
        else:
            done[key] = CompiledKernel.from_bytes(found)
    progress(len(done), len(programs))
    parts: list[dict[str, Any]] = []

    def texts() -> Iterator[str]:
        for key in todo:
            name = f"k_{key[:12]}"
            sch = schedule_kernel(programs[key], target, numerics)
            module, packed = lowered_module(sch, name, target)
            parts.append({"name": name, "workspaces": workspaces_of(module, name), "packed": packed, "record": {
                "program": print_program(programs[key]), "trace": str(sch.trace), "lowered": print_module(module)}})
            progress(len(done) + len(parts), len(programs))
            yield emit(module, target)

    if todo:
        with CompilePool(target, workers if len(todo) > 1 else 1) as pool:
            objects = pool.compile(texts())
        for key, obj, part in zip(todo, objects, parts, strict=True):
            done[key] = CompiledKernel(object=obj, **part)
            store(key, done[key].to_bytes())
    return done
