"""Whole networks of well-known architectures as ONNX models, at full size, with seeded weights that nobody trained.

`NETWORKS` has their builders by name, `feeds` gives inputs. Activations keep their size from layer to layer, so that
results of different devices can be compared to the last layer.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from examples.resnet18 import resnet18

CLASSES = 1000
TOKENS, WIDTH, HEADS, LAYERS = 128, 768, 12, 12
KINDS = {"f": TensorProto.FLOAT, "i": TensorProto.INT64}


class Net:
    """A model under construction: values are named by the order in which they are made."""

    def __init__(self, **inputs: tuple[int, ...]) -> None:
        """Inputs are images (four axes) or whole numbers (two)."""
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info(n, KINDS["f" if len(s) == 4 else "i"], s) for n, s in inputs.items()]
        self.random = np.random.default_rng(0)

    def constant(self, value: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value), f"w{len(self.weights)}"))
        return self.weights[-1].name

    def weight(self, *shape: int, deviation: float, mean: float = 0) -> str:
        """Normal numbers."""
        numbers = self.random.standard_normal(shape, np.float32)
        numbers *= np.float32(deviation)
        numbers += np.float32(mean)
        return self.constant(numbers)

    def op(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """The value of a node, or a list of its values."""
        made = [f"v{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, made, **attributes))
        return made[0] if outputs == 1 else made

    def done(self, **outputs: str) -> onnx.ModelProto:
        for name, value in outputs.items():
            self.nodes.append(helper.make_node("Identity", [value], [name]))
        named = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "network", self.inputs, named, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    # ---- layers ----
    def conv(self, x: str, cin: int, cout: int, kernel: int, stride: int = 1, group: int = 1, bias: bool = False) -> str:
        """Padded to keep the size at stride 1."""
        w = self.weight(cout, cin // group, kernel, kernel, deviation=math.sqrt(2 / (cin // group * kernel * kernel)))
        more = [self.weight(cout, deviation=0.1)] if bias else []
        return str(self.op("Conv", x, w, *more, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4,
                           group=group))

    def norm(self, x: str, channels: int) -> str:
        """Batch normalization, by numbers of its own for every channel."""
        scale, variance = (self.constant(self.random.uniform(0.8, 1.2, channels).astype(np.float32)) for _ in range(2))
        bias, mean = (self.weight(channels, deviation=0.1) for _ in range(2))
        return str(self.op("BatchNormalization", x, scale, bias, mean, variance))

    def linear(self, x: str, n: int, m: int) -> str:
        """A product with a matrix, by the last axis, and a bias."""
        product = self.op("MatMul", x, self.weight(n, m, deviation=1 / math.sqrt(n)))
        return str(self.op("Add", product, self.weight(m, deviation=0.02)))

    def classes(self, x: str, channels: int) -> str:
        """Means of the channels, and a layer for the classes."""
        flat = self.op("Flatten", self.op("GlobalAveragePool", x))
        w = self.weight(CLASSES, channels, deviation=1 / math.sqrt(channels))
        return str(self.op("Gemm", flat, w, self.weight(CLASSES, deviation=0.02), transB=1))

    def layer_norm(self, x: str) -> str:
        scale, bias = self.weight(WIDTH, deviation=0.1, mean=1), self.weight(WIDTH, deviation=0.1)
        return str(self.op("LayerNormalization", x, scale, bias, axis=-1))

    def attention(self, q: str, k: str, v: str, mask: str) -> str:
        """Heads side by side; `mask` is added to the scores."""
        apart, together = self.constant([1, TOKENS, HEADS, WIDTH // HEADS]), self.constant([1, TOKENS, WIDTH])
        q, v = (self.op("Transpose", self.op("Reshape", t, apart), perm=[0, 2, 1, 3]) for t in (q, v))
        k = self.op("Transpose", self.op("Reshape", k, apart), perm=[0, 2, 3, 1])
        scores = self.op("Mul", self.op("MatMul", q, k), self.constant(np.float32(1 / math.sqrt(WIDTH // HEADS))))
        mixed = self.op("MatMul", self.op("Softmax", self.op("Add", scores, mask), axis=-1), v)
        return str(self.op("Reshape", self.op("Transpose", mixed, perm=[0, 2, 1, 3]), together))


# ---- images ----------------------------------------------------------------------------------------------------------
def resnet50() -> onnx.ModelProto:
    """He et al. 2016, with strides in the 3×3 convolutions."""
    net = Net(image=(1, 3, 224, 224))

    def conv(x: str, cin: int, cout: int, kernel: int, stride: int = 1) -> str:
        return net.norm(net.conv(x, cin, cout, kernel, stride), cout)

    x = net.op("Relu", conv("image", 3, 64, 7, 2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for width, count, first in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for k in range(count):
            stride = first if k == 0 else 1
            y = net.op("Relu", conv(x, channels, width, 1))
            y = conv(net.op("Relu", conv(y, width, width, 3, stride)), width, 4 * width, 1)
            shortcut = x if k else conv(x, channels, 4 * width, 1, stride)
            y, channels = net.op("Mul", net.op("Add", y, shortcut), net.constant(np.float32(0.5))), 4 * width
            x = net.op("Relu", y)
    return net.done(logits=net.classes(x, channels))


def _relu6(net: Net, x: str) -> str:
    return str(net.op("Clip", x, net.constant(np.float32(0)), net.constant(np.float32(6))))


def mobilenet_v1() -> onnx.ModelProto:
    """Howard et al. 2017."""
    net = Net(image=(1, 3, 224, 224))
    x, channels = _relu6(net, net.norm(net.conv("image", 3, 32, 3, 2), 32)), 32
    for width, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)):
        x = _relu6(net, net.norm(net.conv(x, channels, channels, 3, stride, group=channels), channels))
        x, channels = _relu6(net, net.norm(net.conv(x, channels, width, 1), width)), width
    return net.done(logits=net.classes(x, channels))


def mobilenet_v2() -> onnx.ModelProto:
    """Sandler et al. 2018."""
    net = Net(image=(1, 3, 224, 224))
    x, channels = _relu6(net, net.norm(net.conv("image", 3, 32, 3, 2), 32)), 32
    for expand, width, count, first in ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                                        (6, 160, 3, 2), (6, 320, 1, 1)):
        for k in range(count):
            stride, inner, y = first if k == 0 else 1, expand * channels, x
            if expand > 1:
                y = _relu6(net, net.norm(net.conv(y, channels, inner, 1), inner))
            y = _relu6(net, net.norm(net.conv(y, inner, inner, 3, stride, group=inner), inner))
            y = net.norm(net.conv(y, inner, width, 1), width)
            x, channels = net.op("Add", x, y) if stride == 1 and channels == width else y, width
    return net.done(logits=net.classes(_relu6(net, net.norm(net.conv(x, channels, 1280, 1), 1280)), 1280))


def yolov3_tiny() -> onnx.ModelProto:
    """Redmon and Farhadi 2018, its smaller network: boxes and scores of both grids, 85 numbers per anchor."""
    net = Net(image=(1, 3, 416, 416))

    def conv(x: str, cin: int, cout: int, kernel: int = 3) -> str:
        return str(net.op("LeakyRelu", net.norm(net.conv(x, cin, cout, kernel), cout), alpha=0.1))

    def boxes(x: str, cin: int, size: int, anchors: list[list[int]]) -> str:
        """Centres and sizes in pixels, then how sure it is of an object and of each class."""
        apart = net.constant([1, 3, 85, size, size])
        x = net.op("Transpose", net.op("Reshape", net.conv(x, cin, 255, 1, bias=True), apart), perm=[0, 1, 3, 4, 2])
        at, extent, rest = net.op("Split", x, net.constant([2, 2, 81]), outputs=3, axis=4)
        rows, columns = np.mgrid[:size, :size].astype(np.float32)
        place = net.op("Add", net.op("Sigmoid", at), net.constant(np.stack([columns, rows], -1)[None, None]))
        place = net.op("Mul", place, net.constant(np.float32(416 / size)))
        extent = net.op("Mul", net.op("Exp", net.op("Mul", extent, net.constant(np.float32(0.25)))),
                        net.constant(np.array(anchors, np.float32)[None, :, None, None]))
        found = net.op("Concat", place, extent, net.op("Sigmoid", rest), axis=4)
        return str(net.op("Reshape", found, net.constant([1, -1, 85])))

    x, channels = "image", 3
    for width in (16, 32, 64, 128):
        x = net.op("MaxPool", conv(x, channels, width), kernel_shape=[2, 2], strides=[2, 2])
        channels = width
    fine = conv(x, 128, 256)
    x = conv(net.op("MaxPool", fine, kernel_shape=[2, 2], strides=[2, 2]), 256, 512)
    x = net.op("Pad", x, net.constant([0, 0, 0, 0, 0, 0, 1, 1]))
    x = conv(net.op("MaxPool", x, kernel_shape=[2, 2], strides=[1, 1]), 512, 1024)
    narrow = conv(x, 1024, 256, 1)
    scales = net.constant(np.array([1, 1, 2, 2], np.float32))
    up = net.op("Resize", conv(narrow, 256, 128, 1), "", scales, mode="nearest", nearest_mode="floor",
                coordinate_transformation_mode="asymmetric")
    large = boxes(conv(narrow, 256, 512), 512, 13, [[81, 82], [135, 169], [344, 319]])
    small = boxes(conv(net.op("Concat", up, fine, axis=1), 384, 256), 256, 26, [[10, 14], [23, 27], [37, 58]])
    return net.done(boxes=net.op("Concat", large, small, axis=1))


# ---- text ------------------------------------------------------------------------------------------------------------
def bert_base() -> onnx.ModelProto:
    """Devlin et al. 2019: normalized after each sum; tokens whose mask is 0 are not looked at."""
    net = Net(ids=(1, TOKENS), mask=(1, TOKENS))
    words, places = (net.weight(n, WIDTH, deviation=1) for n in (30522, TOKENS))
    x = net.layer_norm(net.op("Add", net.op("Gather", words, "ids"), places))
    seen = net.op("Cast", net.op("Unsqueeze", "mask", net.constant([1, 2])), to=TensorProto.BOOL)
    mask = net.op("Where", seen, net.constant(np.float32(0)), net.constant(np.float32(-1e4)))
    for _ in range(LAYERS):
        y = net.attention(*[net.linear(x, WIDTH, WIDTH) for _ in range(3)], mask)
        x = net.layer_norm(net.op("Add", net.linear(y, WIDTH, WIDTH), x))
        h = net.linear(x, WIDTH, 4 * WIDTH)
        half = net.op("Add", net.op("Erf", net.op("Div", h, net.constant(np.float32(math.sqrt(2))))),
                      net.constant(np.float32(1)))
        h = net.op("Mul", net.op("Mul", h, half), net.constant(np.float32(0.5)))
        x = net.layer_norm(net.op("Add", net.linear(h, 4 * WIDTH, WIDTH), x))
    first = net.op("Gather", x, net.constant(0), axis=1)
    return net.done(last=x, pooled=net.op("Tanh", net.linear(first, WIDTH, WIDTH)))


def gpt2() -> onnx.ModelProto:
    """Radford et al. 2019: normalized before each layer; no token looks at later ones; scores by the table of words."""
    net = Net(ids=(1, TOKENS))
    words, places = (net.weight(n, WIDTH, deviation=1) for n in (50257, TOKENS))
    x = net.op("Add", net.op("Gather", words, "ids"), places)
    mask = net.constant(np.triu(np.full((TOKENS, TOKENS), -1e4, np.float32), 1)[None, None])
    for _ in range(LAYERS):
        parts = net.op("Split", net.linear(net.layer_norm(x), WIDTH, 3 * WIDTH), net.constant([WIDTH] * 3), outputs=3,
                       axis=2)
        x = net.op("Add", net.linear(net.attention(*parts, mask), WIDTH, WIDTH), x)
        h = net.linear(net.layer_norm(x), WIDTH, 4 * WIDTH)
        cube = net.op("Mul", net.op("Pow", h, net.constant(np.float32(3))), net.constant(np.float32(0.044715)))
        inner = net.op("Mul", net.op("Add", h, cube), net.constant(np.float32(math.sqrt(2 / math.pi))))
        h = net.op("Mul", net.op("Mul", h, net.constant(np.float32(0.5))),
                   net.op("Add", net.op("Tanh", inner), net.constant(np.float32(1))))
        x = net.op("Add", net.linear(h, 4 * WIDTH, WIDTH), x)
    return net.done(logits=net.op("MatMul", net.layer_norm(x), net.op("Transpose", words, perm=[1, 0])))


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {f.__name__: f for f in (
    resnet18, resnet50, mobilenet_v1, mobilenet_v2, yolov3_tiny, bert_base, gpt2)}


def feeds(m: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Normal images; ids of words; a mask of ones whose last quarter is zero."""
    rng = np.random.default_rng(seed)
    out: dict[str, np.ndarray[Any, Any]] = {}
    for i in m.graph.input:
        shape = [d.dim_value for d in i.type.tensor_type.shape.dim]
        if i.name == "image":
            out[i.name] = rng.standard_normal(shape, np.float32)
        elif i.name == "ids":
            out[i.name] = rng.integers(0, 30000, shape)
        else:
            out[i.name] = (np.arange(shape[1]) < 3 * shape[1] // 4).astype(np.int64)[None]
    return out
