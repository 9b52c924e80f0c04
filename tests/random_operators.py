"""Steps that random graphs take: each adds one operator, or a few, over values that suit it.

Elementwise operators, comparisons, integers, views, indices, reductions. Operators that jump take exact values alone.
"""
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.random_graph import DIGITS, INTS, UNIT, Graph, Shape, Unfit, Value, element_type, is_number

Step = Callable[[Graph], object]
STEPS: list[Step] = []


def step(times: int = 1) -> Callable[[Step], Step]:
    def enter(f: Step) -> Step:
        STEPS.extend([f] * times)
        return f
    return enter


# ---- one operand -----------------------------------------------------------------------------------------------------
SMOOTH = {"Sigmoid": 1, "Tanh": 1, "Erf": 1.2, "Sin": 1, "Cos": 1, "Softsign": 1, "Atan": 1, "HardSigmoid": 1}
GROWING = {"Softplus": 1, "Elu": 1, "Selu": 1.8, "Celu": 1, "LeakyRelu": 1, "Mish": 1.1, "HardSwish": 1.5, "Asinh": 1}
PIECES = ("Relu", "Neg", "Abs", "Identity", "Dropout")
PARTIAL: dict[str, tuple[float, float, float, float]] = {  # of values t within ±1, as t * factor + shift: slope and bound
    "Exp": (1, 0, 3, 3), "Sinh": (1, 0, 2, 2), "Cosh": (1, 0, 2, 2), "Tan": (1, 0, 4, 2), "Asin": (0.875, 0, 2.1, 1.2),
    "Acos": (0.875, 0, 2.1, 3), "Atanh": (0.875, 0, 4.3, 1.4), "Acosh": (1, 2.5, 1, 2), "Sqrt": (1, 1.5, 1, 1.6),
    "Log": (1, 1.5, 2, 1), "Reciprocal": (1, 1.5, 4, 2)}


@step(3)
def smooth(g: Graph) -> None:
    v, op = g.float(bound=100), g.rng.choice([*SMOOTH, *GROWING, *(["Gelu"] if g.opset >= 20 else [])])
    slope = SMOOTH.get(op, GROWING.get(op, 1.2))
    g.smooth(op, v, slope, 1.6 if op in SMOOTH else 1.8 * v.bound + 1, terms=4,
             **({"approximate": g.rng.choice(["none", "tanh"])} if op == "Gelu" else {}))


@step(2)
def pieces(g: Graph) -> None:
    v, op = g.pick(lambda v: v.is_float or v.type in ("int8", "int32", "int64")), g.rng.choice(PIECES)
    if v.type in INTS and op == "Dropout":
        raise Unfit
    g.add(op, [v], v.shape, v)


@step(2)
def partial(g: Graph) -> None:
    v, op = g.squashed(g.f32()), g.rng.choice([*PARTIAL])
    g.smooth(op, shifted(g, v, *PARTIAL[op][:2]), *PARTIAL[op][2:], terms=4)


def shifted(g: Graph, v: Value, factor: float, shift: float) -> Value:
    if factor != 1:
        by = g.weight(np.array(factor, v.type))
        v = g.add("Mul", [v, by], v.shape, v, bound=factor * v.bound, fraction=v.fraction + 3)
    if shift:
        v = g.add("Add", [v, g.weight(np.array(shift, v.type))], v.shape, v, bound=shift + v.bound,
                  error=v.error + (UNIT[v.type] if v.error else 0), fraction=max(v.fraction, 1))
    return v


@step(2)
def rounding(g: Graph) -> None:
    v = g.pick(lambda v: v.exact and v.type in ("float32", "float64"))
    op = g.rng.choice(["Floor", "Ceil", "Round", "Sign"])
    g.add(op, [v], v.shape, v, bound=1 if op == "Sign" else v.bound + 1, fraction=0)


@step()
def jumps(g: Graph) -> None:
    v = g.pick(lambda v: v.exact and v.type == "float32")
    match g.rng.randrange(3):
        case 0:
            g.add("ThresholdedRelu", [v], v.shape, v, alpha=0.5)
        case 1:
            g.add("Shrink", [v], v.shape, v, lambd=0.5, bias=0.25, fraction=max(v.fraction, 2))
        case _:
            g.add(g.rng.choice(["IsNaN", "IsInf"]), [v], v.shape, v, type="bool", bound=1, fraction=0)


