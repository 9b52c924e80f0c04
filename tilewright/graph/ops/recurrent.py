"""Recurrences over time: rnn, gru, lstm (of ONNX), as one compiled loop.

The products of the input with its weights, and all biases that are added to them, are an operand: one product for all
steps, made by `matmul` before. What is left is the recurrence proper: per step a product of the state with the recurrent
weights, and the gates. Results are the states after every step, in the order of the steps.

Shapes: x [steps, batch, directions, gates, units], r [directions, gates, units, units] (out, in), states
[directions, batch, units]. With two directions the second reads x from the back.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilewright.graph.infer import expect, expect_dtype, expect_same_dim, expect_same_dtype, operand, optional
from tilewright.graph.ir import Operation, TensorType
from tilewright.graph.ops.recipes import UNARY, accumulator, call
from tilewright.graph.registry import Array, Attr, OpRecord
from tilewright.loop.ir import Expr, Select, as_int, const, maximum, minimum
from tilewright.tensor import compute as tc
from tilewright.tensor.compute import Tensor, compute, reduce_axis
from tilewright.tensor.scan import scan

Activation = Callable[[Expr], Expr]

ACTIVATIONS: dict[str, tuple[Callable[[float, float, Expr], Expr], Callable[[float, float, Array], Array]]] = {
    "affine": (lambda a, b, x: x * a + b, lambda a, b, x: a * x + b),
    "relu": (lambda a, b, x: maximum(x, 0), lambda a, b, x: np.maximum(x, 0)),
    "leaky_relu": (lambda a, b, x: Select(x >= 0.0, x, x * a), lambda a, b, x: np.where(x >= 0, x, a * x)),
    "thresholded_relu": (lambda a, b, x: Select(x > a, x, const(0, x)), lambda a, b, x: np.where(x > a, x, 0)),
    "tanh": (lambda a, b, x: call("tanh", x), lambda a, b, x: np.tanh(x)),
    "scaled_tanh": (lambda a, b, x: a * call("tanh", x * b), lambda a, b, x: a * np.tanh(b * x)),
    "sigmoid": (lambda a, b, x: UNARY["sigmoid"]({}, x), lambda a, b, x: 1 / (1 + np.exp(-x))),
    "hard_sigmoid": (lambda a, b, x: minimum(maximum(x * a + b, 0.0), 1.0), lambda a, b, x: np.clip(a * x + b, 0, 1)),
    "elu": (lambda a, b, x: UNARY["elu"]({"alpha": a}, x), lambda a, b, x: np.where(x > 0, x, a * np.expm1(x))),
    "softsign": (lambda a, b, x: UNARY["softsign"]({}, x), lambda a, b, x: x / (1 + np.abs(x))),
    "softplus": (lambda a, b, x: UNARY["softplus"]({}, x), lambda a, b, x: np.logaddexp(x, 0))}
"""Functions of gates by name: (on expressions, on arrays), each of alpha, beta and the operand."""


# ---- inference -------------------------------------------------------------------------------------------------------
def _infer(states: int, gates: int, activations: int) -> Callable[[Operation], Sequence[TensorType]]:
    def infer(op: Operation) -> Sequence[TensorType]:
        x, r = operand(op, 0), operand(op, 1)
        expect_dtype(op, x, x.dtype.is_float, "a floating-point type")
        expect_same_dtype(op, x, r)
        expect(x.rank == 5 and r.rank == 4, "rank-mismatch", f"{op.op}: x {x.type} and r {r.type} need ranks 5 and 4")
        steps, batch, directions, _, units = x.shape
        expect_same_dim(op, x.shape[3], const(gates), f"gates of %{x.name} {x.type}")
        apart = op.op == "gru" and optional(op, 3) is not None
        for k, want in enumerate((directions, const(gates - apart), units, units)):
            expect_same_dim(op, r.shape[k], want, f"axis {k} of %{r.name} {r.type} beside %{x.name} {x.type}")
        expect(as_int(directions) in (1, 2), "shape-mismatch", f"{op.op}: {directions} directions")
        expect(as_int(steps) != 0, "shape-mismatch", f"{op.op}: a sequence of no steps")
        for state in op.inputs[2:2 + states]:
            if state is not None:
                expect(state.rank == 3, "rank-mismatch", f"{op.op}: the state %{state.name} {state.type}")
                for d, want in zip(state.shape, (directions, batch, units), strict=True):
                    expect_same_dim(op, d, want, f"the state %{state.name} {state.type}")
        lengths = optional(op, len(op.inputs) - 1)
        if lengths is not None and lengths.rank == 1:
            expect_same_dim(op, lengths.shape[0], batch, f"the lengths %{lengths.name} {lengths.type}")
        names = op.attrs["activations"].split()
        expect(len(names) == activations and all(n in ACTIVATIONS for n in names), "attribute-invalid",
               f"{op.op}: activations {op.attrs['activations']!r}")
        return [TensorType(x.dtype, (steps, directions, batch, units))] * states
    return infer


def _normalize(op: Operation) -> dict[str, Any]:
    n = len(op.attrs["activations"].split())
    return {k: op.attrs[k] or (0.0,) * n for k in ("alpha", "beta")}


# ---- reference -------------------------------------------------------------------------------------------------------
def _functions(attrs: dict[str, Any]) -> list[Callable[[Array], Array]]:
    clip = attrs["clip"]

    def one(name: str, a: float, b: float) -> Callable[[Array], Array]:
        def f(x: Array) -> Array:
            with np.errstate(over="ignore"):
                return ACTIVATIONS[name][1](a, b, x if clip is None else np.clip(x, -clip, clip))
        return f
    return [one(*k) for k in zip(attrs["activations"].split(), attrs["alpha"], attrs["beta"], strict=True)]


def _run(x: Array, lens: Array | None, states: list[Array], step: Callable[..., list[Array]]) -> tuple[Array, ...]:
    """States after every step; `step(x of the step [directions, batch, gates, units], *states)`."""
    rows: list[list[Array]] = [[] for _ in states]
    for t in range(x.shape[0]):
        parts = [x[t, :, 0], *([x[-1 - t, :, 1]] if x.shape[2] > 1 else [])]
        new = step(np.stack(parts), *states)
        if lens is not None:
            new = [np.where((t < lens)[None, :, None], n, s) for n, s in zip(new, states, strict=True)]
        states = [n.astype(x.dtype) for n in new]
        for row, s in zip(rows, states, strict=True):
            row.append(s)
    return tuple([np.stack(r) for r in rows])


def _start(x: Array, given: Array | None) -> Array:
    return np.zeros((x.shape[2], x.shape[1], x.shape[4]), x.dtype) if given is None else given


def _product(h: Array, r: Array) -> Array:
    """[directions, batch, gates, units]."""
    return np.einsum("dbk,dgjk->dbgj", h, r)


def _rnn(attrs: dict[str, Any], x: Array, r: Array, h0: Array | None, lens: Array | None = None) -> Array:
    (f,) = _functions(attrs)
    return _run(x, lens, [_start(x, h0)], lambda xt, h: [f(xt + _product(h, r))[:, :, 0]])[0]


def _gru(attrs: dict[str, Any], x: Array, r: Array, h0: Array | None, rh: Array | None = None, rb: Array | None = None,
         lens: Array | None = None) -> Array:
    f, g = _functions(attrs)

    def step(xt: Array, h: Array) -> list[Array]:
        made = _product(h, r)
        z, reset = f(xt[:, :, 0] + made[:, :, 0]), f(xt[:, :, 1] + made[:, :, 1])
        hidden = reset * (made[:, :, 2] + (0 if rb is None else rb[:, None])) if rh is None else \
            _product(reset * h, rh)[:, :, 0]
        return [(1 - z) * g(xt[:, :, 2] + hidden) + z * h]
    return _run(x, lens, [_start(x, h0)], step)[0]


def _lstm(attrs: dict[str, Any], x: Array, r: Array, h0: Array | None, c0: Array | None, p: Array | None = None,
          lens: Array | None = None) -> tuple[Array, ...]:
    f, g, last = _functions(attrs)

    def step(xt: Array, h: Array, c: Array) -> list[Array]:
        i, o, forget, new = np.moveaxis(xt + _product(h, r), 2, 0)
        if p is not None:
            i, forget = i + p[:, None, 0] * c, forget + p[:, None, 2] * c
        i = f(i)
        c1 = (1 - i if attrs["input_forget"] else f(forget)) * c + i * g(new)
        o = f(o if p is None else o + p[:, None, 1] * c1)
        return [o * last(c1), c1]
    return _run(x, lens, [_start(x, h0), _start(x, c0)], step)


# ---- recipes ---------------------------------------------------------------------------------------------------------
class _Cell:
    """What the recipes share: the operands of one step as expressions of (direction, batch, unit)."""

    def __init__(self, op: Operation, x: Tensor, lens: Tensor | None) -> None:
        self.op, self.x, self.lens = op, x, lens
        self.steps, self.batch, self.directions, _, self.units = x.shape
        self.shape = (self.directions, self.batch, self.units)
        self.acc = accumulator(x.dtype)
        a = op.attrs
        self.functions = [self.function(*k) for k in zip(a["activations"].split(), a["alpha"], a["beta"], strict=True)]

    def function(self, name: str, a: float, b: float) -> Activation:
        clip = self.op.attrs["clip"]
        return lambda x: ACTIVATIONS[name][0](a, b, x if clip is None else minimum(maximum(x, -clip), clip))

    def start(self, given: Tensor | None, name: str) -> Tensor:
        made: Tensor = given if given is not None else compute(self.shape, lambda *i: const(0, self.x.dtype), name=name)
        return made

    def before(self, state: Tensor, name: str) -> Tensor:
        """The state before the step, side by side: the product reads it often."""
        made: Tensor = compute(self.shape, lambda *i: state[i], name=name)
        return made

    def input(self, t: Expr, gate: int, d: Expr, b: Expr, j: Expr) -> Expr:
        """The input's part of a gate."""
        at = t if as_int(self.directions) == 1 else Select(d.eq(0), t, self.steps - 1 - t)
        return self.x[at, b, d, gate, j].cast(self.acc)

    def product(self, h: Tensor, r: Tensor, name: str = "recurrent") -> Tensor:
        """[directions, batch, gates, units] of the state times the recurrent weights."""
        k = reduce_axis(self.units, "k")
        made: Tensor = compute(
            (self.directions, self.batch, r.shape[1], self.units),
            lambda d, b, g, j: tc.sum(h[d, b, k].cast(self.acc) * r[d, g, j, k].cast(self.acc), axis=[k]), name=name)
        return made

    def after(self, t: Expr, old: Tensor, cell: Callable[[Expr, Expr, Expr], Expr], name: str) -> Tensor:
        """The state after the step: `cell(d, b, j)`, or the old one beyond the end of a sequence."""
        def value(d: Expr, b: Expr, j: Expr) -> Expr:
            new = cell(d, b, j).cast(self.x.dtype)
            return new if self.lens is None else Select(t < self.lens[b].cast("i64"), new, old[d, b, j])
        made: Tensor = compute(self.shape, value, name=name)
        return made


