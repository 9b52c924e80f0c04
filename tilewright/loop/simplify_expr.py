"""The simplifier of expressions: one walk, children first, with what is known at one place of a program.

In: an expression and `Knowledge` (ranges and facts). Out: an equal expression in canonical form. Scalar integer sums and
products are kept as forms (`loop/affine.py`) while the walk climbs and built once, where something else uses them.
"""
from __future__ import annotations

from math import gcd
from typing import Any

from tilewright.core.dtype import boolean, i64
from tilewright.loop.affine import ONE, Affine, Monomial, atom, build, combine, constant
from tilewright.loop.algebra import rules
from tilewright.loop.bounds import Knowledge
from tilewright.loop.ir import (
    Add,
    And,
    Binary,
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
    Lt,
    Max,
    Min,
    Mul,
    Ne,
    Or,
    Ramp,
    Select,
    Sub,
    Var,
    const,
)


class Order:
    """The order of terms in sums: by the depth of the loops that an atom depends on, then by first appearance."""

    def __init__(self) -> None:
        self.depth: dict[Var, int] = {}
        self._keys: dict[Expr, tuple[int, int]] = {}

    def __call__(self, e: Expr) -> tuple[int, int]:
        found = self._keys.get(e)
        if found is None:
            found = (self._depth_of(e), len(self._keys))
            self._keys[e] = found
        return found

    def _depth_of(self, e: Expr) -> int:
        deepest, stack, seen = -1, [e], set()
        while stack:
            n = stack.pop()
            if isinstance(n, Var):
                deepest = max(deepest, self.depth.get(n, -1))
            elif id(n) not in seen:
                seen.add(id(n))
                stack.extend(n.children())  # type: ignore[arg-type]
        return deepest


