"""Resources of kernels, read from cubins: what the assembler itself says of the same kernels."""
from __future__ import annotations

import ctypes
import re

import pytest

import tilewright
from tests.codegen.clike import stand_ins
from tests.device_cases import CASES
from tilewright.codegen.clike import nvrtc
from tilewright.codegen.clike.cubin import Usage, resource_usage

pytestmark = pytest.mark.skipif(not nvrtc.is_there(), reason="NVRTC is missing: pip install nvidia-cuda-nvrtc-cu12")

GENERATIONS = ("sm_75", "sm_80", "sm_90")
SOURCE = r"""
extern "C" __global__ void indexed(float *x, int n) {
  float a[64];
  for (int i = 0; i < 64; i++) a[i] = x[i * n];
  for (int i = 0; i < n; i++) a[i % 64] *= x[i];
  for (int i = 0; i < 64; i++) x[i * n] = a[(i * 7) % 64];
}
extern "C" __global__ void plain(float *x, const int *p) {
  __shared__ float s[100];
  s[threadIdx.x] = x[p[threadIdx.x]];
  __syncthreads();
  x[threadIdx.x] = s[99 - threadIdx.x];
}
extern "C" __global__ void __launch_bounds__(1024) spilled(float *x) {
  float a[200];
#pragma unroll
  for (int i = 0; i < 200; i++) a[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 200; i++) x[i * 1024 + threadIdx.x] = a[199 - i] * a[i];
}
"""


@pytest.mark.parametrize("generation", GENERATIONS)
def test_usage_is_what_the_assembler_says(generation: str) -> None:
    library, program = nvrtc._library(), ctypes.c_void_p()
    assert library.nvrtcCreateProgram(ctypes.byref(program), SOURCE.encode(), b"k.cu", 0, None, None) == 0
    options = (ctypes.c_char_p * 2)(f"--gpu-architecture={generation}".encode(), b"--ptxas-options=-v")
    assert library.nvrtcCompileProgram(program, 2, options) == 0
    log = nvrtc._bytes(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program).decode()
    got = resource_usage(nvrtc._bytes(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN, program))
    said = re.findall(r"entry function '(\w+)'[^\0]*? (\d+) bytes stack frame[^\0]*?Used (\d+) registers", log)
    assert {name: (int(registers), int(stack)) for name, stack, registers in said} == {k: u[:2] for k, u in got.items()}
    assert got["plain"].stack == 0 < min(got["indexed"].stack, got["spilled"].stack)
    assert got["plain"].shared == 400 + (1024 if generation == "sm_90" else 0)  # the first KiB is the system's from sm_90 on


@pytest.mark.parametrize("case", CASES)
def test_kernels_become_cubins_without_spills(case: str) -> None:
    """One source for all generations, whose limits are the same."""
    made = tilewright.compile(CASES[case](), target="sm_80")
    source = stand_ins.source_of(made)
    products = [k.kernel for k in made.kernels if any(op.op in ("conv", "matmul", "gemm") for op in k.group.operations)]
    assert bool(products) == (case in (
        "product", "products", "convolutions", "mlp", "convnet", "attention", "branches", "while_loop", "integers",
        "recurrences"))
    for generation in GENERATIONS:
        usage = resource_usage(nvrtc.compile_cubin(source, generation))
        assert len(usage) == source.count("__global__")
        for name, used in usage.items():
            assert used.stack == 0 or name.rsplit("_", 1)[0] not in products, (name, used)


def test_what_is_no_kernel_is_not_listed() -> None:
    cubin = nvrtc.compile_cubin('extern "C" __global__ void f(int *x) { *x = 1; }', "sm_80")
    assert resource_usage(cubin) == {"f": Usage(registers=8, stack=0, shared=0)}
