"""The compiler, start to end: a model file becomes a callable model. The only file that sees every layer.

    read → graph passes → groups → programs → schedules → machine code → weights packed → host program → executable

Only the last step asks whether this machine is the target: a model for another one is compiled as well, and saved.
"""
from __future__ import annotations

import functools
import hashlib
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from tilewright.broadcasts import Broadcasts
from tilewright.bundle import write_bundle
from tilewright.codegen.clike.languages import LANGUAGES
from tilewright.codegen.clike.nvrtc import compile_cubin
from tilewright.codegen.llvm import jit
from tilewright.codegen.llvm.compile import compile_object
from tilewright.codegen.llvm.emit import emit
from tilewright.core.config import Numerics, config
from tilewright.core.errors import InternalError, UserError
from tilewright.core.node import allow_deep_programs
from tilewright.core.passes import Dump, Observer, Verify
from tilewright.core.signature import Signature
from tilewright.frontend.onnx.importer import import_model
from tilewright.graph.assumed import with_checks
from tilewright.graph.ir import Graph, TensorType, Value
from tilewright.graph.lower import GroupProgram, group_program
from tilewright.graph.memory import round_up
from tilewright.graph.ops.custom import CustomOp
from tilewright.graph.passes.fuse import CONTROL, Group, fuse
from tilewright.graph.pipeline import graph_pipeline
from tilewright.graph.plan import HostPlan, Kernel, Planner
from tilewright.graph.printer import print_graph
from tilewright.graph.registry import runs_on_host
from tilewright.graph.symbols import defined_symbols, symbols_of
from tilewright.graph.verify import verify as verify_graph
from tilewright.graph.versions import choose_version, version_shapes
from tilewright.hosting import HostWarning, host_function, host_node, refusal
from tilewright.kernels import CompiledKernel, compile_kernels, kernel_key, workspace_bytes
from tilewright.loop.externs import externs_of
from tilewright.loop.ir import Address, Buffer, Launch, Module, Program, Span, Var, as_int, const, estimate, seq
from tilewright.loop.lower.host_for_device import host_for_device
from tilewright.loop.lower.pipeline import lower
from tilewright.loop.substitute import substitute
from tilewright.model import KernelUse, Model, not_here, why_not_here
from tilewright.runtime import artifact, native
from tilewright.runtime.cache import Cache
from tilewright.runtime.descriptor import Descriptor, SymbolSpec, TensorSpec, check_threads
from tilewright.runtime.memory import Array, aligned
from tilewright.runtime.module import Executable
from tilewright.target.presets import get_target, host_of
from tilewright.target.target import Target
from tilewright.tensor.work import work_of

NUMERICS = get_args(Numerics)
FALLBACKS = ("host", "error")
Progress = Callable[[int, int], None]
"""Told how many kernels are ready, and of how many."""


@dataclass
class Stages:
    """Everything that a compilation produced on its way, for tools that look inside. `versions`: the optimized graphs of
    the specialised versions."""
    imported: Graph | None = None
    optimized: Graph | None = None
    versions: list[Graph] = field(default_factory=list)
    signature: Signature | None = None
    groups: list[tuple[Group, GroupProgram, str]] = field(default_factory=list)
    kernels: dict[str, CompiledKernel] = field(default_factory=dict)
    plan: HostPlan | None = None


