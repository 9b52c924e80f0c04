"""What an operator is: one record that holds everything the compiler knows about it.

An operator lives in one place (`graph/ops/*.py`): its typed attributes, shape and type rule, NumPy meaning (the
reference), compute recipes, fusion class and optional rules. A frontend maps to it in one line.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tilewright.core.errors import InternalError, UserError
from tilewright.core.registry import Registry
from tilewright.graph.ir import Operation, TensorType, Value
from tilewright.loop.ir import Expr

Fusion = Literal["elementwise", "broadcast", "injective", "view", "reduction", "anchor", "opaque"]
"""How an operation may be fused: "elementwise" (output index = every input's index), "broadcast" (the same with NumPy
broadcasting), "view" (injective without arithmetic: transpose, slice, reshape, expand: may be folded into its readers'
loads), "injective" (each output element from a bounded number of input elements at computed places: pad, concat,
gather), "reduction" (rows: softmax, mean, norms), "anchor" (matmul, convolution, pooling: heavy, takes an epilogue),
"opaque" (a kernel or host operation of its own)."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Attr:
    """A typed attribute: `type` is int, float, str, bool, or a description such as "ints"; `default` ... if required."""
    type: Any
    default: Any = ...
    doc: str = ""


@dataclass(frozen=True)
class OpRecord:
    """Everything about one operator.

    `infer(op) -> [TensorType, ...]` gives the output types from inputs and attributes (raising UserError where they do
    not fit). `elements(op) -> [tuple of Expr | None, ...]` carries values of small integer tensors, where it can.
    `numpy(attrs, *arrays) -> array or tuple` is the reference meaning. `compute(op, *tensors) -> Tensor or tuple` is the
    default recipe in the compute language; `alternatives` are further ones by name, each with a legality test in its
    own file. `identity_input` tells which input an output may share memory with when the operation is elementwise.
    """
    name: str
    fusion: Fusion
    infer: Callable[[Operation], Sequence[TensorType]]
    numpy: Callable[..., Any] | None
    compute: Callable[..., Any] | None = None
    attrs: dict[str, Attr] = field(default_factory=dict)
    elements: Callable[[Operation], Sequence[tuple[Expr, ...] | None]] | None = None
    alternatives: dict[str, Callable[..., Any]] = field(default_factory=dict)
    doc: str = ""


OPS: Registry[OpRecord] = Registry("graph operator")


def register(record: OpRecord) -> OpRecord:
    OPS.register(record.name, record)
    return record


def record_of(op: Operation) -> OpRecord:
    return OPS.get(op.op)


def make(op: str, inputs: Sequence[Value | None], attrs: dict[str, Any] | None = None, *, name: str = "",
         loc: str = "", regions: Sequence[Any] = ()) -> Operation:
    """A new operation with checked attributes and inferred outputs (types, and elements where known)."""
    rec = OPS.get(op)
    given = dict(attrs or {})
    for key in given:
        if key not in rec.attrs:
            raise InternalError(f"{op} has no attribute {key!r} (it has {', '.join(rec.attrs) or 'none'})")
    for key, spec in rec.attrs.items():
        if key not in given:
            if spec.default is ...:
                raise InternalError(f"{op} needs the attribute {key!r}")
            given[key] = spec.default
    bare = Operation(op, inputs, given, (), regions, loc)
    try:
        types = rec.infer(bare)
    except UserError as e:
        if not e.where:
            raise UserError(e.code, e.message, where=loc or name or op, hint=e.hint) from e
        raise
    base = name or op
    outs = [Value(base if k == 0 else f"{base}.{k}", t, loc=loc) for k, t in enumerate(types)]
    out = Operation(op, inputs, given, outs, regions, loc)
    if rec.elements is not None:
        for v, e in zip(outs, rec.elements(out), strict=True):
            v.elements = e
    return out
