"""ONNX's recurrent operators: RNN, GRU, LSTM. The input's products become one matmul for all steps and directions; the
recurrence is one operator, or one per direction where the directions differ in more than their weights."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tilewright.core.dtype import i64
from tilewright.frontend.onnx.table import Context, Result, onnx_op
from tilewright.graph.infer import constant_of, dim
from tilewright.graph.ir import Value
from tilewright.loop.ir import as_int

_NAMES = {n.replace("_", ""): n for n in ("affine", "relu", "leaky_relu", "thresholded_relu", "tanh", "scaled_tanh",
                                          "sigmoid", "hard_sigmoid", "elu", "softsign", "softplus")}
_DEFAULTS = {"affine": (1.0, 0.0), "leaky_relu": (0.01, 0.0), "thresholded_relu": (1.0, 0.0), "scaled_tanh": (1.0, 1.0),
             "hard_sigmoid": (0.2, 0.5), "elu": (1.0, 0.0)}
_USES_BETA = ("affine", "scaled_tanh", "hard_sigmoid")

Functions = tuple[tuple[str, float, float], ...]
"""The activations of one direction: name, alpha, beta."""


def _activations(c: Context, directions: int, default: Sequence[str]) -> list[Functions]:
    """Alphas and betas are given only for the functions that have them, in order."""
    names = [str(n).lower() for n in c.a("activations", list(default) * directions)]
    c.expect(all(n in _NAMES for n in names), f"the activations {names}")
    wanted = len(default) * directions
    if len(names) < wanted:
        raise c.error("onnx-invalid-graph", f"{c.op}: {len(names)} activations for {directions} directions")
    alphas, betas = list(c.a("activation_alpha", ())), list(c.a("activation_beta", ()))
    out = []
    for n in (_NAMES[n] for n in names[:wanted]):
        alpha, beta = _DEFAULTS.get(n, (0.0, 0.0))
        if n in _DEFAULTS and alphas:
            alpha = alphas.pop(0)
        if n in _USES_BETA and betas:
            beta = betas.pop(0)
        out.append((n, alpha, beta))
    return [tuple(out[k:k + len(default)]) for k in range(0, len(out), len(default))]


def _axis(v: Value, axis: int, start: int, stop: int, c: Context) -> Value:
    """A part of an axis; the value itself where that is all of it."""
    return v if (start, stop) == (0, as_int(v.shape[axis])) else c.b.slice(v, {axis: (start, stop, 1)})


class _Recurrence:
    """What the three operators share. `gates` of the weights; states are the operands from input 5 on."""

    def __init__(self, c: Context, gates: int, default: Sequence[str]) -> None:
        self.c, self.gates = c, gates
        x, w, r = c.x(0), c.x(1), c.x(2)
        if x.rank != 3 or w.rank != 3 or r.rank != 3:
            raise c.error("rank-mismatch", f"{c.op}: X {x.type}, W {w.type} and R {r.type} must have rank 3")
        self.batch_first = bool(c.a("layout", 0))
        self.x = c.add("transpose", x, perm=(1, 0, 2)) if self.batch_first else x
        self.steps, self.batch, _ = self.x.shape
        self.directions, self.units = as_int(r.shape[0]) or 0, r.shape[2]
        way = c.a("direction", "forward")
        if way not in ("forward", "reverse", "bidirectional") or self.directions != 1 + (way == "bidirectional"):
            raise c.error("onnx-invalid-graph", f"{c.op}: direction {way!r} with weights {r.type}")
        self.backwards = [way == "reverse", True]
        self.w, self.r = w, c.reshape(r, (self.directions, gates, self.units, self.units))
        self.functions = _activations(c, self.directions, default)
        self.lens = self.lengths()
        if c.opt(3) is None:
            self.wb = self.rb = None
        else:
            both = c.reshape(c.x(3), (self.directions, 2, gates, self.units))
            self.wb, self.rb = (c.reshape(c.b.slice(both, {1: (k, k + 1, 1)}), (self.directions, gates, self.units))
                                for k in (0, 1))

    def lengths(self) -> Value | None:
        """The sequences' lengths, unless all are known to be whole."""
        lens = self.c.opt(4)
        known = constant_of(lens)
        if lens is None or known is not None and (known == (as_int(self.steps) or -1)).all():
            return None
        return self.c.b.in_bounds(lens, [dim(self.steps + 1)], from_front=True)

    def state(self, k: int) -> Value | None:
        """The initial state of input `k`, [directions, batch, units]."""
        given = self.c.opt(k)
        return self.c.add("transpose", given, perm=(1, 0, 2)) if given is not None and self.batch_first else given

    def product(self, bias: Value | None) -> Value:
        """X W for all steps and gates, [steps, batch, directions, gates, units]."""
        c, rows = self.c, (self.directions, self.gates, self.units)
        flat = c.reshape(self.w, (rows[0] * (rows[1] * rows[2]), self.w.shape[2]))
        y = c.add("matmul", self.x, flat, transpose_b=True)
        if bias is not None:
            y = c.add("add", y, c.reshape(bias, (flat.shape[0],)))
        return c.reshape(y, (self.steps, self.batch, *rows))

    def run(self, call: Callable[[Value, int, int, Value | None, Functions], Sequence[Value]], bias: Value | None) -> Result:
        """`call(x, first, last, lengths, functions)` computes some directions; ONNX's outputs from their states."""
        x, d = self.product(bias), self.directions
        apart = d == 2 and (self.lens is not None or self.functions[0] != self.functions[1])
        parts: list[list[Value]] = []
        for k in range(d if apart else 1):
            first, last = (k, k + 1) if apart else (0, d)
            mine = _axis(x, 2, first, last, self.c)
            if last - first == 1 and self.backwards[k]:
                mine = self.reversed(mine)
            made = call(mine, first, last, self.lens, self.functions[k])
            parts += [[_axis(v, 1, j, j + 1, self.c) for v in made] for j in range(last - first)]
        states = [self.joined([p[k] for p in parts], 1) for k in range(len(parts[0]))]
        back = [self.reversed(p[0]) if self.backwards[k] else p[0] for k, p in enumerate(parts)]
        y = self.joined(back, 1)
        if self.lens is not None:
            zero = self.c.const(0, y.dtype)
            y = self.c.add("where", self.c.reshape(self.inside(), (self.steps, 1, self.batch, 1)), y, zero)
        last_states = [self.c.reshape(self.c.b.slice(s, {0: (-1, self.steps, 1)}), (d, self.batch, self.units))
                       for s in states]
        if self.batch_first:
            y = self.c.add("transpose", y, perm=(2, 0, 1, 3))
            last_states = [self.c.add("transpose", s, perm=(1, 0, 2)) for s in last_states]
        return [y, *last_states]

    def joined(self, parts: list[Value], axis: int) -> Value:
        return parts[0] if len(parts) == 1 else self.c.add("concat", *parts, axis=axis)

    def inside(self) -> Value:
        """[steps, batch]: whether a step is within its sequence."""
        assert self.lens is not None
        return self.c.add("less", self.times(), self.c.reshape(self.c.cast(self.lens, i64), (1, self.batch)))

    def times(self) -> Value:
        """[steps, 1]: 0, 1, …"""
        c = self.c
        count = as_int(self.steps)
        if count is not None:
            return c.const([[t] for t in range(count)], i64)
        size = c.reshape(c.b.slice(c.add("shape_of", self.x), {0: (0, 1, 1)}), ())
        return c.reshape(c.add("range", c.const(0, i64), size, c.const(1, i64)), (self.steps, 1))

    def reversed(self, v: Value) -> Value:
        """[steps, …] from the back: every sequence by itself where they have lengths ([steps, batch, …] or
        [steps, 1, batch, …])."""
        c = self.c
        if self.lens is None:
            starts = (self.steps - 1, *[0] * (v.rank - 1))
            return c.add("slice", v, starts=starts, sizes=v.shape, steps=(-1, *[1] * (v.rank - 1)))
        lens = c.reshape(c.cast(self.lens, i64), (1, self.batch))
        mirrored = c.add("sub", c.add("sub", lens, c.const(1, i64)), self.times())
        at = c.add("where", self.inside(), mirrored, self.times())
        axis = 1 if v.rank == 5 else 2
        at = c.reshape(at, (self.steps, *[1] * (axis - 1), self.batch, *[1] * (v.rank - axis - 1)))
        return c.add("gather_elements", v, c.add("expand", at, shape=v.shape), axis=0)

    def attrs(self, functions: Functions) -> dict[str, Any]:
        names, alpha, beta = zip(*functions, strict=True)
        return {"activations": " ".join(names), "alpha": alpha, "beta": beta, "clip": self.c.a("clip")}

    def directions_of(self, v: Value | None, first: int, last: int) -> Value | None:
        return None if v is None else _axis(v, 0, first, last, self.c)

    def both(self) -> Value | None:
        """The sum of the two biases."""
        return None if self.wb is None or self.rb is None else self.c.add("add", self.wb, self.rb)


