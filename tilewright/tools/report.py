"""What the command line prints: tables and facts for people, JSON for programs, and errors with their exit status.

Results go to standard output, everything else (progress, warnings, errors) to standard error.
"""
from __future__ import annotations

import functools
import json
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tilewright.core.config import config
from tilewright.core.errors import InternalError, UserError
from tilewright.driver import Progress as Tell

PIPE_WIDTH = 200
"""Columns of a table that goes to a file or a pipe."""
MISMATCH, USER, INTERNAL, INTERRUPTED = 1, 2, 3, 130


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose errors become messages and exit statuses; with debug=True their tracebacks are shown, too."""
    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> Any:
        debug, as_json = bool(options.get("debug")) or config.debug, bool(options.get("as_json"))
        warnings.showwarning = _show_warning
        try:
            return command(*args, **options)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 – the last place: a traceback is for --debug alone
            facts, text, status = explain(error)
            if debug and status != INTERRUPTED:
                traceback.print_exc()
        if as_json and status != INTERRUPTED:
            print(json.dumps({"error": facts}))
        print(text, file=sys.stderr)
        raise SystemExit(status)
    return run


def explain(error: BaseException) -> tuple[dict[str, str], str, int]:
    """An error as facts for JSON, as text, and as the exit status."""
    match error:
        case UserError():
            facts = {"code": error.code, "message": error.message, "where": error.where, "hint": error.hint}
            return facts, f"error: {error}", USER
        case MemoryError():
            return {"code": "memory", "message": str(error)}, "error: [memory] there is not enough memory", USER
        case KeyboardInterrupt():
            return {"code": "interrupted", "message": ""}, "interrupted", INTERRUPTED
        case InternalError():
            return {"code": "internal", "message": str(error)}, f"internal error: {error}", INTERNAL
        case _:
            return ({"code": "internal", "message": repr(error)},
                    f"internal error: {error!r} (--debug shows where)", INTERNAL)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def emit(as_json: bool, data: Any, show: Callable[[Console], None]) -> None:
    """Print `data` as JSON, or what `show` prints for people."""
    if as_json:
        print(json.dumps(data, indent=1, default=_plain))
    else:
        console = Console(highlight=False)
        show(console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH))


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A file for a result, of which nothing is left where it cannot be written. Raises UserError "output-file"."""
    try:
        with path.open("wb") as file:
            yield file
    except OSError as error:
        path.unlink(missing_ok=True)
        raise UserError("output-file", f"{path} was not written: {error.strerror or error}", where=str(path),
                        hint="is the folder there and writable, and the disk not full?") from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return str(value)


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> Table:
    """A table; columns whose cells are all numbers (or a dash) stand to the right."""
    out = Table(title=title or None, title_justify="left", show_edge=False, pad_edge=False, box=None)
    for k, heading in enumerate(headings):
        numeric = bool(rows) and all(isinstance(r[k], int | float) or r[k] == "–" for r in rows)
        short = max([len(_cell(r[k])) for r in rows], default=0) <= 20
        out.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric or short, overflow="fold")
    for r in rows:
        out.add_row(*[_cell(c) for c in r])
    return out


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value).replace("[", r"\[")


def facts(rows: Mapping[str, Any]) -> Table:
    """Names and values, one per line."""
    return table(["", ""], [[k, v if isinstance(v, str) else _cell(v)] for k, v in rows.items()])


def size(nbytes: int) -> str:
    """Bytes in binary units."""
    amount, unit = float(nbytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


@contextmanager
def progress(what: str) -> Iterator[Tell]:
    """A bar on standard error while kernels compile; nothing where that is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
