"""What a reduction block combines: read from its update, so that rfactor can split it.

In: a Block with `init` and a body of the form C[i…] = C[i…] op value, or (a tuple of buffers, or a reducer that is no single
operator) `let old… = C[i…]…; let term… = value…; let new… = combine(old…, term…); C[i…] = new…`.
Out: a `Reduction`, or None if the update has another form.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tilewright.core.dtype import DType
from tilewright.core.node import walk
from tilewright.loop.ir import (
    FALSE,
    TRUE,
    Add,
    And,
    Binary,
    Block,
    Buffer,
    Const,
    Expr,
    Let,
    Load,
    Max,
    Min,
    Mul,
    Or,
    Seq,
    Stmt,
    Store,
    Var,
    const,
    seq,
)
from tilewright.loop.substitute import substitute
from tilewright.tensor.reducers import highest, lowest

Combine = Callable[[Sequence[Expr], Sequence[Expr]], list[Expr]]
_NEUTRAL: dict[type[Expr], Callable[[DType], Expr]] = {
    Add: lambda t: const(0, t), Mul: lambda t: const(1, t), Min: highest, Max: lowest, And: lambda t: TRUE,
    Or: lambda t: FALSE}


@dataclass(frozen=True)
class Reduction:
    """`buffers[k][indices]` = combine(the buffers there, values)[k], starting at start[k]; `neutral` changes nothing. They
    differ where something else, a bias, was merged into the start."""
    buffers: tuple[Buffer, ...]
    indices: tuple[Expr, ...]
    values: tuple[Expr, ...]
    start: tuple[Expr, ...]
    neutral: tuple[Expr, ...]
    combine: Combine
    operator: bool

    def update(self, buffers: Sequence[Buffer], at: tuple[Expr, ...], values: Sequence[Expr]) -> Stmt:
        """The statement that combines `values` into the elements at `at` of other buffers."""
        old = [Load(b, at) for b in buffers]
        if self.operator:
            return Store(buffers[0], at, self.combine(old, values)[0])
        names = [[Var(f"{wish}{k}", b.dtype) for k, b in enumerate(buffers)] for wish in ("old", "term", "new")]
        body: Stmt = seq(*[Store(b, at, v) for b, v in zip(buffers, names[2], strict=True)])
        for group, given in ((names[2], self.combine(names[0], names[1])), (names[1], values), (names[0], old)):
            for v, e in reversed(list(zip(group, given, strict=True))):
                body = Let(v, e, body)
        return body

    def stores(self, buffers: Sequence[Buffer], at: tuple[Expr, ...], values: Sequence[Expr]) -> Stmt:
        """The statement that stores values at `at`."""
        return seq(*[Store(b, at, v) for b, v in zip(buffers, values, strict=True)])


def reduction_of(block: Block) -> Reduction | None:
    """The reduction that a block computes."""
    starts = _stores(block.init)
    if starts and isinstance(block.body, Let):
        return _named(block.body, starts)
    updates = _stores(block.body)
    return _single(updates[0], starts[0]) if len(starts) == len(updates) == 1 else None


def _named(body: Stmt, starts: list[Store]) -> Reduction | None:
    """The form with names."""
    lets: list[Let] = []
    while isinstance(body, Let):
        lets.append(body)
        body = body.body
    updates = _stores(body)
    n = len(updates)
    if not n or len(lets) != 3 * n or len(starts) != n:
        return None
    old, term, new = lets[:n], lets[n:2 * n], lets[2 * n:]
    at = updates[0].indices
    for k, (u, s) in enumerate(zip(updates, starts, strict=True)):
        if u.buffer is not s.buffer or u.indices != at or s.indices != at or u.value is not new[k].var:
            return None
        if old[k].value != Load(u.buffer, at):
            return None
    olds, terms = [x.var for x in old], [x.var for x in term]
    if any(v in olds or v in terms for t in term for v in _variables(t.value)):
        return None

    def combine(a: Sequence[Expr], b: Sequence[Expr]) -> list[Expr]:
        return [substitute(x.value, {**dict(zip(olds, a, strict=True)), **dict(zip(terms, b, strict=True))}) for x in new]

    start = tuple([s.value for s in starts])
    if not all(isinstance(e, Const) for e in start):  # of an unknown reducer, only its identity is known to be neutral
        return None
    return Reduction(tuple([u.buffer for u in updates]), at, tuple([t.value for t in term]), start, start, combine, False)


def folds_lanes(block: Block) -> bool:
    """Whether a block without `init` is C[i…] = C[i…] op value for an operator that has a horizontal form: a sum, the
    largest, the least."""
    s = block.body
    if block.init is not None or not isinstance(s, Store) or not isinstance(s.value, Add | Max | Min):
        return False
    own = Load(s.buffer, s.indices)
    term = s.value.b if s.value.a == own else s.value.a if s.value.b == own else None
    return term is not None and not any(isinstance(n, Load) and n.buffer is s.buffer for n in walk(term))


def _variables(e: Expr) -> set[Expr]:
    return {n for n in walk(e) if isinstance(n, Var)}


def _stores(s: Stmt | None) -> list[Store]:
    if isinstance(s, Store):
        return [s]
    if isinstance(s, Seq) and all(isinstance(x, Store) for x in s.stmts):
        return [x for x in s.stmts if isinstance(x, Store)]
    return []


def _single(update: Store, start: Store) -> Reduction | None:
    own = Load(update.buffer, update.indices)
    v = update.value
    if start.buffer is not update.buffer or start.indices != update.indices or type(v) not in _NEUTRAL:
        return None
    assert isinstance(v, Binary)
    value = v.b if v.a == own else v.a if v.b == own else None
    if value is None or own in set(walk(value)):
        return None
    op = type(v)

    def combine(a: Sequence[Expr], b: Sequence[Expr]) -> list[Expr]:
        return [op(a[0], b[0])]

    neutral = _NEUTRAL[op](update.buffer.dtype)
    return Reduction((update.buffer,), update.indices, (value,), (start.value,), (neutral,), combine, True)
