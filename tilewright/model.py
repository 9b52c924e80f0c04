"""A compiled model as its user sees it: call it, measure it, save it.

In: an executable and the record of its compilation. Out: numbers. A loaded library (`tilewright.load`) has the same face
without the compilation's record.
"""
from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from tilewright.broadcasts import Broadcasts
from tilewright.core import strings
from tilewright.core.errors import UserError
from tilewright.core.signature import Signature
from tilewright.graph.interpret import run as interpret
from tilewright.graph.ir import Graph
from tilewright.graph.passes.fuse import Group
from tilewright.graph.symbols import numbers_of, sizes_sources, symbols_of
from tilewright.hosting import HostNode
from tilewright.loop.externs import ExternFunction
from tilewright.loop.ir import Var
from tilewright.runtime import artifact, drivers, native
from tilewright.runtime.descriptor import Descriptor, TensorSpec, missing_features
from tilewright.runtime.memory import Array
from tilewright.runtime.module import Executable
from tilewright.target.host import is_kind_of_host
from tilewright.target.target import Target

VERIFY_TOLERANCE = 1e-4
"""Largest error, relative to the largest value of an output, that `verify` accepts for floating-point outputs."""


@dataclass(frozen=True)
class KernelUse:
    """One launch of a kernel: its name and record (program, trace, lowered program), the group it computes, its
    floating-point operations, the bytes of its operands that it touches, and those of them that are weights'."""
    kernel: str
    record: Mapping[str, str]
    group: Group
    flops: int
    nbytes: int
    weight_bytes: int = 0

    @property
    def label(self) -> str:
        """The user's name of the heaviest operation, and the operations fused with it."""
        ops = "+".join(op.op for op in self.group.operations)
        return f"{self.group.anchor.loc or self.group.anchor.output.name} ({ops})"


class Timing(NamedTuple):
    """Latencies of `runs` calls in milliseconds."""
    median: float
    p90: float
    p99: float
    minimum: float
    runs: int


def timing_of(milliseconds: Sequence[float]) -> Timing:
    """Median, percentiles (nearest rank) and minimum of latencies; there must be one at least."""
    times = sorted(milliseconds)
    p90, p99 = (times[min(math.ceil(q * len(times)), len(times)) - 1] for q in (0.9, 0.99))
    return Timing(statistics.median(times), p90, p99, times[0], len(times))


class KernelProfile(NamedTuple):
    """Mean time of one launch in microseconds, its share of the run, and the rates it reached."""
    kernel: str
    label: str
    microseconds: float
    share: float
    gflops: float
    gbytes: float


class Memory(NamedTuple):
    """Bytes: planned temporaries of one run, weights as read, weights as the kernels stream them."""
    arena: int
    weights: int
    packed: int


