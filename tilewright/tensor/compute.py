"""The compute language: what a kernel computes, as tensors defined by expressions of their indices.

    A, B = placeholder((m, k), "f32", "A"), placeholder((k, n), "f32", "B")
    r = reduce_axis(k)
    C = compute((m, n), lambda i, j: sum(A[i, r] * B[r, j], axis=[r]), name="C")
    program = create_program("matmul", [A, B], [C])

It is no third IR: `create_program` gives a Program with one Block per tensor in a nest of serial loops, to be scheduled.
Recurrences over time are in `tensor/scan.py`.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np

from tilewright.core.dtype import DType, dtype, i64
from tilewright.core.errors import UserError
from tilewright.loop.ir import (
    TRUE,
    ZERO,
    Allocate,
    Axis,
    Binary,
    Block,
    Buffer,
    Call,
    Expr,
    For,
    Guard,
    IntoExpr,
    IterVar,
    Let,
    Load,
    Program,
    Select,
    Seq,
    Stmt,
    Store,
    Var,
    const,
    expr,
)
from tilewright.loop.substitute import free_vars, substitute
from tilewright.tensor import reducers
from tilewright.tensor.reducers import Reducer

Index = Union[IntoExpr, "ReduceAxis"]


@dataclass(frozen=True, eq=False)
class ReduceAxis(Axis):
    """An axis that is reduced over, 0 ≤ var < extent; usable as an index and in its arithmetic."""
    var: Var
    extent: Expr


@dataclass(frozen=True, eq=False)
class Reduction:
    """A reduction of `terms` (one per state) over axes: what a compute's function may return, not an expression."""
    reducer: Reducer
    terms: tuple[Expr, ...]
    axes: tuple[ReduceAxis, ...]


@dataclass(eq=False)
class Stage:
    """One compute: the block that defines `outputs` over `axes`, in terms of `inputs`."""
    name: str
    axes: tuple[Var, ...]
    body: Expr | Reduction
    outputs: tuple[Tensor, ...] = ()
    inputs: tuple[Tensor, ...] = ()
    attrs: tuple[tuple[str, Any], ...] = ()

    @property
    def axis(self) -> tuple[Var, ...]:
        """The spatial axes, for the stage style of scheduling."""
        return self.axes

    @property
    def reduce_axis(self) -> tuple[ReduceAxis, ...]:
        return self.body.axes if isinstance(self.body, Reduction) else ()

    def nest(self, name: Callable[[str], str]) -> Stmt:
        """The stage's block within serial loops: spatial axes, then reduced ones. `name` makes block names unique."""
        buffers = [t.buffer for t in self.outputs]
        axes = self.body.axes if isinstance(self.body, Reduction) else ()
        iters = [IterVar(Var(v.name, i64), d, "spatial") for v, d in zip(self.axes, buffers[0].shape, strict=True)]
        iters += [IterVar(Var(a.var.name, i64), a.extent, "reduce") for a in axes]
        own = dict(zip([*self.axes, *[a.var for a in axes]], [it.var for it in iters], strict=True))
        loops = [Var(it.var.name, i64) for it in iters]
        init, body = _update(self, buffers)
        block: Stmt = Block(name(self.name), tuple(iters), tuple(loops), TRUE, substitute(body, own),
                            None if init is None else substitute(init, own), self.attrs)
        for v, it in zip(reversed(loops), reversed(iters), strict=True):
            block = For(v, ZERO, it.extent, block)
        return block


@dataclass(eq=False)
class Tensor:
    """A tensor: its buffer, and the stage that defines it (None for a placeholder or a table)."""
    buffer: Buffer
    stage: Stage | None = None

    @property
    def op(self) -> Stage:
        """The stage that computes it. Raises UserError for a placeholder."""
        if self.stage is None:
            raise _wrong(f"nothing computes {self.name}: it has no op")
        return self.stage

    @property
    def name(self) -> str:
        return self.buffer.name

    @property
    def shape(self) -> tuple[Expr, ...]:
        return self.buffer.shape

    @property
    def dtype(self) -> DType:
        return self.buffer.dtype

    @property
    def rank(self) -> int:
        return len(self.buffer.shape)

    def __getitem__(self, indices: Index | tuple[Index, ...]) -> Load:
        """The element at the indices, as an expression; integer indices of other types are converted to i64."""
        idx = indices if isinstance(indices, tuple) else (indices,)
        if len(idx) != self.rank:
            raise _wrong(f"{self.name} has {self.rank} dimensions, indexed with {len(idx)}")
        if _READ:
            _READ[-1][self.buffer] = self
        return Load(self.buffer, tuple([self._index(i) for i in idx]))

    def _index(self, i: Index) -> Expr:
        e = i.var if isinstance(i, ReduceAxis) else expr(i)
        if not e.dtype.is_int:
            raise _wrong(f"{self.name} is indexed with {e}, which is {e.dtype} and no integer")
        return e.cast(i64)

    def __call__(self, *indices: Index) -> Load:
        return self[indices]