def compile(model: Any, target: str | Target = "native", *, shapes: Mapping[str, Any] | None = None,
            versions: Sequence[Mapping[str, int]] = (), threads: int | None = None, numerics: str | None = None,
            verify: bool = False, observers: Sequence[Observer] = (), fallback: str = "host",
            custom_ops: Sequence[CustomOp] = (), progress: Progress = lambda done, total: None) -> Model:
    """Compile an ONNX model (path, bytes or ModelProto) into native code.

    `shapes` sets symbolic dimensions or whole input shapes by name; each of `versions` gives sizes to symbols that stay
    open ({"batch": 1, "seq": 128}): runs of these sizes, the first version that fits, use code made for them, over the same
    weights where the layouts agree. `threads` is the number of threads of a run;
    `numerics` "strict" uses no algorithm that changes the order of sums beyond a declared reduction, "tf32" lets devices
    that have it round the operands of f32 products to TF32 (ten bits of mantissa); `verify` compares one run on random
    inputs with the graph interpreter; `progress(done, total)` is told how many kernels are ready.
    Operators that have a meaning but no compiled form (docs/operators.md) run on the host, called back by the compiled code
    around them: with a `HostWarning`, listed in `Model.host_nodes`; `fallback` "error" refuses them, all at once.
    `custom_ops`: operators of the user's own (`tilewright.custom_op`), compiled like any other.
    Raises UserError for whatever is wrong with the model or options; InternalError for a fault of the compiler, with the
    path of a folder that reproduces it.
    """
    options = numerics or config.numerics
    if options not in NUMERICS:
        raise UserError("numerics-unknown", f"numerics is {', '.join(NUMERICS[:-1])} or {NUMERICS[-1]}, not {options!r}")
    if fallback not in FALLBACKS:
        raise UserError("fallback-unknown", f"fallback is {' or '.join(FALLBACKS)}, not {fallback!r}")
    device = get_target(target)
    check_threads(threads)
    if verify and why_not_here(device):
        raise not_here(device)
    stages = Stages()
    try:
        read = import_model(model, shapes=shapes, custom_ops=custom_ops)
        stages.imported, stages.signature = with_checks(read.graph), read.signature
        passes = graph_pipeline(device, options)
        stages.optimized = passes.run(stages.imported, [*observers, *_from_settings()])
        for k, sizes in enumerate(versions):
            sized = version_shapes(stages.imported, sizes, f"versions[{k}]", read.joined.stands)
            kept = {name: s for name, s in (shapes or {}).items() if name in read.signature.structured}
            special = import_model(model, shapes={**kept, **sized}, custom_ops=custom_ops)
            stages.versions.append(passes.run(with_checks(special.graph), [*observers, *_from_settings()]))
        for g in (stages.optimized, *stages.versions):
            check_sizes(g)
        hosts = [host_node(op) for g in all_graphs(stages.optimized) for op in g.operations if runs_on_host(op)]
        if hosts and fallback == "error":
            raise refusal(hosts)
        built = build(stages, device, options, threads, progress)
        if read.joined.broadcast:
            again = functools.partial(compile, model, device, threads=threads, numerics=options, fallback=fallback,
                                      custom_ops=custom_ops)
            given = {name: s for name, s in (shapes or {}).items() if name in read.signature.structured}
            built.broadcasts = Broadcasts(read.joined, lambda sizes: again(shapes={**given, **sizes}))
        if hosts:
            named = ", ".join([f"{n.where} ({n.op})" for n in hosts])
            warnings.warn(f"{len(hosts)} operators run on the host: {named}", HostWarning, stacklevel=2)
        if verify:
            built.verify()
        return built
    except (UserError, MemoryError):
        raise
    except Exception as error:
        given = {"target": device, "shapes": shapes, "threads": threads, "numerics": options}
        graphs = {"imported.graph": stages.imported, "optimized.graph": stages.optimized}
        texts = {name: functools.partial(print_graph, g) for name, g in graphs.items() if g is not None}
        folder = write_bundle(error, options=given, texts=texts, model=model,
                              versions={"compiler": compiler_version(), "numpy": np.__version__})
        where = f"\n  to reproduce it: {folder}" if folder else ""
        raise InternalError(f"{error if isinstance(error, InternalError) else repr(error)}{where}") from error


def _from_settings() -> list[Observer]:
    """The observers of the graph passes that the settings ask for."""
    out: list[Observer] = [Verify(verify_graph)] if config.debug else []
    return out if config.dump_dir is None else [*out, Dump(config.dump_dir, print_graph)]


