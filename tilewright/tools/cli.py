"""The command `tilewright`. In: the process's arguments. Out: an exit status (0 right, 1 results differ, 2 the user's fault,
3 the compiler's, 130 interrupted).

Typer and Rich are an optional extra, so the commands' modules are loaded here, when the command line is used.
"""
from __future__ import annotations

import importlib
import signal
import sys
from typing import Any


def keep_interrupts() -> None:
    """See that no Ctrl-C is lost: Python drops an exception that is raised within a callback of its garbage collection, so
    a KeyboardInterrupt that met this fate is raised again a moment later."""
    def again(args: Any) -> None:
        if issubclass(args.exc_type, KeyboardInterrupt):
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            sys.__unraisablehook__(args)
    sys.unraisablehook = again


def app() -> None:
    """Run the command line."""
    keep_interrupts()
    try:
        commands = importlib.import_module("tilewright.tools.commands")
    except ModuleNotFoundError as missing:
        if missing.name not in ("typer", "rich", "click"):
            raise
        print(f"the command line needs {missing.name}: pip install 'tilewright[cli]'", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    commands.app(prog_name="tilewright")


if __name__ == "__main__":
    app()
