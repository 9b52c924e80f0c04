"""What random graphs are made of: typed values of which we know how large and how exact they are, and a graph that grows.

A dimension is the tuple of its sizes in the runs of a model: (4, 4, 4) is a number, (3, 1, 6) a symbol. A value carries
a bound of its elements and of the error that any sound implementation may make, by forward analysis of rounding errors
(Higham, Accuracy and Stability of Numerical Algorithms, chapter 3). Values without an error are exact: only they decide
anything (comparisons, indices, rounding, conditions), so that results never hang on the last bit.
"""
from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

Dim = tuple[int, ...]
Shape = tuple[Dim, ...]

UNIT = {"float64": 2e-13, "float32": 1e-6, "float16": 2e-3}
"""The relative error of one operation that is taken as sound: some units of the last place."""
DIGITS = {"float64": 50, "float32": 22, "float16": 10}
LARGEST_ERROR = {"float64": 1e-8, "float32": 1e-3, "float16": 0.25}
INTS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
ELEMENTS, RANK, BOUND = 3000, 5, 1e4


class Unfit(Exception):
    """A step that nothing in the graph suits; another one is tried."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the graph: elements within ±`bound`, off by `error` at most; exact: multiples of 2**-`fraction`."""
    name: str
    shape: Shape
    type: str = "float32"
    bound: float = 1.0
    error: float = 0.0
    fraction: int = 0

    @property
    def exact(self) -> bool:
        return self.error == 0

    @property
    def is_float(self) -> bool:
        return self.type.startswith("float")

    @property
    def rank(self) -> int:
        return len(self.shape)

    def size(self, run: int) -> int:
        return int(np.prod([d[run] for d in self.shape]))


def is_number(d: Dim) -> bool:
    return len(set(d)) == 1


def element_type(name: str) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(name)))