class ExprSimplifier:
    """Simplifies expressions at one place of a program.

    `values` replaces variables, `buffers` replaces buffers (definitions that the caller dropped or renewed).
    """

    def __init__(self, known: Knowledge, order: Order, values: dict[Var, Expr], buffers: dict[Buffer, Buffer]) -> None:
        self.known, self.order, self.values, self.buffers = known, order, values, buffers
        self._done: dict[int, tuple[Any, Expr | Affine]] = {}

    def expr(self, root: Expr) -> Expr:
        """The simplified expression; iterative, since unrolled sums are deep."""
        done = self._done
        stack: list[Any] = [root]
        while stack:
            e = stack[-1]
            if id(e) in done:
                stack.pop()
                continue
            cls = type(e)
            if cls is Var:
                done[id(e)] = (e, self._var(e))
            elif cls is Const:
                done[id(e)] = (e, e)
            elif cls is Buffer:
                done[id(e)] = (e, self.buffers.get(e, e))
            elif cls is Guard:
                done[id(e)] = (e, self._guard(e))
            else:
                waiting = [c for c in e.children() if id(c) not in done]
                if waiting:
                    stack.extend(waiting)
                    continue
                done[id(e)] = (e, self._node(e))
            stack.pop()
        out: Expr = self._get(root)
        return out

    # ---- one node ---------------------------------------------------------------------------------------------------
    def _get(self, e: Any) -> Any:
        """What a visited node became, built if it is still a form."""
        r = self._done[id(e)][1]
        if isinstance(r, Affine):
            r = self._built(r)
            if _alike(r, e):
                r = e  # so that what was canonical before stays the same object
            elif r.loc is None and not r.by_identity:
                r.loc = e.loc
            self._done[id(e)] = (e, r)
        return r

    def _built(self, a: Affine) -> Expr:
        if a.expr is None:
            a = self._joined(a)
        e = build(a, self.order)
        self._done[id(e)] = (e, e)
        self.known.forms[id(e)] = (e, a)
        return e

    def _form(self, e: Expr) -> Affine:
        """The form of what a visited node became."""
        r = self._done[id(e)][1]
        return r if isinstance(r, Affine) else self.known.form(r)

    def _var(self, v: Var) -> Expr:
        e = self.values.get(v)
        if e is not None:
            return e
        if v.type.is_int and v in self.known.ranges:
            lo, hi = self.known.interval(v)
            if lo is not None and lo == hi:
                return const(lo, v)
        return v

    def _guard(self, e: Guard) -> Expr:
        """Each side is simplified under its condition (it is evaluated only then)."""
        cond = self.expr(e.cond)
        value = self.known.decide(cond)
        if value is not None:
            return self.expr(e.a if value else e.b)
        sides = [ExprSimplifier(self.known.assuming(cond, holds), self.order, self.values, self.buffers).expr(s)
                 for s, holds in ((e.a, True), (e.b, False))]
        if cond is e.cond and sides[0] is e.a and sides[1] is e.b:
            new: Expr = e
        else:
            new = e.replace(cond=cond, a=sides[0], b=sides[1])
        ruled = rules.apply(new)
        return new if ruled is None else ruled

    def _node(self, e: Any) -> Expr | Affine:
        cls = type(e)
        if isinstance(e, Binary):
            left = self._done[id(e.a)][1]
            t = left.type if isinstance(left, Affine) else left.dtype
            if t.is_int:
                if t.lanes == 1:
                    got = self._integer(cls, e)
                    if got is not None:
                        return e if isinstance(got, Compare) and _alike(got, e) else got
                elif cls is FloorDiv or cls is FloorMod:
                    vector = self._divide_ramp(cls, self._get(e.a), self._get(e.b))
                    if vector is not None:
                        return self.expr(vector)
        n = e.map(self._get)
        if isinstance(n, Compare) or cls is Select:
            cond = n.cond if cls is Select else n
            value = self.known.decide(cond)
            if value is not None:
                return (n.a if value else n.b) if cls is Select else const(value, n)
        elif cls is Cast and n.type.is_int and n.a.dtype.is_int:
            lo, hi = self.known.interval(n)
            if lo is not None and lo == hi:
                return const(lo, n)
        new = rules.apply(n)
        if new is None and (cls is And or cls is Or):
            new = self._implied(n)
        if new is None:
            return n  # type: ignore[no-any-return]
        self._keep(n)
        return self.expr(new)

    def _implied(self, n: And | Or) -> Expr | None:
        """a & b where a says that b holds → a, where a says that it does not → False; dually for |."""
        neutral = isinstance(n, And)
        for a, b in ((n.a, n.b), (n.b, n.a)):
            known = self.known.assuming(a, neutral)
            value = None if known is self.known else known.decide(b)
            if value is not None:
                return a if value is neutral else const(value, n)
        return None

    def _keep(self, n: Expr) -> None:
        """Operands of a node that a rule took apart are simplified already."""
        for c in n.children():
            if isinstance(c, Expr):
                self._done[id(c)] = (c, c)
                if isinstance(c, Broadcast | Ramp | Cast):
                    self._keep(c)

    # ---- scalar integers --------------------------------------------------------------------------------------------
    def _integer(self, cls: Any, e: Binary) -> Expr | Affine | None:
        """Normal form of a sum or product, division by what is known, a decided comparison; None where there is no more to
        say than the local rules do."""
        a, b = self._form(e.a), self._form(e.b)
        if cls is Add or cls is Sub or cls is Mul:
            return combine(cls, a, b)
        if cls is FloorDiv or cls is FloorMod:
            return self._divide(cls, a, b)
        if cls is Div:
            (alo, _), (blo, _) = self.known.of_form(a), self.known.of_form(b)
            if alo is not None and alo >= 0 and blo is not None and blo > 0 and self.known.exact(a) and self.known.exact(b):
                return self._divide(FloorDiv, a, b)
            return None
        if cls is Min or cls is Max:
            first = self.known.compare(Le, a, b)
            if first is None and self.known.compare(Le, b, a):
                first = False  # a >= b: where they are equal, either will do
            if first is None:
                return None
            return a if first == (cls is Min) else b
        if issubclass(cls, Compare):
            return self._compare(cls, a, b)
        return None

    def _compare(self, cls: Any, a: Affine, b: Affine) -> Expr | None:
        """A decided comparison, or an undecided one of indices with as little on its sides as possible."""
        known = self.known
        value = known.compare(cls, a, b)
        if value is not None:
            return const(value, boolean)
        if a.type is not i64 or not (known.exact(a) and known.exact(b)):
            return None
        d = self._joined(b.plus(a, -1))
        if cls is Lt:
            d = d.plus_const(-1)  # d >= 0 now says it
        if cls is Lt or cls is Le:
            d = self._reduced(d)
        else:
            g = gcd(*d.terms.values())
            d = Affine({m: c // g for m, c in d.terms.items()}, d.type, d.data)
        k = d.const + (cls is Lt)
        left = Affine({m: -c for m, c in d.terms.items() if m and c < 0}, d.type, d.data)
        right = Affine({m: c for m, c in d.terms.items() if m and c > 0}, d.type, d.data)
        if not left.terms or (right.terms and k < 0):
            left = left.plus_const(-k)
        else:
            right = right.plus_const(k)
        if cls in (Eq, Ne) and not any(left.terms) and right.terms:
            left, right = right, left
        if not (known.exact(left) and known.exact(right)):
            return None
        return cls(self._built(left), self._built(right))  # type: ignore[no-any-return]

    def _reduced(self, d: Affine) -> Affine:
        """A form that is >= 0 exactly when `d` is: divided by a common factor of most terms, the others being too small to
        matter (`14*i + j < 56` with `j < 14` is `i < 4`)."""
        for g in sorted({abs(c) for m, c in d.terms.items() if m}, reverse=True):
            if g > 1:
                q, r = _split(d, ONE, g)
                lo, hi = self.known.of_form(r)
                if lo is not None and hi is not None and lo // g == hi // g:
                    return q.plus_const(lo // g)
        return d

    def _divide(self, cls: Any, a: Affine, b: Affine) -> Affine | None:
        """a // b or a % b; None where the value might wrap or nothing is known of the divisor."""
        if not (self.known.exact(a) and self.known.exact(b)):
            return None
        a = self._joined(a)
        c = b.as_const()
        if c is not None:
            if c <= 0:
                return None
            return self._quotient(a, c) if cls is FloorDiv else self._remainder(a, c)
        if len(b.terms) != 1:
            (m, k), whole = next(iter(b.terms.items())), b
            if a.terms == b.terms and self.known.nonnegative(b.plus_const(-1)):
                return constant(1 if cls is FloorDiv else 0, a.type)
            q, r = constant(0, a.type), a
        else:
            (m, k), whole = next(iter(b.terms.items())), b
            if k < 0:
                return None
            q, r = _split(a, m, k)
        if not r.terms or (self.known.nonnegative(r) and self.known.nonnegative(whole.plus(r, -1).plus_const(-1))):
            return q if cls is FloorDiv else r
        if not q.terms or not (self.known.exact(q) and self.known.exact(r)):
            return None
        rest = atom(cls(self._built(r), self._built(b)), a.data or b.data)
        return q.plus(rest) if cls is FloorDiv else rest

    def _quotient(self, a: Affine, c: int) -> Affine:
        """a // c for a constant c > 0 and an `a` that does not wrap."""
        if c == 1:
            return a
        known = self.known
        q, r = _split(a, ONE, c)
        lo, hi = known.of_form(r)
        if lo is not None and hi is not None and lo // c == hi // c:
            return q.plus_const(lo // c)
        if not known.exact(r):
            q, r = constant(0, a.type), a
        for g in _factors(r, c):
            big, small = _split(r, ONE, g)
            lo, hi = known.of_form(small)
            if lo is not None and hi is not None and lo // g == hi // g:
                return q.plus(self._quotient(big.plus_const(lo // g), c // g))
        x, k = _lone(r)
        if isinstance(x, FloorDiv) and isinstance(x.b, Const) and x.b.value > 0:
            inner = known.form(x.a).plus_const(k * x.b.value)
            if known.exact(known.form(x.a)) and known.exact(inner) and c * x.b.value <= a.type.range()[1]:
                return q.plus(self._quotient(inner, c * x.b.value))
        if isinstance(x, FloorMod) and k == 0 and isinstance(x.b, Const) and x.b.value > 0 and x.b.value % c == 0 \
                and known.exact(known.form(x.a)):
            return q.plus(self._remainder(self._quotient(known.form(x.a), c), x.b.value // c))
        return q.plus(atom(FloorDiv(self._built(r), Const(c, a.type)), a.data))

    def _remainder(self, a: Affine, c: int) -> Affine:
        """a % c for a constant c > 0 and an `a` that does not wrap."""
        if c == 1:
            return constant(0, a.type)
        known = self.known
        _, r = _split(a, ONE, c)
        for m, k in list(r.terms.items()):
            x = m[0] if len(m) == 1 else None
            if isinstance(x, FloorMod) and isinstance(x.b, Const) and x.b.value > 0 and x.b.value % c == 0:
                inner = known.form(x.a)
                other = Affine({n: v for n, v in r.terms.items() if n != m}, r.type, r.data).plus(inner, k)
                if known.exact(inner) and known.exact(other):
                    return self._remainder(other, c)
        lo, hi = known.of_form(r)
        if lo is not None and hi is not None and lo // c == hi // c:
            return r.plus_const(-(lo // c) * c)
        if not known.exact(r):
            r = a
        for g in _factors(r, c):
            big, small = _split(r, ONE, g)
            lo, hi = known.of_form(small)
            if lo is not None and hi is not None and lo // g == hi // g:
                inner = self._remainder(big.plus_const(lo // g), c // g)
                return inner.scaled(g).plus(small).plus_const(-(lo // g) * g)
        return atom(FloorMod(self._built(r), Const(c, a.type)), a.data)

    def _joined(self, a: Affine) -> Affine:
        """k*c*(y // c) + k*(y % c) → k*y"""
        if len(a.terms) < 2:
            return a
        for m, k in a.terms.items():
            x = m[0] if len(m) == 1 else None
            if not (isinstance(x, FloorMod) and isinstance(x.b, Const) and x.b.value > 0):
                continue
            c = x.b.value
            if not any(v == k * c for v in a.terms.values()):
                continue
            y = self.known.form(x.a)
            if not self.known.exact(y):
                continue
            q = self._quotient(y, c)
            for n, one in q.terms.items():
                if one == 1 and n and a.terms.get(n, 0) == k * c:
                    rest = Affine({p: v for p, v in a.terms.items() if p not in (m, n)}, a.type, a.data)
                    others = Affine({p: v for p, v in q.terms.items() if p != n}, q.type, q.data)
                    return self._joined(rest.plus(y, k).plus(others, -k * c))
        return a

    # ---- vectors -------------------------------------------------------------------------------------------------------
    def _divide_ramp(self, cls: Any, a: Expr, b: Expr) -> Expr | None:
        """A ramp divided by a constant, where the lanes stay within one quotient or the stride divides evenly."""
        if not (isinstance(a, Ramp) and isinstance(b, Broadcast) and isinstance(b.a, Const) and b.a.value > 0):
            return None
        c, step = b.a.value, self.known.form(a.stride).as_const()
        if step is None:
            return None
        base = self.known.form(a.base)
        if not (self.known.exact(base) and self.known.exact(base.plus_const(step * (a.lanes - 1)))):
            return None
        if step % c == 0:
            if cls is FloorDiv:
                return Ramp(FloorDiv(a.base, b.a), const(step // c, a.stride), a.lanes)
            return Broadcast(FloorMod(a.base, b.a), a.lanes)
        lo, hi = self.known.of_form(self._remainder(base, c))
        last = step * (a.lanes - 1)
        if lo is None or hi is None or lo + min(last, 0) < 0 or hi + max(last, 0) >= c:
            return None
        if cls is FloorDiv:
            return Broadcast(FloorDiv(a.base, b.a), a.lanes)
        return Ramp(FloorMod(a.base, b.a), a.stride, a.lanes)


def _alike(a: Expr, b: Expr) -> bool:
    """Equality of two sums, told at the first difference and without hashing (deep sums would recurse)."""
    stack = [(a, b)]
    while stack:
        x, y = stack.pop()
        if x is y:
            continue
        if type(x) is not type(y):
            return False
        if isinstance(x, Binary) and isinstance(y, Binary):
            stack += [(x.b, y.b), (x.a, y.a)]
        elif not (isinstance(x, Const) and x == y):
            return False
    return True


def _split(a: Affine, m: Monomial, c: int) -> tuple[Affine, Affine]:
    """(q, r) with a = q * (c * m) + r; r keeps the terms that are no multiples (its constant is in [0, c) if m is 1)."""
    q: dict[Monomial, int] = {}
    r: dict[Monomial, int] = {}
    for n, k in a.terms.items():
        if not n and not m:
            high, low = divmod(k, c)
            if high:
                q[n] = high
            if low:
                r[n] = low
            continue
        rest = _without(n, m) if k % c == 0 else None
        if rest is None:
            r[n] = k
        else:
            q[rest] = k // c
    return Affine(q, a.type, a.data), Affine(r, a.type, a.data)


def _without(n: Monomial, m: Monomial) -> Monomial | None:
    """The factors of n that are left after dividing by m, or None."""
    if not m:
        return n
    left = list(n)
    for f in m:
        if f not in left:
            return None
        left.remove(f)
    return tuple(left)


def _factors(r: Affine, c: int) -> list[int]:
    """Proper common factors of c and a coefficient, largest first."""
    return sorted({g for m, k in r.terms.items() if m and (g := gcd(c, k)) > 1}, reverse=True)


def _lone(r: Affine) -> tuple[Expr | None, int]:
    """(x, k) if r = x + k for one atom x."""
    atoms = [(m, c) for m, c in r.terms.items() if m]
    if len(atoms) == 1 and atoms[0][1] == 1 and len(atoms[0][0]) == 1:
        return atoms[0][0][0], r.const
    return None, 0

