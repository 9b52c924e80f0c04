"""Control flow: if_, loop and scan, whose bodies are regions (graphs that may use the values around them)."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.core.dtype import boolean
from tilewright.core.errors import UserError
from tilewright.graph.infer import (
    axis_of,
    constant_of,
    elements_of,
    expect,
    expect_rank,
    expect_same_dim,
    operand,
    same,
)
from tilewright.graph.ir import Graph, Operation, TensorType, Value, used_values
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.graph.symbols import defining_operations, new_symbols, symbols_of
from tilewright.loop.ir import Expr, Span, Var, as_int, const


def _joined(op: Operation, a: TensorType, b: TensorType, what: str) -> TensorType:
    """A type that holds both: where sizes are known to differ, or may, a fresh symbol."""
    expect(a.dtype is b.dtype, "dtype-mismatch", f"{op.op}: {what}: {a.dtype} and {b.dtype}")
    expect(a.rank == b.rank, "rank-mismatch", f"{op.op}: {what}: ranks {a.rank} and {b.rank}")
    return TensorType(a.dtype, tuple([x if same(x, y) is True else Var(f"{op.op}_size", span=Span())
                                      for x, y in zip(a.shape, b.shape, strict=True)]))


def _rows(op: Operation, body: Graph, count: int) -> list[TensorType]:
    """The types of the last `count` results of a body, which are stacked: a size that the body itself decides, as it may in
    each turn, is a fresh symbol."""
    around = {v for o in body.operations for v in used_values(o)} - {v for o in body.operations for v in o.outputs}
    outside = [v for v in (*op.inputs, *around) if v is not None and v not in body.inputs]
    known = symbols_of([*[d for v in outside for d in v.shape], *[e for v in outside for e in v.elements or ()]])
    inside = {*defining_operations(body, known), *new_symbols(body.inputs, known)}
    return [TensorType(v.dtype, tuple([Var("row_size", span=Span()) if inside.intersection(symbols_of([d])) else d
                                       for d in v.shape])) for v in body.outputs[len(body.outputs) - count:]]


def _regions(op: Operation, count: int) -> tuple[Graph, ...]:
    expect(len(op.regions) == count, "operand-missing", f"{op.op} needs {count} regions, {len(op.regions)} were given")
    return op.regions


def _scalar_bool(op: Operation, v: Value) -> None:
    expect(v.dtype is boolean, "dtype-mismatch", lambda: f"{op.op}: the condition %{v.name} is {v.dtype}, not bool")
    for d in v.shape:
        expect_same_dim(op, d, const(1), f"the elements of the condition %{v.name} {v.type}")


# ---- if --------------------------------------------------------------------------------------------------------------
def _infer_if(op: Operation) -> Sequence[TensorType]:
    _scalar_bool(op, operand(op, 0))
    then, otherwise = _regions(op, 2)
    expect(len(then.outputs) == len(otherwise.outputs), "operand-count",
           lambda: f"if_: branches give {len(then.outputs)} and {len(otherwise.outputs)} values")
    return [_joined(op, a.type, b.type, f"output {k} of the branches")
            for k, (a, b) in enumerate(zip(then.outputs, otherwise.outputs, strict=True))]


def _if(attrs: dict[str, Any], cond: Array) -> tuple[Array, ...]:
    then, otherwise = attrs["regions"]
    return tuple(then() if cond.reshape(()) else otherwise())


# ---- loop ------------------------------------------------------------------------------------------------------------
def trip_count(op: Operation) -> Expr:
    """How often a loop runs where that is known before it starts (a bound, and a condition that is always true), else
    a fresh symbol."""
    bound = elements_of(op.inputs[0])
    going = op.inputs[1] is None or _is_true(op.inputs[1])
    (body,) = _regions(op, 1)
    stays = _is_true(body.outputs[0]) or body.outputs[0] is body.inputs[1]
    if bound is not None and going and stays:
        return bound[0]
    return Var("trips", span=Span())


def _is_true(v: Value | None) -> bool:
    known = constant_of(v)
    return known is not None and bool(known.reshape(-1)[0])


def _infer_loop(op: Operation) -> Sequence[TensorType]:
    (body,) = _regions(op, 1)
    carried = op.inputs[2:]
    if op.inputs[1] is not None:
        _scalar_bool(op, op.inputs[1])
    expect(len(body.inputs) == 2 + len(carried), "operand-count",
           lambda: f"loop: the body takes {len(body.inputs)} values, it is given 2 + {len(carried)}")
    expect(len(body.outputs) >= 1 + len(carried), "operand-count",
           lambda: f"loop: the body gives {len(body.outputs)} values, 1 + {len(carried)} are carried")
    _scalar_bool(op, body.outputs[0])
    out = []
    for k in range(len(carried)):
        inside, given = body.inputs[2 + k].type, body.outputs[1 + k].type
        before = operand(op, 2 + k).type
        _joined(op, inside, given, f"carried value {k}")
        expect(before.dtype is inside.dtype and before.rank == inside.rank, "dtype-mismatch",
               f"loop: carried value {k} is {before} before and {inside} in the body")
        out.append(_joined(op, _joined(op, before, inside, f"carried value {k}"), given, f"carried value {k}"))
    trips = trip_count(op)
    out += [TensorType(t.dtype, (trips, *t.shape)) for t in _rows(op, body, len(body.outputs) - 1 - len(carried))]
    return out


def _stacked(rows: list[Array], t: TensorType, axis: int) -> Array:
    if any(r.shape != rows[0].shape for r in rows):
        raise UserError("run-shape", "rows of different shapes are stacked: "
                        f"{', '.join(map(str, dict.fromkeys(r.shape for r in rows)))}")
    if rows:
        return np.stack(rows, axis)
    return np.zeros((0, *[as_int(d) or 0 for d in t.shape]), t.dtype.numpy())


def _loop(attrs: dict[str, Any], bound: Array | None, cond: Array | None, *carried: Array) -> tuple[Array, ...]:
    (body,) = attrs["regions"]
    going = True if cond is None else bool(cond.reshape(()))
    state, turn = list(carried), 0
    rows: list[list[Array]] = [[] for _ in body.types[1 + len(state):]]
    while going and (bound is None or turn < int(bound.reshape(()))):
        first, *rest = body(np.array(turn, np.int64), np.array(going), *state)
        going, turn = bool(np.asarray(first).reshape(())), turn + 1
        state = rest[:len(state)]
        for row, v in zip(rows, rest[len(state):], strict=True):
            row.append(v)
    return (*state, *[_stacked(r, t, 0) for r, t in zip(rows, body.types[1 + len(state):], strict=True)])


# ---- scan ------------------------------------------------------------------------------------------------------------
def _normalize_scan(op: Operation) -> dict[str, Any]:
    (body,) = _regions(op, 1)
    count = op.attrs["sequences"]
    states = len(op.inputs) - count
    expect(0 < count <= len(op.inputs) and states >= 0, "attribute-invalid", f"scan: {count} sequences")
    produced = len(body.outputs) - states
    a = op.attrs
    in_axes, out_axes = a["in_axes"] or (0,) * count, a["out_axes"] or (0,) * produced
    expect(len(in_axes) == count and len(out_axes) == produced, "attribute-invalid",
           f"scan: {len(in_axes)} axes for {count} sequences, {len(out_axes)} for {produced} results")
    return {"in_axes": tuple(axis_of(op, ax, operand(op, states + k).rank) for k, ax in enumerate(in_axes)),
            "out_axes": tuple(axis_of(op, ax, body.outputs[states + k].rank + 1) for k, ax in enumerate(out_axes)),
            "in_reverse": a["in_reverse"] or (0,) * count, "out_reverse": a["out_reverse"] or (0,) * produced}


def _infer_scan(op: Operation) -> Sequence[TensorType]:
    (body,) = _regions(op, 1)
    a = op.attrs
    states = len(op.inputs) - a["sequences"]
    expect(len(body.inputs) == len(op.inputs), "operand-count",
           lambda: f"scan: the body takes {len(body.inputs)} values, it is given {len(op.inputs)}")
    length = operand(op, states).shape[a["in_axes"][0]]
    for k in range(a["sequences"]):
        x = operand(op, states + k)
        expect_rank(op, x, body.inputs[states + k].rank + 1)
        length = expect_same_dim(op, length, x.shape[a["in_axes"][k]], f"the steps of the first sequence and of %{x.name}")
    out = [_joined(op, operand(op, k).type, body.outputs[k].type, f"state {k}") for k in range(states)]
    for t, axis in zip(_rows(op, body, len(body.outputs) - states), a["out_axes"], strict=True):
        out.append(TensorType(t.dtype, (*t.shape[:axis], length, *t.shape[axis:])))
    return out


def _scan(attrs: dict[str, Any], *arrays: Array) -> tuple[Array, ...]:
    (body,) = attrs["regions"]
    count = attrs["sequences"]
    state, sequences = list(arrays[:-count]), arrays[-count:]
    steps = sequences[0].shape[attrs["in_axes"][0]]
    rows: list[list[Array]] = [[] for _ in attrs["out_axes"]]
    for step in range(steps):
        at = [steps - 1 - step if back else step for back in attrs["in_reverse"]]
        now = [np.take(s, i, axis) for s, i, axis in zip(sequences, at, attrs["in_axes"], strict=True)]
        result = body(*state, *now)
        state = list(result[:len(state)])
        for row, v in zip(rows, result[len(state):], strict=True):
            row.append(v)
    stacked = [_stacked(r[::-1] if back else r, t, axis) for r, t, axis, back in
               zip(rows, body.types[len(state):], attrs["out_axes"], attrs["out_reverse"], strict=True)]
    return (*state, *stacked)


RECORDS = (
    OpRecord("if_", "opaque", _infer_if, _if,
             doc="The values of the first region if the condition (one bool) holds, else of the second; regions take no "
                 "inputs."),
    OpRecord("loop", "opaque", _infer_loop, _loop,
             doc="Inputs: bound (i64 scalar or absent), condition (bool scalar or absent), carried values. The region maps "
                 "(turn, condition, carried…) to (condition, carried…, one row each of the stacked results)."),
    OpRecord("scan", "opaque", _infer_scan, _scan,
             attrs={"sequences": Attr("int", doc="how many of the last inputs are taken apart step by step"),
                    "in_axes": Attr("ints", None), "out_axes": Attr("ints", None),
                    "in_reverse": Attr("ints", None, "1: from the back"), "out_reverse": Attr("ints", None)},
             normalize=_normalize_scan,
             doc="Inputs: states, then sequences. The region maps (states…, one step of each sequence) to (states…, one "
                 "step of each result)."),
)
