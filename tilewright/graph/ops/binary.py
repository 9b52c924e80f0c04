"""Elementwise operators of two or three operands with NumPy's broadcasting: arithmetic, comparisons, logic, where."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import boolean
from tilewright.graph.infer import (
    broadcast,
    dim,
    element_grid,
    expect_dtype,
    expect_same_dtype,
    is_natural,
    operands,
)
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.ops import gradients
from tilewright.graph.ops.recipes import BINARY, binary_recipe, where_recipe
from tilewright.graph.registry import Array, OpRecord
from tilewright.loop.ir import Const, Expr, Select, maximum, minimum


def _narrow(x: Array) -> bool:
    return x.dtype.itemsize < 4 and x.dtype.kind not in "biu"


def _numeric(fn: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    """Result in the operands' type; narrow floats are computed in f32; integers wrap."""
    def run(attrs: dict[str, Any], a: Array, b: Array) -> Array:
        with np.errstate(all="ignore"):
            if _narrow(a):
                return np.asarray(fn(a.astype(np.float32), b.astype(np.float32))).astype(a.dtype)
            return np.asarray(fn(a, b)).astype(a.dtype, copy=False)
    return run


def _compare(fn: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    def run(attrs: dict[str, Any], a: Array, b: Array) -> Array:
        return np.asarray(fn(a, b), dtype=bool)
    return run


def _div(a: Array, b: Array) -> Array:
    if a.dtype.kind not in "iu":
        return a / b
    quotient = a // b
    return quotient + ((quotient < 0) & (quotient * b != a)).astype(a.dtype)


def _shift_right(a: Array, b: Array) -> Array:
    return np.right_shift(a, b)


_ARITHMETIC: dict[str, tuple[Callable[[Array, Array], Array], str]] = {
    "add": (lambda a, b: a + b, "a + b"), "sub": (lambda a, b: a - b, "a - b"), "mul": (lambda a, b: a * b, "a * b"),
    "div": (_div, "a / b; integers truncate towards zero, and by zero give 0"),
    "mod": (np.mod, "Remainder with the sign of the divisor; of integers by zero 0"),
    "fmod": (np.fmod, "Remainder with the sign of the dividend; of integers by zero 0"),
    "pow": (np.power, "a to the power b"),
    "min": (np.minimum, "The smaller; NaN wins"), "max": (np.maximum, "The larger; NaN wins"),
    "prelu": (lambda x, slope: np.where(x >= 0, x, x * slope), "x where x >= 0, else x * slope")}
_BITS: dict[str, Callable[[Array, Array], Array]] = {
    "bitwise_and": np.bitwise_and, "bitwise_or": np.bitwise_or, "bitwise_xor": np.bitwise_xor,
    "shift_left": np.left_shift, "shift_right": _shift_right}
_LOGIC: dict[str, Callable[[Array, Array], Array]] = {
    "logical_and": np.logical_and, "logical_or": np.logical_or, "logical_xor": np.logical_xor}
_COMPARE: dict[str, Callable[[Array, Array], Array]] = {
    "equal": np.equal, "not_equal": np.not_equal, "less": np.less, "less_equal": np.less_equal,
    "greater": np.greater, "greater_equal": np.greater_equal}


def _infer_arithmetic(op: Operation) -> Sequence[TensorType]:
    a, b = operands(op, 2)
    expect_dtype(op, a, a.dtype.is_float or a.dtype.is_int, "numbers")
    return [TensorType(expect_same_dtype(op, a, b), broadcast(op, a.shape, b.shape))]


def _infer_bits(op: Operation) -> Sequence[TensorType]:
    a, b = operands(op, 2)
    expect_dtype(op, a, a.dtype.is_int, "integers")
    return [TensorType(expect_same_dtype(op, a, b), broadcast(op, a.shape, b.shape))]


def _infer_logic(op: Operation) -> Sequence[TensorType]:
    a, b = operands(op, 2)
    expect_dtype(op, a, a.dtype is boolean, "booleans")
    return [TensorType(expect_same_dtype(op, a, b), broadcast(op, a.shape, b.shape))]


def _infer_compare(op: Operation) -> Sequence[TensorType]:
    a, b = operands(op, 2)
    expect_same_dtype(op, a, b)
    return [TensorType(boolean, broadcast(op, a.shape, b.shape))]


def _infer_where(op: Operation) -> Sequence[TensorType]:
    cond, a, b = operands(op, 3)
    expect_dtype(op, cond, cond.dtype is boolean, "a boolean condition")
    return [TensorType(expect_same_dtype(op, a, b), broadcast(op, cond.shape, a.shape, b.shape))]


# ---- elements of shape arithmetic -------------------------------------------------------------------------------------
def _truncating_div(a: Expr, b: Expr) -> Expr | None:
    """Rounding down is truncation where nothing is negative and the divisor is a positive number."""
    return a // b if isinstance(b, Const) and b.value > 0 and is_natural(a) else None


def _remainder(a: Expr, b: Expr) -> Expr | None:
    return a % b if isinstance(b, Const) and b.value > 0 and is_natural(a) else None


_ON_ELEMENTS: dict[str, Callable[[Expr, Expr], Expr | None]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": _truncating_div,
    "mod": _remainder, "fmod": _remainder, "min": minimum, "max": maximum,
    "equal": lambda a, b: a.eq(b), "not_equal": lambda a, b: a.ne(b), "less": lambda a, b: a < b,
    "less_equal": lambda a, b: a <= b, "greater": lambda a, b: a > b, "greater_equal": lambda a, b: a >= b,
    "logical_and": lambda a, b: a & b, "logical_or": lambda a, b: a | b}


def _elements(op: Operation) -> list[tuple[Expr, ...] | None]:
    f = _ON_ELEMENTS[op.op]
    grids = [element_grid(v) for v in op.inputs if v is not None]
    if any(g is None for g in grids):
        return [None]
    out: list[Expr] = []
    for a, b in zip(*[g.ravel() for g in np.broadcast_arrays(*grids)], strict=True):
        e = f(a, b)
        if e is None:
            return [None]
        out.append(dim(e))
    return [tuple(out)]


def _where_elements(op: Operation) -> list[tuple[Expr, ...] | None]:
    grids = [element_grid(v) for v in op.inputs if v is not None]
    if any(g is None for g in grids):
        return [None]
    out: list[Expr] = []
    for c, a, b in zip(*[g.ravel() for g in np.broadcast_arrays(*grids)], strict=True):
        out.append((a if c.value else b) if isinstance(c, Const) else dim(Select(c, a, b)))
    return [tuple(out)]


def _build() -> tuple[OpRecord, ...]:
    def record(name: str, infer: Any, meaning: Any, doc: str = "") -> OpRecord:
        return OpRecord(name, "broadcast", infer, meaning, binary_recipe(name),
                        elements=_elements if name in _ON_ELEMENTS else None, doc=doc, gradient=gradients.BINARY.get(name))

    out = [record(name, _infer_arithmetic, _numeric(fn), doc) for name, (fn, doc) in _ARITHMETIC.items()]
    out += [record(name, _infer_bits, _numeric(fn)) for name, fn in _BITS.items()]
    out += [record(name, _infer_logic, _compare(fn)) for name, fn in _LOGIC.items()]
    out += [record(name, _infer_compare, _compare(fn)) for name, fn in _COMPARE.items()]
    out.append(OpRecord("where", "broadcast", _infer_where, lambda at, c, a, b: np.where(c, a, b), where_recipe,
                        elements=_where_elements, doc="a where the condition holds, else b", gradient=gradients.where))
    return tuple(out)


RECORDS = _build()
assert all(r.name in BINARY or r.name == "where" for r in RECORDS)
