"""Whether a nest of loops does what a tensor intrinsic does, and where its operands' tiles are.

In: a statement without blocks and a TensorIntrinsic. Out: a `Tile` per operand, or a sentence that says what differs.
Equality is structural, up to the names of variables, which buffers and where in them, strides, the order of perfectly
nested loops around one store, and the sides of sums and products.

    for i in 0..16: for k in 0..4: C[x*16 + i] = C[x*16 + i] + i32(A[y*4 + k]) * i32(B[x, y, i, k])     matches
    for i in 0..16: for k in 0..4: c[i] = c[i] + i32(a[k]) * i32(b[i, k])                               with
    c at C[x*16], a at A[y*4], b at B[x, y, 0, 0]
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

from tilewright.core.node import Node, walk
from tilewright.loop.ir import (
    ONE,
    Add,
    Address,
    Buffer,
    Expr,
    For,
    Load,
    Max,
    Min,
    Mul,
    Seq,
    Stmt,
    Store,
    TensorCall,
    Var,
    as_int,
)
from tilewright.loop.lower.linear import from_linear, linear
from tilewright.loop.substitute import substitute
from tilewright.loop.tensor_intrinsics import TensorIntrinsic

_COMMUTE = (Add, Mul, Min, Max)


@dataclass(frozen=True)
class Tile:
    """Where an operand lies: its first element, and per dimension of the operand how far one step goes along each dimension
    of the buffer."""
    buffer: Buffer
    base: tuple[Expr, ...]
    steps: tuple[tuple[int, ...], ...]

    def place(self, dimension: int | None = None) -> Load:
        """The first element, or the one a step along a dimension further."""
        if dimension is None:
            return Load(self.buffer, self.base)
        at = [e + s if s else e for e, s in zip(self.base, self.steps[dimension], strict=True)]
        return Load(self.buffer, tuple(at))


@dataclass(frozen=True)
class _Env:
    loops: Mapping[Var, Var]
    tiles: Mapping[Buffer, Tile]


def match_tensor(s: Stmt, intrinsic: TensorIntrinsic) -> list[Tile] | str:
    """The tiles of the operands in order, or why the statement is not the intrinsic."""
    match = _Match(intrinsic)
    for env in match.stmt(intrinsic.body.body, s, _Env({}, {})):
        tiles = [env.tiles[b] for b in intrinsic.operands]
        written = {n.buffer for n in walk(intrinsic.body.body) if isinstance(n, Store)}
        shared = [b for b in intrinsic.operands for c in intrinsic.operands
                  if b is not c and c in written and env.tiles[b].buffer is env.tiles[c].buffer]
        if shared:
            match.fail(env, f"{env.tiles[shared[0]].buffer.name} is both its result and another operand")
            continue
        return tiles
    return match.why or "the statements differ"


def tensor_call(s: Stmt, intrinsic: TensorIntrinsic, tiles: Sequence[Tile]) -> TensorCall:
    """The statement as a call of the intrinsic that it matches."""
    places = []
    for operand, tile in zip(intrinsic.operands, tiles, strict=True):
        places.append(tile.place())
        places += [tile.place(d) for d in range(operand.rank)]
    return TensorCall(intrinsic.name, tuple(places), s)


def wrong_strides(operands: Sequence[Buffer], tiles: Sequence[Tile]) -> str | None:
    """An operand whose tile surely does not lie as the intrinsic wants it, or None."""
    for operand, tile in zip(operands, tiles, strict=True):
        if operand.strides is None:
            continue
        steps = strides_of(tile.buffer)
        for d, want in enumerate(operand.strides):
            got = sum(k * (as_int(s) or 0) for k, s in zip(tile.steps[d], steps, strict=True))
            known = all(as_int(s) is not None for k, s in zip(tile.steps[d], steps, strict=True) if k)
            if known and as_int(want) and got != as_int(want) and as_int(operand.shape[d]) != 1:
                return (f"along dimension {d} of its operand {operand.name} the elements of {tile.buffer.name} lie {got} "
                        f"apart, not {as_int(want)}")
    return None


def strides_of(b: Buffer) -> list[Expr]:
    """The strides of a buffer, row major where it says none."""
    if b.strides is not None:
        return list(b.strides)
    out: list[Expr] = []
    step: Expr = ONE
    for n in reversed(b.shape):
        out.insert(0, step)
        step = step * n
    return out


class _Match:
    """Matching with backtracking; `why` is what stood in the way of the attempt that came furthest."""

    def __init__(self, intrinsic: TensorIntrinsic) -> None:
        self.intrinsic = intrinsic
        self.why, self.reached = "", -1
        self.inner: set[Var] = set()

    def fail(self, env: _Env, why: str) -> None:
        if len(env.tiles) > self.reached:
            self.why, self.reached = why, len(env.tiles)

    def stmt(self, p: Stmt, s: Stmt, env: _Env) -> Iterator[_Env]:
        (ploops, pleaf), (sloops, sleaf) = _nest(p), _nest(s)
        n = [as_int(f.extent) for f in ploops]
        m = [as_int(f.extent) for f in sloops]
        if sorted(map(str, n)) != sorted(map(str, m)):
            self.fail(env, f"it loops over {_shown(n)}, the nest over {_shown(m)}")
            return
        orders = permutations(range(len(m))) if isinstance(pleaf, Store) and isinstance(sleaf, Store) else [range(len(m))]
        before, self.inner = self.inner, self.inner | {f.var for f in sloops}
        for order in orders:
            if [m[k] for k in order] != n:
                continue
            loops = {**env.loops, **{f.var: sloops[k].var for f, k in zip(ploops, order, strict=True)}}
            yield from self.leaf(pleaf, sleaf, replace(env, loops=loops))
        self.inner = before

    def leaf(self, p: Stmt, s: Stmt, env: _Env) -> Iterator[_Env]:
        match p, s:
            case Store(), Store():
                for e in self.access(p, s, env):
                    yield from self.expr(p.value, s.value, e)
            case Seq(first), Seq(second) if len(first) == len(second):
                yield from self.all_stmts(first, second, env)
            case _:
                self.fail(env, f"a {type(s).__name__} stands where it has a {type(p).__name__}")

    def all_stmts(self, ps: Sequence[Stmt], ss: Sequence[Stmt], env: _Env) -> Iterator[_Env]:
        if not ps:
            yield env
            return
        for e in self.stmt(ps[0], ss[0], env):
            yield from self.all_stmts(ps[1:], ss[1:], e)

    def expr(self, p: Expr, s: Expr, env: _Env) -> Iterator[_Env]:
        if type(p) is not type(s) or p.dtype is not s.dtype and not isinstance(p, Load):
            self.fail(env, f"{s!r} stands where it has {p!r}")
            return
        if isinstance(p, Load):
            yield from self.access(p, s, env)
            return
        if isinstance(p, Address) or isinstance(p, Var) and env.loops.get(p) is not s:
            self.fail(env, f"{s!r} stands where it has {p!r}")
            return
        a, b = list(p.children()), list(s.children())
        if len(a) != len(b) or _data(p) != _data(s):
            self.fail(env, f"{s!r} stands where it has {p!r}")
            return
        yield from self.all_exprs(a, b, env)
        if isinstance(p, _COMMUTE):
            yield from self.all_exprs(a, b[::-1], env)

    def all_exprs(self, ps: Sequence[Any], ss: Sequence[Any], env: _Env) -> Iterator[_Env]:
        if not ps:
            yield env
            return
        for e in self.expr(ps[0], ss[0], env):
            yield from self.all_exprs(ps[1:], ss[1:], e)

    def access(self, p: Any, s: Any, env: _Env) -> Iterator[_Env]:
        tile = self.tile(p, s, env)
        if tile is None:
            return
        known = env.tiles.get(p.buffer)
        if known is None:
            yield replace(env, tiles={**env.tiles, p.buffer: tile})
        elif known.buffer is tile.buffer and known.steps == tile.steps and all(
                linear(x) == linear(y) for x, y in zip(known.base, tile.base, strict=True)):
            yield env
        else:
            self.fail(env, f"{p.buffer.name} would be both {known.place()!r} and {tile.place()!r}")

    def tile(self, p: Any, s: Any, env: _Env) -> Tile | None:
        """Where the operand lies if the access `s` is what `p` is to the intrinsic."""
        want, b = p.buffer, s.buffer
        if want.dtype is not b.dtype or b.data is not None or b.packing != 1:
            self.fail(env, f"{b.name} has elements {b.dtype} where {want.name} has {want.dtype}")
            return None
        private = "local" if self.intrinsic.threads > 1 else "warp"  # to one thread, or to several
        if want.scope != b.scope and (want.scope != "global" or b.scope in ("warp", private)):
            self.fail(env, f"{b.name} lies in {b.scope} memory, the operand {want.name} in {want.scope}")
            return None
        base: list[Expr] = []
        rows: list[dict[Var, int]] = []
        for i in s.indices:
            terms, constant = linear(i)
            moving = {v: c for v, c in terms.items() if isinstance(v, Var) and v in self.inner}
            rest = [(a, c) for a, c in terms.items() if not (isinstance(a, Var) and a in self.inner)]
            if any(n in self.inner for a, _ in rest for n in walk(a)):
                self.fail(env, f"the index {i!r} of {b.name} is no sum of multiples of the loops' variables")
                return None
            base.append(from_linear(rest, constant, i))
            rows.append(moving)
        used = [env.loops.get(i) if isinstance(i, Var) else None for i in p.indices]
        stray = next((v for row in rows for v in row if v not in used), None)
        if stray is not None:
            self.fail(env, f"{b.name} moves along loop {stray.name}, {want.name} does not")
            return None
        steps = tuple([tuple([row.get(v, 0) if v is not None else 0 for row in rows]) for v in used])
        if isinstance(p, Store) and not _apart(steps, [as_int(d) or 1 for d in want.shape]):
            self.fail(env, f"two elements of the result {want.name} would be one element of {b.name}")
            return None
        return Tile(b, tuple(base), steps)


def _nest(s: Stmt) -> tuple[list[For], Stmt]:
    """The loops of a perfect nest from the outermost on, without those of one step, and what is inside."""
    loops: list[For] = []
    while isinstance(s, For) or isinstance(s, Seq) and len(s.stmts) == 1:
        if isinstance(s, Seq):
            s = s.stmts[0]
        elif as_int(s.extent) == 1:
            s = substitute(s.body, {s.var: s.start})
        elif as_int(s.start) != 0:
            v = Var(s.var.name, s.var.type)
            s = For(v, s.start - s.start, s.extent, substitute(s.body, {s.var: v + s.start}), s.kind, s.attrs)
        else:
            loops.append(s)
            s = s.body
    return loops, s


def _data(e: Expr) -> list[Any]:
    """The fields of an expression that are no expressions."""
    fields = [getattr(e, f) for f in e.fields]
    return [(type(v), v) for v in fields if not isinstance(v, Node | tuple)]


def _apart(steps: Sequence[tuple[int, ...]], shape: Sequence[int]) -> bool:
    """Whether a tile's elements are different ones: in each dimension of the buffer the steps are those of a mixed radix."""
    moving = [(step, n) for step, n in zip(steps, shape, strict=True) if n > 1]
    if any(sum(1 for s in step if s) != 1 for step, _ in moving):
        return False
    for d in range(len(steps[0]) if steps else 0):
        reach = 0
        for size, n in sorted((abs(step[d]), n) for step, n in moving if step[d]):
            if size <= reach:
                return False
            reach += size * (n - 1)
    return True


def _shown(extents: Sequence[int | None]) -> str:
    return " × ".join(["?" if n is None else str(n) for n in extents]) or "nothing"
