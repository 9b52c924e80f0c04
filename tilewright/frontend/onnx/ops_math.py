"""ONNX's elementwise operators: arithmetic, comparisons, logic, activations, casts."""
from __future__ import annotations

from functools import reduce
from typing import Any

from tilewright.core.dtype import DType, boolean, f32, u8
from tilewright.frontend.onnx.table import Context, Function, Result, entry, onnx_op
from tilewright.frontend.onnx.tensors import element_type
from tilewright.graph.infer import constant_of
from tilewright.graph.ir import Value

UNARY = {"Abs": "abs", "Acos": "acos", "Acosh": "acosh", "Asin": "asin", "Asinh": "asinh", "Atan": "atan",
         "Atanh": "atanh", "BitwiseNot": "bitwise_not", "Ceil": "ceil", "Cos": "cos", "Cosh": "cosh", "Erf": "erf",
         "Exp": "exp",
         "Floor": "floor", "HardSwish": "hard_swish", "IsNaN": "isnan", "Log": "log", "Mish": "mish", "Neg": "neg",
         "Not": "logical_not", "Reciprocal": "reciprocal", "Relu": "relu", "Round": "round", "Sigmoid": "sigmoid",
         "Sign": "sign", "Sin": "sin", "Sinh": "sinh", "Softplus": "softplus", "Softsign": "softsign", "Sqrt": "sqrt",
         "Tan": "tan", "Tanh": "tanh"}
"""ONNX operator → graph operator of one operand without attributes."""

WITH_ATTRIBUTES = {"Celu": ("celu", "alpha"), "Elu": ("elu", "alpha"), "Gelu": ("gelu", "approximate"),
                   "HardSigmoid": ("hard_sigmoid", "alpha", "beta"), "LeakyRelu": ("leaky_relu", "alpha"),
                   "Selu": ("selu", "alpha", "gamma"), "Shrink": ("shrink", "bias", "lambd"),
                   "ThresholdedRelu": ("thresholded_relu", "alpha")}
"""ONNX operator → graph operator and the attributes that both have."""

BINARY = {"Add": "add", "And": "logical_and", "BitwiseAnd": "bitwise_and", "BitwiseOr": "bitwise_or",
          "BitwiseXor": "bitwise_xor", "Div": "div", "Equal": "equal", "Greater": "greater",
          "GreaterOrEqual": "greater_equal", "Less": "less", "LessOrEqual": "less_equal", "Mul": "mul",
          "Or": "logical_or", "PRelu": "prelu", "Sub": "sub", "Xor": "logical_xor"}
VARIADIC = {"Max": "max", "Min": "min", "Sum": "add"}


def _unary(op: str) -> Function:
    return lambda c: c.add(op, c.x())


def _with_attributes(op: str, *attrs: str) -> Function:
    return lambda c: c.add(op, c.x(), **{name: c.a(name) for name in attrs})


def _binary(op: str) -> Function:
    return lambda c: c.add(op, c.x(0), c.x(1))


def _variadic(op: str) -> Function:
    return lambda c: reduce(lambda x, y: c.add(op, x, y), c.all())


for _name, _op in UNARY.items():
    entry(_name, _unary(_op))
for _name, (_op, *_attrs) in WITH_ATTRIBUTES.items():
    entry(_name, _with_attributes(_op, *_attrs))
for _name, _op in BINARY.items():
    entry(_name, _binary(_op))
for _name, _op in VARIADIC.items():
    entry(_name, _variadic(_op))


@onnx_op("Mean")
def mean(c: Context) -> Result:
    total = reduce(lambda x, y: c.add("add", x, y), c.all())
    return c.add("div", total, c.const(len(c.inputs), total.dtype))


@onnx_op("Pow")
def power(c: Context) -> Result:
    """The result has the base's type; a floating-point exponent of an integer base is not cut off first."""
    x, y = c.x(0), c.x(1)
    if x.dtype.is_int and y.dtype.is_float:
        return c.cast(c.add("pow", c.cast(x, y.dtype), y), x.dtype)
    return c.add("pow", x, c.cast(y, x.dtype))


@onnx_op("Mod")
def modulo(c: Context) -> Result:
    return c.add("fmod" if c.a("fmod") else "mod", c.x(0), c.x(1))


@onnx_op("BitShift")
def bit_shift(c: Context) -> Result:
    return c.add("shift_left" if c.a("direction") == "LEFT" else "shift_right", c.x(0), c.x(1))


@onnx_op("IsInf")
def is_inf(c: Context) -> Result:
    return c.add("isinf", c.x(), positive=bool(c.a("detect_positive")), negative=bool(c.a("detect_negative")))


@onnx_op("Swish")
def swish(c: Context) -> Result:
    x, alpha = c.x(), c.a("alpha")
    if alpha == 1:
        return c.add("silu", x)
    return c.add("mul", x, c.add("sigmoid", c.add("mul", x, c.const(alpha, x.dtype))))


