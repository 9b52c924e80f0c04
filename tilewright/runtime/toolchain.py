"""The system's C compiler, as a linker and as the compiler of the runtime in C. In: sources and flags. Out: objects.

Only saving needs one; in-process models are linked by LLVM's JIT.
"""
from __future__ import annotations

import hashlib
import importlib.util
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tilewright.core.errors import UserError
from tilewright.runtime.cache import Cache
from tilewright.runtime.native import NATIVE_FOLDER

_FLAGS = ("-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", "-DTW_SAVED_MODEL")


def find_compiler(triple: str | None = None) -> list[str]:
    """The command of a C compiler for `triple` (None: this machine): the system's `cc`, or its cross compiler (named as
    GCC's are: aarch64-linux-gnu-gcc), else ziglang's. Raises UserError "no-compiler".
    """
    if triple is None or _is_host(triple):
        for name in ("cc", "gcc", "clang"):
            path = shutil.which(name)
            if path is not None:
                return [path]
    else:
        path = shutil.which(f"{_short_triple(triple)}-gcc")
        if path is not None:
            return [path]
    if importlib.util.find_spec("ziglang") is not None:
        command = [sys.executable, "-m", "ziglang", "cc"]
        return command if triple is None else [*command, "-target", _short_triple(triple)]
    what = "there is no C compiler to link with" if triple is None else f"there is no C compiler for {triple}"
    raise UserError("no-compiler", f"{what}: saving a model needs one, running it does not",
                    hint=("install gcc or clang" if triple is None else f"install {_short_triple(triple)}-gcc")
                    + ", or `pip install ziglang`")


def run_compiler(command: Sequence[str], folder: Path, what: str) -> None:
    """Runs a compiler in `folder`. Raises UserError "save-failed" with what it said."""
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    if result.returncode != 0:
        said = result.stderr.strip()[-2000:] or f"exit status {result.returncode}"
        raise UserError("save-failed", f"{what} failed: {said}", hint="is the disk full, or the compiler incomplete?")


def architecture_flags(compiler: Sequence[str], triple: str | None) -> list[str]:
    """Flags that hold the runtime to the plainest CPU of its kind: it must run before it can say what is missing."""
    if "ziglang" in compiler:
        return ["-mcpu=baseline"]
    machine = platform.machine() if triple is None else triple.split("-")[0]
    return ["-march=x86-64"] if machine in ("x86_64", "AMD64") else []


def runtime_objects(compiler: Sequence[str], triple: str | None, cache: Cache) -> dict[str, bytes]:
    """Object files of the runtime, by name; from the cache if these sources met this compiler before."""
    command = [*compiler, *_FLAGS, *architecture_flags(compiler, triple)]
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=False).stdout
    base = hashlib.sha256("\0".join(command).encode() + version)
    for header in sorted(NATIVE_FOLDER.glob("*.h")):
        base.update(header.read_bytes())
    objects = {}
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        for source in sorted(NATIVE_FOLDER.glob("*.c")):
            digest = base.copy()
            digest.update(source.read_bytes())
            key = digest.hexdigest()
            data = cache.get(key)
            if data is None:
                result = Path(folder, source.stem + ".o")
                run_compiler([*command, "-c", "-o", str(result), str(source)], Path(folder), f"compiling {source.name}")
                data = result.read_bytes()
                cache.put(key, data)
            objects[source.stem] = data
    return objects


def _is_host(triple: str) -> bool:
    machine, *rest = triple.split("-")
    here = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    return machine == here and any(part.startswith(sys.platform) for part in rest)


def _short_triple(triple: str) -> str:
    """LLVM's x86_64-unknown-linux-gnu is x86_64-linux-gnu to Zig and in the names of cross compilers."""
    return "-".join(part for part in triple.split("-") if part not in ("unknown", "pc"))
