"""Small models, one for each class of operators that devices have a default schedule for, and which rules take them."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from tests.small_models import model, weight
from tilewright.driver import with_checks
from tilewright.frontend.onnx.importer import import_model
from tilewright.graph.lower import group_program
from tilewright.graph.passes.fuse import fuse
from tilewright.graph.pipeline import graph_pipeline
from tilewright.loop.ir import Program
from tilewright.target.target import Target


@dataclass(frozen=True)
class Case:
    """A model's graph text and weights; `rules`: what schedules its kernels, by name, in order; inputs are
    whole numbers below `span`."""
    text: str
    rules: tuple[str, ...]
    weights: Callable[[], dict[str, Any]] = dict
    span: int = 4

    def model(self) -> onnx.ModelProto:
        return model("f " + self.text, **self.weights())


def _w(*shapes: tuple[int, ...], **others: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {**{name: weight(*shape) for name, shape in zip("wb", shapes, strict=False)}, **others}


CASES: dict[str, Case] = {
    "matmul": Case("(float[18,20] x) => (float[18,24] y) { a = MatMul(x, w)  y = Relu(a) }", ("tiles",), _w((20, 24))),
    "matmul of a transposed weight": Case("(float[18,21] x) => (float[18,25] y) { y = Gemm<transB=1>(x, w, b) }", ("tiles",),
                                          _w((25, 21), (25,))),
    "matmul of a transposed input": Case("(float[20,18] x) => (float[18,26] y) { y = Gemm<transA=1>(x, w) }", ("tiles",),
                                         _w((20, 26))),
    "matmul of batches": Case("(float[4,9,24] x, float[4,24,10] z) => (float[4,9,10] y) { y = MatMul(x, z) }", ("tiles",)),
    "matmul of a long sum": Case("(float[4,512] x) => (float[4,6] y) { y = MatMul(x, w) }", ("tiles",), _w((512, 6))),
    "matrix times vector": Case("(float[1,64] x) => (float[1,9] y) { y = MatMul(x, w) }", ("rows",), _w((64, 9))),
    "convolution": Case("(float[1,4,9,9] x) => (float[1,12,5,5] y) { a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b) "
                        "y = Relu(a) }", ("tiles",), _w((12, 4, 3, 3), (12,))),
    "grouped convolution": Case("(float[1,4,8,8] x) => (float[1,8,8,8] y) { y = Conv<pads=[1,1,1,1], group=2>(x, w, b) }",
                                ("tiles",), _w((8, 2, 3, 3), (8,))),
    "dilated convolution": Case("(float[1,4,9,9] x) => (float[1,10,5,5] y) { y = Conv<dilations=[2,2]>(x, w) }", ("tiles",),
                                _w((10, 4, 3, 3))),
    "convolution of one axis": Case("(float[1,6,24] x) => (float[1,20,24] y) { y = Conv<pads=[1,1]>(x, w, b) }", ("tiles",),
                                    _w((20, 6, 3), (20,))),
    "convolution of three axes": Case("(float[1,2,4,4,5] x) => (float[1,5,4,4,5] y) { y = Conv<pads=[1,1,1,1,1,1]>(x, w) }",
                                      ("tiles",), _w((5, 2, 3, 3, 3))),
    "transposed convolution": Case("(float[1,4,5,5] x) => (float[1,6,9,9] y) { y = ConvTranspose<strides=[2,2], "
                                   "pads=[1,1,1,1]>(x, w) }", ("tiles", "results"), _w((4, 6, 3, 3))),
    "depthwise convolution": Case("(float[1,3,10,10] x) => (float[1,3,10,10] y) { a = Conv<pads=[1,1,1,1], group=3>(x, w, b)"
                                  " y = Relu(a) }", ("windows",), _w((3, 1, 3, 3), (3,))),
    "strided depthwise convolution": Case("(float[1,3,11,11] x) => (float[1,3,6,6] y) { y = Conv<pads=[2,2,2,2], group=3, "
                                          "strides=[2,2]>(x, w) }", ("windows",), _w((3, 1, 5, 5))),
    "pooling": Case("(float[1,3,10,10] x) => (float[1,3,5,5] y) { y = MaxPool<kernel_shape=[3,3], strides=[2,2], "
                    "pads=[1,1,1,1]>(x) }", ("windows",)),
    "global pooling": Case("(float[1,5,8,8] x) => (float[1,5,1,1] y) { y = GlobalAveragePool(x) }", ("rows",)),
    "sum of all": Case("(float[64,129] x) => (float y) { y = ReduceSum<keepdims=0>(x) }", ("rows",)),
    "maximum of rows": Case("(float[10,70] x) => (float[10] y) { y = ReduceMax<axes=[1], keepdims=0>(x) }", ("rows",)),
    "mean of columns": Case("(float[70,20] x) => (float[20] y) { y = ReduceMean<axes=[0], keepdims=0>(x) }", ("rows",)),
    "softmax": Case("(float[5,50] x) => (float[5,50] y) { y = Softmax(x) }", ("rows",)),
    "softmax of columns": Case("(float[2,40,3,4] x) => (float[2,40,3,4] y) { y = Softmax<axis=1>(x) }", ("rows",)),
    "layer normalization": Case("(float[5,50] x) => (float[5,50] y) { y = LayerNormalization(x, w, b) }", ("rows",),
                                _w((50,), (50,))),
    "instance normalization": Case("(float[2,3,6,6] x) => (float[2,3,6,6] y) { y = InstanceNormalization(x, w, b) }",
                                   ("rows",), _w((3,), (3,))),
    "attention": Case("""(float[2,2,16,8] q, float[2,2,24,8] k, float[2,2,24,8] v) => (float[2,2,16,8] y) {
        t = Transpose<perm=[0,1,3,2]>(k)  s = MatMul(q, t)  m = Mul(s, w)  p = Softmax(m)  y = MatMul(p, v) }""",
                      ("attention",), _w(w=np.float32(0.25))),
    "masked attention, heads side by side": Case("""(float[1,12,16] q, float[1,19,16] k, float[1,19,16] v,
        bool[1,1,12,19] b) => (float[1,12,16] y) {
        qh = Reshape(q, h)  qt = Transpose<perm=[0,2,1,3]>(qh)  kh = Reshape(k, h)  kt = Transpose<perm=[0,2,3,1]>(kh)
        vh = Reshape(v, h)  vt = Transpose<perm=[0,2,1,3]>(vh)  s = MatMul(qt, kt)  m = Where(b, s, low)  p = Softmax(m)
        o = MatMul(p, vt)  ot = Transpose<perm=[0,2,1,3]>(o)  y = Reshape(ot, flat) }""", ("attention",),
        _w(h=np.array([0, 0, 2, 8]), flat=np.array([0, 0, 16]), low=np.float32(-1e4))),
    "elementwise": Case("(float[6,30] x, float[30] z) => (float[6,30] y) { a = Add(x, z)  y = Tanh(a) }", ("results",)),
    "transpose": Case("(float[20,35] x) => (float[35,20] y) { y = Transpose(x) }", ("transpose",)),
    "transpose of four axes": Case("(float[2,12,3,10] x) => (float[2,3,10,12] y) { a = Transpose<perm=[0,2,3,1]>(x) "
                                   "y = Relu(a) }", ("transpose",)),
    "gather": Case("(float[12,20] x, int64[9] i) => (float[9,20] y) { y = Gather(x, i) }", ("results",) * 3),
    "scatter": Case("(float[12,20] x, int64[9,1] i, float[9,20] u) => (float[12,20] y) { y = ScatterND(x, i, u) }",
                    ("results", "results", "updates", "results")),
    "scatter of sums": Case("""(float[9,12] x, int64[4,12] i, float[4,12] u) => (float[9,12] y) {
        y = ScatterElements<axis=0, reduction="add">(x, i, u) }""", ("rows", "rows", "updates", "results")),
    "resize": Case("(float[1,3,6,6] x) => (float[1,3,12,12] y) { y = Resize<mode=\"nearest\">(x, , s) }",
                   ("results",), _w(s=np.array([1, 1, 2, 2], np.float32))),
    "concat": Case("(float[4,10] x, float[4,20] z) => (float[4,30] y) { y = Concat<axis=1>(x, z) }", ("results",)),
    "running sum": Case("(float[6,40] x) => (float[6,40] y) { y = CumSum(x, a) }", ("chains",), _w(a=np.int64(1))),
    "argmax": Case("(float[4,60] x) => (int64[4] y) { y = ArgMax<axis=1, keepdims=0>(x) }", ("rows",)),
    "top-k": Case("(float[3,40] x) => (float[3,5] y, int64[3,5] i) { y, i = TopK<axis=1>(x, k) }",
                  ("rows",), _w(k=np.array([5])), 1000),
    "matmul of bytes": Case("(uint8[18,40] x, uint8[40,24] z) => (int32[18,24] y) { y = MatMulInteger(x, z, w, b) }",
                            ("results", "results", "tiles"), _w(w=np.uint8(3), b=np.uint8(2))),
    "convolution of bytes": Case("(uint8[1,4,9,9] x) => (int32[1,12,9,9] y) { y = ConvInteger<pads=[1,1,1,1]>(x, w, b) }",
                                 ("results", "tiles"),
                                 lambda: {"w": np.round(100 * weight(12, 4, 3, 3)).astype(np.int8), "b": np.uint8(3)}),
    "response normalization": Case("(float[1,8,6,7] x) => (float[1,8,6,7] y) { y = LRN<size=3>(x) }", ("windows",)),
    "places between elements": Case("(float[1,3,6,7] x, float[1,5,5,2] g) => (float[1,3,5,5] y) { y = GridSample(x, g) }",
                                    ("results",)),
    "pooling and back": Case("""(float[1,2,8,8] x) => (float[1,2,8,8] y) {
        p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)  y = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(p, i) }""",
                             ("results", "rows", "rows", "updates", "results")),
    "depth to space": Case("(float[1,8,6,5] x) => (float[1,2,12,10] y) { y = DepthToSpace<blocksize=2>(x) }",
                           ("results",)),
    "gated recurrence": Case("(float[4,2,6] x) => (float[4,1,2,5] y) { y, h = GRU<hidden_size=5>(x, w, r, b) }",
                             ("results", "steps", "results"),
                             lambda: {"w": weight(1, 15, 6), "r": weight(1, 15, 5), "b": weight(1, 30)}),
    "recurrence": Case("(float[4,2,6] x) => (float[4,1,2,5] y) { y, h, c = LSTM<hidden_size=5>(x, w, r, b) }",
                       ("results", "steps", "results", "results"),
                       lambda: {"w": weight(1, 20, 6), "r": weight(1, 20, 5), "b": weight(1, 40)}),
}


def programs(m: onnx.ModelProto, target: Target) -> list[Program]:
    """The unscheduled programs of a model's kernels."""
    graph = graph_pipeline(target, "default").run(with_checks(import_model(m).graph))
    return [group_program(g, "kernel").program for g in fuse(graph) if g.kind == "kernel"]