class Graph:
    """A graph or a region: its nodes, weights, the values that steps may use, and those that are outputs only (with
    their errors). `trips` is an input that says how often loops run."""

    def __init__(self, rng: random.Random, runs: int, opset: int, prefix: str = "", outer: Graph | None = None) -> None:
        self.rng, self.runs, self.opset, self.prefix, self.outer = rng, runs, opset, prefix, outer
        self.values: list[Value] = list(outer.values) if outer else []
        self.trips: tuple[str, Dim] = outer.trips if outer else ("", (0,) * runs)
        self.ends: list[tuple[str, float]] = []
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.count = 0

    # ---- building ------------------------------------------------------------------------------------------------------
    def name(self) -> str:
        self.count += 1
        return f"{self.prefix}v{self.count}"

    def weight(self, array: Any) -> str:
        name = f"{self.name()}_w"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op: str, inputs: list[Any], outputs: int = 1, **attributes: Any) -> list[str]:
        outs = [self.name() for _ in range(outputs)]
        names = [v.name if isinstance(v, Value) else v for v in inputs]
        self.nodes.append(helper.make_node(op, names, outs, name=f"n_{outs[0]}", **attributes))
        return outs

    def made(self, name: str, shape: Shape, type: str, bound: float, error: float = 0.0, fraction: int = 0) -> Value:
        """The value of an output; steps may use it unless it is large, or known too badly."""
        if type in DIGITS and error == 0 and bound * 2.0 ** fraction > 2.0 ** DIGITS[type]:
            error = UNIT[type] * bound  # it was rounded
        v = Value(name, shape, type, bound, error, 0 if error else fraction)
        sizes = [v.size(k) for k in range(self.runs)]
        usable = max(sizes) <= ELEMENTS and min(sizes) > 0 and v.rank <= RANK and bound <= BOUND \
            and error <= LARGEST_ERROR.get(type, 0)
        if usable:
            self.values.append(v)
        return v

    def add(self, op: str, inputs: list[Any], shape: Shape, like: Value, *, bound: float | None = None,
            error: float | None = None, fraction: int | None = None, type: str | None = None, **attributes: Any) -> Value:
        """One node of one output; what is not given is as in `like`."""
        return self.made(self.node(op, inputs, **attributes)[0], shape, type or like.type,
                         like.bound if bound is None else bound, like.error if error is None else error,
                         like.fraction if fraction is None else fraction)

    def smooth(self, op: str, v: Value, slope: float, bound: float, shape: Shape | None = None, inputs: Any = (),
               terms: int = 1, **attributes: Any) -> Value:
        """A function of one float value with slopes up to `slope`, of `terms` roundings, with results within `bound`."""
        error = slope * v.error + terms * UNIT[v.type] * max(bound, 1e-2)
        return self.add(op, [v, *inputs], v.shape if shape is None else shape, v, bound=bound, error=error, fraction=0,
                        **attributes)

    # ---- choosing ------------------------------------------------------------------------------------------------------
    def pick(self, fits: Callable[[Value], bool] = lambda v: True, *, rank: int | None = None) -> Value:
        """A value that fits, late ones more often."""
        found = [v for v in self.values if (rank is None or v.rank == rank) and fits(v)]
        if not found:
            raise Unfit
        return found[-1 - min(int(self.rng.expovariate(0.4)), len(found) - 1)]

    def float(self, rank: int | None = None, bound: float = BOUND) -> Value:
        """Of 32 bits mostly: not every operator has other ones in ONNX Runtime."""
        return self.pick(lambda v: v.is_float and v.bound <= bound, rank=rank)

    def f32(self, rank: int | None = None, bound: float = BOUND) -> Value:
        return self.pick(lambda v: v.type == "float32" and v.bound <= bound, rank=rank)

    def exact(self, rank: int | None = None, bound: float = BOUND) -> Value:
        return self.pick(lambda v: v.exact and v.type != "bool" and v.bound <= bound, rank=rank)

    def integer(self, rank: int | None = None) -> Value:
        return self.pick(lambda v: v.type in INTS, rank=rank)

    def truth(self) -> Value:
        return self.pick(lambda v: v.type == "bool")

    def ranked(self, rank: int) -> Value:
        """A float value of 32 bits of a rank, made by Reshape or Unsqueeze where there is none."""
        try:
            return self.f32(rank)
        except Unfit:
            v = self.pick(lambda v: v.type == "float32" and v.rank < rank)
            axes = list(range(rank - v.rank))
            return self.add("Unsqueeze", [v, self.weight(np.array(axes))], (*[self.dim(1)] * len(axes), *v.shape), v)

    def squashed(self, v: Value) -> Value:
        """Within ±1."""
        return v if v.bound <= 1 else self.smooth("Tanh", v, 1, 1)

    def dim(self, n: int) -> Dim:
        return (n,) * self.runs

    def dims(self, *sizes: int) -> Shape:
        return tuple([self.dim(n) for n in sizes])

    def axis(self, v: Value, number: bool = False) -> int:
        """One of its axes, counted from the end as often as not: add `signed` where an attribute takes it."""
        axes = [k for k in range(v.rank) if not number or is_number(v.shape[k])]
        if not axes:
            raise Unfit
        return self.rng.choice(axes)

    def signed(self, axis: int, rank: int) -> int:
        return axis - rank if self.rng.random() < 0.3 else axis

    # ---- weights -------------------------------------------------------------------------------------------------------
    def numpy(self) -> np.random.Generator:
        return np.random.default_rng(self.rng.randrange(1 << 30))

    def floats(self, *shape: int, type: str = "float32", low: float = -1.0, high: float = 1.0) -> str:
        return self.weight(self.numpy().uniform(low, high, shape).astype(type))

    def quarters(self, shape: tuple[int, ...], type: str, low: int = -8, high: int = 9) -> Value:
        """An exact constant: quarters, or integers."""
        data = self.numpy().integers(low if not type.startswith("u") else 0, high, shape)
        name = self.weight((data / 4 if type in DIGITS else data).astype(type))
        return Value(name, self.dims(*shape), type, max(-low, high) / (4 if type in DIGITS else 1), 0.0,
                     2 if type in DIGITS else 0)
