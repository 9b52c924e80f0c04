"""Rates of kernels beside this machine's peaks, and of models beside other engines, measured in one run (`make bench`).

    python benchmarks/rates.py [--threads 1 --threads 2] [--only depthwise] [--model net.onnx] [--history FILE] [--json]

In: nothing, or ONNX files. Out: a table by families of kernels (cases.py); where ONNX Runtime or OpenVINO is installed, a
table of models beside them, in interleaved rounds after rests; one line per kernel appended to a history file (history.py),
and the kernels that became slower than in the last run on this machine. Nothing is expected of the machine.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx

import tilewright

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import cases
import history
import resnet18

from tilewright.runtime.native import default_threads
from tilewright.target import get_target
from tilewright.tools.bench import PEERS, race, runner
from tilewright.tools.peaks import LEVELS, measure
from tilewright.tools.roofline import Roofline, Row, roofline

EXAMPLES = Path(__file__).parent.parent / "examples"


# ---- kernels -----------------------------------------------------------------------------------------------------------
def record(case: cases.Case, found: Roofline) -> dict[str, Any]:
    """One case's line: the kernels that it is about, together; not those that bring a layer's input into another layout."""
    named = [r for r in found.rows if r.label.startswith(case.part) and r.flops]
    rows = named if case.part else found.by_time()[:1]
    time, roof = sum(r.microseconds for r in rows), sum(r.roof for r in rows)
    limit = max(rows, key=lambda r: r.roof).limit
    return {"kernel": case.name, "threads": found.peaks.threads, "count": len(rows), "microseconds": time / len(rows),
            "gflops": _rate(rows, "flops"), "direct_gflops": _rate(rows, "direct_flops"), "gbytes": _rate(rows, "nbytes"),
            "limit": limit, "share": roof / time, "peak_gflops": found.peaks.gflops, "read": found.peaks.read,
            "copy": found.peaks.copy}


def _rate(rows: Sequence[Row], what: str) -> float:
    return sum(getattr(r, what) for r in rows) / sum(r.microseconds for r in rows) / 1e3


def measured(family: Sequence[cases.Case], threads: int, numerics: str) -> Iterator[dict[str, Any]]:
    """Each case's record. The peaks are those of before and after the family, the better of both."""
    target = get_target()
    peaks = [measure(target, threads)]
    runs: list[tuple[cases.Case, Roofline]] = []
    compiled: dict[Any, Roofline] = {}
    for case in family:
        if case.model not in compiled:
            with tilewright.compile(case.model(), threads=threads, numerics=numerics) as model:
                compiled[case.model] = roofline(model, lambda: peaks[0])
        runs.append((case, compiled[case.model]))
    best = peaks[0].or_better(measure(target, threads))
    for case, found in runs:
        yield record(case, found.against(best))


def line(r: dict[str, Any]) -> str:
    """A record as a line of the table; direct forms' rates where Winograd's would mislead."""
    direct = f"{r['direct_gflops']:8.0f} ({r['direct_gflops'] / r['peak_gflops']:4.2f}×)" if \
        not math.isclose(r["direct_gflops"], r["gflops"]) else " " * 16
    return (f"  {r['kernel']:38} {r['threads']:3} {r['microseconds']:10.2f} {r['gflops']:8.1f} {direct} {r['gbytes']:8.1f} "
            f"{r['limit']:>8} {100 * r['share']:5.0f} %")


HEAD = f"  {'kernel':38} thr {'µs':>10} {'GFLOP/s':>8} {'direct':>16} {'GB/s':>8} {'limit':>8}  reached"


def peak_line(r: dict[str, Any]) -> str:
    rates = [f"{what} {level} {r[what][level]:.0f}" for what in ("read", "copy") for level in LEVELS if level in r[what]]
    return f"  peaks, {r['threads']} threads: {r['peak_gflops']:.0f} GFLOP/s; GB/s: {', '.join(rates)}"


# ---- models ------------------------------------------------------------------------------------------------------------
def protos(paths: Sequence[Path]) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The examples' models, then those of files; symbolic dimensions are 1."""
    digits = onnx.load(EXAMPLES / "digits" / "digits.onnx")
    for name, proto in [("digits", digits), ("resnet18", resnet18.resnet18()), *[(p.stem, onnx.load(p)) for p in paths]]:
        for info in proto.graph.input:
            for dim in info.type.tensor_type.shape.dim:
                if not dim.dim_value:
                    dim.dim_value = 1
        yield name, proto


def beside(proto: onnx.ModelProto, threads: int, seconds: float) -> list[dict[str, Any]]:
    """A model beside every other engine that is installed."""
    with tilewright.compile(proto, threads=threads) as model:
        runs = {"tilewright": runner(model)}
        runs |= {name: load(proto, threads, 1) for name, load in PEERS.items() if importlib.util.find_spec(name)}
        found = race(runs, [model.random_inputs(k) for k in range(3)], rounds=5, seconds=seconds)
    return [{"engine": s.engine, "threads": threads, "median_ms": s.timing.median, "ratio": s.ratio, "error": s.error}
            for s in found]


def model_lines(name: str, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    for r in rows:
        ratio = "" if r["ratio"] is None else f"{r['ratio']:6.2f}×"
        yield f"  {name:20} {r['threads']:3} {r['engine']:12} {r['median_ms']:10.3f} ms {ratio:>8} {r['error']:9.1e}"


# ---- the whole -----------------------------------------------------------------------------------------------------------
def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", "-j", type=int, action="append", help="may be repeated (1, and all there are)")
    parser.add_argument("--only", default="", help="only families and kernels whose name contains this")
    parser.add_argument("--numerics", default="default", choices=("default", "strict"))
    parser.add_argument("--model", type=Path, action="append", default=[], help="an ONNX file beside other engines")
    parser.add_argument("--seconds", type=float, default=3.0, help="least measuring time per model")
    parser.add_argument("--no-models", action="store_true", help="kernels only")
    parser.add_argument("--history", type=Path, default=Path("out") / "rates.jsonl", help="the file that is added to")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    said = (lambda text: None) if options.json else (lambda text: print(text, flush=True))
    counts = sorted(set(options.threads or [1, default_threads()]))
    target = get_target()
    past, records, models = history.read(options.history), [], {}
    for family, all_cases in cases.families(max(target.l3, target.l2)).items():
        chosen = [c for c in all_cases if options.only in family or options.only in c.name]
        if not chosen:
            continue
        said(f"\n{family}\n{HEAD}")
        for threads in counts:
            made = list(measured(chosen, threads, options.numerics))
            records += made
            for r in made:
                said(line(r))
            said(peak_line(made[0]))
    if not options.no_models:
        said(f"\nmodels; × is the fastest other engine's median over this one's\n  {'model':20} thr engine {'median':>17}")
        for name, proto in protos(options.model):
            models[name] = [r for threads in counts for r in beside(proto, threads, options.seconds)]
            for text in model_lines(name, models[name]):
                said(text)
    history.append(options.history, records)
    slower = history.regressions(past, records, history.machine())
    said(f"\n{len(records)} records added to {options.history}")
    for s in slower:
        said(f"  slower than the last time: {s.kernel}, {s.threads} threads: {100 * s.before:.0f} % → {100 * s.now:.0f} %")
    if options.json:
        print(json.dumps({"kernels": records, "models": models, "slower": [vars(s) for s in slower]}, indent=1))


if __name__ == "__main__":
    main()
