"""The CUDA device of this machine: what its driver says of it. In: nothing. Out: its generation and multiprocessors.

Functions and attributes are those of the CUDA driver API's reference manual.
"""
from __future__ import annotations

import ctypes

from tilewright.core.errors import UserError

_MULTIPROCESSORS, _MAJOR, _MINOR = 16, 75, 76


def present_device() -> tuple[int, int]:
    """The compute capability (86 for 8.6) and the number of multiprocessors of the first device. Raises UserError
    "device-missing" where there is no driver or no device."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise _missing(f"no CUDA driver: {error}") from error
    device = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0)
    facts = []
    for which in (_MAJOR, _MINOR, _MULTIPROCESSORS):
        value = ctypes.c_int()
        status = status or driver.cuDeviceGetAttribute(ctypes.byref(value), which, device)
        facts.append(value.value)
    if status:
        raise _missing(f"the CUDA driver has no device: error {status}")
    return 10 * facts[0] + facts[1], facts[2]


def _missing(why: str) -> UserError:
    return UserError("device-missing", f'target "cuda" is the device of this machine, and there is none: {why}',
                     hint='name the generation to compile for: "sm_75", "sm_80", "sm_90", …')