def build(stages: Stages, target: Target, numerics: str, threads: int | None,
          progress: Progress) -> Model:
    """From an optimized graph to a loaded model."""
    graph = stages.optimized
    assert graph is not None
    graphs = [graph, *stages.versions]
    for g in graphs:
        require_sizes(g)
    allow_deep_programs()

    # groups, and one program for each; equal programs are compiled once
    jobs = _Jobs(target, numerics)
    for g in [inner for outer in graphs for inner in all_graphs(outer)]:
        for group in fuse(g):
            if group.kind == "kernel":
                jobs.add(group)
    cache = Cache(config.cache_dir)
    stages.kernels = kernels = compile_kernels(jobs.programs, target, numerics, config.compile_workers, cache.get, cache.put,
                                               progress)
    stages.groups = [(g, p, jobs.keys[_identity(g)]) for g, p in jobs.groups]

    # weights: one blob, each weight in the layout that its kernel streams
    weights = _Weights(target)

    def kernel_of(group: Group) -> Kernel:
        gp, key = jobs.by_group[_identity(group)], jobs.keys[_identity(group)]
        k = kernels[key]
        weights.check(gp)
        args = [*gp.inputs, *[weights.use(v, k, f"w{i}") for i, v in enumerate(gp.weights)], *gp.outputs]
        return Kernel(k.name, args, gp.sizes, workspace_bytes(k.workspaces, gp.sizes))

    planner = Planner(kernel_of, weights.offset)
    general = planner.plan(graph, "main" if not stages.versions else "general")
    asked = [k for k, v in enumerate(graph.outputs) if not v.type.is_static]
    plans = [general, *[planner.plan(g, f"version{k}", asked) for k, g in enumerate(stages.versions)]]
    plan = stages.plan = replace(general, kernels=plans[-1].kernels, groups=plans[-1].groups,
                                 arena_bytes=max(p.arena_bytes for p in plans), grown=max(p.grown for p in plans))

    # the weights' bytes, packed by code for this machine, whatever the target
    blob = weights.fill([k.prepack for k in kernels.values() if k.prepack])

    # machine code: kernels' objects and the host program
    entry, arena_bytes, host = plan.main, plan.arena_bytes, host_of(target)
    if target.is_gpu:
        entry, arena_bytes = host_for_device(entry, len(graph.inputs), arena_bytes, target)
    if stages.versions:
        entry = choose_version("main", graph, general, list(zip(stages.versions, plans[1:], strict=True)))
    mains = [_entry_module(entry, "tw_main", plan.sources, host)]
    if stages.versions:
        mains += [_entry_module(p.main, f"tw_{p.main.name}", p.sources, host) for p in plans]
    objects = [*[k.object for k in kernels.values()], *[compile_object(emit(m, host), host) for m in mains]]

    metadata: dict[str, Any] = {"target": target.name, "numerics": numerics, "version": compiler_version()}
    if stages.signature is not None and not stages.signature.is_plain:
        metadata["signature"] = stages.signature.facts()
    hosts = [host_node(call.op) for call in plan.hosts if not call.decides]
    if hosts:
        metadata["host_calls"] = list(dict.fromkeys([f"{n.where}: {n.op}" for n in hosts]))
    symbols = symbols_of(d for v in graph.inputs for d in v.shape)
    descriptor = Descriptor(graph.name, _specs(graph.inputs, symbols=symbols), _specs(graph.outputs, graph.output_names),
                            arena_bytes, tuple(plan.kernels), tuple(target.features), plan.grown, len(plan.hosts),
                            threads or 0, metadata, tuple([_symbol(s) for s in symbols]),
                            target.device_name,
                            device_image([k.source for k in kernels.values()], target) if target.is_gpu else b"")
    externs = externs_of(jobs.programs.values())
    executable = None
    if not why_not_here(target):
        library = jit.load(objects, {**native.symbol_addresses(), **jit.extern_addresses(externs)})
        executable = Executable(descriptor, library.address("tw_main"), blob, threads=threads, keep=library)
        for slot, call in enumerate(plan.hosts):
            executable.set_host_call(slot, host_function(call))
    uses = [jobs.use(group, kernels) for group in plan.groups]
    return Model(descriptor, executable, stages.imported, uses, objects=objects, constants=blob,
                 weight_bytes=bytes_as_read(stages.imported), packed_bytes=weights.size, arena_bytes=arena_bytes,
                 stages=stages, target=target, hosts=hosts, externs=externs)


def device_image(sources: Sequence[str], target: Target) -> bytes:
    """The module that a device's driver loads: all kernels of a model in one."""
    text = "\n".join([LANGUAGES[target.language].prelude, *sources])
    return compile_cubin(text, target.arch_name) if target.language == "cuda" else text.encode()


def bytes_as_read(imported: Graph | None) -> int:
    """Bytes of the model's constants as the frontend read them, each once."""
    if imported is None:
        return 0
    found = {v: v.data.nbytes for g in all_graphs(imported) for v in g.constants() if v.data is not None}
    return sum(found.values())


MOST_BYTES = 1 << 47
"""Of a tensor: more than any process can address."""


def check_sizes(graph: Graph) -> None:
    """UserError "tensor-too-large" for a value that no memory can hold."""
    for g in all_graphs(graph):
        for v in [*g.inputs, *[v for op in g.operations for v in op.outputs]]:
            if v.type.is_static and _nbytes(v) > MOST_BYTES:
                raise UserError("tensor-too-large", f"{v.name}: {v.type} has {_nbytes(v):,} bytes",
                                where=v.loc or v.name, hint="the model may be damaged, or a size wrong")


def all_graphs(graph: Graph) -> Iterator[Graph]:
    """A graph and the regions inside it."""
    yield graph
    for op in graph.operations:
        for region in op.regions:
            yield from all_graphs(region)