def _compute_rnn(op: Operation, x: Tensor, r: Tensor, h0: Tensor | None, lens: Tensor | None = None) -> Tensor:
    cell = _Cell(op, x, lens)
    (f,) = cell.functions

    def step(t: Expr, h: Tensor) -> Tensor:
        old = cell.before(h, "h_old")
        made = cell.product(old, r)
        return cell.after(t, old, lambda d, b, j: f(cell.input(t, 0, d, b, j) + made[d, b, 0, j]), "h_new")
    out: Tensor = scan(cell.steps, [cell.start(h0, "h0")], step, name="h")
    return out


def _compute_gru(op: Operation, x: Tensor, r: Tensor, h0: Tensor | None, rh: Tensor | None = None,
                 rb: Tensor | None = None, lens: Tensor | None = None) -> Tensor:
    """Where the reset gate is applied before the product with the hidden gate's weights `rh`, a step has two products."""
    cell = _Cell(op, x, lens)
    f, g = cell.functions

    def step(t: Expr, h: Tensor) -> Tensor:
        old = cell.before(h, "h_old")
        made = cell.product(old, r)

        def gate(k: int, d: Expr, b: Expr, j: Expr) -> Expr:
            return f(cell.input(t, k, d, b, j) + made[d, b, k, j])

        def mixed(z: Expr, hidden: Expr, d: Expr, b: Expr, j: Expr) -> Expr:
            return (1.0 - z) * g(cell.input(t, 2, d, b, j) + hidden) + z * old[d, b, j].cast(cell.acc)
        if rh is None:
            def linear(d: Expr, b: Expr, j: Expr) -> Expr:
                hidden = made[d, b, 2, j] if rb is None else made[d, b, 2, j] + rb[d, j].cast(cell.acc)
                return mixed(gate(0, d, b, j), gate(1, d, b, j) * hidden, d, b, j)
            return cell.after(t, old, linear, "h_new")
        update = compute(cell.shape, lambda d, b, j: gate(0, d, b, j), name="update")
        kept = compute(cell.shape, lambda d, b, j: gate(1, d, b, j) * old[d, b, j].cast(cell.acc), name="kept")
        hidden = cell.product(kept, rh, "hidden")
        return cell.after(t, old, lambda d, b, j: mixed(update[d, b, j], hidden[d, b, 0, j], d, b, j), "h_new")
    out: Tensor = scan(cell.steps, [cell.start(h0, "h0")], step, name="h")
    return out


