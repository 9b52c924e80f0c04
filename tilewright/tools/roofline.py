"""How near each kernel of a model is to what this machine can do.

In: a compiled model and the peaks measured in the same process (`tools/peaks.py`). Out: per launch of a kernel its time, its
rates, and its roof (Williams, Waterman and Patterson, Roofline, 2009): the least time that its arithmetic at the peak of
multiply-adds, its weights at the reading rate, or its activations at the copying rate would take, whichever is longest.

Weights are taken to come from the level of memory that holds all that a run touches (they are read once per run), and
activations from the level that holds this kernel's own, the second at best: what one kernel writes, the next one reads.
Kernels with fewer levels' worth of traffic than this may do better than their roof; none can beat the one of arithmetic.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tilewright.core.errors import UserError
from tilewright.graph.ir import Operation
from tilewright.graph.ops.winograd import KERNEL
from tilewright.loop.ir import as_int
from tilewright.model import KernelUse, Model
from tilewright.tools.peaks import Peaks

WORST = 10
"""How many kernels `profile` names."""


@dataclass(frozen=True)
class Row:
    """One kernel's launches of a run. Times in microseconds per run; `flops` are those executed, `direct_flops` those of
    the direct form of a convolution that Winograd replaced (else the same); `limit` names the roof that binds: "compute"
    or a level of memory; `share` is the roof's time over the measured one; `above` the difference."""
    number: int
    kernel: str
    label: str
    launches: float
    microseconds: float
    flops: float
    direct_flops: float
    nbytes: float
    gflops: float
    gbytes: float
    limit: str
    roof: float

    @property
    def share(self) -> float:
        return self.roof / self.microseconds if self.microseconds else 0.0

    @property
    def above(self) -> float:
        return self.microseconds - self.roof

    def facts(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {**asdict(self), "share": self.share, "above": self.above}


@dataclass(frozen=True)
class Roofline:
    """A model's rows in order of execution, the latency of a run without profiling (fastest, microseconds), the peaks;
    what was measured: each kernel's use, seconds and launches per run, and the bytes that a run touches."""
    rows: list[Row]
    latency: float
    peaks: Peaks
    measured: tuple[tuple[KernelUse, float, float], ...]
    everything: int

    def against(self, peaks: Peaks) -> Roofline:
        """The same measurement beside other peaks."""
        return judged(self.measured, self.everything, self.latency, peaks)

    def by_time(self) -> list[Row]:
        return sorted(self.rows, key=lambda r: -r.microseconds)

    def worst(self, count: int = WORST) -> list[Row]:
        """The launches that lose most time against their roof."""
        return sorted(self.rows, key=lambda r: -r.above)[:count]

    def totals(self) -> dict[str, float]:
        """Sums over a run."""
        time, roof = (sum(getattr(r, k) for r in self.rows) for k in ("microseconds", "roof"))
        flops, direct, nbytes = (sum(getattr(r, k) for r in self.rows) for k in ("flops", "direct_flops", "nbytes"))
        seconds = max(time, 1e-9) * 1e-6
        return {"microseconds": time, "latency": self.latency, "roof": roof, "share": roof / max(time, 1e-9),
                "flops": flops, "direct_flops": direct, "nbytes": nbytes, "gflops": flops / seconds / 1e9,
                "direct_gflops": direct / seconds / 1e9, "gbytes": nbytes / seconds / 1e9}

    def facts(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {"peaks": asdict(self.peaks), "totals": self.totals(), "launches": [r.facts() for r in self.by_time()],
                "worst": [r.number for r in self.worst()]}


def roofline(model: Model, measure: Callable[[], Peaks], inputs: Mapping[str, Any] | None = None, *, runs: int = 10,
             rounds: int = 5) -> Roofline:
    """Profile a model against the peaks that `measure` finds for as many threads, before and after (the better of both: on
    a busy machine either may be low); of several rounds each kernel's fastest, as the peaks are the fastest of several.
    Raises UserError "no-stages" for a loaded library, whose kernels' work is not known."""
    if not model.kernels:
        raise UserError("no-stages", "a saved library does not know the work of its kernels", hint="give the ONNX file")
    feeds = dict(inputs or model.random_inputs())
    before = measure()
    latency = model.benchmark(feeds, runs=runs * rounds, seconds=2.0).minimum * 1e3
    times = _times(model, feeds, runs, rounds)
    peaks = before.or_better(measure())
    measured = tuple([(use, *t) for use, t in zip(model.kernels, times, strict=True)])
    return judged(measured, model.memory.packed + model.memory.arena, latency, peaks)


def judged(measured: tuple[tuple[KernelUse, float, float], ...], everything: int, latency: float,
           peaks: Peaks) -> Roofline:
    """Measured kernels beside peaks."""
    rows = []
    for number, (use, seconds, launches) in enumerate(measured):
        limit, roof = bound(use, peaks, everything)
        rows.append(_row(number, use, seconds, launches, limit, roof * launches))
    return Roofline(rows, latency, peaks, measured, everything)


def _times(model: Model, feeds: Mapping[str, Any], runs: int, rounds: int) -> list[tuple[float, float]]:
    """Per launch in the program: seconds and launches per run."""
    executable = model.executable
    given = [feeds[i.name] for i in model.inputs]
    best: list[tuple[float, float]] = []
    executable.set_profiling(True)
    try:
        outputs = executable.run(given)  # written to again and again: fresh pages would be counted as the kernels' time
        executable.profile(reset=True)
        for _ in range(rounds):
            for _ in range(runs):
                executable.run(given, outputs)
            found = [(t.seconds / runs, t.calls / runs) for t in executable.profile(reset=True)]
            best = [min(a, b) for a, b in zip(best, found, strict=True)] if best else found
    finally:
        executable.set_profiling(False)
    return best


def bound(use: KernelUse, peaks: Peaks, everything: int) -> tuple[str, float]:
    """What binds one launch, and the seconds that it takes at least; `everything`: bytes that a run of the model touches."""
    activations = use.nbytes - use.weight_bytes
    near, far = peaks.level_of(activations), peaks.level_of(everything)
    near, far = (("L2" if level == "L1" else level) for level in (near, far))
    return max([("compute", use.flops / peaks.gflops / 1e9), (far, use.weight_bytes / peaks.read[far] / 1e9),
                (near, activations / peaks.copy[near] / 1e9)], key=lambda pair: pair[1])


def _row(number: int, use: KernelUse, seconds: float, launches: float, limit: str, roof: float) -> Row:
    flops, nbytes = use.flops * launches, use.nbytes * launches
    rate = 1e-9 / seconds if seconds else 0.0
    return Row(number, use.kernel, use.label, launches, seconds * 1e6, flops, direct_flops(use) * launches, nbytes,
               flops * rate, nbytes * rate, limit, roof * 1e6)


def direct_flops(use: KernelUse) -> int:
    """The operations that a launch stands for: a Winograd convolution's are those of the direct form."""
    direct = sum(_direct(op) for op in use.group.operations if op.op == "winograd_conv")
    return direct or use.flops


def _direct(op: Operation) -> int:
    x, u = op.inputs[0], op.inputs[1]
    assert x is not None and u is not None
    _, *groups, c, o = u.type.sizes()
    pixels = math.prod(as_int(n) or 1 for n in (*op.output.shape[:1], *op.output.shape[2:-1]))
    return 2 * pixels * math.prod(groups) * c * o * KERNEL**2


def headings() -> Sequence[str]:
    return ["", "kernel", "layer", "µs", "GFLOP/s", "direct", "GB/s", "limit", "roof µs", "share"]


def cells(r: Row) -> list[Any]:
    """A row of a table; "direct" is filled where Winograd's rate would mislead."""
    direct = r.direct_flops / r.microseconds / 1e3 if r.direct_flops != r.flops and r.microseconds else "–"
    return [r.number, r.kernel, r.label, r.microseconds, r.gflops, direct, r.gbytes, r.limit, r.roof,
            f"{100 * r.share:.0f} %"]