_READ: list[dict[Buffer, Tensor]] = []
"""The tensors that each compute function now running has read: expressions hold buffers only."""


def _wrong(message: str, hint: str = "") -> UserError:
    return UserError("compute-invalid", message, hint=hint)


def placeholder(shape: Iterable[IntoExpr], dtype_: DType | str = "f32", name: str = "x") -> Tensor:
    """An input of a program."""
    return Tensor(Buffer(name, dtype(dtype_), tuple([expr(d) for d in shape])))


def const_table(data: np.ndarray[Any, Any], dtype_: DType | str | None = None, name: str = "table") -> Tensor:
    """A small constant tensor that lives in the code: loads at constant indices become literals."""
    t = dtype(data.dtype if dtype_ is None else dtype_)
    values = tuple(np.asarray(data).reshape(-1).tolist()) if t.name not in _AS_FLOAT else tuple(
        np.asarray(data).astype(np.float64 if t.is_float else np.int64).reshape(-1).tolist())
    return Tensor(Buffer(name, t, tuple([expr(d) for d in data.shape]), "const", data=values))


_AS_FLOAT = frozenset({"bf16", "f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz", "f8e8m0fnu", "f4e2m1fn", "i4", "u4",
                       "i2", "u2"})


def reduce_axis(extent: IntoExpr, name: str = "r") -> ReduceAxis:
    """An axis to reduce over."""
    return ReduceAxis(Var(name, i64), expr(extent))


def compute(shape: Iterable[IntoExpr], fn: Callable[..., Any], name: str = "t",
            attrs: Sequence[tuple[str, Any]] = ()) -> Any:
    """The tensor whose element at (i, j, …) is `fn(i, j, …)`: an expression, or a reduction at the top.

    Returns one Tensor; a tuple of Tensors for a reduction with several states.
    """
    dims = tuple([expr(d) for d in shape])
    axes = tuple([Var(f"{_AXIS_NAMES[k] if k < len(_AXIS_NAMES) else 'i'}{k}", i64) for k in range(len(dims))])
    _READ.append({})
    try:
        value = fn(*axes)
    finally:
        read = _READ.pop()
    if isinstance(value, tuple | list) and len(value) == 1:
        (value,) = value
    if isinstance(value, tuple | list):
        raise _wrong(f"{name} has {len(value)} values: only a reduction may have several")
    body: Expr | Reduction = value if isinstance(value, Reduction) else expr(value)
    terms = body.terms if isinstance(body, Reduction) else (body,)
    stage = Stage(name, axes, body, attrs=tuple(attrs))
    suffix = [""] if len(terms) == 1 else [f"_{k}" for k in range(len(terms))]
    stage.outputs = tuple([Tensor(Buffer(name + s, t.dtype, dims), stage) for s, t in zip(suffix, terms, strict=True)])
    stage.inputs = tuple(read.values())
    return stage.outputs[0] if len(stage.outputs) == 1 else stage.outputs


_AXIS_NAMES = "ijklmn"


# ---- reductions ------------------------------------------------------------------------------------------------------
def reducer(combine: Callable[[tuple[Expr, ...], tuple[Expr, ...]], tuple[Expr, ...]],
            identity: Callable[[Sequence[DType]], tuple[Expr, ...]], name: str = "user") -> Callable[..., Reduction]:
    """A commutative reducer of one's own: use it like `sum`, with a tuple of terms for a tuple state."""
    made = Reducer(name, combine, identity)

    def apply(terms: Expr | tuple[Expr, ...], axis: Sequence[ReduceAxis]) -> Reduction:
        return _reduction(made, terms if isinstance(terms, tuple) else (terms,), axis)
    return apply


