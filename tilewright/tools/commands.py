"""The commands of the command line that compile, run and measure a model; inspection has a file of its own.

Each gathers its options, calls what does the work, and hands the result to `report.emit`.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from tilewright.core.errors import UserError
from tilewright.frontend.onnx.read import read_model
from tilewright.graph.interpret import run as interpret
from tilewright.model import Model
from tilewright.tools import bench as racing
from tilewright.tools import bisect as searching
from tilewright.tools import compare as comparing
from tilewright.tools import fault_commands, inspect_commands, report, roofline_report, throughput
from tilewright.tools.inputs import gather
from tilewright.tools.options import (
    AsJson,
    Debug,
    Inputs,
    ModelFile,
    ModelOrLibrary,
    Numerics,
    Seed,
    Shapes,
    TargetName,
    Threads,
    compiled,
    opened,
)

app = typer.Typer(name="tilewright", help="Trained models become fast native code.", no_args_is_help=True,
                  add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


Command = Callable[..., None]


def command(name: str) -> Callable[[Command], Command]:
    """Enters a function as a command whose errors are reported."""
    def enter(function: Command) -> Command:
        app.command(name)(report.guarded(function))
        return function
    return enter


def memory_facts(model: Model) -> dict[str, str]:
    """The memory plan in words."""
    return {"arena of one run": report.size(model.memory.arena), "weights in the model": report.size(model.memory.weights),
            "weights as kernels read them": report.size(model.memory.packed)}


@command("compile")
def compile_model(model: ModelFile,
                  output: Annotated[Path | None, typer.Option("--output", "-o", help="The library to write (MODEL.so).",
                                                              show_default=False)] = None,
                  target: TargetName = "native", shape: Shapes = [], threads: Threads = None,  # noqa: B006
                  numerics: Numerics = None,
                  verify: Annotated[bool, typer.Option("--verify", help="Compare a run with the interpreter.")] = False,
                  as_json: AsJson = False, debug: Debug = False) -> None:
    """Compile an ONNX model into one shared library with weights and a C header."""
    made = compiled(model, target, shape, threads, numerics, verify)
    library = output or model.with_suffix(".so")
    header = made.save(library)
    kernels = len({use.kernel for use in made.kernels})
    data = {"library": str(library), "header": str(header), "bytes": library.stat().st_size, "target": target,
            "threads": made.threads if made.runs_here else None,
            "kernels": kernels, "launches": len(made.kernels), "memory": made.memory._asdict(),
            "inputs": {i.name: str(i) for i in made.inputs}, "outputs": {o.name: str(o) for o in made.outputs}}

    def show(console: Console) -> None:
        console.print(report.facts({"library": f"{library} ({report.size(library.stat().st_size)})", "header": str(header),
                                    **{f"input {k}": v for k, v in data["inputs"].items()},  # type: ignore[attr-defined]
                                    **{f"output {k}": v for k, v in data["outputs"].items()},  # type: ignore[attr-defined]
                                    "threads": made.threads if made.runs_here else "all CPUs, where it runs",
                                    "kernels": f"{kernels} in {len(made.kernels)} launches", **memory_facts(made)}))
    report.emit(as_json, data, show)


@command("run")
def run_model(model: ModelOrLibrary, inputs: Inputs = [],  # noqa: B006
              image: Annotated[Path | None, typer.Option("--image", help="A picture for the model's image input.",
                                                         show_default=False)] = None,
              normalize: Annotated[bool, typer.Option(help="Take ImageNet's mean and deviation out of colours.")] = True,
              top_k: Annotated[int, typer.Option("--top-k", "-k", help="Print the largest elements of each output.")] = 0,
              output: Annotated[Path | None, typer.Option("--output", "-o", help="A .npz file for the outputs.",
                                                          show_default=False)] = None,
              target: TargetName = "native", shape: Shapes = [], threads: Threads = None,  # noqa: B006
              numerics: Numerics = None, seed: Seed = 0, as_json: AsJson = False, debug: Debug = False) -> None:
    """Run a model once, on given, picture or random inputs."""
    with opened(model, target, shape, threads, numerics) as made:
        results = made.run(gather(made, inputs, image, normalize, seed))
        names = [o.name for o in made.outputs]
    if output is not None:
        arrays: dict[str, Any] = dict(zip(names, results, strict=True))
        with report.writing(output) as file:
            np.savez(file, **arrays)
    tops = {name: _top(array, top_k) for name, array in zip(names, results, strict=True)}
    data = {name: {"dtype": array.dtype.name, "shape": list(array.shape), "top": tops[name],
                   **({} if array.size > 1000 else {"values": array.astype(np.float64).tolist()
                                                    if array.dtype.kind == "V" else array.tolist()})}
            for name, array in zip(names, results, strict=True)}

    def show(console: Console) -> None:
        for name, array in zip(names, results, strict=True):
            console.print(f"{name}: {array.dtype}{list(array.shape)}", markup=False)
            if top_k:
                console.print(report.table(["index", "value"], [[_place(i, array.shape), v] for i, v in tops[name]]))
            else:
                console.print(np.array2string(array, threshold=20, precision=5), markup=False)
    report.emit(as_json, data, show)


def _top(array: Any, k: int) -> list[tuple[int, float]]:
    """Flat indices and values of the k largest elements."""
    flat = np.asarray(array).reshape(-1)
    order = np.argsort(-flat.astype(np.float64), kind="stable")[:k]
    return [(int(i), float(flat[i])) for i in order]


def _place(index: int, shape: Sequence[int]) -> str:
    """A flat index along the axes that have more than one element."""
    return ", ".join(map(str, np.unravel_index(index, [n for n in shape if n != 1] or [1])))


@command("bench")
def bench(models: Annotated[list[Path], typer.Argument(help="ONNX models, or one saved library.", show_default=False)],
          against: Annotated[list[str], typer.Option("--against", help="Another engine: " + ", ".join(racing.PEERS) +
                                                     "; may be repeated.")] = [],  # noqa: B006
          inputs: Inputs = [], warmup: Annotated[int, typer.Option(min=0, help="Untimed runs before timed ones.")] = 3,  # noqa: B006
          rounds: Annotated[int, typer.Option(min=1, help="Least number of rounds of two timed runs.")] = 25,
          seconds: Annotated[float, typer.Option(min=0, help="Least measuring time per model.")] = 3.0,
          roofs: Annotated[bool, typer.Option("--roofline", help="Instead: every kernel beside the peaks of this machine, "
                                              "measured in the same run.")] = False,
          callers: Annotated[int, typer.Option(min=1, help="Instead, if above 1: inferences per second of so many callers "
                                                           "at once, each of one thread unless --threads says more.")] = 1,
          target: TargetName = "native", shape: Shapes = [], threads: Threads = None,  # noqa: B006
          numerics: Numerics = None, seed: Seed = 0, as_json: AsJson = False, debug: Debug = False) -> None:
    """Latency of models; with --against, interleaved with other engines in this process, each after a rest."""
    if roofs:
        _rooflines(models, inputs, (target, shape, threads, numerics), seed, as_json)
        return
    if callers > 1:
        _throughput(models, against, inputs, callers, seconds, (target, shape, threads or 1, numerics), seed, as_json)
        return
    data: dict[str, Any] = {}
    rows = []
    for path in models:
        standings = _race(path, against, inputs, warmup, rounds, seconds, (target, shape, threads, numerics), seed)
        data[str(path)] = [{"engine": s.engine, **s.timing._asdict(), "ratio": s.ratio, "error": s.error} for s in standings]
        for s in standings:
            rows.append([path.stem, s.engine, s.timing.median, s.timing.p90, s.timing.p99, s.timing.minimum,
                         "–" if s.ratio is None else s.ratio, f"{s.error:.1e}" if len(standings) > 1 else "–"])
    heads = ["model", "engine", "median ms", "p90", "p99", "min", "× fastest other", "error"]
    report.emit(as_json, data, lambda console: console.print(report.table(heads, rows)))


def _rooflines(models: list[Path], inputs: list[str], options: tuple[Any, ...], seed: int, as_json: bool) -> None:
    """Each model's kernels beside the machine's peaks, which are measured anew for each."""
    found = {}
    for path in models:
        with opened(path, *options) as made:
            feeds = gather(made, inputs, None, False, seed)
            found[str(path)] = roofline_report.found_for(made, feeds)

    def show(console: Console) -> None:
        for name, r in found.items():
            console.print(f"{name}\n", markup=False)
            roofline_report.show(console, r)
    report.emit(as_json, {name: r.facts() for name, r in found.items()}, show)


def _throughput(models: list[Path], against: list[str], inputs: list[str], callers: int, seconds: float,
                options: tuple[Any, ...], seed: int, as_json: bool) -> None:
    """Inferences per second of several callers at once."""
    data, rows = {}, []
    for path in models:
        with _engines(path, against, inputs, options, seed, callers) as (runs, feeds):
            found = throughput.rates(runs, feeds, callers, seconds=seconds / 3)
        data[str(path)] = [r.facts() for r in found]
        rows += [[path.stem, r.engine, callers, r.per_second, "–" if r.ratio is None else r.ratio] for r in found]
    heads = ["model", "engine", "callers", "per second", "× best other"]
    report.emit(as_json, data, lambda console: console.print(report.table(heads, rows)))


def _race(path: Path, against: list[str], inputs: list[str], warmup: int, rounds: int, seconds: float,
          options: tuple[Any, ...], seed: int) -> list[racing.Standing]:
    with _engines(path, against, inputs, options, seed) as (runs, feeds):
        return racing.race(runs, feeds, warmup=warmup, rounds=rounds, seconds=seconds)


@contextmanager
def _engines(path: Path, against: list[str], inputs: list[str], options: tuple[Any, ...], seed: int,
             callers: int = 1) -> Iterator[tuple[dict[str, racing.Run], list[racing.Feeds]]]:
    """Tilewright and its peers on one model, ready to run, and three sets of inputs."""
    peers = {name: racing.peer(name) for name in against}
    with opened(path, *options) as made:
        feeds: list[racing.Feeds] = [gather(made, inputs, None, False, seed + k) for k in range(3)]
        runs = {"tilewright": racing.runner(made)}
        if peers:
            if made.graph is None:
                raise UserError("no-stages", "other engines cannot run a saved library", hint="give the ONNX file")
            proto, threads = _fixed(path, made), made.threads
            runs |= {name: loader(proto, threads, callers) for name, loader in peers.items()}
        yield runs, feeds


def _fixed(path: Path, made: Model) -> Any:
    """The model's proto, its weights in place, its inputs with the sizes that it was compiled for."""
    import onnx
    read_model(path)  # whatever is wrong with the file is said in our words
    proto = onnx.load(str(path))
    sizes = {i.name: i.shape for i in made.inputs}
    for info in proto.graph.input:
        for dim, n in zip(info.type.tensor_type.shape.dim, sizes.get(info.name, ()), strict=False):
            dim.dim_value = n
    return proto