class Model:
    """A callable model; a context manager that gives its memory back. Several threads may call it at once.

    A model for a target that this machine is not has no executable: it can be inspected and (unless the runtime has no such
    devices) saved, and whatever would run it raises UserError "target-not-here", or "device-missing" where only the device
    or its driver is."""

    def __init__(self, descriptor: Descriptor, executable: Executable | None, graph: Graph | None = None,
                 uses: Sequence[KernelUse] = (), *, objects: Sequence[bytes] = (), constants: Array | None = None,
                 weight_bytes: int = 0, packed_bytes: int = 0, arena_bytes: int = 0, stages: Any = None,
                 target: Target | None = None, hosts: Sequence[HostNode] = (),
                 externs: Sequence[ExternFunction] = ()) -> None:
        self.descriptor, self._executable = descriptor, executable
        self._objects, self._constants = list(objects), constants
        self.graph, self.kernels, self.stages, self.target = graph, list(uses), stages, target
        self.memory = Memory(arena_bytes, weight_bytes, packed_bytes)
        self.host_nodes = list(hosts)
        self.externs = list(externs)
        self.broadcasts: Broadcasts | None = None
        facts = descriptor.metadata.get("signature")
        self.signature = None if facts is None else Signature.of_facts(facts)
        self._names = [i.name for i in self.inputs] if self.signature is None else [n for n, _ in self.signature.inputs]

    def __repr__(self) -> str:
        threads = "not for this machine" if self._executable is None else \
            f"{self.threads} thread{'s' * (self.threads != 1)} (this process may use {native.default_threads()} CPUs)"
        return f"<Model {self.descriptor.name!r} for {self.descriptor.metadata.get('target', '?')}: {threads}, " \
               f"{len(self.descriptor.kernels)} launches>"

    # ---- calling -------------------------------------------------------------------------------------------------------
    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Names, dtypes and shapes of the inputs, in call order."""
        return self.descriptor.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.descriptor.outputs

    @property
    def runs_here(self) -> bool:
        """Whether this machine is the model's target."""
        return self._executable is not None

    @property
    def executable(self) -> Executable:
        """The runtime's side: raw calls, poison mode, taps, host calls. Raises UserError "target-not-here"."""
        if self._executable is None:
            assert self.target is not None
            raise not_here(self.target)
        return self._executable

    @property
    def threads(self) -> int:
        """Threads of a run; can be set."""
        return self.executable.threads

    @threads.setter
    def threads(self, threads: int) -> None:
        self.executable.threads = threads

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run: arrays by position or by input name. One output is returned as an array, several as a list. A sequence is a
        list, an empty optional value None, a tensor of strings an array of str."""
        results = self.run(args[0]) if len(args) == 1 and isinstance(args[0], Mapping) else self._execute(
            self._arguments(args, named))
        return results[0] if len(results) == 1 else results

    def run(self, feeds: Mapping[str, Any]) -> list[Array]:
        """Run with inputs by name (names need not be Python identifiers); all outputs as a list."""
        if not isinstance(feeds, Mapping):
            raise UserError("input-type", f"run takes the inputs by name, in a dictionary, not a {type(feeds).__name__}",
                            hint="inputs in order: model(x, y)")
        return self._execute(self._arguments((), feeds))

    def _execute(self, values: list[Any]) -> list[Any]:
        """The outputs for the inputs' values in order."""
        if self.signature is None:
            return self._run(values)
        with strings.scope():
            return self.signature.unflatten(self._run(self.signature.flatten(values)))

    def _run(self, values: Sequence[Any]) -> list[Any]:
        """A run; where a size is 1 that the code takes to be equal to another, by the model that was made for that."""
        try:
            return self.executable.run(values)
        except UserError as refused:
            if self.broadcasts is None or refused.code != "input-shape":
                raise
            special = self.broadcasts.model_for(values)
            if special is None:
                raise
            try:
                return list(special.executable.run(values))
            except UserError as e:
                if e.code == "input-shape":
                    raise refused from None
                raise

    def _arguments(self, args: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
        self.executable  # noqa: B018 - says that this machine is not the target before anything is asked of the inputs
        names = self._names
        if not args and len(named) == len(names):  # the common case
            try:
                return [named[n] for n in names]
            except KeyError:
                pass
        if len(args) == len(names) and not named:
            return list(args)
        if len(args) > len(names):
            raise UserError("input-count", f"the model has {len(names)} inputs ({', '.join(names)}), got {len(args)}")
        feeds = dict(zip(names, args, strict=False))
        for name, value in named.items():
            if name not in names:
                raise UserError("input-unknown", f"the model has no input {name!r}", hint="inputs: " + ", ".join(names))
            if name in feeds:
                raise UserError("input-twice", f"input {name!r} is given by position and by name")
            feeds[name] = value
        missing = [n for n in names if n not in feeds]
        if missing:
            raise UserError("input-missing", f"no value for input {', '.join(missing)}", hint="inputs: " + ", ".join(
                f"{i.name} {i}" for i in self.inputs))
        return [feeds[n] for n in names]

    def random_inputs(self, seed: int = 0) -> dict[str, Any]:
        """Inputs of the right shapes: normal floats, small non-negative integers, true booleans, short words. A
        symbolic size has the usual value that it was compiled for where one was given, else the least from 1 on."""
        rng, sizes = np.random.default_rng(seed), self._sizes()
        out: dict[str, Any] = {}
        for spec in self.inputs:
            kind = spec.dtype.numpy()
            numbers = spec.symbols or (-1,) * len(spec.shape)
            shape = tuple(sizes[s] if s >= 0 else 1 if d < 0 else d for d, s in zip(spec.shape, numbers, strict=True))
            if spec.dtype.is_float:
                out[spec.name] = rng.standard_normal(shape).astype(kind)
            elif spec.dtype.is_bool:
                out[spec.name] = np.ones(shape, kind)
            else:
                out[spec.name] = rng.integers(0, 2, shape).astype(kind)
        if self.signature is None:
            return out
        flat = list(out.values())
        for k in self.signature.string_inputs:
            flat[k] = np.array(["a", "bc"], object)[flat[k]]
        return self.signature.named_inputs(flat)

    def _sizes(self) -> list[int]:
        """A size for each symbol."""
        usual = {s.name: s.span.usual for s in symbols_of(d for v in self.graph.inputs for d in v.shape)
                 if s.span is not None and s.span.hint is not None} if self.graph is not None else {}
        return [usual.get(s.name, -(-max(s.least, 1) // s.multiple) * s.multiple) for s in self.descriptor.symbols]

    # ---- measuring -----------------------------------------------------------------------------------------------------
    def benchmark(self, inputs: Mapping[str, Any] | None = None, *, warmup: int = 5, runs: int = 50,
                  seconds: float = 5.0) -> Timing:
        """Latency over at most `runs` calls or `seconds`, after `warmup` calls."""
        feeds = self._arguments((), inputs or self.random_inputs())
        for _ in range(warmup):
            self._execute(feeds)
        times: list[float] = []
        stop = time.perf_counter() + seconds
        while len(times) < runs and (not times or time.perf_counter() < stop):
            start = time.perf_counter()
            self._execute(feeds)
            times.append((time.perf_counter() - start) * 1e3)
        return timing_of(times)

    def profile(self, inputs: Mapping[str, Any] | None = None, *, runs: int = 20) -> list[KernelProfile]:
        """Time per launch over `runs` runs, in order of execution, with the rates reached; of launches that happened."""
        feeds = self._arguments((), inputs or self.random_inputs())
        for _ in range(3):
            self._execute(feeds)
        self.executable.set_profiling(True)
        self.executable.profile(reset=True)
        for _ in range(runs):
            self._execute(feeds)
        measured = self.executable.profile(reset=True)
        self.executable.set_profiling(False)
        total = sum(t.seconds for t in measured) or 1.0
        out = []
        for i, t in enumerate(measured):
            if t.calls == 0:  # of a version for other sizes, or in a branch not taken
                continue
            use = self.kernels[i] if i < len(self.kernels) else None
            each = t.seconds / t.calls
            out.append(KernelProfile(t.name, use.label if use else t.name, each * 1e6, t.seconds / total,
                                     use.flops / each / 1e9 if use and each else 0.0,
                                     use.nbytes / each / 1e9 if use and each else 0.0))
        return out

    def intermediates(self, inputs: Mapping[str, Any] | None = None) -> dict[str, Array]:
        """One run's stored values by name, in order of execution: what kernels pass to each other, in their own layouts.
        Of a value in a loop, the last turn's; a value whose sizes do not follow from those of the inputs and from what
        comes before it is a vector. Raises UserError "model-loaded" for a loaded library."""
        plan = getattr(self.stages, "plan", None)
        if plan is None:
            raise UserError("model-loaded", "a loaded library does not know its intermediate values",
                            hint="compile the model to look inside")
        feeds = self._arguments((), inputs or self.random_inputs())
        with strings.scope():
            flat = feeds if self.signature is None else self.signature.flatten(feeds)
        graph = self.stages.optimized
        known = {d: n for v, a in zip(graph.inputs, flat, strict=True) for d, n in zip(v.shape, np.shape(a), strict=True)
                 if isinstance(d, Var)}
        sources = sizes_sources(graph)
        for v, a in zip(graph.inputs, flat, strict=True):
            if v in sources:
                known.update(zip(sources[v], np.ravel(a).tolist(), strict=True))
        out: dict[str, Array] = {}

        def keep(number: int, data: Array) -> None:
            v = plan.taps[number]
            values = data.view(v.dtype.numpy())
            known.update(zip(sources.get(v, ()), values.tolist(), strict=False))
            shape = numbers_of(v.shape, known, values.size)
            out[v.name] = values if shape is None else values.reshape(shape)

        self.executable.set_tap(keep)
        try:
            self._execute(feeds)
        finally:
            self.executable.set_tap(None)
        return out

    def verify(self, inputs: Mapping[str, Any] | None = None) -> float:
        """Compare one run with the graph interpreter; the largest relative error. Raises UserError "verify-failed"."""
        if self.graph is None:
            raise UserError("verify-no-graph", "a loaded library has no graph to compare with")
        feeds = dict(inputs or self.random_inputs())
        with strings.scope():
            flat = self._arguments((), feeds) if self.signature is None else self.signature.flatten(
                self._arguments((), feeds))
            got, want = self.executable.run(flat), interpret(self.graph, flat)
        worst = 0.0
        for spec, a, b in zip(self.outputs, got, want, strict=True):
            e = relative_error(a, b)
            worst = max(worst, e)
            if not e <= (VERIFY_TOLERANCE if spec.dtype.is_float else 0.0):
                raise UserError("verify-failed", f"output {spec.name} differs from the reference by {e:.3g} of its "
                                "largest value", where=spec.name, hint="`tilewright compare` shows where it begins")
        return worst

    # ---- keeping -------------------------------------------------------------------------------------------------------
    def save(self, path: str | Path) -> Path:
        """Write one shared library with code and weights, and a C header beside it; its inputs and outputs are the tensors
        that sequences are made of. Raises UserError "save-failed", and "save-host-call" for what needs this process: calls
        back into Python, and strings; "save-extern" for external functions of no known library; "save-device" for a device
        that the runtime cannot open anywhere."""
        if not self._objects:
            raise UserError("save-loaded", "this model was loaded from a library", hint="copy that file")
        if self.signature is not None and (self.signature.string_inputs or self.signature.string_outputs):
            raise UserError("save-host-call", f"{self.descriptor.name} has inputs or outputs of strings: such a model runs "
                            "only in the process that compiled it", where=self.descriptor.name,
                            hint="turn them into numbers before and after the model")
        if self.target is not None and self.target.is_gpu and self.target.device_name not in native.DEVICES:
            raise UserError("save-device", f"the runtime opens no {self.target.device_name} devices: a library of "
                            f"{self.descriptor.name} would run nowhere", where=self.descriptor.name,
                            hint="the source of its kernels is descriptor.image")
        homeless = [f.symbol for f in self.externs if not f.library]
        if homeless:
            raise UserError("save-extern", f"{self.descriptor.name} calls {', '.join(homeless)} of this process, which a "
                            "library cannot find again", where=self.descriptor.name,
                            hint="name the shared object that has it: extern_function(symbol, \"path/of/lib.so\")")
        return artifact.save(path, self._objects, self.descriptor, self._constants,
                             triple=self.target.triple if self.target else None,
                             libraries=[f.library for f in self.externs])

    def close(self) -> None:
        """Give the memory back; later calls raise UserError "model-closed"."""
        if self._executable is not None:
            self._executable.close()
        self._constants = None
        if self.broadcasts is not None:
            self.broadcasts.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def why_not_here(target: Target) -> str:
    """What keeps this machine from running a target's code; "" if nothing does."""
    if target.is_gpu and target.device_name not in native.DEVICES:
        return f"this runtime opens no {target.device_name} devices"
    if not is_kind_of_host(target):
        return f"its code is for {target.arch}"
    missing = missing_features(target.features)
    if missing:
        return f"this CPU has no {', '.join(missing)}"
    return drivers.problem(target.device_name) if target.is_gpu else ""


def not_here(target: Target) -> UserError:
    """The refusal to run what was compiled for another machine, or for a device that is not there."""
    why = f"a model for {target.name} cannot run on this machine: {why_not_here(target)}"
    if target.is_gpu and target.device_name not in native.DEVICES:
        return UserError("target-not-here", why, hint="the source of its kernels is descriptor.image")
    if target.is_gpu and is_kind_of_host(target) and not missing_features(target.features):
        return UserError("device-missing", why, hint=drivers.HINTS[target.device_name])
    return UserError("target-not-here", why, hint="save it and load the library there, or compile it for \"native\"")


def relative_error(got: Array, want: Array) -> float:
    """Largest |got - want| over the largest |want|; inf where shapes or non-finite places differ."""
    if got.shape != want.shape:
        return float("inf")
    if not got.size:
        return 0.0
    a, b = np.asarray(got, np.float64), np.asarray(want, np.float64)
    bad = ~np.isfinite(b)
    if not np.array_equal(a[bad], b[bad], equal_nan=True) or not np.isfinite(a[~bad]).all():
        return float("inf")
    if bad.all():
        return 0.0
    return float(np.abs(a[~bad] - b[~bad]).max() / max(np.abs(b[~bad]).max(), 1e-30))
