"""Reshapes move behind elementwise operations, so that bias, residual and activation stand right behind the kernel whose
epilogue they can become.

    reshape(matmul(a, w)) + r      becomes      reshape(matmul(a, w) + reshape(r))

In: any Graph. Out: the same graph in which a reshape of a kernel's result stands behind the elementwise operations that
read it. Reshapes of stored values are free, so those made for the other operands cost nothing.
"""
from __future__ import annotations

from collections.abc import Sequence

from tilewright.graph.infer import is_one
from tilewright.graph.ir import Graph, Operation, Value
from tilewright.graph.ops.view import aligned_groups
from tilewright.graph.passes.layouts import PLACE_DEPENDENT
from tilewright.graph.passes.match import Result, Walk, apply, reshaped
from tilewright.graph.registry import record_of
from tilewright.loop.ir import Expr, const


def sink_reshapes(graph: Graph) -> Graph:
    """Move reshapes of kernels' results behind elementwise operations."""
    return apply(graph, {}, everywhere=[_sink])


def _sink(op: Operation, w: Walk) -> Result:
    if record_of(op).fusion not in ("elementwise", "broadcast") or op.op in PLACE_DEPENDENT or len(op.outputs) != 1:
        return None
    for v in op.inputs:
        if v is not None and v.shape == op.output.shape:
            moved = _sink_one(op, v, w)
            if moved is not None:
                return moved
    return None


def _sink_one(op: Operation, v: Value, w: Walk) -> Result:
    """Sink the reshape that makes operand `v`, which has the result's shape."""
    inner = w.producer(v, "reshape")
    if inner is None or inner.inputs[0] is None or not w.lone(v):
        return None
    x = inner.inputs[0]
    if not _from_kernel(x, w):
        return None
    shapes = [None if u is None or u is v else operand_shape(u.shape, op.output.shape, x.shape) for u in op.inputs]
    if any(s is None and u is not None and u is not v for s, u in zip(shapes, op.inputs, strict=True)):
        return None
    if not _order(x.shape) < _order(v.shape) and any(
            u is not None and s is not None and u.shape != s and _from_kernel(u, w)
            for u, s in zip(op.inputs, shapes, strict=True)):
        return None  # the reshape of that operand would sink in turn, and undo this
    inputs: list[Value | None] = []
    for u, shape in zip(op.inputs, shapes, strict=True):
        if u is None or u is v:
            inputs.append(x if u is v else None)
        elif shape is None or u.shape == shape:
            inputs.append(u)
        else:
            inputs.append(reshaped(u, shape, w.b))
    y = w.b.add(op.op, inputs, op.attrs, name=op.output.name)
    return w.b.reshape(y, op.output.shape, op.output.name)


def _from_kernel(x: Value, w: Walk) -> bool:
    """Whether a kernel that takes an epilogue makes `x` for one reader."""
    made = w.producer(x)
    return made is not None and record_of(made).fusion in ("anchor", "elementwise", "broadcast") and w.lone(x)


def _order(shape: Sequence[Expr]) -> tuple[int, list[str]]:
    """Any total order of shapes, short ones first: it decides between two reshapes that could both sink."""
    return len(shape), [repr(d) for d in shape]


def operand_shape(own: Sequence[Expr], result: Sequence[Expr], source: Sequence[Expr]) -> tuple[Expr, ...] | None:
    """The shape that an operand of shape `own`, broadcast to `result`, takes where the result is reshaped to `source`;
    None if there is no such shape (the operand is repeated along a part of an axis)."""
    full = [*[const(1)] * (len(result) - len(own)), *own]
    if all(is_one(d) for d in full):
        return ()
    out: list[Expr] = [const(1)] * len(source)
    for src, dst in aligned_groups(tuple(source), tuple(result)):
        wide = [k for k in dst if not is_one(result[k])]
        if all(is_one(full[k]) for k in wide):
            continue
        if any(full[k] != result[k] for k in wide):
            return None
        for k in src:
            out[k] = source[k]
    while out and is_one(out[0]) and len(out) > 1:
        out.pop(0)
    return tuple(out)
