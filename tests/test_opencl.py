"""What only OpenCL does: 64-bit integers and floats are computed as such. Whole models are in test_devices.py."""
from __future__ import annotations

import numpy as np
import onnx

from tests import small_models
from tests.devices import check, needs_opencl
from tests.small_models import model


@needs_opencl
def test_wide_integers() -> None:
    check(small_models.integers(), "opencl")


@needs_opencl
def test_places_in_double_precision() -> None:
    check(linear_resize(), "opencl")


def linear_resize() -> onnx.ModelProto:
    return model("""f (float[2,3,13,11] x) => (float[2,3,26,22] y) { y = Resize<mode = "linear">(x, , scales) }""",
                 scales=np.array([1, 1, 2, 2], np.float32))
