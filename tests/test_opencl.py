"""What only OpenCL does: 64-bit integers are computed as such. Whole models are in test_devices.py."""
from __future__ import annotations

from tests import small_models
from tests.devices import check, needs_opencl


@needs_opencl
def test_wide_integers() -> None:
    check(small_models.integers(), "opencl")