def require_sizes(graph: Graph, known: Iterable[Var] = ()) -> None:
    """InternalError unless every symbol gets a value: from an input's shape, or where the program computes it."""
    have = {*known, *symbols_of(d for v in graph.inputs for d in v.shape)}
    for op in graph.operations:
        new = defined_symbols(op, have)
        if new and op.op not in ("sizes", *CONTROL) and not runs_on_host(op):
            raise InternalError(f"{op}: nothing gives {', '.join(v.name for v in new)} a value: {op.outputs[0].type}")
        have |= set(new)
        for region in op.regions:
            require_sizes(region, have)


class _Jobs:
    """The programs to compile, by content; which group wants which."""

    def __init__(self, target: Target, numerics: str) -> None:
        self.target, self.numerics = target, numerics
        self.programs: dict[str, Program] = {}
        self.groups: list[tuple[Group, GroupProgram]] = []
        self.by_group: dict[tuple[int, ...], GroupProgram] = {}
        self.keys: dict[tuple[int, ...], str] = {}

    def add(self, group: Group) -> None:
        gp = group_program(group, "kernel")
        key = kernel_key(gp.program, self.target, self.numerics, compiler_version())
        self.programs.setdefault(key, gp.program)
        self.groups.append((group, gp))
        self.by_group[_identity(group)], self.keys[_identity(group)] = gp, key

    def use(self, group: Group, kernels: Mapping[str, CompiledKernel]) -> KernelUse:
        """What a launch of a group's kernel is, for the profile."""
        gp, k = self.by_group[_identity(group)], kernels[self.keys[_identity(group)]]
        return KernelUse(k.name, k.record, group, *_work(gp))


def _identity(group: Group) -> tuple[int, ...]:
    return tuple(id(op) for op in group.operations)


class _Weights:
    """The constants' blob: every weight once per layout in which some kernel wants it. Equal ones are one: several
    versions of a model read each its own."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.size = 0
        self.offsets: dict[Value, int] = {}
        self.packs: list[tuple[Value, Value, str]] = []
        self._made: dict[tuple[Value, str], Value] = {}
        self._raw: list[Value] = []
        self._first: dict[Value, Value] = {}
        self._alike: dict[tuple[object, ...], list[Value]] = {}

    def first(self, v: Value) -> Value:
        """The first constant seen with the contents of `v`."""
        if v.data is None:
            return v
        if v not in self._first:
            data = np.ascontiguousarray(v.data).reshape(-1).view(np.uint8)
            alike = self._alike.setdefault((v.dtype, v.data.shape, zlib.crc32(data.data)), [])
            self._first[v] = next((w for w in alike if w.data is not None and np.array_equal(
                data, np.ascontiguousarray(w.data).reshape(-1).view(np.uint8))), v)
            if self._first[v] is v:
                alike.append(v)
        return self._first[v]

    def use(self, v: Value, kernel: CompiledKernel, parameter: str) -> Value:
        """The value that stands for weight `v` in the layout that a kernel's parameter wants."""
        pack = kernel.packed.get(parameter)
        if pack is None:
            self.offset(v)
            return v
        v = self.first(v)
        key = (v, pack.layout)
        if key not in self._made:
            t = TensorType(v.dtype, tuple(const(d) for d in pack.shape))
            packed = Value(f"{v.name}_packed", t)
            self._made[key] = packed
            self.packs.append((v, packed, pack.program))
            self.offsets[packed] = self._reserve(pack.nbytes)
        return self._made[key]

    def offset(self, v: Value) -> int | None:
        """Where a constant is in the blob; None if the value is no constant."""
        if v not in self.offsets:
            if v.data is None:
                return None
            first = self.first(v)
            if first is not v:
                self.offsets[v] = self.offset(first) or 0
                return self.offsets[v]
            self._raw.append(v)
            self.offsets[v] = self._reserve(v.data.size * v.dtype.nbytes)
        return self.offsets[v]

    def check(self, gp: GroupProgram) -> None:
        """Raises UserError "device-integers" for a constant that the target's kernels cannot compute with."""
        for v in gp.weights if self.target.binds else ():
            if v.data is not None and v.dtype.is_int and v.dtype.bits > 32 and v.data.size and not (
                    -2**31 <= v.data.min() and v.data.max() < (2**31 if v.dtype.kind == "int" else 2**32)):
                raise UserError("device-integers", f"the constant {v.name} holds numbers beyond 32 bits, in which kernels "
                                f"for {self.target.name} compute", where=v.loc or v.name,
                                hint="choose another target for this model")

    def _reserve(self, nbytes: int) -> int:
        at, piece = self.size, self.target.max_binding
        if piece and at % piece + nbytes > piece:  # so that each weight is in one piece, or begins one
            at = round_up(at, piece)
        self.size = round_up(at + nbytes)
        return at

    def _program(self) -> Program:
        """A host program that lays all weights out: inputs are the weights as read, outputs the packed ones."""
        ins = [Buffer(f"in{i}", v.dtype, v.shape) for i, (v, _, _) in enumerate(self.packs)]
        outs = [Buffer(f"out{i}", p.dtype, p.shape) for i, (_, p, _) in enumerate(self.packs)]
        body = [Launch(name, (_start(a), _start(b))) for (_, _, name), a, b in zip(self.packs, ins, outs, strict=True)]
        return Program("pack", (*ins, *outs), seq(*body))

    def fill(self, objects: Sequence[bytes]) -> Array:
        """The blob, every weight in its place. `objects`: prepack programs, for this machine."""
        blob = aligned(max(self.size, 64))
        for v in self._raw:
            assert v.data is not None
            at = self.offsets[v]
            flat = np.ascontiguousarray(v.data).reshape(-1).view(np.uint8)
            blob[at:at + flat.nbytes] = flat
        if self.packs:
            views = [blob[self.offsets[p]:self.offsets[p] + _nbytes(p)].view(p.dtype.numpy()).reshape(p.type.sizes())
                     for _, p, _ in self.packs]
            sources = [np.ascontiguousarray(v.data) for v, _, _ in self.packs]
            d = Descriptor("pack", _specs([v for v, _, _ in self.packs]), _specs([p for _, p, _ in self.packs]))
            host = get_target()
            places = tuple([(kind, k) for kind in ("in", "out") for k in range(len(self.packs))])
            main = compile_object(emit(_entry_module(self._program(), "tw_pack", places, host), host), host)
            with jit.load([*objects, main], native.symbol_addresses()) as library:
                pack = Executable(d, library.address("tw_pack"))
                pack.run(sources, views)
                pack.close()
        return blob


