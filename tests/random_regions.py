"""Steps of random graphs with graphs inside: If, Loop by trip count and by condition, Scan; nested twice at most."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.random_graph import UNIT, Dim, Graph, Unfit, Value, element_type, is_number
from tests.random_operators import STEPS, step

DEPTH = 2
CARRIED, WHOLE = 4.0, 50.0
"""What carried floats and integers stay within."""


def grow(g: Graph, steps: int) -> None:
    """Takes steps at random; one that does not fit is replaced, a few times."""
    for _ in range(steps):
        for _ in range(8):
            try:
                g.rng.choice(STEPS)(g)
            except Unfit:
                continue
            break


def depth(g: Graph) -> int:
    return 0 if g.outer is None else 1 + depth(g.outer)


def body(g: Graph, values: list[Value], steps: int) -> Graph:
    if depth(g) >= DEPTH:
        raise Unfit
    inner = Graph(g.rng, g.runs, g.opset, f"{g.name()}_", g)
    inner.values += values * 2  # twice as likely
    grow(inner, steps)
    return inner


def info(name: str, type: str, shape: Any = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element_type(type), shape)


def closed(inner: Graph, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.GraphProto:
    return helper.make_graph(inner.nodes, inner.prefix, inputs, outputs, inner.weights)


def condition(g: Graph) -> str:
    """Exact, and false as well as true."""
    v = g.pick(lambda v: v.exact and v.type in ("float32", "int32", "int64", "bool") and v.rank > 0)
    if v.type == "bool":
        v = g.add("Cast", [v], v.shape, v, type="int32", to=TensorProto.INT32)
    total = g.node(g.rng.choice(["ReduceMax", "ReduceMin"]), [v], keepdims=0)[0]
    return g.node(g.rng.choice(["Less", "Greater"]), [total, g.weight(np.array(g.rng.choice([0, 1, 3]), v.type))])[0]


def like(inner: Graph, v: Value) -> Value:
    """A value of the body of the shape and type of another, made by it."""
    found = [w for w in inner.values if w.shape == v.shape and w.type == v.type]
    w = inner.rng.choice(found[-4:]) if found else v
    return inner.add("Identity", [w], w.shape, w)


@step(3)
def branch(g: Graph) -> None:
    chosen = [g.pick() for _ in range(g.rng.randrange(1, 4))]
    cond = condition(g)
    inners = [body(g, [], g.rng.randrange(3)) for _ in range(2)]
    ends = [[like(inner, v) for v in chosen] for inner in inners]
    graphs = [closed(inner, [], [info(v.name, v.type) for v in these]) for inner, these in zip(inners, ends, strict=True)]
    outs = g.node("If", [cond], len(chosen), then_branch=graphs[0], else_branch=graphs[1])
    for out, a, b in zip(outs, *ends, strict=True):
        g.made(out, a.shape, a.type, max(a.bound, b.bound), max(a.error, b.error), max(a.fraction, b.fraction))


def carry(g: Graph, tag: str) -> tuple[list[Value], list[Value]]:
    """What goes around: values outside, and as the body sees them at the start of any turn."""
    def fits(v: Value) -> bool:
        return v.type == "bool" or v.type in ("float32", "float64") and v.bound <= CARRIED and v.error < 1e-5 \
            or v.type in ("int32", "int64") and v.bound <= WHOLE
    outside = [g.pick(fits) for _ in range(g.rng.randrange(1, 4))]
    inside = [replace(v, name=f"{tag}_c{k}", bound=1 if v.type == "bool" else CARRIED if v.is_float else WHOLE, fraction=0,
                      error=max(v.error, UNIT[v.type]) if v.is_float else 0.0) for k, v in enumerate(outside)]
    return outside, inside


def turned(inner: Graph, inside: list[Value]) -> list[Value]:
    """The body's results for the next turn: some change places, some are new; floats and integers are kept small."""
    ends = []
    for v in inside:
        end = like(inner, v)
        if v.is_float and end.bound > CARRIED:
            end = inner.smooth("Tanh", end, 1, 1)
        elif v.type in ("int32", "int64") and end.bound > WHOLE:
            end = inner.add("Mod", [end, inner.weight(np.array(13, v.type))], end.shape, end, bound=13)
        ends.append(end)
    return ends


