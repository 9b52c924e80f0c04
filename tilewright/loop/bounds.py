"""What is known of integer expressions: intervals, and proofs of comparisons under the ranges of the variables.

In: an integer or boolean expression, and for each variable an inclusive range whose ends are integers, expressions (in
terms of variables with ranges of their own, outer ones first) or None; the range of a symbolic size is its own. Out: an
interval, or whether a condition surely holds.

Wrapping: a variable of type i64 without a range is an index or a size, and sums and products of such are taken not to
overflow, since they address memory. Everything else (loads, casts, narrower types) counts with its type's full range,
and where an expression might leave its type's range, nothing is concluded from its value.
"""
from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from typing import Any

from tilewright.core.dtype import DType, i64
from tilewright.loop.affine import ONE, UNBOUNDED, Affine, Monomial, affine_of, constant
from tilewright.loop.ir import (
    Add,
    And,
    Broadcast,
    Buffer,
    Cast,
    Compare,
    Const,
    Div,
    Eq,
    Expr,
    FloorDiv,
    FloorMod,
    Guard,
    Le,
    Load,
    Lt,
    Max,
    Min,
    Mul,
    Ne,
    Not,
    Or,
    Ramp,
    Select,
    Sub,
    Var,
)

Bound = int | None
Interval = tuple[Bound, Bound]
Ranges = Mapping[Var, tuple[int | Expr | None, int | Expr | None]]
_FUEL = 24
"""How many substitutions of symbolic bounds one proof may try."""


def bounds(e: Expr, ranges: Ranges | None = None) -> Interval:
    """Inclusive ends of the values of an integer expression (over all lanes of a vector); None where unknown."""
    return Knowledge(ranges).interval(e)


def prove(cond: Expr, ranges: Ranges | None = None) -> bool:
    """Whether a boolean expression surely holds (in all lanes) for all values in the ranges. False proves nothing."""
    return Knowledge(ranges).decide(cond) is True


