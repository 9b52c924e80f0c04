"""Saved models. In: object files, a descriptor and weights. Out: one shared library and its C header; and back.

Loading runs the library's code, as any `dlopen` does: load only files that you trust.
"""
from __future__ import annotations

import _ctypes
import contextlib
import ctypes
import os
import platform
import shutil
import struct
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tilewright.core.errors import UserError
from tilewright.runtime import native
from tilewright.runtime.cache import Cache
from tilewright.runtime.descriptor import Descriptor, from_struct
from tilewright.runtime.export import c_header, c_source, symbol_prefix, version_script, weights_stub
from tilewright.runtime.memory import Array
from tilewright.runtime.module import Executable
from tilewright.runtime.toolchain import architecture_flags, find_compiler, run_compiler, runtime_objects

_LINK_FLAGS = ("-shared", "-Wl,--version-script=exports", "-Wl,-z,noexecstack", "-Wl,-z,now", "-Wl,-z,relro",
               "-Wl,--no-undefined", "-pthread", "-ldl", "-lm")
_MACHINES = {3: "i386", 8: "MIPS", 40: "ARM", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_HOST_MACHINES = {"x86_64": 62, "AMD64": 62, "aarch64": 183, "arm64": 183, "riscv64": 243}


def save(path: str | Path, objects: Sequence[bytes], descriptor: Descriptor, consts: Array | Path | None = None, *,
         triple: str | None = None, cache: Cache | None = None, libraries: Sequence[str] = ()) -> Path:
    """Writes `path`, one shared library with everything that the model needs, and its C header beside it.

    `objects`: object files, one of which defines tw_main. `consts`: the weights, or a file of them. `triple`: the
    machine that the objects were made for, None for this one. The files appear whole or not at all; the header has the
    library's name with ".h", and the functions' names begin with it. `libraries`: shared objects that the objects call,
    as paths or as names for the dynamic linker; they stay files of their own, looked for where they are now. Returns the
    header's path.
    Raises UserError "save-failed" (disk full, folder missing, …), "save-host-call", "save-name", "no-compiler".
    """
    path = Path(path)
    prefix = symbol_prefix(path.stem)
    if descriptor.host_count:
        names = descriptor.metadata.get("host_calls") or [f"number {i}" for i in range(descriptor.host_count)]
        raise UserError("save-host-call", f"{descriptor.name} calls back into Python ({', '.join(map(str, names))}): "
                        "such a model runs only in the process that compiled it", where=descriptor.name,
                        hint="replace those operators by ones that compile")
    compiler = find_compiler(triple)
    with _failures(path), _build_folder(path) as folder:
        parts = {**runtime_objects(compiler, triple, cache or Cache()),
                 **{f"model{i}": data for i, data in enumerate(objects)}}
        for name, data in parts.items():
            (folder / f"{name}.o").write_bytes(data)
        size = _write_weights(folder / "weights", consts)
        (folder / "weights.s").write_text(weights_stub("weights"))
        (folder / "descriptor.c").write_text(c_source(descriptor, prefix, size))
        (folder / "exports").write_text(version_script(prefix))
        run_compiler([*compiler, "-c", "-o", "weights.o", "weights.s"], folder, "placing the weights")
        (folder / "weights").unlink()
        placed = ["weights.o"]
        if descriptor.device:
            (folder / "image").write_bytes(descriptor.image)
            (folder / "image.s").write_text(weights_stub("image", "image"))
            run_compiler([*compiler, "-c", "-o", "image.o", "image.s"], folder, "placing the kernels")
            placed.append("image.o")
        run_compiler([*compiler, "-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", *architecture_flags(compiler, triple),
                      f"-I{native.NATIVE_FOLDER}", "-o", "library", "descriptor.c", *placed,
                      *(f"{name}.o" for name in parts), *_linked(libraries), *_LINK_FLAGS], folder, "linking")
        (folder / "header").write_text(c_header(descriptor, prefix))
        header = path.with_suffix(".h")
        _publish(folder / "header", header)
        _publish(folder / "library", path)
    return header


def load(path: str | Path, *, threads: int | None = None) -> Executable:
    """The model of a saved library, ready to run. None of the model's code runs before the CPU is known to have what it
    needs. `threads` as for `Executable`.

    Raises UserError "artifact-missing", "artifact-invalid", "artifact-version", "artifact-cpu", "threads-invalid".
    """
    path = Path(path)
    _check_file(path)
    try:
        library = ctypes.CDLL(os.path.abspath(path))
    except OSError as error:
        raise _invalid(path, str(error)) from error
    try:
        runtime = native.Runtime(library, str(path))
    except AttributeError as error:
        raise _invalid(path, "it has no tilewright_runtime") from error
    # Outputs may outlive the model and are freed by its runtime, which holds the library for as long.
    weakref.finalize(runtime, _ctypes.dlclose, library._handle).atexit = False
    if runtime.model is None:
        raise _invalid(path, "it is Tilewright's runtime without a model")
    if runtime.model.abi_version != native.ABI_VERSION:
        raise UserError("artifact-version", f"the model was made for version {runtime.model.abi_version} of the "
                        f"runtime, this is {native.ABI_VERSION}", where=str(path), hint="compile the model again")
    return Executable.from_library(from_struct(runtime.model, runtime), runtime, threads=threads)


# ---- writing ----
@contextlib.contextmanager
def _failures(path: Path) -> Iterator[None]:
    """The system's refusals as UserErrors that name the file."""
    try:
        yield
    except OSError as error:
        raise UserError("save-failed", f"{path} was not written: {error.strerror or error}", where=str(path),
                        hint="is the folder there and writable, and the disk not full?") from error


@contextlib.contextmanager
def _build_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` (on one disk with it, so that a rename is enough) that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.absolute().parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_weights(target: Path, consts: Array | Path | None) -> int:
    """Writes the weights' bytes and returns how many; a model without any has one line of zeros to point at."""
    if isinstance(consts, Path):
        shutil.copyfile(consts, target)
        return target.stat().st_size
    if consts is None or consts.nbytes == 0:
        target.write_bytes(bytes(native.ALIGNMENT))
        return 0
    with target.open("wb") as file:
        file.write(np.ascontiguousarray(consts).reshape(-1).view(np.uint8).data)
    return consts.nbytes


def _linked(libraries: Sequence[str]) -> list[str]:
    """The linker's words for shared objects."""
    out: list[str] = []
    for name in dict.fromkeys(libraries):
        folder, file = os.path.split(name)
        where = os.path.abspath(folder)
        out += [f"-L{where}", f"-Wl,-rpath,{where}", f"-l:{file}"] if folder else [f"-l:{file}"]
    return out


def _publish(file: Path, target: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
    os.replace(file, target)


# ---- reading ----
def _invalid(path: Path, why: str) -> UserError:
    return UserError("artifact-invalid", f"{path} is not a library saved by Tilewright: {why}", where=str(path),
                     hint="model.save(\"net.so\") makes one")


def _check_file(path: Path) -> None:
    """Refuses what the dynamic linker would run or crash on: other files, other machines, truncated libraries.

    Reads the ELF header, its segments and the names of its symbols (System V ABI, chapter 4 and 5).
    """
    if not path.is_file():
        raise UserError("artifact-missing", f"there is no file {path}", where=str(path))
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(64)
        if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
            raise _invalid(path, "it is no 64-bit ELF file")
        kind, machine = struct.unpack_from("<HH", header, 16)
        host = _HOST_MACHINES.get(platform.machine())
        if kind != 3:
            raise _invalid(path, "it is no shared library")
        if machine != host:
            raise UserError("artifact-cpu", f"{path} was made for {_MACHINES.get(machine, f'machine {machine}')}, "
                            f"this is {platform.machine()}", where=str(path), hint="compile the model for this machine")
        programs, sections = struct.unpack_from("<QQ", header, 32)
        program_size, program_count, section_size, section_count = struct.unpack_from("<HHHH", header, 54)
        if max(programs + program_size * program_count, sections + section_size * section_count) > size:
            raise _invalid(path, "it is truncated")
        if program_size != 56 or section_size != 64:
            raise _invalid(path, "its tables are broken")
        file.seek(programs)
        for _ in range(program_count):
            offset, length = struct.unpack_from("<8xQ16xQ", file.read(56))
            if offset + length > size:
                raise _invalid(path, "it is truncated")
        file.seek(sections)
        table = [struct.unpack("<IIQQQQIIQQ", file.read(64)) for _ in range(section_count)]
        for row in table:
            dynamic_symbols = row[1] == 11
            if dynamic_symbols and row[6] < len(table):
                names = table[row[6]]
                file.seek(names[4])
                if b"\0tilewright_runtime\0" in file.read(min(names[5], size)):
                    return
    raise _invalid(path, "it has no tilewright_runtime")
