"""Models for the tests of devices: one for each default schedule and for each kind of host program, small shapes.

Every language of kernels runs them: on a driver (test_opencl.py), or on the CPU through a stand-in for the language's
library (test_stand_ins.py)."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from tests import small_models
from tests.small_models import model, weight
from tilewright.runtime.memory import Array


def product() -> onnx.ModelProto:
    """A product whose tiles do not divide it, with an elementwise end."""
    return model("f (float[40,50] x) => (float[40,70] y) { a = MatMul(x, w)  y = Relu(a) }", w=weight(50, 70))


def products_of_batches() -> onnx.ModelProto:
    return model("f (float[2,3,17,33] x, float[2,3,33,20] z) => (float[2,3,17,20] y) { y = MatMul(x, z) }")


def convolution() -> onnx.ModelProto:
    return model("""f (float[1,6,15,15] x) => (float[1,20,8,8] y) {
        a = Conv<pads = [1,1,1,1], strides = [2,2]>(x, w, b)
        y = Relu(a)
    }""", w=weight(20, 6, 3, 3), b=weight(20))


def windows() -> onnx.ModelProto:
    """Depthwise convolution and pooling."""
    return model("""f (float[2,8,9,9] x) => (float[2,8,9,9] y) {
        a = Conv<pads = [1,1,1,1], group = 8>(x, w)
        b = MaxPool<kernel_shape = [3,3], pads = [1,1,1,1]>(a)
        y = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1]>(b)
    }""", w=weight(8, 1, 3, 3))


def transposed_convolution() -> onnx.ModelProto:
    return model("""f (float[1,4,7,7] x) => (float[1,6,13,13] y) {
        y = ConvTranspose<strides = [2,2], pads = [1,1,1,1]>(x, w)
    }""", w=weight(4, 6, 3, 3))


def rows() -> onnx.ModelProto:
    """Rows that share a block of threads."""
    return model("""f (float[3,5,100] x) => (float[3,5,100] y) {
        a = Softmax<axis = -1>(x)
        y = LayerNormalization<axis = -1>(a, s, b)
    }""", s=weight(100), b=weight(100))


def indexing_and_reductions() -> onnx.ModelProto:
    return model("""f (float[4,300] x, int64[5] i) => (float[5,300] g, int64[4] m, float s, float[300,4] t) {
        g = Gather<axis = 0>(x, i)
        m = ArgMax<axis = 1, keepdims = 0>(x)
        s = ReduceSum<keepdims = 0>(x)
        t = Transpose<perm = [1,0]>(x)
    }""")


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
    made = model(f"f (float[40] x) => (float[{40 * len(names)}] y) {{ {text} }}", one=np.float32(1))
    made.opset_import[0].version = 20
    return made


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


def running_sums() -> onnx.ModelProto:
    return model("f (float[6,50] x) => (float[6,50] y) { y = CumSum(x, axis) }", axis=np.int64(1))


def recurrence() -> onnx.ModelProto:
    return model("f (float[5,2,8] x) => (float[5,1,2,12] y) { y, h, c = LSTM<hidden_size = 12>(x, w, r, b) }",
                 w=weight(1, 48, 8), r=weight(1, 48, 12), b=weight(1, 96, scale=0.1))


CASES: dict[str, Callable[[], onnx.ModelProto]] = {f.__name__: f for f in (
    product, products_of_batches, convolution, windows, transposed_convolution, rows, indexing_and_reductions, functions,
    small_integers, running_sums, recurrence, small_models.mlp, small_models.convnet, small_models.attention,
    small_models.branches, small_models.while_loop, small_models.swaps, small_models.stacked, small_models.ends,
    small_models.integers)}


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
