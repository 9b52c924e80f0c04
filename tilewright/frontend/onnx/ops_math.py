"""ONNX's elementwise operators: arithmetic, comparisons, logic, activations, casts."""
from __future__ import annotations

from functools import reduce
from typing import Any

from tilewright.core.dtype import DType, boolean, f8e8m0fnu, f32, i32, u8
from tilewright.frontend.onnx.structure import STRING
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
    entry(_name, _binary(_op), since=7)  # ops_old.py has what was before
for _name, _op in VARIADIC.items():
    entry(_name, _variadic(_op))


@onnx_op("Mean")
def mean(c: Context) -> Result:
    total = reduce(lambda x, y: c.add("add", x, y), c.all())
    return c.add("div", total, c.const(len(c.inputs), total.dtype))


@onnx_op("Pow", since=7)
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


@onnx_op("Cast", since=6)
def cast(c: Context) -> Result:
    if c.a("to") == STRING:
        return c.x() if c.is_text(c.x()) else c.text(c.add("number_to_string", c.x()))
    return cast_to(c, c.x(), element_type(c.a("to"), c.loc))


@onnx_op("CastLike")
def cast_like(c: Context) -> Result:
    if c.is_text(c.x(1)):
        return c.x() if c.is_text(c.x()) else c.text(c.add("number_to_string", c.x()))
    return cast_to(c, c.x(0), c.x(1).dtype)


def cast_to(c: Context, x: Value, to: DType) -> Value:
    """float8 saturates: what lies beyond its largest number, infinities too, becomes that number. Powers of two (f8e8m0)
    are rounded as the node says. float4 has no NaN: zero stands for it."""
    if c.is_text(x):
        return c.add("string_to_number", x, to=to)
    if x.dtype is to or not to.is_float or not x.dtype.is_float or to.bits > 8:
        return c.cast(x, to)
    if to is f8e8m0fnu:
        return _power_of_two(c, x)
    if to.bits == 4:
        return c.cast(c.add("where", c.add("isnan", x), c.const(0, x.dtype), x), to)
    if c.a("saturate", 1):
        import ml_dtypes
        limits: Any = ml_dtypes.finfo
        top = float(limits(to.numpy()).max)
        x = c.add("clip", x, min=-top, max=top)
    return c.cast(x, to)


def _power_of_two(c: Context, x: Value) -> Value:
    """The exponent of |x|, by its bits in f32: f8e8m0 counts from 2**-127 to 2**127 as 0 to 254; 255 stands for NaN and
    infinities. `up` rounds any mantissa up, `nearest` one of at least a half (of a subnormal, above it: 2**-127 itself is
    that half); what rounds beyond the largest power saturates, or is NaN."""
    mode = c.a("round_mode", "up")
    c.expect(mode in ("up", "down", "nearest"), f"round_mode {mode!r}")

    def number(v: int) -> Value:
        return c.const(v, i32)
    bits = c.add("bit_cast", c.add("abs", c.cast(x, f32)), to=i32)
    if mode == "nearest":
        above = c.add("where", c.add("less", bits, number(1 << 23)), number((1 << 22) - 1), number(1 << 22))
    else:
        above = number((1 << 23) - 1 if mode == "up" else 0)
    largest = number(254 if c.a("saturate", 1) else 255)
    code = c.add("min", c.add("shift_right", c.add("add", bits, above), number(23)), largest)
    code = c.add("where", c.add("greater_equal", bits, number(255 << 23)), number(255), code)
    return c.add("bit_cast", c.cast(code, u8), to=f8e8m0fnu)


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
