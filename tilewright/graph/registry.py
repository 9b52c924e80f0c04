"""What an operator is: one record that holds everything the compiler knows about it.

An operator lives in one place (`graph/ops/*.py`): its typed attributes, shape and type rule, NumPy meaning (the
reference), compute recipes, fusion class and optional rules. A frontend maps to it in one line.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tilewright.core.dtype import DType, boolean, dtype, i64
from tilewright.core.errors import InternalError, UserError
from tilewright.core.registry import Registry
from tilewright.graph.infer import MAX_ELEMENTS, constant_of, dim, element_count, expect_at_most
from tilewright.graph.ir import Operation, TensorType, Value
from tilewright.loop.ir import Const, Expr, Var, as_int, const

Fusion = Literal["elementwise", "broadcast", "injective", "view", "reduction", "anchor", "opaque"]
"""How an operation may be fused: "elementwise" (output index = every input's index), "broadcast" (the same with NumPy
broadcasting), "view" (injective without arithmetic: transpose, slice, reshape, expand: may be folded into its readers'
loads), "injective" (each output element from a bounded number of input elements at computed places: pad, concat,
gather), "reduction" (rows: softmax, mean, norms), "anchor" (matmul, convolution, pooling: heavy, takes an epilogue),
"opaque" (a kernel or host operation of its own)."""

AttrType = Literal["int", "float", "str", "bool", "number", "dtype", "ints", "floats", "strs", "dims", "dim", "symbols",
                   "operator", "pairs"]
"""Types of attributes. "dims" and "dim" are expressions (numbers or symbols); "symbols" are those that the operation gives
values; "number" is an int, float or bool; "operator" and "pairs" are a user's operator and what it is given."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Attr:
    """A typed attribute; `default` ... means that it must be given, None that it may be absent."""
    type: AttrType
    default: Any = ...
    doc: str = ""


@dataclass(frozen=True)
class OpRecord:
    """Everything about one operator.

    `infer(op) -> [TensorType, ...]` gives the output types from inputs and attributes (raising UserError where they do
    not fit); `normalize(op) -> attrs` runs before it and brings attributes into one form (axes counted from the front, a
    size of -1 resolved). `elements(op) -> [tuple of Expr | None, ...]` carries values of small integer tensors whose
    elements are symbolic; where all operands are known numbers, `numpy` serves.
    `numpy(attrs, *arrays) -> array or tuple` is the reference meaning (dimension attributes arrive as numbers; None for
    an absent operand; operators with regions get callables as attrs["regions"]). `compute(op, *tensors) -> Tensor or
    tuple` is the recipe in the compute language. An operator without one runs on the host, by `numpy`; `host` says why
    it has none. `gradient(op, gradients of the results, arithmetic)` gives those of the inputs (`graph/ops/gradients.py`).
    """
    name: str
    fusion: Fusion
    infer: Callable[[Operation], Sequence[TensorType]]
    numpy: Callable[..., Any] | None
    compute: Callable[..., Any] | None = None
    attrs: dict[str, Attr] = field(default_factory=dict)
    normalize: Callable[[Operation], dict[str, Any]] | None = None
    elements: Callable[[Operation], Sequence[tuple[Expr, ...] | None]] | None = None
    host: str = ""
    doc: str = ""
    gradient: Callable[[Operation, Sequence[Value | None], Any], Sequence[Value | None]] | None = None


OPS: Registry[OpRecord] = Registry("graph operator")


def register(record: OpRecord) -> OpRecord:
    OPS.register(record.name, record)
    return record


def record_of(op: Operation) -> OpRecord:
    return OPS.get(op.op)


def runs_on_host(op: Operation) -> bool:
    """Whether an operation has a NumPy meaning and no recipe: the compiled program calls back for it."""
    rec = record_of(op)
    plain = rec.numpy is not None and not op.regions and not any(a.type == "symbols" for a in rec.attrs.values())
    return rec.compute is None and plain


def make(op: str, inputs: Sequence[Value | None], attrs: dict[str, Any] | None = None, *, name: str = "",
         loc: str = "", regions: Sequence[Any] = ()) -> Operation:
    """A new operation with checked attributes and inferred outputs (types, and elements where known)."""
    rec = OPS.get(op)
    try:
        bare = Operation(op, inputs, _checked_attrs(rec, attrs or {}), (), regions, loc)
        if rec.normalize is not None:
            bare.attrs.update(rec.normalize(bare))
        types = rec.infer(bare)
        for t in types:
            if any((as_int(d) or 0) < 0 for d in t.shape):
                raise UserError("shape-mismatch", f"{op}: a result would have a negative size: {t}")
            for d in t.shape:
                if not isinstance(d, Const | Var):
                    expect_at_most(bare, const(0), d, "the size of a result")
    except UserError as fault:
        if fault.where:
            raise
        raise UserError(fault.code, fault.message, where=loc or name or op, hint=fault.hint) from fault
    base = name or op
    outs = [Value(base if k == 0 else f"{base}.{k}", t, loc=loc) for k, t in enumerate(types)]
    out = Operation(op, inputs, bare.attrs, outs, regions, loc)
    out.assumed = bare.assumed
    known = known_elements(rec, out)
    for v, e in zip(outs, known, strict=True):
        v.elements = e
    return out


