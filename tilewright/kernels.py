"""One group's program becomes machine code: default schedule, lowering, LLVM IR, object.

In: unscheduled Programs (many; equal ones are one job) and a target. Out: per program a `CompiledKernel`: an object file
of the kernel, another of the prepack programs of its weights, and the record of how it was made (trace, lowered program).
Prepack programs run once, in the process that compiles: the target's schedule says what they do, but their code is the
host's.
"""
from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tilewright.codegen.clike.languages import LANGUAGES
from tilewright.codegen.clike.printer import print_kernels
from tilewright.codegen.llvm.compile import CompilePool, Job
from tilewright.codegen.llvm.emit import emit
from tilewright.core.config import config
from tilewright.core.dtype import dtype
from tilewright.core.errors import InternalError, TilewrightError, UserError
from tilewright.core.passes import Dump
from tilewright.loop.externs import refuse_on_device
from tilewright.loop.ir import Buffer, Expr, Module, Program, Var, as_int, const
from tilewright.loop.lower.device_pipeline import device_kernels, host_programs, lower_for_device
from tilewright.loop.lower.pipeline import lower
from tilewright.loop.parser import parse_expr
from tilewright.loop.printer import print_expr, print_module, print_program
from tilewright.loop.simplify import simplify
from tilewright.loop.substitute import substitute
from tilewright.target.presets import get_target, host_of
from tilewright.target.target import Target
from tilewright.tensor.rules.dispatch import schedule_program
from tilewright.tensor.schedule.schedule import Schedule


@dataclass
class PackedWeight:
    """How a kernel wants one of its weights: the program that lays it out, a digest of what that does (programs of equal
    digests give the same bytes), the new shape and the bytes it takes."""
    program: str
    layout: str
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
    """A kernel's object and record. Its parameters are the program's (buffers, then sizes), then scratch buffers:
    `workspaces` has their bytes, a number or the text of an expression over the program's sizes s0, s1, … by their place
    among its sizes (see `workspace_bytes`). `prepack`: the object of the programs that `packed` names, for the machine
    that compiles (empty if there are none); `source`: the text of the kernels that the object launches on a device ("" on a
    CPU)."""
    name: str
    object: bytes
    prepack: bytes
    workspaces: list[int | str]
    packed: dict[str, PackedWeight]
    record: dict[str, str] = field(default_factory=dict)
    source: str = ""

    def to_bytes(self) -> bytes:
        """For the cache: the lengths of a JSON header and of the kernel's object, then these, then the prepack's object."""
        head = asdict(self)
        del head["object"], head["prepack"]
        text = json.dumps(head).encode()
        return struct.pack("<QQ", len(text), len(self.object)) + text + self.object + self.prepack

    @staticmethod
    def from_bytes(data: bytes) -> CompiledKernel:
        text, code = struct.unpack_from("<QQ", data)
        begin, end = 16 + text, 16 + text + code
        head = json.loads(data[16:begin])
        packed = {k: PackedWeight(**v) for k, v in head.pop("packed").items()}
        return CompiledKernel(**head, packed=packed, object=data[begin:end], prepack=data[end:])


def kernel_key(program: Program, target: Target, numerics: str, version: str) -> str:
    """The content address of a kernel: its program with names normalised, the facts of the target and of this machine (for
    the prepack programs), options, the compiler."""
    text = "\n".join([version, repr(target), repr(get_target()), numerics, print_program(program, canonical=True)])
    return hashlib.sha256(text.encode()).hexdigest()


def schedule_kernel(program: Program, target: Target, numerics: str) -> Schedule:
    """The default schedule of a program; errors name the program."""
    try:
        return schedule_program(program, target, numerics)
    except TilewrightError as e:
        if isinstance(e, UserError) and e.code.startswith(("device-", "kernel-")):
            raise  # the device is the limit
        raise InternalError(f"no schedule for this program: {e}\n{program}") from e


