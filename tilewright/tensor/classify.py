"""What a block computes, read from its index maps: the schedule rules dispatch on this, never on an operator's name.

In: a Block of a scheduled or unscheduled program. Out: its `BlockInfo`: the kind of computation and the role of every
iteration variable. A matrix product, a convolution in any layout, an einsum and a user's own operator that contract two
tensors are all the kind "contraction" with axes sorted into batch, M, N and K.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from tilewright.core.node import Node, walk
from tilewright.loop.ir import (
    Add,
    Binary,
    Block,
    Broadcast,
    Buffer,
    Cast,
    Const,
    Expr,
    Guard,
    IterVar,
    Let,
    Load,
    Max,
    Min,
    Mul,
    Select,
    Seq,
    Store,
    Sub,
    Var,
    as_int,
    estimate,
)

Kind = Literal["contraction", "window", "reduction", "elementwise", "injective", "opaque"]
"""contraction: sum of products of two operands over K; window: reduction of one operand over sliding windows (pooling);
reduction: any other reduction; elementwise: every load is at the output's own index (or a broadcast of it);
injective: loads at computed places; opaque: more than one store, or control flow."""


@dataclass(frozen=True)
class Access:
    """A load or the store of a block: the buffer and, per dimension, the index and the iteration variables in it."""
    buffer: Buffer
    indices: tuple[Expr, ...]
    vars: tuple[frozenset[Var], ...]

    @property
    def all_vars(self) -> frozenset[Var]:
        return frozenset().union(*self.vars)


@dataclass(frozen=True)
class WindowAxis:
    """A spatial and a reduction variable that meet in one index: spatial * stride + reduce * dilation."""
    spatial: Var
    reduce: Var
    stride: int
    dilation: int


@dataclass(frozen=True)
class BlockInfo:
    """`classify`'s answer. For a contraction, `a` is the operand without the output's innermost (vector) axis and `b` the
    one with it (the weights of a convolution, the right-hand matrix of a product); `m`, `n`, `k`, `batch` are the axes by
    the operands they index: m in a, n in b, k in both and reduced, batch in both and kept."""
    kind: Kind
    block: Block
    out: Access | None
    reads: tuple[Access, ...] = ()
    a: Access | None = None
    b: Access | None = None
    batch: tuple[IterVar, ...] = ()
    m: tuple[IterVar, ...] = ()
    n: tuple[IterVar, ...] = ()
    k: tuple[IterVar, ...] = ()
    windows: tuple[WindowAxis, ...] = ()
    extents: dict[Var, int | None] = field(default_factory=dict)

    @property
    def is_depthwise(self) -> bool:
        """A contraction over windows only, in which every output channel has its own input channel: the weights have no axis
        of their own, whether the innermost output axis is a channel (then there is no N) or a place (then no M)."""
        windows = {w.reduce for w in self.windows}
        return (self.kind == "contraction" and bool(windows) and not (self.n and self.m)
                and all(it.var in windows or self.extents[it.var] == 1 for it in self.k))

    def extent(self, axes: tuple[IterVar, ...]) -> int:
        """Product of the extents of some axes (symbolic ones count as their usual values)."""
        out = 1
        for it in axes:
            out *= estimate(it.extent)
        return out

    @property
    def flops(self) -> int:
        """Floating-point operations of the block: two per multiply-add (symbolic extents as usual)."""
        return 2 * self.extent(self.block.iters) if self.kind == "contraction" else self.extent(self.block.iters)


def classify(block: Block) -> BlockInfo:
    """Sort a block into its kind; never fails (what it cannot read is "opaque")."""
    extents = {it.var: as_int(it.extent) for it in block.iters}
    iters = frozenset(extents)
    spatial = tuple(it for it in block.iters if it.kind == "spatial")
    reduce = tuple(it for it in block.iters if it.kind == "reduce")
    body = block.body
    if not isinstance(body, Store):
        kind: Kind = "reduction" if reduce and isinstance(body, Seq | Let) else "opaque"
        return BlockInfo(kind, block, None, extents=extents)
    out = _access(body.buffer, body.indices, iters)
    reads = tuple(_access(n.buffer, n.indices, iters) for n in walk(body.value) if isinstance(n, Load)
                  and not (n.buffer is body.buffer and n.indices == body.indices))
    base = BlockInfo("opaque", block, out, reads, extents=extents)
    if reduce:
        return _reduction(base, body, spatial, reduce)
    return _spatial(base)


def _access(buffer: Buffer, indices: tuple[Expr, ...], iters: frozenset[Var]) -> Access:
    return Access(buffer, indices, tuple([vars_of(i) & iters for i in indices]))


def vars_of(e: Node) -> frozenset[Var]:
    """Variables in an expression."""
    return frozenset(n for n in walk(e) if isinstance(n, Var))


def _reduction(base: BlockInfo, body: Store, spatial: tuple[IterVar, ...], reduce: tuple[IterVar, ...]) -> BlockInfo:
    assert base.out is not None
    info = _with(base, kind="reduction")
    windows = _windows(base, {it.var for it in spatial}, {it.var for it in reduce})
    value = body.value
    if not isinstance(value, Add | Max | Min | Mul) or not _reads_itself(value, body):
        return info
    factors = _factors(value.b if _is_load_of(value.a, body) else value.a) if isinstance(value, Add) else None
    if factors is None or factors[0] == factors[1]:  # a sum of squares streams one operand: a plain reduction
        return _with(info, kind="window", windows=windows) if windows else info
    iters = frozenset(base.extents)
    ops = [_access(f.buffer, f.indices, iters) for f in factors]
    last = next((v for v in reversed(_ordered(base.out, spatial))), None)
    a, b = ops
    in_a, in_b = last in a.all_vars, last in b.all_vars
    if (in_a and not in_b) or (in_a and in_b and len(_window_vars(b, windows)) > len(_window_vars(a, windows))):
        a, b = b, a
    va, vb = a.all_vars, b.all_vars
    groups: dict[str, list[IterVar]] = {"batch": [], "m": [], "n": [], "k": []}
    for it in spatial:
        role = "batch" if it.var in va and it.var in vb else "m" if it.var in va else "n" if it.var in vb else "m"
        groups[role].append(it)
    groups["k"] = list(reduce)
    return _with(info, kind="contraction", a=a, b=b, windows=windows,
                 **{key: tuple(v) for key, v in groups.items()})


def _ordered(out: Access, spatial: tuple[IterVar, ...]) -> list[Var]:
    """Spatial variables in the order of the output's dimensions."""
    known = {it.var for it in spatial}
    return [v for dim in out.vars for v in sorted(dim & known, key=lambda v: v.name)]


