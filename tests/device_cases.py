"""Models for the tests of devices: one for each default schedule and for each kind of host program, small shapes.

Every language of kernels runs them: on a driver (test_devices.py), or on the CPU through a stand-in for the language's
library (test_stand_ins.py)."""
from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnx

from tests import small_models
from tests.small_models import model, weight
from tilewright.runtime.memory import Array


def product() -> onnx.ModelProto:
    """A product whose tiles do not divide it, with an elementwise end."""
    return model("f (float[40,50] x) => (float[40,70] y) { a = MatMul(x, w)  y = Relu(a) }", w=weight(50, 70))


def functions() -> onnx.ModelProto:
    """Every function of one number, and some of two, over both signs."""
    unary = ("Exp", "Erf", "Tanh", "Sigmoid", "Sin", "Cos", "Atan", "Sinh", "Cosh", "Asinh", "Floor", "Ceil", "Round", "Abs",
             "Neg", "Sign", "Softplus", "HardSwish", "Elu", "Selu", "Mish", "Gelu")
    positive = ("Log", "Sqrt", "Reciprocal", "Acosh")
    lines = [f"v{k} = {op}(x)" for k, op in enumerate(unary)]
    lines += [f"p{k} = {op}(big)" for k, op in enumerate(positive)]
    names = [*[f"v{k}" for k in range(len(unary))], *[f"p{k}" for k in range(len(positive))], "power", "remainder", "nan"]
    text = "  ".join(["square = Mul(x, x)", "big = Add(square, one)", *lines, "power = Pow(big, x)",
                      "remainder = Mod<fmod = 1>(x, big)", "hole = Log(x)", "isnan = IsNaN(hole)",
                      "nan = Cast<to = 1>(isnan)", f"y = Concat<axis = 0>({', '.join(names)})"])
    return model(f"f (float[40] x) => (float[{40 * len(names)}] y) {{ {text} }}", opset=20, one=np.float32(1))


def small_integers() -> onnx.ModelProto:
    """Casts to and from every width of integers, and their arithmetic."""
    return model("""f (int32[64] x, uint8[64] u, int8[64] s)
            => (int8[64] a, uint8[64] b, int64[64] c, int32[64] d, float[64] e) {
        a = Cast<to = 3>(x)
        b = Add(u, u)
        wide = Cast<to = 7>(s)
        c = Mul(wide, many)
        t = Cast<to = 6>(s)
        q = Div(x, t3)
        d = Sub(q, t)
        e = Cast<to = 1>(u)
    }""", many=np.int64(3_000_000_000), t3=np.int32(3))


