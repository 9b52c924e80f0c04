"""Recovery of operators that frontends spell out: gelu, silu, hard_swish, mish, softmax, layer_norm, rms_norm.

In: any Graph, after `simplify_operations` (powers are products, quotients by numbers are products). Out: the same graph
with the named operator in place of its formula. The rounding may differ from the formula's, within what a reordering of
its elementwise steps gives; softmax without its maximum gains it.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tilewright.graph.ir import Graph, Operation, Value
from tilewright.graph.passes.match import Result, Rule, Walk, apply, epsilon, is_number, splat
from tilewright.loop.ir import as_int


def recover_idioms(graph: Graph) -> Graph:
    """Put named operators in place of their formulas."""
    return apply(graph, _RULES)


# ---- products --------------------------------------------------------------------------------------------------------
def factors(v: Value, w: Walk, stop: Sequence[Value] = (), depth: int = 4) -> tuple[float, list[Value]]:
    """`v` as a number times values: products and quotients by numbers are taken apart, but not the values in `stop`."""
    n = splat(v)
    if n is not None and v not in stop:
        return float(n), []
    op = None if v in stop or depth == 0 else w.producer(v, "mul", "div", "neg")
    if op is None or op.inputs[0] is None:
        return 1.0, [v]
    c, out = factors(op.inputs[0], w, stop, depth - 1)
    if op.op == "neg":
        return -c, out
    other = op.inputs[1]
    assert other is not None
    if op.op == "mul":
        d, more = factors(other, w, stop, depth - 1)
        return c * d, out + more
    n = splat(other)
    return (c / float(n), out) if n else (1.0, [v])


def is_product(v: Value, number: float, values: Sequence[Value], w: Walk) -> bool:
    """Whether `v` is `number` times exactly these values."""
    c, found = factors(v, w, values)
    return near(c, number, v) and _same_values(found, values)


def near(a: float, b: float, v: Value) -> bool:
    """Equal up to a few roundings of the type of `v`."""
    return abs(a - b) <= 8 * epsilon(v) * abs(b)


def _same_values(a: Sequence[Value], b: Sequence[Value]) -> bool:
    rest = list(b)
    for v in a:
        if v not in rest:
            return False
        rest.remove(v)
    return not rest


def _plus(v: Value | None, number: float, w: Walk) -> Value | None:
    """x, if `v` is x + number."""
    op = w.producer(v, "add")
    if op is None:
        return None
    a, b = op.inputs
    return a if is_number(b, number) else b if is_number(a, number) else None


def _difference(v: Value | None, w: Walk) -> tuple[Value, Value] | None:
    """(a, b), if `v` is a - b."""
    op = w.producer(v, "sub")
    return None if op is None or op.inputs[0] is None or op.inputs[1] is None else (op.inputs[0], op.inputs[1])


def _named(x: Value | None, op: Operation, w: Walk, name: str, attrs: dict[str, Any] | None = None) -> Result:
    """The named operator on `x`, if that has the type of the operation's result."""
    if x is None or x.type != op.output.type or not x.dtype.is_float:
        return None
    return w.b.add(name, [x], attrs, name=op.output.name)


# ---- activations -----------------------------------------------------------------------------------------------------
def _gelu(op: Operation, w: Walk) -> Result:
    """0.5 x (1 + erf(x / √2)), and 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))), with the products in any order."""
    for e in factors(op.output, w)[1]:
        made = w.producer(_plus(e, 1.0, w), "erf", "tanh")
        if made is None or made.inputs[0] is None:
            continue
        x = _erf_argument(made.inputs[0], w) if made.op == "erf" else _tanh_argument(made.inputs[0], w)
        if x is not None and is_product(op.output, 0.5, [x, e], w):
            return _named(x, op, w, "gelu", {"approximate": "none" if made.op == "erf" else "tanh"})
    return None


def _erf_argument(z: Value, w: Walk) -> Value | None:
    """x, if z is x / √2."""
    op = w.producer(z, "mul", "div")
    x = None if op is None else next((v for v in op.inputs if v is not None and splat(v) is None), None)
    return x if x is not None and is_product(z, math.sqrt(0.5), [x], w) else None


def _tanh_argument(z: Value, w: Walk) -> Value | None:
    """x, if z is √(2/π) (x + 0.044715 x³) or √(2/π) x (1 + 0.044715 x²)."""
    c = math.sqrt(2 / math.pi)
    for s in factors(z, w)[1]:
        op = w.producer(s, "add")
        if op is None or op.inputs[0] is None or op.inputs[1] is None:
            continue
        for x, cube in (op.inputs, op.inputs[::-1]):
            if x is not None and cube is not None and is_product(cube, 0.044715, [x, x, x], w) and is_product(z, c, [s], w):
                return x
        square = _plus(s, 1.0, w)
        if square is None:
            continue
        for x in factors(square, w)[1]:
            if is_product(square, 0.044715, [x, x], w) and is_product(z, c, [x, s], w):
                return x
    return None


def _gates(op: Operation, w: Walk) -> Result:
    """x sigmoid(x) → silu; x hard_sigmoid(x) → hard_swish; x tanh(softplus(x)) → mish; x relu6(x + 3) / 6 → hard_swish."""
    for gate in factors(op.output, w)[1]:
        made = w.producer(gate, "sigmoid", "hard_sigmoid", "tanh", "clip")
        if made is None:
            continue
        x, number, name = made.inputs[0], 1.0, "silu"
        if made.op == "hard_sigmoid":
            if not (near(made.attrs["alpha"], 1 / 6, gate) and near(made.attrs["beta"], 0.5, gate)):
                continue
            name = "hard_swish"
        elif made.op == "tanh":
            soft = w.producer(x, "softplus")
            x, name = None if soft is None else soft.inputs[0], "mish"
        elif made.op == "clip":
            if (made.attrs["min"], made.attrs["max"]) != (0, 6):
                continue
            x, number, name = _plus(x, 3.0, w), 1 / 6, "hard_swish"
        if x is not None and is_product(op.output, number, [x, gate], w):
            return _named(x, op, w, name)
    return None


