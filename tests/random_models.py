"""Random ONNX models: graphs of mixed operators with several outputs, branches and loops, for end-to-end checks.

Values stay near 1 in size, so that results can be compared; every model has a seed.
"""
from __future__ import annotations

import random
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int, ...]


class Generator:
    """Builds one graph: `values` are the float tensors so far, by name, with their shapes."""

    def __init__(self, rng: random.Random, prefix: str = "", values: dict[str, Shape] | None = None) -> None:
        self.rng, self.prefix = rng, prefix
        self.values: dict[str, Shape] = dict(values or {})
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"{self.prefix}v{self.count}"

    def weight(self, array: Any) -> str:
        name = f"{self.name()}_w"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def floats(self, *shape: int) -> str:
        seed = self.rng.randrange(1 << 30)
        fan = max(int(np.prod(shape[1:])), 1) if len(shape) > 1 else 1
        return self.weight((np.random.default_rng(seed).standard_normal(shape) / np.sqrt(fan)).astype(np.float32))

    def add(self, op: str, inputs: list[str], shape: Shape, **attributes: Any) -> str:
        out = self.name()
        self.nodes.append(helper.make_node(op, inputs, [out], name=out, **attributes))
        self.values[out] = shape
        return out

    def pick(self, rank: int | None = None) -> tuple[str, Shape]:
        """A value, late ones more often."""
        fitting = [v for v in self.values.items() if rank is None or len(v[1]) == rank]
        if not fitting:
            name, shape = self.pick()
            return self.reshape(name, shape, rank or 1)
        return fitting[-1 - min(int(self.rng.expovariate(0.5)), len(fitting) - 1)]

    def reshape(self, name: str, shape: Shape, rank: int) -> tuple[str, Shape]:
        n = int(np.prod(shape))
        new: list[int] = []
        for _ in range(rank - 1):
            factor = self.rng.choice([d for d in (1, 2, 3, 4, 5, 6, 8) if n % d == 0])
            new.append(factor)
            n //= factor
        to = (*new, n)
        return self.add("Reshape", [name, self.weight(np.array(to))], to), to

    # ---- steps ---------------------------------------------------------------------------------------------------------
    def step(self, depth: int = 0) -> None:
        kinds = [self.unary] * 4 + [self.binary] * 5 + [self.matmul] * 2 + [self.view] * 4 + [self.reduce] * 2 + \
            [self.softmax, self.concat, self.split, self.conv, self.conv, self.pool, self.pad, self.norm]
        if depth == 0:
            kinds += [self.branch, self.loop]
        self.rng.choice(kinds)()

    def unary(self) -> None:
        name, shape = self.pick()
        self.add(self.rng.choice(["Relu", "Sigmoid", "Tanh", "Neg", "Abs", "Erf", "Sin"]), [name], shape)

    def binary(self) -> None:
        name, shape = self.pick()
        same = [n for n, s in self.values.items() if s == shape]
        if self.rng.random() < 0.6:
            other = self.rng.choice(same)
        else:
            axes = [d if self.rng.random() < 0.6 else 1 for d in shape][self.rng.randrange(len(shape) + 1):]
            other = self.floats(*axes)
        operands = [name, other] if self.rng.random() < 0.5 else [other, name]
        self.add(self.rng.choice(["Add", "Sub", "Mul", "Max", "Min"]), operands, shape)

    def matmul(self) -> None:
        name, shape = self.pick(self.rng.choice([2, 3]))
        n = self.rng.choice([1, 3, 8, 17])
        if self.rng.random() < 0.3:
            turned = (*shape[:-2], shape[-1], shape[-2])
            perm = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
            t = self.add("Transpose", [name], turned, perm=perm)
            scale = self.weight(np.float32(1 / shape[-1]))
            product = self.add("MatMul", [name, t], (*shape[:-1], shape[-2]))
            self.add("Mul", [product, scale], (*shape[:-1], shape[-2]))
        else:
            out = self.add("MatMul", [name, self.floats(shape[-1], n)], (*shape[:-1], n))
            self.add("Mul", [out, self.weight(np.float32(1 / np.sqrt(shape[-1])))], (*shape[:-1], n))

    def view(self) -> None:
        name, shape = self.pick()
        rank = len(shape)
        match self.rng.randrange(5):
            case 0:
                self.reshape(name, shape, self.rng.randrange(1, 5))
            case 1:
                perm = self.rng.sample(range(rank), rank)
                self.add("Transpose", [name], tuple(shape[p] for p in perm), perm=perm)
            case 2:
                axis = self.rng.randrange(rank)
                step = self.rng.choice([1, 2, -1]) if shape[axis] > 1 else 1
                start = self.rng.randrange(shape[axis])
                kept = len(range(shape[axis])[start::step])
                end = np.iinfo(np.int64).min + 1 if step < 0 else shape[axis]
                ends = [self.weight(np.array([x])) for x in (start, end, axis, step)]
                self.add("Slice", [name, *ends], (*shape[:axis], kept, *shape[axis + 1:]))
            case 3:
                self.add("Unsqueeze", [name, self.weight(np.array([0]))], (1, *shape))
            case _:
                axis = self.rng.randrange(rank)
                picks = [self.rng.randrange(shape[axis]) for _ in range(self.rng.choice([1, 3]))]
                self.add("Gather", [name, self.weight(np.array(picks))], (*shape[:axis], len(picks), *shape[axis + 1:]),
                         axis=axis)

    def reduce(self) -> None:
        name, shape = self.pick()
        axis, keep = self.rng.randrange(len(shape)), self.rng.randrange(2)
        out = (*shape[:axis], *([1] if keep else []), *shape[axis + 1:])
        if out:
            self.add(self.rng.choice(["ReduceMean", "ReduceMax", "ReduceMin"]), [name], out, axes=[axis],
                     keepdims=keep)

    def softmax(self) -> None:
        name, shape = self.pick()
        self.add("Softmax", [name], shape, axis=self.rng.randrange(len(shape)))

    def norm(self) -> None:
        name, shape = self.pick()
        self.add("LayerNormalization", [name, self.floats(shape[-1])], shape, axis=-1, epsilon=0.1)

    def concat(self) -> None:
        name, shape = self.pick()
        others = [n for n, s in self.values.items() if s == shape]
        parts, axis = [name, self.rng.choice(others)], self.rng.randrange(len(shape))
        self.add("Concat", parts, (*shape[:axis], 2 * shape[axis], *shape[axis + 1:]), axis=axis)

    def split(self) -> None:
        name, shape = self.pick()
        axis = max(range(len(shape)), key=lambda k: shape[k])
        if shape[axis] < 2:
            return
        sizes = [1, shape[axis] - 1]
        outs = [self.name(), self.name()]
        self.nodes.append(helper.make_node("Split", [name, self.weight(np.array(sizes))], outs, axis=axis))
        for out, n in zip(outs, sizes, strict=True):
            self.values[out] = (*shape[:axis], n, *shape[axis + 1:])

    def conv(self) -> None:
        name, (n, c, h, w) = self.pick(4)
        k = self.rng.choice([1, 3])
        stride, grouped = self.rng.choice([1, 2]), self.rng.random() < 0.25
        m = c if grouped else self.rng.choice([1, 5, 16])
        out = (n, m, (h - 1) // stride + 1, (w - 1) // stride + 1)
        filters = self.floats(m, 1 if grouped else c, k, k)
        bias = [self.floats(m)] if self.rng.random() < 0.5 else []
        self.add("Conv", [name, filters, *bias], out, kernel_shape=[k, k], strides=[stride] * 2, pads=[k // 2] * 4,
                 group=c if grouped else 1)

    def pool(self) -> None:
        name, (n, c, h, w) = self.pick(4)
        self.add(self.rng.choice(["MaxPool", "AveragePool"]), [name], (n, c, h, w), kernel_shape=[3, 3], pads=[1] * 4)

    def pad(self) -> None:
        name, shape = self.pick()
        before, after = ([self.rng.randrange(2) for _ in shape] for _ in range(2))
        out = tuple(b + d + a for b, d, a in zip(before, shape, after, strict=True))
        if np.prod(out) < 20000:
            self.add("Pad", [name, self.weight(np.array([*before, *after]))], out)

    # ---- regions -------------------------------------------------------------------------------------------------------
    def body(self, steps: int, inputs: dict[str, Shape]) -> Generator:
        inner = Generator(self.rng, f"{self.name()}_", {**self.values, **inputs})
        for _ in range(steps):
            inner.step(depth=1)
        return inner

    def info(self, name: str, shape: Shape) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def end(self, inner: Generator, like: Shape, source: str) -> str:
        """A value of the shape of an outer one, made of one of the body's."""
        fitting = [n for n, s in inner.values.items() if s == like]
        return inner.add("Identity", [self.rng.choice([*fitting[-3:], source])], like)

    def condition(self, g: Generator) -> str:
        name, shape = g.pick()
        total = g.add("ReduceMean", [name], (), keepdims=0, axes=list(range(len(shape))))
        del g.values[total]
        out = g.name()
        g.nodes.append(helper.make_node("Less", [total, g.weight(np.float32(self.rng.choice([0.0, 0.2])))], [out]))
        return out

    def branch(self) -> None:
        (a, sa), (b, sb) = self.pick(), self.pick()
        cond = self.condition(self)
        graphs = []
        for _ in range(2):
            inner = self.body(self.rng.randrange(4), {})
            ends = [self.end(inner, sa, a), self.end(inner, sb, b)]
            graphs.append(helper.make_graph(inner.nodes, inner.prefix, [], [self.info(n, inner.values[n]) for n in ends],
                                            inner.weights))
        outs = [self.name(), self.name()]
        self.nodes.append(helper.make_node("If", [cond], outs, then_branch=graphs[0], else_branch=graphs[1]))
        self.values |= dict(zip(outs, (sa, sb), strict=True))

    def loop(self) -> None:
        """A few turns over up to three carried values, which may change places, and a stacked result."""
        carried = [self.pick() for _ in range(self.rng.randrange(1, 4))]
        if self.rng.random() < 0.5:
            carried = [carried[0]] * len(carried)
        tag = self.name()
        names = [f"{tag}_c{k}" for k in range(len(carried))]
        inner = self.body(self.rng.randrange(4), dict(zip(names, (s for _, s in carried), strict=True)))
        more = self.condition(inner) if self.rng.random() < 0.3 else None
        ends, states = [], list(zip(names, (s for _, s in carried), strict=True))
        for name, shape in states:
            swapped = [n for n, s in states if s == shape]
            if self.rng.random() < 0.5:
                ends.append(inner.add("Identity", [self.rng.choice(swapped)], shape))
            else:
                ends.append(self.end(inner, shape, name))
        keep = f"{tag}_keep"
        inner.nodes.append(helper.make_node("Identity", [more or f"{tag}_go"], [keep]))
        rows = [] if more else [inner.add("Neg", [ends[0]], carried[0][1])]
        body = helper.make_graph(
            inner.nodes, inner.prefix,
            [helper.make_tensor_value_info(f"{tag}_i", TensorProto.INT64, []),
             helper.make_tensor_value_info(f"{tag}_go", TensorProto.BOOL, []), *[self.info(n, s) for n, s in states]],
            [helper.make_tensor_value_info(keep, TensorProto.BOOL, []),
             *[self.info(n, inner.values[n]) for n in (*ends, *rows)]], inner.weights)
        trips = self.rng.choice([1, 2, 3])
        outs = [self.name() for _ in (*ends, *rows)]
        self.nodes.append(helper.make_node("Loop", [self.weight(np.int64(trips)), self.weight(np.bool_(True)),
                                                    *[n for n, _ in carried]], outs, body=body))
        for out, (_, shape) in zip(outs, carried, strict=False):
            self.values[out] = shape
        if rows:
            self.values[outs[-1]] = (trips, *carried[0][1])


def random_model(seed: int, steps: int = 14) -> onnx.ModelProto:
    """The model of a seed."""
    rng = random.Random(seed)
    g = Generator(rng)
    inputs = {f"x{k}": tuple(rng.choice([1, 2, 3, 5, 8]) for _ in range(rng.choice([1, 2, 3, 4]))) for k in range(2)}
    inputs["image"] = (1, rng.choice([3, 16]), 6, 7)
    g.values |= inputs
    for _ in range(steps):
        g.step()
        for name in [n for n, s in g.values.items() if np.prod(s) > 20000 or len(s) > 6]:
            if name not in inputs:
                del g.values[name]
    used = {n for node in g.nodes for n in node.input}
    made = [n for n in g.values if n not in inputs]
    outputs = [n for n in made if n not in used] + rng.sample(made, min(2, len(made)))
    outputs = list(dict.fromkeys(outputs))
    graph = helper.make_graph(g.nodes, f"random_{seed}", [g.info(n, s) for n, s in inputs.items()],
                              [g.info(n, g.values[n]) for n in outputs], g.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
