"""ONNX's signal processing: DFT and STFT as products with constant matrices, and mel filters.

A transform of n numbers is one product with a matrix of n × n for small n. A longer one is two steps of n1 and n2 = n / n1
(Cooley and Tukey, "An algorithm for the machine calculation of complex Fourier series", 1965), each a batch of shorter
transforms: with t = t1 n2 + t2 and k = k1 + n1 k2,

    X[k] = sum over t2 of w(n2, t2 k2) · (w(n, t2 k1) · sum over t1 of w(n1, t1 k1) x[t]),    w(n, j) = exp(-2πi j / n)
"""
from __future__ import annotations

import math
from typing import Any

import numpy as np

from tilewright.core.dtype import f64
from tilewright.frontend.onnx.table import Context, Result, onnx_op
from tilewright.frontend.onnx.tensors import element_type
from tilewright.graph.infer import product
from tilewright.graph.ir import Value
from tilewright.graph.ops.recipes import accumulator
from tilewright.loop.ir import as_int

Array = np.ndarray[Any, Any]

DIRECT = 96
"""Up to here one product is quicker than two with the factors between."""


# ---- transforms ------------------------------------------------------------------------------------------------------
def _wave(n: int, exponents: Array, inverse: bool) -> Array:
    """exp(∓2πi j / n); exponents are reduced first, which keeps the angle exact."""
    return np.exp((2j if inverse else -2j) * np.pi / n * (exponents % n))


def _matrix(wave: Array, parts: int) -> Array:
    """A complex matrix [n, k] as a real one [n · parts, k · 2] on interleaved numbers (parts = 1: real operands)."""
    n, k = wave.shape
    rows = [np.stack([wave.real, wave.imag], -1), np.stack([-wave.imag, wave.real], -1)][:parts]
    return np.stack(rows, 1).reshape(n * parts, k * 2)


def _transform(c: Context, x: Value, inverse: bool, scale: float = 1.0, keep: int | None = None) -> Value:
    """[rows, n, 1 or 2] → [rows, keep or n, 2]: the transform of each row, times `scale`."""
    rows, n, parts = x.shape[0], as_int(x.shape[1]) or 0, as_int(x.shape[2]) or 0
    n1 = _factor(n)
    if n <= DIRECT or n1 == 1:
        k = n if keep is None else keep
        w = _matrix(scale * _wave(n, np.outer(np.arange(n), np.arange(k)), inverse), parts)
        y = c.add("matmul", c.b.reshape(x, [rows, n * parts]), c.const(w, x.dtype))
        return c.b.reshape(y, [rows, k, 2])
    n2 = n // n1
    y = c.add("transpose", c.b.reshape(x, [rows, n1, n2, parts]), perm=(0, 2, 1, 3))
    y = _transform(c, c.b.reshape(y, [rows * n2, n1, parts]), inverse, scale)
    y = c.b.reshape(y, [rows, n2, n1, 2])
    turn = _wave(n, np.outer(np.arange(n2), np.arange(n1)), inverse)
    straight, crossed = turn.real[..., None], np.stack([-turn.imag, turn.imag], -1)
    swapped = c.add("gather", y, c.b.constant(np.array([1, 0])), axis=3)
    y = c.add("add", c.add("mul", y, c.const(straight, x.dtype)), c.add("mul", swapped, c.const(crossed, x.dtype)))
    y = c.add("transpose", y, perm=(0, 2, 1, 3))
    y = _transform(c, c.b.reshape(y, [rows * n1, n2, 2]), inverse)
    y = c.add("transpose", c.b.reshape(y, [rows, n1, n2, 2]), perm=(0, 2, 1, 3))
    y = c.b.reshape(y, [rows, n, 2])
    return y if keep is None else c.b.slice(y, {1: (0, keep, 1)})


def _factor(n: int) -> int:
    """The largest divisor up to the root."""
    return max(k for k in range(1, math.isqrt(max(n, 1)) + 1) if n % k == 0)