def lowered_kernel(sch: Schedule, name: str, target: Target) -> Module:
    """The emitted-stage module of a scheduled kernel: for a device the host's program and the kernels that it launches."""
    observers = [] if config.dump_dir is None else [Dump(config.dump_dir / name)]
    if target.is_gpu:
        refuse_on_device([sch.program], target.name)
        return lower_for_device(sch.program.replace(name=name), target, observers)
    return Module(lower(sch.program.replace(name=name), target, observers).programs)


def lowered_prepacks(sch: Schedule, name: str, host: Target) -> tuple[Module, dict[str, PackedWeight]]:
    """The emitted-stage module of a kernel's prepack programs, and by weight which program makes what."""
    programs: list[Program] = []
    packed: dict[str, PackedWeight] = {}
    for weight, prepack in sch.prepacks.items():
        out = prepack.params[-1]
        assert isinstance(out, Buffer)
        pack_name = f"{name}_pack_{weight}"
        digest = hashlib.sha256(print_program(prepack.replace(name="pack"), canonical=True).encode()).hexdigest()
        pack = schedule_program(prepack.replace(name=pack_name), host, "strict")
        programs += lower(pack.program, host).programs
        packed[weight] = PackedWeight(pack_name, digest, [as_int(d) or 0 for d in out.shape], out.dtype.name)
    return Module(tuple(programs)), packed


def workspaces_of(module: Module, name: str) -> list[int | str]:
    """Bytes of the scratch parameters that lowering appended to the kernel."""
    (kernel,) = (p for p in module.programs if p.name == name)
    places: dict[Var, Expr] = {}
    for p in kernel.params:
        if isinstance(p, Var):
            places[p] = Var(f"s{len(places)}")
    out: list[int | str] = []
    for p in kernel.params[len(kernel.params) - kernel.attr("workspaces", 0):]:
        assert isinstance(p, Buffer)
        n = const(p.dtype.nbytes)
        for d in p.shape:
            n = n * d
        size = simplify(n)
        known = as_int(size)
        out.append(print_expr(substitute(size, places)) if known is None else known)
    return out


def workspace_bytes(workspaces: Sequence[int | str], sizes: Sequence[Expr]) -> list[Expr]:
    """Bytes of a kernel's workspaces, for the sizes that it is passed."""
    named = {f"s{k}": Var(f"s{k}") for k in range(len(sizes))}
    values = dict(zip(named.values(), sizes, strict=True))
    return [const(n) if isinstance(n, int) else simplify(substitute(parse_expr(n, named), values)) for n in workspaces]


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
    host = get_target()

    def jobs() -> Iterator[Job]:
        for key in todo:
            name = f"k_{key[:12]}"
            sch = schedule_kernel(programs[key], target, numerics)
            module = lowered_kernel(sch, name, target)
            prepacks, packed = lowered_prepacks(sch, name, host)
            parts.append({"name": name, "workspaces": workspaces_of(module, name), "packed": packed, "record": {
                "program": print_program(programs[key]), "trace": str(sch.trace), "lowered": print_module(module),
                **({"schedule_fallback": sch.fallback} if sch.fallback else {}),
                **({"rules": "; ".join(sch.rules)} if sch.rules else {})}})
            if target.is_gpu:
                parts[-1]["source"] = print_kernels(device_kernels(module), LANGUAGES[target.language])
                module = host_programs(module)
            progress(len(done) + len(parts), len(programs))
            yield emit(module, host_of(target)), host_of(target)
            if packed:
                yield emit(prepacks, host), host

    if todo:
        with CompilePool(workers if len(todo) > 1 else 1) as pool:
            objects = iter(pool.compile(jobs()))
        for key, part in zip(todo, parts, strict=True):
            done[key] = CompiledKernel(object=next(objects), prepack=next(objects) if part["packed"] else b"", **part)
            store(key, done[key].to_bytes())
    return done
