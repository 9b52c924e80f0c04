"""What the tutorials share: one step of a walk-through is shown, checked and timed on every device that is there.

A step is a function that makes a schedule; its docstring is what the reader is told. `Walk.step` prints that text, the loop
program, the kernels' source in each language, what the kernels do (blocks, threads, shared memory, and how often they touch
memory, counted in the lowered program), and then, for each device, whether the result is right and how long it took.
"""
from __future__ import annotations

import argparse
import inspect
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

import tilewright
from tilewright import te
from tilewright.codegen.clike import nvrtc
from tilewright.codegen.clike.cubin import resource_usage
from tilewright.core.node import Node
from tilewright.loop.ir import (
    Add,
    Allocate,
    And,
    Binary,
    Buffer,
    Call,
    Const,
    Eq,
    Evaluate,
    Expr,
    FloorDiv,
    FloorMod,
    For,
    Guard,
    If,
    Launch,
    Le,
    Load,
    Lt,
    Max,
    Min,
    Mul,
    Ne,
    Not,
    Or,
    Store,
    Sub,
    TensorCall,
    Var,
    as_int,
)
from tilewright.loop.lower.device_pipeline import device_kernels
from tilewright.target.presets import get_target
from tilewright.target.target import Target

os.environ.setdefault("TILEWRIGHT_OPENCL_OPTIONS", "")  # PoCL optimizes kernels: slower to compile, faster to run

SHOWN = ("sm_80", "opencl", "webgpu")
"""The targets whose source is shown, whether there is such a device or not."""
RUN = ("cuda", "opencl", "webgpu")
"""The targets that are run where they are."""


def devices() -> list[Target]:
    """The devices that run kernels here: those that compute a first result."""
    a = te.placeholder((4,), name="a")
    found = []
    for name in RUN:
        b = te.compute((4,), lambda i: a[i] + 1.0, name="b")
        s = te.create_schedule(b)
        s[b].bind(b.op.axis[0], "threadIdx.x")
        try:
            target = get_target(name)
            with_one = te.build(s, target, args=[a, b])(np.zeros(4, np.float32))
        except tilewright.UserError:
            continue  # no driver, or no device
        if (with_one == 1).all():
            found.append(target)
    return found


