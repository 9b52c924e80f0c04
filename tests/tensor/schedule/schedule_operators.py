"""Operators in the compute language on int32 data, small and odd sizes, and the way to run them: for tests of schedules."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tilewright.core.dtype import i32, i64
from tilewright.core.node import walk
from tilewright.loop.interpret import Interpreter
from tilewright.loop.ir import Buffer, Const, Load, Max, Program, as_int, const, maximum
from tilewright.tensor import compute as te
from tilewright.tensor.compute import compute, create_program, if_then_else, placeholder, reduce_axis

ZERO32 = Const(0, i32)


def relu(x: Any) -> Any:
    return maximum(x, ZERO32)


def matmul(m: int = 5, n: int = 7, k: int = 6) -> Program:
    a, b = placeholder((m, k), "i32", "A"), placeholder((k, n), "i32", "B")
    r = reduce_axis(k, "k")
    c = compute((m, n), lambda i, j: te.sum(a[i, r] * b[r, j], axis=[r]), name="C")
    return create_program("matmul", [a, b], [c])


def matmul_relu(m: int = 6, n: int = 8, k: int = 4) -> Program:
    a, b, bias = placeholder((m, k), "i32", "A"), placeholder((k, n), "i32", "B"), placeholder((n,), "i32", "bias")
    r = reduce_axis(k, "k")
    c = compute((m, n), lambda i, j: te.sum(a[i, r] * b[r, j], axis=[r]), name="C")
    d = compute((m, n), lambda i, j: relu(c[i, j] + bias[j]), name="D")
    return create_program("matmul_relu", [a, b, bias], [d])


def batched_matmul() -> Program:
    a, b = placeholder((2, 3, 4), "i32", "A"), placeholder((2, 4, 5), "i32", "B")
    r = reduce_axis(4, "k")
    c = compute((2, 3, 5), lambda n, i, j: te.sum(a[n, i, r] * b[n, r, j], axis=[r]), name="C")
    d = compute((2, 5, 3), lambda n, i, j: c[n, j, i] * const(3, i32), name="D")
    return create_program("batched_matmul", [a, b], [d])


def padded(x: Any, p: int, name: str = "pad") -> Any:
    n, c, h, w = [as_int(d) for d in x.shape]
    return compute((n, c, h + 2 * p, w + 2 * p), lambda b, ch, i, j: if_then_else(
        (i >= p) & (i < h + p) & (j >= p) & (j < w + p), x[b, ch, i - p, j - p], ZERO32), name=name)


def conv2d(size: int = 5, cin: int = 2, cout: int = 3, kernel: int = 3, stride: int = 1, pad: int = 1, groups: int = 1,
           epilogue: bool = False) -> Program:
    x = placeholder((1, cin, size, size + 1), "i32", "X")
    w = placeholder((cout, cin // groups, kernel, kernel), "i32", "W")
    p = padded(x, pad) if pad else x
    out = [(as_int(p.shape[d]) - kernel) // stride + 1 for d in (2, 3)]
    ic, kh, kw = reduce_axis(cin // groups, "ic"), reduce_axis(kernel, "kh"), reduce_axis(kernel, "kw")
    per_in, per_out = cin // groups, cout // groups

    def value(n: Any, o: Any, i: Any, j: Any) -> Any:
        channel = ic.var if groups == 1 else o // per_out * per_in + ic.var
        return te.sum(p[n, channel, i * stride + kh.var, j * stride + kw.var] * w[o, ic, kh, kw], axis=[ic, kh, kw])

    y = compute((1, cout, *out), value, name="conv")
    if not epilogue:
        return create_program("conv2d", [x, w], [y])
    bias, res = placeholder((cout,), "i32", "bias"), placeholder((1, cout, *out), "i32", "res")
    b = compute(y.shape, lambda n, o, i, j: y[n, o, i, j] + bias[o], name="biased")
    z = compute(y.shape, lambda n, o, i, j: relu(b[n, o, i, j] + res[n, o, i, j]), name="relu")
    return create_program("conv_bias_relu_residual", [x, w, bias, res], [z])


def depthwise() -> Program:
    x, w = placeholder((1, 3, 5, 5), "i32", "X"), placeholder((3, 3, 3), "i32", "W")
    p = padded(x, 1)
    kh, kw = reduce_axis(3, "kh"), reduce_axis(3, "kw")
    y = compute((1, 3, 5, 5), lambda n, c, i, j: te.sum(p[n, c, i + kh.var, j + kw.var] * w[c, kh, kw], axis=[kh, kw]),
                name="dw")
    return create_program("depthwise", [x, w], [y])


def max_pool() -> Program:
    x = placeholder((1, 2, 6, 7), "i32", "X")
    kh, kw = reduce_axis(2, "kh"), reduce_axis(2, "kw")
    s = compute((1, 2, 6, 7), lambda n, c, i, j: x[n, c, i, j] - const(1, i32), name="shift")
    y = compute((1, 2, 3, 3), lambda n, c, i, j: te.max(s[n, c, i * 2 + kh.var, j * 2 + kw.var], axis=[kh, kw]),
                name="pool")
    return create_program("max_pool", [x], [y])


def softmax() -> Program:
    """The four stages of softmax, the exponential replaced by a square."""
    x = placeholder((4, 6), "i32", "X")
    r, q = reduce_axis(6, "r"), reduce_axis(6, "q")
    m = compute((4,), lambda i: te.max(x[i, r], axis=[r]), name="rowmax")
    e = compute((4, 6), lambda i, j: (x[i, j] - m[i]) * (x[i, j] - m[i]), name="e")
    s = compute((4,), lambda i: te.sum(e[i, q], axis=[q]), name="rowsum")
    y = compute((4, 6), lambda i, j: e[i, j] * const(16, i32) - s[i], name="y")
    return create_program("softmax", [x], [y])


def layernorm() -> Program:
    x, g = placeholder((3, 8), "i32", "X"), placeholder((8,), "i32", "gamma")
    r, q = reduce_axis(8, "r"), reduce_axis(8, "q")
    s = compute((3,), lambda i: te.sum(x[i, r], axis=[r]), name="mean")
    v = compute((3,), lambda i: te.sum((x[i, q] - s[i]) * (x[i, q] - s[i]), axis=[q]), name="var")
    y = compute((3, 8), lambda i, j: (x[i, j] - s[i]) * g[j] + v[i], name="y")
    return create_program("layernorm", [x, g], [y])


def reshapes() -> Program:
    x = placeholder((3, 4, 5), "i32", "X")
    t = compute((4, 3, 5), lambda i, j, k: x[j, i, k] + const(1, i32), name="transposed")
    f = compute((60,), lambda i: t[i // 15, i // 5 % 3, i % 5] * const(2, i32), name="flat")
    y = compute((6, 10), lambda i, j: f[i * 10 + j], name="y")
    return create_program("reshapes", [x], [y])


def argmax() -> Program:
    x = placeholder((4, 9), "i32", "X")
    r = reduce_axis(9, "r")
    index, value = compute((4,), lambda i: te.argmax(x[i, r], axis=[r]), name="best")
    y = compute((4,), lambda i: index[i] * const(100, i64) + value[i].cast("i64"), name="y")
    return create_program("argmax", [x], [y])


def broadcasts() -> Program:
    a, b, c = placeholder((4, 1, 5), "i32", "A"), placeholder((3, 5), "i32", "B"), placeholder((4, 3), "i32", "C")
    s = compute((4, 3, 5), lambda i, j, k: a[i, 0, k] + b[j, k], name="s")
    p = compute((4, 3, 5), lambda i, j, k: s[i, j, k] * c[i, j], name="p")
    y = compute((4, 3, 5), lambda i, j, k: relu(p[i, j, k]) + s[i, j, k], name="y")
    return create_program("broadcasts", [a, b, c], [y])


def gemv() -> Program:
    a, x = placeholder((7, 11), "i32", "A"), placeholder((11,), "i32", "x")
    r = reduce_axis(11, "k")
    t = compute((11,), lambda i: x[i] + const(1, i32), name="t")
    y = compute((7,), lambda i: te.sum(a[i, r] * t[r], axis=[r]), name="y")
    return create_program("gemv", [a, x], [y])


def two_layers() -> Program:
    a, b, c = placeholder((5, 4), "i32", "A"), placeholder((4, 6), "i32", "B"), placeholder((6, 3), "i32", "C")
    r, q = reduce_axis(4, "r"), reduce_axis(6, "q")
    h = compute((5, 6), lambda i, j: te.sum(a[i, r] * b[r, j], axis=[r]), name="hidden")
    g = compute((5, 6), lambda i, j: relu(h[i, j]), name="act")
    y = compute((5, 3), lambda i, j: te.sum(g[i, q] * c[q, j], axis=[q]), name="y")
    return create_program("two_layers", [a, b, c], [y])


OPERATORS: dict[str, Callable[[], Program]] = {
    "matmul": matmul, "matmul_relu": matmul_relu, "batched_matmul": batched_matmul, "conv_padded": conv2d,
    "conv_strided": lambda: conv2d(7, 2, 2, 3, 2, 1), "conv_grouped": lambda: conv2d(4, 4, 4, 3, 1, 1, groups=2),
    "conv_1x1": lambda: conv2d(4, 5, 3, 1, 1, 0), "conv_epilogue": lambda: conv2d(4, 3, 4, 3, 1, 1, epilogue=True),
    "depthwise": depthwise, "max_pool": max_pool, "softmax": softmax, "layernorm": layernorm, "reshapes": reshapes,
    "argmax": argmax, "broadcasts": broadcasts, "gemv": gemv, "two_layers": two_layers}


def arguments(program: Program, seed: int = 0) -> list[Any]:
    """Random small integers for every parameter (outputs start as noise, too)."""
    rng = np.random.default_rng(seed)
    out = []
    for p in program.params:
        assert isinstance(p, Buffer)
        out.append(rng.integers(-4, 5, [as_int(d) or 0 for d in p.shape]).astype(p.dtype.numpy()))
    return out


def results(program: Program, args: list[Any] | None = None, order: str = "forward") -> list[Any]:
    """All arrays after a run of the program by the interpreter."""
    arrays = [x.copy() for x in (arguments(program) if args is None else args)]
    Interpreter(program).run(arrays, order=order)  # type: ignore[arg-type]
    return arrays


def same_results(a: Program, b: Program) -> bool:
    """Whether two programs with equal parameters compute the same, bit for bit."""
    given = arguments(a)
    return all(np.array_equal(x, y) for x, y in zip(results(a, given), results(b, given), strict=True))


def loads_of(program: Program, name: str) -> int:
    """How many loads of a buffer with this name the program's text has."""
    return sum(isinstance(n, Load) and n.buffer.name == name for n in walk(program.body))


__all__ = ["OPERATORS", "Max", "arguments", "loads_of", "results", "same_results"]
