"""The values that an index expression takes while some of its variables run and the others stand still.

In: a quasi-affine integer expression (sums and products, `// c` and `% c` by constants), the loops whose variables run, and
the ranges of all variables. Out: a `Span`: the interval [lo, lo + width] with `lo` in terms of the variables that stand
still, and whether every integer of it is taken. Anything else has a span of constants or none: callers then take all of
a dimension.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd

from tilewright.core.node import walk
from tilewright.loop.affine import affine_of
from tilewright.loop.bounds import Knowledge
from tilewright.loop.ir import ONE, ZERO, Call, Expr, FloorDiv, FloorMod, For, Le, Load, Lt, Var, as_int, const
from tilewright.loop.simplify_expr import ExprSimplifier, Order

Ranges = dict[Var, tuple[int | Expr | None, int | Expr | None]]


@dataclass(frozen=True)
class Span:
    """The integers lo .. lo + width, both ends included; `exact`: each of them is taken, whatever the outer variables."""
    lo: Expr
    width: Expr
    exact: bool
    vars: frozenset[Var]


def ranges_of(loops: Sequence[For]) -> Ranges:
    """Inclusive ranges of loop variables, outermost first."""
    out: Ranges = {}
    for f in loops:
        out[f.var] = (_plain(f.start), _plain(f.start + f.extent - 1))
    return out


def _plain(e: Expr) -> int | Expr:
    k = as_int(e)
    return e if k is None else k


class Algebra:
    """Simplification, proofs and spans under the ranges of the loops at one place."""

    def __init__(self, loops: Sequence[For]) -> None:
        self.ranges = ranges_of(loops)
        self.known = Knowledge(self.ranges)
        for f in loops:  # a place inside a loop is reached only if it runs
            if as_int(f.extent) is None:
                self.known = self.known.assuming(Lt(ZERO, f.extent))
        self._order = Order()
        for v in self.ranges:
            self._order.depth[v] = len(self._order.depth)
        self._simplifier = ExprSimplifier(self.known, self._order, {}, {})

    def assuming(self, conditions: Iterable[Expr]) -> Algebra:
        """This algebra, knowing that some conditions hold."""
        out = Algebra(())
        out.ranges, out.known = self.ranges, self.known
        for c in conditions:
            out.known = out.known.assuming(c)
        out._simplifier = ExprSimplifier(out.known, self._order, {}, {})
        out._order = self._order
        return out

    def within(self, loops: Sequence[For]) -> Algebra:
        """This algebra with other ranges for the variables of some loops."""
        out = self.assuming(())
        out.ranges = {**self.ranges, **ranges_of(loops)}
        for v, (lo, hi) in ranges_of(loops).items():
            out.known = out.known.with_range(v, lo, hi)
        out._simplifier = ExprSimplifier(out.known, self._order, {}, {})
        return out

    def implies(self, domain: Sequence[tuple[Expr, Expr]], cond: Expr) -> bool:
        """Whether `cond` holds wherever 0 <= e < n for all (e, n) of `domain`."""
        inside, outside = self.known, self.known.assuming(cond, False)
        for e, n in domain:
            if outside.decide(Le(n, e)) is True or outside.decide(Lt(e, ZERO)) is True:
                return True
            inside = inside.assuming(Le(ZERO, e)).assuming(Lt(e, n))
        return inside.decide(cond) is True

    def narrowed(self, inner: Sequence[For], conditions: Iterable[Expr]) -> list[For]:
        """The loops without the steps at their ends in which the conditions surely do not hold."""
        highest: dict[Expr, int] = {}
        lowest: dict[Expr, int] = {}
        for c in conditions:
            if not isinstance(c, Lt | Le):
                continue
            slack = self.simplify(c.b - c.a - (1 if isinstance(c, Lt) else 0))  # the condition: slack >= 0
            for m, k in affine_of(slack, self.known.forms).terms.items():
                if len(m) == 1 and isinstance(m[0], Var):
                    most = self.known.interval(self.simplify(slack - m[0] * k))[1]
                    if most is not None and k < 0:
                        highest[m[0]] = min(most // -k, highest.get(m[0], most // -k))
                    elif most is not None:
                        lowest[m[0]] = max(-(most // k), lowest.get(m[0], -(most // k)))
        out = []
        for f in inner:
            start, n = as_int(f.start), as_int(f.extent)
            if start is None or n is None:
                out.append(f)
                continue
            first, last = max(start, lowest.get(f.var, start)), min(start + n - 1, highest.get(f.var, start + n - 1))
            fits = first <= last and (first, last) != (start, start + n - 1)
            out.append(f.replace(start=const(first), extent=const(last - first + 1)) if fits else f)
        return out

    def simplify(self, e: Expr) -> Expr:
        return self._simplifier.expr(e)

    def proves(self, cond: Expr) -> bool:
        return self.known.decide(cond) is True or self.known.decide(self.simplify(cond)) is True

    def at_most(self, a: Expr, b: Expr) -> bool:
        """Whether a <= b surely."""
        difference = self.simplify(b - a)
        return self.known.decide(Le(ZERO, difference)) is True

    def equal(self, a: Expr, b: Expr) -> bool:
        return as_int(self.simplify(a - b)) == 0

    def constant(self, e: Expr) -> int | None:
        return as_int(self.simplify(e))

    def upper(self, e: Expr) -> int | None:
        """A constant that `e` does not exceed."""
        return self.known.interval(self.simplify(e))[1]

    # ---- spans -------------------------------------------------------------------------------------------------------
    def span(self, e: Expr, inner: Mapping[Var, For]) -> Span | None:
        """The span of `e` while the variables of `inner` run; None if it is not known in this form."""
        e = self.simplify(e)
        if any(isinstance(n, Load | Call) for n in walk(e)):
            return None  # a bound that reads memory could not move with the box
        base: Expr = ZERO
        parts: list[tuple[int, Span]] = []
        for monomial, c in affine_of(e, self.known.forms).terms.items():
            moving = [a for a in monomial if any(v in inner for v in vars_of(a))]
            if not moving:
                term: Expr = const(c)
                for a in monomial:
                    term = term * a
                base = base + term
                continue
            if len(moving) > 1:
                return self._constant_span(e, inner)
            s = self._atom(moving[0], inner)
            if s is None:
                return self._constant_span(e, inner)
            for a in monomial:
                if a is not moving[0]:
                    if (self.known.interval(a)[0] or -1) < 0:
                        return self._constant_span(e, inner)
                    s = Span(s.lo * a, s.width * a, False, s.vars)
            parts.append((c, s))
        return self._sum(base, parts)

    def _sum(self, base: Expr, parts: list[tuple[int, Span]]) -> Span:
        lo, width = base, ZERO
        exact, seen = True, frozenset[Var]()
        reach: int | None = 0
        for c, s in sorted(parts, key=lambda p: abs(p[0])):
            size = abs(c)
            lo = lo + (s.lo * c if c > 0 else (s.lo + s.width) * c)
            width = width + s.width * size
            w = as_int(s.width)
            if w == 0:
                exact = exact and s.exact
                continue
            if not s.exact or seen & s.vars or reach is None or size > reach + 1:
                exact = False
            seen |= s.vars
            reach = None if reach is None or w is None else reach + size * w
        return Span(self.simplify(lo), self.simplify(width), exact, seen)

    def _atom(self, a: Expr, inner: Mapping[Var, For]) -> Span | None:
        if isinstance(a, Var):
            f = inner[a]
            if any(v in inner for v in vars_of(f.start) | vars_of(f.extent)):
                return None
            return Span(f.start, self.simplify(f.extent - 1), True, frozenset((a,)))
        if isinstance(a, FloorDiv | FloorMod):
            k = as_int(a.b)
            s = self.span(a.a, inner)
            w = None if s is None else as_int(s.width)
            if k is None or k <= 0 or s is None or w is None:
                return self._constant_span(a, inner)
            least, most = self.modulo(s.lo, k)
            if isinstance(a, FloorDiv):
                width = (most + w) // k
                return Span(self.simplify(s.lo // k), const(width), s.exact and (least + w) // k == width, s.vars)
            if most + w < k:
                return Span(self.simplify(s.lo % k), s.width, s.exact, s.vars)
            return Span(ZERO, const(k - 1), s.exact and w >= k - 1, s.vars)
        return self._constant_span(a, inner)

    def modulo(self, e: Expr, k: int) -> tuple[int, int]:
        """The least and the largest value that `e % k` may have."""
        terms = affine_of(e, self.known.forms).terms
        c = terms.get((), 0)
        g = gcd(k, *[n for m, n in terms.items() if m])
        if g == k:
            return c % k, c % k
        lo, hi = self.known.interval(e)
        if lo is not None and hi is not None and lo // k == hi // k:
            return lo % k, hi % k
        return c % g, k - g + c % g

    def _constant_span(self, e: Expr, inner: Mapping[Var, For]) -> Span | None:
        lo, hi = self.known.interval(e)
        if lo is None or hi is None or hi - lo >= 1 << 31:
            return None
        return Span(const(lo), const(hi - lo), False, frozenset(v for v in vars_of(e) if v in inner))

    # ---- injectivity ---------------------------------------------------------------------------------------------------
    def determine(self, values: Sequence[Expr], inner: Mapping[Var, For]) -> bool:
        """Whether the values tell the inner variables apart: no two of their settings give the same values."""
        told = self.told_apart(values, inner)
        return all(v in told or self.at_most(f.extent, ONE) for v, f in inner.items())

    def told_apart(self, values: Sequence[Expr], inner: Mapping[Var, For], widths: Sequence[int] = ()) -> set[Var]:
        """The inner variables that are equal in any two settings of them with equal values. With `widths`: in any two with
        which the intervals value .. value + width overlap, all of them."""
        known: set[Expr] = set()
        todo = [(self.simplify(e), w) for e, w in zip(values, widths or [0] * len(values), strict=True)]
        changed = True
        while changed:
            changed = False
            for e, w in todo:
                changed |= self._decode(e, w, inner, known)
            for a in list(known):
                if isinstance(a, FloorDiv) and self.simplify(FloorMod(a.a, a.b)) in known and a.a not in known:
                    known.add(a.a)
                    todo.append((a.a, 0))
                    changed = True
                if isinstance(a, FloorDiv):  # x // (m * k) beside (x // m) % k, which may be written another way
                    for b in [b for b in known if isinstance(b, FloorMod)]:
                        m, rest = divmod(as_int(a.b) or 0, as_int(b.b) or 1)
                        if m > 0 and not rest and FloorDiv(a.a, const(m)) not in known and self.simplify(a.a // m) == b.a:
                            known.add(FloorDiv(a.a, const(m)))
                            todo.append((b.a, 0))
                            changed = True
                if isinstance(a, FloorMod) and isinstance(a.a, FloorDiv) and a.a not in known:
                    above = self.simplify(a.a.a // (a.a.b * a.b))  # (x // m) % k beside x // (m * k) give x // m
                    if above in known or not any(v in inner for v in vars_of(above)):
                        known.add(a.a)
                        changed = True
        return {v for v in inner if v in known}

    def _decode(self, e: Expr, slack: int, inner: Mapping[Var, For], known: set[Expr]) -> bool:
        """Learn the atoms of a sum, the greatest coefficient first, as long as a coefficient exceeds all that the lower
        terms (and `slack`) can differ by; whether something was learnt."""
        found: list[tuple[Expr, Expr, Expr | None]] = []
        for monomial, c in affine_of(e, self.known.forms).terms.items():
            moving = [a for a in monomial if a not in known and any(v in inner and v not in known for v in vars_of(a))]
            if not moving:
                continue
            size: Expr = const(abs(c))
            for a in monomial:
                if a is not moving[0]:
                    if any(v in inner for v in vars_of(a)) or not self.proves(Le(ONE, a)):
                        return False
                    size = size * a
            s = self._atom(moving[0], inner)
            found.append((size, moving[0], None if s is None else s.width))
        found.sort(key=lambda p: (as_int(p[0]) is None, as_int(p[0]) or 0))
        reach: list[Expr | None] = [const(slack)]
        for size, _, width in found:
            last = reach[-1]
            reach.append(None if last is None or width is None else last + size * width)
        learnt = False
        for (size, a, _), below in zip(reversed(found), reversed(reach[:-1]), strict=True):
            if below is None or not self.at_most(below + 1, size):
                break
            known.add(a)
            learnt = True
        return learnt


def vars_of(e: Expr) -> set[Var]:
    return {e} if isinstance(e, Var) else {n for n in walk(e) if isinstance(n, Var)}
