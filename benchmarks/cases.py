"""The kernels that `make bench` measures: ONNX models of one layer, or chains of layers too large for the caches.

In: nothing. Out: `families`, cases by kind of computation. Their sizes are those of well-known networks; nothing in the
compiler knows them.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

COLD_BYTES, COLD_CACHES = 96 << 20, 5
"""Bytes of weights in a chain whose weights come from memory: at least so many, and so many times the last cache, which
keeps a part of what streams through it."""


@dataclass(frozen=True)
class Case:
    """A model, and which of its kernels to report: those whose layer's name begins with `part`, together, or ("") the one
    that takes longest."""
    name: str
    model: Callable[[], onnx.ModelProto]
    part: str = ""


class Net:
    """An ONNX model under construction: one input x, nodes in a chain, weights from a seed."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.nodes, self.weights, self.at = shape, [], [], "x"
        self.random = np.random.default_rng(0)

    def weight(self, *shape: int) -> str:
        name, fan = f"w{len(self.weights)}", int(np.prod(shape[1:])) or 1
        values = self.random.standard_normal(shape, np.float32) / np.float32(np.sqrt(fan))
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def constant(self, value: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, op: str, *others: str, name: str = "", **attributes: Any) -> Net:
        """A node from the last value (and others) to a new one."""
        made = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [self.at, *others], [made], name or op.lower(), **attributes))
        self.at = made
        return self

    def done(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "case", [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
                                  [helper.make_tensor_value_info(self.at, TensorProto.FLOAT, None)], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


# ---- products --------------------------------------------------------------------------------------------------------
def product(m: int, k: int, n: int) -> Case:
    def model() -> onnx.ModelProto:
        net = Net(m, k)
        return net.add("MatMul", net.weight(k, n)).done()
    return Case(f"product {m}×{k}×{n}", model)


def chain(m: int, sizes: Sequence[int], times: int) -> Callable[[], onnx.ModelProto]:
    """Products one after another, each named by its sizes, with a ReLU between them."""
    def model() -> onnx.ModelProto:
        net = Net(m, sizes[0])
        for k, n in list(pairwise(sizes)) * times:
            net.add("MatMul", net.weight(k, n), name=f"{k}x{n}_").add("Relu")
        return net.done()
    return model


def cold_products(m: int, sizes: Sequence[int], last_cache: int) -> Iterator[Case]:
    """Products whose weights come from memory: a chain of layers, reported by sizes."""
    pairs = list(pairwise(sizes))
    layer = 4 * sum(k * n for k, n in pairs)
    model = chain(m, sizes, -(-max(COLD_BYTES, COLD_CACHES * last_cache) // layer))
    for k, n in dict.fromkeys(pairs):
        yield Case(f"cold product {m}×{k}×{n}", model, part=f"{k}x{n}_")


# ---- convolutions ----------------------------------------------------------------------------------------------------
def conv(c: int, o: int, size: int, kernel: int = 3, stride: int = 1, group: int = 1) -> Case:
    """A convolution with bias and ReLU as it is in a network: between two 1×1 convolutions, so that it reads and writes the
    layout that those prefer (a first layer reads the image)."""
    def model() -> onnx.ModelProto:
        net = Net(1, c, size, size)
        if c >= 16:
            net.add("Conv", net.weight(c, c, 1, 1), name="before", kernel_shape=[1, 1])
        net.add("Conv", net.weight(o, c // group, kernel, kernel), net.weight(o), name="layer", kernel_shape=[kernel] * 2,
                strides=[stride] * 2, pads=[kernel // 2] * 4, group=group).add("Relu")
        return net.add("Conv", net.weight(16, o, 1, 1), name="after", kernel_shape=[1, 1]).done()
    kind = "depthwise" if group > 1 else "conv"
    strided = f" stride {stride}" if stride > 1 else ""
    return Case(f"{kind} {kernel}×{kernel} {c}→{o} at {size}²{strided}", model, part="layer")


def winograd_layers(c: int, size: int, count: int) -> Case:
    """Several 3×3 layers of one size, one after another."""
    def model() -> onnx.ModelProto:
        net = Net(1, c, size, size)
        net.add("Conv", net.weight(c, c, 1, 1), name="before", kernel_shape=[1, 1])
        for _ in range(count):
            net.add("Conv", net.weight(c, c, 3, 3), net.weight(c), name="layer", kernel_shape=[3, 3], pads=[1] * 4)
            net.add("Relu")
        return net.add("Conv", net.weight(16, c, 1, 1), name="after", kernel_shape=[1, 1]).done()
    return Case(f"{count} × conv 3×3 {c}→{c} at {size}²", model, part="layer")


# ---- rows, movement, elementwise ---------------------------------------------------------------------------------------
def layer(name: str, shape: Sequence[int], op: str, **attributes: Any) -> Case:
    return Case(f"{name} {'×'.join(map(str, shape))}", lambda: Net(*shape).add(op, **attributes).done())


def layer_norm(rows: int, columns: int) -> Case:
    def model() -> onnx.ModelProto:
        net = Net(rows, columns)
        return net.add("LayerNormalization", net.weight(columns), net.weight(columns)).done()
    return Case(f"layer norm {rows}×{columns}", model)


def reduction(op: str, shape: Sequence[int], axis: int) -> Case:
    def model() -> onnx.ModelProto:
        net = Net(*shape)
        return net.add(op, net.constant(np.array([axis])), keepdims=0).done()
    return Case(f"{op} {'×'.join(map(str, shape))} over {axis}", model)


def scale_and_shift(elements: int) -> Case:
    def model() -> onnx.ModelProto:
        net = Net(elements // 1024, 1024)
        return net.add("Mul", net.weight(1024)).add("Add", net.weight(1024)).add("Relu").done()
    return Case(f"x·a + b, ReLU, {elements >> 10} Ki elements", model)


def families(last_cache: int) -> dict[str, list[Case]]:
    """All cases by family; `last_cache`: bytes of the machine's last cache, which cold weights must exceed."""
    bert = [(128, 768, 768), (128, 768, 2304), (128, 768, 3072), (128, 3072, 768)]
    return {
        "products, weights in cache": [product(1024, 1024, 1024), *[product(*s) for s in bert]],
        "products, weights from memory": list(cold_products(128, (768, 768, 3072, 768, 2304, 768), last_cache)),
        "decode: one row, weights from memory": list(cold_products(1, (768, 2304, 768, 768, 3072, 768), last_cache)),
        "convolutions": [conv(3, 64, 224, 7, 2), conv(64, 128, 56, 3, 2), conv(256, 512, 14, 3, 2), conv(64, 128, 56, 1, 2),
                         conv(32, 64, 112, 1), conv(128, 128, 56, 1), conv(512, 512, 14, 1), conv(1024, 1024, 7, 1)],
        "3×3 convolutions of stride 1": [winograd_layers(64, 56, 4), winograd_layers(128, 28, 3),
                                         winograd_layers(256, 14, 3), winograd_layers(512, 7, 3)],
        "depthwise": [conv(c, c, s, 3, t, c) for c, s, t in ((32, 112, 1), (64, 112, 2), (128, 56, 1), (256, 28, 1),
                                                            (512, 14, 1), (1024, 7, 1))],
        "rows": [layer("softmax", (12, 128, 128), "Softmax", axis=-1), layer_norm(128, 768),
                 reduction("ReduceMean", (512, 7, 7, 16), 3), reduction("ReduceSum", (1024, 1024), 1),
                 reduction("ReduceSum", (1024, 1024), 0), reduction("ReduceMax", (64, 56, 56), 0)],
        "elementwise and movement": [
            layer("GELU", (128, 3072), "Gelu"), layer("exp", (1024, 1024), "Exp"), layer("sigmoid", (1024, 1024), "Sigmoid"),
            scale_and_shift(1 << 18), scale_and_shift(1 << 24),
            layer("transpose of columns", (1024, 1024), "Transpose", perm=[1, 0]),
            layer("transpose of heads", (1, 128, 12, 64), "Transpose", perm=[0, 2, 1, 3]),
            layer("channels last", (1, 64, 56, 56), "Transpose", perm=[0, 2, 3, 1])],
    }
