"""What this machine reaches at best: multiply-adds, reading and copying per level of memory, measured now.

In: a target and a number of threads. Out: `Peaks`. The probes are kernels like any other, a compute and a schedule compiled
by the ordinary path, so that nothing but this package is needed and a roof is one that its own code can reach. Each runs
long enough for its launch not to count, several times; the fastest is the peak.
"""
from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.codegen.llvm import jit
from tilewright.codegen.llvm.compile import compile_object
from tilewright.codegen.llvm.emit import emit
from tilewright.core.dtype import i64
from tilewright.core.errors import InternalError
from tilewright.loop.ir import Address, Buffer, For, Launch, Module, Program, Var, as_int, const
from tilewright.loop.lower.pipeline import lower
from tilewright.runtime import native
from tilewright.runtime.descriptor import Descriptor, TensorSpec
from tilewright.runtime.memory import Array, aligned
from tilewright.runtime.module import Executable
from tilewright.target.presets import get_target
from tilewright.target.target import Target
from tilewright.tensor import compute as tc
from tilewright.tensor.compute import Tensor, compute, create_program, placeholder, reduce_axis
from tilewright.tensor.rules.dispatch import schedule_program
from tilewright.tensor.rules.tiles import choose_tile
from tilewright.tensor.schedule.schedule import Schedule

LEVELS = ("L1", "L2", "L3", "DRAM")
STREAMS = 8
"""Vectors that a reading probe adds up in turn: hides the latency of an addition."""
FMA_SECONDS, READ_BYTES, COPY_BYTES = 4e-3, 96 << 20, 48 << 20
"""Work of one run of a probe per thread: of the products about this time, of the others this much at least."""
LEAST_DRAM, MOST_DRAM = 192 << 20, 2 << 30
"""Bytes of all threads' arrays that are certainly read from memory: twice the third-level cache within these bounds."""


@dataclass(frozen=True)
class Peaks:
    """Rates of `threads` threads together: GFLOP/s of f32 multiply-adds (two each), GB/s (1e9) of reading and of copying
    (bytes read + bytes written) by level; a level that the machine does not name is missing. `sizes`: what a level holds,
    in bytes, for all threads."""
    threads: int
    gflops: float
    read: dict[str, float]
    copy: dict[str, float]
    sizes: dict[str, int]

    def level_of(self, nbytes: float) -> str:
        """The nearest level that holds so many bytes."""
        return next((level for level in LEVELS if level in self.read and nbytes <= self.sizes[level]), "DRAM")

    def or_better(self, other: Peaks) -> Peaks:
        """The higher of two measurements, rate by rate."""
        read, copy = ({level: max(rate, b[level]) for level, rate in a.items()}
                      for a, b in ((self.read, other.read), (self.copy, other.copy)))
        return dataclasses.replace(self, gflops=max(self.gflops, other.gflops), read=read, copy=copy)


class Probe:
    """A scheduled kernel launched `launches` times per call, on zeroed arrays or those given by parameter."""

    def __init__(self, sch: Schedule, target: Target, threads: int, launches: int = 1, fill: float = 0.0) -> None:
        module = Module(tuple(lower(sch.program.replace(name="probe"), target).programs))
        if sch.prepacks or any(p.attr("workspaces", 0) for p in module.programs):
            raise InternalError("a probe takes its operands as they are and needs no workspace")
        params = [p for p in sch.program.params if isinstance(p, Buffer)]
        call = Launch("probe", tuple([Address(b, (const(0),) * b.rank) for b in params]))
        host = Program("main", tuple(params), For(Var("turn", i64), const(0), const(launches), call), (
            ("entry", "tw_main"), ("args", tuple([("out", k) for k in range(len(params))])), ("noalias", False)))
        code = [compile_object(emit(m, target), target) for m in (module, Module(tuple(lower(host, target).programs)))]
        self._library = jit.load(code, native.symbol_addresses())
        specs = tuple([TensorSpec(b.name, b.dtype, _sizes(b)) for b in params])
        descriptor = Descriptor("probe", (), specs, cpu_features=target.features)
        self._run = Executable(descriptor, self._library.address("tw_main"), threads=threads)
        self.arrays: list[Array] = [aligned(int(np.prod(_sizes(b))) * b.dtype.nbytes).view(b.dtype.numpy()).reshape(
            _sizes(b)) for b in params]
        for a in self.arrays:
            a.fill(fill)  # touches every page, too: pages nobody wrote to are all one and the same

    def best(self, rounds: int) -> float:
        """Seconds of the fastest of several runs."""
        times = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            self._run.run([], self.arrays)
            times.append(time.perf_counter() - start)
        return min(times[1:])

    def close(self) -> None:
        self._run.close()
        self._library.close()
        self.arrays = []


def _sizes(b: Buffer) -> tuple[int, ...]:
    return tuple([as_int(d) or 0 for d in b.shape])


def measure(target: Target, threads: int, *, told: Callable[[str], None] = lambda what: None) -> Peaks:
    """Every peak of a number of threads, by code for `target` on this machine's caches. `told` hears what is measured
    next."""
    here = get_target()
    target = dataclasses.replace(target, cores=here.cores, l1d=here.l1d, l2=here.l2, l3=here.l3)
    sizes = level_sizes(target, threads)
    told("multiply-adds")
    gflops = fma_peak(target, threads)
    read, copy = {}, {}
    for level in LEVELS:
        if level not in sizes:
            continue
        told(level)
        each = footprint(target, level, threads)
        read[level] = read_peak(target, threads, each, far=level in ("L3", "DRAM"))
        if level != "L1":  # a launch takes longer than copying so little
            copy[level] = copy_peak(target, threads, each)
    return Peaks(threads, gflops, read, copy, sizes)