@step()
def clip(g: Graph) -> None:
    v = g.pick(lambda v: v.type in ("float32", "float64", "int8", "int32", "int64", "uint8"))
    low = g.weight(np.array(0 if v.type.startswith("u") else -1, v.type)) if g.rng.random() < 0.7 else ""
    high = [g.weight(np.array(2, v.type))] if g.rng.random() < 0.7 or not low else []
    g.add("Clip", [v, low, *high], v.shape, v)


@step(3)
def cast(g: Graph) -> None:
    """Between all types; to integers only what is exact and fits."""
    v, to = g.pick(), g.rng.choice([*DIGITS, *INTS, "bool", "float32", "int64"])
    if to in INTS:
        if not v.exact or v.bound > 100:
            raise Unfit
        if to.startswith("u") and not v.type.startswith("u") and v.type != "bool":
            v = g.add("Abs", [v], v.shape, v)
        out = {"bound": v.bound, "error": 0.0, "fraction": 0}
    elif to == "bool":
        if not v.exact:
            raise Unfit
        out = {"bound": 1, "error": 0.0, "fraction": 0}
    else:
        rounded = UNIT[to] * v.bound if v.error else 0.0
        out = {"bound": v.bound, "error": v.error + rounded, "fraction": v.fraction}
    if g.rng.random() < 0.2:
        g.add("CastLike", [v, g.weight(np.zeros((), to))], v.shape, v, type=to, **out)
    else:
        g.add("Cast", [v], v.shape, v, type=to, to=element_type(to), **out)


# ---- several operands, with broadcasting -----------------------------------------------------------------------------
def broadcast(a: Shape, b: Shape) -> Shape | None:
    n = max(len(a), len(b))
    one = (1,) * len((a or b or ((1,),))[0])
    a, b = (one,) * (n - len(a)) + a, (one,) * (n - len(b)) + b
    out = [x if x == y or y == one else y if x == one else None for x, y in zip(a, b, strict=True)]
    return None if None in out else tuple([d for d in out if d is not None])


def partner(g: Graph, v: Value) -> Value:
    """Another value of its type that broadcasts with it, or an exact constant."""
    found = [w for w in g.values if w.type == v.type and broadcast(v.shape, w.shape) is not None]
    if g.rng.random() < 0.6:
        return g.rng.choice(found[-8:])
    shape = [d[0] if is_number(d) and g.rng.random() < 0.7 else 1 for d in v.shape]
    return g.quarters(tuple(shape[g.rng.randrange(len(shape) + 1):]), v.type)


def joined(g: Graph, a: Value, b: Value) -> Shape:
    shape = broadcast(a.shape, b.shape)
    if shape is None:
        raise Unfit
    return shape


@step(6)
def arithmetic(g: Graph) -> None:
    a = g.pick(lambda v: v.is_float or v.type in ("int32", "int64", "uint8", "int8", "uint32") and v.bound < 50)
    b = partner(g, a)
    if g.rng.random() < 0.5:
        a, b = b, a
    op, shape = g.rng.choice(["Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean"]), joined(g, a, b)
    if a.type in INTS and (op in ("Sum", "Mean") or op == "Sub" and a.type.startswith("u") or a.bound * b.bound > 120):
        raise Unfit
    unit = UNIT.get(a.type, 0.0)
    both = a.exact and b.exact
    if op == "Mul":
        bound, error, fraction = a.bound * b.bound, a.error * b.bound + b.error * a.bound, a.fraction + b.fraction
    else:
        bound, error, fraction = a.bound + b.bound, a.error + b.error, max(a.fraction, b.fraction) + (op == "Mean")
    g.add(op, [a, b], shape, a, bound=bound, error=0.0 if both else error + unit * bound, fraction=fraction)


@step()
def three(g: Graph) -> None:
    a = g.f32()
    b = partner(g, a)
    c = partner(g, a)
    shape = broadcast(joined(g, a, b), c.shape)
    if shape is None:
        raise Unfit
    bound = a.bound + b.bound + c.bound
    g.add(g.rng.choice(["Sum", "Max", "Min"]), [a, b, c], shape, a, bound=bound, fraction=0,
          error=a.error + b.error + c.error + 2 * UNIT["float32"] * bound)


