"""Constant folding: operations on constants are evaluated while compiling, known elements become constants.

In: a Graph, and an `Evaluator` that runs one operation on arrays (by default the graph interpreter). Out: the same graph
with results in place of what could be computed, except where that would blow the constants up.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tilewright.graph import interpret
from tilewright.graph.builder import GraphBuilder, rewrite
from tilewright.graph.infer import constant_of, element_count
from tilewright.graph.ir import Graph, Operation, Value
from tilewright.graph.ops.packed import EXPANDERS
from tilewright.graph.passes.dce import remove_dead
from tilewright.graph.registry import Array, has_numeric_attrs, record_of

Evaluator = Callable[[Operation, Sequence[Array | None]], tuple[Array, ...]]
"""Runs one operation of known sizes on arrays."""

MAX_BYTES = 64 << 20
MAX_GROWTH = 8
"""A result is not stored if it is larger than MAX_BYTES and than MAX_GROWTH times what it is made of."""
MAX_COPIES_BYTES = 1 << 20
"""The same limit for operators that only repeat their operand (`REPEATING`): repeating costs nothing where it is read."""
REPEATING = frozenset({"expand", "tile", "full"})
LEFT = EXPANDERS | {"sizes"}
"""What stays: symbols in use, and weights for which `passes/packed.py` decides."""


def fold_constants(graph: Graph, evaluate: Evaluator = interpret.apply) -> Graph:
    """Evaluate operations whose operands are constants."""
    def rule(op: Operation, b: GraphBuilder) -> list[Value] | None:
        results = _known(op) or _evaluated(op, evaluate)
        if results is None:
            return None
        return [b.constant(np.asarray(a, dtype=v.dtype.numpy()), name=v.name)
                for a, v in zip(results, op.outputs, strict=True)]
    return remove_dead(rewrite(graph, rule))


def _known(op: Operation) -> list[Array] | None:
    """The results where inference already knows every element."""
    if op.op in LEFT:
        return None
    found = [constant_of(v) for v in op.outputs]
    return None if not found or any(a is None for a in found) else [a for a in found if a is not None]


def _evaluated(op: Operation, evaluate: Evaluator) -> Sequence[Array] | None:
    rec = record_of(op)
    if op.regions or not op.outputs or op.op in LEFT or rec.numpy is None or not _small_enough(op):
        return None
    arrays = [constant_of(v) for v in op.inputs]
    if any(a is None and v is not None for a, v in zip(arrays, op.inputs, strict=True)):
        return None
    if not has_numeric_attrs(rec, op.attrs):
        return None
    results = evaluate(op, arrays)
    fits = all(a.shape == v.type.sizes() for a, v in zip(results, op.outputs, strict=True))
    return results if fits else None


def _small_enough(op: Operation) -> bool:
    """Whether the results are of known size and within the limits."""
    counts = [element_count(v.type) for v in op.outputs]
    if any(n is None for n in counts):
        return False
    made = sum((n or 0) * v.dtype.nbytes for n, v in zip(counts, op.outputs, strict=True))
    used = sum(v.data.nbytes for v in op.inputs if v is not None and v.data is not None)
    limit = MAX_COPIES_BYTES if op.op in REPEATING else MAX_BYTES
    return made <= limit or made <= MAX_GROWTH * used
