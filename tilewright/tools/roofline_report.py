"""Rooflines as the command line shows them: tables for people, plain data for --json."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from tilewright.model import Model
from tilewright.target.presets import get_target
from tilewright.tools import report
from tilewright.tools.peaks import LEVELS, Peaks, as_rows, measure
from tilewright.tools.roofline import Roofline, cells, headings, roofline

BUSY = 1.1
"""A kernel's share of the peak of multiply-adds that only a peak measured too low explains."""


def found_for(model: Model, feeds: Mapping[str, Any], runs: int = 10) -> Roofline:
    """A model's roofline under a progress bar."""
    with report.progress("measuring this machine's peaks and the model's kernels"):
        return roofline(model, lambda: measure(model.target or get_target(), model.threads), feeds, runs=runs)


def show_peaks(console: Console, found: Sequence[Peaks]) -> None:
    heads = ["threads", "GFLOP/s", *[f"{what} {level}" for what in ("read", "copy") for level in LEVELS]]
    console.print(report.table(heads, as_rows(found), "peaks of this machine, measured now (GB/s)"))


def show(console: Console, found: Roofline) -> None:
    """Peaks, launches by time, totals, the worst."""
    show_peaks(console, [found.peaks])
    console.print(report.table(headings(), [cells(r) for r in found.by_time()]))
    t = found.totals()
    console.print(report.facts({
        "run": f"{t['latency'] / 1e3:.3f} ms, of which kernels {t['microseconds'] / 1e3:.3f} ms",
        "their roofs": f"{t['roof'] / 1e3:.3f} ms ({100 * t['share']:.0f} %)",
        "rates": f"{t['gflops']:.0f} GFLOP/s ({t['direct_gflops']:.0f} counting Winograd's as direct), "
                 f"{t['gbytes']:.1f} GB/s"}))
    if any(r.share > BUSY and r.limit == "compute" for r in found.rows):
        console.print("kernels above the peak of multiply-adds: something else used the processors while it was measured")


def show_worst(console: Console, found: Roofline) -> None:
    """The launches that lose most against their roof."""
    rows: list[list[Any]] = [[r.number, r.kernel, r.label, r.microseconds, r.above, f"{100 * r.share:.0f} % of {r.limit}"]
                             for r in found.worst()]
    heads = ["", "kernel", "layer", "µs", "µs above its roof", "reaches"]
    console.print(report.table(heads, rows, f"the {len(rows)} that lose most against what this machine can do"))
