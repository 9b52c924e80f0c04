"""The commands of the command line that find faults: bisect and reduce."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tilewright.core.config import config
from tilewright.frontend.onnx.read import read_model
from tilewright.tools import bisect as searching
from tilewright.tools import reduce as reducing
from tilewright.tools import report
from tilewright.tools.compare import TOLERANCE
from tilewright.tools.inputs import gather, read_named
from tilewright.tools.options import AsJson, Debug, Inputs, ModelFile, Numerics, Seed, Shapes, compiled

Tolerance = Annotated[float, typer.Option(help="Largest error of floats, relative to a value's largest element.")]


def enter(app: typer.Typer, guarded: Callable[..., Any]) -> None:
    """Adds the commands to the command line."""
    for name, function in (("bisect", bisect), ("reduce", reduce)):
        app.command(name)(guarded(function))


def layer_rows(found: list[searching.Layer]) -> tuple[list[str], list[list[Any]]]:
    """Headings and rows of a table of layers."""
    heads = ["value", "kernel", "layer", "largest", "mean", "relative", "ulp", "within tolerance"]
    return heads, [[x.value, x.kernel, x.label, x.absolute, x.mean, x.relative, "–" if x.ulp is None else x.ulp,
                    "yes" if x.ok else "NO"] for x in found]


def bisect(model: ModelFile, tolerance: Tolerance = TOLERANCE, inputs: Inputs = [], shape: Shapes = [],  # noqa: B006
           numerics: Numerics = None, seed: Seed = 0, as_json: AsJson = False, debug: Debug = False) -> None:
    """Name the pass or the kernel that makes a result differ from the model's meaning; exit status 1 if one does."""
    with compiled(model, "native", shape, None, numerics) as made:
        found = searching.bisect(made, gather(made, inputs, None, False, seed), tolerance, numerics or config.numerics)
    data = {**asdict(found), "layer": found.layer.facts() if found.layer else None}

    def show(console: Console) -> None:
        console.print(report.table(["pass", "error after it"], [[name, e] for name, e in found.steps]))
        if found.kind == "nothing":
            console.print(f"nothing differs: {found.relative:.3g} of the largest value")
            return
        console.print(f"the {found.kind} {found.name}; the outputs differ by {found.relative:.3g} of the largest value",
                      markup=False)
        if found.layer is not None:
            console.print(report.table(*layer_rows([found.layer])))
    report.emit(as_json, data, show)
    if found.kind != "nothing":
        raise SystemExit(report.MISMATCH)


def reduce(model: ModelFile,
           output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.", show_default=False)],
           error: Annotated[str, typer.Option("--error", help="Keep what ends in the error of this code, or internal: any "
                                              "fault of the compiler. Left out: what differs from the interpreter.")] = "",
           tolerance: Tolerance = TOLERANCE, inputs: Inputs = [], numerics: Numerics = None,  # noqa: B006
           as_json: AsJson = False, debug: Debug = False) -> None:
    """Write a smaller model that shows the same failure."""
    given = read_named(inputs, [v.name for v in read_model(model)[0].graph.input]) if inputs else {}
    question = reducing.shows_error(error, given) if error else reducing.shows_difference(tolerance, numerics, given)
    small = reducing.reduce_model(model, question)
    with report.writing(output) as file:
        file.write(small.SerializeToString())
    nodes = [n.op_type for n in small.graph.node]
    report.emit(as_json, {"model": str(output), "nodes": nodes},
                lambda console: console.print(f"{output}: {len(nodes)} nodes: {', '.join(nodes)}", markup=False))
