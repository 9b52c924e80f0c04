"""Builds the C runtime into tilewright/runtime/_native*.so; everything else is in pyproject.toml."""
from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("tilewright/runtime/native")

# A plain shared library, loaded by ctypes (`tilewright.runtime.native`): it exports C functions and no Python module.
setup(
    ext_modules=[
        Extension(
            "tilewright.runtime._native",
            sources=[str(path) for path in sorted(NATIVE.glob("*.c"))],
            depends=[str(path) for path in sorted(NATIVE.glob("*.h"))],
            include_dirs=[str(NATIVE)],
            extra_compile_args=["-std=gnu11", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra"],
            extra_link_args=["-pthread", "-ldl"],
        )
    ],
)
