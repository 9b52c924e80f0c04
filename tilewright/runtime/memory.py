"""Memory that NumPy arrays can view: page-aligned blocks for weights, and blocks that the C runtime handed over.

In: sizes or addresses. Out: uint8 arrays whose memory is given back when the last view of it is gone.
"""
from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from tilewright.runtime import native

Array = np.ndarray[Any, Any]

_ALIGNED_OUTPUT_BYTES = 4096
_KEPT_OUTPUT_BYTES = 1 << 17
"""From here on malloc maps new pages for each block, and every page costs a fault."""


def adopt(address: int, nbytes: int, release: Callable[..., Any], *arguments: Any) -> Array:
    """A writable uint8 array [nbytes] over foreign memory; `release(*arguments)` runs when its last view is gone."""
    block = (ctypes.c_uint8 * nbytes).from_address(address)
    weakref.finalize(block, release, *arguments).atexit = False  # a process that ends gives everything back anyway
    return np.frombuffer(memoryview(block).cast("B"), np.uint8)


def aligned(nbytes: int) -> Array:
    """A zeroed uint8 array [nbytes] in pages of its own: 2 MiB aligned and on huge pages where possible, from 4 MiB on.

    Where weights belong: an `Executable` uses such an array without copying it. Raises MemoryError.
    """
    address = native.map_pages(nbytes)
    return adopt(address, nbytes, native.unmap_pages, address, nbytes)


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """np.empty, but aligned to a cache line when large: NumPy's own blocks begin 16 bytes into one. Very large ones are used
    again when they are gone (`native/outputs.c`)."""
    nbytes = dtype.itemsize
    for extent in shape:
        nbytes *= extent
    if nbytes < _ALIGNED_OUTPUT_BYTES:
        return np.empty(shape, dtype)
    if nbytes >= _KEPT_OUTPUT_BYTES:
        address = native.take_block(nbytes)
        return adopt(address, nbytes, native.release_block, address).view(dtype).reshape(shape)
    block = np.empty(nbytes + native.ALIGNMENT, np.uint8)
    skip = -address_of(block) % native.ALIGNMENT
    return block[skip:skip + nbytes].view(dtype).reshape(shape)


def address_of(array: Array) -> int:
    """The address of an array's first element (three times faster than `array.ctypes.data`)."""
    address: int = array.__array_interface__["data"][0]
    return address
