"""barriers: the threads of a block wait for each other where one needs what another has done, and nowhere else.

In: kernels whose phases (nests of thread loops) stand one after another. Out: `barrier` between two phases if some thread
of the later one may touch an element that another thread has touched since the last barrier, one of them writing. The
walk is greedy: a barrier comes as late as it may, directly before the phase (or the loop) that needs it, and then covers
all that was pending. What a loop leaves pending meets its own first phases again.

    for k in 0..8:                               for k in 0..8:
      for t threadIdx.x: S[t] = A[k, t]            barrier          # the readers of the last turn
      for t threadIdx.x: C[t] += S[t ^ 1]    →     for t threadIdx.x: S[t] = A[k, t]
                                                   barrier
                                                   for t threadIdx.x: C[t] += S[t ^ 1]

Two accesses concern the same thread alone if their indices, equal sums of terms in the thread variables, tell the threads
apart. A "local" buffer that concerns two threads is an error: it belongs into shared memory.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd
from typing import Any

from tilewright.core.dtype import i64
from tilewright.core.errors import InternalError, UserError
from tilewright.core.node import Node, walk
from tilewright.loop.bounds import bounds
from tilewright.loop.ir import (
    ONE,
    ZERO,
    Address,
    Allocate,
    Buffer,
    Call,
    Evaluate,
    Expr,
    FloorMod,
    For,
    If,
    Let,
    Load,
    Program,
    Seq,
    Stmt,
    Store,
    TensorCall,
    Var,
    as_int,
    seq,
)
from tilewright.loop.lower.linear import Terms, linear, loop_range
from tilewright.loop.lower.thread_nests import Phase, block_body, is_barrier, phase_of, rewrap, thread_extents
from tilewright.loop.simplify import simplify
from tilewright.loop.tensor_intrinsics import tensor_intrinsic_named


@dataclass(frozen=True)
class _Access:
    """An element that the threads of a phase touch. `axes`: the phase's thread variables; `free`: loop variables around
    it that have another value by now; `turns`: of those, the ones whose loop is still running (another turn of it), `last`
    of which it was the turn before this one; `late`: an asynchronous copy, of which the thread itself sees nothing before
    the next barrier."""
    buffer: Buffer
    indices: tuple[Expr, ...] | None
    is_write: bool
    node: Load | Store | Address
    axes: tuple[tuple[str, Var], ...] = ()
    free: frozenset[Var] = frozenset()
    turns: frozenset[Var] = frozenset()
    last: frozenset[Var] = frozenset()
    late: bool = False


@dataclass(frozen=True)
class _Term:
    """`step` times the difference of two values of one variable with `extent` values; `key` is a thread axis, a loop in
    another turn, or None for a variable of which nothing is asked."""
    key: Any
    step: int
    extent: int


@dataclass(frozen=True)
class Need:
    """What asks for a barrier: `later` may touch an element that another thread touched in `earlier`, one of them a Store.
    Either is the access itself, or an Address of something that is done elsewhere. `turns`: the loops of which `earlier` may
    be another turn's."""
    earlier: Load | Store | Address
    later: Load | Store | Address
    turns: tuple[Var, ...]


def place_barriers(program: Program) -> Program:
    """A kernel with its barriers. Raises UserError "kernel-local" for a local buffer that threads would have to share."""
    return explain_barriers(program)[0]


def explain_barriers(program: Program) -> tuple[Program, list[tuple[Need, ...]]]:
    """A kernel with its barriers, and for each of them in program order what asked for it. Raises UserError
    "kernel-local"."""
    top, body = block_body(program)
    extents = thread_extents(body)
    threads = 1
    for n in extents.values():
        threads *= n
    if threads == 1:
        return program, []
    walker = _Barriers(program, extents)
    for s in top:
        if isinstance(s, For):
            walker.enter(s)
    stmt, _ = walker.stmt(body, ())
    needs = [walker.needs.get(id(n), []) for n in walk(stmt) if isinstance(n, Stmt) and is_barrier(n)]
    return (program.replace(body=rewrap(top, stmt)),
            [tuple(dict.fromkeys([Need(a.node, b.node, tuple([v for v in a.turns if v in walker.loops])) for a, b in pairs]))
             for pairs in needs])


Pending = tuple[_Access, ...]
_Pair = tuple[_Access, _Access]


