"""The options that several commands share, with their parsers."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tilewright import driver
from tilewright.core.errors import UserError
from tilewright.core.passes import Observer
from tilewright.model import Model
from tilewright.tools import report

ModelFile = Annotated[Path, typer.Argument(help="An ONNX model.", show_default=False)]
ModelOrLibrary = Annotated[Path, typer.Argument(help="An ONNX model, or a library saved by `compile`.", show_default=False)]
TargetName = Annotated[str, typer.Option("--target", "-t", help="native, x86-64, x86-64-v2, …: `tilewright targets`.")]
Shapes = Annotated[list[str], typer.Option("--shape", "-s", metavar="NAME=N", help="Size of a symbolic dimension "
                                           "(batch=1) or its range (batch=1..64), or the whole shape of an input "
                                           "(x=1,3,224,224); may be repeated.")]
Threads = Annotated[int | None, typer.Option("--threads", "-j", help="Threads of a run; all that there are if left out.",
                                             show_default=False)]
Numerics = Annotated[str | None, typer.Option("--numerics", help="'strict' keeps the order of sums; 'default' also allows "
                                              "faster algorithms of bounded error, 'tf32' also to round operands of "
                                              "products to TF32 on devices that have it.", show_default=False)]
Inputs = Annotated[list[str], typer.Option("--input", "-i", metavar="FILE", help="file.npz with inputs by name, or "
                                           "NAME=file.npy; may be repeated. What is not given is random.")]
Seed = Annotated[int, typer.Option("--seed", help="Of random inputs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the tracebacks of errors.")]


def shapes_of(texts: Sequence[str]) -> dict[str, Any]:
    """{"batch": 1, "x": (1, 3, 224, 224)} of ["batch=1", "x=1,3,224,224"]. Raises UserError "option-shape"."""
    out: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        parts = [p.strip() for p in value.strip("[]() ").split(",") if p.strip()]
        sizes = [int(p) if p.lstrip("-").isdigit() else p for p in parts]
        if not equals or not name or not sizes and value.strip() not in ("[]", "()"):
            raise UserError("option-shape", f"--shape {text!r} is not NAME=N or NAME=N,N,…", where="--shape",
                            hint="--shape batch=1, or --shape image=1,3,224,224")
        out[name] = sizes[0] if len(sizes) == 1 and "," not in value and not value.startswith(("[", "(")) else tuple(sizes)
    return out


def compiled(path: Path, target: str = "native", shapes: Sequence[str] = (), threads: int | None = None,
             numerics: str | None = None, verify: bool = False, observers: Sequence[Observer] = ()) -> Model:
    """Compile a model under a progress bar."""
    with report.progress(f"compiling {path.name}") as progress:
        return driver.compile(path, target, shapes=shapes_of(shapes), threads=threads, numerics=numerics, verify=verify,
                              observers=observers, progress=progress)


def opened(path: Path, target: str = "native", shapes: Sequence[str] = (), threads: int | None = None,
           numerics: str | None = None) -> Model:
    """A saved library as it is, anything else compiled. Raises UserError "option-library" for options that come too late."""
    if _is_library(path):
        if target != "native" or shapes or numerics is not None:
            raise UserError("option-library", f"{path} is compiled: its target, shapes and numerics stay as they are",
                            where=str(path), hint="leave out --target, --shape and --numerics, or give the ONNX file")
        return driver.load(path, threads=threads)
    return compiled(path, target, shapes, threads, numerics)


def _is_library(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False  # the importer says what is wrong with it
