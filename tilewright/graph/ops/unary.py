"""Elementwise operators of one operand: arithmetic, activations, rounding, tests, casts."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import boolean
from tilewright.graph.infer import elements_of, expect, expect_dtype, operands
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.ops import gradients
from tilewright.graph.ops.recipes import UNARY, unary_recipe
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.ir import Expr, as_int

_erf = np.frompyfunc(math.erf, 1, 1)


def erf(x: Array) -> Array:
    """The error function, element by element."""
    return np.asarray(_erf(x), dtype=x.dtype)


def sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def softplus(x: Array) -> Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def wide(fn: Callable[..., Array]) -> Callable[..., Array]:
    """`fn` computed in f32 for narrower floats, then rounded to their type."""
    def run(attrs: dict[str, Any], *arrays: Array) -> Array:
        x = arrays[0]
        with np.errstate(all="ignore"):
            if x.dtype.itemsize < 4 and x.dtype.kind not in "biu":
                return np.asarray(fn(attrs, *[a.astype(np.float32) for a in arrays])).astype(x.dtype)
            return np.asarray(fn(attrs, *arrays)).astype(x.dtype, copy=False)
    return run


def _gelu(a: dict[str, Any], x: Array) -> Array:
    if a["approximate"] == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + erf(x * np.asarray(math.sqrt(0.5), x.dtype)))


def _clip(a: dict[str, Any], x: Array) -> Array:
    if a["min"] is not None:
        x = np.maximum(x, np.asarray(a["min"]).astype(x.dtype))
    if a["max"] is not None:
        x = np.minimum(x, np.asarray(a["max"]).astype(x.dtype))
    return x


def _round_even(a: dict[str, Any], x: Array) -> Array:
    return np.rint(x)


_FLOAT: dict[str, Callable[[dict[str, Any], Array], Array]] = {
    "exp": lambda a, x: np.exp(x), "log": lambda a, x: np.log(x), "log1p": lambda a, x: np.log1p(x),
    "expm1": lambda a, x: np.expm1(x), "sqrt": lambda a, x: np.sqrt(x), "rsqrt": lambda a, x: 1 / np.sqrt(x),
    "reciprocal": lambda a, x: 1 / x,
    "sin": lambda a, x: np.sin(x), "cos": lambda a, x: np.cos(x), "tan": lambda a, x: np.tan(x),
    "asin": lambda a, x: np.arcsin(x), "acos": lambda a, x: np.arccos(x), "atan": lambda a, x: np.arctan(x),
    "sinh": lambda a, x: np.sinh(x), "cosh": lambda a, x: np.cosh(x), "tanh": lambda a, x: np.tanh(x),
    "asinh": lambda a, x: np.arcsinh(x), "acosh": lambda a, x: np.arccosh(x), "atanh": lambda a, x: np.arctanh(x),
    "erf": lambda a, x: erf(x), "sigmoid": lambda a, x: sigmoid(x), "silu": lambda a, x: x * sigmoid(x),
    "leaky_relu": lambda a, x: np.where(x >= 0, x, a["alpha"] * x),
    "elu": lambda a, x: np.where(x > 0, x, a["alpha"] * np.expm1(x)),
    "selu": lambda a, x: a["gamma"] * np.where(x > 0, x, a["alpha"] * np.expm1(x)),
    "celu": lambda a, x: np.maximum(x, 0) + np.minimum(0, a["alpha"] * np.expm1(x / a["alpha"])),
    "hard_sigmoid": lambda a, x: np.clip(a["alpha"] * x + a["beta"], 0, 1),
    "hard_swish": lambda a, x: x * np.clip(x / 6 + 0.5, 0, 1),
    "gelu": _gelu, "softplus": lambda a, x: softplus(x), "softsign": lambda a, x: x / (1 + np.abs(x)),
    "mish": lambda a, x: x * np.tanh(softplus(x)),
    "thresholded_relu": lambda a, x: np.where(x > a["alpha"], x, 0),
    "shrink": lambda a, x: np.where(x < -a["lambd"], x + a["bias"], np.where(x > a["lambd"], x - a["bias"], 0)),
    "floor": lambda a, x: np.floor(x), "ceil": lambda a, x: np.ceil(x), "trunc": lambda a, x: np.trunc(x),
    "round": _round_even}

_NUMBER: dict[str, Callable[[dict[str, Any], Array], Array]] = {
    "neg": lambda a, x: np.negative(x), "abs": lambda a, x: np.abs(x), "sign": lambda a, x: np.sign(x),
    "relu": lambda a, x: np.maximum(x, np.zeros((), x.dtype)), "clip": _clip}

_ATTRS: dict[str, dict[str, Attr]] = {
    "leaky_relu": {"alpha": Attr("float", 0.01)}, "elu": {"alpha": Attr("float", 1.0)},
    "selu": {"alpha": Attr("float", 1.67326319217681884765625), "gamma": Attr("float", 1.05070102214813232421875)},
    "celu": {"alpha": Attr("float", 1.0)},
    "hard_sigmoid": {"alpha": Attr("float", 0.2), "beta": Attr("float", 0.5)},
    "gelu": {"approximate": Attr("str", "none", '"none" (erf) or "tanh"')},
    "thresholded_relu": {"alpha": Attr("float", 1.0)},
    "shrink": {"lambd": Attr("float", 0.5), "bias": Attr("float", 0.0)},
    "clip": {"min": Attr("number", None), "max": Attr("number", None)}}


def _infer_float(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    expect_dtype(op, x, x.dtype.is_float, "a floating-point type")
    return [x.type]


def _infer_number(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    expect_dtype(op, x, x.dtype.is_float or x.dtype.is_int, "numbers")
    return [x.type]


def _infer_test(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    expect_dtype(op, x, x.dtype.is_float, "a floating-point type")
    return [TensorType(boolean, x.shape)]


def _infer_not(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    expect_dtype(op, x, x.dtype is boolean, "booleans")
    return [x.type]


def _infer_bitwise(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    expect_dtype(op, x, x.dtype.is_int, "integers")
    return [x.type]


def _infer_cast(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    return [TensorType(op.attrs["to"], x.shape)]


def _cast(attrs: dict[str, Any], x: Array) -> Array:
    with np.errstate(all="ignore"):
        if attrs["to"] is boolean:
            return np.asarray(x != 0)
        return x.astype(attrs["to"].numpy())


def _infer_bit_cast(op: Operation) -> Sequence[TensorType]:
    (x,) = operands(op, 1)
    to = op.attrs["to"]
    expect(to.nbytes == x.dtype.nbytes, "dtype-mismatch", lambda: f"bit_cast: {x.dtype} and {to} differ in size")
    expect(min(to.bits, x.dtype.bits) >= 8, "dtype-mismatch", lambda: f"bit_cast: from {x.dtype} to {to}")
    return [TensorType(to, x.shape)]


def _isnan(x: Array) -> Array:
    return np.isnan(x.astype(np.float32) if x.dtype.itemsize < 4 else x)


def _isinf(attrs: dict[str, Any], x: Array) -> Array:
    inf = np.isinf(x.astype(np.float32) if x.dtype.itemsize < 4 else x)
    return np.asarray((inf & (x > 0) & attrs["positive"]) | (inf & (x < 0) & attrs["negative"]))


def _map_elements(f: Callable[[Operation, Expr], Expr | None]) -> Callable[[Operation], list[tuple[Expr, ...] | None]]:
    def run(op: Operation) -> list[tuple[Expr, ...] | None]:
        found = elements_of(op.inputs[0])
        if found is None:
            return [None]
        out = [f(op, e) for e in found]
        return [tuple([e for e in out if e is not None]) if all(e is not None for e in out) else None]
    return run


def _cast_element(op: Operation, e: Expr) -> Expr | None:
    """Integers keep their i64 expression (sizes are taken to fit); booleans become 0 or 1."""
    if e.dtype.is_int and op.attrs["to"].is_int:
        return e
    value = as_int(e)
    return None if value is None else e


def _negate(op: Operation, e: Expr) -> Expr | None:
    return 0 - e


def _build() -> tuple[OpRecord, ...]:
    out = [OpRecord(name, "elementwise", _infer_float, wide(fn), unary_recipe(name), attrs=_ATTRS.get(name, {}),
                    gradient=gradients.UNARY.get(name)) for name, fn in _FLOAT.items()]
    out += [OpRecord(name, "elementwise", _infer_number, wide(fn), unary_recipe(name), attrs=_ATTRS.get(name, {}),
                     elements=_map_elements(_negate) if name == "neg" else None, gradient=gradients.UNARY.get(name))
            for name, fn in _NUMBER.items()]
    out += [
        OpRecord("logical_not", "elementwise", _infer_not, lambda a, x: np.logical_not(x), unary_recipe("logical_not")),
        OpRecord("bitwise_not", "elementwise", _infer_bitwise, lambda a, x: np.invert(x), unary_recipe("bitwise_not")),
        OpRecord("isnan", "elementwise", _infer_test, lambda a, x: _isnan(x), unary_recipe("isnan")),
        OpRecord("isinf", "elementwise", _infer_test, _isinf, unary_recipe("isinf"),
                 attrs={"positive": Attr("bool", True), "negative": Attr("bool", True)}),
        OpRecord("bit_cast", "elementwise", _infer_bit_cast, lambda a, x: x.view(a["to"].numpy()), unary_recipe("bit_cast"),
                 attrs={"to": Attr("dtype")}, doc="The same bits as another type of the same width."),
        OpRecord("cast", "elementwise", _infer_cast, _cast, unary_recipe("cast"), attrs={"to": Attr("dtype")},
                 elements=_map_elements(_cast_element), gradient=gradients.UNARY["cast"],
                 doc="Float to integer truncates (out of range is undefined); to bool is a test against zero.")]
    return tuple(out)


RECORDS = _build()
assert all(r.name in UNARY for r in RECORDS)
