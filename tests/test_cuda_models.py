"""A whole ResNet-18 on CUDA: its kernels as cubins of every generation; on a device, where there is one, its numbers."""
from __future__ import annotations

import pytest

import tilewright
from examples.resnet18 import resnet18
from tests.device_cases import assert_close
from tests.runtime.test_cuda import needs_device
from tests.small_models import inputs, reference
from tilewright.codegen.clike import nvrtc
from tilewright.codegen.clike.cubin import resource_usage

pytestmark = pytest.mark.long


@pytest.mark.skipif(not nvrtc.is_there(), reason="NVRTC is missing: pip install nvidia-cuda-nvrtc-cu12")
@pytest.mark.parametrize("generation", ["sm_75", "sm_80", "sm_90"])
def test_kernels_become_cubins_without_spills(generation: str) -> None:
    made = tilewright.compile(resnet18(), target=generation)
    usage = resource_usage(made.descriptor.image)
    assert usage and {name: used for name, used in usage.items() if used.stack} == {}
    assert not [k.label for k in made.kernels if "schedule_fallback" in k.record]


@needs_device
def test_on_a_device() -> None:
    m = resnet18()
    with tilewright.compile(m, target="cuda") as made:
        for seed in range(4):  # launched, captured, replayed
            feeds = inputs(m, seed=seed)
            assert_close(made.run(feeds), reference(m, feeds), 1e-4)