@step()
def quotient(g: Graph) -> None:
    a, t = g.f32(), shifted(g, g.squashed(g.f32()), 1, 1.5)
    unit, shape = UNIT["float32"], joined(g, a, t)
    g.add("Div", [a, t], shape, a, bound=2 * a.bound, error=2 * a.error + 4 * a.bound * t.error + 2 * unit * a.bound,
          fraction=0)


@step()
def power(g: Graph) -> None:
    t = shifted(g, g.squashed(g.f32()), 1, 1.5)
    exponent = g.rng.choice([2.0, 0.5, -1.0, 3.0, 1.5, 0.0])
    g.smooth("Pow", t, 19, 16, inputs=[g.weight(np.float32(exponent))], terms=4)


@step()
def prelu(g: Graph) -> None:
    v = g.f32()
    slope = g.quarters(tuple([d[0] if is_number(d) else 1 for d in v.shape[-1:]]), "float32", -4, 5)
    g.add("PRelu", [v, slope], v.shape, v, bound=2 * v.bound, fraction=v.fraction + 2, error=2 * v.error)


@step(3)
def compare(g: Graph) -> None:
    a = g.pick(lambda v: v.exact and v.type in ("float32", "float64", "int32", "int64", "int8"))
    b = g.quarters((), a.type, -4, 5) if g.rng.random() < 0.4 else partner(g, a)
    if not b.exact:
        raise Unfit
    op = g.rng.choice(["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"])
    g.add(op, [a, b], joined(g, a, b), a, type="bool", bound=1, fraction=0)


@step(2)
def logic(g: Graph) -> None:
    a = g.truth()
    op = g.rng.choice(["And", "Or", "Xor", "Not", "Equal"])
    if op == "Not":
        g.add(op, [a], a.shape, a)
    else:
        b = g.rng.choice([v for v in g.values if v.type == "bool" and broadcast(a.shape, v.shape) is not None])
        g.add(op, [a, b], joined(g, a, b), a)


@step(2)
def where(g: Graph) -> None:
    c, a = g.truth(), g.pick(lambda v: v.type in ("float32", "float64", "int32", "int64", "uint8"))
    b = partner(g, a)
    shape = broadcast(c.shape, joined(g, a, b))
    if shape is None:
        raise Unfit
    g.add("Where", [c, a, b], shape, a, bound=max(a.bound, b.bound), error=max(a.error, b.error),
          fraction=max(a.fraction, b.fraction))


@step(3)
def whole(g: Graph) -> None:
    """Integers among themselves: quotients, remainders, bits, shifts, powers."""
    a = g.integer()
    kind = g.rng.choice(["Div", "Mod", "fmod", "bits", "not", "shift", "Pow", "Abs"])
    signed = not a.type.startswith("u")
    match kind:
        case "Div" | "Mod" | "fmod":
            if g.rng.random() < 0.6:
                by = g.weight(np.array(g.rng.choice([1, 2, 3, 7, -3] if signed else [1, 2, 3, 8]), a.type))
            else:  # any value but zero
                by = g.add("Max", [a, g.weight(np.array(g.rng.choice([1, 2]), a.type))], a.shape, a, bound=a.bound + 2).name
            g.add("Div" if kind == "Div" else "Mod", [a, by], a.shape, a, bound=a.bound + 7, **(
                {"fmod": 1} if kind == "fmod" else {}))
        case "bits" if g.opset >= 18:
            b = partner(g, a)
            g.add(g.rng.choice(["BitwiseAnd", "BitwiseOr", "BitwiseXor"]), [a, b], joined(g, a, b), a,
                  bound=2 * max(a.bound, b.bound) + 2)
        case "not" if g.opset >= 18 and signed:
            g.add("BitwiseNot", [a], a.shape, a, bound=a.bound + 1)
        case "shift" if not signed:
            by = g.weight(np.array(g.rng.choice([0, 1, 3]), a.type))
            g.add("BitShift", [a, by], a.shape, a, direction="RIGHT")
        case "Pow" if a.type in ("int32", "int64") and a.bound < 30:
            g.add("Pow", [a, g.weight(np.array(2, a.type))], a.shape, a, bound=a.bound ** 2)
        case "Abs":
            g.add("Abs", [a], a.shape, a)
        case _:
            raise Unfit


# ---- reductions ------------------------------------------------------------------------------------------------------
def reduced(g: Graph, v: Value, axes: list[int], keep: int) -> Shape:
    return tuple([g.dim(1) if k in axes else d for k, d in enumerate(v.shape) if keep or k not in axes])