def _reduction(r: Reducer, terms: tuple[Expr, ...], axis: Sequence[ReduceAxis]) -> Reduction:
    axes = tuple(axis)
    if not axes or not all(isinstance(a, ReduceAxis) for a in axes):
        raise _wrong(f"{r.name}: axis must be a list of at least one reduce_axis, not {list(axis)!r}")
    if len({a.var for a in axes}) != len(axes):
        raise _wrong(f"{r.name}: an axis is reduced twice")
    return Reduction(r, tuple([expr(t) for t in terms]), axes)


def sum(term: Expr, axis: Sequence[ReduceAxis]) -> Reduction:
    return _reduction(reducers.SUM, (term,), axis)


def prod(term: Expr, axis: Sequence[ReduceAxis]) -> Reduction:
    return _reduction(reducers.PROD, (term,), axis)


def max(term: Expr, axis: Sequence[ReduceAxis]) -> Reduction:
    return _reduction(reducers.MAX, (term,), axis)


def min(term: Expr, axis: Sequence[ReduceAxis]) -> Reduction:
    return _reduction(reducers.MIN, (term,), axis)


def argmax(term: Expr, axis: Sequence[ReduceAxis], index: Expr | None = None) -> Reduction:
    """(index, value) of the largest term; the first of equals. `index` (i64) defaults to the position in row-major order
    of the axes."""
    return _reduction(reducers.ARGMAX, (_position(axis) if index is None else index, term), axis)


def argmin(term: Expr, axis: Sequence[ReduceAxis], index: Expr | None = None) -> Reduction:
    """(index, value) of the smallest term; as argmax."""
    return _reduction(reducers.ARGMIN, (_position(axis) if index is None else index, term), axis)


def _position(axis: Sequence[ReduceAxis]) -> Expr:
    at: Expr = ZERO
    for a in axis:
        at = at * a.extent + a.var
    return at


# ---- expressions -----------------------------------------------------------------------------------------------------
def select(cond: Expr, a: IntoExpr, b: IntoExpr) -> Expr:
    """`a` where `cond`, else `b`; both are evaluated."""
    x, y = _pair(a, b)
    return Select(cond, x, y)


def if_then_else(cond: Expr, a: IntoExpr, b: IntoExpr) -> Expr:
    """`a` if `cond`, else `b`; only the chosen one is evaluated, so it may be out of bounds on the other side."""
    x, y = _pair(a, b)
    return Guard(cond, x, y)


def _pair(a: IntoExpr, b: IntoExpr) -> tuple[Expr, Expr]:
    from_a = a if isinstance(a, Expr) else None
    from_b = b if isinstance(b, Expr) else None
    if from_a is None and from_b is None:
        return expr(a), expr(b)
    like = from_a if from_a is not None else from_b
    assert like is not None
    return _like(a, like), _like(b, like)


def _like(v: IntoExpr, like: Expr) -> Expr:
    return v if isinstance(v, Expr) else const(v, like)


def _unary(name: str) -> Callable[[Expr], Expr]:
    def f(x: Expr) -> Expr:
        return Call(name, (x,), x.dtype)
    f.__name__, f.__doc__ = name, f"{name} of each element."
    return f


