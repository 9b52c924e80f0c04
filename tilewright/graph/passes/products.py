"""Matrix products in the form that kernels want: two axes where the leading ones can be merged, transposes in the
`transpose_b` attribute, parallel products of one operand as one wide product.

In: any Graph. Out: the same graph.

    matmul(x[1, 128, 768], w[768, n])        →   reshape(matmul(reshape(x) [128, 768], w))
    matmul(x, transpose(w))                  →   matmul(x, w, transpose_b)
    matmul(x, w1) + b1, matmul(x, w2) + b2   →   slices of matmul(x, [w1 w2]) + [b1 b2]
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.graph.builder import GraphBuilder, rewrite
from tilewright.graph.infer import is_one, product
from tilewright.graph.ir import Graph, Operation, Value
from tilewright.graph.passes.dce import remove_dead
from tilewright.graph.passes.fuse import can_fold_view
from tilewright.graph.passes.match import Result, Rule, Walk, apply, reshaped
from tilewright.loop.ir import as_int


def simplify_products(graph: Graph) -> Graph:
    """Merge leading axes and fold transposes of matrix products."""
    return apply(graph, _RULES)


def _transposed(op: Operation, w: Walk) -> Result:
    """A transpose of the last two axes of the right operand goes into the attribute."""
    a, b = op.inputs
    inner = w.producer(b, "transpose")
    if inner is None or b is None or inner.inputs[0] is None:
        return None
    rank = b.rank
    if inner.attrs["perm"] != (*range(rank - 2), rank - 1, rank - 2) or not inner.inputs[0].is_constant:
        return None
    return w.b.add("matmul", [a, inner.inputs[0]], {**op.attrs, "transpose_b": not op.attrs["transpose_b"]},
                   name=op.output.name)


def _flat(op: Operation, w: Walk) -> Result:
    """[…, m, k] times one matrix: all leading axes are rows."""
    a, b = op.inputs
    if a is None or b is None or a.rank == 2 or any(not is_one(d) for d in b.shape[:-2]):
        return None
    if b.rank > 2:
        if b.rank > a.rank:
            return None
        b = reshaped(b, b.shape[-2:], w.b)
    rows = w.b.reshape(a, (product(a.shape[:-1]), a.shape[-1]), a.name)
    y = w.b.add("matmul", [rows, b], op.attrs, name=op.output.name)
    return w.b.reshape(y, op.output.shape, op.output.name)


_RULES: dict[str, Sequence[Rule]] = {"matmul": [_transposed, _flat]}


# ---- parallel products -----------------------------------------------------------------------------------------------
@dataclass
class _Branch:
    """One of several products of the same operand: the product, the addition of a constant row behind it, if any, and what
    expands its weights if they are packed."""
    matmul: Operation
    bias: Operation | None
    packed: Operation | None

    @property
    def result(self) -> Value:
        return (self.bias or self.matmul).output

    @property
    def form(self) -> tuple[object, ...]:
        """What products that become one have in common."""
        p = self.packed
        packed = () if p is None else (*p.attrs.items(), *[None if v is None else v.dtype for v in p.inputs])
        return self.bias is None, self.matmul.attrs["out"], self.result.dtype, packed

    def weight(self) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        """[k, n]"""
        w = self.matmul.inputs[1]
        assert w is not None and w.data is not None
        return w.data.T if self.matmul.attrs["transpose_b"] else w.data

    def row(self) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        assert self.bias is not None
        return np.concatenate([v.data.reshape(-1) for v in self.bias.inputs if v is not None and v.data is not None])


def combine_products(graph: Graph) -> Graph:
    """Do several products of one operand with constant matrices as one, where its parts can be read as views."""
    users, producers, outputs = graph.users(), graph.producers(), set(graph.outputs)
    by_operand: dict[Value, list[_Branch]] = {}
    for op in graph.operations:
        x = op.inputs[0] if op.op == "matmul" else None
        branch = _branch(op, users, outputs, producers) if x is not None and not x.is_constant else None
        if branch is not None and x is not None:
            by_operand.setdefault(x, []).append(branch)
    first: dict[Value, list[_Branch]] = {}
    for branches in by_operand.values():
        alike = [b for b in branches if b.form == branches[0].form]
        if len(alike) > 1:
            first[alike[0].matmul.output] = alike
    if not first:
        return graph
    parts: dict[Value, Value] = {}

    def rule(op: Operation, b: GraphBuilder) -> Value | None:
        if len(op.outputs) != 1:
            return None
        if op.output in first:
            parts.update(_combined(first[op.output], op.inputs[0], b))
        return parts.get(op.output)
    return remove_dead(rewrite(graph, rule))


def _branch(op: Operation, users: dict[Value, list[Operation]], outputs: set[Value],
            producers: dict[Value, Operation]) -> _Branch | None:
    """A product with a constant matrix, as it is or packed, whose readers all take views."""
    w = op.inputs[1]
    packed = None if w is None else producers.get(w)
    if packed is not None and (packed.op != "unpack_weights" or not all(v is None or v.is_constant for v in packed.inputs)):
        return None
    if w is None or (w.data is None and packed is None) or w.rank != 2 or op.output.rank != 2 or op.output in outputs:
        return None
    readers = users.get(op.output, [])
    bias = readers[0] if len(readers) == 1 and readers[0].op == "add" and _is_row(readers[0], op.output) else None
    end = bias.output if bias is not None else op.output
    if end in outputs or not _takes_views(end, users, outputs):
        return None
    return _Branch(op, bias, packed)


def _is_row(add: Operation, y: Value) -> bool:
    other = [v for v in add.inputs if v is not y]
    return (len(other) == 1 and other[0] is not None and other[0].data is not None and 0 < other[0].rank <= y.rank
            and other[0].data.size == as_int(y.shape[-1]) == other[0].data.shape[-1])


def _takes_views(v: Value, users: dict[Value, list[Operation]], outputs: set[Value]) -> bool:
    """Whether everything behind `v`, through reshapes that split axes, can read a slice of a wider tensor."""
    for u in users.get(v, ()):
        if u.op == "reshape":
            if u.output in outputs or not _splits_last(v, u.output) or not _takes_views(u.output, users, outputs):
                return False
        elif not can_fold_view(u):
            return False
    return True


def _splits_last(x: Value, y: Value) -> bool:
    """Whether a reshape leaves the last axis whole or splits it, so that a slice of it stays one."""
    n, rest = as_int(x.shape[-1]), 1
    for d in reversed(y.shape):
        rest *= as_int(d) or 0
        if rest == n:
            return True
    return False


def _combined(branches: list[_Branch], x: Value | None, b: GraphBuilder) -> dict[Value, Value]:
    """The wide product, and its slices by the values that they replace."""
    like = branches[0].matmul
    packed = branches[0].packed
    if packed is None:
        wide = b.constant(np.concatenate([br.weight() for br in branches], axis=1), "weights")
    else:
        parts = [[v.data for v in br.packed.inputs if v is not None and v.data is not None] for br in branches if br.packed]
        wide = b.again(packed, [b.constant(np.concatenate(columns), "packed") for columns in zip(*parts, strict=True)])
    y = b.add("matmul", [x, wide], {**like.attrs, "transpose_b": False}, name=like.output.name)
    if branches[0].bias is not None:
        y = b.add("add", [y, b.constant(np.concatenate([br.row() for br in branches]), "bias")], name=y.name)
    out: dict[Value, Value] = {}
    at = 0
    for br in branches:
        n = as_int(br.result.shape[-1]) or 0
        out[br.result] = b.slice(y, {1: (at, at + n, 1)}, br.result.name)
        at += n
    return out
