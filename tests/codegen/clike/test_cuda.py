"""CUDA C: kernels compile to cubins for every generation that has a preset."""
from __future__ import annotations

from typing import Any

import pytest

import tilewright
from tests.loop.lower.test_device import product
from tests.small_models import convnet
from tilewright.codegen.clike import nvrtc
from tilewright.codegen.clike.languages import CUDA
from tilewright.codegen.clike.printer import print_kernels
from tilewright.core.errors import UserError
from tilewright.loop.ir import const, maximum
from tilewright.loop.lower.device_pipeline import device_kernels, lower_for_device
from tilewright.target.presets import get_target
from tilewright.tensor import compute as te
from tilewright.tensor.compute import select
from tilewright.tensor.schedule.schedule import Schedule

needs_nvrtc = pytest.mark.skipif(not nvrtc.is_there(), reason="NVRTC is missing: pip install nvidia-cuda-nvrtc-cu12")


@needs_nvrtc
@pytest.mark.parametrize("generation", ["sm_75", "sm_80", "sm_90"])
def test_a_tiled_product_becomes_a_cubin(generation: str) -> None:
    module = lower_for_device(product().program, get_target(generation))
    source = CUDA.prelude + print_kernels(device_kernels(module), CUDA)
    assert "__syncthreads();" in source and "__shared__" in source
    cubin = nvrtc.compile_cubin(source, generation)
    assert cubin[:4] == b"\x7fELF" and b"product_0" in cubin


@needs_nvrtc
@pytest.mark.parametrize("t", ["f16", "bf16"])
def test_short_floats_become_a_cubin(t: str) -> None:
    """Arithmetic, functions, choices, conversions and vectors of 16-bit floats."""
    a, b, n = te.placeholder((64, 64), t, "A"), te.placeholder((64, 64), t, "B"), te.placeholder((64,), "i32", "N")

    def value(i: Any, j: Any) -> Any:
        x = a[i, j]
        y = te.exp(-x * b[i, j]) + maximum(x, const(0.5, x)) + n[j].cast(t)
        return select(y < x, y.cast("i32").cast(t), y / const(3, x))

    c = te.compute((64, 64), value, name="C")
    sch = Schedule(te.create_program("f", [a, b, n], [c]))
    i, j = sch.loops(sch.block("C"))
    copy = sch.cache_read(sch.block("C"), "A", "shared")
    sch.compute_at(copy, i)
    sch.vectorize(sch.split(sch.loops(copy)[2], [None, 8])[1])
    sch.bind(i, "blockIdx.x")
    sch.bind(j, "threadIdx.x")
    source = print_kernels(device_kernels(lower_for_device(sch.program, get_target("sm_75"))), CUDA)
    assert f"tw_{t}8" in source
    assert nvrtc.compile_cubin(CUDA.prelude + source, "sm_75")[:4] == b"\x7fELF"


@needs_nvrtc
@pytest.mark.parametrize("dtype", ["i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "f32", "f64"])
def test_wide_copies_of_every_type(dtype: str) -> None:
    """The names of vectors are other ones than those of numbers."""
    a = te.placeholder((64, 64), dtype, "A")
    sch = Schedule(te.create_program("f", [a], [te.compute((64, 64), lambda i, j: a[i, j], name="B")]))
    i, j = sch.loops(sch.block("B"))
    _, lanes = sch.split(j, [None, 4])
    sch.vectorize(lanes)
    sch.bind(i, "threadIdx.x")
    source = CUDA.prelude + print_kernels(device_kernels(lower_for_device(sch.program, get_target("sm_80"))), CUDA)
    assert "4 *)((B + " in source and nvrtc.compile_cubin(source, "sm_80")


@needs_nvrtc
def test_a_rejected_source_says_why() -> None:
    source = """\
extern "C" __global__ void
f(float *a) {
  const int i = (int)blockIdx.x;
  for (int j = 0; j < 3; ++j) {
    const int k = (int)threadIdx.x;
    if (k < 2) {
      a[k] = b[j];
    } else {
      a[k] = 1.0f;
    }
  }
}
"""
    with pytest.raises(UserError, match=r'device-source.* identifier "b" is undefined') as error:
        nvrtc.compile_cubin(source, "sm_80")
    assert error.value.where == "line 7, in the loops i, j, k of f: a[k] = b[j];"


def test_a_missing_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "_files", lambda: [])
    nvrtc._library.cache_clear()
    with pytest.raises(UserError, match="nvrtc-missing"):
        nvrtc.compile_cubin("", "sm_80")
    nvrtc._library.cache_clear()


@needs_nvrtc
def test_a_whole_model_becomes_a_cubin() -> None:
    """Without a device to run on, a model can be compiled and inspected."""
    compiled = tilewright.compile(convnet(), target="sm_80")
    assert compiled.descriptor.image[:4] == b"\x7fELF"
