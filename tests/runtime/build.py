"""Models for the runtime's tests: C snippets stand in for generated code, through the same ABI."""
from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np

from tilewright.core.dtype import f32
from tilewright.runtime import native
from tilewright.runtime.descriptor import Descriptor, TensorSpec
from tilewright.runtime.module import Executable

# y = x * consts[0] + consts[1] over 1000 elements, one task per 10.
SCALE = """
#include "tilewright_abi.h"
struct closure { const float *x; float *y; const float *c; };
static int32_t body(tw_ctx *ctx, void *p, int64_t begin, int64_t end) {
  struct closure *k = p;
  for (int64_t i = begin * 10; i < end * 10; ++i) k->y[i] = k->x[i] * k->c[0] + k->c[1];
  return TW_OK;
}
int32_t tw_main(tw_ctx *ctx, void *const *in, void *const *out) {
  struct closure k = {in[0], out[0], (const float *)ctx->consts};
  tw_profile_begin(ctx, 0);
  int32_t status = tw_parallel(ctx, body, &k, 100);
  tw_profile_end(ctx, 0);
  tw_tap(ctx, 7, out[0], 4000);
  return status;
}
"""
VECTOR = TensorSpec("x", f32, (1000,))
SCALE_MODEL = Descriptor("scale", (VECTOR,), (TensorSpec("y", f32, (1000,)),), kernels=("scale",))
SCALE_CONSTS = np.array([2, 1], np.float32)


def compile_c(source: str, flags: Iterable[str] = ()) -> bytes:
    """The object file of a C snippet."""
    compiler = shutil.which("cc")
    assert compiler, "these tests need a C compiler"
    with tempfile.TemporaryDirectory() as folder:
        code, result = Path(folder, "code.c"), Path(folder, "code.o")
        code.write_text(source)
        subprocess.run([compiler, "-O2", "-fPIC", f"-I{native.NATIVE_FOLDER}", *flags, "-c",
                        "-o", str(result), str(code)], check=True)
        return result.read_bytes()


def load(source: str, descriptor: Descriptor, consts: Any = None, **options: Any) -> Executable:
    """The snippet as an in-process model, linked by the JIT that compiled models use."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    jit = llvm.create_lljit_compiler()
    library = llvm.JITLibraryBuilder().add_object_img(compile_c(source, ["-fvisibility=default"]))
    library.export_symbol("tw_main")
    for name, address in native.symbol_addresses().items():
        library.import_symbol(name, address)
    process = ctypes.CDLL(None)
    for name in ("memset", "memcpy", "usleep"):
        library.import_symbol(name, ctypes.cast(getattr(process, name), ctypes.c_void_p).value)
    tracker = library.link(jit, descriptor.name)
    return Executable(descriptor, tracker["tw_main"], consts, keep=(jit, tracker), **options)


def scale(**options: Any) -> Executable:
    return load(SCALE, SCALE_MODEL, SCALE_CONSTS, **options)