@onnx_op("Where")
def where(c: Context) -> Result:
    return c.add("where", c.x(0), c.x(1), c.x(2))


@onnx_op("Identity")
def identity(c: Context) -> Result:
    return c.x()


@onnx_op("Cast")
def cast(c: Context) -> Result:
    return _cast(c, c.x(), element_type(c.a("to"), c.loc))


@onnx_op("CastLike")
def cast_like(c: Context) -> Result:
    return _cast(c, c.x(0), c.x(1).dtype)


def _cast(c: Context, x: Value, to: DType) -> Value:
    """float8 saturates: what lies beyond its largest number, infinities too, becomes that number."""
    if to.is_float and to.bits == 8 and x.dtype.is_float and x.dtype is not to:
        c.expect(to.name != "f8e8m0fnu", "rounding to f8e8m0")
        if c.a("saturate", 1):
            import ml_dtypes
            limits: Any = ml_dtypes.finfo
            top = float(limits(to.numpy()).max)
            x = c.add("clip", x, min=-top, max=top)
    return c.cast(x, to)


# ---- clip ------------------------------------------------------------------------------------------------------------
@onnx_op("Clip")
def clip_attributes(c: Context) -> Result:
    """Bounds that the node does not give are ONNX's largest numbers: no bounds."""
    return _clip(c, c.a("min") if "min" in c.given else None, c.a("max") if "max" in c.given else None)


@onnx_op("Clip", since=11)
def clip(c: Context) -> Result:
    x, low, high = c.x(), c.opt(1), c.opt(2)
    known = [None if v is None else constant_of(v) for v in (low, high)]
    if all(v is None or a is not None for v, a in zip((low, high), known, strict=True)):
        return _clip(c, *[None if v is None else c.scalar(k) for k, v in ((1, low), (2, high))])
    for op, bound in (("max", low), ("min", high)):
        if bound is not None:
            x = c.add(op, x, c.reshape(bound, []))
    return x


def _clip(c: Context, low: float | None, high: float | None) -> Value:
    bounds = {k: v for k, v in (("min", low), ("max", high)) if v is not None}
    return c.add("clip", c.x(), **bounds) if bounds else c.x()


@onnx_op("BitCast")
def bit_cast(c: Context) -> Result:
    """A boolean is stored as a byte that is 0 or 1."""
    x, to = c.x(), element_type(c.a("to"), c.loc)
    if x.dtype is to:
        return x
    if boolean in (x.dtype, to):
        byte = c.cast(x, u8) if x.dtype is boolean else x if x.dtype is u8 else c.add("bit_cast", x, to=u8)
        return c.cast(byte, to) if to in (boolean, u8) else c.add("bit_cast", byte, to=to)
    return c.add("bit_cast", x, to=to)


# ---- inference of what matters in training ---------------------------------------------------------------------------
@onnx_op("Dropout")
def dropout(c: Context) -> Result:
    """Nothing is dropped outside training."""
    if c.opt(2) is not None:
        c.expect(not c.scalar(2), "training_mode")
    x = c.x()
    if not c.wants(1):
        return x
    return x, c.add("full", shape=x.shape, value=1, dtype=boolean if c.since >= 10 else x.dtype)


# ---- quantization ----------------------------------------------------------------------------------------------------
def _along(c: Context, v: Value | None, x: Value) -> Value | None:
    """Scale or zero point, per tensor or laid along the node's axis."""
    if v is None or v.rank == 0:
        return v
    c.expect(v.rank == 1, "a blocked scale")
    axis = c.a("axis", 1)
    return c.per_channel(v, x.rank, axis % max(x.rank, 1)) if x.rank else c.reshape(v, [])


@onnx_op("QuantizeLinear")
def quantize(c: Context) -> Result:
    x, scale, zero = c.x(), _along(c, c.x(1), c.x()), _along(c, c.opt(2), c.x())
    number = c.a("output_dtype", 0)
    to = zero.dtype if zero is not None else element_type(number or 2, c.loc)
    c.expect(to.is_int, f"quantization to {to}")
    assert scale is not None
    y = c.add("round", c.add("div", c.cast(x, scale.dtype), scale))
    y = c.cast(y, f32)
    if zero is not None:
        y = c.add("add", y, c.cast(zero, f32))
    low, high = to.range()
    return c.cast(c.add("clip", y, min=float(low), max=float(high)), to)


@onnx_op("DequantizeLinear")
def dequantize(c: Context) -> Result:
    x, scale, zero = c.x(), _along(c, c.x(1), c.x()), _along(c, c.opt(2), c.x())
    assert scale is not None
    if zero is not None:
        y = c.add("sub", c.cast(x, f32), c.cast(zero, f32))
    else:
        y = c.cast(x, f32)
    return c.cast(c.add("mul", y, c.cast(scale, f32)), scale.dtype)