def _compute_lstm(op: Operation, x: Tensor, r: Tensor, h0: Tensor | None, c0: Tensor | None, p: Tensor | None = None,
                  lens: Tensor | None = None) -> tuple[Tensor, Tensor]:
    cell = _Cell(op, x, lens)
    f, g, last = cell.functions

    def step(t: Expr, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        h_old, c_old = cell.before(h, "h_old"), cell.before(c, "c_old")
        made = cell.product(h_old, r)

        def gate(k: int, d: Expr, b: Expr, j: Expr) -> Expr:
            return cell.input(t, k, d, b, j) + made[d, b, k, j]

        def peep(k: int, d: Expr, j: Expr, state: Expr) -> Expr:
            return const(0, state) if p is None else p[d, k, j].cast(cell.acc) * state

        def carry(d: Expr, b: Expr, j: Expr) -> Expr:
            old = c_old[d, b, j].cast(cell.acc)
            i = f(gate(0, d, b, j) if p is None else gate(0, d, b, j) + peep(0, d, j, old))
            forget = gate(2, d, b, j) if p is None else gate(2, d, b, j) + peep(2, d, j, old)
            return (1.0 - i if op.attrs["input_forget"] else f(forget)) * old + i * g(gate(3, d, b, j))
        c_new = cell.after(t, c_old, carry, "c_new")

        def output(d: Expr, b: Expr, j: Expr) -> Expr:
            state = c_new[d, b, j].cast(cell.acc)
            return f(gate(1, d, b, j) if p is None else gate(1, d, b, j) + peep(1, d, j, state)) * last(state)
        return cell.after(t, h_old, output, "h_new"), c_new
    h, c = scan(cell.steps, [cell.start(h0, "h0"), cell.start(c0, "c0")], step, name="state")
    return h, c


_ATTRS = {"activations": Attr("str", doc="names, separated by blanks"), "alpha": Attr("floats", None),
          "beta": Attr("floats", None), "clip": Attr("float", None, "of the operands of all activations")}
RECORDS = (
    OpRecord("rnn", "opaque", _infer(1, 1, 1), _rnn, _compute_rnn, _ATTRS, _normalize,
             doc="h = f(x + R h). Operands: x, r, h0 or absent, lengths [batch] or absent."),
    OpRecord("gru", "opaque", _infer(1, 3, 2), _gru, _compute_gru, _ATTRS, _normalize,
             doc="z, r = f(x + R h); h = (1 - z) g(x + hidden) + z h with hidden = Rh (r h), or, without rh, r (R h + rb). "
                 "Gates of x: z, r, h. Operands: x, r, h0, rh, rb, lengths, all but two optional."),
    OpRecord("lstm", "opaque", _infer(2, 4, 3), _lstm, _compute_lstm, {**_ATTRS, "input_forget": Attr("bool", False)},
             _normalize,
             doc="i, o, f = f(x + R h + P c); c = f c + i g(x + R h); h = o h(c). Gates of x: i, o, f, c; of the peepholes "
                 "P [directions, 3, units]: i, o, f. Operands: x, r, h0, c0, P, lengths, all but two optional."),
)