class Knowledge:
    """Ranges of variables, and facts (forms known to be >= 0) that hold at one place of a program."""

    def __init__(self, ranges: Ranges | None = None, facts: tuple[Affine, ...] = (),
                 forms: dict[int, tuple[Expr, Affine]] | None = None) -> None:
        self.ranges: dict[Var, tuple[int | Expr | None, int | Expr | None]] = dict(ranges or {})
        self.facts = facts
        self.forms: dict[int, tuple[Expr, Affine]] = {} if forms is None else forms
        self._intervals: dict[int, tuple[Expr, Interval]] = {}
        self._ranks: dict[Var, int] | None = None
        self.symbolic = any(isinstance(b, Expr) for r in self.ranges.values() for b in r)

    # ---- new knowledge ------------------------------------------------------------------------------------------
    def with_range(self, var: Var, lo: int | Expr | None, hi: int | Expr | None) -> Knowledge:
        """This knowledge, and `lo <= var <= hi` for a variable defined inside."""
        ranges = {v: r for v, r in self.ranges.items() if v is not var}
        ranges[var] = (lo, hi)
        return Knowledge(ranges, self.facts, self.forms)

    def assuming(self, cond: Expr, holds: bool = True) -> Knowledge:
        """This knowledge, and that `cond` holds (or that it does not). Conditions that read memory are not kept:
        the memory may change while the knowledge is used."""
        facts: list[Affine] = []
        self._collect(cond, holds, facts)
        facts = [f for f in facts if not f.data]
        if not facts:
            return self
        ranges, kept = dict(self.ranges), list(self.facts)
        for f in facts:
            if not self._tighten(f, ranges):
                kept.append(f)
        free = {v: r for v, r in ranges.items() if v not in self.ranges}  # defined outside of all others
        return Knowledge({**free, **ranges} if free else ranges, tuple(kept), self.forms)

    def _tighten(self, f: Affine, ranges: dict[Var, tuple[Any, Any]]) -> bool:
        """Narrow a variable's integer range by the fact `f >= 0` if that says all of it."""
        if len(f.terms) != 1 + (ONE in f.terms):
            return False
        m, c = next((m, c) for m, c in f.terms.items() if m)
        if len(m) != 1 or not isinstance(m[0], Var):
            return False
        lo, hi = ranges[m[0]] if m[0] in ranges else self.range_of(m[0])
        if c > 0:
            if isinstance(lo, Expr):
                return False
            low = -(f.const // c)
            ranges[m[0]] = (low if lo is None else max(lo, low), hi)
        else:
            if isinstance(hi, Expr):
                return False
            high = f.const // -c
            ranges[m[0]] = (lo, high if hi is None else min(hi, high))
        return True

    def _collect(self, cond: Expr, holds: bool, facts: list[Affine]) -> None:
        match cond:
            case Not(a):
                self._collect(a, not holds, facts)
            case And(a, b) | Or(a, b):
                if isinstance(cond, And) == holds:
                    self._collect(a, holds, facts)
                    self._collect(b, holds, facts)
            case Lt(a, b) | Le(a, b) | Eq(a, b) | Ne(a, b) if a.dtype.is_int and a.dtype.lanes == 1:
                fa, fb = self.form(a), self.form(b)
                if not (self.exact(fa) and self.exact(fb)):
                    return
                if isinstance(cond, Eq | Ne):
                    if isinstance(cond, Eq) == holds:
                        facts += [_minus(fa, fb), _minus(fb, fa)]
                elif holds:
                    facts.append(_minus(fb, fa, 1 if isinstance(cond, Lt) else 0))
                else:
                    facts.append(_minus(fa, fb, 0 if isinstance(cond, Lt) else 1))
            case _:
                pass

    # ---- intervals ----------------------------------------------------------------------------------------------
    def form(self, e: Expr) -> Affine:
        return affine_of(e, self.forms)

    def interval(self, e: Expr) -> Interval:
        """Inclusive ends of an integer expression's values."""
        found = self._intervals.get(id(e))
        if found is None:
            found = (e, self._interval(e))
            self._intervals[id(e)] = found
        return found[1]

    def _interval(self, e: Expr) -> Interval:
        t = e.dtype
        if t.is_bool:
            return 0, 1
        if not t.is_int:
            return None, None
        if isinstance(e, Const):
            return e.value, e.value
        if isinstance(e, Var):
            return self._of_var(e)
        whole = t.range()
        if isinstance(e, Add | Sub | Mul):
            if t.lanes == 1:
                f = self.form(e)
                if (e,) not in f.terms:
                    return _within(self.of_form(f), t)
            x, y = self.interval(e.a), self.interval(e.b)
            got = (_add(x, y) if isinstance(e, Add) else _add(x, _scale(y, -1)) if isinstance(e, Sub)
                   else _multiply(x, y))
            return _within(got, t)
        match e:
            case FloorDiv(a, b):
                return _floor_div(self.interval(a), self.interval(b))
            case FloorMod(a, b):
                return _floor_mod(self.interval(a), self.interval(b), t)
            case Div(a, b):
                (alo, ahi), (blo, bhi) = self.interval(a), self.interval(b)
                if alo is not None and alo >= 0 and blo is not None and blo >= 1:
                    return _floor_div((alo, ahi), (blo, bhi))
                return whole if t is not i64 or alo is not None else (None, None)
            case Min(a, b):
                return _min_max(self.interval(a), self.interval(b), min)
            case Max(a, b):
                (alo, ahi), (blo, bhi) = self.interval(a), self.interval(b)
                lo, hi = _min_max((_negate(ahi), _negate(alo)), (_negate(bhi), _negate(blo)), min)
                return _negate(hi), _negate(lo)
            case Select(_, a, b) | Guard(_, a, b):
                return _union(self.interval(a), self.interval(b))
            case Broadcast(a, _):
                return self.interval(a)
            case Ramp(base, stride, lanes):
                last = _add(self.interval(base), _scale(self.interval(stride), lanes - 1))
                return _within(_union(self.interval(base), last), t)
            case Cast(_, a) if a.dtype.is_int or a.dtype.is_bool:
                lo, hi = self.interval(a)
                if lo is None and hi is None and a.dtype.element is i64 and t.bits == 64:
                    return None, None
                return (lo, hi) if lo is not None and hi is not None and whole[0] <= lo and hi <= whole[1] else whole
            case Load(buffer, _) if buffer.data:
                return _of_table(buffer)
        return whole

    def _of_var(self, v: Var) -> Interval:
        lo, hi = self.range_of(v)
        low = self.interval(lo)[0] if isinstance(lo, Expr) else lo
        high = self.interval(hi)[1] if isinstance(hi, Expr) else hi
        if v.type.element is i64:
            return low, high
        least, most = v.type.range()
        return least if low is None else max(low, least), most if high is None else min(high, most)

    def range_of(self, v: Var) -> tuple[int | Expr | None, int | Expr | None]:
        """The range that was given for a variable, or else its own."""
        found = self.ranges.get(v)
        return found if found is not None else (None, None) if v.span is None else (v.span.least, v.span.most)

    def of_form(self, a: Affine) -> Interval:
        """The interval of a form's value in the integers (before any wrapping)."""
        lo: Bound = 0
        hi: Bound = 0
        for m, c in a.terms.items():
            if not m:
                x: Interval = (c, c)
            else:
                x = self.interval(m[0])
                for f in m[1:]:
                    x = _multiply(x, self.interval(f))
                x = _scale(x, c)
            lo = None if lo is None or x[0] is None else lo + x[0]
            hi = None if hi is None or x[1] is None else hi + x[1]
            if lo is None and hi is None:
                break
        return lo, hi

    def exact(self, a: Affine) -> bool:
        """Whether a form's value in the integers is surely the value of the wrapping expression."""
        lo, hi = self.of_form(a)
        least, most = a.type.range()
        if (lo is not None and lo < least) or (hi is not None and hi > most):
            return False
        if lo is None or hi is None:  # an index among the atoms hides what the others may do
            if a.type is not i64:
                return False
            return not a.data or all(self._small(m, c) for m, c in a.terms.items())
        return True

    def _small(self, m: Monomial, c: int) -> bool:
        if not Affine({m: c}, i64, False).terms or not m:
            return True
        lo, hi = self.of_form(Affine({m: c}, i64, False))
        return all(x is None or abs(x) < 1 << 62 for x in (lo, hi)) and all(
            isinstance(f, Var | FloorDiv | FloorMod | Min | Max) or self.interval(f) != f.dtype.range() for f in m)

    # ---- proofs -------------------------------------------------------------------------------------------------
    def decide(self, cond: Expr) -> bool | None:
        """True or False where the condition surely has that value (in every lane), else None."""
        match cond:
            case Const(value, _):
                return bool(value)
            case Broadcast(a, _):
                return self.decide(a)
            case Not(a):
                got = self.decide(a)
                return None if got is None else not got
            case And(a, b):
                x, y = self.decide(a), self.decide(b)
                return False if x is False or y is False else True if x and y else None
            case Or(a, b):
                x, y = self.decide(a), self.decide(b)
                return True if x or y else False if x is False and y is False else None
            case Compare(a, b) if a.dtype.is_int:
                if a.dtype.lanes > 1:
                    return self._decide_lanes(type(cond), a, b)
                return self.compare(type(cond), self.form(a), self.form(b))
        return None

    def _decide_lanes(self, cls: type[Compare], a: Expr, b: Expr) -> bool | None:
        """A comparison of ramps holds in all lanes when it holds in the first and the last, since they are monotonic."""
        ends = [self._ends(a), self._ends(b)]
        if ends[0] is None or ends[1] is None:
            (alo, ahi), (blo, bhi) = self.interval(a), self.interval(b)
            if None not in (ahi, blo) and cls in (Lt, Le) and (ahi < blo or ahi == blo and cls is Le):  # type: ignore[operator]
                return True
            if None not in (alo, bhi) and cls in (Lt, Le) and (alo > bhi or alo == bhi and cls is Lt):  # type: ignore[operator]
                return False
            return None
        if not all(self.exact(f) for pair in ends for f in pair):  # type: ignore[union-attr]
            return None
        first = self.compare(cls, ends[0][0], ends[1][0])
        last = self.compare(cls, ends[0][1], ends[1][1])
        if cls in (Lt, Le) or first == last and (first is (cls is Eq)):
            return first if first == last else None
        return None

    def _ends(self, e: Expr) -> tuple[Affine, Affine] | None:
        if isinstance(e, Broadcast):
            f = self.form(e.a)
            return f, f
        if isinstance(e, Ramp):
            f = self.form(e.base)
            return f, f.plus(self.form(e.stride), e.lanes - 1)
        return None

    def compare(self, cls: type[Compare], a: Affine, b: Affine) -> bool | None:
        """Decide `cls(a, b)` of two scalar forms."""
        d = b.plus(a, -1)
        if cls is Eq or cls is Ne:
            equal = self._equal(a, b, d)
            return equal if equal is None or cls is Eq else not equal
        if not (self.exact(a) and self.exact(b)):
            return None
        if self.nonnegative(_minus(b, a, 1 if cls is Lt else 0)):
            return True
        return False if self.nonnegative(_minus(a, b, 0 if cls is Lt else 1)) else None

    def _equal(self, a: Affine, b: Affine, d: Affine) -> bool | None:
        c = d.as_const()
        if c is not None:
            return c == 0
        if not (self.exact(a) and self.exact(b)):
            return None
        divisor = gcd(*[k for m, k in d.terms.items() if m])
        wide = _minus(b, a)
        if wide.terms == d.terms and d.const % divisor:
            return False
        less = self.nonnegative(wide.plus_const(-1)) or self.nonnegative(_minus(a, b, 1))
        return False if less else None

    def nonnegative(self, a: Affine) -> bool:
        """Whether a form's value in the integers is surely >= 0."""
        lo, hi = self.of_form(a)
        if lo is not None and lo >= 0:
            return True
        if hi is not None and hi < 0:
            return False
        return self._search(a, [_FUEL]) or self._by_facts(a, 2)

    def _by_facts(self, a: Affine, depth: int) -> bool:
        """a >= 0 because `k * a - j * fact >= 0` for a fact and k, j > 0 that cancel a monomial; up to `depth` facts."""
        for fact in self.facts:
            for m, c in fact.terms.items():
                k = a.terms.get(m, 0)
                if m and k * c > 0:
                    rest = a.scaled(abs(c)).plus(fact, -abs(k))
                    if self._holds(rest, [_FUEL]) or depth > 1 and self._by_facts(rest, depth - 1):
                        return True
        return False

    def _search(self, a: Affine, fuel: list[int]) -> bool:
        """Replace atoms by their symbolic bounds, innermost first, until the interval says a >= 0."""
        if fuel[0] <= 0:
            return False
        fuel[0] -= 1
        for m, c in a.terms.items():
            if len(m) == 1 and not isinstance(m[0], Var):
                for alternatives in self._lower(a, m, m[0], c):
                    if all(self._holds(x, fuel) for x in alternatives):
                        return True
        if not self.symbolic and all(len(m) <= 1 for m in a.terms):
            return False
        present = {f for m in a.terms for f in m if isinstance(f, Var)}
        for v in sorted(present, key=self._rank, reverse=True):
            lower = self._eliminate(a, v)
            if lower is not None:
                return self._holds(lower, fuel)
        return False

    def _holds(self, a: Affine, fuel: list[int]) -> bool:
        lo, hi = self.of_form(a)
        if lo is not None and lo >= 0:
            return True
        return not (hi is not None and hi < 0) and self._search(a, fuel)

    def _rank(self, v: Var) -> int:
        if self._ranks is None:
            self._ranks = {v: i for i, v in enumerate(self.ranges)}
        return self._ranks.get(v, -1)

    def _lower(self, a: Affine, m: Monomial, e: Expr, c: int) -> list[list[Affine]]:
        """Ways to bound `a` from below by replacing the atom `e` (with coefficient c): any one way, all its forms, does."""
        rest = Affine({n: k for n, k in a.terms.items() if n != m}, a.type, a.data, a.bits)
        match e:
            case FloorDiv(x, Const(d, _)) if d > 0 and self.exact(self.form(x)):
                slack = d - 1 if c == -1 else 1 - d if c > 1 else 0  # for c = 1 or -1 the bound is an equivalence
                return [[rest.scaled(d).plus(self.form(x), c).plus_const(slack * max(c, 1))]]
            case FloorMod(x, d) if c < 0 and (self.interval(d)[0] or 0) >= 1:
                ways = [[rest.plus(self.form(d).plus_const(-1), c)]] if not isinstance(d, Const) else []
                lo = self.interval(x)[0]
                return [*ways, [rest.plus(self.form(x), c)]] if lo is not None and lo >= 0 else ways
            case Min(x, y) | Max(x, y) if self.exact(self.form(x)) and self.exact(self.form(y)):
                p, q = rest.plus(self.form(x), c), rest.plus(self.form(y), c)
                return [[p], [q]] if (c < 0) == isinstance(e, Min) else [[p, q]]
        return []

    def _eliminate(self, a: Affine, v: Var) -> Affine | None:
        """A lower bound of `a` without the linear occurrences of `v`, or None."""
        lo, hi = self.range_of(v)
        factor: dict[Monomial, int] = {}
        rest: dict[Monomial, int] = {}
        for m, c in a.terms.items():
            if v in m:
                others = list(m)
                others.remove(v)
                if v in others:
                    return None
                factor[tuple(others)] = c
            else:
                rest[m] = c
        p = Affine(factor, a.type, a.data, a.bits)
        plo, phi = self.of_form(p)
        end = lo if plo is not None and plo >= 0 else hi if phi is not None and phi <= 0 else None
        if end is None:
            return None
        f = constant(end, a.type) if isinstance(end, int) else self.form(end)
        return Affine(rest, a.type, a.data, a.bits).plus(p.times(f))


# ---- forms with integer values ------------------------------------------------------------------------------------------
def _wide(a: Affine) -> Affine:
    return Affine(a.terms, a.type, a.data, UNBOUNDED)


def _minus(a: Affine, b: Affine, less: int = 0) -> Affine:
    """a - b - less, in the integers."""
    return _wide(a).plus(b, -1).plus_const(-less)


# ---- interval arithmetic -------------------------------------------------------------------------------------------------
def _within(x: Interval, t: DType) -> Interval:
    """An interval of a wrapping result: if it leaves the type, the whole type."""
    lo, hi = x
    least, most = t.range()
    if (lo is not None and lo < least) or (hi is not None and hi > most):
        return least, most
    return x if t.element is i64 else (least if lo is None else lo, most if hi is None else hi)


def _negate(x: Bound) -> Bound:
    return None if x is None else -x


def _add(x: Interval, y: Interval) -> Interval:
    return (None if x[0] is None or y[0] is None else x[0] + y[0]), (None if x[1] is None or y[1] is None else x[1] + y[1])


def _scale(x: Interval, c: int) -> Interval:
    if c == 0:
        return 0, 0
    lo, hi = (None if x[0] is None else x[0] * c), (None if x[1] is None else x[1] * c)
    return (lo, hi) if c > 0 else (hi, lo)


def _union(x: Interval, y: Interval) -> Interval:
    return ((None if x[0] is None or y[0] is None else min(x[0], y[0])),
            (None if x[1] is None or y[1] is None else max(x[1], y[1])))


def _min_max(x: Interval, y: Interval, f: Any) -> Interval:
    """The interval of a minimum: bounded above by either side, below only by both."""
    his = [h for h in (x[1], y[1]) if h is not None]
    return (None if x[0] is None or y[0] is None else f(x[0], y[0])), (min(his) if his else None)


def _multiply(x: Interval, y: Interval) -> Interval:
    (a, b), (c, d) = x, y
    if a is not None and b is not None and c is not None and d is not None:
        ends = (a * c, a * d, b * c, b * d)
        return min(ends), max(ends)
    if a is not None and a >= 0 and c is not None and c >= 0:
        return a * c, None
    return None, None


def _floor_div(x: Interval, y: Interval) -> Interval:
    (a, b), (c, d) = x, y
    if c is None or c < 1:
        return None, None
    if d == c:
        return (None if a is None else a // c), (None if b is None else b // c)
    lo = None if a is None else min(a // c, a // d if d is not None else 0 if a >= 0 else -1)
    hi = None if b is None else max(b // c, b // d if d is not None else 0 if b >= 0 else -1)
    return lo, hi


def _floor_mod(x: Interval, y: Interval, t: DType) -> Interval:
    (a, b), (c, d) = x, y
    if c is None or c < 1:
        return t.range() if t.element is not i64 or x == t.range() else (None, None)
    if c == d and a is not None and b is not None and a // c == b // c:
        return a % c, b % c
    hi = None if d is None else d - 1
    if a is not None and a >= 0 and b is not None and (hi is None or b < hi):
        hi = b
    return 0, hi


def _of_table(buffer: Buffer) -> Interval:
    data = buffer.data or (0,)
    return int(min(data)), int(max(data))