def after(g: Graph, outs: list[str], outside: list[Value], inside: list[Value], ends: list[Value], turns: int) -> float:
    """The carried values behind the loop: errors grow from turn to turn as they did in one. By how much in all."""
    start = max([v.error / UNIT[v.type] for v in inside if v.is_float], default=1.0)
    worst = max([e.error / UNIT[e.type] for e in ends if e.is_float], default=1.0)
    growth = max(worst / start, 1.0) ** turns
    for out, before, v, end in zip(outs, outside, inside, ends, strict=False):
        error = start * growth * UNIT[v.type] if v.is_float else 0.0
        g.made(out, before.shape, v.type, max(v.bound, end.bound), error)
    return growth


@step(4)
def loop(g: Graph) -> None:
    tag = g.name()
    outside, inside = carry(g, tag)
    turn = Value(f"{tag}_i", (), "int64", 3)
    inner = body(g, [turn, *inside], g.rng.randrange(1, 4))
    ends = turned(inner, inside)
    kind = g.rng.choice(["count", "count", "given", "while", "both"])
    keep = f"{tag}_keep"
    more = condition(inner) if kind in ("while", "both") else f"{tag}_go"
    if kind == "while":  # it ends in any case
        early = inner.node("Less", [turn, inner.weight(np.int64(2))])[0]
        more = inner.node("And", [more, early])[0]
    inner.nodes.append(helper.make_node("Identity", [more], [keep]))
    rows = [like(inner, inner.pick())] if g.rng.random() < 0.6 else []
    graph = closed(inner, [info(turn.name, "int64", []), info(f"{tag}_go", "bool", []),
                           *[info(v.name, v.type, names_of(g, v)) for v in inside]],
                   [info(keep, "bool", []), *[info(v.name, v.type) for v in (*ends, *rows)]])
    trips: Dim = g.dim(g.rng.choice([1, 2, 3]))
    count = "" if kind == "while" else g.weight(np.int64(trips[0]))
    if kind == "given":
        count, trips = g.trips
    first = g.weight(np.bool_(True)) if kind != "count" or g.rng.random() < 0.5 else ""
    outs = g.node("Loop", [count, first, *outside], len(ends) + len(rows), body=graph)
    growth = after(g, outs, outside, inside, ends, 3)
    for row in rows:
        if kind in ("while", "both"):  # how many, data decide
            g.ends.append((outs[-1], row.error * growth))
        else:
            g.made(outs[-1], (trips, *row.shape), row.type, row.bound, row.error * growth, row.fraction)


def names_of(g: Graph, v: Value) -> list[Any]:
    return [d[0] if is_number(d) else None for d in v.shape]


@step(2)
def scan(g: Graph) -> None:
    tag = g.name()
    xs = g.pick(lambda v: v.rank > 0 and v.type in ("float32", "int64", "float64"))
    axis = g.axis(xs)
    slice_ = replace(xs, name=f"{tag}_x", shape=(*xs.shape[:axis], *xs.shape[axis + 1:]))
    outside, inside = carry(g, tag)
    inner = body(g, [slice_, *inside], g.rng.randrange(1, 4))
    ends = turned(inner, inside)
    row = like(inner, inner.pick())
    turns = max(xs.shape[axis])
    if turns > 8:
        raise Unfit
    graph = closed(inner, [*[info(v.name, v.type, names_of(g, v)) for v in (*inside, slice_)]],
                   [info(v.name, v.type, names_of(g, v)) for v in (*ends, row)])
    outs = g.node("Scan", [*outside, xs], len(ends) + 1, body=graph, num_scan_inputs=1, scan_input_axes=[axis],
                  scan_input_directions=[g.rng.randrange(2)], scan_output_directions=[g.rng.randrange(2)])
    growth = after(g, outs, outside, inside, ends, turns)
    g.made(outs[-1], (xs.shape[axis], *row.shape), row.type, row.bound, row.error * growth, row.fraction)
