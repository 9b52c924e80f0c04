"""Passes and pipelines: a pass is a function IR → IR; a pipeline is a named list of passes, watched by observers.

    lower = Pipeline("lower", [fuse_loops, unroll, simplify])
    program = lower.run(program, [verify(check), Timing()])

Observers see the program around each pass; nothing is attached to a pass itself. A pass's name is its function's, its
documentation the first sentence of the function's docstring.
"""
from __future__ import annotations

import difflib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

from tilewright.core.errors import InternalError, TilewrightError, UserError

T = TypeVar("T")
Pass = Callable[[T], T]


def pass_name(p: Callable[..., Any]) -> str:
    """The function's name; of a partial application, that of what it applies."""
    while isinstance(p, functools.partial):
        p = p.func
    return getattr(p, "__name__", type(p).__name__)


def pass_doc(p: Callable[..., Any]) -> str:
    """The first sentence of a pass's docstring."""
    while isinstance(p, functools.partial):
        p = p.func
    return (p.__doc__ or "").strip().split("\n")[0]


@dataclass(frozen=True)
class Step:
    """Where in a pipeline an observer is called. `index` counts passes from 0."""

    pipeline: str
    index: int
    name: str


class Observer:
    """Sees the program around each pass. Override what is of interest."""

    def start(self, pipeline: str, ir: Any) -> None:
        """Before the first pass."""

    def before(self, step: Step, ir: Any) -> None:
        """Before a pass."""

    def after(self, step: Step, before: Any, ir: Any) -> None:
        """After a pass that turned `before` into `ir`."""


class Pipeline(Generic[T]):
    """A named list of passes, applied in order."""

    def __init__(self, name: str, passes: Sequence[Pass[T]]) -> None:
        self.name, self.passes = name, tuple(passes)

    def run(self, ir: T, observers: Sequence[Observer] = ()) -> T:
        """Apply every pass. An error that is not Tilewright's own becomes an InternalError that names the pass."""
        for o in observers:
            o.start(self.name, ir)
        for index, p in enumerate(self.passes):
            step = Step(self.name, index, pass_name(p))
            for o in observers:
                o.before(step, ir)
            try:
                new = p(ir)
            except (TilewrightError, MemoryError):
                raise
            except Exception as error:
                raise InternalError(f"pass {step.name} ({self.name}, number {index}) failed: "
                                    f"{type(error).__name__}: {error}") from error
            for o in observers:
                o.after(step, ir, new)
            ir = new
        return ir

    def __str__(self) -> str:
        return "\n".join([self.name, *[f"  {pass_name(p):24} {pass_doc(p)}" for p in self.passes]])


class Verify(Observer):
    """Calls `check(ir)` at the start and after every pass; its error names the pass to blame."""

    def __init__(self, check: Callable[[Any], Any]) -> None:
        self.check = check

    def start(self, pipeline: str, ir: Any) -> None:
        self._run(ir, f"the program given to {pipeline} is not valid")

    def after(self, step: Step, before: Any, ir: Any) -> None:
        if ir is not before:
            self._run(ir, f"pass {step.name} ({step.pipeline}, number {step.index}) broke the program")

    def _run(self, ir: Any, blame: str) -> None:
        try:
            self.check(ir)
        except TilewrightError as error:
            raise InternalError(f"{blame}: {error}") from error


class PrintIR(Observer):
    """Writes the program after every pass that changed it (after all of them if `unchanged`)."""

    def __init__(self, out: TextIO, show: Callable[[Any], str] = str, unchanged: bool = False) -> None:
        self.out, self.show, self.unchanged = out, show, unchanged

    def after(self, step: Step, before: Any, ir: Any) -> None:
        if self.unchanged or ir is not before:
            print(f"# after {step.name} ({step.pipeline} {step.index})\n{self.show(ir)}\n", file=self.out)


@dataclass
class Timing(Observer):
    """Adds up seconds by (pipeline, pass)."""

    seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    _began: float = 0.0

    def before(self, step: Step, ir: Any) -> None:
        self._began = time.perf_counter()

    def after(self, step: Step, before: Any, ir: Any) -> None:
        key = (step.pipeline, step.name)
        self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - self._began

    def report(self) -> str:
        """A table, slowest first, in milliseconds."""
        rows = sorted(self.seconds.items(), key=lambda x: -x[1])
        return "\n".join(f"{1e3 * s:10.2f} ms  {pipeline}/{name}" for (pipeline, name), s in rows)


class Dump(Observer):
    """Writes the program before the first pass and after each that changed it into a folder, and the difference.

    Files: `<pipeline>/00.ir`, `<pipeline>/03_unroll.ir`, `<pipeline>/03_unroll.diff`. Raises UserError "output-file".
    """

    def __init__(self, folder: Path, show: Callable[[Any], str] = str) -> None:
        self.folder, self.show = folder, show

    def start(self, pipeline: str, ir: Any) -> None:
        self._write(pipeline, "00.ir", self.show(ir))

    def after(self, step: Step, before: Any, ir: Any) -> None:
        if ir is before:
            return
        old, new = self.show(before), self.show(ir)
        stem = f"{step.index + 1:02}_{step.name}"
        self._write(step.pipeline, stem + ".ir", new)
        diff = difflib.unified_diff(old.splitlines(), new.splitlines(), "before", "after", lineterm="")
        self._write(step.pipeline, stem + ".diff", "\n".join(diff))

    def _write(self, pipeline: str, name: str, text: str) -> None:
        path = self.folder / pipeline / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError("output-file", f"{path} was not written: {error.strerror or error}", where=str(self.folder),
                            hint="is the folder writable, and the disk not full?") from error
