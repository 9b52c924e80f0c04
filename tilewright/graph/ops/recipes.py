"""The arithmetic of elementwise operators on scalar expressions, and recipes that apply it over whole tensors.

Floats narrower than f32 are widened, computed in f32 and rounded once. Formulas are chosen to stay accurate in the
element type without log1p or expm1 intrinsics: expm1(x) = tanh(x/2) (exp(x) + 1), log1p(x) = log of the rounded 1 + x and a
correction.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tilewright.core.dtype import DType, boolean, f32, f64
from tilewright.graph.infer import is_one
from tilewright.graph.ir import Operation
from tilewright.loop.ir import (
    Call,
    Cast,
    Div,
    Expr,
    FloorMod,
    Guard,
    IntoExpr,
    Load,
    Not,
    Or,
    Select,
    const,
    maximum,
    minimum,
)
from tilewright.tensor.compute import Tensor, compute

Attrs = dict[str, Any]


def call(name: str, *args: Expr) -> Expr:
    return Call(name, args, args[0].dtype)


def is_narrow(t: DType) -> bool:
    """A float that is computed in f32."""
    return t.is_float and t.bits < 32


def accumulator(t: DType) -> DType:
    """The type in which sums of `t` are kept."""
    return f32 if is_narrow(t) else t


def exp(x: Expr) -> Expr:
    return call("exp", x)


def sigmoid(x: Expr) -> Expr:
    """c - c z with e = exp(-|x|), z = e / (1 + e), c = e or 1: nothing overflows, results go down to the least denormal, and
    what z loses is scaled down."""
    e = exp(-call("abs", x))
    c = Select(x < 0.0, e, const(1.0, x))
    return c - c * (e / (1.0 + e))


def expm1(x: Expr) -> Expr:
    return call("tanh", x * 0.5) * (exp(x) + 1.0)


def log1p(x: Expr) -> Expr:
    """ln u with u = 1 + x rounded, and to first order what the rounding took, x - (u - 1); x itself where u is 1."""
    u = 1.0 + x
    lost = Select(call("abs", x) < 8388608.0, (x - (u - 1.0)) / u, const(0.0, x))
    return Select(u.eq(1.0), x, call("log", u) + lost)


def softplus(x: Expr) -> Expr:
    return maximum(x, 0.0) + log1p(exp(-call("abs", x)))


def mish(x: Expr) -> Expr:
    """x tanh(log(1 + e)) with e = exp(x): the tanh is n / (n + 2) for n = e (e + 2); 1 to rounding for x above 20."""
    e = exp(minimum(x, 20.0))
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


def _gelu(a: Attrs, x: Expr) -> Expr:
    if a["approximate"] == "tanh":
        c = math.sqrt(8 / math.pi)  # (1 + tanh z) / 2 = 1 / (1 + exp(-2z))
        return x / (1.0 + exp(x * (x * x * (-0.044715 * c) - c)))
    if x.dtype is f32:
        return call("gelu", x)
    return 0.5 * x * (1.0 + call("erf", x * math.sqrt(0.5)))


def _clip(a: Attrs, x: Expr) -> Expr:
    if a["min"] is not None:
        x = maximum(x, a["min"])
    return x if a["max"] is None else minimum(x, a["max"])


def _cast(a: Attrs, x: Expr) -> Expr:
    to = a["to"]
    if to is boolean:
        return x if x.dtype is boolean else x.ne(0)
    return x.cast(to)


def _isinf(a: Attrs, x: Expr) -> Expr:
    inf = float("inf")
    if a["positive"] and a["negative"]:
        return Call("isinf", (x,), boolean)
    return x.eq(inf if a["positive"] else -inf) if a["positive"] or a["negative"] else const(False, boolean)


def _shrink(a: Attrs, x: Expr) -> Expr:
    return Select(x < -a["lambd"], x + a["bias"], Select(x > a["lambd"], x - a["bias"], const(0, x)))


def _named(*names: str) -> dict[str, Callable[[Attrs, Expr], Expr]]:
    def one(name: str) -> Callable[[Attrs, Expr], Expr]:
        return lambda a, x: call(name, x)
    return {n: one(n) for n in names}


UNARY: dict[str, Callable[[Attrs, Expr], Expr]] = {
    **_named("exp", "log", "sqrt", "rsqrt", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh",
             "acosh", "atanh", "erf", "floor", "ceil", "trunc", "round", "abs", "sign", "neg"),
    "log1p": lambda a, x: log1p(x), "expm1": lambda a, x: expm1(x), "reciprocal": lambda a, x: 1.0 / x,
    "sigmoid": lambda a, x: sigmoid(x), "silu": lambda a, x: x * sigmoid(x), "softplus": lambda a, x: softplus(x),
    "relu": lambda a, x: maximum(x, 0),
    "leaky_relu": lambda a, x: Select(x >= 0.0, x, x * a["alpha"]),
    "elu": lambda a, x: Select(x > 0.0, x, a["alpha"] * expm1(x)),
    "selu": lambda a, x: a["gamma"] * Select(x > 0.0, x, a["alpha"] * expm1(x)),
    "celu": lambda a, x: maximum(x, 0.0) + minimum(a["alpha"] * expm1(x / a["alpha"]), 0.0),
    "hard_sigmoid": lambda a, x: minimum(maximum(x * a["alpha"] + a["beta"], 0.0), 1.0),
    "hard_swish": lambda a, x: x * minimum(maximum(x * (1.0 / 6.0) + 0.5, 0.0), 1.0),
    "gelu": _gelu, "softsign": lambda a, x: x / (1.0 + call("abs", x)), "mish": lambda a, x: mish(x),
    "thresholded_relu": lambda a, x: Select(x > a["alpha"], x, const(0, x)), "shrink": _shrink, "clip": _clip,
    "logical_not": lambda a, x: Not(x), "bitwise_not": lambda a, x: call("bit_not", x),
    "isnan": lambda a, x: Call("isnan", (x,), boolean), "isinf": _isinf, "cast": _cast,
    "bit_cast": lambda a, x: x if x.dtype is a["to"] else Call("reinterpret", (x,), a["to"])}


def _traps(b: Expr) -> Expr:
    """Whether processors may trap when an integer is divided by `b`: 0, and -1 for the quotient of the least integer.
    False if `b` is a literal that is neither."""
    if isinstance(b, Load) and isinstance(b.buffer.data, tuple) and not {0, -1} & set(b.buffer.data):
        return const(False, boolean)
    return b.eq(0) if b.dtype.kind == "uint" else Or(b.eq(0), b.eq(-1))


def _divisor(b: Expr) -> Expr:
    """`b`, but 1 where it traps: every remainder is then 0, as NumPy's."""
    return Select(_traps(b), const(1, b), b)