@dataclass
class Work:
    """What the kernels of a function do. `touched`: how often they read ("load") or write ("store") an element in global or
    shared memory, as the program says it: a compiler may keep a value that is read again in a register."""
    grids: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Blocks, and threads of a block, by kernel."""
    shared: int = 0
    barriers: int = 0
    touched: Counter[str] = field(default_factory=Counter)
    lanes: set[Var] = field(default_factory=set)
    """The variables of loops over threads along x."""

    def __str__(self) -> str:
        grids = ", then ".join([f"{blocks} block{'s' * (blocks > 1)} of {threads} thread{'s' * (threads > 1)}"
                                for blocks, threads in self.grids.values()])
        parts = [grids, f"{self.shared / 1024:.1f} KiB of shared memory a block"] if self.shared else [grids]
        return "; ".join([*parts, f"{self.barriers} barrier{'s' * (self.barriers != 1)} in the text"])

    def per(self, outputs: int) -> str:
        """The touches per element of the result."""
        return ", ".join([f"{self.touched[kind] / outputs:.3g} {kind}s" for kind in (
            "global load", "global store", "shared load", "shared store") if self.touched[kind]])


def work_of(f: te.Function) -> Work:
    """Read off the lowered program."""
    work = Work()
    for n in _walk(f.lowered.programs[0].body):
        if isinstance(n, Launch) and n.grid:
            grid = [as_int(e) or 1 for e in n.grid]
            work.grids[n.callee] = grid[0] * grid[1] * grid[2], grid[3] * grid[4] * grid[5]
    for kernel in device_kernels(f.lowered):
        shared = [n.buffer for n in _walk(kernel.body) if isinstance(n, Allocate) and n.buffer.scope == "shared"]
        work.shared = max(work.shared, sum(_nbytes(b) for b in shared))
        _count(kernel.body, {}, (), work)
    return work


def _walk(n: Node) -> Iterator[Node]:
    yield n
    for child in n.children():
        yield from _walk(child)


def _nbytes(b: Buffer) -> int:
    n = b.dtype.nbytes
    for d in b.shape:
        n *= as_int(d) or 1
    return n


def _count(n: Node, loops: dict[Var, int], conditions: tuple[Expr, ...], work: Work) -> None:
    """Add what a statement or an expression does in all turns of the loops around it in which the conditions hold."""
    if isinstance(n, TensorCall):  # what the threads along x do together
        return _count(n.body, {v: extent for v, extent in loops.items() if v not in work.lanes}, conditions, work)
    if isinstance(n, For):
        loops = {**loops, n.var: as_int(n.extent) or 1}
        work.lanes |= {n.var} if n.kind == "threadIdx.x" else set()
    if isinstance(n, Evaluate) and isinstance(n.value, Call) and n.value.name == "barrier":
        work.barriers += 1
    if isinstance(n, Load | Store) and n.buffer.scope in ("global", "shared"):
        work.touched[f"{n.buffer.scope} {'store' if isinstance(n, Store) else 'load'}"] += turns(loops, conditions)
    inside = conditions
    if isinstance(n, If | Guard):
        inside = (*conditions, n.cond)
    for child in n.children():
        _count(child, loops, inside if isinstance(n, If | Guard) and child is not n.cond else conditions, work)


def turns(loops: dict[Var, int], conditions: Sequence[Expr]) -> int:
    """In how many turns of a nest all of the conditions hold; those that depend on data are taken to hold."""
    known = [c for c in conditions if {n for n in _walk(c) if isinstance(n, Var)} <= set(loops)
             and not any(isinstance(n, Load) for n in _walk(c))]
    used = list(dict.fromkeys([n for c in known for n in _walk(c) if isinstance(n, Var)]))
    total = math.prod(loops.values())
    if not used:
        return total
    values = dict(zip(used, np.meshgrid(*[np.arange(loops[v]) for v in used], indexing="ij", sparse=True), strict=True))
    held = np.logical_and.reduce([np.broadcast_to(_value(c, values), [loops[v] for v in used]) for c in known])
    return total // held.size * int(held.sum())


def _value(e: Expr, values: dict[Var, Any]) -> Any:
    """A condition or an index for all values of its variables at once."""
    match e:
        case Var():
            return values[e]
        case Const(value):
            return value
        case Not(a):
            return np.logical_not(_value(a, values))
        case Binary(a, b):
            return _OPERATIONS[type(e)](_value(a, values), _value(b, values))
    raise NotImplementedError(f"{type(e).__name__} in a condition")


_OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    Add: np.add, Sub: np.subtract, Mul: np.multiply, FloorDiv: np.floor_divide, FloorMod: np.mod, Min: np.minimum,
    Max: np.maximum, Lt: np.less, Le: np.less_equal, Eq: np.equal, Ne: np.not_equal, And: np.logical_and, Or: np.logical_or}


class Multiprocessor(NamedTuple):
    """What the blocks that run at once share: registers, threads, blocks, bytes of shared memory (the last of which is less
    by 1 KiB for each block); registers are handed out to warps in `unit`s."""
    registers: int = 65536
    threads: int = 2048
    blocks: int = 32
    shared: int = 164 << 10
    unit: int = 256


SM_80 = Multiprocessor()
"""CUDA C++ programming guide, "Technical specifications per compute capability", column 8.0."""


def occupancy(f: te.Function, work: Work) -> str:
    """What the kernels take of a multiprocessor of compute capability 8.0, read from the cubin; "" without NVRTC."""
    if f.target.arch_name != "sm_80" or not nvrtc.is_there():
        return ""
    found = []
    taken = resource_usage(nvrtc.compile_cubin(f.source, "sm_80"))
    for name, (_, threads) in work.grids.items():
        usage, warps = taken[name], -(-threads // 32)
        registers = warps * -(-usage.registers * 32 // SM_80.unit) * SM_80.unit
        fit = min(SM_80.blocks, SM_80.threads // (32 * warps), SM_80.registers // registers,
                  SM_80.shared // (usage.shared + 1024))
        found.append(f"{usage.registers} registers a thread, {usage.stack} bytes spilled; {fit} blocks at once on a "
                     f"multiprocessor, {100 * fit * 32 * warps // SM_80.threads} % of its threads")
    return "\n".join(found)


@dataclass
class Walk:
    """A walk-through: its devices, its inputs, and the result that every step must give."""
    inputs: Sequence[Any]
    devices: Sequence[Target]
    show: bool = True
    tolerance: float = 1e-4
    times: dict[str, dict[str, float]] = field(default_factory=dict)
    """Milliseconds by step and device."""
    number: int = 0

    def step(self, told: Callable[..., Any], make: Callable[[Target], te.StageSchedule | te.Schedule | None],
             args: Sequence[te.Tensor], want: Any) -> None:
        """Show, check and time one step: `told` has the text, `make(target)` gives the schedule for a target (None: it has
        no such thing), `args` are the function's arguments, `want` is its result."""
        title, _, text = (inspect.getdoc(told) or told.__name__).partition("\n")
        self.number += 1
        print(f"\n{'=' * 100}\n{self.number}. {title.rstrip('.')}\n{'=' * 100}")
        if self.show:
            print(text.strip("\n"))
        built: dict[str, te.Function] = {}
        shown = [get_target(n) for n in SHOWN] if self.show else []
        for target in {t.name: t for t in [*shown, *self.devices]}.values():
            try:
                made = make(target)
                if made is None:
                    print(f"\n{target.name}: no such instructions")
                    continue
                built[target.name] = te.build(made, target, args=args if isinstance(made, te.StageSchedule) else None)
            except tilewright.UserError as error:
                if error.code != "kernel-limit":
                    raise
                print(f"\n{target.name}: does not fit\n{error}")
        for k, (name, f) in enumerate(built.items()):
            if self.show and k == 0:
                print(f"\n---- the loop program (for {name})\n{f.program}")
            if self.show:
                print(f"\n---- {f.target.language} source (for {name})\n{f.source}")
            if k == 0 or self.show:
                work, outputs = work_of(f), np.size(want)
                print("\n".join(filter(None, [f"\n{name}: {work}", occupancy(f, work), f"per result: {work.per(outputs)}"])))
        for target in self.devices:
            if target.name in built:
                self.run(title.rstrip("."), built[target.name], want)
        sys.stdout.flush()

    def run(self, title: str, f: te.Function, want: Any) -> float:
        """Check a function's result and time it: milliseconds of the fastest run."""
        got = f(*self.inputs)
        error = float(np.abs(got - want).max() / np.abs(want).max())
        if not error <= self.tolerance:
            raise SystemExit(f"{title} on {f.target.name}: wrong by {error:.3g} of the largest value")
        milliseconds = f.benchmark(*self.inputs, runs=20, seconds=0.5).minimum
        print(f"{f.target.name}: right to {error:.1e} of the largest value; {milliseconds * 1e3:.1f} µs (fastest of 20)")
        self.times.setdefault(title, {})[f.target.name] = milliseconds
        f.close()
        return milliseconds

    def summary(self, flops: float, nbytes: float) -> None:
        """A table of all steps: times, and how far they are from a device's own limits if those are known."""
        if not self.devices:
            print("\nNo device runs kernels here: programs and sources were shown, nothing was run.\n"
                  "OpenCL on a CPU: Debian's pocl-opencl-icd and ocl-icd-libopencl1.")
            return
        print(f"\n{'=' * 100}\nThe result takes {flops / 1e6:.1f} MFLOP; it and its operands are {nbytes / 1e6:.2f} MB.\n")
        names = [t.name for t in self.devices]
        print("".join([f"{'':52}", *[f"{n + ', µs':>14}{'GFLOP/s':>10}{'GB/s':>8}" for n in names]]))
        for title, found in self.times.items():
            cells = [f"{found[n] * 1e3:14.1f}{flops / found[n] / 1e6:10.1f}{nbytes / found[n] / 1e6:8.1f}" if n in found
                     else f"{'–':>14}{'–':>10}{'–':>8}" for n in names]
            print("".join([f"{title:52}", *cells]))


def options(description: str, **sizes: int) -> argparse.Namespace:
    """The command line of a tutorial: its sizes, and what to run and print."""
    parser = argparse.ArgumentParser(description=description)
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--devices", nargs="*", help="targets to run on (all that are here)")
    parser.add_argument("--quiet", action="store_true", help="no programs and sources, only what was found")
    parser.add_argument("--html", metavar="FILE", help="also write a page of the last schedule, step by step")
    return parser.parse_args()


def chosen(names: Sequence[str] | None) -> list[Target]:
    """The devices of `--devices`, or all that are here."""
    return devices() if names is None else [get_target(n) for n in names]


__all__ = ["Walk", "chosen", "devices", "options", "work_of"]