@command("compare")
def compare(model: ModelFile,
            reference: Annotated[str, typer.Option("--with", help="onnxruntime, openvino, interpreter (of the graph, by "
                                                   "NumPy), float64 (the interpreter in that type), or auto: the first that "
                                                   "there is.")] = "auto",
            tolerance: Annotated[float, typer.Option(help="Largest error of floats, relative to an output's largest value."
                                                     )] = comparing.TOLERANCE,
            by_layer: Annotated[bool, typer.Option("--layers", help="Also every value that a kernel stores, beside the "
                                                   "interpreter in float64, up to the first that differs.")] = False,
            inputs: Inputs = [], target: TargetName = "native", shape: Shapes = [], threads: Threads = None,  # noqa: B006
            numerics: Numerics = None, seed: Seed = 0, as_json: AsJson = False, debug: Debug = False) -> None:
    """Compare a run, output by output, with another engine or the interpreter; exit status 1 if they differ."""
    with compiled(model, target, shape, threads, numerics) as made:
        feeds = gather(made, inputs, None, False, seed)
        name, want = _reference(reference, model, made, feeds)
        found = comparing.differences(made.outputs, made.run(feeds), want, tolerance)
        inside = searching.layers(made, feeds, tolerance) if by_layer else []
    first = next((k for k, x in enumerate(inside) if not x.ok), None)
    inside = inside if first is None else inside[:first + 1]
    data = {"reference": name, "tolerance": tolerance, "ok": all(d.ok for d in found),
            "outputs": [d.facts() for d in found], "layers": [x.facts() for x in inside]}
    rows = [[d.output, d.type, d.absolute, d.mean, d.relative, "–" if d.ulp is None else d.ulp, "yes" if d.ok else "NO"]
            for d in found]
    heads = ["output", "type", "largest difference", "mean", "relative", "ulp", "within tolerance"]

    def show(console: Console) -> None:
        if by_layer:
            console.print(report.table(*fault_commands.layer_rows(inside)))
            said = "no layer differs" if first is None else f"the first layer that differs: {inside[-1].value}"
            console.print(said + "\n", markup=False)
        console.print(report.table(heads, rows, f"against {name}"))
        if not data["ok"] and not by_layer:
            console.print("--layers shows where it begins, `tilewright bisect` the pass or the kernel", markup=False)
    report.emit(as_json, data, show)
    if not data["ok"]:
        raise SystemExit(report.MISMATCH)