def _div(a: Expr, b: Expr) -> Expr:
    """Integers truncate; by zero they give 0, and the least one by -1 itself: a * b wherever the division would trap."""
    return Select(_traps(b), a * b, Div(a, _divisor(b))) if a.dtype.is_int else Div(a, b)


def _fmod(a: Expr, b: Expr) -> Expr:
    return call("fmod", a, _divisor(b) if a.dtype.is_int else b)


def _mod(a: Expr, b: Expr) -> Expr:
    if a.dtype.is_int:
        return FloorMod(a, _divisor(b))
    r = call("fmod", a, b)
    return Select((r * b) < 0.0, r + b, r)


def _int_pow(a: Expr, b: Expr) -> Expr:
    """Integer power through f64: exact below 2**53, as in the frameworks."""
    return Call("pow", (a.cast("f64"), b.cast("f64")), f64).cast(a.dtype)


def _xor(a: Expr, b: Expr) -> Expr:
    return (a & Not(b)) | (Not(a) & b)


BINARY: dict[str, Callable[[Expr, Expr], Expr]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": _div,
    "mod": _mod, "fmod": _fmod,
    "pow": lambda a, b: _int_pow(a, b) if a.dtype.is_int else call("pow", a, b),
    "min": minimum, "max": maximum, "prelu": lambda x, s: Select(x >= 0, x, x * s),
    "bitwise_and": lambda a, b: call("bit_and", a, b), "bitwise_or": lambda a, b: call("bit_or", a, b),
    "bitwise_xor": lambda a, b: call("bit_xor", a, b),
    "shift_left": lambda a, b: call("shift_left", a, b), "shift_right": lambda a, b: call("shift_right", a, b),
    "logical_and": lambda a, b: a & b, "logical_or": lambda a, b: Or(a, b), "logical_xor": _xor,
    "equal": lambda a, b: a.eq(b), "not_equal": lambda a, b: a.ne(b), "less": lambda a, b: a < b,
    "less_equal": lambda a, b: a <= b, "greater": lambda a, b: a > b, "greater_equal": lambda a, b: a >= b}


# ---- over tensors ----------------------------------------------------------------------------------------------------
def widened(x: Expr) -> Expr:
    return x.cast(f32) if is_narrow(x.dtype) else x


def broadcast_read(t: Tensor, index: Sequence[Expr], out_shape: Sequence[Expr]) -> Expr:
    """The element of `t` that NumPy's broadcasting puts at `index` of a result of shape `out_shape`."""
    skip = len(out_shape) - len(t.shape)
    return t[tuple([const(0) if is_one(d) and not is_one(out_shape[skip + k]) else index[skip + k]
                    for k, d in enumerate(t.shape)])]


def unary_recipe(name: str) -> Callable[[Operation, Tensor], Tensor]:
    def recipe(op: Operation, x: Tensor) -> Tensor:
        f, to = UNARY[name], op.output.dtype
        if name in ("cast", "bit_cast"):
            return compute(x.shape, lambda *i: f(op.attrs, x[i]), name=name)
        return compute(x.shape, lambda *i: _back(f(op.attrs, widened(x[i])), to), name=name)
    return recipe


def binary_recipe(name: str) -> Callable[[Operation, Tensor, Tensor], Tensor]:
    def recipe(op: Operation, a: Tensor, b: Tensor) -> Tensor:
        f, shape, to = BINARY[name], op.output.shape, op.output.dtype
        return compute(shape, lambda *i: _back(f(widened(broadcast_read(a, i, shape)),
                                                 widened(broadcast_read(b, i, shape))), to), name=name)
    return recipe


def where_recipe(op: Operation, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    shape = op.output.shape
    return compute(shape, lambda *i: Select(*[broadcast_read(t, i, shape) for t in (c, a, b)]), name="where")


def _back(x: Expr, to: DType) -> Expr:
    return Cast(to, x) if is_narrow(to) and x.dtype is not to else x


def read_or(cond: Expr, value: Expr, other: IntoExpr) -> Expr:
    """`value` where `cond` holds (its loads happen only there), else `other`."""
    return Guard(cond, value, const(other, value) if not isinstance(other, Expr) else other)
