"""The libraries that devices are driven by: where the runtime in C finds them, and whether they open.

In: a device's name. Out: the environment set up for the runtime, which opens the library by the name in it; or what is
missing, and what to install. Saved models need none of this: they read the same environment.
"""
from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from tilewright.core.config import config
from tilewright.runtime import native

HINTS = {
    "opencl": "install the loader and a driver: on Debian ocl-icd-libopencl1 and the GPU's own driver, or pocl-opencl-icd "
              "to run on the CPU",
    "webgpu": "pip install wgpu, whose library TILEWRIGHT_WEBGPU_LIBRARY can name too, and install a driver of Vulkan: the "
              "GPU's own, or on Debian mesa-vulkan-drivers to run on the CPU",
    "cuda": "install NVIDIA's driver, which has libcuda.so.1, and see that nvidia-smi lists the GPU"}
"""What to do where a device does not open."""


def announce(device: str) -> None:
    """Tell the runtime where a device's library is, unless the environment does."""
    if device == "webgpu":
        library = config.webgpu_library or in_wheel()
        if library is not None:
            os.environ["TILEWRIGHT_WEBGPU_LIBRARY"] = str(library)


def in_wheel() -> Path | None:
    """The wgpu-native library of the installed `wgpu` package, which is not imported; None without one."""
    spec = importlib.util.find_spec("wgpu")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("resources/libwgpu_native-release.*"), None)


def problem(device: str) -> str:
    """What keeps a device from opening, in the runtime's words; "" if nothing does."""
    announce(device)
    return native.open_device(device)