def known_elements(rec: OpRecord, op: Operation) -> Sequence[tuple[Expr, ...] | None]:
    """The elements of each output where they follow from elements of the inputs; None where they do not."""
    nothing = [None] * len(op.outputs)
    if op.regions or not op.outputs or any(_too_large(v.type) for v in op.outputs):
        return nothing
    if rec.numpy is not None and op.inputs and rec.fusion != "anchor":
        arrays = [_small_constant(v) for v in op.inputs]
        if all(a is not None or v is None for a, v in zip(arrays, op.inputs, strict=True)):
            try:
                results = rec.numpy(numeric_attrs(rec, op.attrs), *arrays)
            except _Symbolic:
                return nothing
            results = results if isinstance(results, tuple) else (results,)
            return [_as_elements(np.asarray(r), v.dtype) for r, v in zip(results, op.outputs, strict=True)]
    if rec.elements is None or not all(v.dtype.is_int or v.dtype is boolean for v in op.outputs):
        return nothing
    return rec.elements(op)


def numeric_attrs(rec: OpRecord, attrs: dict[str, Any], value: Callable[[Expr], int] | None = None) -> dict[str, Any]:
    """Attributes with dimension expressions as numbers: by `value`, which defaults to constants only."""
    of = value or _constant_dim
    out = dict(attrs)
    for key, spec in rec.attrs.items():
        if spec.type == "dims" and out[key] is not None:
            out[key] = tuple([of(d) for d in out[key]])
        elif spec.type == "dim" and out[key] is not None:
            out[key] = of(out[key])
    return out


def has_numeric_attrs(rec: OpRecord, attrs: dict[str, Any]) -> bool:
    """Whether the dimensions among the attributes are all numbers."""
    try:
        numeric_attrs(rec, attrs)
    except _Symbolic:
        return False
    return True


class _Symbolic(Exception):
    """A dimension is no number."""


def _constant_dim(d: Expr) -> int:
    v = getattr(d, "value", None)
    if v is None:
        raise _Symbolic
    return int(v)


def _too_large(t: TensorType) -> bool:
    n = element_count(t)
    return n is None or n > MAX_ELEMENTS


def _small_constant(v: Value | None) -> Array | None:
    return None if v is None or _too_large(v.type) else constant_of(v)


def _as_elements(a: Array, t: DType) -> tuple[Expr, ...]:
    kind = i64 if t.is_int else t
    return tuple([const(x, kind) for x in a.ravel().tolist()])


def _checked_attrs(rec: OpRecord, given: dict[str, Any]) -> dict[str, Any]:
    """The attributes in declared order, with defaults, each brought into the form of its type."""
    for key in given:
        if key not in rec.attrs:
            raise InternalError(f"{rec.name} has no attribute {key!r} (it has {', '.join(rec.attrs) or 'none'})")
    out: dict[str, Any] = {}
    for key, spec in rec.attrs.items():
        value = given.get(key, spec.default)
        if value is ...:
            raise InternalError(f"{rec.name} needs the attribute {key!r}")
        if value is None:
            if spec.default is not None:
                raise InternalError(f"{rec.name}: the attribute {key!r} is None")
            out[key] = None
            continue
        try:
            out[key] = _CONVERT[spec.type](value)
        except (TypeError, ValueError) as e:
            raise InternalError(f"{rec.name}: the attribute {key!r} = {value!r} is no {spec.type}") from e
    return out


def _number(value: Any) -> int | float | bool:
    plain = value.item() if hasattr(value, "item") else value
    if not isinstance(plain, int | float):
        raise TypeError(value)
    return plain


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "int": int, "float": float, "str": str, "bool": bool, "number": _number, "dtype": dtype,
    "ints": lambda v: tuple([int(x) for x in v]), "floats": lambda v: tuple([float(x) for x in v]),
    "strs": lambda v: tuple([str(x) for x in v]),
    "dims": lambda v: tuple([dim(x) for x in v]), "dim": dim, "symbols": tuple,
    "operator": lambda v: v, "pairs": lambda v: tuple([(str(k), x) for k, x in v])}