_CLASSES = {
    "products": ("""(float[3,20,36] x, float[3,36,24] z, float[33] v) =>
            (float[3,20,24] a, float[3,20,40] b, float[3,20,20] c, float[3,20] d, float[20,24,3] e, float[33,33] f) {
        a = MatMul(x, z)
        p = MatMul(x, w)
        b = Gelu(p)
        t = Transpose<perm = [0,2,1]>(x)
        c = MatMul(x, t)
        d = MatMul(x, u)
        e = Einsum<equation = "bij,bjk->ikb">(x, z)
        column = Unsqueeze(v, last)
        row = Unsqueeze(v, first)
        f = MatMul(column, row)
    }""", {"w": weight(36, 40), "u": weight(36), "last": np.array([1]), "first": np.array([0])}),
    "convolutions": ("""(float[2,8,13,11] x, float[2,6,40] s) => (float[2,24,13,11] a, float[2,12,13,11] b,
            float[2,8,7,6] c, float[2,8,13,11] d, float[2,5,25,21] e, float[2,9,38] f) {
        p = Conv<pads = [1,1,1,1]>(x, w1, b1)
        a = Relu(p)
        b = Conv<group = 2, pads = [2,2,2,2], dilations = [2,2]>(x, w2)
        c = Conv<group = 8, strides = [2,2], pads = [1,1,1,1]>(x, w3)
        q = Conv(x, w4)
        r = Add(q, x)
        d = Clip(r, low, high)
        e = ConvTranspose<strides = [2,2], pads = [1,1,1,1]>(x, w5)
        f = Conv(s, w6)
    }""", {"w1": weight(24, 8, 3, 3), "b1": weight(24), "w2": weight(12, 4, 3, 3), "w3": weight(8, 1, 3, 3),
           "w4": weight(8, 8, 1, 1), "w5": weight(8, 5, 3, 3), "w6": weight(9, 6, 3), "low": np.float32(0),
           "high": np.float32(6)}),
    "windows": ("""(float[2,8,13,11] x) => (float[2,8,6,5] a, float[2,8,13,11] b, float[2,8,1,1] c, float[2,8,1,1] d,
            float[2,8,26,22] e, float[2,8,7,6] f) {
        a = MaxPool<kernel_shape = [3,3], strides = [2,2]>(x)
        b = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1], count_include_pad = 1>(x)
        c = GlobalMaxPool(x)
        d = GlobalAveragePool(x)
        e = Resize<mode = "nearest">(x, , scales)
        f = LpPool<kernel_shape = [2,2], strides = [2,2], pads = [1,1,0,0]>(x)
    }""", {"scales": np.array([1, 1, 2, 2], np.float32)}),
    "rows": ("""(float[6,5,70] x) => (float[6,5,70] a, float[6,5,70] b, float[6,5,70] c, float[6,5,70] d, float[6,5,70] e,
            float[6,5,70] f, float[6,5,70] g) {
        a = Softmax<axis = -1>(x)
        b = LogSoftmax<axis = 1>(x)
        c = LayerNormalization<axis = 1>(x, k, h)
        d = InstanceNormalization(x, s, t)
        e = LpNormalization<axis = 2>(x)
        f = CumSum(x, axis)
        g = CumSum<reverse = 1, exclusive = 1>(x, axis)
    }""", {"k": weight(5, 70), "h": weight(5, 70), "s": weight(5), "t": weight(5), "axis": np.array(2)}),
    "reductions": ("""(float[7,300,9] x, bool[7,300] m) => (float s, float[7,1,9] a, float[7,300] b, float[300,9] c,
            float[7,9] d, int64[7,9] e, int64[300,9] f, int64[7] g) {
        s = ReduceSum<keepdims = 0>(x)
        a = ReduceMean(x, one)
        b = ReduceMax<keepdims = 0>(x, two)
        c = ReduceL2<keepdims = 0>(x, zero)
        d = ReduceLogSumExp<keepdims = 0>(x, one)
        e = ArgMax<axis = 1, keepdims = 0>(x)
        f = ArgMin<axis = 0, keepdims = 0, select_last_index = 1>(x)
        n = Cast<to = 7>(m)
        g = ReduceSum<keepdims = 0>(n, one)
    }""", {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2])}),
    "moves": ("""(float[4,6,10] x, float[4,3,10] z) => (float[10,6,4] a, float[4,9,10] b, float[4,2,10] c, float[4,4,10] d,
            float[4,3,5] e, float[4,8,13] f, float[4,10,6] g, float[8,6,10] h, float[24,10] i) {
        a = Transpose<perm = [2,1,0]>(x)
        b = Concat<axis = 1>(x, z)
        c, d = Split<axis = 1>(x, parts)
        e = Slice(x, starts, ends, axes, steps)
        f = Pad<mode = "reflect">(x, pads)
        g = Transpose<perm = [0,2,1]>(x)
        h = Tile(x, twice)
        i = Reshape(x, flat)
    }""", {"parts": np.array([2, 4]), "starts": np.array([5, 9]), "ends": np.array([-7, -11]), "axes": np.array([1, 2]),
           "steps": np.array([-2, -2]), "pads": np.array([0, 1, 2, 0, 1, 1]), "twice": np.array([2, 1, 1]),
           "flat": np.array([24, 10])}),
    "indices": ("""(float[9,12] x, int64[4,12] i, float[4,12] u) => (float[4,12] a, float[9,12] b, float[9,12] c,
            float[9,3] d, int64[9,3] e, float[4,12,4] f, float[9,12] g) {
        a = GatherElements<axis = 0>(x, i)
        b = ScatterElements<axis = 0, reduction = "add">(x, i, u)
        c = ScatterND(x, places, rows)
        d, e = TopK<axis = 1>(x, three)
        f = OneHot(i, four, values)
        g = Trilu<upper = 0>(x)
    }""", {"places": np.array([[2], [7]]), "rows": weight(2, 12), "three": np.array([3]), "four": np.array(4),
           "values": np.array([-1, 2], np.float32)}),
    "recurrences": ("""(float[3,2,4] x) => (float[3,1,2,3] a, float[1,2,3] b, float[3,2,2,3] c) {
        a, b = LSTM<hidden_size = 3>(x, w1, r1, b1)
        c = GRU<hidden_size = 3, direction = "bidirectional">(x, w2, r2)
    }""", {"w1": weight(1, 12, 4), "r1": weight(1, 12, 3), "b1": weight(1, 24), "w2": weight(2, 9, 4),
           "r2": weight(2, 9, 3)}),
}
"""The graph's text behind its name, and the weights."""

CLASSES: dict[str, Callable[[], onnx.ModelProto]] = {
    name: functools.partial(model, "f " + text, opset=20, **weights) for name, (text, weights) in _CLASSES.items()}
"""A model for each class of default schedules."""

CASES: dict[str, Callable[[], onnx.ModelProto]] = {**CLASSES, **{f.__name__: f for f in (
    product, functions, small_integers, small_models.mlp, small_models.convnet, small_models.attention,
    small_models.branches, small_models.while_loop, small_models.swaps, small_models.stacked, small_models.ends,
    small_models.integers)}}


def assert_close(got: list[Array], want: list[Array], tolerance: float = 1e-5) -> None:
    """Equal integers; floats within a tolerance relative to the largest value of an output."""
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        if not np.issubdtype(b.dtype, np.floating):
            np.testing.assert_array_equal(a, b)
            continue
        finite = np.isfinite(b)
        np.testing.assert_array_equal(a[~finite], b[~finite])
        assert np.abs(a[finite] - b[finite]).max(initial=0) <= tolerance * max(1.0, np.abs(b[finite]).max(initial=0))