@onnx_op("RNN")
def rnn(c: Context) -> Result:
    s = _Recurrence(c, 1, ("Tanh",))
    h0 = s.state(5)

    def call(x: Value, first: int, last: int, lens: Value | None, functions: Functions) -> Sequence[Value]:
        of = s.directions_of
        return c.add_all("rnn", x, of(s.r, first, last), of(h0, first, last), lens, **s.attrs(functions))
    return s.run(call, s.both())


@onnx_op("GRU")
def gru(c: Context) -> Result:
    s = _Recurrence(c, 3, ("Sigmoid", "Tanh"))
    h0, after = s.state(5), bool(c.a("linear_before_reset", 0))
    bias = s.both()
    hidden = None
    if after and s.wb is not None and s.rb is not None:  # the hidden gate's bias belongs to the product that is reset
        two = c.b.slice(s.rb, {1: (0, 2, 1)})
        hidden = c.reshape(c.b.slice(s.rb, {1: (2, 3, 1)}), (s.directions, s.units))
        bias = c.add("concat", c.add("add", c.b.slice(s.wb, {1: (0, 2, 1)}), two), c.b.slice(s.wb, {1: (2, 3, 1)}), axis=1)
    r, rh = (s.r, None) if after else (c.b.slice(s.r, {1: (0, 2, 1)}), c.b.slice(s.r, {1: (2, 3, 1)}))

    def call(x: Value, first: int, last: int, lens: Value | None, functions: Functions) -> Sequence[Value]:
        of = s.directions_of
        return c.add_all("gru", x, of(r, first, last), of(h0, first, last), of(rh, first, last), of(hidden, first, last),
                         lens, **s.attrs(functions))
    return s.run(call, bias)


@onnx_op("LSTM")
def lstm(c: Context) -> Result:
    s = _Recurrence(c, 4, ("Sigmoid", "Tanh", "Tanh"))
    h0, c0, p = s.state(5), s.state(6), c.opt(7)
    if p is not None:
        p = c.reshape(p, (s.directions, 3, s.units))

    def call(x: Value, first: int, last: int, lens: Value | None, functions: Functions) -> Sequence[Value]:
        of = s.directions_of
        return c.add_all("lstm", x, of(s.r, first, last), of(h0, first, last), of(c0, first, last), of(p, first, last), lens,
                         input_forget=bool(c.a("input_forget", 0)), **s.attrs(functions))
    return s.run(call, s.both())


