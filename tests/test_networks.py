"""Whole networks, full size, on drivers that run kernels on the CPU: every result beside ONNX Runtime's. CUDA has
test_cuda_models.py."""
from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import pytest

import tilewright
from tests.device_cases import assert_close
from tests.devices import on_devices
from tests.networks import NETWORKS, feeds
from tests.small_models import reference

pytestmark = pytest.mark.long

Arrays = list[np.ndarray[Any, Any]]


@functools.lru_cache(maxsize=1)
def network(name: str) -> tuple[onnx.ModelProto, dict[str, Any], Arrays]:
    """A model, its inputs, and what ONNX Runtime gives."""
    m = NETWORKS[name]()
    given = feeds(m)
    return m, given, reference(m, given)


@on_devices
@pytest.mark.parametrize("name", NETWORKS)
def test_on_a_device(name: str, target: str) -> None:
    """WebGPU within the limits that every device has."""
    m, given, want = network(name)
    with tilewright.compile(m, target=target) as made:
        assert not [k.label for k in made.kernels if "schedule_fallback" in k.record]
        assert_close(made.run(given), want, 2e-5)
