"""Gradient rules: what each operand's gradient is, given those of the results. In: an operation, a value of its results'
types for each result (or None: nothing depends on it), and where to add operations. Out: a value for each operand, or None
where its gradient is 0. The records name them; `graph/gradient.py` goes backward through a graph with them.

The formulas are those of reverse-mode differentiation (Griewank and Walther, "Evaluating Derivatives", 2008, chapter 3).
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from tilewright.core.errors import UserError
from tilewright.graph.infer import dim, product, same
from tilewright.graph.ir import Operation, Value
from tilewright.loop.ir import Expr, as_int

Gradients = Sequence[Value | None]


class Maker(Protocol):
    """A graph that operations are added to."""

    def add(self, op: str, inputs: Sequence[Value | None], attrs: dict[str, Any] | None = None) -> Value: ...
    def constant(self, array: Any, name: str = "", element: Any = None) -> Value: ...


class Arithmetic:
    """Operations on values, as rules write them."""

    def __init__(self, maker: Maker) -> None:
        self.maker = maker

    def __call__(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        return self.maker.add(op, inputs, attrs)

    def number(self, v: float, like: Value) -> Value:
        return self.maker.constant(np.asarray(v), "number", like.dtype)

    def mul(self, *factors: Value | float) -> Value:
        values = [f for f in factors if isinstance(f, Value)]
        out = values[0]
        for f in values[1:]:
            out = self("mul", out, f)
        for v in factors:
            out = out if isinstance(v, Value) else self("mul", out, self.number(v, out))
        return out

    def add(self, a: Value, b: Value | float) -> Value:
        return self("add", a, b if isinstance(b, Value) else self.number(b, a))

    def sub(self, a: Value | float, b: Value) -> Value:
        return self("sub", a if isinstance(a, Value) else self.number(a, b), b)

    def div(self, a: Value, b: Value) -> Value:
        return self("div", a, b)

    def neg(self, a: Value) -> Value:
        return self("neg", a)

    def pick(self, cond: Value, a: Value, b: Value | None = None) -> Value:
        """a where the condition holds, else b or 0."""
        return self("where", cond, a, self.number(0, a) if b is None else b)

    def compare(self, op: str, a: Value, b: float) -> Value:
        return self(op, a, self.number(b, a))

    def zeros(self, like: Value) -> Value:
        return self("full", shape=like.shape, value=0, dtype=like.dtype)

    def sum_to(self, g: Value, like: Value) -> Value:
        """The sum over the axes along which `like` was broadcast to the shape of `g`."""
        lead = g.rank - like.rank
        axes = [*range(lead), *[lead + k for k, d in enumerate(like.shape)
                                if as_int(d) == 1 and same(g.shape[lead + k], 1) is not True]]
        if axes:
            g = self("reduce_sum", g, axes=tuple(axes), keepdims=True)
        return g if g.rank == like.rank else self("reshape", g, shape=like.shape)


Rule = Callable[[Operation, Gradients, Arithmetic], Gradients]


def _one(rule: Callable[[Arithmetic, dict[str, Any], Value, Value, Value], Value | None]) -> Rule:
    """A rule of an operator of one operand and one result, from its operand x, result y and gradient g."""
    def run(op: Operation, given: Gradients, d: Arithmetic) -> Gradients:
        (x,), (g,) = op.inputs, given
        assert x is not None and g is not None
        return [rule(d, op.attrs, x, op.output, g)]
    return run


def _square(d: Arithmetic, v: Value) -> Value:
    return d("mul", v, v)


# ---- of one operand --------------------------------------------------------------------------------------------------
def _silu(d: Arithmetic, a: dict[str, Any], x: Value, y: Value, g: Value) -> Value:
    s = d("sigmoid", x)
    return d.mul(g, d.add(s, d.mul(y, d.sub(1, s))))


def _gelu(d: Arithmetic, a: dict[str, Any], x: Value, y: Value, g: Value) -> Value:
    """Of x Φ(x): Φ(x) + x φ(x); of the form with tanh(u): its derivative."""
    if a["approximate"] == "none":
        cdf = d.mul(d.add(d("erf", d.mul(x, math.sqrt(0.5))), 1), 0.5)
        density = d.mul(d("exp", d.mul(x, x, -0.5)), 1 / math.sqrt(2 * math.pi))
        return d.mul(g, d.add(cdf, d.mul(x, density)))
    square = _square(d, x)
    t = d("tanh", d.mul(x, d.add(d.mul(square, 0.044715), 1), math.sqrt(2 / math.pi)))
    slope = d.mul(d.add(d.mul(square, 3 * 0.044715), 1), math.sqrt(2 / math.pi))
    inner = d.mul(x, d.sub(1, _square(d, t)), slope)
    return d.mul(g, d.add(d.add(t, 1), inner), 0.5)


def _clip(d: Arithmetic, a: dict[str, Any], x: Value, y: Value, g: Value) -> Value:
    if a["min"] is not None:
        g = d.pick(d.compare("greater_equal", x, a["min"]), g)
    return g if a["max"] is None else d.pick(d.compare("less_equal", x, a["max"]), g)


def _cast(d: Arithmetic, a: dict[str, Any], x: Value, y: Value, g: Value) -> Value | None:
    return d("cast", g, to=x.dtype) if x.dtype.is_float else None


def _zero(d: Arithmetic, a: dict[str, Any], x: Value, y: Value, g: Value) -> None:
    return None


UNARY: dict[str, Rule] = {name: _one(rule) for name, rule in {
    "exp": lambda d, a, x, y, g: d.mul(g, y),
    "log": lambda d, a, x, y, g: d.div(g, x),
    "log1p": lambda d, a, x, y, g: d.div(g, d.add(x, 1)),
    "expm1": lambda d, a, x, y, g: d.mul(g, d.add(y, 1)),
    "sqrt": lambda d, a, x, y, g: d.div(d.mul(g, 0.5), y),
    "rsqrt": lambda d, a, x, y, g: d.mul(g, y, y, y, -0.5),
    "reciprocal": lambda d, a, x, y, g: d.mul(g, y, y, -1.0),
    "sin": lambda d, a, x, y, g: d.mul(g, d("cos", x)),
    "cos": lambda d, a, x, y, g: d.mul(g, d("sin", x), -1.0),
    "tan": lambda d, a, x, y, g: d.mul(g, d.add(_square(d, y), 1)),
    "asin": lambda d, a, x, y, g: d.mul(g, d("rsqrt", d.sub(1, _square(d, x)))),
    "acos": lambda d, a, x, y, g: d.mul(g, d("rsqrt", d.sub(1, _square(d, x))), -1.0),
    "atan": lambda d, a, x, y, g: d.div(g, d.add(_square(d, x), 1)),
    "sinh": lambda d, a, x, y, g: d.mul(g, d("cosh", x)),
    "cosh": lambda d, a, x, y, g: d.mul(g, d("sinh", x)),
    "tanh": lambda d, a, x, y, g: d.mul(g, d.sub(1, _square(d, y))),
    "asinh": lambda d, a, x, y, g: d.mul(g, d("rsqrt", d.add(_square(d, x), 1))),
    "acosh": lambda d, a, x, y, g: d.mul(g, d("rsqrt", d.add(_square(d, x), -1))),
    "atanh": lambda d, a, x, y, g: d.div(g, d.sub(1, _square(d, x))),
    "erf": lambda d, a, x, y, g: d.mul(g, d("exp", d.neg(_square(d, x))), 2 / math.sqrt(math.pi)),
    "sigmoid": lambda d, a, x, y, g: d.mul(g, y, d.sub(1, y)),
    "silu": _silu, "gelu": _gelu, "clip": _clip, "cast": _cast,
    "softplus": lambda d, a, x, y, g: d.mul(g, d("sigmoid", x)),
    "softsign": lambda d, a, x, y, g: d.div(g, _square(d, d.add(d("abs", x), 1))),
    "neg": lambda d, a, x, y, g: d.neg(g),
    "abs": lambda d, a, x, y, g: d.mul(g, d("sign", x)),
    "relu": lambda d, a, x, y, g: d.pick(d.compare("greater", x, 0), g),
    "leaky_relu": lambda d, a, x, y, g: d.pick(d.compare("greater_equal", x, 0), g, d.mul(g, a["alpha"])),
    "elu": lambda d, a, x, y, g: d.pick(d.compare("greater", x, 0), g, d.mul(g, d.add(y, a["alpha"]))),
    **dict.fromkeys(("floor", "ceil", "trunc", "round", "sign"), _zero)}.items()}


# ---- of two or three, with broadcasting ------------------------------------------------------------------------------
def _two(rule: Callable[[Arithmetic, Value, Value, Value, Value], tuple[Value | None, Value | None]]) -> Rule:
    """A rule of two operands a and b from them, the result y and its gradient g; what it gives is summed over axes that
    were broadcast."""
    def run(op: Operation, given: Gradients, d: Arithmetic) -> Gradients:
        (a, b), (g,) = op.inputs, given
        assert a is not None and b is not None and g is not None
        return [None if v is None else d.sum_to(v, x) for v, x in zip(rule(d, a, b, op.output, g), (a, b), strict=True)]
    return run


def _pow(d: Arithmetic, a: Value, b: Value, y: Value, g: Value) -> tuple[Value, Value]:
    """b a^(b - 1), and a^b log a, which is 0 where a is not positive."""
    positive = d.compare("greater", a, 0)
    log = d.pick(positive, d("log", d.pick(positive, a, d.number(1, a))))
    return d.mul(g, b, d("pow", a, d.add(b, -1))), d.mul(g, y, log)


def _chosen(op: str) -> Callable[[Arithmetic, Value, Value, Value, Value], tuple[Value, Value]]:
    """Of the smaller or the larger: to the operand that is chosen, to both halves where they are equal."""
    def rule(d: Arithmetic, a: Value, b: Value, y: Value, g: Value) -> tuple[Value, Value]:
        half = d.pick(d("equal", a, b), d.mul(g, 0.5), g)
        return d.pick(d(op, a, b), half), d.pick(d(op, b, a), half)
    return rule


BINARY: dict[str, Rule] = {name: _two(rule) for name, rule in {
    "add": lambda d, a, b, y, g: (g, g),
    "sub": lambda d, a, b, y, g: (g, d.neg(g)),
    "mul": lambda d, a, b, y, g: (d.mul(g, b), d.mul(g, a)),
    "div": lambda d, a, b, y, g: (d.div(g, b), d.neg(d.div(d.mul(g, y), b))),
    "pow": _pow, "min": _chosen("less_equal"), "max": _chosen("greater_equal")}.items()}


def where(op: Operation, given: Gradients, d: Arithmetic) -> Gradients:
    (cond, a, b), (g,) = op.inputs, given
    assert cond is not None and a is not None and b is not None and g is not None
    zero = d.number(0, g)
    return [None, d.sum_to(d("where", cond, g, zero), a), d.sum_to(d("where", cond, zero, g), b)]


# ---- other shapes and places -----------------------------------------------------------------------------------------
identity = _one(lambda d, a, x, y, g: g)
reshape = _one(lambda d, a, x, y, g: d("reshape", g, shape=x.shape))
expand = _one(lambda d, a, x, y, g: d.sum_to(g, x))
transpose = _one(lambda d, a, x, y, g: d("transpose", g, perm=tuple([a["perm"].index(k) for k in range(x.rank)])))


def _slice(d: Arithmetic, a: dict[str, Any], x: Value, y: Value, g: Value) -> Value:
    if any(s != 1 for s in a["steps"]):
        raise UserError("gradient-missing", "the gradient of a slice with steps is not known")
    after = [dim(n - s - m) for n, s, m in zip(x.shape, a["starts"], a["sizes"], strict=True)]
    return d("pad", g, before=a["starts"], after=after)


def _pad(d: Arithmetic, a: dict[str, Any], x: Value, y: Value, g: Value) -> Value:
    if a["mode"] != "constant" or any((as_int(n) or 0) < 0 for n in (*a["before"], *a["after"])):
        raise UserError("gradient-missing", f"the gradient of a pad with mode {a['mode']!r}, or that crops, is not known")
    return d("slice", g, starts=a["before"], sizes=x.shape, steps=(1,) * x.rank)


slice_, pad = _one(_slice), _one(_pad)


def concat(op: Operation, given: Gradients, d: Arithmetic) -> Gradients:
    (g,), axis = given, op.attrs["axis"]
    assert g is not None
    out: list[Value] = []
    start: Any = 0
    for x in op.inputs:
        assert x is not None
        starts = [start if k == axis else 0 for k in range(x.rank)]
        out.append(d("slice", g, starts=starts, sizes=x.shape, steps=(1,) * x.rank))
        start = dim(start + x.shape[axis])
    return out


def gather(op: Operation, given: Gradients, d: Arithmetic) -> Gradients:
    """Slices are added at their places, along the first axis."""
    (x, at), (g,), axis = op.inputs, given, op.attrs["axis"]
    assert x is not None and at is not None and g is not None
    rest = [k for k in range(x.rank) if k != axis]
    turned = [x.shape[axis], *[x.shape[k] for k in rest]]
    inner = [*range(axis, axis + at.rank), *range(axis), *range(axis + at.rank, g.rank)]
    count = product(at.shape)
    rows = d("reshape", d("transpose", g, perm=tuple(inner)), shape=[count, *turned[1:]])
    start = d("full", shape=turned, value=0, dtype=x.dtype)
    found = d("scatter_nd", start, d("reshape", at, shape=[count, 1]), rows, reduction="add")
    return [d("transpose", found, perm=tuple([([axis, *rest]).index(k) for k in range(x.rank)])), None]


def gather_elements(op: Operation, given: Gradients, d: Arithmetic) -> Gradients:
    (x, at), (g,) = op.inputs, given
    assert x is not None
    return [d("scatter_elements", d.zeros(x), at, g, axis=op.attrs["axis"], reduction="add"), None]


# ---- sums and products -----------------------------------------------------------------------------------------------
def _kept(a: dict[str, Any], x: Value) -> list[Expr | int]:
    """The shape of a reduction of x with its axes kept."""
    return [1 if k in a["axes"] else n for k, n in enumerate(x.shape)]


def _spread(d: Arithmetic, a: dict[str, Any], x: Value, g: Value) -> Value:
    return d("expand", d("reshape", g, shape=_kept(a, x)), shape=x.shape)


def _mean(d: Arithmetic, a: dict[str, Any], x: Value, y: Value, g: Value) -> Value:
    extents = d("gather", d("shape_of", x), d.maker.constant(np.array(a["axes"], np.int64)), axis=0)
    return d.div(_spread(d, a, x, g), d("cast", d("reduce_prod", extents, axes=(0,), keepdims=False), to=x.dtype))


def _extreme(d: Arithmetic, a: dict[str, Any], x: Value, y: Value, g: Value) -> Value:
    """In equal parts to the elements that are the result."""
    hit = d("cast", d("equal", x, _spread(d, a, x, y)), to=x.dtype)
    share = d.div(d("reshape", g, shape=_kept(a, x)), d("reduce_sum", hit, axes=a["axes"], keepdims=True))
    return d.mul(hit, share)


REDUCE: dict[str, Rule] = {"reduce_sum": _one(lambda d, a, x, y, g: _spread(d, a, x, g)), "reduce_mean": _one(_mean),
                           "reduce_max": _one(_extreme), "reduce_min": _one(_extreme)}


def matmul(op: Operation, given: Gradients, d: Arithmetic) -> Gradients:
    """g bᵀ and aᵀ g (gᵀ a where b is given as its transpose), summed over batches that were broadcast."""
    (a, b), (g,) = op.inputs, given
    assert a is not None and b is not None and g is not None

    def turned(v: Value) -> Value:
        return d("transpose", v, perm=(*range(v.rank - 2), v.rank - 1, v.rank - 2))
    if op.attrs["transpose_b"]:
        return [d.sum_to(d("matmul", g, b), a), d.sum_to(d("matmul", turned(g), a), b)]
    return [d.sum_to(d("matmul", g, b, transpose_b=True), a), d.sum_to(d("matmul", turned(a), g), b)]


def conv(op: Operation, given: Gradients, d: Arithmetic) -> Gradients:
    """By the input a transposed convolution; by the weights a convolution in which batch and channels change places, and
    strides and dilations."""
    (x, w), (g,), a = op.inputs, given, op.attrs
    assert x is not None and w is not None and g is not None
    rank = x.rank - 2
    sizes = [as_int(n) for n in (*x.shape[2:], *w.shape[2:], *g.shape[2:])]
    if a["group"] != 1 or a["layout"] != "NCHW" or a["out"] is not None or any(n is None for n in sizes):
        raise UserError("gradient-missing", "the gradient of a convolution in groups, or of unknown sizes, is not known")
    n = [size or 0 for size in sizes]
    pads, strides, dilations = a["pads"], a["strides"], a["dilations"]
    reach = [(n[2 * rank + k] - 1) * strides[k] + dilations[k] * (n[rank + k] - 1) + 1 for k in range(rank)]
    extra = [n[k] + pads[k] + pads[rank + k] - reach[k] for k in range(rank)]  # what strides leave over at the end
    by_x = d("conv_transpose", g, w, strides=strides, pads=pads, dilations=dilations, output_padding=extra)
    swap = (1, 0, *range(2, x.rank))
    by_w = d("conv", d("transpose", x, perm=swap), d("transpose", g, perm=swap), strides=dilations, dilations=strides,
             pads=pads)
    by_w = d("slice", by_w, starts=[0] * x.rank, sizes=[*by_w.shape[:2], *w.shape[2:]], steps=(1,) * x.rank)
    return [by_x, d("transpose", by_w, perm=swap)]


def _softmax(d: Arithmetic, a: dict[str, Any], x: Value, y: Value, g: Value) -> Value:
    inner = d("reduce_sum", d.mul(g, y), axes=(a["axis"],), keepdims=True)
    return d.mul(y, d.sub(g, inner))


def _log_softmax(d: Arithmetic, a: dict[str, Any], x: Value, y: Value, g: Value) -> Value:
    total = d("reduce_sum", g, axes=(a["axis"],), keepdims=True)
    return d.sub(g, d.mul(d("exp", y), total))


softmax, log_softmax = _one(_softmax), _one(_log_softmax)
