"""scan: a recurrence over time in the compute language.

In: initial states and a function from the states before a step to those after it, made of any stages. Out: tensors with a
leading time axis. It becomes one serial loop over the blocks of a step:

    H = scan(steps, [h0], lambda t, h: compute((n,), lambda i: h[i] * a[i] + x[t, i], name="h"))

    for t in 0..steps:
        for i in 0..n:
            block h(vt = t, vi = i): H[vt, vi] = (H[vt - 1, vi] if vt > 0 else h0[vi]) * a[vi] + x[vt, vi]

Tensors within a step get a time axis, too, so that every element is computed once; lowering shrinks those that need only
one step's worth. Time is a spatial variable of the blocks: what forbids other orders are the reads of the step before.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tilewright.core.dtype import i64
from tilewright.core.errors import UserError
from tilewright.core.node import transform
from tilewright.loop.ir import (
    ONE,
    ZERO,
    Allocate,
    Block,
    Buffer,
    Expr,
    ExternCall,
    For,
    Guard,
    IntoExpr,
    IterVar,
    Load,
    Stmt,
    Store,
    Var,
    expr,
    seq,
)
from tilewright.loop.substitute import free_vars, substitute
from tilewright.tensor.compute import Stage, Tensor, compute, placeholder, stages_before


@dataclass(eq=False)
class Scan(Stage):
    """A recurrence: `states` stand for what was before a step, `after` are computed from them by `step_stages`."""
    time: Var = field(default_factory=lambda: Var("t", i64))
    steps: Expr = ONE
    initial: tuple[Tensor, ...] = ()
    states: tuple[Tensor, ...] = ()
    after: tuple[Tensor, ...] = ()
    step_stages: tuple[Stage, ...] = ()

    def nest(self, name: Callable[[str], str]) -> Stmt:
        """A serial loop over time around the nests of the stages of a step."""
        history = {a.buffer: o.buffer for a, o in zip(self.after, self.outputs, strict=True)}
        inner = [t.buffer for s in self.step_stages for t in s.outputs if t.buffer not in history]
        whole = {b: _timed(b, self.steps) for b in inner}
        before = {s.buffer: (o.buffer, i.buffer)
                  for s, o, i in zip(self.states, self.outputs, self.initial, strict=True)}
        t = Var(self.time.name, i64)
        rewrite = _Step(self.time, t, self.steps, {**whole, **history}, before)
        body: Stmt = For(t, ZERO, self.steps, seq(*[rewrite.stmt(s.nest(name)) for s in self.step_stages]))
        for b in reversed(inner):
            body = Allocate(whole[b], body)
        return body


def scan(steps: IntoExpr, initial: Sequence[Tensor], step: Callable[..., Any], name: str = "scan") -> Any:
    """Run `step(t, *states)` for t = 0 … steps-1, the states being `initial` at first, then what the step before returned.

    Returns, for each state, the tensor [steps, *shape of the state] of its values after every step (one Tensor for one
    state, else a tuple). `step` returns a tensor, or a tuple of them, of the initial states' shapes and dtypes.
    Raises UserError if their number, a shape or a dtype differs.
    """
    time, count = Var("t", i64), expr(steps)
    states = tuple([placeholder(x.shape, x.dtype, f"{x.name}_before") for x in initial])
    got = step(time, *states)
    after = tuple(got) if isinstance(got, tuple | list) else (got,)
    if not states or len(after) != len(states):
        raise UserError("compute-invalid", f"{name}: the step returns {len(after)} tensors for {len(states)} states")
    for a, x in zip(after, initial, strict=True):
        if a.dtype is not x.dtype or a.shape != x.shape:
            raise UserError("compute-invalid", f"{name}: the state {x.name} is {x.dtype}{list(x.shape)}, but the step "
                            f"returns {a.dtype}{list(a.shape)}")
    of_step = _stages_of_step(time, states, after)
    own: set[Stage | None] = set(of_step)
    seen: set[Tensor] = set()
    fresh = []
    for a in after:
        if a.stage not in own or a in seen:  # a state passed on, something from outside, or one tensor twice: copied
            a = _copy(a)
            assert a.stage is not None
            of_step.append(a.stage)
        seen.add(a)
        fresh.append(a)
    stage = Scan(name, (), time, time=time, steps=count, initial=tuple(initial), states=states, after=tuple(fresh),
                 step_stages=tuple(of_step))
    suffix = [""] if len(states) == 1 else [f"_{k}" for k in range(len(states))]
    stage.outputs = tuple([Tensor(Buffer(name + s, x.dtype, (count, *x.shape)), stage)
                           for s, x in zip(suffix, states, strict=True)])
    made = {t for s in of_step for t in s.outputs} | set(states)
    read = [t for s in of_step for t in s.inputs if t not in made]
    stage.inputs = tuple(dict.fromkeys([*initial, *read]))
    return stage.outputs[0] if len(states) == 1 else stage.outputs


def _copy(x: Tensor) -> Tensor:
    out: Tensor = compute(x.shape, lambda *i: x[i], name=f"{x.name}_copy")
    return out


def _stages_of_step(time: Var, states: Sequence[Tensor], after: Sequence[Tensor]) -> list[Stage]:
    """The stages that depend on the time or on a state, in order; the others are computed once, before the loop."""
    changing: set[Tensor] = set(states)
    out = []
    for s in stages_before(after, states):
        if any(t in changing for t in s.inputs) or _mentions(s, time):
            out.append(s)
            changing.update(s.outputs)
    return out


def _mentions(s: Stage, v: Var) -> bool:
    return v in free_vars(s.nest(lambda wish: wish))


def _timed(b: Buffer, steps: Expr) -> Buffer:
    return b.replace(shape=(steps, *b.shape))


class _Step:
    """Rewrites the nests of a step: every block learns the time; buffers of a step are indexed by it."""

    def __init__(self, time: Var, loop: Var, steps: Expr, timed: dict[Buffer, Buffer],
                 before: dict[Buffer, tuple[Buffer, Buffer]]) -> None:
        self.time, self.loop, self.steps, self.timed, self.before = time, loop, steps, timed, before

    def stmt(self, s: Stmt) -> Stmt:
        if isinstance(s, Block):
            return self._block(s)
        return s.map(lambda c: self.stmt(c) if isinstance(c, Stmt) else c)

    def _block(self, b: Block) -> Block:
        t = Var(self.time.name, i64)

        def visit(n: Any) -> Any:
            if isinstance(n, Load) and n.buffer in self.before:
                history, first = self.before[n.buffer]
                return Guard(t > ZERO, Load(history, (t - 1, *n.indices)), Load(first, n.indices))
            if isinstance(n, Load | Store) and n.buffer in self.timed:
                return n.replace(buffer=self.timed[n.buffer], indices=(t, *n.indices))
            if isinstance(n, ExternCall) and any(isinstance(a, Guard) for a in n.args):
                raise UserError("compute-invalid", f"the external function {n.symbol} is passed a state of the scan, which "
                                "is in two places: the initial one and those after steps", hint="copy the state by a "
                                "compute, and pass the copy")
            return n

        def renewed(s: Stmt) -> Stmt:
            return transform(substitute(s, {self.time: t}), visit)
        return b.replace(iters=(IterVar(t, self.steps), *b.iters), bindings=(self.loop, *b.bindings),
                         body=renewed(b.body), init=None if b.init is None else renewed(b.init))