def _window_vars(x: Access, windows: tuple[WindowAxis, ...]) -> list[Var]:
    """Window reductions that index `x` together with their spatial variable."""
    return [w.reduce for w in windows for dim in x.vars if w.reduce in dim and w.spatial in dim]


def _windows(base: BlockInfo, spatial: set[Var], reduce: set[Var]) -> tuple[WindowAxis, ...]:
    found: dict[tuple[Var, Var], WindowAxis] = {}
    for access in base.reads:
        for index, used in zip(access.indices, access.vars, strict=True):
            if len(used) < 2:
                continue
            coeff = linear_coefficients(index)
            if coeff is None:
                continue
            for s in sorted(used & spatial, key=lambda v: v.name):
                for r in sorted(used & reduce, key=lambda v: v.name):
                    if coeff.get(s) and coeff.get(r):
                        found.setdefault((s, r), WindowAxis(s, r, coeff[s], coeff[r]))
    return tuple(found.values())


def linear_coefficients(e: Expr) -> dict[Var | None, int] | None:
    """Coefficients of an integer expression that is linear with constant coefficients (None: the constant), or None."""
    match e:
        case Const():
            return {None: int(e.value)}
        case Var():
            return {e: 1}
        case Add() | Sub():
            x, y = linear_coefficients(e.a), linear_coefficients(e.b)
            if x is None or y is None:
                return None
            sign = 1 if isinstance(e, Add) else -1
            out = dict(x)
            for v, c in y.items():
                out[v] = out.get(v, 0) + sign * c
            return {v: c for v, c in out.items() if c}
        case Mul():
            x, y = linear_coefficients(e.a), linear_coefficients(e.b)
            if x is None or y is None:
                return None
            if set(y) <= {None}:
                return {v: c * y.get(None, 0) for v, c in x.items() if c * y.get(None, 0)}
            if set(x) <= {None}:
                return {v: c * x.get(None, 0) for v, c in y.items() if c * x.get(None, 0)}
            return None
        case Cast() if e.dtype.is_int:
            return linear_coefficients(e.a)
    return None


def _reads_itself(value: Expr, body: Store) -> bool:
    return isinstance(value, Binary) and (_is_load_of(value.a, body) or _is_load_of(value.b, body))


def _is_load_of(e: Expr, body: Store) -> bool:
    return isinstance(e, Load) and e.buffer is body.buffer and e.indices == body.indices


def _factors(e: Expr) -> tuple[Load, Load] | None:
    """The two loads of a product, through casts and through selects that only guard a tail with zero."""
    if isinstance(e, Cast):
        return _factors(e.a)
    if isinstance(e, Mul):
        x, y = _operand(e.a), _operand(e.b)
        if x is not None and y is not None:
            return x, y
    return None


def _operand(e: Expr) -> Load | None:
    match e:
        case Load():
            return e
        case Cast():
            return _operand(e.a)
        case Select() | Guard():
            return _operand(e.a) if isinstance(e.b, Const) and not e.b.value and _about_indices(e.cond) else None
        case Broadcast():
            return _operand(e.a)
    return None


def _spatial(base: BlockInfo) -> BlockInfo:
    assert base.out is not None
    body = base.block.body
    assert isinstance(body, Store)
    if any(isinstance(n, Guard | Select) and _about_indices(n.cond) for n in walk(body.value)):
        return _with(base, kind="injective")
    own = {index: k for k, index in enumerate(base.out.indices)}
    for read in base.reads:
        places = [own.get(index, -1) for index, used in zip(read.indices, read.vars, strict=True) if used]
        if any(a >= b for a, b in pairwise([-1, *places])):  # an index that is not the output's, or not in its order
            return _with(base, kind="injective")
    return _with(base, kind="elementwise")


def _about_indices(cond: Expr) -> bool:
    """Whether a condition tests iteration variables only (a border), not data."""
    return not any(isinstance(n, Load) for n in walk(cond))


def _with(info: BlockInfo, **changes: object) -> BlockInfo:
    values = {f: getattr(info, f) for f in info.__dataclass_fields__}
    return BlockInfo(**{**values, **changes})


