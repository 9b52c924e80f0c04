"""The analytic cost model: a roofline over a target's facts, in seconds on one core.

In: floating-point operations and bytes moved, from which level of memory. Out: seconds. It ranks alternatives (direct or
Winograd convolution, tile shapes); it does not predict absolute times.
"""
from __future__ import annotations

from tilewright.target.target import Target

FREQUENCY = 4e9
"""Cycles per second of a core under vector load: an assumption, the same for every alternative that is compared."""

CACHE_BYTES_PER_CYCLE = 20.0
"""What one core moves between its second-level cache and the registers in streaming kernels."""


def flops_per_second(target: Target) -> float:
    """Peak of one core in f32: a fused multiply-add counts two."""
    return 2.0 * target.lanes(32) * target.fma_units * FREQUENCY


def roofline(flops: float, target: Target, *, cached_bytes: float = 0.0, memory_bytes: float = 0.0) -> float:
    """Seconds of a kernel that overlaps arithmetic with streaming `memory_bytes` from memory, plus the time for
    `cached_bytes` that pass through the caches between phases (which nothing hides)."""
    streaming = max(flops / flops_per_second(target), memory_bytes / target.dram_bandwidth)
    return streaming + cached_bytes / (CACHE_BYTES_PER_CYCLE * FREQUENCY)
