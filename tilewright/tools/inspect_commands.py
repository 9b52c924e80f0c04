"""The commands of the command line that look inside: inspect, coverage, targets, doctor."""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tilewright.core.config import config
from tilewright.core.errors import UserError
from tilewright.core.passes import Dump
from tilewright.frontend.onnx.survey import COMPILED, HOST, MISSING, survey
from tilewright.graph.printer import print_graph
from tilewright.model import Model
from tilewright.target.presets import get_target, target_names
from tilewright.target.target import Target
from tilewright.tools import doctor as doctoring
from tilewright.tools import inspect as looking
from tilewright.tools import report
from tilewright.tools.html import model_html
from tilewright.tools.options import AsJson, Debug, ModelFile, Numerics, Shapes, TargetName, compiled, shapes_of


def enter(app: typer.Typer, guarded: Callable[..., Any]) -> None:
    """Adds the commands to the command line."""
    for name, function in (("inspect", inspect), ("coverage", coverage), ("targets", targets), ("doctor", doctor)):
        app.command(name)(guarded(function))


def _kernel(flag: str, text: str) -> Any:
    """An option that names a kernel."""
    return typer.Option(flag, metavar="KERNEL", help=text, show_default=False)


def inspect(model: ModelFile,
            graph: Annotated[bool, typer.Option("--graph", help="The graph after all passes.")] = False,
            imported: Annotated[bool, typer.Option("--imported", help="The graph as it was read.")] = False,
            passes: Annotated[Path | None, typer.Option("--passes", help="Write the graph before and after every pass that "
                                                        "changed it, and the difference, into this folder.",
                                                        show_default=False)] = None,
            schedules: Annotated[bool, typer.Option("--schedules", help="Every kernel's schedule; replays each and compares "
                                                    "the code (exit status 1 if one differs).")] = False,
            intrinsics: Annotated[bool, typer.Option("--intrinsics", help="The intrinsics and their uses.")] = False,
            program: Annotated[str | None, _kernel("--program", "A kernel's program as its schedule leaves it; KERNEL is a "
                                                   "name or a launch's number.")] = None,
            loops: Annotated[str | None, _kernel("--loops", "Its lowered loop program.")] = None,
            source: Annotated[str | None, _kernel("--source", "Its source in the target's language.")] = None,
            barriers: Annotated[str | None, _kernel("--barriers", "Its barriers on a device, each with the two accesses "
                                                    "that ask for it.")] = None,
            llvm: Annotated[str | None, _kernel("--llvm", "Its LLVM IR.")] = None,
            asm: Annotated[str | None, _kernel("--asm", "Its assembly.")] = None,
            html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page of all schedules: "
                                                      "each program after each primitive.", show_default=False)] = None,
            target: TargetName = "native", shape: Shapes = [], numerics: Numerics = None,  # noqa: B006
            as_json: AsJson = False, debug: Debug = False) -> None:
    """Look inside: without options, the list of kernels and the memory plan."""
    observers = [Dump(passes, print_graph)] if passes is not None else []
    made = compiled(model, target, shape, None, numerics, observers=observers)
    stages, device = looking.stages_of(made), get_target(target)
    assert stages.imported is not None and stages.optimized is not None
    texts: dict[str, str] = {}
    if imported:
        texts["imported"] = print_graph(stages.imported)
    if graph:
        texts["graph"] = print_graph(stages.optimized)
    if program is not None:
        texts["program"] = looking.scheduled_program(made, looking.kernel_named(made, program))
    if loops is not None:
        texts["loops"] = looking.kernel_named(made, loops).record["lowered"]
    if source is not None:
        texts["source"] = looking.source_of(looking.kernel_named(made, source), device)
    if llvm is not None:
        texts["llvm"] = looking.llvm_ir(looking.kernel_named(made, llvm), device)
    if asm is not None:
        texts["asm"] = looking.assembly_of(looking.kernel_named(made, asm), device)
    data: dict[str, Any] = dict(texts)
    if barriers is not None:
        kernel = looking.kernel_named(made, barriers)
        placed = looking.barriers(looking.schedule_of(made, kernel), device, kernel.name)
        texts["barriers"] = "\n\n".join(map(str, placed))
        data["barriers"] = [asdict(b) for b in placed]
    if passes is not None:
        data["passes"] = sorted(str(p.relative_to(passes)) for p in passes.rglob("*") if p.is_file())
    if html is not None:
        data["html"] = str(html)
        with report.writing(html) as file:
            file.write(model_html(made).encode())
    if intrinsics:
        data["intrinsics"] = looking.intrinsics(made)
    found = looking.schedules(made, numerics or config.numerics) if schedules else []
    if schedules:
        data["schedules"] = [asdict(s) for s in found]
    if not data:
        data = _overview(made)
        report.emit(as_json, data, lambda console: _show_overview(console, made, data))
        return
    report.emit(as_json, data, lambda console: _show(console, texts, data, found))
    if not all(s.replays for s in found):
        raise SystemExit(report.MISMATCH)