class _Barriers:
    """The walk over a block's statements; `ranges` of all variables, `around` the loops that all threads run together."""

    def __init__(self, program: Program, extents: dict[str, int]) -> None:
        self.program, self.extents = program, extents
        self.ranges: dict[Var, Any] = {}
        self.loops: dict[Var, int | None] = {}
        self.around: list[Var] = []
        self.written = {n.buffer for n in walk(program.body) if isinstance(n, Store)}
        self.needs: dict[int, list[_Pair]] = {}
        self.places: dict[int, Expr] = {}
        self.seen: list[Node] = []  # keeps what has its id in a table

    def barrier(self, needs: list[_Pair]) -> Stmt:
        """A barrier that is an object of its own, and what it is for."""
        made = Evaluate(Call("barrier", (), i64))
        self.seen.append(made)
        self.needs[id(made)] = needs
        return made

    def needed(self, s: Stmt) -> list[_Pair]:
        """What the barriers in a statement are for."""
        return [pair for n in walk(s) if isinstance(n, Stmt) and is_barrier(n) for pair in self.needs.get(id(n), ())]

    def enter(self, s: For) -> None:
        r = loop_range(s, self.ranges)
        if r is not None:
            self.ranges[s.var] = r
        self.loops[s.var] = as_int(s.extent)
        self.around.append(s.var)

    def stmt(self, s: Stmt, pending: Pending) -> tuple[Stmt, Pending]:
        """The statement with barriers, and the accesses since the last one behind it."""
        if is_barrier(s):
            return s, ()
        if isinstance(s, Allocate):
            body, pending = self.stmt(s.body, pending)
            return s.replace(body=body), pending
        phase = phase_of(s)
        if phase is not None:
            return self.leaf(s, phase, pending)
        match s:
            case Seq(stmts):
                out = []
                for t in stmts:
                    new, pending = self.stmt(t, pending)
                    out.append(new)
                return seq(out), pending
            case For():
                return self.loop(s, pending)
            case If():
                pending = self.read(s.cond, pending)
                then, after = self.stmt(s.then, pending)
                if s.otherwise is None:
                    return s.replace(then=then), _join(pending, after)
                otherwise, other = self.stmt(s.otherwise, pending)
                return s.replace(then=then, otherwise=otherwise), _join(after, other)
            case Let():
                pending = self.read(s.value, pending)
                body, pending = self.stmt(s.body, pending)
                return s.replace(body=body), tuple([replace(a, free=a.free | {s.var}) for a in pending])
        raise InternalError(f"threads inside a {type(s).__name__}\n{self.program}")

    def loop(self, s: For, before: Pending) -> tuple[Stmt, Pending]:
        """A barrier that only what came before the loop needs stands before it, not in each of its turns."""
        through, after = self.turns(s, before)
        alone, after_alone = self.turns(s, ()) if before else (through, after)
        if alone == through:
            return through, after
        inside = self.needed(alone)
        first = alone.body.stmts[0] if isinstance(alone, For) and isinstance(alone.body, Seq) else alone
        if is_barrier(first) and as_int(s.extent):  # the turns begin with a barrier, also the first
            self.needs[id(first)] = [*self.needs[id(first)], *[x for x in self.needed(through) if x not in inside]]
            return alone, after_alone
        return seq(self.barrier([pair for pair in self.needed(through) if pair not in inside]), alone), after_alone

    def turns(self, s: For, before: Pending) -> tuple[Stmt, Pending]:
        self.enter(s)
        body, pending = self.stmt(s.body, before)
        n = as_int(s.extent)
        if n is None or n > 1:
            again = tuple([replace(a, turns=a.turns | {s.var}) for a in pending])
            # Where every turn waits once, what is pending is of the turn before.
            last = tuple([replace(a, last=a.last | {s.var}) for a in again])
            new, after_new = self.stmt(body, last)
            body, pending = (new, after_new) if _waits(new) else self.stmt(body, again)
            pending = tuple([replace(a, last=a.last - {s.var}) for a in pending])
        self.around.remove(s.var)
        after = tuple([replace(a, free=a.free | {s.var}, turns=a.turns - {s.var}) for a in pending])
        return s.replace(body=body), after if n else _join(before, after)

    def read(self, e: Expr, pending: Pending) -> Pending:
        """What all threads read together, in a condition or a bound."""
        found = tuple([_Access(n.buffer, n.indices, False, n) for n in walk(e) if isinstance(n, Load)])
        for a in found:
            for b in pending:
                if b.buffer is a.buffer and b.is_write:
                    raise InternalError(f"a branch of all threads reads {a.buffer.name}, which they write\n{self.program}")
        return (*pending, *[a for a in found if a.buffer in self.written])

    def leaf(self, s: Stmt, phase: Phase, pending: Pending) -> tuple[Stmt, Pending]:
        axes = tuple([(axis, f.var) for axis, f in phase.axes.items() if as_int(f.extent) != 1])  # else thread 0, as without
        for n in walk(s):
            if isinstance(n, For):
                r = loop_range(n, self.ranges)
                if r is not None:
                    self.ranges[n.var] = r
        inner = {n.buffer for n in walk(s) if isinstance(n, Allocate)}
        late = {id(x) for n in walk(s) if isinstance(n, TensorCall) and tensor_intrinsic_named(n.name).asynchronous
                for x in walk(n.body) if isinstance(x, Store)}
        own = dict.fromkeys([replace(a, late=True) if id(n) in late else a for n in walk(s) for a in self.accesses(n, axes)
                             if a.buffer not in inner])
        hits = [(a, b) for a in pending for b in own if self.conflict(a, b)]
        local = next((b.buffer for _, b in hits if b.buffer.scope == "local"), None)
        if local is not None:
            raise UserError("kernel-local", f"threads of {self.program.name} share elements of {local.name}, which is local "
                            "to each of them", hint='set_scope it to "shared", or bind the loops around its writer and its '
                            "readers alike")
        if hits:
            return seq(self.barrier(hits), s), tuple(own)
        return s, _join(pending, tuple(own))

    def accesses(self, n: Node, axes: tuple[tuple[str, Var], ...]) -> list[_Access]:
        if isinstance(n, Store):
            return [_Access(n.buffer, n.indices, True, n, axes)]
        if isinstance(n, Load | Address) and n.buffer in self.written:
            return [_Access(n.buffer, n.indices if isinstance(n, Load) else None, isinstance(n, Address), n, axes)]
        return []

    # ---- whether two threads may meet at an element --------------------------------------------------------------------
    def conflict(self, a: _Access, b: _Access) -> bool:
        """Whether a thread of `b` may touch an element that another thread touched in `a`."""
        if a.buffer is not b.buffer or not (a.is_write or b.is_write) or a.buffer.scope == "warp":
            return False  # each warp has its own, whose threads run together
        if a.indices is None or b.indices is None:
            return True
        if any(self.other_place(x, y, a) for x, y in zip(a.indices, b.indices, strict=True)):
            return False
        places = [*zip(a.indices, b.indices, strict=True), (self.place(a.node), self.place(b.node))]
        dims = [self.difference(x, y, a, b) for x, y in places]
        open_: set[Any] = {axis for axis, _ in (*a.axes, *b.axes)}
        turns = {v for v in a.turns if v in self.around}
        open_ |= turns
        progress = True
        while progress:
            progress = False
            for d in dims:
                if d is None:
                    continue
                terms, low, high = d
                left = [t for t in terms if t.key is None or t.key in open_]
                if not left and (low > 0 or high < 0):
                    return False
                if open_ & {t.key for t in left} and _tells_apart(left, max(abs(low), abs(high))):
                    open_ -= {t.key for t in left}
                    progress = True
                    continue
                rest = _without_turns(left, turns, low, high)
                if rest is not None and open_ & {t.key for t in rest} and _tells_apart(rest, 0):
                    open_ -= {t.key for t in rest}
                    progress = True
        threads_equal = not any(isinstance(k, str) for k in open_) and not a.late
        other_turn = any(v not in open_ for v in turns)
        return not threads_equal and not other_turn

    def own_extent(self, axis: str, a: _Access, b: _Access) -> int:
        """The most threads along an axis that one of two phases has."""
        known = [self.ranges.get(var) for own, var in (*a.axes, *b.axes) if own == axis]
        return max([self.extents[axis] if r is None else r[1] + 1 for r in known], default=1)

    def difference(self, x: Expr, y: Expr, a: _Access, b: _Access) -> tuple[list[_Term], int, int] | None:
        """`x - y` as terms in differences of thread axes, of turns and of other loops' variables, plus something in
        [low, high]; None if it is not of that form."""
        tx, cx = linear(x)
        ty, cy = linear(y)
        threads_x, rest_x = self.split(tx, a)
        threads_y, rest_y = self.split(ty, b)
        found: list[_Term] = []
        has_a, has_b = {axis for axis, _ in a.axes}, {axis for axis, _ in b.axes}
        for axis in has_a | has_b:  # a phase without the axis runs where it is 0: any coefficient fits
            p = threads_x.get(axis, 0) if axis in has_a else threads_y.get(axis, 0)
            q = threads_y.get(axis, 0) if axis in has_b else p
            if p != q:
                return None
            if p:
                found.append(_Term(axis, p, self.own_extent(axis, a, b)))
        low = high = cx - cy
        for v in a.turns:
            if rest_x.get(v, 0) != rest_y.get(v, 0):
                return None
            c, n = rest_x.pop(v, 0), self.loops.get(v)
            rest_y.pop(v, 0)
            if c and n is None:
                return None
            if c and n:
                found.append(_Term(v, c, n))
        same = [atom for atom in rest_x if self.fixed(atom, a) and rest_x[atom] == rest_y.get(atom)]
        moving: list[tuple[int, int, int]] = []
        for terms, sign in ((rest_x, 1), (rest_y, -1)):
            for atom, c in terms.items():
                if atom in same:
                    continue
                lo, hi = bounds(atom, self.ranges)
                if not isinstance(lo, int) or not isinstance(hi, int):
                    return None
                twin = (-sign * c, lo, hi)
                if twin in moving:  # one variable of each side with equal steps: their difference is one variable
                    moving.remove(twin)
                    found.append(_Term(None, c, hi - lo + 1))
                else:
                    moving.append((sign * c, lo, hi))
        for c, lo, hi in moving:
            low, high = low + min(c * lo, c * hi), high + max(c * lo, c * hi)
        return found, low, high

    def other_place(self, x: Expr, y: Expr, a: _Access) -> bool:
        """Whether x and y are e % m and f % m of numbers that surely differ modulo m: places used in turn."""
        if not (isinstance(x, FloorMod) and isinstance(y, FloorMod) and x.b == y.b and as_int(x.b)):
            return False
        (tx, cx), (ty, cy) = linear(x.a), linear(y.a)
        for v in a.last:
            step = tx.pop(v, 0)
            if step != ty.pop(v, 0):
                return False
            cx -= step
        known = all(self.fixed(atom, a) for atom in (*tx, *ty))
        return known and tx == ty and (cx - cy) % (as_int(x.b) or 1) != 0

    def place(self, n: Load | Store | Address) -> Expr:
        """Where in its buffer's memory an element is: digits of one number, (n // 34, n % 34), are that number here."""
        if id(n) not in self.places:
            strides: list[Expr] = [ONE]
            for extent in reversed(n.buffer.shape[1:]):
                strides.insert(0, strides[0] * extent)
            total: Expr = ZERO
            for i, stride in zip(n.indices, n.buffer.strides or strides[:n.buffer.rank], strict=True):
                total = total + i * stride
            self.places[id(n)] = simplify(total)
            self.seen.append(n)
        return self.places[id(n)]

    def split(self, terms: Terms, a: _Access) -> tuple[dict[str, int], Terms]:
        """The coefficients of thread variables, and the other terms."""
        by_axis = {v: axis for axis, v in a.axes}
        return ({by_axis[t]: c for t, c in terms.items() if isinstance(t, Var) and t in by_axis},
                {t: c for t, c in terms.items() if not (isinstance(t, Var) and t in by_axis)})

    def fixed(self, atom: Expr, a: _Access) -> bool:
        """Whether an atom has one value for all threads, then and now."""
        known = [v for v in walk(atom) if isinstance(v, Var)]
        stable = all((v in self.around or v not in self.loops and v not in self.ranges) and v not in a.free
                     and v not in a.turns for v in known)
        return stable and not any(isinstance(n, Load) for n in walk(atom))