def level_sizes(target: Target, threads: int) -> dict[str, int]:
    """Bytes that each level holds for so many threads, as far as the target knows its caches."""
    cores = min(threads, target.cores)
    out = {"L1": target.l1d * cores, "L2": target.l2 * cores}
    if target.l3 > target.l2:
        out["L3"] = max(target.l3, out["L2"])
    return {**out, "DRAM": 1 << 62}


def footprint(target: Target, level: str, threads: int) -> int:
    """Bytes per thread that are read from a level: most of it, and far more than the level before holds."""
    match level:
        case "L1":
            return target.l1d // 2
        case "L2":
            return target.l2 // 2
        case "L3":
            return max(target.l3 // 2 // threads, 2 * target.l2)
    return min(max(2 * target.l3, LEAST_DRAM), MOST_DRAM, _memory() // 8) // threads


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# ---- multiply-adds ---------------------------------------------------------------------------------------------------
def fma_peak(target: Target, threads: int) -> float:
    """GFLOP/s of a register tile whose operands stay in the first-level cache, summed over and over without a store."""
    turns = 64
    while True:
        program, flops = product_program(target, threads, turns)
        probe = Probe(schedule_program(program, target), target, threads, fill=0.5)
        seconds = probe.best(rounds=20)
        probe.close()
        if seconds >= FMA_SECONDS / 2:
            return flops / seconds / 1e9
        turns = max(2 * turns, int(turns * FMA_SECONDS / max(seconds, 1e-6)))


def product_program(target: Target, threads: int, turns: int) -> tuple[Program, float]:
    """One product per thread, of the size of a register tile, whose sum goes through its operands `turns` times; and its
    floating-point operations."""
    lanes = target.lanes(32)
    tile = choose_tile(1, 64, 8, target)
    rows, columns = tile.columns, tile.vectors * lanes
    depth = max(16, target.l1d // 2 // (4 * (rows + columns)) // 16 * 16)
    a, b = placeholder((threads, rows, depth), name="a"), placeholder((threads, depth, columns), name="b")
    q, k = reduce_axis(turns, "q"), reduce_axis(depth, "k")
    out = compute((threads, rows, columns), lambda t, m, n: tc.sum(a[t, m, k] * b[t, k, n], axis=[q, k]), name="product")
    return create_program("product", [a, b], [out]), 2.0 * threads * rows * columns * depth * turns


# ---- bytes -----------------------------------------------------------------------------------------------------------
def read_peak(target: Target, threads: int, nbytes: int, far: bool) -> float:
    """GB/s of threads that each read an array of so many bytes, again and again: from one place after another, or, from
    levels that are far away, from several places at once, whichever is faster."""
    return max(stream_rate(target, threads, nbytes, apart) for apart in ((False, True) if far else (False,)))


def stream_rate(target: Target, threads: int, nbytes: int, apart: bool) -> float:
    """GB/s of reading as `STREAMS` streams that lie beside each other, or far apart."""
    lanes = target.lanes(32)
    steps = max(1, nbytes // (4 * lanes * STREAMS))
    turns = max(1, READ_BYTES // nbytes)
    x = placeholder((threads, STREAMS, steps, lanes) if apart else (threads, steps, STREAMS, lanes), name="x")
    q, s = reduce_axis(turns, "q"), reduce_axis(steps, "s")
    total = compute((threads, STREAMS, lanes), lambda t, u, v: tc.sum(
        x[(t, u, s, v) if apart else (t, s, u, v)], axis=[q, s]), name="total")
    sch = Schedule(create_program("read", [x], [total]))
    ref = sch.block("total")
    task, stream, lane, turn, step = sch.loops(ref)
    copy = sch.cache_write(ref, 0, "local")
    sch.reorder(task, turn, step, stream, lane)
    sch.reverse_compute_at(copy, task)
    init = sch.decompose_reduction(ref, turn)
    for block in (ref, init, copy):
        *_, outer, inner = sch.loops(block)
        sch.unroll(outer)
        sch.vectorize(inner)
    sch.parallel(task)
    return _rate(sch, target, threads, 1, 4.0 * lanes * STREAMS * steps * turns * threads)


def copy_peak(target: Target, threads: int, nbytes: int) -> float:
    """GB/s, read and written, of threads that each copy between two arrays of so many bytes together, again and again."""
    lanes = target.lanes(32)
    steps = max(1, nbytes // 2 // (4 * lanes * 4))
    x = placeholder((threads, steps, 4, lanes), name="x")
    y: Tensor = compute((threads, steps, 4, lanes), lambda t, s, u, v: x[t, s, u, v], name="y")
    sch = Schedule(create_program("copy", [x], [y]))
    task, _, stream, lane = sch.loops(sch.block("y"))
    sch.unroll(stream)
    sch.vectorize(lane)
    sch.parallel(task)
    moved = 2 * 4.0 * lanes * 4 * steps
    return _rate(sch, target, threads, max(1, int(COPY_BYTES / moved)), moved * threads)


def _rate(sch: Schedule, target: Target, threads: int, launches: int, nbytes: float) -> float:
    """GB/s of a kernel that moves so many bytes per launch."""
    probe = Probe(sch, target, threads, launches)
    seconds = probe.best(rounds=8)
    probe.close()
    return nbytes * launches / seconds / 1e9


def as_rows(found: Sequence[Peaks]) -> list[list[Any]]:
    """Peaks as a table's rows: threads, multiply-adds, then reading and copying by level."""
    return [[p.threads, p.gflops, *[d.get(level, "–") for d in (p.read, p.copy) for level in LEVELS]] for p in found]