def _reference(name: str, path: Path, made: Model, feeds: Any) -> tuple[str, list[Any]]:
    if name in ("auto", "onnxruntime"):
        try:
            return "onnxruntime", racing.load_onnxruntime(_fixed(path, made), made.threads)(feeds)
        except UserError as error:
            if name != "auto" or error.code != "engine-missing":
                raise
    if name in ("auto", "interpreter"):
        assert made.graph is not None
        return "interpreter", interpret(made.graph, feeds)
    if name == "float64":
        return searching.reference_outputs(made, feeds)
    return name, racing.peer(name)(_fixed(path, made), made.threads, 1)(feeds)


@command("profile")
def profile(model: ModelFile,
            worst: Annotated[bool, typer.Option("--worst", help="The longest first, instead of in order.")] = False,
            runs: Annotated[int, typer.Option(min=1, help="Runs to average over.")] = 20, inputs: Inputs = [],  # noqa: B006
            target: TargetName = "native", shape: Shapes = [], threads: Threads = None,  # noqa: B006
            numerics: Numerics = None, seed: Seed = 0, as_json: AsJson = False, debug: Debug = False) -> None:
    """Time of each kernel's launch, its share of the run, and the rates it reaches; then the ten that lose most time against
    the peaks of this machine, measured in the same run."""
    with opened(model, target, shape, threads, numerics) as made:
        feeds = gather(made, inputs, None, False, seed)
        found = list(enumerate(made.profile(feeds, runs=runs)))
        lost = roofline_report.found_for(made, feeds, runs) if made.kernels else None
    if worst:
        found.sort(key=lambda pair: -pair[1].microseconds)
    total = sum(p.microseconds for _, p in found)
    data = {"microseconds": total, "launches": [{"number": k, **p._asdict()} for k, p in found],
            "worst": [r.facts() for r in lost.worst()] if lost else []}
    rows = [[k, p.kernel, p.label, p.microseconds, f"{100 * p.share:.1f} %", p.gflops, p.gbytes] for k, p in found]

    def show(console: Console) -> None:
        console.print(report.table(["", "kernel", "layer", "µs", "share", "GFLOP/s", "GB/s"], rows))
        console.print(f"{total / 1e3:.3f} ms in {len(found)} launches of kernels")
        if lost is not None:
            roofline_report.show_worst(console, lost)
    report.emit(as_json, data, show)


inspect_commands.enter(app, report.guarded)
fault_commands.enter(app, report.guarded)
