"""Arithmetic on half floats in f32: CPUs multiply and add f32, and round to f16 or bf16 when a value is stored.

In: a Graph for a CPU. Out: the same graph where products, sums, reductions and elementwise operations on f16 or bf16 have
f32 operands and a cast of their result; between two of them the value is an f32 that a half float can hold:

    conv(x, w) : f16      becomes      cast(cast(conv(cast(x), w') {f32}, f16), f32) {f32}, w' in f32

Every operation rounds as before (an f32 result of two half floats rounds to the half float that exact arithmetic gives), so
results are the same up to the order of sums. The casts between operations of one kernel stay in registers; what has f32
operands has the schedules, layouts and algorithms of f32. Weights take twice their size.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilewright.core.dtype import DType, bf16, f16, f32
from tilewright.graph.builder import GraphBuilder, rewrite
from tilewright.graph.infer import product
from tilewright.graph.ir import Graph, Operation, Value
from tilewright.graph.passes.packed import are_streamed
from tilewright.graph.registry import record_of
from tilewright.loop.ir import as_int

HALF = (f16, bf16)
MANY_ROWS = 64
"""Rows of a product from which its weights are f32: to widen them again in each run took 8 % of the time at 128 rows."""

_ARITHMETIC = frozenset({"elementwise", "broadcast", "reduction", "anchor"})
_OF_BITS = frozenset({"cast", "bit_cast", "order_key"})
_MOVES = frozenset({"reshape", "transpose", "expand", "slice", "pad", "concat", "gather", "tile"})
_CHOICES = frozenset({"relu", "max", "min", "abs", "neg", "where", "max_pool", "reduce_max", "reduce_min"})
"""Of half floats they give half floats: nothing to round."""


def widen_half(graph: Graph) -> Graph:
    """Do arithmetic on f16 and bf16 in f32."""
    return rewrite(graph, _Widening(graph).rule)


class _Widening:
    """One walk; `wide` has, by the builder of a graph or region and a half value, the same value as f32."""

    def __init__(self, graph: Graph) -> None:
        self.readers: dict[Value, list[Operation]] = {}
        self.note_readers(graph)
        self.wide: dict[tuple[GraphBuilder, Value], Value] = {}

    def note_readers(self, graph: Graph) -> None:
        for op in graph.operations:
            for v in op.inputs:
                if v is not None:
                    self.readers.setdefault(v, []).append(op)
            for region in op.regions:
                self.note_readers(region)

    def rule(self, op: Operation, b: GraphBuilder) -> Value | Sequence[Value] | None:
        if not any(v is not None and v.dtype in HALF for v in op.inputs) or op.regions:
            return None
        arithmetic = record_of(op).fusion in _ARITHMETIC and op.op not in _OF_BITS
        if not arithmetic and not (op.op in _MOVES and all(
                v is None or v.dtype not in HALF or v.is_constant or (b, v) in self.wide for v in op.inputs)):
            return None
        attrs: dict[str, Any] = {"out": None} if op.attrs.get("out") in HALF else {}
        made = b.again(op, [self.widened(v, b) for v in op.inputs], **attrs)
        results = [made] if isinstance(made, Value) else list(made)
        rounds = arithmetic and op.op not in _CHOICES
        return [self.narrowed(y, old.dtype, b, rounds) for y, old in zip(results, op.outputs, strict=True)]

    def stays_half(self, v: Value) -> bool:
        """Whether a constant is the weights of products alone, none of which is known to have many rows."""
        readers = self.readers.get(v, [])
        return v.rank == 2 and are_streamed(v, readers) and all(
            (as_int(product(r.output.shape[:-1])) or 0) < MANY_ROWS for r in readers)

    def widened(self, v: Value | None, b: GraphBuilder) -> Value | None:
        """An operand as f32, if it is a half float."""
        if v is None or v.dtype not in HALF:
            return v
        if (b, v) not in self.wide:
            if v.data is None:
                wide = b.add("cast", [v], {"to": f32}, name=v.name)
            elif self.stays_half(v):
                wide = b.add("widen_weights", [v], name=v.name)
            else:
                wide = b.constant(v.data, v.name, f32)
            self.wide[b, v] = wide
        return self.wide[b, v]

    def narrowed(self, y: Value, to: DType, b: GraphBuilder, rounds: bool) -> Value:
        """A result in the type that it had."""
        if to not in HALF or y.dtype is to:
            return y
        out = b.add("cast", [y], {"to": to}, name=y.name)
        self.wide[b, out] = b.add("cast", [out], {"to": f32}, name=y.name) if rounds else y
        return out
