"""CUDA C to a cubin, by NVIDIA's run-time compiler out of its wheel (`pip install nvidia-cuda-nvrtc-cu12`): no GPU, driver
or toolkit is needed for that.

In: the source of a module and the generation ("sm_80"). Out: the cubin's bytes. Functions are those of the NVRTC
documentation (chapter "Basic usage").
"""
from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path
from typing import Any

from tilewright.core.errors import UserError
from tilewright.core.source_lines import rejected_line


def is_there() -> bool:
    """Whether the compiler is installed."""
    return bool(_files())


def compile_cubin(source: str, generation: str) -> bytes:
    """The code of a module for a generation of devices. Raises UserError "nvrtc-missing"; "device-source", with the
    compiler's first words, for a source that it rejects."""
    library = _library()
    program = ctypes.c_void_p()
    _check(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None), source)
    try:
        options = (ctypes.c_char_p * 2)(f"--gpu-architecture={generation}".encode(), b"--fmad=true")
        status = library.nvrtcCompileProgram(program, len(options), options)
        if status:
            words = _text(library, program)
            raise UserError("device-source", f"NVRTC rejects a kernel: {words}", where=rejected_line(source, words),
                            hint="this is likely a fault of the compiler: please report it with the model")
        return _bytes(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN, program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _text(library: Any, program: Any) -> str:
    log = _bytes(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program).decode(errors="replace")
    errors = [line for line in log.splitlines() if "error" in line]
    return "; ".join(errors[:3]) or log[:400]


def _bytes(size_of: Any, get: Any, program: Any) -> bytes:
    size = ctypes.c_size_t()
    _check(size_of(program, ctypes.byref(size)), "")
    data = ctypes.create_string_buffer(max(1, size.value))
    _check(get(program, data), "")
    return data.raw[:size.value]


def _check(status: int, source: str) -> None:
    if status:
        raise UserError("device-source", f"NVRTC failed with status {status} on a module of {len(source)} characters")


def _files() -> list[Path]:
    """The library's file in the wheel."""
    try:
        spec = importlib.util.find_spec("nvidia.cuda_nvrtc")
    except ModuleNotFoundError:
        return []
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return sorted(f for place in places for f in Path(place, "lib").glob("libnvrtc.so.*[0-9]"))


@functools.cache
def _library() -> Any:
    files = _files()
    if not files:
        raise UserError("nvrtc-missing", "CUDA kernels need NVIDIA's run-time compiler",
                        hint="pip install nvidia-cuda-nvrtc-cu12")
    return ctypes.CDLL(str(files[0]))
