"""LLVM code generation, in-process loading: object files become callable addresses, by LLVM's ORC."""
from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from tilewright.codegen.llvm.calls import LIBRARY
from tilewright.core.errors import InternalError, UserError
from tilewright.loop.externs import ExternFunction

_NUMBERS = itertools.count()


@functools.cache
def _jit() -> Any:
    """The process's ORC instance; it lives as long as the process."""
    import llvmlite.binding as llvm
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.create_lljit_compiler(use_jit_link=True)


@functools.cache
def library_addresses() -> dict[str, int]:
    """Addresses of the C library's functions that generated code may call, as far as the system has them."""
    out: dict[str, int] = {}
    libraries = [ctypes.CDLL(None)]
    try:
        libraries.append(ctypes.CDLL("libm.so.6"))
    except OSError:
        pass  # a system whose C library includes the mathematics
    for name in LIBRARY:
        for library in libraries:
            if hasattr(library, name):
                out[name] = ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
                break
    return out


@functools.cache
def _opened(path: str) -> ctypes.CDLL:
    """A shared object, which stays loaded; "" is what the process has."""
    return ctypes.CDLL(path or None)


def extern_addresses(functions: Iterable[ExternFunction]) -> dict[str, int]:
    """Where external functions are in this process. Raises UserError "extern-unresolved"."""
    out: dict[str, int] = {}
    for f in functions:
        try:
            out[f.symbol] = ctypes.cast(getattr(_opened(f.library), f.symbol), ctypes.c_void_p).value or 0
        except (OSError, AttributeError) as e:
            where = f.library or "what this process has loaded"
            why = f"it cannot be loaded: {e}" if isinstance(e, OSError) else "there is no such symbol in it"
            raise UserError("extern-unresolved", f"the external function {f.symbol} was not found in {where}: {why}",
                            hint=f"name its shared object, extern_function({f.symbol!r}, 'path/of/lib.so'); build one "
                            "with cc -shared -fPIC (and extern \"C\" in C++)") from e
    return out


class Library:
    """Loaded code. Addresses are valid until `close`; a context manager."""

    def __init__(self, tracker: Any, name: str) -> None:
        self._tracker, self._name = tracker, name
        self._found: dict[str, Any] = {}

    def address(self, name: str) -> int:
        """The address of a function. Raises InternalError if the objects define none of that name."""
        if self._tracker is None:
            raise InternalError(f"{name}: the library is closed")
        if name not in self._found:
            try:
                self._found[name] = _jit().lookup(self._name, name)
            except RuntimeError as e:
                raise InternalError(f"no function {name} in the loaded objects: {e}") from e
        return int(self._found[name][name])

    def close(self) -> None:
        """Unload the code. Its addresses must not be called again."""
        for t in (*self._found.values(), *([self._tracker] if self._tracker is not None else [])):
            t.close()
        self._found, self._tracker = {}, None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def load(objects: Iterable[bytes], symbols: Mapping[str, int] | None = None) -> Library:
    """Link objects in this process. `symbols`: addresses of the runtime's functions that they call.

    Code is linked when an address is first asked for: a symbol that is defined nowhere is reported then (its name on
    standard error, by LLVM). Raises InternalError if a symbol is defined twice.
    """
    import llvmlite.binding as llvm
    builder = llvm.JITLibraryBuilder()
    for o in objects:
        builder.add_object_img(o)
    for name, at in {**library_addresses(), **(symbols or {})}.items():
        builder.import_symbol(name, at)
    library = f"tilewright{next(_NUMBERS)}"
    try:
        return Library(builder.link(_jit(), library), library)
    except RuntimeError as e:
        raise InternalError(f"the objects do not link: {e}") from e