def _overview(made: Model) -> dict[str, Any]:
    launches = [{"number": k, "kernel": u.kernel, "layer": u.label, "flops": u.flops, "bytes": u.nbytes}
                for k, u in enumerate(made.kernels)]
    return {"inputs": {i.name: str(i) for i in made.inputs}, "outputs": {o.name: str(o) for o in made.outputs},
            "memory": made.memory._asdict(), "launches": launches}


def _show_overview(console: Console, made: Model, data: dict[str, Any]) -> None:
    rows = [[u["number"], u["kernel"], u["layer"], u["flops"] / 1e6, report.size(u["bytes"])] for u in data["launches"]]
    console.print(report.table(["", "kernel", "layer", "MFLOP", "operands"], rows))
    console.print(report.facts({f"{k}, bytes": v for k, v in made.memory._asdict().items()}))


def _show(console: Console, texts: dict[str, str], data: dict[str, Any], found: list[looking.ScheduleReport]) -> None:
    for text in texts.values():
        print(text)
    for name in [*data.get("passes", ()), *([data["html"]] if "html" in data else [])]:
        print(name)
    for s in found:
        print(f"{s.kernel}: {s.label}, launched {s.launches}×, "
              f"{'replays to the same code' if s.replays else 'REPLAYS TO OTHER CODE'}\n{s.program}\n{s.trace}\n")
    if found:
        same = sum(s.replays for s in found)
        print(f"{len(found)} kernels, every one a program and a schedule; {same} replay to byte-identical code")
    if "intrinsics" in data:
        console.print(report.table(["intrinsic", "calls in this model", "meaning"], data["intrinsics"]))


def coverage(model: ModelFile, shape: Shapes = [], as_json: AsJson = False, debug: Debug = False) -> None:  # noqa: B006
    """What becomes of each node: compiled, run on the host, or missing, and why (exit status 1 if any is missing)."""
    found = survey(model, shapes_of(shape))
    counts = Counter(r.status for r in found)
    data = {"counts": {s: counts[s] for s in (COMPILED, HOST, MISSING)}, "nodes": [asdict(r) for r in found]}

    def show(console: Console) -> None:
        rows = [[r.node, r.operator, r.opset, r.dtypes, r.status, r.reason] for r in found]
        console.print(report.table(["node", "operator", "opset", "type", "", "reason"], rows))
        console.print(", ".join([f"{n} {s}" for s, n in data["counts"].items()]))  # type: ignore[attr-defined]
    report.emit(as_json, data, show)
    if counts[MISSING]:
        raise SystemExit(report.MISMATCH)


def targets(as_json: AsJson = False, debug: Debug = False) -> None:
    """The devices that code can be made for."""
    found = {name: t for name in target_names() if (t := _present(name)) is not None}
    heads = ["target", "processor", "vectors", "registers", "cores", "L1", "L2", "instructions"]
    cpus = [[n, t.cpu, f"{t.vector_bits} bits", t.vector_registers, t.cores, report.size(t.l1d), report.size(t.l2),
             " ".join(t.intrinsics)] for n, t in found.items() if not t.is_gpu]
    devices = [[n, t.language, t.max_threads, report.size(t.shared_memory), t.registers or "–", t.warp, t.cores,
                " ".join(t.intrinsics)] for n, t in found.items() if t.is_gpu]

    def show(console: Console) -> None:
        console.print(report.table(heads, cpus))
        console.print()
        console.print(report.table(["device", "language", "threads of a block", "shared memory", "registers of a thread",
                                    "warp", "blocks at once", "instructions"], devices))
    report.emit(as_json, {n: asdict(t) for n, t in found.items()}, show)


def _present(name: str) -> Target | None:
    """The target of a name; None for the device of this machine where there is none."""
    try:
        return get_target(name)
    except UserError as error:
        if error.code != "device-missing":
            raise
        return None


def doctor(as_json: AsJson = False, debug: Debug = False) -> None:
    """What this machine and installation offer, and what is wrong with them (exit status 1 if anything is)."""
    sections, problems = doctoring.examine()

    def show(console: Console) -> None:
        for name, section in sections.items():
            console.print(report.table([name, ""], [[k, v] for k, v in section.items()]))
            console.print()
        for p in problems:
            console.print(f"problem: {p}", markup=False)
        if not problems:
            console.print("all is well")
    report.emit(as_json, {**sections, "problems": problems}, show)
    if problems:
        raise SystemExit(1)
