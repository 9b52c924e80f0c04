"""Attention, as operator fusion sees it: a product, elementwise operations, a softmax of its rows, and a second product.

In: a Graph after all rewrites. Out: which operations continue the kernel of an operand, so that `passes/fuse.py` makes one
group of g(softmax(f(Q Kᵀ))) V, g an elementwise function (torch writes zeros for rows without any key). Its schedule
(`tensor/rules/attention.py`) works on a few rows of scores at a time, which then never reach memory.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from tilewright.core.dtype import bf16, f16, f32
from tilewright.graph.ir import Graph, Operation, Value
from tilewright.graph.registry import record_of
from tilewright.loop.ir import estimate

FLOATS = (f32, f16, bf16)
"""What scores may be on the way: half floats between two casts, which round them (`passes/half.py`)."""

MAX_KEYS = 4096
"""Longest row of scores: a few of them must fit the second-level cache."""

MAX_BETWEEN = 4
"""Most elementwise operations between a softmax and the second product."""


def continued_kernels(graph: Graph, users: Mapping[Value, Sequence[Operation]],
                      producers: Mapping[Value, Operation]) -> dict[int, Value]:
    """For the operations of each attention after its first product (by id): the operand whose kernel they continue."""
    shared = {v for v, readers in users.items() if len(readers) > 1} | set(graph.outputs)
    out: dict[int, Value] = {}
    for op in graph.operations:
        rows = op.inputs[0] if op.op == "matmul" else None
        behind = None if rows is None else _path_from_softmax(rows, op, users, producers, set(graph.outputs))
        if rows is None or behind is None:
            continue
        softmax, between = behind
        scores = softmax.inputs[0]
        path = None if scores is None or not _sums_rows(op, softmax) else _path_from_product(scores, producers, shared)
        if path is not None and scores is not None:
            out |= {id(op): rows, **{id(o): softmax.output for o in between}, id(softmax): scores,
                    **{id(o): v for o, v in path}}
    return out


def _path_from_softmax(rows: Value, product: Operation, users: Mapping[Value, Sequence[Operation]],
                       producers: Mapping[Value, Operation],
                       outputs: Set[Value]) -> tuple[Operation, list[Operation]] | None:
    """The softmax from which the rows of a product come, and the elementwise operations between, which no one else reads;
    None if they come from elsewhere."""
    between: dict[int, Operation] = {}
    softmax: Operation | None = None
    stack = [rows]
    while stack:
        v = stack.pop()
        op = producers.get(v)
        if op is None or id(op) in between or op is softmax:
            continue
        if op.op == "softmax" and softmax is None:
            softmax = op
        elif record_of(op).fusion in ("elementwise", "broadcast") and len(between) < MAX_BETWEEN:
            between[id(op)] = op
            stack += [u for u in op.inputs if u is not None and u.shape == rows.shape]
        else:
            return None
    if softmax is None:
        return None
    inside = {*between, id(product)}
    made = [softmax.output, *[op.output for op in between.values()]]
    if any(v in outputs or any(id(u) not in inside for u in users[v]) for v in made):
        return None
    reached = {softmax.output}
    for _ in between:
        reached |= {op.output for op in between.values() if any(u in reached for u in op.inputs)}
    return (softmax, list(between.values())) if len(reached) == len(between) + 1 else None


def _sums_rows(op: Operation, softmax: Operation) -> bool:
    """Whether a product sums over each row that `softmax` makes, and its other axes are those of the rows."""
    product, rows = op.output, softmax.output
    sizes = [estimate(d) for d in (*rows.shape, product.shape[-1])]
    return (softmax.attrs["axis"] == rows.rank - 1 and product.shape[:-1] == rows.shape[:-1]
            and product.dtype is f32 and rows.dtype is f32 and min(sizes) > 0 and min(sizes[-2:]) > 1
            and sizes[-2] <= MAX_KEYS)


def _path_from_product(v: Value, producers: Mapping[Value, Operation],
                       shared: Set[Value]) -> list[tuple[Operation, Value]] | None:
    """The elementwise operations between a product and `v`, each with the operand that comes from the product; None if `v`
    does not come from one, or if someone else reads a value on the way."""
    op = producers.get(v)
    if op is None or v in shared or v.dtype not in FLOATS:
        return None
    if op.op == "matmul":
        left = op.inputs[0]
        return [] if left is not None and estimate(left.shape[-1]) > 1 else None
    if record_of(op).fusion not in ("elementwise", "broadcast") or len(op.outputs) != 1:
        return None
    for operand in op.inputs:
        if operand is not None and operand.shape == v.shape:
            path = _path_from_product(operand, producers, shared)
            if path is not None:
                return [(op, operand), *path]
    return None