def _start(b: Buffer) -> Address:
    return Address(b, (const(0),) * b.rank)


def _nbytes(v: Value) -> int:
    n = v.dtype.nbytes
    for d in v.type.sizes():
        n *= d
    return n


def _entry_module(program: Program, entry: str, sources: Sequence[tuple[str | int, ...]], target: Target) -> Module:
    """A host program with its entry point; `sources`: for each parameter the place among inputs, outputs or shapes."""
    return lower(program.replace(attrs=(("entry", entry), ("args", tuple(sources)), ("noalias", False))), target)


def _specs(values: Sequence[Value], names: Sequence[str] | None = None,
           symbols: Sequence[Var] = ()) -> tuple[TensorSpec, ...]:
    """`symbols`: those whose numbers are noted."""
    out = []
    for name, v in zip(names or [v.name for v in values], values, strict=True):
        sizes = [as_int(d) for d in v.shape]
        numbers = tuple([symbols.index(d) if isinstance(d, Var) else -1 for d in v.shape]) if symbols else ()
        out.append(TensorSpec(name, v.dtype, tuple([-1 if n is None else n for n in sizes]),
                              numbers if max(numbers, default=-1) >= 0 else ()))
    return tuple(out)


def _symbol(v: Var) -> SymbolSpec:
    span = v.span or Span()
    return SymbolSpec(v.name, span.least, span.most, span.multiple)


def _work(gp: GroupProgram) -> tuple[int, int, int]:
    """Floating-point operations of a group, the bytes that it touches, and those of them that are weights'."""
    usual = {s: const(estimate(s)) for s in gp.program.params if isinstance(s, Var)}
    work = work_of(substitute(gp.program, usual) if usual else gp.program)
    weights = sum(work.touched.get(name, 0) for name in gp.program.attr("weights", ()))
    return work.flops, sum(work.touched.values()), weights


@functools.cache
def compiler_version() -> str:
    """A digest of the compiler's own sources and of LLVM's version: part of every cache key."""
    import llvmlite
    h = hashlib.sha256(llvmlite.__version__.encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        h.update(path.read_bytes())
    return h.hexdigest()[:16]


def load(path: str | Path, *, threads: int | None = None) -> Model:
    """Load a saved library. Raises UserError: no Tilewright library, another version, a CPU feature that is missing."""
    executable = artifact.load(path, threads=threads)
    return Model(executable.descriptor, executable)
