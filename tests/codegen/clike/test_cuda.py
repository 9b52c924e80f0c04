"""CUDA C: kernels compile to cubins for every generation that has a preset."""
from __future__ import annotations

import pytest

import tilewright
from tests.loop.lower.test_device import product
from tests.small_models import convnet
from tilewright.codegen.clike import nvrtc
from tilewright.codegen.clike.languages import CUDA
from tilewright.codegen.clike.printer import print_kernels
from tilewright.core.errors import UserError
from tilewright.loop.lower.device_pipeline import device_kernels, lower_for_device
from tilewright.target.presets import get_target

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
def test_a_rejected_source_says_why() -> None:
    with pytest.raises(UserError, match="device-source") as error:
        nvrtc.compile_cubin("nonsense", "sm_80")
    assert "error" in str(error.value)


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