def _sigmoid(op: Operation, w: Walk) -> Result:
    """1 / (1 + exp(-x))"""
    e = w.producer(_plus(op.inputs[0], 1.0, w), "exp")
    n = None if e is None else w.producer(e.inputs[0], "neg")
    return None if n is None else _named(n.inputs[0], op, w, "sigmoid")


# ---- rows ------------------------------------------------------------------------------------------------------------
def _reduced_axes(op: Operation | None, rank: int) -> tuple[int, ...] | None:
    """The axes of a reduction that keeps them as ones."""
    if op is None or not op.attrs["keepdims"]:
        return None
    axes = op.attrs["axes"]
    return tuple(range(rank)) if axes is None else tuple(sorted(axes))


def _softmax(op: Operation, w: Walk) -> Result:
    """e / sum(e), where e is exp(x - max(x)) or exp(x)."""
    e, total = op.inputs
    made, summed = w.producer(e, "exp"), w.producer(total, "reduce_sum")
    if made is None or summed is None or summed.inputs[0] is not e or e is None or made.inputs[0] is None:
        return None
    axes = _reduced_axes(summed, e.rank)
    if axes is None or len(axes) != 1:
        return None
    x = made.inputs[0]
    found = _difference(x, w)
    top = None if found is None else w.producer(found[1], "reduce_max")
    if found is not None and top is not None and top.inputs[0] is found[0] and _reduced_axes(top, e.rank) == axes:
        x = found[0]
    return _named(x, op, w, "softmax", {"axis": axes[0]})


def _row_scale(op: Operation, w: Walk) -> tuple[Value, Value, float] | None:
    """(d, variance, eps), if the result is d / sqrt(variance + eps), in one of its spellings."""
    a, b = op.inputs
    if a is None or b is None:
        return None
    pairs = [(a, b)] if op.op == "div" else [(a, b), (b, a)]
    for d, r in pairs:
        root = w.producer(r, "sqrt") if op.op == "div" else w.producer(r, "rsqrt", "reciprocal")
        if root is not None and root.op == "reciprocal":
            root = w.producer(root.inputs[0], "sqrt")
        add = None if root is None else w.producer(root.inputs[0], "add")
        if add is None:
            continue
        for v, eps in (add.inputs, add.inputs[::-1]):
            n = splat(eps)
            if v is not None and n is not None:
                return d, v, float(n)
    return None


def _norm(op: Operation, w: Walk) -> Result:
    """(x - mean(x)) / sqrt(mean((x - mean(x))²) + eps) → layer_norm; x / sqrt(mean(x²) + eps) → rms_norm."""
    found = _row_scale(op, w)
    if found is None:
        return None
    d, variance, eps = found
    mean = w.producer(variance, "reduce_mean")
    axes = _reduced_axes(mean, d.rank)
    if mean is None or axes is None or mean.inputs[0] is None or axes != tuple(range(axes[0], d.rank)):
        return None
    square = w.producer(mean.inputs[0], "mul")
    if square is None or square.inputs != (d, d):
        return None
    centered = _difference(d, w)
    if centered is not None:
        x, m = centered
        inner = w.producer(m, "reduce_mean")
        if inner is not None and inner.inputs[0] is x and _reduced_axes(inner, x.rank) == axes:
            return _named(x, op, w, "layer_norm", {"axis": axes[0], "eps": eps})
    return _named(d, op, w, "rms_norm", {"axis": axes[0], "eps": eps})


def _norm_scale(op: Operation, w: Walk) -> Result:
    """A product by a row behind a norm without scale becomes its scale."""
    return _with_row(op, w, 1)


def _norm_bias(op: Operation, w: Walk) -> Result:
    """A sum with a row behind a layer_norm without bias becomes its bias."""
    return _with_row(op, w, 2)


def _with_row(op: Operation, w: Walk, place: int) -> Result:
    for y, row in (op.inputs, op.inputs[::-1]):
        norm = w.producer(y, "layer_norm", "rms_norm") if place == 1 else w.producer(y, "layer_norm")
        if norm is None or y is None or row is None or row.data is None or not w.lone(y):
            continue
        given = [*norm.inputs, None, None][1:3]
        if given[place - 1] is not None or given[1] is not None or y.type != op.output.type:
            continue
        rest = y.shape[norm.attrs["axis"]:]
        data = row.data
        while data.ndim > len(rest) and data.shape[0] == 1:
            data = data[0]
        if data.ndim > len(rest) or any(n != 1 and as_int(d) != n for n, d in zip(
                reversed(data.shape), reversed(rest), strict=False)):
            continue
        extra = w.b.constant(data, row.name)
        inputs = [norm.inputs[0], extra] if place == 1 else [norm.inputs[0], given[0], extra]
        return w.b.add(norm.op, inputs, norm.attrs, name=op.output.name)
    return None


_RULES: dict[str, Sequence[Rule]] = {
    "mul": [_gelu, _gates, _norm, _norm_scale], "div": [_gelu, _gates, _softmax, _norm], "add": [_norm_bias],
    "reciprocal": [_sigmoid]}
