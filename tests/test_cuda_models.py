"""Whole networks on CUDA: their kernels as cubins of every generation; on a device, where there is one, their numbers."""
from __future__ import annotations

import pytest

import tilewright
from tests.device_cases import assert_close
from tests.networks import NETWORKS, feeds
from tests.runtime.test_cuda import needs_device
from tests.small_models import reference
from tilewright.codegen.clike import nvrtc
from tilewright.codegen.clike.cubin import resource_usage

pytestmark = pytest.mark.long


@pytest.mark.skipif(not nvrtc.is_there(), reason="NVRTC is missing: pip install nvidia-cuda-nvrtc-cu12")
@pytest.mark.parametrize("generation", ["sm_75", "sm_80", "sm_90"])
@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_become_cubins_without_spills(name: str, generation: str) -> None:
    """The assembler's own word: no kernel of a network has a stack, where registers would be spilled to."""
    made = tilewright.compile(NETWORKS[name](), target=generation)
    usage = resource_usage(made.descriptor.image)
    assert len(usage) >= len({k.kernel for k in made.kernels})
    assert {name: used for name, used in usage.items() if used.stack} == {}
    assert not [k.label for k in made.kernels if "schedule_fallback" in k.record]


@needs_device
@pytest.mark.parametrize("name", NETWORKS)
def test_on_a_device(name: str) -> None:
    m = NETWORKS[name]()
    with tilewright.compile(m, target="cuda") as made:
        for seed in range(4):  # launched, captured, replayed
            given = feeds(m, seed)
            assert_close(made.run(given), reference(m, given), 1e-4)
