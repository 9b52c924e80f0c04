"""Products of small integers: zero points leave the sum, and the operands are the bytes that processors multiply.

In: a graph whose constants are folded, in which quantized products are products of i32 operands, as their definitions say.
Out: the same graph, bit for bit, where bytes are multiplied and what their zero points add stands behind the sum:

    matmul(i32(a) - za, w)             becomes      matmul(a, i8(w)) - za * (sum of w along k)
    conv(i32(a) - za, w, pads)         becomes      conv(a, i8(w), pads of za) - za * (sum of w)

for a in u8 or i8 and a constant w, which has its own zero point in it already. Sums in i32 are exact modulo 2³², in any
order and however they are distributed. Where the target multiplies the other kind of bytes, 128 is added to a or taken from
it: what makes a then makes that, and other readers take it back.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.core.dtype import DType, i8, i16, i32, u8
from tilewright.graph import interpret
from tilewright.graph.builder import GraphBuilder, rewrite
from tilewright.graph.infer import constant_of, is_one
from tilewright.graph.ir import Graph, Operation, Value
from tilewright.graph.passes.dce import remove_dead
from tilewright.graph.passes.match import map_regions, reshaped
from tilewright.graph.registry import Array
from tilewright.loop.instructions.dot_products import available, dot_product, shared_type, steps
from tilewright.loop.ir import as_int
from tilewright.target.target import Target

BYTES: Mapping[DType, DType] = {u8: i8, i8: u8}
"""The other kind of bytes."""


def integer_products(graph: Graph, target: Target) -> Graph:
    """Products of bytes as such, on CPUs."""
    if target.is_gpu:
        return graph
    graph = map_regions(graph, lambda region: integer_products(region, target))
    return remove_dead(_Products(graph, target).run())


@dataclass(frozen=True)
class _Left:
    """The first operand: `codes` less `point` (a value in i32, or None), both in the shape `shape`."""
    codes: Value
    point: Value | None


@dataclass(frozen=True)
class _Product:
    left: _Left
    weight: Array
    narrow: DType


class _Products:
    """One walk over a graph. `found` are the products by their result, `turned` the values that get the other kind of bytes,
    by what they were; `sums` the constants that stand behind products, to which a bias is added."""

    def __init__(self, graph: Graph, target: Target) -> None:
        self.graph, self.target = graph, target
        self.wanted, self.group = shared_type(target), max([steps(d) for d in available(target)], default=1)
        self.producers = graph.producers()
        self.found = {op.output: p for op in graph.operations if (p := self.product(op)) is not None}
        outputs = set(graph.outputs)
        self.early = {p.left.codes for p in self.found.values()} - outputs
        self.new: dict[Value, Value] = {}
        self.turned: dict[Value, Value] = {}
        self.sums: dict[Value, tuple[Value, Value]] = {}

    def run(self) -> Graph:
        return rewrite(self.graph, self.visit, regions=False) if self.found else self.graph

    # ---- what is there -----------------------------------------------------------------------------------------------
    def product(self, op: Operation) -> _Product | None:
        if op.op not in ("conv", "matmul") or op.output.dtype is not i32 or op.op == "conv" and (
                op.attrs["layout"] != "NCHW" or op.attrs["fill"]):
            return None
        a, b = op.inputs
        left = None if a is None else self.left(a)
        if left is None or b is None or b.data is None or not b.dtype.is_int or left.codes.is_constant:
            return None
        low, high = (int(b.data.min()), int(b.data.max())) if b.data.size else (0, 0)
        fitting = [t for t in (i8, i16) if t.range()[0] <= low and high <= t.range()[1]]
        if not fitting or not self.point_fits(op, left):
            return None
        multiplied = [t for t in fitting if dot_product(self.target, self.wanted or u8, t) is not None]
        return _Product(left, b.data, (multiplied or fitting)[0])

    def left(self, v: Value) -> _Left | None:
        """A value as codes less a zero point, or None."""
        op = self.producers.get(v)
        x = None if op is None else op.inputs[0]
        if op is None or x is None or v.dtype is not i32:
            return None
        if op.op == "cast":
            return _Left(x, None) if x.dtype in BYTES else None
        if op.op == "sub":
            inner, point = self.left(x), op.inputs[1]
            if inner is None or inner.point is not None or point is None or x.shape != v.shape:
                return None
            return _Left(inner.codes, point)
        if op.op == "reshape":
            inner = self.left(x)
            one = inner is not None and (inner.point is None or all(map(is_one, inner.point.shape)))
            return inner if one else None
        return None

    def point_fits(self, op: Operation, left: _Left) -> bool:
        """Whether the zero point is one number for each sum, and what it adds can be told while compiling."""
        p = left.point
        if p is None or all(map(is_one, p.shape)):
            number = p is None or constant_of(p) is not None
            known = op.op == "matmul" or number or not any(op.attrs["pads"]) or all(
                as_int(d) is not None for d in op.inputs[0].shape[1:])  # type: ignore[union-attr]
            return known
        return op.op == "matmul" and is_one(p.shape[-1])

    # ---- what is made ------------------------------------------------------------------------------------------------
    def visit(self, op: Operation, b: GraphBuilder) -> Value | None:
        if len(op.outputs) != 1:
            return None
        if op.output in self.found:
            return self.multiplied(op, self.found[op.output], b)
        if op.op == "add":
            return self.with_bias(op, b)
        if op.output in self.early and self.wanted is not None and op.output.dtype is not self.wanted:
            b.operations.append(op)
            self.turned[op.output] = other = _turned(op.output, b)
            return _turned(other, b)
        return None

    def multiplied(self, op: Operation, p: _Product, b: GraphBuilder) -> Value:
        codes, point = p.left.codes, p.left.point
        shift = 0
        if self.wanted is not None and codes.dtype is not self.wanted:
            shift = 128 if self.wanted is u8 else -128
            if codes not in self.turned:
                self.turned[codes] = _turned(codes, b)
            codes = self.turned[codes]
        x = op.inputs[0]
        assert x is not None
        codes = codes if codes.shape == x.shape else reshaped(codes, x.shape, b)
        fixed = np.int32(0) if point is None else constant_of(point)
        if fixed is None or fixed.size > 1:
            assert point is not None
            moved = b.add("add", [point, b.constant(shift, "shift", i32)]) if shift else point
            y, sums = self.sum(op, codes, p, None, b)
            return b.add("sub", [y, b.add("mul", [moved, b.constant(sums, "sums")])], name=op.output.name)
        number = int(np.reshape(fixed, ())) + shift
        y, sums = self.sum(op, codes, p, number, b)
        if not number:
            return y
        rest = b.constant(-sums * np.int32(number), "zero")
        out = b.add("add", [y, rest], name=op.output.name)
        self.sums[out] = y, rest
        return out

    def sum(self, op: Operation, x: Value, p: _Product, point: int | None, b: GraphBuilder) -> tuple[Value, Array]:
        """The product of the codes, and what each of the zero point's ones adds to it, in a shape that broadcasts; borders
        hold the zero point where it is known, else nothing that counts."""
        w, narrow = p.weight.astype(np.int32), p.narrow.numpy()
        if op.op == "conv":
            attrs = {**op.attrs, "out": i32, "fill": point or 0}
            y = b.add("conv", [x, b.constant(w.astype(narrow), "weights")], attrs, name=op.output.name)
            if point is None and any(op.attrs["pads"]):
                ones = np.ones([1, *[as_int(d) or 1 for d in x.shape[1:]]], np.int32)
                return y, interpret.apply(op, [ones, w])[0]
            return y, w.sum(tuple(range(1, w.ndim)), dtype=np.int32).reshape(1, -1, *(1,) * (w.ndim - 2))
        axis = w.ndim - (1 if op.attrs["transpose_b"] else 2)
        missing = -w.shape[axis] % self.group
        full = np.pad(w, [(0, missing if k == axis else 0) for k in range(w.ndim)])
        if missing:
            x = b.add("pad", [x], {"before": (0,) * x.rank, "after": (*(0,) * (x.rank - 1), missing), "value": 0})
        y = b.add("matmul", [x, b.constant(full.astype(narrow), "weights")], {**op.attrs, "out": i32}, name=op.output.name)
        sums = w.sum(axis, dtype=np.int32)
        return y, sums if w.ndim == 2 else sums[..., None, :]

    def with_bias(self, op: Operation, b: GraphBuilder) -> Value | None:
        """(y + zero) + bias → y + (zero + bias)."""
        for v, other in (op.inputs, op.inputs[::-1]):
            known = self.sums.get(v) if v is not None and v.shape == op.output.shape else None
            if known is not None and other is not None and other.data is not None:
                y, rest = known
                assert rest.data is not None
                return b.add("add", [y, b.constant(rest.data + other.data, "bias")], name=op.output.name)
        return None


def _turned(v: Value, b: GraphBuilder) -> Value:
    """Bytes as those of the other kind, moved by 128."""
    to = BYTES[v.dtype]
    moved: Any = b.add("add", [b.add("cast", [v], {"to": i32}), b.constant(128 if to is u8 else -128, "shift", i32)])
    return b.add("cast", [moved], {"to": to}, name=f"{v.name}_{to.name}")