def _tells_apart(terms: list[_Term], slack: int) -> bool:
    """Whether Σ step · difference within ±slack means that all differences are zero (a mixed radix)."""
    for t in sorted(terms, key=lambda t: abs(t.step)):
        if abs(t.step) <= slack:
            return False
        slack += abs(t.step) * (t.extent - 1)
    return True


def _waits(s: Stmt) -> bool:
    """Whether there is a barrier in a statement that is surely run."""
    if isinstance(s, Seq):
        return any(_waits(t) for t in s.stmts)
    if isinstance(s, Allocate | Let):
        return _waits(s.body)
    return is_barrier(s) or isinstance(s, For) and (as_int(s.extent) or 0) > 0 and _waits(s.body)


def _without_turns(terms: list[_Term], turns: set[Var], low: int, high: int) -> list[_Term] | None:
    """The terms that are zero together where the turns' steps, and what is added, are multiples of more than the rest can
    reach: (t - 1)*10 + x of one turn is t*10 + x of another for the same x alone. None if they are not."""
    steps = [abs(t.step) for t in terms if t.key in turns]
    rest = [t for t in terms if t.key not in turns]
    if not steps or low != high:
        return None
    unit = gcd(*steps)
    return rest if not low % unit and sum(abs(t.step) * (t.extent - 1) for t in rest) < unit else None


def _join(a: Pending, b: Pending) -> Pending:
    return tuple(dict.fromkeys((*a, *b)))
