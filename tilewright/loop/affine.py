"""The normal form of integer expressions: a polynomial with integer coefficients over atoms.

In: integer expressions. Out: `Affine`, a map from monomials (tuples of atoms; `()` is the constant) to coefficients.
An atom is anything that is not a sum or a product: a variable, `x // c`, a load, ... Sums and products are exact in the
ring of integers modulo 2**bits, so the form is exact for wrapping arithmetic too; reading its *value* (comparisons,
division) needs to know that it does not wrap: see `loop/bounds.py`.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilewright.core.dtype import DType
from tilewright.loop.ir import Add, Const, Expr, FloorDiv, FloorMod, Max, Min, Mul, Sub, Var

Monomial = tuple[Expr, ...]
ONE: Monomial = ()
_RING = (Add, Sub, Mul)
_INDEX_OPERATIONS = (*_RING, FloorDiv, FloorMod, Min, Max)
_EXPAND_LIMIT = 16
UNBOUNDED = 4096
"""The number of bits of a form that stands for a value in the integers."""


class Affine:
    """`sum(coefficient * product(monomial))`, an immutable value of integer type `type`.

    `data` says that an atom is not, or contains what is not, index arithmetic (a load, a call, a cast, ...).
    `bits` is where arithmetic on the form wraps: the type's, or UNBOUNDED for a value in the integers.
    """

    __slots__ = ("bits", "data", "expr", "terms", "type")

    def __init__(self, terms: dict[Monomial, int], type: DType, data: bool, bits: int = 0) -> None:
        self.terms, self.type, self.data, self.bits = terms, type, data, bits or type.bits
        self.expr: Expr | None = None
        """The expression built from this form, once it was built."""

    @property
    def const(self) -> int:
        return self.terms.get(ONE, 0)

    def as_const(self) -> int | None:
        """The value (wrapped into the type) if there are no atoms."""
        t = self.terms
        return wrap(self.const, self.type) if not t or len(t) == 1 and ONE in t else None

    def plus(self, o: Affine, scale: int = 1) -> Affine:
        """self + scale * o."""
        terms = dict(self.terms)
        bits = self.bits
        for m, c in o.terms.items():
            new = center(terms.get(m, 0) + scale * c, bits)
            if new:
                terms[m] = new
            else:
                terms.pop(m, None)
        return Affine(terms, self.type, self.data or o.data, bits)

    def plus_const(self, k: int) -> Affine:
        terms = dict(self.terms)
        new = center(terms.get(ONE, 0) + k, self.bits)
        if new:
            terms[ONE] = new
        else:
            terms.pop(ONE, None)
        return Affine(terms, self.type, self.data, self.bits)

    def scaled(self, k: int) -> Affine:
        bits = self.bits
        return Affine({m: n for m, c in self.terms.items() if (n := center(c * k, bits))}, self.type, self.data, bits)

    def times(self, o: Affine) -> Affine:
        terms: dict[Monomial, int] = {}
        bits = self.bits
        for m, c in self.terms.items():
            for n, d in o.terms.items():
                key = m + n if not (m and n) else tuple(sorted(m + n, key=hash))
                new = center(terms.get(key, 0) + c * d, bits)
                if new:
                    terms[key] = new
                else:
                    terms.pop(key, None)
        return Affine(terms, self.type, self.data or o.data, bits)


def wrap(value: int, type: DType) -> int:
    """`value` modulo 2**bits, in the range of the integer type."""
    value &= (1 << type.bits) - 1
    return value - (1 << type.bits) if type.kind == "int" and value >> (type.bits - 1) else value


def center(value: int, bits: int) -> int:
    """`value` modulo 2**bits, nearest to zero."""
    half = 1 << (bits - 1)
    return value if -half <= value < half else ((value + half) & ((1 << bits) - 1)) - half


def constant(value: int, type: DType) -> Affine:
    c = center(value, type.bits)
    return Affine({ONE: c} if c else {}, type, False)


def atom(e: Expr, data: bool) -> Affine:
    """The form of an expression that is taken as it is."""
    a = Affine({(e,): 1}, e.dtype, data)
    a.expr = e
    return a


def combine(cls: Any, a: Affine, b: Affine) -> Affine | None:
    """The form of `cls(a, b)` for Add, Sub and Mul; None where expanding would only make data arithmetic longer."""
    if cls is Mul:
        if len(a.terms) > 1 and len(b.terms) > 1 and (
                a.data or b.data or len(a.terms) * len(b.terms) > _EXPAND_LIMIT):
            return None
        if (a.data or b.data) and a.type.bits < 64 and a.as_const() is None and b.as_const() is None:
            return None
        return a.times(b)
    if (a.data or b.data) and a.type.bits < 64 and a.as_const() is None and b.as_const() is None:
        return None
    return a.plus(b, 1 if cls is Add else -1)


def affine_of(root: Expr, memo: dict[int, tuple[Expr, Affine]]) -> Affine:
    """The form of a scalar integer expression; iterative, since unrolled sums are deep. `memo` is by identity."""
    found = memo.get(id(root))
    if found is not None:
        return found[1]
    stack = [root]
    while stack:
        e = stack[-1]
        if id(e) in memo:
            stack.pop()
            continue
        cls = type(e)
        if cls is Const:
            result = constant(int(e.value), e.type)  # type: ignore[attr-defined]
            result.expr = e
        elif cls is Var:
            result = atom(e, False)
        elif cls in _INDEX_OPERATIONS:
            a, b = e.a, e.b  # type: ignore[attr-defined]
            fa, fb = memo.get(id(a)), memo.get(id(b))
            if fa is None or fb is None:
                if fa is None:
                    stack.append(a)
                if fb is None:
                    stack.append(b)
                continue
            result = (combine(cls, fa[1], fb[1]) if cls in _RING else None) or atom(e, fa[1].data or fb[1].data)
        else:
            result = atom(e, True)
        memo[id(e)] = (e, result)
        stack.pop()
    return memo[id(root)][1]


def build(a: Affine, order: Callable[[Expr], Any]) -> Expr:
    """The expression of a form: terms by `order` of their last factor (outer loops first), the constant last.

    The first positive term leads, so that negative ones are subtracted: `n - i - 1`.
    """
    if a.expr is not None:
        return a.expr
    t = a.type
    terms = [(m, c) for m, c in a.terms.items() if m]
    if len(terms) > 1:
        terms.sort(key=lambda x: max([order(e) for e in x[0]]))
    k = a.const
    out: Expr | None = None
    lead = next((i for i, (_, c) in enumerate(terms) if c > 0), None)
    if lead is not None:
        terms.insert(0, terms.pop(lead))
    elif terms and not (len(terms) == 1 and k == 0 and terms[0][1] != -1):
        out, k = Const(wrap(k, t), t), 0
    for m, c in terms:
        product: Expr = m[0] if len(m) == 1 else _product(sorted(m, key=order))
        if out is None:
            out = product if c == 1 else Mul(product, Const(wrap(c, t), t))
        else:
            size = Mul(product, Const(wrap(abs(c), t), t)) if abs(c) != 1 else product
            out = Add(out, size) if c > 0 else Sub(out, size)
    if out is None:
        out = Const(wrap(k, t), t)
    elif k:
        out = Add(out, Const(k, t)) if k > 0 else Sub(out, Const(-k, t)) if -k <= t.range()[1] else Add(
            out, Const(wrap(k, t), t))
    a.expr = out
    return out


def _product(factors: list[Expr]) -> Expr:
    out = factors[0]
    for f in factors[1:]:
        out = Mul(out, f)
    return out