def count(v: Value, axes: list[int]) -> int:
    return int(np.prod([max(v.shape[k]) for k in axes]))


@step(4)
def reduce(g: Graph) -> None:
    v = g.pick(lambda v: v.type in ("float32", "float64", "int32", "int64") and v.rank > 0)
    axes = g.rng.sample(range(v.rank), g.rng.randrange(1, v.rank + 1))
    keep, n = g.rng.randrange(2), count(v, axes)
    whole = v.type in INTS
    op = g.rng.choice(["ReduceSum", "ReduceMax", "ReduceMin", *([] if whole else [
        "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "ReduceProd", "ReduceLogSum"])])
    unit, bound, error, fraction = UNIT.get(v.type, 0.0), v.bound, v.error, v.fraction
    if op in ("ReduceProd", "ReduceSumSquare"):
        v = g.squashed(v)
        bound, error = (n, 2 * n * v.error) if op == "ReduceSumSquare" else (1, n * v.error)
        error, fraction = error + n * unit, 0
    elif op == "ReduceLogSum":
        v = shifted(g, g.squashed(v), 1, 1.5)
        bound, error, fraction = float(np.log(2.5 * n)) + 1, 2 * v.error + n * unit, 0
    elif op == "ReduceLogSumExp":
        bound, error, fraction = v.bound + float(np.log(n)) + 1, error + n * unit * (1 + v.bound), 0
    elif op in ("ReduceSum", "ReduceL1", "ReduceL2"):
        exact = v.exact and op != "ReduceL2"
        bound, error = n * v.bound, 0.0 if exact else n * error + n * unit * v.bound
    elif op == "ReduceMean":
        error, fraction = error + n * unit * bound, 0
    g.add(op, [v, g.weight(np.array([g.signed(a, v.rank) for a in axes]))], reduced(g, v, axes, keep), v, bound=bound,
          error=error, fraction=fraction, keepdims=keep)


@step(2)
def places(g: Graph) -> None:
    v = g.pick(lambda v: v.exact and v.type in ("float32", "int32", "int64") and v.rank > 0)
    axis, keep = g.axis(v), g.rng.randrange(2)
    g.add(g.rng.choice(["ArgMax", "ArgMin"]), [v], reduced(g, v, [axis], keep), v, type="int64", fraction=0,
          bound=max(v.shape[axis]), axis=g.signed(axis, v.rank), keepdims=keep, select_last_index=g.rng.randrange(2))


@step()
def top(g: Graph) -> None:
    """Ties are broken by place; sorted."""
    v = g.pick(lambda v: v.exact and v.type in ("float32", "int64") and v.rank > 0)
    axis = g.axis(v)
    k = g.rng.randrange(1, min(v.shape[axis]) + 1)
    values, at = g.node("TopK", [v, g.weight(np.array([k]))], 2, axis=axis, largest=g.rng.randrange(2), sorted=1)
    shape = (*v.shape[:axis], g.dim(k), *v.shape[axis + 1:])
    g.made(values, shape, v.type, v.bound, 0.0, v.fraction)
    g.made(at, shape, "int64", max(v.shape[axis]))


@step()
def running(g: Graph) -> None:
    v = g.pick(lambda v: v.type in ("float32", "float64", "int32", "int64") and v.rank > 0)
    axis = g.axis(v)
    n = max(v.shape[axis])
    g.add("CumSum", [v, g.weight(np.int64(axis))], v.shape, v, bound=n * v.bound,
          error=0.0 if v.exact else n * (v.error + UNIT.get(v.type, 0.0) * v.bound), exclusive=g.rng.randrange(2),
          reverse=g.rng.randrange(2))


@step(2)
def softmax(g: Graph) -> None:
    v = g.pick(lambda v: v.type in ("float32", "float64") and v.rank > 0 and v.bound < 50)
    axis, op = g.axis(v), g.rng.choice(["Softmax", "Softmax", "LogSoftmax", "Hardmax"])
    n = max(v.shape[axis])
    if op == "Hardmax":
        if not v.exact:
            raise Unfit
        g.add(op, [v], v.shape, v, bound=1, fraction=0, axis=axis)
    else:
        g.smooth(op, v, 2, 1 if op == "Softmax" else 2 * v.bound + float(np.log(n)) + 1, terms=4 + n, axis=axis)