exp, log, sqrt, erf, tanh, floor, ceil = (_unary(n) for n in ("exp", "log", "sqrt", "erf", "tanh", "floor", "ceil"))


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + exp(-x)) of each element."""
    return 1.0 / (1.0 + exp(-x))


# ---- programs ----------------------------------------------------------------------------------------------------------
def create_program(name: str, inputs: Sequence[Tensor | Var], outputs: Sequence[Tensor],
                   weights: Iterable[str] = (), sizes: Iterable[Var] = ()) -> Program:
    """The unscheduled program of `outputs` in terms of `inputs`; `weights` names inputs that may be laid out anew.

    Parameters: the inputs, the outputs, then the symbolic sizes in their shapes (those that are no inputs) in order of first
    use, then those of `sizes` that are used elsewhere. Tensors between are allocated around the body; each stage is a
    serial nest around one block, in dependence order.
    Raises UserError: an output that is an input or given twice, a tensor that is neither given nor computed, a variable
    that nothing defines, a weight that is no input.
    """
    given = {t for t in inputs if isinstance(t, Tensor)}
    for t in outputs:
        if t in given or t.stage is None:
            raise _wrong(f"{t.name} is an output of {name}, but nothing computes it", "copy it with a compute")
    params: list[Any] = [t if isinstance(t, Var) else t.buffer for t in [*inputs, *outputs]]
    if len(set(params)) != len(params):
        raise _wrong(f"a tensor is given twice among the inputs and outputs of {name}")
    unknown = set(weights) - {t.name for t in given}
    if unknown:
        raise _wrong(f"{name} has no inputs {', '.join(sorted(unknown))} to be weights")
    order = stages_before(outputs, given)
    params += dict.fromkeys(v for b in params if isinstance(b, Buffer) for d in b.shape for v in free_vars(d)
                            if v not in params)
    taken: dict[str, int] = {}

    def unique(wish: str) -> str:
        n = taken[wish] = taken.get(wish, -1) + 1
        return wish if n == 0 else unique(f"{wish}_{n}")

    nests = [s.nest(unique) for s in order]
    body: Stmt = Seq(tuple(nests)) if len(nests) > 1 else nests[0]
    for s in reversed(order):
        for t in s.outputs:
            if t.buffer not in params:
                body = Allocate(t.buffer, body)
    used = free_vars(body)
    params += [v for v in sizes if v in used and v not in params]
    _check_defined(name, params, order, body)
    return Program(name, tuple(params), body, (("noalias", True), ("weights", tuple(sorted(weights)))))


def stages_before(outputs: Iterable[Tensor], given: Iterable[Tensor]) -> list[Stage]:
    """The stages that compute `outputs` from the tensors `given`, each after those whose results it reads."""
    known = {t.stage for t in given}
    order: dict[Stage, None] = {}
    stack = [(t.stage, False) for t in reversed([*outputs]) if t.stage is not None]
    while stack:
        s, ready = stack.pop()
        if ready:
            order[s] = None
        elif s not in order and s not in known:
            stack.append((s, True))
            stack.extend((t.stage, False) for t in reversed(s.inputs) if t.stage is not None)
    return list(order)


def _check_defined(name: str, params: list[Any], order: list[Stage], body: Stmt) -> None:
    computed = {t.buffer for s in order for t in s.outputs}
    for s in order:
        for t in s.inputs:
            if t.buffer not in computed and t.buffer not in params and t.buffer.data is None:
                raise _wrong(f"{s.name} reads {t.name}, which is neither an input of {name} nor computed")
    for v in free_vars(body):
        if v not in params:
            raise _wrong(f"{v.name} is used in {name}, but is no index, no axis that is reduced over and no size of a "
                         "parameter", "an axis of reduce_axis must be in `axis=[...]` of the reduction that uses it")


def _update(s: Stage, buffers: list[Buffer]) -> tuple[Stmt | None, Stmt]:
    """(init, body) of a stage's block."""
    at = tuple(s.axes)
    if not isinstance(s.body, Reduction):
        return None, Store(buffers[0], at, s.body)
    r = s.body.reducer
    identity = r.identity([b.dtype for b in buffers])
    init = _stores(buffers, at, identity)
    old = tuple([Load(b, at) for b in buffers])
    new = r.combine(old, s.body.terms)[0]
    if len(buffers) == 1 and isinstance(new, Binary) and new.a is old[0] and new.b is s.body.terms[0]:
        return init, Store(buffers[0], at, new)
    before = tuple([Var(f"old{k}", b.dtype) for k, b in enumerate(buffers)])
    terms = tuple([Var(f"term{k}", b.dtype) for k, b in enumerate(buffers)])
    after = tuple([Var(f"new{k}", b.dtype) for k, b in enumerate(buffers)])
    body = _stores(buffers, at, after)
    for v, e in reversed([*zip(before, old, strict=True), *zip(terms, s.body.terms, strict=True),
                          *zip(after, r.combine(before, terms), strict=True)]):
        body = Let(v, e, body)
    return init, body


def _stores(buffers: list[Buffer], at: tuple[Expr, ...], values: Sequence[Expr]) -> Stmt:
    stores = tuple([Store(b, at, v) for b, v in zip(buffers, values, strict=True)])
    return stores[0] if len(stores) == 1 else Seq(stores)
