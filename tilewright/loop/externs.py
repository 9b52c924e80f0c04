"""External C functions as values: the name by which a program calls one, where code finds it, what stands in for it.

    saxpy = extern_function("saxpy", "libown.so", reference=lambda x, y, n, a: y.__setitem__(slice(n), a * x[:n]))

Programs name functions by symbol (`ExternCall`); this is the table behind the names. In this process the address comes from
the shared object, or without one from what the process has loaded; a saved library is linked with the shared object.

The loop interpreter runs no machine code: it calls `reference`, a Python function that gets what the C function gets, for
an address a flat array of what lies from there on, and for a function with a status returns that.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from tilewright.core.errors import UserError
from tilewright.core.node import Node, walk
from tilewright.loop.ir import ExternCall

EXTERN_FAILED = 5
"""TW_ERROR_HOST_CALL of tilewright.h: what a run returns when a function with a status did not return 0."""
_C_NAME = re.compile(r"[A-Za-z_]\w*\Z", re.ASCII)


@dataclass(frozen=True)
class ExternFunction:
    """A C function: see this file's head. `library`: path or name of its shared object, "" for what the process has."""
    symbol: str
    library: str = ""
    status: bool = False
    reference: Callable[..., Any] | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return f"<extern {self.symbol}{f' of {self.library}' if self.library else ''}>"


_KNOWN: dict[str, ExternFunction] = {}


def extern_function(symbol: str, library: Any = "", *, status: bool = False,
                    reference: Callable[..., Any] | None = None) -> ExternFunction:
    """Declare a C function. `library`: its shared object (a path, or a name that the dynamic linker finds), by default what
    the process has loaded already; `status`: it returns an int, and the run fails unless that is 0 (else what it returns
    is not looked at); `reference`: what the loop interpreter calls in its place.

    Raises UserError "extern-declaration": no name of C, or a function that was declared otherwise before.
    """
    made = ExternFunction(symbol, str(library), status, reference)
    if not isinstance(symbol, str) or not _C_NAME.match(symbol) or symbol.startswith("tw_"):
        raise UserError("extern-declaration", f"{symbol!r} cannot be an external function", hint="give the name of a C "
                        "function; those that begin with tw_ are the runtime's")
    known = _KNOWN.get(symbol)
    if known is not None and known != made:
        raise UserError("extern-declaration", f"the external function {symbol} was declared before, as {known!r}"
                        f"{' with a status' if known.status else ''}", hint="programs name functions by symbol: two of one "
                        "name cannot be told apart")
    if known is not None and reference is None:
        made = replace(made, reference=known.reference)
    _KNOWN[symbol] = made
    return made


def extern_named(symbol: str) -> ExternFunction:
    """The function of a symbol; one that nobody declared is a function of the process."""
    return _KNOWN.get(symbol, ExternFunction(symbol))


def externs_of(roots: Iterable[Node]) -> list[ExternFunction]:
    """The functions that programs call, each once, in order."""
    symbols = dict.fromkeys(n.symbol for root in roots for n in walk(root) if isinstance(n, ExternCall))
    return [extern_named(name) for name in symbols]


def refuse_on_device(roots: Iterable[Node], target: str) -> None:
    """UserError "device-extern" if a program for a device calls a function of the host."""
    found = externs_of(roots)
    if found:
        raise UserError("device-extern", f"{found[0].symbol} is a function of the host: kernels for {target} cannot call it",
                        hint="choose a CPU as target, or write the stage in the compute or the kernel language")
