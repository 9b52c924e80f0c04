"""What is known about the sign of values, from the operators that make them."""
from __future__ import annotations

from collections.abc import Mapping

from tilewright.graph.infer import constant_of
from tilewright.graph.ir import Operation, Value

_ALWAYS = frozenset({"relu", "sigmoid", "hard_sigmoid", "softplus", "exp", "abs", "softmax", "sqrt"})
_PRESERVING = frozenset({"max_pool", "avg_pool", "reshape", "slice", "transpose", "expand", "concat", "to_blocked",
                         "from_blocked", "add", "mul", "max", "min", "reduce_mean", "reduce_sum", "reduce_max", "identity"})


def non_negative(v: Value, producers: Mapping[Value, Operation], depth: int = 8) -> bool:
    """Whether no element of `v` can be below zero (a NaN may be anywhere)."""
    a = constant_of(v)
    if a is not None:
        return bool((a >= 0).all())
    op = producers.get(v)
    if op is None or depth == 0:
        return False
    if op.op in _ALWAYS:
        return True
    if op.op == "clip":
        return op.attrs["min"] is not None and op.attrs["min"] >= 0
    if op.op == "pad":
        return (op.attrs["mode"] != "constant" or op.attrs["value"] >= 0) and _all(op, producers, depth)
    if op.op == "resize":
        return op.attrs["mode"] != "cubic" and _all(op, producers, depth)
    return op.op in _PRESERVING and _all(op, producers, depth)


def _all(op: Operation, producers: Mapping[Value, Operation], depth: int) -> bool:
    return all(non_negative(v, producers, depth - 1) for v in op.inputs if v is not None)
