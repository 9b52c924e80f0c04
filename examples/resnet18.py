"""ResNet-18 as an ONNX model with weights from a seed: the architecture of He et al. 2016, untrained.

    python examples/resnet18.py resnet18.onnx

Convolutions have He initialisation; every BatchNormalization has its own random scale, bias, mean and variance, so that
folding them into the convolutions changes every weight.
"""
from __future__ import annotations

import math
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # channels and stride of the first of each stage's two blocks
CLASSES = 1000


class _Net:
    """The nodes and weights of a model under construction."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(seed)

    def weight(self, name: str, values: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def node(self, op: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def conv_norm(self, x: str, cin: int, cout: int, kernel: int, stride: int, name: str) -> str:
        """Convolution without bias, padded to keep the size at stride 1, and BatchNormalization."""
        deviation = math.sqrt(2 / (cin * kernel * kernel))
        w = self.weight(f"{name}.weight", self.random.normal(0, deviation, (cout, cin, kernel, kernel)))
        y = self.node("Conv", [x, w], f"{name}.conv", kernel_shape=[kernel, kernel], strides=[stride, stride],
                      pads=[kernel // 2] * 4)
        uniform = self.random.uniform
        norm = [self.weight(f"{name}.scale", uniform(0.8, 1.2, cout)), self.weight(f"{name}.bias", uniform(-0.1, 0.1, cout)),
                self.weight(f"{name}.mean", uniform(-0.1, 0.1, cout)), self.weight(f"{name}.var", uniform(0.8, 1.2, cout))]
        return self.node("BatchNormalization", [y, *norm], f"{name}.norm", epsilon=1e-5)

    def relu(self, x: str, name: str) -> str:
        return self.node("Relu", [x], f"{name}.relu")

    def block(self, x: str, cin: int, cout: int, stride: int, name: str) -> str:
        """Two 3x3 convolutions and the shortcut around them."""
        y = self.relu(self.conv_norm(x, cin, cout, 3, stride, f"{name}.1"), f"{name}.1")
        y = self.conv_norm(y, cout, cout, 3, 1, f"{name}.2")
        shortcut = x if cin == cout and stride == 1 else self.conv_norm(x, cin, cout, 1, stride, f"{name}.down")
        return self.relu(self.node("Add", [y, shortcut], f"{name}.add"), name)


def resnet18(seed: int = 0) -> onnx.ModelProto:
    """The model: image f32[1, 3, 224, 224] → logits f32[1, 1000]."""
    net = _Net(seed)
    x = net.relu(net.conv_norm("image", 3, 64, 7, 2, "stem"), "stem")
    x = net.node("MaxPool", [x], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for s, (width, stride) in enumerate(STAGES, start=1):
        x = net.block(x, channels, width, stride, f"stage{s}.a")
        x = net.block(x, width, width, 1, f"stage{s}.b")
        channels = width
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x], "mean")], "features")
    w = net.weight("head.weight", net.random.normal(0, math.sqrt(1 / channels), (CLASSES, channels)))
    b = net.weight("head.bias", np.zeros(CLASSES))
    net.node("Gemm", [x, w, b], "logits", transB=1)
    graph = helper.make_graph(net.nodes, "resnet18",
                              [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 224, 224])],
                              [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES])], net.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


if __name__ == "__main__":
    onnx.save(resnet18(), sys.argv[1] if len(sys.argv) > 1 else "resnet18.onnx")
