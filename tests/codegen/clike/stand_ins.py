"""Models for devices that are not here, on the CPU: their kernels compiled as C++ against a header that stands in for the
language's library (folder stand_in), their host programs as they are.

In: a model compiled for a target whose language is CUDA C, HIP or Metal. Out: an Executable."""
from __future__ import annotations

import ctypes
import dataclasses
import re
import subprocess
from pathlib import Path

from tilewright.codegen.clike.languages import LANGUAGES
from tilewright.codegen.llvm import jit
from tilewright.model import Model
from tilewright.runtime import native
from tilewright.runtime.module import Executable

FOLDER = Path(__file__).with_name("stand_in")
DRIVER = ("tw_launch", "tw_upload", "tw_download", "tw_move", "tw_replay", "tw_captured")
WORDS = {"cuda": '#include "cuda_words.hpp"\n', "hip": "", "metal": ""}
"""What a source needs in front where the compiler of the language knows words without a header."""
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fno-gnu-unique", "-U_FORTIFY_SOURCE", "-Wno-attributes", "-shared",
         "-fPIC", f"-I{FOLDER}")
HEADS = {"metal": r"kernel void (\w+)\(", "cuda": r"__global__ void .*\n(\w+)\(", "hip": r"__global__ void .*\n(\w+)\("}


def source_of(model: Model) -> str:
    """The module of all kernels of a model, as its device's compiler gets it."""
    assert model.target is not None
    return "\n".join([LANGUAGES[model.target.language].prelude, *[k.source for k in model.stages.kernels.values()]])


def build(source: str, language: str, folder: Path) -> Path:
    """The kernels, and what launches them, as a library."""
    names = re.findall(HEADS[language], source)
    assert len(names) == len(set(names)) and names
    lines = [WORDS[language] + source, "#undef kernel\n#undef device\n#undef constant\n#undef threadgroup",
             '#include "driver.hpp"', *[f"STAND_IN_KERNEL({name})" for name in names]]
    (folder / "kernels.cpp").write_text("\n".join(lines))
    compile_cpp(folder / "kernels.cpp", folder / "kernels.so")
    return folder / "kernels.so"


def compile_cpp(source: Path, library: Path) -> None:
    done = subprocess.run(["g++", *FLAGS, "-o", library, source, "-ldl"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]


def on_cpu(model: Model, folder: Path) -> Executable:
    """The model with the stand-in for its device."""
    assert model.target is not None
    library = ctypes.CDLL(str(build(source_of(model), model.target.language, folder)))
    addresses = {**native.symbol_addresses(),
                 **{name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in DRIVER}}
    code = jit.load(model._objects, addresses)
    descriptor = dataclasses.replace(model.descriptor, device="", image=b"")
    return Executable(descriptor, code.address("tw_main"), model._constants, keep=(library, code))