def _dft(c: Context, x: Value, axis: int, length: int | None) -> Value:
    inverse, onesided = bool(c.a("inverse", 0)), bool(c.a("onesided", 0))
    if not -x.rank <= axis < x.rank - 1 or axis == -1:
        raise c.error("axis-out-of-range", f"DFT: axis {axis} of {x.type}, whose last axis holds real and imaginary parts")
    axis %= x.rank
    parts, have = as_int(x.shape[-1]), as_int(x.shape[axis])
    if have is None and length is None:
        raise c.error("onnx-dynamic-value", f"DFT: the length of axis {axis} of {x.type} must be known",
                      "set the model's symbolic sizes")
    c.expect(parts in (1, 2), f"{x.shape[-1]!r} numbers for real and imaginary parts")
    n = length if length is not None else 2 * ((have or 0) - 1) if inverse and onesided else have or 0
    if n < 1:
        raise c.error("onnx-invalid-graph", f"DFT: a length of {n}")
    order = [k for k in range(x.rank - 1) if k != axis]
    perm = [*order, axis, x.rank - 1]
    to = x.dtype
    y = c.cast(c.add("transpose", x, perm=perm) if perm != list(range(x.rank)) else x, accumulator(to))
    others = y.shape[:-2]
    y = _sized(c, c.b.reshape(y, [product(others), *y.shape[-2:]]), n // 2 + 1 if inverse and onesided else n)
    if inverse and onesided:
        y = c.b.slice(_transform(c, _mirrored(c, y, n), True, 1 / n), {2: (0, 1, 1)})
    else:
        y = _transform(c, y, inverse, 1 / n if inverse else 1.0, n // 2 + 1 if onesided else None)
    y = c.cast(c.b.reshape(y, [*others, *y.shape[-2:]]), to)
    back = [perm.index(k) for k in range(x.rank)]
    return c.add("transpose", y, perm=back) if back != list(range(x.rank)) else y


def _sized(c: Context, x: Value, n: int) -> Value:
    """Rows cut off, or filled with zeros, to n."""
    have = x.shape[1]
    known = as_int(have)
    if known == n:
        return x
    if known is not None and known > n:
        return c.b.slice(x, {1: (0, n, 1)})
    return c.add("pad", x, before=[0, 0, 0], after=[0, n - have, 0])


def _mirrored(c: Context, x: Value, n: int) -> Value:
    """The whole spectrum of a real signal from its first half: X[n - k] is the conjugate of X[k]. What must be real (the
    first, and the middle one) is taken to be."""
    if as_int(x.shape[2]) == 1:
        x = c.add("pad", x, before=[0, 0, 0], after=[0, 0, 1])
    k = np.arange(n)
    first = k <= n // 2
    sign = np.stack([np.ones(n), np.where(first, 1.0, -1.0)], 1)
    sign[0, 1] = 0
    if n % 2 == 0:
        sign[n // 2, 1] = 0
    whole = c.add("gather", x, c.b.constant(np.where(first, k, n - k)), axis=1)
    return c.add("mul", whole, c.const(sign, x.dtype))


@onnx_op("DFT")
def dft_by_attribute(c: Context) -> Result:
    return _dft(c, c.x(), c.a("axis", 1), c.ints(1)[0] if c.opt(1) is not None else None)


@onnx_op("DFT", since=20)
def dft(c: Context) -> Result:
    axis = c.ints(2)[0] if c.opt(2) is not None else -2
    return _dft(c, c.x(), axis, c.ints(1)[0] if c.opt(1) is not None else None)


@onnx_op("STFT")
def stft(c: Context) -> Result:
    """Overlapping stretches of a signal, each times a window and transformed."""
    x, step, window = c.x(), c.ints(1)[0], c.opt(2)
    signal = as_int(x.shape[1])
    if signal is None:
        raise c.error("onnx-dynamic-value", f"STFT: the length of {x.type} must be known", "set the model's symbolic sizes")
    if c.opt(3) is not None:
        n = c.ints(3)[0]
    else:
        n = (as_int(window.shape[0]) if window is not None else signal) or 0
    if not 0 < n <= signal or step < 1:
        raise c.error("onnx-invalid-graph", f"STFT: frames of {n} every {step} in a signal of {signal}")
    frames = 1 + (signal - n) // step
    if x.rank == 2:
        x = c.b.unsqueeze(x, [2])
    places = np.arange(frames)[:, None] * step + np.arange(n)
    y = c.cast(c.add("gather", x, c.b.constant(places.astype(np.int64)), axis=1), accumulator(x.dtype))
    if window is not None:
        c.expect(as_int(window.shape[0]) == n, f"a window of {window.shape[0]!r} for frames of {n}")
        y = c.add("mul", y, c.b.unsqueeze(c.cast(window, y.dtype), [1]))
    batch = y.shape[0]
    y = c.b.reshape(y, [batch * frames, n, y.shape[3]])
    y = _transform(c, y, False, keep=n // 2 + 1 if c.a("onesided", 1) else None)
    return c.cast(c.b.reshape(y, [batch, frames, *y.shape[1:]]), x.dtype)


# ---- mel filters -----------------------------------------------------------------------------------------------------
@onnx_op("MelWeightMatrix")
def mel_weight_matrix(c: Context) -> Result:
    """Triangles over the places of a spectrum, their corners evenly spaced on the mel scale, 2595 log10(1 + Hz / 700).
    Edges and rate may be data."""
    bins, length = c.ints(0)[0], c.ints(1)[0]
    rate, low, high = [c.cast(c.reshape(c.x(k), []), f64) for k in (2, 3, 4)]
    per_e = 2595 / math.log(10)

    def number(v: float) -> Value:
        return c.const(v, f64)

    def mel(hz: Value) -> Value:
        ratio = c.add("add", c.add("div", hz, number(700)), number(1))
        return c.add("mul", c.add("log", ratio), number(per_e))
    first = mel(low)
    step = c.add("div", c.add("sub", mel(high), first), number(bins + 2))
    at = c.add("add", c.add("mul", c.const(np.arange(bins + 2), f64), step), first)
    hz = c.add("mul", c.add("sub", c.add("exp", c.add("div", at, number(per_e))), number(1)), number(700))
    corners = c.add("floor", c.add("div", c.add("mul", hz, number(length + 1)), rate))
    left, middle, right = (c.b.slice(corners, {0: (k, k + bins, 1)}) for k in range(3))
    j = c.const(np.arange(length // 2 + 1)[:, None], f64)

    def span(a: Value, b: Value) -> Value:
        return c.add("max", c.add("sub", b, a), number(1))
    flat = c.add("equal", left, middle)
    rise = c.add("where", flat, number(1), c.add("div", c.add("sub", j, left), span(left, middle)))
    fall = c.add("div", c.add("sub", right, j), span(middle, right))
    rises = c.add("logical_and", c.add("greater_equal", j, left), c.add("less_equal", j, middle))
    falls = c.add("logical_and", c.add("greater_equal", j, middle), c.add("less", j, right))
    y = c.add("where", falls, fall, c.add("where", rises, rise, number(0)))
    return c.cast(y, element_type(c.a("output_datatype", 1), c.loc))
