"""Devices beside the CPU, for tests that run on each of them; those that do not open here are skipped."""
from __future__ import annotations

import ctypes
import os
import re

import numpy as np
import onnx
import pytest

import tilewright
from tests.small_models import inputs, reference
from tilewright.runtime import drivers

if os.environ.get("TILEWRIGHT_LONG") != "1":  # PoCL's optimizer takes longer than small models run
    os.environ.setdefault("TILEWRIGHT_OPENCL_OPTIONS", "-cl-opt-disable")


def has_opencl() -> bool:
    """Whether a platform with a device answers."""
    try:
        library = ctypes.CDLL("libOpenCL.so.1")
    except OSError:
        return False
    number = ctypes.c_uint32()
    return library.clGetPlatformIDs(0, None, ctypes.byref(number)) == 0 and number.value > 0


needs_opencl = pytest.mark.skipif(not has_opencl(), reason="no OpenCL platform: install ocl-icd-libopencl1 and a driver, "
                                  "such as pocl-opencl-icd")
_missing = drivers.problem("webgpu")
needs_webgpu = pytest.mark.skipif(bool(_missing), reason=f"{_missing}: {drivers.HINTS['webgpu']}")

DEVICES = [pytest.param("opencl", marks=needs_opencl), pytest.param("webgpu", marks=needs_webgpu)]
on_devices = pytest.mark.parametrize("target", DEVICES)


def check(m: onnx.ModelProto, target: str, tolerance: float = 1e-5) -> tilewright.Model:
    """Compile for a device, and compare with ONNX Runtime."""
    feeds = inputs(m)
    compiled = tilewright.compile(m, target=target)
    for got, want in zip(compiled.run(feeds), reference(m, feeds), strict=True):
        if np.issubdtype(want.dtype, np.floating):
            assert np.abs(got - want).max(initial=0) <= tolerance * max(1.0, np.abs(want).max(initial=0))
        else:
            np.testing.assert_array_equal(got, want)
    return compiled


def count(compiled: tilewright.Model, what: str) -> int:
    """How many kernels or barriers the text of a model's kernels has."""
    words = {"kernels": "__kernel|^@compute", "barriers": r"\bbarrier\(CLK|workgroupBarrier\("}
    return len(re.findall(words[what], compiled.descriptor.image.decode(), re.MULTILINE))
